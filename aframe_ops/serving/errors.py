"""Errors of serving that a user can mend."""

from __future__ import annotations


class ServingError(RuntimeError):
    """A server, or the environment it runs in, cannot be had as it was asked for."""
