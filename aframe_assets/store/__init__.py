"""Artifacts on local disk and S3: handles, atomic publish, manifests, cache. The IO managers are in `io_managers`."""

from aframe_assets.store.base import ArtifactStore
from aframe_assets.store.errors import ArtifactGone, StoreError
from aframe_assets.store.handle import FileEntry, Handle, KeyParts, Manifest
from aframe_assets.store.local import LocalStore
from aframe_assets.store.opening import open_store
from aframe_assets.store.s3 import S3Store

__all__ = [
    "ArtifactStore",
    "FileEntry",
    "Handle",
    "KeyParts",
    "LocalStore",
    "Manifest",
    "ArtifactGone",
    "S3Store",
    "StoreError",
    "open_store",
]
