"""Bytes kept under their own hash: code that jobs run, which belongs to no asset."""

from __future__ import annotations

import hashlib
import re

from aframe_assets.store.base import ArtifactStore
from aframe_assets.store.errors import StoreError

FOLDER = "_code"


def put_blob(store: ArtifactStore, data: bytes) -> str:
    """Keeps `data` and returns its sha256. What is there already is not written again.

    Raises:
        StoreError: the store cannot be reached, or is full.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    found = store._stat(_path(sha256))
    if found is None or found.nbytes != len(data):
        store._write(_path(sha256), data)
    return sha256


def get_blob(store: ArtifactStore, sha256: str) -> bytes:
    """The bytes that were kept under this hash.

    Raises:
        StoreError: they are not there, or not those.
    """
    data = store._read(_path(sha256))
    if data is None:
        raise StoreError(f"{store.uri(_path(sha256))} is not there; has the store been cleaned up, or is it another one?")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise StoreError(f"{store.uri(_path(sha256))} is damaged: its sha256 is not that of its name; delete it and start again")
    return data


def _path(sha256: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(f"expected a sha256, got {sha256!r}")
    return f"{FOLDER}/{sha256}.tar"
