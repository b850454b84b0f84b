"""A run directory with a toy graph, and stand-ins for servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_run import Toy

from aframe_ops.serving.probe import write_sum

SITE = "executor: {cores: 2, memory_gb: 4}\n"


def make_toy(path: Path, definitions: str = "toy_definitions.py", site: str = SITE) -> Toy:
    return Toy(path, Path(__file__).with_name(definitions), site)


@pytest.fixture
def toy(request, tmp_path) -> Toy:
    """``pytest.mark.toy(definitions, site)`` asks for another graph and site file than the usual ones."""
    marked = request.node.get_closest_marker("toy")
    made = make_toy(tmp_path, *(marked.args if marked else ()))
    yield made
    made.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Toy, int, str]:
    """One run of steps that succeed, fail, are killed and vanish, with its exit code and output."""
    made = make_toy(tmp_path_factory.mktemp("finished"))
    code, output = made.run("fine", "flaky", "killed", "killed_always", "vanishing", "missing")
    yield made, code, output
    made.close()


@pytest.fixture
def models(tmp_path) -> Path:
    """A repository with one model, for servers that only play."""
    return write_sum(tmp_path / "models")


@pytest.fixture
def notes(tmp_path) -> Path:
    """Where a stand-in for tritonserver writes what it was told."""
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"
