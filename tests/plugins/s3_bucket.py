"""A server that speaks S3, its user, and a bucket."""

from __future__ import annotations

import logging
import os
from uuid import uuid4

import pytest


@pytest.fixture(scope="session")
def s3_server():
    """Settings of a user of an S3 server on this machine.

    moto's by default; a real one (Ceph, MinIO) with AFRAME_TEST_S3_ENDPOINT, _KEY and _SECRET.
    """
    settings = {
        "AWS_ACCESS_KEY_ID": os.environ.get("AFRAME_TEST_S3_KEY", "AKIATESTTESTTEST"),
        "AWS_SECRET_ACCESS_KEY": os.environ.get("AFRAME_TEST_S3_SECRET", "s3cr3t-Zq81-never-shown"),
        "AWS_REGION": "us-east-1",
        "AWS_S3_ADDRESSING_STYLE": "path",
    }
    if os.environ.get("AFRAME_TEST_S3_ENDPOINT"):
        yield {**settings, "AWS_ENDPOINT_URL_S3": os.environ["AFRAME_TEST_S3_ENDPOINT"]}
        return
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {**settings, "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}"}
    server.stop()


@pytest.fixture
def s3_settings(s3_server, monkeypatch):
    """The environment of that user; the server's address."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    return s3_server["AWS_ENDPOINT_URL_S3"]


@pytest.fixture
def bucket(s3_settings):
    """A client and the name of a new bucket."""
    import boto3

    client = boto3.client("s3", endpoint_url=s3_settings)
    name = f"b{uuid4().hex[:10]}"
    client.create_bucket(Bucket=name)
    return client, name
