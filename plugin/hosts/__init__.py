"""Where wchan runs: the shell, lldb, gdb; the runner they share."""
