"""The disk of the node that a step runs on: verified copies of what is read, and scratch.

A job that has one is told where by ``$AFRAME_NODE_DIR``. Copies are kept by content in the same cache as those of remote
files, shared by all jobs of the node that see that disk.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from aframe_assets.store.cache import Cache, CacheError, Fetch
from aframe_assets.store.handle import Handle

NODE_DIRECTORY = "AFRAME_NODE_DIR"
SPARE_BYTES = 200_000_000
"""Space that copies leave for what the step writes."""
KEEP_S = 2 * 86400.0
"""Copies opened since then stay: another job of the node may open them again, as training does in every epoch."""


class NodeDisk:
    """A folder on the node's disk; its cache holds at most `cache_bytes`."""

    def __init__(self, folder: Path, cache_bytes: int):
        self.folder = folder
        self.cache = Cache(folder / "cache", cache_bytes, keep_s=KEEP_S)
        self._told = False

    @classmethod
    def of_job(cls, cache_bytes: int) -> NodeDisk | None:
        """That of ``$AFRAME_NODE_DIR``; None outside of jobs that have one."""
        found = os.environ.get(NODE_DIRECTORY)
        return cls(Path(found), cache_bytes) if found else None

    @property
    def scratch(self) -> Path:
        """Where private folders go."""
        return self.folder / "scratch"

    def open(self, handle: Handle, names: list[str], fetch: Fetch) -> Path | None:
        """The local folder of `handle` with the files `names`, verified; None where there is no space for them.

        Raises:
            CacheError: the bytes are not those of the handle.
        """
        missing = self.cache.missing(handle, names)
        needed = sum(handle.file(name).nbytes for name in missing)
        if missing and not self._fits(needed):
            self.cache.trim(to=max(0, self.cache.max_bytes - needed) if self._free() >= needed + SPARE_BYTES else 0)
            if not self._fits(needed):
                self._tell(
                    f"{handle.label} ({needed / 1e9:.2f} GB) does not fit, with {self._free() / 1e9:.2f} GB free and "
                    f"{self.cache.held() / 1e9:.2f} of {self.cache.max_bytes / 1e9:g} GB for copies (store.cache_gb) in use"
                )
                return None
        try:
            return self.cache.open(handle, names, fetch)
        except CacheError as error:
            if not error.full:
                raise
            self._tell(str(error))
            return None

    def _fits(self, needed: int) -> bool:
        return self._free() >= needed + SPARE_BYTES and self.cache.held() + needed <= self.cache.max_bytes

    def _free(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.folder).free

    def _tell(self, why: str) -> None:
        if not self._told:  # once for a step: there may be thousands of files
            self._told = True
            sys.stderr.write(f"aframe: not all inputs are copied to the node's disk {self.folder}: {' '.join(why.split())}\n")
            sys.stderr.flush()
