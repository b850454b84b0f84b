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
from aframe_ops.executor.batch_options import PASSED, BatchOptions, job_name, passed_environment, scaled
from aframe_ops.executor.scheduler import BatchJob, Full, JobState, Phase, Refused, Scheduler, Unreachable, Usage
from aframe_ops.executor.submission import Submission
from aframe_ops.executor.tracked import Tracked
from aframe_ops.executor.usage import describe_usage, described, written_usage
from aframe_ops.executor.worker import LOG_VARIABLE

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
        self._jobs = Submission(setup, scheduler, self._tell, self._complain, self._live)
        self._next_poll = self._next_relay = 0.0
        self._silent_since: float | None = None
        self._gathering_until: float | None = None
        self._stopping_since: float | None = None
        self._rest_cancelled: str | None = None
        self._unexpected: Exception | None = None

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
        self._tracked[attempt] = tracked  # from now on, whatever happens, it may have a job
        gathered = self._scheduler.together > 1 and "[" in attempt.step
        if gathered:
            if self._gathering_until is None:  # else those that come one after the other would never be submitted
                self._gathering_until = time.monotonic() + GATHER_S
        elif self._silent_since is None:
            try:
                if self._jobs.allowed([tracked]):
                    self._jobs.submit([tracked])
            except Unreachable as e:
                self._fell_silent(e)
            except Full as e:
                self._jobs.has_no_room(e, tracked.job.request)
            except Refused:
                del self._tracked[attempt]
                raise
        wants = described(tracked.job.request) + (f", code {self._scheduler.code}" if self._scheduler.code else "")
        if tracked.id:
            return f"job {tracked.id} ({wants})"
        if self.setup.claims and not (gathered or tracked.claimed or self._silent_since is not None):
            return "waits for the job of another run"
        when = "with others" if gathered else f"when {self.name} {'has room' if tracked.told else 'answers'}"
        return f"will be submitted {when} ({wants})"

    def state(self, attempt: Attempt) -> str | None:
        self._tick()
        tracked = self._tracked.get(attempt)
        if tracked is None:
            return "its job is not known to this run"
        if tracked.ended is not None:
            self._follow(tracked)  # before anybody calls it dead
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
        if why := self._cancel_rest():
            return f"job {tracked.id or tracked.job.name} may still run: {self.name} does not answer ({why}); cancel it by hand"
        if tracked.id is None:
            return "had not been submitted"
        return f"job {tracked.id} was cancelled; it did not end within {self._options.patience_s:g} s of an interrupt"

    def close(self) -> None:
        """Nothing that goes wrong keeps the rest from being done; the first that nobody expects is told."""
        parts = [self._forget_unsubmitted, self._end_left, self._finish_all, self._give_back]
        parts[3:3] = [self._detached.close] if self._detached else []
        for part in parts:
            try:
                part()
            except Unreachable:
                pass  # stop() has said so
            except Exception as e:
                self._unexpected = self._unexpected or e
        if self._unexpected:
            self._complain(f"the end of the run is not clean ({type(self._unexpected).__name__}: {self._unexpected})")

    def _forget_unsubmitted(self) -> None:
        for tracked in self._tracked.values():
            if tracked.id is None:
                self._forget_spec(tracked.attempt)

    def _end_left(self) -> None:
        left = [t for t in self._live() if t.id]
        unreported = [t.id for t in left if t.id and not self._reported(t)]
        if unreported:
            self._scheduler.cancel(unreported)
        # Steps report before their job is over, and what it used is known only then.
        deadline = time.monotonic() + self._options.patience_s
        while self._silent_since is None and (live := [t for t in left if t.ended is None]) and time.monotonic() < deadline:
            self._poll(live)
            time.sleep(min(1.0, self._options.poll_s))

    def _finish_all(self) -> None:
        for tracked in self._tracked.values():
            self._forget_spec(tracked.attempt)
        for tracked in self._tracked.values():
            self._follow(tracked, last=True)

    def _reported(self, tracked: Tracked) -> bool:
        """Whether the step's end is known; not, if the event log cannot be asked."""
        try:
            return self._instance is not None and reported(self._instance, tracked.attempt)
        except Exception as e:
            self._unexpected = self._unexpected or e
            return False

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

    def _give_back(self) -> None:
        """Removes the leases of jobs that are over, or whose step has been reported."""
        for tracked in self._tracked.values() if self.setup.claims else ():
            submitted = tracked.id is not None or tracked.doubtful
            if not submitted or tracked.ended is not None or self._reported(tracked):
                self.setup.claims.release(tracked.attempt)

    def _live(self) -> list[Tracked]:
        return [t for t in self._tracked.values() if t.ended is None]

    def _tick(self, *, now: bool = False) -> None:
        """Asks the scheduler about all jobs at once, if it is time to."""
        moment = time.monotonic()
        if moment >= self._next_relay:
            self._next_relay = moment + 1.0
            for tracked in self._live():
                self._follow(tracked)
        gathered = self._gathering_until is not None and moment >= self._gathering_until
        if gathered:
            self._gathering_until = None
        if moment < self._next_poll and not now and not (gathered and self._silent_since is None):
            return
        self._next_poll = moment + self._options.poll_s  # now, for an exception that nobody expects
        try:
            submitted = [t for t in self._live() if t.id]
            waiting = [t for t in self._live() if t.id is None and self._stopping_since is None and self._gathering_until is None]
            if submitted:
                self._poll(submitted)
            self._jobs.submit_waiting(waiting, self._end)
        except Unreachable as e:
            self._fell_silent(e)
        else:
            if submitted or any(t.claimed or not self.setup.claims for t in waiting):
                self._answers()
            self._next_poll = time.monotonic() + self._options.poll_s

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
            self._end(tracked, (state.words or "ended") + self._complaint(tracked))
        elif state.phase is Phase.PENDING and state.stuck and state.words != tracked.told:
            tracked.told = state.words
            self._tell(f"job {tracked.id} will not start by itself: {state.words}", tracked)
            relay(f"{RELAYED} step {tracked.attempt.step} waits: its {self.name} job {tracked.id} will not start by itself: {state.words}")
        elif state.phase is Phase.RUNNING and state.seconds > limit * 60 + OVERTIME_S:
            self._scheduler.cancel([str(tracked.id)])
            self._end(tracked, f"was cancelled because it ran for {state.seconds / 60:.0f} min, with a time limit of {limit} min")

    def _complaint(self, tracked: Tracked) -> str:
        """What the shell of a job said for the user, such as which line of the site's set-up failed, if its step never began."""
        with contextlib.suppress(OSError):
            if not self.setup.files.of(tracked.attempt, "usage").exists():
                lines = self.setup.files.of(tracked.attempt, "err").read_text(errors="replace")[-4000:].splitlines()
                said = [line.removeprefix(RELAYED).strip() for line in lines if line.startswith(RELAYED)]
                return f" ({said[-1]})" if said else ""
        return ""

    def _end(self, tracked: Tracked, words: str) -> None:
        tracked.ended = f"its {self.name} job {tracked.id or ''} {words}".replace("  ", " ")
        tracked.phase = Phase.ENDED
        self._follow(tracked, last=True)
        self._forget_spec(tracked.attempt)
        if self.setup.claims:
            self.setup.claims.release(tracked.attempt)

    def _forget_spec(self, attempt: Attempt) -> None:
        """A job that never started has left its spec, and with it credentials."""
        with contextlib.suppress(OSError):
            self.setup.files.of(attempt, "json").unlink(missing_ok=True)

    def _follow(self, tracked: Tracked, *, last: bool = False) -> None:
        """Relays what a job has said. What goes wrong with one job is told once, and holds up no other."""
        try:
            tracked.finish() if last else tracked.pump()
            tracked.trouble = ""
        except Exception as e:
            known, tracked.trouble = tracked.trouble, f"{type(e).__name__}: {e}"
            if not known:
                self._complain(f"what {tracked.attempt} says cannot be passed on now ({tracked.trouble}); the run waits for it", tracked)

    def _cancel_rest(self) -> str:
        """Cancels all that is left in one go and only once: each vain question may block for many seconds. Why it failed."""
        if self._rest_cancelled is None:
            self._rest_cancelled = ""
            try:
                self._jobs.find(self._live())
                if ids := [t.id for t in self._live() if t.id]:
                    self._scheduler.cancel(ids)
            except Exception as e:  # the other steps have to be stopped all the same
                self._rest_cancelled = str(e) or type(e).__name__
        return self._rest_cancelled

    def _end_gently(self) -> None:
        try:
            self._jobs.find(self._live())
            ids = {phase: [t.id for t in self._live() if t.id and t.phase is phase] for phase in (Phase.PENDING, Phase.RUNNING)}
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
            if usage := written_usage(self.setup.files.of(tracked.attempt, "usage")):
                used[str(tracked.id)] = usage
        unknown = [str(t.id) for t in ended if str(t.id) not in used]
        if unknown:
            with contextlib.suppress(Unreachable):
                used |= self._scheduler.usage(unknown)
        for tracked in ended:
            if usage := used.get(str(tracked.id)):
                message, metadata = describe_usage(tracked.job.request, usage)
                if message:
                    self._tell(f"job {tracked.id} used {message}", tracked, {"job id": dg.MetadataValue.text(str(tracked.id)), **metadata})

    def _complain(self, message: str, tracked: Tracked | None = None) -> None:
        """As `_tell`, and to whoever watches the run; the event log may be what fails."""
        relay(f"{RELAYED} {self.name}: {message}")
        with contextlib.suppress(Exception):
            self._tell(message, tracked)

    def _tell(self, message: str, tracked: Tracked | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        context = self._plan if tracked is None else tracked.context
        DagsterEvent.engine_event(context, f"{self.name}: {message}", EngineEventData(metadata=metadata or {}))
