"""Dagster's own daemon in a run directory: started, killed with all that it has started, and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import psutil


class Daemon:
    """Of the run directory `folder`, which has a `dagster_home`."""

    def __init__(self, folder: Path):
        self.folder, self.daemon = folder, None
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AFRAME_", "AWS_", "DAGSTER_"))}
        paths = {"DAGSTER_HOME": str(folder / "dagster_home"), "AFRAME_CONFIG": str(folder / "aframe.yaml")}
        patient = {"DAGSTER_GRPC_TIMEOUT_SECONDS": "600", "DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS": "600"}
        self.env = clean | paths | patient | {"OMP_NUM_THREADS": "1"}

    def start(self) -> None:
        words = [sys.executable, "-c", "from dagster._daemon.cli import main; main()", "run", "-m", "aframe_ops.definitions"]
        with (self.folder / "daemon.log").open("ab") as log:
            # a suite that was started in the background ignores SIGINT, and so would all its children
            default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
            self.daemon = subprocess.Popen(words, cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True, **default)

    def processes(self) -> list[psutil.Process]:
        """All that work for this run directory: the daemon, its code server, workers of runs and their steps."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("DAGSTER_HOME") == self.env["DAGSTER_HOME"] and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def power_cut(self) -> None:
        found = self.processes()
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.daemon.wait()
        psutil.wait_procs(found, timeout=60)

    def stop(self) -> None:
        """As Ctrl-C does; what has not ended by then is killed."""
        if self.daemon is None or self.daemon.poll() is not None:
            return
        self.daemon.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.daemon.wait(60)
        self.power_cut()

    def wait_for(self, condition, timeout: float, what: str) -> None:
        end = time.monotonic() + timeout
        while not condition():
            log = self.folder / "daemon.log"
            assert self.daemon.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, f"waited {timeout:g} s for {what}; {log.read_text()[-3000:]}"
            time.sleep(0.5)

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(self.env["DAGSTER_HOME"])

    def quiet(self) -> bool:
        """Whether no run is going on."""
        going = [s for s in dg.DagsterRunStatus if s.value in ("QUEUED", "STARTING", "STARTED")]
        with self.instance() as instance:
            return not instance.get_runs_count(dg.RunsFilter(statuses=going))
