"""Fixtures of the tests that need NVIDIA's server. `make test-triton` installs it; it is never installed by a test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aframe_ops.serving.environment import Environment, find
from aframe_ops.serving.server import TritonServer


@pytest.fixture(scope="session")
def environment() -> Environment:
    """The installed server."""
    return find()


@pytest.fixture
def tritonserver(environment, tmp_path) -> Iterator[Callable[..., TritonServer]]:
    """Starts a server on a repository: `tritonserver(repository, **settings of TritonServer)`; all are stopped after the test."""
    with contextlib.ExitStack() as stack:

        def start(repository: Path, **settings: object) -> TritonServer:
            folder = tmp_path / f"server-{len(list(tmp_path.glob('server-*')))}"
            return stack.enter_context(TritonServer(repository, folder, **{"environment": environment, **settings}))

        yield start
