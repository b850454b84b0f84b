"""The `aframe` command."""
