"""``kill -9`` in the middle of what takes long, then the same command again: same results, nothing left behind.

A step is stopped (SIGSTOP) at a moment that is seen to be inside its asset, and only then killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from tiny_run import RunDirectory, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes and their log files in /proc")

MARK = "GRAPH_TEST_RUN"
"""Environment variable that every process of a run inherits."""

HALTED = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)

HALTED = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
AFTER_INFERENCE = ("inference_results", "events", "sensitive_volume", "candidates", "report")


@dataclass(frozen=True)
class Case:
    """Where to strike.

    Attributes:
        step: beginning of the names of the step's log files.
        forgotten: assets that the copy of the finished run has lost.
        chunk: partitions that the step makes; the first is done when it is struck, the second is not.
        until: option of `aframe run`; None for all that is missing.
    """

    step: str
    forgotten: tuple[str, ...]
    chunk: slice | None
    until: str | None


CASES = {
    "background": Case("background.make_background_c00002_.", ("background",), slice(4, 6), "background"),
    "model": Case("model.", ("model",), None, "model"),
    "inference_results": Case("inference_results.make_inference_results_c00002_.", AFTER_INFERENCE, slice(4, 6), None),
}
# slower: all that follows is made, or looked at, again
AFTER_MODEL = ("exported_model", "engine", "model_repository", *AFTER_INFERENCE)
CASES["model and what follows"] = Case("model.", ("model", *AFTER_MODEL), None, None)
CASES["background and what follows"] = Case("background.make_background_c00002_.", ("background",), slice(4, 6), None)


class Struck:
    """A copy of the finished run that has lost the assets of `case`, being made again."""

    def __init__(self, tiny_run: RunDirectory, path: Path, case: Case):
        self.run = tiny_run.copy_to(path)
        self.run.env = {**self.run.env, MARK: str(path)}
        self.case, self.before = case, tiny_run.contents()
        for asset in case.forgotten:
            shutil.rmtree(path / "store" / asset)
        self.store = self.run.workspace().store
        self.keys = self.run.workspace().partitions()[case.chunk] if case.chunk else []
        self.command: subprocess.Popen | None = None

    def start(self) -> None:
        self.command = self.run.start(*self.options)

    def processes(self) -> list[psutil.Process]:
        """Every living process of this run directory."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.run.path) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def step(self) -> psutil.Process | None:
        """The process whose output goes to a log file of the step."""
        for process in self.processes():
            try:
                if os.path.basename(os.readlink(f"/proc/{process.pid}/fd/2")).startswith(self.case.step):
                    return process
            except OSError:
                continue
        return None

    def inside(self, pid: int) -> bool:
        """Whether the step is in the middle of its asset: part of the work is safe, the rest is not."""
        if not list(self.store.local.glob(f"scratch/*~{pid}~*")):
            return False
        if self.keys:
            first, second = (self.store.manifest(self.asset, key) for key in self.keys)
            return first is not None and second is None
        return bool(list(self.store.local.glob("work/model/_/*/checkpoints/last-*.ckpt"))) and self.store.manifest("model") is None

    @property
    def options(self) -> list[str]:
        return ["--until", self.case.until] if self.case.until else []

    @property
    def asset(self) -> str:
        return self.case.step.split(".")[0]

    def catch(self) -> psutil.Process:
        """The step's process, stopped inside its asset."""

        def caught() -> psutil.Process | None:
            process = self.step()
            with contextlib.suppress(psutil.NoSuchProcess):
                while process is not None:
                    process.suspend()
                    wait_for(lambda: process.status() in HALTED, 5, "a stopped process")
                    if process.status() == psutil.STATUS_ZOMBIE:
                        break
                    if self.inside(process.pid):
                        return process
                    process.resume()
                    time.sleep(0.02)
            assert self.command.poll() is None, f"{self.asset} was never seen half done\n{self.output()}"
            return None

        return wait_for(caught, 200, f"{self.asset} to be half done")

    def output(self) -> str:
        return (self.run.path / "run.out").read_text()

    def check(self) -> None:
        """The results are those of the undisturbed run."""
        after = self.run.contents()
        remade = {k.split("/")[0] for k in after if after[k] != self.before[k]}
        # what holds times: the report, and the engine with its speeds
        assert remade <= {"report", "engine"} & set(self.case.forgotten)

    def close(self) -> None:
        for process in self.processes():
            process.kill()
        if self.command:
            self.command.wait()


@pytest.fixture
def strike(tiny_run, tmp_path) -> Callable[[str], Struck]:
    made = []

    def start(name: str) -> Struck:
        struck = Struck(tiny_run, tmp_path / "struck", CASES[name])
        made.append(struck)
        struck.start()
        return struck

    yield start
    for struck in made:
        struck.close()


def slow_unless(*normal: str):
    return [pytest.param(name, marks=() if name in normal else pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", slow_unless("background"))
def test_kill_of_a_step(strike, name):
    struck = strike(name)
    process = struck.catch()
    done = {key: struck.store.manifest(struck.asset, key) for key in struck.keys[:1]}
    process.kill()
    assert struck.command.wait(400) == 0, struck.output()
    assert "killed by SIGKILL" in struck.output()
    assert {key: struck.store.manifest(struck.asset, key) for key in done} == done
    if struck.asset == "model":
        assert struck.store.manifest("model").handle.meta["resumed_from_epoch"] >= 1
    again = struck.run.run(*struck.options)
    assert "nothing to do" in again.stdout
    struck.check()


@pytest.mark.parametrize("name", slow_unless("model", "inference_results"))
def test_kill_of_the_whole_process_group(strike, name):
    struck = strike(name)
    struck.catch()
    done = {key: struck.store.manifest(struck.asset, key) for key in struck.keys[:1]}
    os.killpg(struck.command.pid, signal.SIGKILL)
    struck.command.wait()
    wait_for(lambda: not struck.processes(), 15, f"the end of all processes: {struck.processes()}")
    again = struck.run.run(*struck.options)
    assert "had died; marked failed" in again.stdout
    assert {key: struck.store.manifest(struck.asset, key) for key in done} == done
    if struck.asset == "model":
        assert struck.store.manifest("model").handle.meta["resumed_from_epoch"] >= 1
    struck.check()
    assert not struck.processes()


def test_editing_the_experiment_during_a_run_changes_nothing_in_flight(strike):
    struck = strike("inference_results")
    process = struck.catch()
    path = struck.run.path / "aframe.yaml"
    text = path.read_text()
    edited = yaml.safe_load(text)
    edited["inference"]["cluster_window_length"] = 6
    edited["sensitivity"] = {"target_sigma": 0.12}
    path.write_text(yaml.safe_dump(edited))
    process.resume()
    assert struck.command.wait(400) == 0, struck.output()
    assert "report.html" in struck.output(), "the results shown are not those of the experiment that ran"
    path.write_text(text)
    struck.check()
