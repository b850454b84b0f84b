"""Folders and buckets in which files are dropped: what lies there, and a copy of one."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from aframe_assets.segments.strain_headers import FRAME_SUFFIXES, HDF5_SUFFIXES
from aframe_assets.store.errors import StoreError
from aframe_assets.store.s3_connection import Connection

SUFFIXES = (*HDF5_SUFFIXES, *FRAME_SUFFIXES)
_PIECE = 1 << 20


class PlaceError(RuntimeError):
    """A place or a file that cannot be read now, which may pass."""


class Drop(NamedTuple):
    """A file in a watched place.

    Attributes:
        file: path, or s3://bucket/key.
        size: bytes.
        stamp: time of change and inode, or ETag.
        whole: it appeared at once, as objects of a bucket do.
    """

    file: str
    size: int
    stamp: str
    whole: bool


def drops(place: str) -> Iterator[Drop]:
    """Strain files in a folder and its subfolders, or below s3://bucket/prefix; hidden ones are not looked at.

    Raises:
        PlaceError: it cannot be listed, or not all of it.
    """
    if place.startswith("s3://"):
        yield from _objects(place)
        return
    unread: list[OSError] = []
    visited = set()
    for folder, inner, names in os.walk(place, followlinks=True, onerror=unread.append):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in visited:  # two links that lead back up would be followed for ever
            inner.clear()
            continue
        visited.add((here.st_dev, here.st_ino))
        inner[:] = sorted(n for n in inner if not n.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or not name.endswith(SUFFIXES):
                continue
            path = os.path.join(folder, name)
            try:
                found = os.stat(path)
            except OSError:  # taken away since, or a link to nowhere
                continue
            # whoever opened a pipe would wait for somebody to write to it
            if stat.S_ISREG(found.st_mode):
                yield Drop(path, found.st_size, f"{found.st_mtime_ns}-{found.st_ino}", False)
    if unread:
        raise PlaceError(f"{unread[0].filename}: cannot be listed ({unread[0].strerror})")


def take(drop: Drop, target: Path, *, link: bool = False) -> str:
    """Copies a file to `target`; returns the sha256 of what was copied.

    Args:
        link: make a hard link if the disk allows it.

    Raises:
        PlaceError: it is not there any more, is another one by now, or cannot be read.
        OSError: `target` cannot be written.
    """
    if drop.whole:
        return _download(drop, target)
    try:
        source = open(drop.file, "rb")
    except OSError as e:
        raise PlaceError(f"{drop.file}: cannot be read ({e.strerror})") from None
    with source:
        if link and _linked(drop.file, target):
            digest = _digest(_pieces(drop.file, source))
        else:
            digest = _copied(_pieces(drop.file, source), target)
        found = os.fstat(source.fileno())
    if (found.st_size, f"{found.st_mtime_ns}-{found.st_ino}") != (drop.size, drop.stamp):
        target.unlink()
        raise PlaceError(f"{drop.file}: changed while it was read")
    return digest


def content(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _linked(path: str, target: Path) -> bool:
    try:
        os.link(path, target)
    except OSError:
        return False
    return True


def _pieces(file: str, source: Any) -> Iterator[bytes]:
    """What is read of `file`. That it cannot be read is no fault of the disk that it is written to."""
    try:
        while piece := source.read(_PIECE):
            yield piece
    except Exception as e:  # boto's errors have no common class without importing it; some of them are OSErrors
        raise PlaceError(f"{file}: cannot be read: {type(e).__name__}: {e}") from None


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _copied(pieces: Iterable[bytes], target: Path) -> str:
    digest = hashlib.sha256()
    with open(target, "wb") as out:
        for piece in pieces:
            digest.update(piece)
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _connection(place: str) -> tuple[Connection, str]:
    bucket, _, key = place.removeprefix("s3://").partition("/")
    return _connected(bucket, tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_")))), key


@lru_cache(maxsize=8)
def _connected(bucket: str, settings: tuple[tuple[str, str], ...]) -> Connection:
    # a client takes a tenth of a second to make, and there may be hundreds of files
    return Connection(f"s3://{bucket}", bucket)


def _objects(place: str) -> Iterator[Drop]:
    connection, prefix = _connection(place.rstrip("/"))
    try:
        with connection.errors("list"):
            pages = connection.client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=connection.bucket, Prefix=f"{prefix}/" if prefix else ""):
                for found in page.get("Contents", []):
                    key = found["Key"]
                    if key.endswith(SUFFIXES) and not any(part.startswith(".") for part in key.split("/")):
                        yield Drop(f"s3://{connection.bucket}/{key}", found["Size"], found["ETag"].strip('"'), True)
    except StoreError as e:
        raise PlaceError(f"{place}: cannot be listed: {e}") from None
    except Exception as e:  # what answers is no S3 server
        raise PlaceError(f"{place}: cannot be listed: {type(e).__name__}: {e}") from None


def _download(drop: Drop, target: Path) -> str:
    connection, key = _connection(drop.file)
    try:
        with connection.errors("fetch"):
            body = connection.client.get_object(Bucket=connection.bucket, Key=key, IfMatch=drop.stamp)["Body"]
    except StoreError as e:
        raise PlaceError(f"{drop.file}: cannot be fetched: {e}") from None
    digest = _copied(_pieces(drop.file, body), target)
    if target.stat().st_size != drop.size:
        raise PlaceError(f"{drop.file}: {target.stat().st_size} of {drop.size} bytes came")
    return digest
