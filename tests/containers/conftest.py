"""Podman on this machine, and a Debian base image that needs no registry. As root; `make test-containers` installs what is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from podman_program import podman

BASE = "localhost/debian:bookworm"

CONFIGURATION = """[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
netns = "host"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""For machines without systemd, whose limits may not be raised and whose cgroups are of both versions."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.containers)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Iterator[str]:
    """The base image, made by debootstrap where it is not there yet; it stays, since that takes minutes."""
    # Nobody comes here without having asked for containers, so what is missing is an error and no skip.
    if os.geteuid():
        pytest.fail("needs root: it makes a Debian image by debootstrap")
    if missing := [name for name in ("podman", "runc", "debootstrap") if shutil.which(name) is None]:
        pytest.fail(f"{', '.join(missing)}: not installed; `make test-containers` installs it")
    folder = tmp_path_factory.mktemp("base")
    (folder / "containers.conf").write_text(CONFIGURATION)
    patch = pytest.MonkeyPatch()
    patch.setenv("CONTAINERS_CONF", str(folder / "containers.conf"))
    if podman("image", "exists", BASE).returncode:
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", folder / "root"], capture_output=True, text=True
        )
        assert made.returncode == 0, made.stdout[-2000:]
        with subprocess.Popen(["tar", "-C", folder / "root", "-c", "."], stdout=subprocess.PIPE) as tar:
            done = subprocess.run(["podman", "import", "-q", "-", BASE], stdin=tar.stdout, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shutil.rmtree(folder / "root")
    yield BASE
    patch.undo()
