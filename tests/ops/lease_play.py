"""A batch system that is played by processes of this machine, and that keeps them when the run worker dies.

Files among the notes tell it to misbehave: ``away`` (it does not answer), ``hold`` (jobs stay pending).
"""

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from aframe_ops import leases_watch
from aframe_ops.executor import batch
from aframe_ops.executor.batch_options import BatchOptions
from aframe_ops.executor.executor import HANDLERS
from aframe_ops.executor.scheduler import BatchJob, JobState, Phase, Scheduler, Unreachable
from aframe_ops.executor.schedulers import SCHEDULERS

WAIT = 'while [ -e "$1/hold" ]; do sleep 0.1; done; touch "$1/jobs/$2.began"; shift 2; exec "$@"'


class Play(Scheduler):
    name = "play"
    cancel_words = "kill {}"

    def __init__(self, notes: Path):
        self.notes, self.jobs = notes, notes / "jobs"
        self.jobs.mkdir(exist_ok=True)

    def _answer(self, question: str, **values) -> None:
        with (self.notes / "asked.jsonl").open("a") as f:
            f.write(json.dumps({"question": question, **values}) + "\n")
        if (self.notes / "away").exists():
            raise Unreachable("gone for lunch")

    def submit(self, job: BatchJob) -> str:
        self._answer("submit", name=job.name, memory=job.request.memory_gb, cpus=job.request.cpus)
        with open(f"{job.log}.out", "ab") as out, open(f"{job.log}.err", "ab") as err:
            words = ["sh", "-c", WAIT, "sh", str(self.notes), job.name, *job.argv]
            process = subprocess.Popen(words, stdout=out, stderr=err, cwd=job.folder, start_new_session=True)
        (self.jobs / job.name).write_text(str(process.pid))
        return str(process.pid)

    def find(self, name: str) -> str | None:
        self._answer("find", name=name)
        path = self.jobs / name
        return path.read_text() if path.exists() else None

    def poll(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        self._answer("poll", ids=list(ids))
        known = {path.read_text(): path.name for path in self.jobs.iterdir() if path.suffix != ".began"}
        return {i: self._state(i, known[i]) for i in ids if i in known}

    def _state(self, id: str, name: str) -> JobState:
        try:
            if psutil.Process(int(id)).status() == psutil.STATUS_ZOMBIE:
                raise psutil.NoSuchProcess(int(id))
        except psutil.NoSuchProcess:
            return JobState(Phase.ENDED, "ended")
        return JobState(Phase.RUNNING if (self.jobs / f"{name}.began").exists() else Phase.PENDING, seconds=1.0)

    def cancel(self, ids: Sequence[str]) -> None:
        self._answer("cancel", ids=list(ids))
        for i in ids:
            try:
                os.killpg(int(i), signal.SIGKILL)
            except ProcessLookupError:
                pass


def install(notes: Path) -> None:
    """Makes ``play`` a place where steps of this process may run."""
    leases_watch.UNKNOWN_S, leases_watch.RETRY_S, batch.RETRY_S = 2.0, 0.5, 0.5
    options = BatchOptions(poll_s=0.3, grace_s=0.5, patience_s=3)
    SCHEDULERS["play"] = lambda site, run_id: Play(notes)
    HANDLERS["play"] = lambda setup, site: batch.BatchHandler(setup, Play(notes), options)
