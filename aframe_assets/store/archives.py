"""Archives (tar, zip) that came from elsewhere, unpacked without trusting what is in them."""

from __future__ import annotations

import errno
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from aframe_assets.store.files import WRITE_BYTES
from aframe_assets.store.handle import check_name

MAX_MEMBERS = 1_000_000

_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OverflowError,
    ValueError,
)
"""What Python's readers of archives raise for bytes that make no sense to them."""


class ArchiveError(ValueError):
    """An archive that is not unpacked; the message names the member and the reason."""


def unpack(archive: Path, folder: Path, max_bytes: int) -> Path:
    """Puts the files of `archive` below the new folder `folder`, and returns that. After an error there is no such folder.

    Only plain files and folders are taken, with no more rights than a new file has.

    Args:
        max_bytes: most that all files together may have, in bytes, whatever the archive says about their size.

    Raises:
        ArchiveError: not an archive, or a damaged one; or a member with an absolute path or '..', a link, a device, one name
            twice, or too large.
        FileExistsError: `folder` is there.
    """
    folder.mkdir(parents=True)
    try:
        left, seen = max_bytes, set()
        with _members(archive) as members:
            for name, stream in members:
                _require_plain(archive, name, seen)
                target = folder / name
                if stream is None:
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with stream, target.open("xb") as out:
                    while block := stream.read(WRITE_BYTES):
                        left -= len(block)
                        if left < 0:
                            raise ArchiveError(f"{archive}: has more than {max_bytes / 1e9:g} GB in it, and is not unpacked")
                        out.write(block)
    except BaseException as e:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(e, ArchiveError):
            raise
        if isinstance(e, FileExistsError | NotADirectoryError):
            raise ArchiveError(f"{archive}: {os.path.relpath(e.filename or folder, folder)} is both a file and a folder in it") from e
        # gzip and bz2 raise an OSError without a number, and a place before the archive's beginning is an invalid argument
        if isinstance(e, _DAMAGED) or (isinstance(e, OSError) and e.errno in (None, errno.EINVAL)):
            raise ArchiveError(f"{archive}: cannot be unpacked: {e}") from e
        raise
    return folder


def _require_plain(archive: Path, name: str, seen: set[str]) -> None:
    try:
        check_name(name)
    except ValueError:
        raise ArchiveError(f"{archive}: member {name!r} would leave the folder; expected relative names without '..'") from None
    if name in seen:
        raise ArchiveError(f"{archive}: member {name!r} is in it twice")
    seen.add(name)
    if len(seen) > MAX_MEMBERS:
        raise ArchiveError(f"{archive}: has more than {MAX_MEMBERS} members")


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, IO[bytes] | None]]]:
    """Name and content of each member; None for a folder."""
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as t:
            yield _of_tar(archive, t)
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            yield _of_zip(archive, z)
    else:
        raise ArchiveError(f"{archive}: is neither a tar nor a zip archive")


def _of_tar(archive: Path, t: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes] | None]]:
    for member in t:
        name = member.name.removeprefix("./").rstrip("/")
        if member.isdir() and name in ("", "."):
            continue
        if not (member.isdir() or member.isreg()):
            raise ArchiveError(f"{archive}: member {member.name!r} is a link or a device; expected plain files and folders")
        yield name, None if member.isdir() else t.extractfile(member)


def _of_zip(archive: Path, z: zipfile.ZipFile) -> Iterator[tuple[str, IO[bytes] | None]]:
    for info in z.infolist():
        kind = info.external_attr >> 28  # the type of a Unix file; 0 where the archive has none
        if kind not in (0, 0o4, 0o10):
            raise ArchiveError(f"{archive}: member {info.filename!r} is a link or a device; expected plain files and folders")
        yield info.filename.rstrip("/"), None if info.is_dir() else z.open(info)
