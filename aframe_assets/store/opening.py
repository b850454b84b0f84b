"""A store from its address."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aframe_assets.store.base import ArtifactStore
from aframe_assets.store.errors import StoreError
from aframe_assets.store.files import stamp
from aframe_assets.store.local import LocalStore
from aframe_assets.store.node import NodeDisk
from aframe_assets.store.s3 import S3Store
from aframe_assets.store.split import MARK, SplitStore

CACHE_BYTES = 50_000_000_000


def open_store(url: str | Path, cache_dir: str | Path | None = None, cache_bytes: int | None = None) -> ArtifactStore:
    """The store at `url`; nothing is read or written yet. In a job with a disk of its node's own, it is read through that.

    Args:
        url: a folder, ``file:///abs/folder`` or ``s3://bucket/prefix``; or two of them, see `split`.
        cache_dir: where a remote store's files are cached; default ``$AFRAME_CACHE_DIR``, else
            ``$XDG_CACHE_HOME/aframe``, else ``~/.cache/aframe``.
        cache_bytes: cap of the cache, in bytes; default 50 GB.

    Raises:
        ValueError: an address of another kind, or one that carries credentials.
    """
    text = str(url)
    if MARK in text:
        return SplitStore(*(open_store(part, cache_dir, cache_bytes) for part in text.split(MARK, 1)))
    found = urlsplit(text)
    capacity = CACHE_BYTES if cache_bytes is None else cache_bytes
    node = NodeDisk.of_job(capacity)
    if found.scheme == "s3":
        return S3Store(text, cache_dir or default_cache(), capacity, node)
    if found.scheme == "file":
        if found.netloc not in ("", "localhost"):
            raise ValueError(f"store {text!r}: a file address has three slashes, as in file:///data/store")
        return LocalStore(unquote(found.path), node)
    if "://" in text:
        raise ValueError(f"store: {found.scheme}:// is not known; expected a folder, file:///abs/folder or s3://bucket/prefix")
    return LocalStore(text, node)


def default_cache() -> Path:
    """The cache folder of this user."""
    if os.environ.get("AFRAME_CACHE_DIR"):
        return Path(os.environ["AFRAME_CACHE_DIR"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aframe"


def require_writable(store: ArtifactStore) -> None:
    """Writes a small value, reads it back and removes it.

    Raises:
        StoreError: that cannot be done, or a value that is there may be written a second time; it says why, and which key of the site
            names the store.
    """
    if isinstance(store, SplitStore):
        for part in store.parts:
            require_writable(part)
        return
    name, value = f"writable/{stamp()}", {"pid": os.getpid()}
    try:
        store.put_value(name, value)
        found = store.get_value(name)
        twice = store._exchange(f"_values/{name}.json", b"{}", None)
        store.drop_values(f"{name}.json")
    except (StoreError, OSError) as e:
        raise StoreError(f"store {store.url}: cannot be written: {e}; see store.root (or store.training) of site.yaml") from None
    if found != value:
        raise StoreError(f"store {store.url}: what was written is not what was read; see store.root (or store.training) of site.yaml")
    if twice:
        raise StoreError(
            f"store {store.url}: the server writes what was to be written only if nothing is there (If-None-Match), so of two jobs that "
            "publish one artifact both would count; use a server with conditional writes (AWS, Ceph 16, MinIO), see store.root (or "
            "store.training) of site.yaml"
        )
