"""A run directory with a small graph, and Dagster's own command on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from aframe_ops.cli.templates import DAGSTER_YAML


class Toy:
    """A run directory around the definitions in the file `graph`.

    Args:
        path: a new folder.
        graph: a file with ``defs``, whose bodies write notes to ``$TOY``.
        site: text of ``site.yaml``.
        variables: added to the environment.
    """

    def __init__(self, path: Path, graph: Path, site: str, variables: Mapping[str, str] | None = None):
        self.graph, self.variables = graph, dict(variables or {})
        self.path, self.notes_dir = path / "run dir", path / "notes"
        (self.path / "dagster_home").mkdir(parents=True)
        self.notes_dir.mkdir()
        (self.path / "aframe.yaml").write_text("preset: demo\nseed: 7\n")
        (self.path / "site.yaml").write_text(site)
        (self.path / "dagster_home" / "dagster.yaml").write_text(DAGSTER_YAML)
        self.started: list[subprocess.Popen] = []

    @property
    def env(self) -> dict[str, str]:
        return {
            # not what another test of this process has set: dagster refuses a file beside DAGSTER_MODULE_NAME
            **{k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS" and not k.startswith(("DAGSTER_", "AFRAME_"))},
            "DAGSTER_HOME": str(self.path / "dagster_home"),
            "AFRAME_CONFIG": str(self.path / "aframe.yaml"),
            "TOY": str(self.notes_dir),
            **self.variables,
        }

    def start(self, *assets: str, options: Sequence[str] = ()) -> subprocess.Popen:
        """`dagster asset materialize` of `assets`, in a process group of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", "asset", "materialize", "-f", str(self.graph), "--select", ",".join(assets), *options],
            env=self.env,
            cwd=self.path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def run(self, *assets: str, timeout: float = 120, options: Sequence[str] = ()) -> tuple[int, str]:
        """Exit code and output of the same, when it has ended."""
        process = self.start(*assets, options=options)
        output, _ = process.communicate(timeout=timeout)
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
