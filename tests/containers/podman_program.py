"""Podman, as a program."""

from __future__ import annotations

import subprocess


def podman(*words: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """A podman command that has ended; its exit code is not looked at."""
    return subprocess.run(["podman", *words], capture_output=True, text=True, timeout=timeout)
