"""One executor for every step; a handler for each kind of place where steps run."""
