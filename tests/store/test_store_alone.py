"""Two runs that make the same artifact on one machine: the second waits, and takes what the first has made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from aframe_assets.store import open_store
from aframe_assets.store.alone import alone

RUN = """
import logging, sys, time
from pathlib import Path
from types import SimpleNamespace
from aframe_assets.config_load import build_config
from aframe_assets.store import open_store
from aframe_assets.store.bodies import produce
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.job import Product
from aframe_assets.store.workspace import Wanted

folder, mine = Path(sys.argv[1]), sys.argv[2]
parts = KeyParts(asset="model", code_version="1", config={"a": 1})

def make(job):
    (job.workdir / "logs").mkdir(exist_ok=True)
    (job.workdir / "logs" / "steps").write_text("of all tries")
    with (folder / "made").open("a") as f:
        print(mine, file=f)
    print("making", flush=True)
    while not (folder / "go").exists():
        time.sleep(0.02)
    (job.scratch / "x").write_text("the same")
    return Product({"x": job.scratch / "x"}, logs=job.workdir / "logs")

logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
workspace = SimpleNamespace(store=open_store(folder / "store"), config=build_config({"preset": "demo"}))
produce(workspace, Wanted(parts, {}, None), make, {}, mine, logging.getLogger("step"))
print("done", flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a run; what is left of it ends with the test."""
    started = []
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}

    def run(mine: str) -> subprocess.Popen:
        command = [sys.executable, "-c", RUN, str(tmp_path), mine]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def heard(process: subprocess.Popen, words: str) -> None:
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"ended {process.wait()} without {words!r}")


def test_the_second_waits_and_takes_what_the_first_has_made(start, tmp_path):
    first = start("first")
    heard(first, "making")
    second = start("second")
    heard(second, "model is being made by another run on this machine; waiting for it")
    (tmp_path / "go").touch()
    heard(first, "done")
    heard(second, "done")
    assert first.wait() == second.wait() == 0
    assert (tmp_path / "made").read_text() == "first\n"
    store = open_store(tmp_path / "store")
    assert store.manifest("model").provenance["run_id"] == "first" and store.manifest("model_logs") is not None
    assert not list(tmp_path.glob("*.lock"))


def test_the_second_goes_on_where_the_first_was_killed(start, tmp_path):
    first = start("first")
    heard(first, "making")
    second = start("second")
    heard(second, "waiting for it")
    first.send_signal(signal.SIGKILL)
    heard(second, "making")
    (tmp_path / "go").touch()
    heard(second, "done")
    assert first.wait() == -signal.SIGKILL and second.wait() == 0
    assert (tmp_path / "made").read_text() == "first\nsecond\n"


def test_where_there_can_be_no_lock_nobody_waits(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    with alone(tmp_path, lambda: None) as waited:
        assert not waited
