"""The demo's graph at test size, run as a user runs it: by the command line, in a process of its own. Loaded by ``tests/conftest.py``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from aframe_assets.config_load import load_config
from aframe_assets.store import open_store
from aframe_assets.store.workspace import Workspace

TINY = {
    "preset": "demo",
    "segments": {
        "fixed": [
            [1240600000, 1240600200],
            [1240600300, 1240600500],
            [1240600600, 1240600800],
            [1240610000, 1240610100],
            [1240610200, 1240610300],
            [1240610400, 1240610500],
        ],
        "train_min_duration": 60,
        "test_min_duration": 40,
        "min_valid_duration": 150,
    },
    "waveforms": {"num_training_signals": 200, "num_training_jobs": 2, "num_validation_signals": 40, "num_validation_jobs": 1},
    "injections": {"num_signals": 30, "spacing": 4, "buffer": 2},
    "model": {
        "architecture": {"width": 4},
        "training": {"batch_size": 32, "batches_per_epoch": 8, "max_epochs": 3, "valid_livetime": 150, "valid_stride": 1, "num_threads": 1},
    },
    # chosen by a clock otherwise, and the platforms differ in the last digits
    "engine": {"platform": "onnxruntime"},
    "inference": {"num_slides": 3},
    "execution": {"segments_per_step": 2, "report_pages": 2},
}


class RunDirectory:
    """A run directory and the `aframe` command on it."""

    def __init__(self, path: Path, env: dict[str, str] | None = None):
        self.path = path
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AFRAME_", "AWS_", "DAGSTER_"))}
        self.env = {**clean, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(env or {})}

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "aframe_ops.cli.main", *args]

    def aframe(self, *args: str, check: bool = True, timeout: float = 1500) -> subprocess.CompletedProcess:
        done = subprocess.run(self.command(*args), capture_output=True, text=True, env=self.env, cwd=self.path.parent, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"aframe {' '.join(args)} ended {done.returncode}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}")
        return done

    def init(self, *args: str, overrides: dict | None = None) -> RunDirectory:
        self.aframe("init", str(self.path), "--preset", "demo", *args)
        self.write(TINY | (overrides or {}))
        return self

    def write(self, experiment: dict) -> None:
        (self.path / "aframe.yaml").write_text(yaml.safe_dump(experiment))

    def copy_to(self, path: Path) -> RunDirectory:
        """A copy that stands on its own: `env.sh` names the new place."""
        shutil.copytree(self.path, path)
        (path / "env.sh").unlink()
        preset = yaml.safe_load((path / "aframe.yaml").read_text())["preset"]
        copy = RunDirectory(path, self.env)
        copy.aframe("init", str(path), "--preset", preset)
        return copy

    def run(self, *args: str, **kwargs) -> subprocess.CompletedProcess:
        return self.aframe("run", str(self.path), *args, **kwargs)

    def start(self, *args: str) -> subprocess.Popen:
        """`aframe run` in a process group of its own."""
        log = open(self.path / "run.out", "ab")
        return subprocess.Popen(self.command("run", str(self.path), *args), stdout=log, stderr=log, env=self.env, start_new_session=True)

    def workspace(self) -> Workspace:
        site = yaml.safe_load((self.path / "site.yaml").read_text())
        root = site["store"]["root"]
        root = root if "://" in root else str(self.path / root)
        return Workspace(load_config(self.path / "aframe.yaml", env={}), open_store(root))

    def contents(self) -> dict[str, str]:
        """Content hash of every current artifact."""
        workspace = self.workspace()
        out = {}
        for name, node in workspace.graph.items():
            for p in workspace.partitions() if node.partitioned else [None]:
                handle = workspace.complete(name, p)
                out[f"{name}/{p}"] = handle.sha256 if handle else None
        return out

    def made_at(self) -> dict[str, str]:
        """When every current artifact was made."""
        workspace = self.workspace()
        out = {}
        for name, node in workspace.graph.items():
            for p in workspace.partitions() if node.partitioned else [None]:
                manifest = workspace.store.manifest(name, p)
                out[f"{name}/{p}"] = manifest.provenance["created"] if manifest else None
        return out


def wait_for(condition, timeout: float, what: str):
    """Polls until `condition()` is true, and says what did not come if it never is."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout:g} s for {what}")


@pytest.fixture(scope="session")
def tiny() -> dict:
    """Overrides of the demo that make it test size."""
    return TINY


@pytest.fixture
def new_run(tmp_path):
    """Makes run directories."""
    return lambda name="run", env=None: RunDirectory(tmp_path / name, env)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, worker_id) -> RunDirectory:
    """A finished, undisturbed run; tests that change anything copy it or make their own.

    It is made once for all of pytest-xdist's workers, and each has a copy; `env.sh` alone holds absolute paths and is
    written anew.
    """
    own = tmp_path_factory.mktemp("tiny run")
    if worker_id == "master":
        return _finished(own)
    shared = tmp_path_factory.getbasetemp().parent / "tiny run of all"
    shared.mkdir(exist_ok=True)
    with FileLock(shared / "lock"):
        record = shared / "finished.json"
        if not record.exists():
            made = _finished(shared)
            record.write_text(json.dumps({"stdout": made.finished.stdout, "stderr": made.finished.stderr}))
        run = RunDirectory(shared / "undisturbed").copy_to(own / "undisturbed")
    run.finished = subprocess.CompletedProcess(run.command("run"), 0, **json.loads(record.read_text()))
    return run


def _finished(folder: Path) -> RunDirectory:
    run = RunDirectory(folder / "undisturbed").init()
    run.finished = run.run()
    return run
