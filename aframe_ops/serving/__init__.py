"""Life of a Triton server: its environment, its start and end, and what it says meanwhile."""
