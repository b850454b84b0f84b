"""Batch jobs whose run is over: which there are, who waits for them, and ending those that nobody waits for.

Only jobs of this run directory's own runs are touched; those of others are known from the store's leases, and left alone.
Everything is looked up before anything is cancelled, and what cannot be looked up is left as it is.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg

from aframe_assets.store.errors import StoreError
from aframe_assets.store.leases import Found, Lease
from aframe_ops.executor.executor import LOCK_NAME, run_folder
from aframe_ops.executor.mailbox import LEFT_NAME, discard
from aframe_ops.executor.scheduler import JobState, Phase, Refused, Scheduler, Unreachable
from aframe_ops.leases import leases_of
from aframe_ops.leases_watch import Watch, age_s, asked_as, elsewhere, identified
from aframe_ops.runs import SIGN_OF_LIFE_S, life, reap
from aframe_ops.site import SiteConfig

GONE_S = 3600.0
"""A job that was submitted so long ago and that is gone is asked about no more; a younger one may be on its way there."""


class Unsure(Exception):
    """It cannot be said which runs live, so nothing was done; the words say why."""


@dataclass
class Leftover:
    """A batch job of a run that is over.

    Attributes:
        backend, name, submitted_as, id: the job; the id is None where it was not written down.
        run, step: whose it is.
        place: which batch system of that kind has it; empty where it is not known.
        leases: what the store holds under the keys of its work.
        record: the file that says that it was submitted; None for one that is known from its leases.
        state: what the batch system says; None before it is asked, and where it does not know the job.
        outcome: what was done or found, for the user.
    """

    backend: str
    name: str
    submitted_as: str
    id: str | None
    run: str
    step: str
    place: str = ""
    leases: dict[str, Found] = field(default_factory=dict)
    record: Path | None = None
    state: JobState | None = None
    outcome: str = ""


@dataclass(frozen=True)
class Report:
    """What `reap_all` did, or would do.

    Attributes:
        dead: runs that were marked failed.
        left: dead runs that were not, since a job of theirs is waited for.
        alive: what shows that a run lives, by its id.
        jobs: jobs of runs that are over and that their batch systems still had, or could not be asked about.
        foreign: leases of other run directories.
    """

    dead: list[str]
    left: list[str]
    alive: dict[str, str]
    jobs: list[Leftover]
    foreign: list[Lease]


class GoingOn:
    """Says which leased jobs of a run are queued or running; a batch system, or a store, that does not answer counts as yes."""

    def __init__(self, site: SiteConfig):
        self._site, self._watch = site, Watch(site, 0.0)
        self._live: list[Lease] | None = None

    def __call__(self, run_id: str) -> list[str]:
        """Backend and id of each."""
        if self._live is None:  # all runs at once
            try:
                leases = {lease.name: lease for lease in leases_of(self._site).all().values()}
            except StoreError as e:
                return [f"not known, since the store cannot be asked ({_first_line(e)})"]
            over = self._watch.over(leases.values())
            self._live = [lease for lease in leases.values() if lease.name not in over]
        return [f"{lease.backend} {lease.job or lease.name}" for lease in self._live if lease.run == run_id]


def reap_all(instance: dg.DagsterInstance, site: SiteConfig, *, dry_run: bool = False) -> Report:
    """Marks dead runs failed, and cancels batch jobs whose run is over and that no live run waits for.

    A run is over when the database says so, or does not know it, or when its worker is gone; and it lives, whatever the
    database says, as long as `life` shows it.

    Raises:
        Unsure: the database or the store does not answer.
    """
    alive: dict[str, str] = {}
    jobs, foreign = _leftovers(instance, site, alive)
    watch = Watch(site, 0.0)
    _look_up(jobs, watch)
    waited = {job.run for job in jobs if _queued(job) and _waiter(site, job)}
    try:
        runs = reap(instance, site, leave=waited.__contains__, dry_run=dry_run)
    except Exception as e:
        raise Unsure(f"the event database does not answer ({_first_line(e)}); nothing was done") from e
    for run_id in runs.alive:
        alive.setdefault(run_id, life(run_folder(site, run_id)) or "it has just been started")
    for job in jobs:
        if not job.outcome:
            job.outcome = _end(job, site, watch, dry_run)
        elif job.outcome == _GONE and not dry_run:
            _ask_no_more(job)
    if not dry_run and any(site.executor.transport_of(backend) == "detached" for backend in site.executor.backends):
        marks = [path for path in site.logs.glob(f"*/{LEFT_NAME}") if path.parent.name not in waited]
        with contextlib.suppress(StoreError):  # the next time, then
            discard(
                site.store_url, {*runs.dead, *(job.run for job in jobs), *(mark.parent.name for mark in marks)} - waited, site.cache_dir
            )
            for mark in marks:
                mark.unlink(missing_ok=True)
    return Report(runs.dead, runs.left, alive, [job for job in jobs if job.outcome != _GONE], foreign)


def _leftovers(instance: dg.DagsterInstance, site: SiteConfig, alive: dict[str, str]) -> tuple[list[Leftover], list[Lease]]:
    """Jobs of runs that are over, whether or not they still exist; and the leases of other run directories."""
    book, jobs, foreign = leases_of(site), {job.name: job for job in _recorded(site)}, []
    try:
        leases = {key: book.get(key) for key in book.all()}
    except (StoreError, OSError) as e:
        raise Unsure(f"the store cannot be read ({_first_line(e)}), so it is not known who waits for what; nothing was done") from e
    for key, found in leases.items():
        lease = found.lease
        if lease is None:
            continue
        if lease.name not in jobs:
            here = lease.directory == str(site.directory) and lease.host == socket.gethostname()
            if not here and not run_folder(site, lease.run).is_dir():
                foreign.append(lease)
                continue
            name = lease.submitted_as or lease.name
            jobs[lease.name] = Leftover(lease.backend, lease.name, name, lease.job, lease.run, lease.step, lease.place)
        jobs[lease.name].leases[key] = found
    over = {run_id: _over(instance, site, run_id, alive) for run_id in {job.run for job in jobs.values()}}
    return [job for job in jobs.values() if over[job.run]], foreign


def _recorded(site: SiteConfig) -> Iterator[Leftover]:
    """Jobs that were submitted, that have not written how they ended, and that were not found to be gone long ago."""
    for path in site.logs.glob("*/*.job"):
        if not path.with_suffix(".usage").exists() and not path.with_suffix(".over").exists():
            try:
                said = json.loads(path.read_text())
                place = said.get("place", "")
                about = said["backend"], said["name"], said["submitted_as"], said["id"], path.parent.name, path.stem
                yield Leftover(*about, place, record=path)
            except (OSError, ValueError, KeyError):  # being written; its run lives
                continue


def _over(instance: dg.DagsterInstance, site: SiteConfig, run_id: str, alive: dict[str, str]) -> bool:
    folder = run_folder(site, run_id)
    if words := life(folder):
        alive[run_id] = words
        return False
    try:
        run = instance.get_run_by_id(run_id)
    except Exception as e:
        raise Unsure(f"the event database does not answer ({_first_line(e)}); nothing was done") from e
    if run is None or run.is_finished or (folder / LOCK_NAME).exists():
        return True
    alive[run_id] = f"the database says {run.status.value}, and it has not begun here"
    return False


_GONE = "is gone"


def _look_up(jobs: list[Leftover], watch: Watch) -> None:
    """Asks each batch system about its jobs; says in `outcome` which are gone, and which it does not speak of."""
    groups: dict[tuple[str, str], list[Leftover]] = {}
    for job in jobs:
        groups.setdefault(asked_as(job.backend, job.run), []).append(job)
    for (backend, _), mates in groups.items():
        try:
            _ask(watch.scheduler(backend, mates[0].run), mates)
        except (Unreachable, Refused) as e:
            for job in mates:
                job.outcome = f"left as it is: {backend} does not answer ({_first_line(e)})"


def _ask(scheduler: Scheduler, jobs: list[Leftover]) -> None:
    for job in jobs:
        if words := elsewhere(job.place, scheduler):
            job.outcome = f"left as it is: {words}"
    jobs = [job for job in jobs if not job.outcome]
    nameless = [job for job in jobs if job.id is None]
    for job, id in zip(nameless, identified(scheduler, [(None, job.submitted_as) for job in nameless]), strict=True):
        job.id = id
    ids = [job.id for job in jobs if job.id]
    states = scheduler.watch(ids) if ids else {}
    for job in jobs:
        job.state = states.get(job.id) if job.id else None
    queued = [job for job in jobs if _queued(job)]
    same = identified(scheduler, [(job.id, job.submitted_as) for job in queued])
    ours = {job.name for job, id in zip(queued, same, strict=True) if id == job.id}
    for job in jobs:
        if job.name not in ours:
            job.outcome, job.state = _GONE, None


def _queued(job: Leftover) -> bool:
    return job.state is not None and job.state.phase is not Phase.ENDED


def _waiter(site: SiteConfig, job: Leftover) -> str | None:
    """A live run that waits for the job."""
    for found in job.leases.values():
        for run_id, when in found.lease.waiters.items() if found.lease else ():
            if run_folder(site, run_id).is_dir():
                if life(run_folder(site, run_id)):
                    return run_id
            elif age_s(when) < SIGN_OF_LIFE_S:  # of another run directory: its own word is all that is known
                return run_id
    return None


def _end(job: Leftover, site: SiteConfig, watch: Watch, dry_run: bool) -> str:
    if waiter := _waiter(site, job):
        return f"left to go on: run {waiter[:8]} waits for it"
    if dry_run:
        return "would be cancelled"
    book = leases_of(site)
    try:
        for key, found in job.leases.items():
            if found.lease is not None and not book.put(key, found.lease.model_copy(update={"job": job.id}), found.mark):
                return "left as it is: its lease has changed meanwhile"
        watch.scheduler(job.backend, job.run).cancel([str(job.id)])
        for key in job.leases:
            book.drop(key, job.name)
    except (Unreachable, Refused) as e:
        return f"left as it is: {job.backend} does not answer ({_first_line(e)})"
    except (StoreError, OSError) as e:
        return f"left as it is: its lease cannot be written ({_first_line(e)})"
    return "cancelled"


def _ask_no_more(job: Leftover) -> None:
    """Notes that a job is gone; else every one that ever was would be asked about each time."""
    with contextlib.suppress(OSError):  # the next time, then
        if job.record is not None and time.time() - job.record.stat().st_mtime > GONE_S:
            job.record.with_suffix(".over").touch()


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
