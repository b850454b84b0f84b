"""Getting the project, its environment and its inputs to where steps run."""
