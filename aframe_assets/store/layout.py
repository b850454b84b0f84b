"""Where things are in a store, and what is known of a stored file."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aframe_assets.store.handle import check_word


class Listed(NamedTuple):
    """A file in a listing; `stamp` changes whenever the file is replaced."""

    name: str
    stamp: str


class Stat(NamedTuple):
    """Size in bytes and, on S3, the ETag."""

    nbytes: int
    etag: str | None = None


class Lying(NamedTuple):
    """Something in the store: its path, size in bytes, and seconds since it was last written.

    `abort` is there for an upload to S3 that was begun and not ended, of which nothing can be read: it gives back the space.
    """

    path: str
    nbytes: int
    age_s: float
    abort: Callable[[], object] | None = None


class Marked(NamedTuple):
    """A small file as it was read; `mark` changes with its content. Both are None where there is no file."""

    data: bytes | None
    mark: str | None


def folder_of(asset: str, partition: str | None) -> str:
    """Where the versions of (asset, partition) are, below the root; its manifest is this plus '.json'."""
    check_word(asset, "asset name")
    return f"{asset}/{'_' if partition is None else check_word(partition, 'partition key')}"
