"""Steps on a batch system that is played by processes of this machine, and that can be told to misbehave (``$PLAY``)."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg

from aframe_assets.tags import resources
from aframe_ops.executor import batch
from aframe_ops.executor.batch_options import BatchOptions
from aframe_ops.executor.executor import HANDLERS, make_executor
from aframe_ops.executor.routing import BACKEND_TAG
from aframe_ops.executor.scheduler import BatchJob, JobState, Phase, Refused, Scheduler, Unreachable
from aframe_ops.site import load_site

NOTES, FAULT = Path(os.environ["TOY"]), os.environ["PLAY"]
GRACE = float(os.environ.get("GRACE", "0.5"))
batch.LOST_S, batch.RETRY_S, batch.OVERTIME_S = 2.0, 1.0, 3.0


def note(file: str, **values) -> None:
    with (NOTES / f"{file}.jsonl").open("a") as f:
        f.write(json.dumps({"pid": os.getpid(), **values}) + "\n")


class Play(Scheduler):
    name = "play"

    def __init__(self) -> None:
        self.jobs: dict[str, subprocess.Popen] = {}
        self.names: dict[str, str] = {}
        self.polls = 0

    def submit(self, job: BatchJob) -> str:
        note("submitted", name=job.name, memory=job.request.memory_gb)
        if FAULT == "refuses":
            raise Refused("we do not like it (change nothing)")
        if FAULT == "away" and len(read("submitted")) < 3:
            raise Unreachable("gone for lunch")
        id = str(len(self.jobs) + 1)
        with open(f"{job.log}.out", "ab") as out, open(f"{job.log}.err", "ab") as err:
            self.jobs[id] = subprocess.Popen(job.argv, stdout=out, stderr=err, cwd=job.folder, start_new_session=True)
        self.names[job.name] = id
        if FAULT == "no answer" and len(self.jobs) == 1:
            raise Unreachable("the line was cut")
        return id

    def find(self, name: str) -> str | None:
        note("searched", name=name)
        return self.names.get(name)

    def poll(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        self.polls += 1
        note("polled", ids=list(ids))
        if FAULT == "blinks" and self.polls < 3:
            return {}
        # only the first job misbehaves, and only when its step has begun
        began = bool(read("long"))
        return {i: self._state(i, began) for i in ids if not (FAULT == "loses" and i == "1" and began)}

    def _state(self, id: str, began: bool) -> JobState:
        code = self.jobs[id].poll()
        if code is None:
            return JobState(Phase.RUNNING, seconds=1000.0 if FAULT == "overtime" and id == "1" and began else 1.0)
        return JobState(Phase.ENDED, f"ended with {code}")

    def cancel(self, ids: Sequence[str]) -> None:
        note("cancelled", ids=list(ids))
        for i in ids:
            if self.jobs[i].poll() is None:
                os.killpg(self.jobs[i].pid, signal.SIGKILL)


def read(file: str) -> list[str]:
    path = NOTES / f"{file}.jsonl"
    return path.read_text().splitlines() if path.exists() else []


HANDLERS["play"] = lambda setup, site: batch.BatchHandler(setup, Play(), BatchOptions(poll_s=0.3, grace_s=GRACE, patience_s=3))
PLAYED = {BACKEND_TAG: "play", **resources(memory_gb=2, time_min=1)}


@dg.asset(op_tags=PLAYED, retry_policy=dg.RetryPolicy(max_retries=1))
def quick() -> None:
    note("quick")


@dg.asset(op_tags=PLAYED, retry_policy=dg.RetryPolicy(max_retries=1))
def long() -> None:
    note("long")
    if len(read("long")) == 1:
        time.sleep(120)


@dg.asset(op_tags=PLAYED)
def beside() -> None:
    note("beside")
    time.sleep(2)


@dg.asset(op_tags=PLAYED)
def late() -> None:
    """Its job ends at once, with exit code 0, and its last event comes seconds later."""
    if os.fork():
        os._exit(0)
    time.sleep(3)
    note("late")


defs = dg.Definitions(assets=[quick, long, beside, late], executor=make_executor(load_site()))
