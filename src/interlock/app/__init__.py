"""The only wiring: supervisor, control, workers and executors, each a process of its own."""
