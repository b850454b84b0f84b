"""What every handler shares: names of a step's files, its environment, and when it may be called dead.

A handler starts the process (or batch job) of one step's attempt, says whether it still lives, and ends it. The
attempt is part of every name, so that a retry overwrites nothing.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg
from dagster._core.events import DagsterEvent, EngineEventData
from dagster._core.executor.step_delegating import CheckStepHealthResult, StepHandler, StepHandlerContext
from dagster_shared.record import replace

from aframe_assets.tags import RESOURCES_TAG

if TYPE_CHECKING:
    from aframe_ops.leases import Claims

FINAL = {dg.DagsterEventType.STEP_SUCCESS, dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.STEP_UP_FOR_RETRY}
"""Events that end an attempt; no other event of it comes after them that refers to an earlier one."""

RELAYED = "aframe:"
"""Lines of a step's output that start so are for the user and are repeated on the run worker's stderr."""


class Attempt(NamedTuple):
    """One attempt at one step of one run."""

    run_id: str
    step: str
    number: int

    @classmethod
    def of(cls, context: StepHandlerContext) -> Attempt:
        args = context.execute_step_args
        keys = args.step_keys_to_execute or []
        if len(keys) != 1:
            raise ValueError(f"a handler starts one step at a time, got {keys}")
        number = args.known_state.get_retry_state().get_attempt_count(keys[0]) if args.known_state else 0
        return cls(args.run_id, keys[0], number)

    @property
    def filename(self) -> str:
        return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', self.step)}.{self.number}"

    def __str__(self) -> str:
        return f"step {self.step} (attempt {self.number + 1})"


@dataclass(frozen=True)
class RunFiles:
    """Files of one run: ``folder/{step}.{attempt}.{out,err,...}``."""

    folder: Path

    def of(self, attempt: Attempt, suffix: str) -> Path:
        return self.folder / f"{attempt.filename}.{suffix}"


@dataclass(frozen=True)
class RunSetup:
    """What the executor hands to its handlers at the start of a run.

    Attributes:
        files: where this run's step files go.
        env: variables added to every step's environment (the resolved experiment among them).
        warm: serialised run and job of this run, for workers that load them once; None where they are not needed.
        lock_fd: descriptor that is open as long as any process of the run lives; -1 for none.
        science: several steps of this run compute, so that what they import is worth importing once for all.
        claims: leases of this run's batch jobs; None where no experiment says what a step makes.
    """

    files: RunFiles
    env: dict[str, str]
    warm: str | None = None
    lock_fd: int = -1
    science: bool = False
    claims: Claims | None = None


class Request(NamedTuple):
    """What a step needs, from its neutral tag: cores, GB (1e9 bytes), minutes."""

    cpus: int = 1
    memory_gb: float = 0.0
    gpus: int = 0
    gpu_memory_gb: float = 0.0
    time_min: int = 60
    disk_gb: float = 0.0
    container: str = "cpu"

    @classmethod
    def of(cls, tags: Any) -> Request:
        wanted = json.loads(tags.get(RESOURCES_TAG, "{}"))
        return cls(
            cpus=max(1, int(wanted.get("cpus", 1))),
            memory_gb=max(0.0, float(wanted.get("memory_gb", 0.0))),
            gpus=max(0, int(wanted.get("gpus", 0))),
            gpu_memory_gb=max(0.0, float(wanted.get("gpu_memory_gb", 0.0))),
            time_min=max(1, int(wanted.get("time_min", 60))),
            disk_gb=max(0.0, float(wanted.get("disk_gb", 0.0))),
            container=str(wanted.get("container", "cpu")),
        )


def relay(line: str) -> None:
    """Repeats one line of a step on this process's stderr."""
    stream = _relay_stream or sys.stderr
    stream.write(line.rstrip("\n") + "\n")
    stream.flush()


_relay_stream: Any = None


def relay_to(stream: Any) -> None:
    """Sends relayed lines to `stream` from now on (None: stderr)."""
    global _relay_stream
    _relay_stream = stream


def reported(instance: dg.DagsterInstance, attempt: Attempt) -> bool:
    """Whether the event log holds this attempt's end. 'The process is gone' is not 'the step failed': reporting a
    failure beside a success that is on its way would end the whole run."""
    records = instance.get_records_for_run(attempt.run_id, of_type=FINAL).records
    return sum(r.event_log_entry.step_key == attempt.step for r in records) > attempt.number


class Relayed:
    """Repeats what a step adds to its ``.relay`` file, a line at a time and once each."""

    behind: str | None = None

    def __init__(self, path: Path):
        self._path, self._offset = path, 0

    def pump(self) -> None:
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return
        if size <= self._offset:
            return
        with self._path.open("rb") as f:
            f.seek(self._offset)
            for line in f:
                if not line.endswith(b"\n"):  # the rest of it is still being written
                    break
                self._offset += len(line)
                relay(line.decode(errors="replace"))

    def finish(self) -> None:
        """Repeats what is left, when the step has ended."""
        self.pump()


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner may read from its first byte on."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
        f.write(text)


class Handler(StepHandler):
    """A place where steps run.

    Subclasses implement `launch`, `state` and `stop`; the rules about when a step is dead are here, once.
    """

    grace = 15.0
    """Seconds between 'its process is gone' and 'it failed', for final events that are still on their way."""

    requeues = False
    """Whether this place may start a job a second time on its own; a step then checks that it has not run before."""

    def __init__(self, setup: RunSetup):
        self.setup = setup
        self._gone: dict[Attempt, float] = {}

    @abstractmethod
    def launch(self, context: StepHandlerContext, attempt: Attempt) -> str:
        """Starts (or queues) the step; returns what to tell the user about it."""

    @abstractmethod
    def state(self, attempt: Attempt) -> str | None:
        """None while the step is queued or running, else why its process is gone. Called about five times a second for
        each running step: a handler that asks a scheduler asks for all of them at once, and seldom."""

    @abstractmethod
    def stop(self, attempt: Attempt) -> str:
        """Interrupts the step and makes sure that it ends; returns what was done."""

    def close(self) -> None:
        """Ends whatever of this run is left."""

    def environment(self, context: StepHandlerContext) -> dict[str, str]:
        """Variables that `dagster api execute_step` needs for this step, on top of the submitting environment."""
        args = replace(context.execute_step_args, should_verify_step=self.requeues)
        return {**self.setup.env, **{e["name"]: e["value"] for e in args.get_command_env()}}

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        attempt = Attempt.of(step_handler_context)
        message = self.launch(step_handler_context, attempt)
        yield DagsterEvent.step_worker_starting(
            step_handler_context.get_step_context(attempt.step),
            message=f"{self.name}: {message}",
            metadata={"log": dg.MetadataValue.path(str(self.setup.files.of(attempt, "err")))},
        )

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        attempt = Attempt.of(step_handler_context)
        reason = self.state(attempt)
        if reason is None or reported(step_handler_context.instance, attempt):
            return CheckStepHealthResult.healthy()
        since = self._gone.setdefault(attempt, time.monotonic())
        if time.monotonic() - since < self.grace:
            return CheckStepHealthResult.healthy()
        return CheckStepHealthResult.unhealthy(f"{reason}; its output is in {self.setup.files.of(attempt, 'err')}")

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        attempt = Attempt.of(step_handler_context)
        message = self.stop(attempt)
        yield DagsterEvent.engine_event(step_handler_context.get_step_context(attempt.step), f"{self.name}: {message}", EngineEventData())
