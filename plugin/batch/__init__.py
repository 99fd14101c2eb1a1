"""Many cores and captures: one isolated worker each, resumed, grouped, compared."""
