"""A server that speaks S3, its user, and a bucket."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

REAL = {name: os.environ.get(f"AFRAME_TEST_S3_{name}") for name in ("ENDPOINT", "KEY", "SECRET")}
"""Read before any test: each of them sees no variable of this project."""


@pytest.fixture(scope="session")
def s3_server():
    """Settings of a user of an S3 server on this machine.

    moto's by default; a real one (Ceph, MinIO) with AFRAME_TEST_S3_ENDPOINT, _KEY and _SECRET.
    """
    settings = {
        "AWS_ACCESS_KEY_ID": REAL["KEY"] or "AKIATESTTESTTEST",
        "AWS_SECRET_ACCESS_KEY": REAL["SECRET"] or "s3cr3t-Zq81-never-shown",
        "AWS_REGION": "us-east-1",
        "AWS_S3_ADDRESSING_STYLE": "path",
    }
    if REAL["ENDPOINT"]:
        yield {**settings, "AWS_ENDPOINT_URL_S3": REAL["ENDPOINT"]}
        return
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    with _conditional_writes_at_once():
        server.start()
        host, port = server.get_host_and_port()
        yield {**settings, "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}"}
        server.stop()


@contextmanager
def _conditional_writes_at_once() -> Iterator[None]:
    """moto looks whether an object is there, and writes it a moment later: of two writers at once both may be told that they were first."""
    from moto.s3.responses import S3Response

    original, guard = S3Response.put_object, threading.Lock()

    def put_object(self):
        with guard:
            return original(self)

    S3Response.put_object = put_object
    try:
        yield
    finally:
        S3Response.put_object = original


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
