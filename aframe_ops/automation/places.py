"""Folders and buckets in which files are dropped: what lies there, and a copy of one."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from aframe_assets.segments.strain_headers import FRAME_SUFFIXES, HDF5_SUFFIXES

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
        PlaceError: it cannot be listed.
    """
    if place.startswith("s3://"):
        yield from _objects(place)
        return
    if not os.path.isdir(place):
        raise PlaceError(f"{place}: no such folder")
    for folder, inner, names in os.walk(place, followlinks=True):
        inner[:] = sorted(n for n in inner if not n.startswith("."))
        for name in sorted(names):
            if name.startswith(".") or not name.endswith(SUFFIXES):
                continue
            path = os.path.join(folder, name)
            try:
                found = os.stat(path)
            except OSError:  # taken away since, or a link to nowhere
                continue
            yield Drop(path, found.st_size, f"{found.st_mtime_ns}-{found.st_ino}", False)


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
            digest = hashlib.file_digest(source, "sha256").hexdigest()
        else:
            digest = _copied(source, target)
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


def _copied(source: Any, target: Path) -> str:
    digest = hashlib.sha256()
    with open(target, "wb") as out:
        while piece := source.read(_PIECE):
            digest.update(piece)
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())
    return digest.hexdigest()


def _client(place: str) -> tuple[Any, str, str]:
    from aframe_assets.store.s3 import S3Store

    # its client alone is used: endpoint, addressing and credentials as for a store
    store = S3Store(place, Path(os.environ.get("TMPDIR", "/tmp")) / "aframe-incoming")
    return store.client, store.bucket, store.prefix


def _objects(place: str) -> Iterator[Drop]:
    try:
        client, bucket, prefix = _client(place.rstrip("/"))
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
        for page in pages:
            for found in page.get("Contents", []):
                key = found["Key"]
                if key.endswith(SUFFIXES) and not any(part.startswith(".") for part in key.split("/")):
                    yield Drop(f"s3://{bucket}/{key}", found["Size"], found["ETag"].strip('"'), True)
    except Exception as e:  # boto's errors have no common class without importing it
        raise PlaceError(f"{place}: cannot be listed: {type(e).__name__}: {e}") from None


def _download(drop: Drop, target: Path) -> str:
    bucket, _, key = drop.file.removeprefix("s3://").partition("/")
    try:
        client = _client(f"s3://{bucket}")[0]
        body = client.get_object(Bucket=bucket, Key=key, IfMatch=drop.stamp)["Body"]
        with open(target, "wb") as out:
            shutil.copyfileobj(body, out, _PIECE)
    except OSError:
        raise
    except Exception as e:
        raise PlaceError(f"{drop.file}: cannot be fetched: {type(e).__name__}: {e}") from None
    if target.stat().st_size != drop.size:
        raise PlaceError(f"{drop.file}: {target.stat().st_size} of {drop.size} bytes came")
    return content(target)
