"""A run directory with a toy graph, and a way to use Dagster's own command on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from aframe_ops.cli.templates import DAGSTER_YAML
from aframe_ops.serving.probe import write_sum

TOY = Path(__file__).with_name("toy_definitions.py")


class Toy:
    """A run directory around ``toy_definitions.py``."""

    def __init__(self, path: Path):
        self.path, self.notes_dir = path / "run dir", path / "notes"
        (self.path / "dagster_home").mkdir(parents=True)
        self.notes_dir.mkdir()
        (self.path / "aframe.yaml").write_text("preset: demo\nseed: 7\n")
        (self.path / "site.yaml").write_text("executor: {cores: 2, memory_gb: 4}\n")
        (self.path / "dagster_home" / "dagster.yaml").write_text(DAGSTER_YAML)
        self.started: list[subprocess.Popen] = []

    @property
    def env(self) -> dict[str, str]:
        return {
            **{k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
            "DAGSTER_HOME": str(self.path / "dagster_home"),
            "AFRAME_CONFIG": str(self.path / "aframe.yaml"),
            "TOY": str(self.notes_dir),
        }

    def start(self, *assets: str) -> subprocess.Popen:
        """`dagster asset materialize` of `assets`, in a process group of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", "asset", "materialize", "-f", str(TOY), "--select", ",".join(assets)],
            env=self.env,
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *assets: str) -> tuple[int, str]:
        process = self.start(*assets)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def notes(self, name: str) -> list[dict]:
        path = self.notes_dir / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for(self, name: str, count: int = 1, timeout: float = 60.0) -> list[dict]:
        deadline = time.monotonic() + timeout
        while len(self.notes(name)) < count:
            assert time.monotonic() < deadline, f"no note '{name}' within {timeout} s"
            time.sleep(0.05)
        return self.notes(name)

    def log(self, name: str) -> Path:
        """The one file of that name among the logs of all runs."""
        (found,) = (self.path / "logs").glob(f"*/{name}")
        return found

    def processes(self) -> list[psutil.Process]:
        """Every process, of any run, that works for this run directory."""
        found = []
        for process in psutil.process_iter():
            try:
                env = process.environ()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            if env.get("TOY") == str(self.notes_dir) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for process in self.processes():
            process.kill()


@pytest.fixture
def toy(tmp_path) -> Toy:
    made = Toy(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Toy, int, str]:
    """One run of steps that succeed, fail, are killed and vanish, with its exit code and output."""
    made = Toy(tmp_path_factory.mktemp("finished"))
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
