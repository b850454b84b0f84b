"""Steps as jobs of a batch system: what is the same on every one of them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.events import DagsterEvent, EngineEventData
from dagster._core.execution.plan.objects import StepFailureData
from dagster._core.executor.step_delegating import StepHandlerContext
from dagster._utils.error import SerializableErrorInfo

from aframe_ops.executor.base import RELAYED, Attempt, Handler, Relayed, Request, RunSetup, relay, reported, write_private
from aframe_ops.executor.batch_options import PASSED, BatchOptions, job_name, passed_environment, scaled, small
from aframe_ops.executor.scheduler import BatchJob, JobState, Phase, Refused, Scheduler, Unreachable, Usage
from aframe_ops.executor.tracked import Tracked
from aframe_ops.executor.usage import describe_usage
from aframe_ops.executor.worker import LOG_VARIABLE
from aframe_ops.leases import Asked

if TYPE_CHECKING:
    from aframe_ops.executor.relay import EventRelay
    from aframe_ops.executor.transport import Detached

BROUGHT = ("AFRAME_CONFIG", "AFRAME_SITE")
"""Variables that name a file which every step reads."""

WARN_SHARE = 0.25
"""A step is never interrupted earlier before its time limit than this share of it: a short one must leave it time to work."""

OVERTIME_S = 180.0
"""The scheduler itself ends a job at its time limit; one that still runs so much later is cancelled by us."""

LOST_S = 60.0
"""A job that its scheduler has not known for so long is lost."""

GATHER_S = 1.0
"""Steps of a fan-out that start within so many seconds of each other are submitted together."""

RETRY_S = 20.0
"""Seconds until a scheduler that did not answer is asked again (each vain question may block for many seconds)."""


class BatchHandler(Handler):
    """Runs each step as a job of `scheduler`.

    Files of an attempt, beside its output: ``.json`` (the spec; gone once the job has read it), ``.job`` (backend and id,
    there before anyone is told that the job exists), ``.over`` (empty; the job was seen to have ended),
    ``.usage`` and ``.relay`` (written by the job).
    """

    def __init__(self, setup: RunSetup, scheduler: Scheduler, options: BatchOptions, detached: Detached | None = None):
        super().__init__(setup)
        self.grace = options.grace_s
        self._scheduler, self._options, self._detached = scheduler, options, detached
        self._tracked: dict[Attempt, Tracked] = {}
        self._instance: dg.DagsterInstance | None = None
        self._plan: Any = None
        self._next_poll = self._next_relay = 0.0
        self._silent_since: float | None = None
        self._gathering_until: float | None = None
        self._stopping_since: float | None = None

    @property
    def name(self) -> str:
        return self._scheduler.name

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[DagsterEvent]:
        try:
            yield from super().launch_step(step_handler_context)
        except Refused as e:
            attempt = Attempt.of(step_handler_context)
            self._forget_spec(attempt)
            if self.setup.claims:
                self.setup.claims.release(attempt)
            # A failure and not a retry: the same job would be refused again.
            error = SerializableErrorInfo(f"{self.name} refused the job of step {attempt.step}: {e}", [], None)
            yield DagsterEvent.step_failure_event(
                step_handler_context.get_step_context(attempt.step), StepFailureData(error=error, user_failure_data=None)
            )

    def launch(self, context: StepHandlerContext, attempt: Attempt) -> str:
        self._instance, self._plan = context.instance, context._plan_context
        step = context.get_step_context(attempt.step)
        relays: list[Relayed | EventRelay] = [Relayed(self.setup.files.of(attempt, "relay"))]
        tracked = Tracked(attempt, step, self._write(context, attempt), relays)
        if self._detached:
            relays.append(self._detached.follow(context, attempt, lambda message: self._tell(message, tracked)))
        gathered = self._scheduler.together > 1 and "[" in attempt.step
        if gathered:
            self._gathering_until = time.monotonic() + GATHER_S
        elif self._silent_since is None:
            try:
                if self._allowed([tracked]):
                    self._submit(tracked)
            except Unreachable as e:
                self._fell_silent(e)
        self._tracked[attempt] = tracked
        request = tracked.job.request
        gpus = f"{request.gpus} GPU{'s' * (request.gpus > 1)}, " if request.gpus else ""
        wants = f"{request.cpus} core{'s' * (request.cpus > 1)}, {gpus}{request.memory_gb:.3g} GB, {request.time_min} min"
        wants += f", code {self._scheduler.code}" if self._scheduler.code else ""
        if tracked.id:
            return f"job {tracked.id} ({wants})"
        if self.setup.claims and not (gathered or tracked.claimed or self._silent_since is not None):
            return "waits for the job of another run"
        return f"will be submitted {'with others' if gathered else f'when {self.name} answers'} ({wants})"

    def state(self, attempt: Attempt) -> str | None:
        self._tick()
        tracked = self._tracked.get(attempt)
        if tracked is None:
            return "its job is not known to this run"
        if tracked.ended is not None:
            tracked.pump()  # before anybody calls it dead
        return None if tracked.reads_behind else tracked.ended

    def stop(self, attempt: Attempt) -> str:
        if self._stopping_since is None:  # all at once, so that they end side by side
            self._stopping_since = time.monotonic()
            self._end_gently()
        tracked = self._tracked.get(attempt)
        if tracked is None or (tracked.id is None and not tracked.doubtful):
            return "had not been submitted"
        while tracked.ended is None and time.monotonic() - self._stopping_since < self._options.patience_s:
            time.sleep(min(1.0, self._options.poll_s))
            self._tick(now=True)
        if tracked.ended is not None:
            return f"job {tracked.id} was cancelled"
        try:
            self._find(tracked)
            if tracked.id:
                self._scheduler.cancel([tracked.id])
        except Unreachable as e:
            return f"job {tracked.id or tracked.job.name} may still run: {self.name} does not answer ({e}); cancel it by hand"
        return f"job {tracked.id} was cancelled; it did not end within {self._options.patience_s:g} s of an interrupt"

    def close(self) -> None:
        for tracked in self._tracked.values():
            if tracked.id is None:
                self._forget_spec(tracked.attempt)
        left = [t for t in self._live() if t.id]
        with contextlib.suppress(Unreachable):  # stop() has said so
            unreported = [t.id for t in left if t.id and not (self._instance and reported(self._instance, t.attempt))]
            if unreported:
                self._scheduler.cancel(unreported)
            # Steps report before their job is over, and what it used is known only then.
            deadline = time.monotonic() + self._options.patience_s
            while self._silent_since is None and (live := [t for t in left if t.ended is None]) and time.monotonic() < deadline:
                self._poll(live)
                time.sleep(min(1.0, self._options.poll_s))
        for tracked in self._tracked.values():
            self._forget_spec(tracked.attempt)
        for tracked in self._tracked.values():
            tracked.finish()
        if self._detached:
            self._detached.close()
        self._give_back()

    def _write(self, context: StepHandlerContext, attempt: Attempt) -> BatchJob:
        files, request = self.setup.files, scaled(Request.of(context.step_tags[attempt.step]), attempt.number, self._options)
        log, spec = files.of(attempt, "err").with_suffix(""), files.of(attempt, "json")
        passed = passed_environment((*PASSED, *self._options.env))
        env = passed | self.environment(context) | {LOG_VARIABLE: str(log)}
        brought = [] if self._scheduler.shared_disk else [name for name in BROUGHT if name in env]
        carried = tuple(Path(env[name]) for name in brought)
        cwd = os.getcwd()
        if not self._scheduler.shared_disk:
            brought.append(LOG_VARIABLE)
            # below the folder whose new files are brought back
            env, cwd = env | {name: Path(env[name]).name for name in brought}, "work"
        warn_s = min(self._scheduler.warn_s, WARN_SHARE * 60 * request.time_min)
        limits = {"cpus": request.cpus, "time_min": request.time_min, "warn_s": warn_s}
        told = {"env": env, "cwd": cwd, "brought": brought, **limits}
        if self._detached:
            self._detached.equip(told, context, attempt)
        write_private(spec, json.dumps(told))
        return BatchJob(
            name=job_name(attempt),
            request=request,
            number=attempt.number,
            argv=(self._scheduler.python, "-m", "aframe_ops.executor.job", str(spec)),
            spec=spec,
            log=log,
            folder=Path.cwd(),
            python_path=os.environ.get("PYTHONPATH"),
            files=carried,
        )

    def _submit(self, tracked: Tracked) -> None:
        try:
            self._find(tracked)
            tracked.id = tracked.id or self._scheduler.submit(tracked.job)
        except Unreachable:
            tracked.doubtful = True
            raise
        self._submitted(tracked)
        self._lease([tracked])

    def _submitted(self, tracked: Tracked, name: str | None = None) -> None:
        """Writes down that the job exists; `name` is that of the array that it was submitted in."""
        tracked.seen = time.monotonic()
        record = {"backend": self.name, "id": tracked.id, "name": tracked.job.name, "submitted_as": name or tracked.job.name}
        record["place"] = self._scheduler.place
        write_private(self.setup.files.of(tracked.attempt, "job"), json.dumps(record))

    def _allowed(self, waiting: Sequence[Tracked]) -> list[Tracked]:
        """Those of which no job of another run is making the same; the others are asked about again at the next tick."""
        claims, new = self.setup.claims, [t for t in waiting if not t.claimed]
        if claims is None or not new:
            return list(waiting)
        place = self._scheduler.place
        answers = claims.ask([Asked(t.context, t.attempt, self.name, t.job.name, place, t.job.request.time_min) for t in new])
        for tracked, answer in zip(new, answers, strict=True):
            tracked.claimed = answer.start
            if answer.quick:
                tracked.job = small(tracked.job)
            for line in answer.news:
                self._tell(line, tracked)
                relay(f"{RELAYED} step {tracked.attempt.step} {line}")
        return [t for t in waiting if t.claimed]

    def _lease(self, submitted: Sequence[Tracked]) -> None:
        """Has the leases of these jobs name them."""
        if self.setup.claims:
            name = submitted[0].job.name
            self.setup.claims.submitted({t.attempt: (str(t.id), name) for t in submitted})

    def _give_back(self) -> None:
        """Removes the leases of jobs that are over, or whose step has been reported."""
        for tracked in self._tracked.values() if self.setup.claims else ():
            submitted = tracked.id is not None or tracked.doubtful
            if not submitted or tracked.ended is not None or (self._instance and reported(self._instance, tracked.attempt)):
                self.setup.claims.release(tracked.attempt)

    def _find(self, tracked: Tracked) -> None:
        if tracked.id is None and tracked.doubtful:
            tracked.id = self._scheduler.find(tracked.job.name)

    def _live(self) -> list[Tracked]:
        return [t for t in self._tracked.values() if t.ended is None]

    def _tick(self, *, now: bool = False) -> None:
        """Asks the scheduler about all jobs at once, if it is time to."""
        moment = time.monotonic()
        if moment >= self._next_relay:
            self._next_relay = moment + 1.0
            for tracked in self._live():
                tracked.pump()
        gathered = self._gathering_until is not None and moment >= self._gathering_until and self._silent_since is None
        if gathered:
            self._gathering_until = None
        if moment < self._next_poll and not now and not gathered:
            return
        try:
            submitted = [t for t in self._live() if t.id]
            waiting = [t for t in self._live() if t.id is None and self._stopping_since is None and self._gathering_until is None]
            if submitted:
                self._poll(submitted)
            self._submit_waiting(waiting)
        except Unreachable as e:
            self._fell_silent(e)
        else:
            if submitted or any(t.claimed or not self.setup.claims for t in waiting):
                self._answers()
            self._next_poll = time.monotonic() + self._options.poll_s

    def _submit_waiting(self, waiting: Sequence[Tracked]) -> None:
        for group in self._groups(self._allowed(waiting)):
            try:
                if len(group) == 1:
                    self._submit(group[0])
                else:
                    self._submit_together(group)
            except Refused as e:
                for tracked in group:
                    self._end(tracked, f"was refused: {e}")
            else:
                for tracked in group:
                    self._tell(f"job {tracked.id} was submitted", tracked)

    def _groups(self, waiting: Sequence[Tracked]) -> Iterator[Sequence[Tracked]]:
        """Those that may be submitted together."""
        alike: dict[Any, list[Tracked]] = {}
        for tracked in waiting:
            job = tracked.job
            # one that may exist is asked for by itself
            alike.setdefault((job.request, job.number, job.folder, job.python_path, tracked.doubtful and job.name), []).append(tracked)
        for group in alike.values():
            yield from (group[i : i + self._scheduler.together] for i in range(0, len(group), self._scheduler.together))

    def _submit_together(self, group: Sequence[Tracked]) -> None:
        try:
            ids = self._scheduler.submit_together([t.job for t in group])
        except Unreachable:
            for tracked in group:
                tracked.doubtful = True
            raise
        for tracked, tracked.id in zip(group, ids, strict=True):
            self._submitted(tracked, group[0].job.name)
        self._lease(group)

    def _poll(self, asked: Sequence[Tracked]) -> None:
        states = self._scheduler.poll([t.id for t in asked if t.id])
        for tracked in asked:
            self._note(tracked, states.get(str(tracked.id)))
        self._account([t for t in asked if t.ended is not None])

    def _note(self, tracked: Tracked, state: JobState | None) -> None:
        limit = tracked.job.request.time_min
        if state is None:
            if time.monotonic() - tracked.seen > max(LOST_S, 3 * self._options.poll_s):
                self._scheduler.cancel([str(tracked.id)])  # should it live after all, it must not run beside the next attempt
                self._end(tracked, "is not known to the scheduler")
            return
        tracked.seen, tracked.phase = time.monotonic(), state.phase
        if state.phase is Phase.ENDED:
            with contextlib.suppress(OSError):
                self.setup.files.of(tracked.attempt, "over").touch()  # `aframe reap` need not ask about it
            self._end(tracked, state.words or "ended")
        elif state.phase is Phase.PENDING and state.stuck and state.words != tracked.told:
            tracked.told = state.words
            self._tell(f"job {tracked.id} will not start by itself: {state.words}", tracked)
            relay(f"{RELAYED} step {tracked.attempt.step} waits: its {self.name} job {tracked.id} will not start by itself: {state.words}")
        elif state.phase is Phase.RUNNING and state.seconds > limit * 60 + OVERTIME_S:
            self._scheduler.cancel([str(tracked.id)])
            self._end(tracked, f"was cancelled because it ran for {state.seconds / 60:.0f} min, with a time limit of {limit} min")

    def _end(self, tracked: Tracked, words: str) -> None:
        tracked.ended = f"its {self.name} job {tracked.id or ''} {words}".replace("  ", " ")
        tracked.phase = Phase.ENDED
        tracked.finish()
        self._forget_spec(tracked.attempt)
        if self.setup.claims:
            self.setup.claims.release(tracked.attempt)

    def _forget_spec(self, attempt: Attempt) -> None:
        """A job that never started has left its spec, and with it credentials."""
        self.setup.files.of(attempt, "json").unlink(missing_ok=True)

    def _end_gently(self) -> None:
        ids = {phase: [t.id for t in self._live() if t.id and t.phase is phase] for phase in (Phase.PENDING, Phase.RUNNING)}
        try:
            if ids[Phase.PENDING]:
                self._scheduler.cancel(ids[Phase.PENDING])
            if ids[Phase.RUNNING]:
                self._scheduler.interrupt(ids[Phase.RUNNING])
        except Unreachable as e:
            self._fell_silent(e)

    def _fell_silent(self, error: Unreachable) -> None:
        self._next_poll = time.monotonic() + max(RETRY_S, self._options.poll_s)
        if self._silent_since is None:
            self._silent_since = time.monotonic()
            self._tell(f"does not answer ({error}); its jobs are taken to go on, and it is asked again every {RETRY_S:g} s")
            relay(f"{RELAYED} {self.name} does not answer ({error}); the run waits for it")

    def _answers(self) -> None:
        if self._silent_since is not None:
            self._tell(f"answers again, after {time.monotonic() - self._silent_since:.0f} s")
            self._silent_since = None
            for tracked in self._live():  # what was not asked about was not seen either
                tracked.seen = time.monotonic()

    def _account(self, ended: Sequence[Tracked]) -> None:
        """Reports what jobs used: from what they wrote themselves, else from the scheduler's books."""
        used: dict[str, Usage] = {}
        for tracked in ended:
            with contextlib.suppress(OSError, ValueError, TypeError):
                used[str(tracked.id)] = Usage(**json.loads(self.setup.files.of(tracked.attempt, "usage").read_text()))
        unknown = [str(t.id) for t in ended if str(t.id) not in used]
        if unknown:
            with contextlib.suppress(Unreachable):
                used |= self._scheduler.usage(unknown)
        for tracked in ended:
            if usage := used.get(str(tracked.id)):
                message, metadata = describe_usage(tracked.job.request, usage)
                if message:
                    self._tell(f"job {tracked.id} used {message}", tracked, {"job id": dg.MetadataValue.text(str(tracked.id)), **metadata})

    def _tell(self, message: str, tracked: Tracked | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        context = self._plan if tracked is None else tracked.context
        DagsterEvent.engine_event(context, f"{self.name}: {message}", EngineEventData(metadata=metadata or {}))
