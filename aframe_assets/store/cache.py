"""Local copies of remote files, named after their content, below a size cap.

Layout: ``{root}/files/{sha256[:2]}/{sha256}/NAME`` with the artifact's content hash, so two runs, stores or versions
with the same content share one copy; beside it ``{sha256}.json`` remembers what was verified, ``{sha256}.lock`` keeps
workers from fetching the same thing twice. Pieces of files (`aframe_assets.store.ranges`) lie in ``{root}/pieces`` and count towards
the cap as whole files do.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from aframe_assets.store.files import FULL, file_sha256, remove_dead, stamp
from aframe_assets.store.handle import FileEntry, Handle

Fetch = Callable[[FileEntry, Path], str | None]
"""Writes the file of an entry to a path; its sha256, where that was computed on the way."""


class CacheError(RuntimeError):
    """A file could not be brought into the cache; `full`: because there is no space for it, or no right to write."""

    def __init__(self, text: str, full: bool = False):
        super().__init__(text)
        self.full = full


class Cache:
    """A content-addressed cache for the processes of one host.

    Args:
        root: folder of the cache.
        max_bytes: the least recently used go once more than this is held.
        keep_s: what was opened this recently stays even above the cap: its reader may not have opened the file yet.
    """

    def __init__(self, root: Path, max_bytes: int, keep_s: float = 300.0):
        self.root = Path(root).expanduser().absolute()
        self.max_bytes = max_bytes
        self.keep_s = keep_s

    def open(self, handle: Handle, names: list[str], fetch: Fetch) -> Path:
        """The local folder of `handle`, in which the files `names` are whole.

        Args:
            fetch: writes the file of an entry to a path.

        Raises:
            CacheError: the fetched bytes are not those of the handle, or the disk is full or cannot be written.
        """
        try:
            return self._open(handle, names, fetch)
        except OSError as error:
            if error.errno in FULL:
                raise self._no_space(", ".join(names)) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                words = f"the cache {self.root} cannot be written ({error.strerror})"
                raise CacheError(f"{words}. Check its owner and mount, or set AFRAME_CACHE_DIR", full=True) from error
            raise

    def _no_space(self, what: str) -> CacheError:
        words = f"no space left in the cache {self.root} for {what}"
        return CacheError(f"{words}. Free space there, or set AFRAME_CACHE_DIR to a larger disk", full=True)

    def _open(self, handle: Handle, names: list[str], fetch: Fetch) -> Path:
        base = self.root / "files" / handle.sha256[:2]
        base.mkdir(parents=True, exist_ok=True)
        folder, record = base / handle.sha256, base / f"{handle.sha256}.json"
        with FileLock(base / f"{handle.sha256}.lock"):
            known = self._known(record)
            fetched = False
            for entry in (handle.file(name) for name in names):
                seen = self._mark(folder / entry.name, entry)
                if seen is None or known.get(entry.name) != seen:
                    self._enter(entry, folder / entry.name, fetch)
                    known[entry.name] = self._mark(folder / entry.name, entry)
                    fetched = True
            if fetched:
                self._remember(record, known)
            else:
                os.utime(record)  # the time of last use; access times of files are often switched off
        if fetched:
            self.trim(spare=handle.sha256)
        return folder

    def copy(self, handle: Handle, name: str) -> Path | None:
        """The copy of a file if it is in the cache now, and is then used last; it may go at any time."""
        base = self.root / "files" / handle.sha256[:2]
        if self.missing(handle, [name]):
            return None
        with suppress(OSError):
            os.utime(base / f"{handle.sha256}.json")
        return base / handle.sha256 / name

    def missing(self, handle: Handle, names: list[str]) -> list[str]:
        """Of the files `names` of `handle`, those that are not in the cache now."""
        base = self.root / "files" / handle.sha256[:2]
        known = self._known(base / f"{handle.sha256}.json")
        marks = {name: self._mark(base / handle.sha256 / name, handle.file(name)) for name in names}
        return [name for name, seen in marks.items() if seen is None or known.get(name) != seen]

    @staticmethod
    def _known(record: Path) -> dict[str, list]:
        try:
            found = json.loads(record.read_text())
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}

    @staticmethod
    def _remember(record: Path, known: dict[str, list]) -> None:
        temporary = record.with_name(f"{record.name}~{stamp()}")
        temporary.write_text(json.dumps(known))
        os.replace(temporary, record)

    @staticmethod
    def _mark(path: Path, entry: FileEntry) -> list | None:
        """What a file looked like when it was verified: any later write to it shows."""
        try:
            found = path.stat()
        except OSError:
            return None
        return [entry.sha256, found.st_size, found.st_mtime_ns] if found.st_size == entry.nbytes else None

    def _enter(self, entry: FileEntry, target: Path, fetch: Fetch) -> None:
        arriving = self.root / "arriving"
        arriving.mkdir(parents=True, exist_ok=True)
        remove_dead(arriving)
        temporary = arriving / stamp()
        try:
            for attempt in (1, 2):
                temporary.unlink(missing_ok=True)
                try:
                    found = fetch(entry, temporary) or file_sha256(temporary)
                except OSError as error:
                    if error.errno not in FULL:
                        raise
                    if attempt == 2 or not self.trim(to=0):
                        raise self._no_space(f"{entry.name} ({entry.nbytes / 1e9:.2f} GB)") from error
                    continue
                if found == entry.sha256:
                    break
            else:
                raise CacheError(
                    f"{entry.name} does not have the recorded sha256 (read twice: {found[:12]}, expected {entry.sha256[:12]}): "
                    "the stored object is damaged; `aframe verify` names what to make again"
                )
            temporary.chmod(0o444)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def held(self) -> int:
        """Size of all copies and pieces, in bytes."""
        return sum(size for _, size, _ in self._entries())

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Of each artifact and each piece when it was last used, its size in bytes, and its record or the piece."""
        entries = []
        for piece in self.root.glob("pieces/??/*"):
            with suppress(OSError):
                found = piece.stat()
                entries.append((found.st_mtime, found.st_size, piece))
        for record in self.root.glob("files/??/*.json"):
            folder = record.with_suffix("")
            with suppress(OSError):
                size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
                entries.append((record.stat().st_mtime, size, record))
        return entries

    def trim(self, spare: str = "", to: int | None = None) -> int:
        """Remove the least recently used artifacts and pieces until `to` bytes (default: the cap) are held; bytes freed."""
        limit = self.max_bytes if to is None else to
        entries = self._entries()
        held, freed, now = sum(size for _, size, _ in entries), 0, time.time()
        for used, size, record in sorted(entries, key=lambda e: e[0]):
            if held - freed <= limit:
                break
            if record.suffix != ".json":
                with suppress(OSError):
                    record.unlink()
                    freed += size
                continue
            if record.stem == spare or now - used < self.keep_s:
                continue
            lock = record.with_suffix(".lock")
            # the lock file stays: removing it while another process waits for it would let two in
            with suppress(Timeout, OSError), FileLock(lock, timeout=0):
                record.unlink(missing_ok=True)
                shutil.rmtree(record.with_suffix(""), ignore_errors=True)
                freed += size
        return freed
