"""A store of each kind, and the server behind the remote one."""

from __future__ import annotations

import logging
from pathlib import Path
from uuid import uuid4

import pytest

from aframe_assets.store import KeyParts, open_store

SECRET = "s3cr3t-Zq81-never-shown"
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_REGION": "us-east-1",
    "AWS_S3_ADDRESSING_STYLE": "path",
}


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server of this machine; its address."""
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_settings(s3_server, monkeypatch):
    """The environment of a user of that server."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    return s3_server


@pytest.fixture
def bucket(s3_settings):
    """A client and the name of a new bucket."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3_settings)
    name = f"b{uuid4().hex[:10]}"
    client.create_bucket(Bucket=name)
    return client, name


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
