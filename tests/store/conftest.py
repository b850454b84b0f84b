"""A store of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from aframe_assets.store import KeyParts, open_store


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    """An empty store."""
    if request.param == "local":
        return open_store((tmp_path / "store").as_uri())
    _, name = request.getfixturevalue("bucket")
    return open_store(f"s3://{name}/run/one", cache_dir=tmp_path / "cache")


@pytest.fixture
def make():
    """Key parts of an artifact."""

    def parts(asset="background", partition="1126259446-32", **config) -> KeyParts:
        return KeyParts(asset=asset, code_version="1", partition=partition, config=config, inputs={"segments": {"key": "k", "sha256": "s"}})

    return parts


@pytest.fixture
def damage():
    """Change a stored file behind the store's back."""

    def replace(store, handle, name: str, data: bytes | None) -> None:
        path = store._folder(handle) + "/" + name
        if hasattr(store, "root"):
            target = Path(store.root / path)
            target.unlink()
            if data is not None:
                target.write_bytes(data)
        elif data is None:
            store.client.delete_object(Bucket=store.bucket, Key=store._key(path))
        else:
            store.client.put_object(Bucket=store.bucket, Key=store._key(path), Body=data)

    return replace
