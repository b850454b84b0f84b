"""What is computed: the asset graph of a gravitational-wave search and its science."""

__version__ = "0.1.0"
