"""How the jobs of one run get to their batch system: together, once each, and written down."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from aframe_ops.executor.base import RELAYED, Request, RunSetup, relay, write_private
from aframe_ops.executor.batch_options import small
from aframe_ops.executor.scheduler import Full, Refused, Scheduler
from aframe_ops.executor.tracked import Tracked
from aframe_ops.executor.usage import described
from aframe_ops.leases import Asked


class _Tell(Protocol):
    def __call__(self, message: str, tracked: Tracked | None = None) -> None: ...


class Submission:
    """Submits the jobs of a run.

    Args:
        setup: the run's.
        scheduler: where jobs go.
        tell: reports something; `complain` reports it to whoever watches the run as well.
        live: the attempts that have not ended.
    """

    def __init__(self, setup: RunSetup, scheduler: Scheduler, tell: _Tell, complain: _Tell, live: Callable[[], list[Tracked]]):
        self._setup, self._scheduler, self._tell, self._complain, self._live = setup, scheduler, tell, complain, live
        self._together = scheduler.together

    def submit_waiting(self, waiting: Sequence[Tracked], refused: Callable[[Tracked, str], None]) -> None:
        """Submits those that may be, together where that is possible; `refused` gets those that never will be, and why."""
        self.find(waiting)
        full: set[Request] = set()
        for group in self._groups(self.allowed([t for t in waiting if t.id is None])):
            request = group[0].job.request
            if request in full:
                continue
            try:
                self.submit(group)
            except Refused as e:
                for tracked in group:
                    refused(tracked, f"was refused: {e}")
            except Full as e:
                full.add(request)
                if len(group) > 1:  # there may be room for some
                    self._together = len(group) // 2
                self.has_no_room(e, request)
            else:
                self._together = min(2 * self._together, self._scheduler.together)
                for tracked in group:
                    self._tell(f"job {tracked.id} was submitted", tracked)

    def submit(self, group: Sequence[Tracked]) -> None:
        """Submits these together, none of which exists."""
        for tracked in group:
            tracked.submitted_as = group[0].job.name
        try:
            ids = self._scheduler.submit_together([t.job for t in group])
        except Refused:
            raise
        except Full as e:
            if len(group) == 1 and not e.surely and not any(t.id for t in self._live()):
                raise Refused(str(e)) from None
            raise
        except Exception:
            for tracked in group:
                tracked.doubtful = True
            raise
        for tracked, id in zip(group, ids, strict=True):
            tracked.id = id
        self._submitted(group)

    def find(self, waiting: Sequence[Tracked]) -> None:
        """Looks up which of those that were submitted without an answer exist. All of them, before any is submitted again:
        what is submitted then may have the name that others are looked for under."""
        doubtful = [t for t in waiting if t.id is None and t.doubtful]
        found = self._scheduler.find_many([t.job.name for t in doubtful]) if doubtful else {}
        for tracked in doubtful:
            tracked.id, tracked.doubtful = found.get(tracked.job.name), False
        if existing := [t for t in doubtful if t.id]:
            self._submitted(existing)
            for tracked in existing:
                self._tell(f"job {tracked.id} was submitted", tracked)

    def allowed(self, waiting: Sequence[Tracked]) -> list[Tracked]:
        """Those of which no job of another run is making the same; the others are asked about again at the next tick."""
        claims, new = self._setup.claims, [t for t in waiting if not t.claimed]
        if claims is None or not new:
            return list(waiting)
        name, place = self._scheduler.name, self._scheduler.place
        answers = claims.ask([Asked(t.context, t.attempt, name, t.job.name, place, t.job.request.time_min) for t in new])
        for tracked, answer in zip(new, answers, strict=True):
            tracked.claimed = answer.start
            if answer.quick:
                tracked.job = small(tracked.job)
            for line in answer.news:
                self._tell(line, tracked)
                relay(f"{RELAYED} step {tracked.attempt.step} {line}")
        return [t for t in waiting if t.claimed]

    def has_no_room(self, error: Full, request: Request) -> None:
        """Tells once why jobs with this request wait."""
        alike = [t for t in self._live() if t.id is None and t.job.request == request]
        known = any(t.told for t in alike)
        for tracked in alike:
            tracked.told = str(error)
        if not known:
            self._complain(f"takes no more jobs of {described(request)} now ({error}); they are tried again, and others go on")

    def _submitted(self, group: Sequence[Tracked]) -> None:
        """Writes down that these jobs exist, in files and leases. They do, whether or not that succeeds."""
        failed: OSError | None = None
        for tracked in group:
            tracked.seen = time.monotonic()
            record = {"backend": self._scheduler.name, "id": tracked.id, "name": tracked.job.name, "submitted_as": tracked.submitted_as}
            record["place"] = self._scheduler.place
            try:
                write_private(self._setup.files.of(tracked.attempt, "job"), json.dumps(record))
            except OSError as e:
                failed = e
        if failed:
            ids = ", ".join(str(t.id) for t in group[:3]) + (f" and {len(group) - 3} more" if len(group) > 3 else "")
            self._complain(f"jobs {ids} run, and that cannot be written down ({failed})")
        if self._setup.claims:
            self._setup.claims.submitted({t.attempt: (str(t.id), t.submitted_as) for t in group})

    def _groups(self, waiting: Sequence[Tracked]) -> Iterator[Sequence[Tracked]]:
        """Those that may be submitted together."""
        alike: dict[Any, list[Tracked]] = {}
        most = self._together  # as it is now: submitting changes it
        for tracked in waiting:
            job = tracked.job
            alike.setdefault((job.request, job.number, job.folder, job.python_path), []).append(tracked)
        for group in alike.values():
            yield from (group[i : i + most] for i in range(0, len(group), most))
