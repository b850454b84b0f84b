"""Jobs of other runs, asked about through their own batch systems: which are over, and which are taken to go on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from aframe_assets.store.leases import Lease
from aframe_ops.executor.scheduler import JobState, Phase, Refused, Scheduler, Unreachable
from aframe_ops.executor.schedulers import BY_RUN, SCHEDULERS
from aframe_ops.site import SiteConfig

UNKNOWN_S = 60.0
"""A job that its batch system has not known for so long is gone; before, it may only be on its way there."""

RETRY_S = 20.0
"""Seconds until a batch system that did not answer is asked again."""

ELSEWHERE_S = 86400.0
"""How much longer than its time limit the job of a batch system that cannot be asked from here is taken to go on: it queues too."""


def now() -> str:
    """The time as leases hold it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def age_s(when: str) -> float:
    """Seconds since `when`, by this host's clock; infinite for what is no time."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(when)).total_seconds()
    except (ValueError, TypeError):
        return float("inf")


def described(lease: Lease) -> str:
    """The job of a lease in words."""
    return f"{lease.backend} job {lease.job or lease.name} of run {lease.run[:8]} (since {lease.when}, {lease.user} on {lease.host})"


def elsewhere(place: str, scheduler: Scheduler) -> str:
    """Why `scheduler` knows nothing of jobs of `place`, in words; empty where it does, or where a place is not known."""
    if place and scheduler.place and place != scheduler.place:
        return f"it is a job of {place}, and here {scheduler.place} is asked"
    return ""


def identified(scheduler: Scheduler, jobs: Sequence[tuple[str | None, str]]) -> list[str | None]:
    """The ids of jobs, as far as the batch system still has them; raises Unreachable.

    Ids of two clusters, or of two years, may be equal, and names are not.

    Args:
        jobs: the id that was written down, if one was, and the name that the job was submitted under; the id of a job in an
            array begins with what the array is found as.
    """
    found = scheduler.find_many(sorted({name for _, name in jobs})) if jobs else {}
    return [_fitting(job, found.get(name)) for job, name in jobs]


def _fitting(job: str | None, found: str | None) -> str | None:
    if found is None or job is None or job == found:
        return found
    return job if job.startswith(f"{found}_") else None


@dataclass
class _Watched:
    lease: Lease
    id: str | None = None
    over: bool = False
    unknown_since: float | None = None
    trouble: str = ""


class Watch:
    """Jobs of other runs, asked about all at once and not more often than every `poll_s` seconds.

    A batch system that does not answer says nothing about its jobs: they are taken to go on. So are those that it has not
    been asked about yet.
    """

    def __init__(self, site: SiteConfig, poll_s: float):
        self._site, self._poll_s = site, poll_s
        self._watched: dict[str, _Watched] = {}
        self._schedulers: dict[tuple[str, str], Scheduler] = {}
        self._next: dict[tuple[str, str], float] = {}

    def scheduler(self, backend: str, run: str) -> Scheduler:
        """The batch system for the jobs of a run. Raises Refused where this site has none of that name."""
        if backend not in SCHEDULERS:
            raise Refused(f"no batch system {backend!r} is known here")
        group = asked_as(backend, run)
        if group not in self._schedulers:
            self._schedulers[group] = SCHEDULERS[backend](self._site, run)
        return self._schedulers[group]

    def over(self, leases: Iterable[Lease]) -> set[str]:
        """Names of those of these jobs that have ended or are gone."""
        asked = []
        for lease in {lease.name: lease for lease in leases}.values():
            watched = self._watched.setdefault(lease.name, _Watched(lease))
            watched.lease = lease
            asked.append(watched)
        moment = time.monotonic()
        for group in {asked_as(w.lease.backend, w.lease.run) for w in asked if not w.over}:
            if moment >= self._next.get(group, 0.0):
                self._ask(group)
        return {w.lease.name for w in asked if w.over}

    def trouble(self, lease: Lease) -> str:
        """Why nothing is known about the job; empty if something is."""
        return self._watched[lease.name].trouble

    def how_to_stop(self, lease: Lease) -> str:
        """What the user would type to end the job."""
        id = self._watched[lease.name].id or lease.job
        try:
            return self.scheduler(lease.backend, lease.run).cancel_words.format(id or lease.name)
        except Refused:
            return f"cancel it on {lease.host}"

    def _ask(self, group: tuple[str, str]) -> None:
        mates = [w for w in self._watched.values() if asked_as(w.lease.backend, w.lease.run) == group and not w.over]
        moment = time.monotonic()
        self._next[group] = moment + self._poll_s
        try:
            scheduler = self.scheduler(group[0], mates[0].lease.run)
            for w in mates:
                w.trouble = elsewhere(w.lease.place, scheduler)
                w.over = bool(w.trouble) and age_s(w.lease.when) > 60 * w.lease.time_min + ELSEWHERE_S
            mates = [w for w in mates if not w.trouble]
            for w in mates:
                w.id = w.id or w.lease.job
            nameless = [w for w in mates if not w.id]
            names = [(None, w.lease.submitted_as or w.lease.name) for w in nameless]
            for w, id in zip(nameless, identified(scheduler, names), strict=True):
                w.id = id
            ids = [w.id for w in mates if w.id]
            states = scheduler.watch(ids) if ids else {}
        except (Unreachable, Refused) as e:
            self._next[group] = time.monotonic() + max(RETRY_S, self._poll_s)
            for w in mates:
                w.trouble = str(e)
            return
        for w in mates:
            self._note(w, states.get(w.id) if w.id else None, moment)

    def _note(self, watched: _Watched, state: JobState | None, moment: float) -> None:
        watched.trouble, lease = "", watched.lease
        if state is not None:
            watched.unknown_since, watched.over = None, state.phase is Phase.ENDED
            return
        watched.unknown_since = watched.unknown_since or moment
        submitted_long_ago = lease.job is not None and age_s(lease.when) > UNKNOWN_S
        watched.over = submitted_long_ago or moment - watched.unknown_since >= UNKNOWN_S


def asked_as(backend: str, run: str) -> tuple[str, str]:
    """Equal for jobs that one `Scheduler` can be asked about at once."""
    return backend, run if backend in BY_RUN else ""
