"""Fixtures of the tests that need NVIDIA's server. `make test-triton` installs it; it is never installed by a test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from search_room import EXPERIMENT, Room

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


@pytest.fixture(scope="session")
def _rooms() -> dict[str, Room]:
    return {}


@pytest.fixture
def room(request, _rooms, tmp_path_factory) -> Room:
    """A network of the architecture `request.param`, untrained, from export to repository, and a segment to be searched."""
    name = request.param
    if name not in _rooms:
        experiment = yaml.safe_load(EXPERIMENT)
        experiment["inference"] |= {"batch_size": 16}
        if name != "resnet":
            head = {"channels": 8, "groups": 4, "hidden": 6, "map_stride": 8}
            experiment["model"]["architecture"] |= {"name": name, "layers": [1, 1], "context": 0.1875, "lag_head": head}
        rows = {"1240610000-200": {"gps_start": 1240610000.0, "gps_stop": 1240610200.0, "role": "test"}}
        made = Room(tmp_path_factory.mktemp(name), yaml.safe_dump(experiment), rows)
        made.engines()
        made.data()
        _rooms[name] = made
    return _rooms[name]
