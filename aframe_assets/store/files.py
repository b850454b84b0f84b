"""Local files on their way into the store: collected, flushed, hashed; private folders of dead processes swept."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from aframe_assets.store.handle import FileEntry, check_name

WRITE_BYTES = 256 << 10
"""So much is written by a call: of a megabyte and more ext4 takes up to ten times the CPU time, since it looks for pages as large."""
_ABANDONED_S = 7 * 86400.0
FULL = (errno.ENOSPC, errno.EDQUOT)


def collect(files: Path | Mapping[str, Path], what: str) -> dict[str, Path]:
    """The files to publish, by name.

    A link to a file is followed, so that an artifact never depends on something outside of itself.

    Raises:
        ValueError: nothing there, not a plain file, or a name that cannot be stored.
    """
    if isinstance(files, Mapping):
        tree = {check_name(name): Path(path) for name, path in files.items()}
    else:
        root = Path(files)
        if not root.is_dir():
            raise ValueError(f"{what}: expected a folder to publish, found none at {root}")
        tree = {check_name(p.relative_to(root).as_posix()): p for p in root.rglob("*") if not p.is_dir() or p.is_symlink()}
    if not tree:
        raise ValueError(f"{what}: there are no files to publish")
    for name, path in tree.items():
        if not path.is_file():
            raise ValueError(f"{what}: {name} should be published from {path}, which is not a file")
    for name in tree:
        parents = name.split("/")[:-1]
        if any("/".join(parents[: i + 1]) in tree for i in range(len(parents))):
            raise ValueError(f"{what}: {name} needs a folder where another file to publish has its name")
    return tree


def file_sha256(path: Path) -> str:
    """sha256 of a file, streamed."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sealed_entry(name: str, path: Path, flush: bool = True) -> FileEntry:
    """Flush the file to its disk (if `flush`), hash it, and say what is in it."""
    with path.open("rb") as stream:
        if flush:
            os.fsync(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileEntry(name=name, sha256=digest, nbytes=os.fstat(stream.fileno()).st_size)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries; filesystems that cannot do that are let off."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def copy_file(source: Path, target: Path) -> None:
    """Copy in blocks and flush."""
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, WRITE_BYTES)
        writer.flush()
        os.fsync(writer.fileno())


def stamp() -> str:
    """A name that no other process uses and that says whose it is: host, process, random."""
    return f"{socket.gethostname()}~{os.getpid()}~{uuid4().hex[:12]}"


def remove_dead(base: Path, prefix: str = "") -> None:
    """Remove what `stamp` named in `base` for processes of this host that are gone; of other hosts, only what is a week old."""
    for path in base.glob(f"{prefix}*~*~*"):
        try:
            gone = is_abandoned(path.name.removeprefix(prefix), time.time() - path.stat().st_mtime)
        except OSError:
            continue
        if gone:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def is_abandoned(name: str, age_s: float) -> bool:
    """Whether the process that `stamp` named something for is gone; of another host, whether it has been left for a week."""
    try:
        host, pid, _ = name.rsplit("~", 2)
        return not _alive(int(pid)) if host == socket.gethostname() else age_s > _ABANDONED_S
    except ValueError:
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
