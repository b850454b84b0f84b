"""What all tests share: no network beyond this machine, and the real data when they are there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

pytest_plugins = ["tiny_run", "s3_bucket", "s3_proxy", "flag_server"]

REPO = Path(__file__).resolve().parents[1]

_connect = socket.socket.connect


def _loopback_only(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = str(address[0])
        if not (host.startswith("127.") or host in ("::1", "localhost")):
            raise OSError(f"tests may not leave this machine: connection to {host} refused")
    return _connect(self, address)


socket.socket.connect = _loopback_only


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real detector data beside the checkout (``../shared/data``, or ``$AFRAME_SHARED_DATA``)."""
    for candidate in (os.environ.get("AFRAME_SHARED_DATA"), REPO.parent / "shared" / "data"):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("real data are not here: expected ../shared/data beside the checkout, or AFRAME_SHARED_DATA")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    """A test sees no AFRAME_* or AWS_* setting of the machine it runs on."""
    for name in list(os.environ):
        if name.startswith(("AFRAME_", "AWS_")) and name != "AFRAME_SHARED_DATA":
            monkeypatch.delenv(name)
