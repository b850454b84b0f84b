"""What tests of whole runs share; the run itself is in ``tests/plugins/tiny_run.py``."""

from tiny_run import TINY, RunDirectory, wait_for

__all__ = ["TINY", "RunDirectory", "wait_for"]
