"""Writing and checking structs.yaml; no command loads it."""
