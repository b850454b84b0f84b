"""Leases of batch jobs as a run sees them: taken before a job is submitted, met, waited for, taken over, given back.

A lease lies under the completeness key of every artifact that the step is to make, and not under one key for the step. A
mapped step makes a chunk of segments, and where a chunk begins depends on what was complete when its run started: after a
crash the chunks are others, while the artifacts in them are the same. So a chunk of 16 segments has 16 leases of one job,
and a new chunk waits for every job that makes something of it. Keys are taken all or none, which cannot deadlock.

Steps that plan, collect or check have no lease: they take seconds, and what they hand on belongs to their run.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from aframe_assets.store.errors import StoreError
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.io_managers import decode, step_value
from aframe_assets.store.leases import Found, Lease, Leases
from aframe_assets.store.opening import open_store
from aframe_assets.store.work import WORK_TAG, is_mapped, work_of
from aframe_assets.store.workspace import MissingArtifact, Workspace
from aframe_ops.executor.base import Attempt
from aframe_ops.leases_watch import Watch, age_s, described, now
from aframe_ops.site import SiteConfig

if TYPE_CHECKING:
    from dagster._core.execution.context.system import IStepContext

    from aframe_assets.config import Config

log = logging.getLogger(__name__)
T, R = TypeVar("T"), TypeVar("R")

SIGN_S = 60.0
"""How often a run that waits says in the lease that it still does."""

_FRESH_S = 30.0
"""So long may what is known of the store's manifests be used for computing keys."""

LOOK_S = 30.0
"""How often a run that waits asks the store whether what it waits for is complete, although the job that makes it goes on."""

_PARALLEL = 16


def leases_of(site: SiteConfig) -> Leases:
    """The leases in the store of `site`."""
    return Leases(open_store(site.store_url, cache_dir=site.cache_dir, cache_bytes=int(site.store.cache_gb * 1e9)))


class Answer(NamedTuple):
    """Whether a step's job may be submitted.

    Attributes:
        start: it may.
        quick: what the step makes is complete, so the job only reads it.
        news: lines for the user, each given once.
    """

    start: bool
    quick: bool = False
    news: tuple[str, ...] = ()


class Asked(NamedTuple):
    """A step that wants to be submitted to `backend` as the job `job_name`; `place` and `time_min` as in `Lease`."""

    context: IStepContext
    attempt: Attempt
    backend: str
    job_name: str
    place: str = ""
    time_min: int = 0


@dataclass
class _Claim:
    step: Asked
    work: list[KeyParts]
    held: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    waited: bool = False
    met: dict[str, str] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)


class Claims:
    """What the batch jobs of one run hold, and what they wait for.

    Args:
        site: where the store is, and how to reach batch systems.
        config: the experiment.
        run_id: the run.
    """

    def __init__(self, site: SiteConfig, config: Config, run_id: str):
        self._site, self._config, self._run = site, config, run_id
        self._leases = leases_of(site)
        self._watch = Watch(site, site.executor.poll_seconds)
        self._claims: dict[Attempt, _Claim] = {}
        self._found: dict[str, tuple[str, Found]] = {}
        self._looked = 0.0
        self._workspace: tuple[float, Workspace] | None = None
        self._complained = False

    def ask(self, steps: Sequence[Asked]) -> list[Answer]:
        """Takes the leases of each step's work, unless the job of another run has one; then the step has to ask again."""
        for step in steps:
            if step.attempt not in self._claims:
                self._claims[step.attempt] = _Claim(step, self._work(step.context))
        claims = [self._claims[step.attempt] for step in steps]
        try:
            answers = self._take([claim for claim in claims if claim.work])
        except StoreError as e:
            news = () if self._complained else (f"leases cannot be kept ({e}); another run may do the same work beside this one",)
            self._complained = True
            return [Answer(True, news=news if i == 0 else ()) for i in range(len(steps))]
        return [answers.get(step.attempt, Answer(True)) for step in steps]

    def submitted(self, jobs: Mapping[Attempt, tuple[str, str]]) -> None:
        """Writes into the leases of each attempt its job's id, and the name that it was submitted under."""

        def write(attempt: Attempt, key: str) -> None:
            lease, mark = self._leases.get(key)
            if lease is not None and lease.name == self._claims[attempt].step.job_name:
                job, name = jobs[attempt]
                self._leases.put(key, lease.model_copy(update={"job": job, "submitted_as": name}), mark)

        self._quietly(write, jobs)

    def release(self, attempt: Attempt) -> None:
        """Gives the attempt's leases back: its job has ended, or was never submitted."""
        self._quietly(lambda attempt, key: self._leases.drop(key, self._claims[attempt].step.job_name), [attempt])
        if attempt in self._claims:
            self._claims[attempt].held = []

    def _quietly(self, do: Callable[[Attempt, str], None], attempts: Iterable[Attempt]) -> None:
        held = [(attempt, key) for attempt in attempts if attempt in self._claims for key in self._claims[attempt].held]
        try:
            _at_once(lambda item: do(*item), held)
        except (StoreError, OSError) as e:
            log.warning("leases of %s are left as they are: %s", held[0][0], e)

    def _take(self, claims: Sequence[_Claim]) -> dict[Attempt, Answer]:
        answers: dict[Attempt, Answer] = {}
        # Leases first: what makes an artifact gives its lease back when that is complete.
        found = self._find([p.key for claim in claims for p in claim.work])
        met = {claim.step.attempt: self._others(claim, found) for claim in claims}
        over = self._watch.over(lease for others in met.values() for lease in others.values())
        live = {a: {key: lease for key, lease in others.items() if lease.name not in over} for a, others in met.items()}
        held_up = {claim.step.attempt for claim in claims if live[claim.step.attempt].keys() - claim.done}
        wanted = self._incomplete(claims, held_up)
        takes: list[tuple[_Claim, str, Lease, str | None]] = []
        waits: dict[str, Lease] = {}
        for claim in claims:
            attempt, parts = claim.step.attempt, wanted[claim.step.attempt]
            if not parts:
                answers[attempt] = self._quick(claim)
                continue
            others = {p.key: met[attempt][p.key] for p in parts if p.key in met[attempt]}
            if waited := {key: lease for key, lease in others.items() if key in live[attempt]}:
                claim.waited = True
                claim.met |= {key: lease.name for key, lease in waited.items()}
                waits |= waited
                answers[attempt] = Answer(False, news=tuple(self._words(claim, waited)))
                continue
            gone = {lease.name: lease for lease in others.values()}.values()
            answers[attempt] = Answer(True, news=tuple(f"takes over from {described(g)}, which is gone or has not made it" for g in gone))
            takes += [(claim, p.key, self._lease(claim, p), found[p.key].mark) for p in parts]
        self._sign(found, waits)
        taken = _at_once(lambda take: self._leases.put(*take[1:]), takes)
        for (claim, key, *_), done in zip(takes, taken, strict=True):
            claim.held += [key] if done else []
        for attempt in {take[0].step.attempt for take, done in zip(takes, taken, strict=True) if not done}:
            self._claims[attempt].waited = True  # another run was faster with some of them
            self.release(attempt)
            answers[attempt] = Answer(False)
        return answers

    def _incomplete(self, claims: Sequence[_Claim], held_up: Collection[Attempt]) -> dict[Attempt, list[KeyParts]]:
        """What is still to be made of each claim; of those that are `held_up` by a job that goes on, as it was lately."""
        look = time.monotonic() - self._looked >= LOOK_S
        if look:
            self._looked = time.monotonic()
        # A chunk was planned a moment ago from what was incomplete; only after a wait can that have changed.
        doubted = [c for c in claims if (c.waited and (look or c.step.attempt not in held_up)) or (not c.waited and len(c.work) == 1)]
        complete = self._complete([p for c in doubted for p in c.work])
        for claim in doubted:
            claim.done = complete.intersection(p.key for p in claim.work)
        return {c.step.attempt: [p for p in c.work if p.key not in c.done] for c in claims}

    def _complete(self, parts: Sequence[KeyParts]) -> set[str]:
        store, groups = self._leases.store, {}
        for p in parts:
            groups.setdefault(p.asset, {})[p.key] = p
        complete: set[str] = set()
        for group in groups.values():
            doubted = list(group.values())
            many = len(doubted) > _PARALLEL
            there = store.complete_many(doubted).values() if many else _at_once(store.complete, doubted)
            complete |= {handle.key for handle in there if handle is not None}
        return complete

    def _find(self, keys: Sequence[str]) -> dict[str, Found]:
        """The leases of `keys`. Of many, one listing says which there are, and only what has changed is read again."""
        wanted = dict.fromkeys(keys, Found(None, None))
        if len(wanted) <= _PARALLEL:
            return wanted | dict(zip(wanted, _at_once(self._leases.get, list(wanted)), strict=True))
        stamps = {key: stamp for key, stamp in self._leases.stamps().items() if key in wanted}
        new = [key for key, stamp in stamps.items() if self._found.get(key, ("",))[0] != stamp]
        self._found |= {key: (stamps[key], found) for key, found in zip(new, _at_once(self._leases.get, new), strict=True)}
        return wanted | {key: self._found[key][1] for key in stamps}

    def _quick(self, claim: _Claim) -> Answer:
        self.release(claim.step.attempt)
        _at_once(lambda met: self._leases.drop(*met), list(claim.met.items()))  # of a run that cannot give them back itself
        return Answer(True, quick=True, news=("what it makes is complete; its job only reads it",) if claim.waited else ())

    def _others(self, claim: _Claim, found: Mapping[str, Found]) -> dict[str, Lease]:
        """Leases of other steps. That of an earlier attempt is our own: there is a new one only if that has ended."""
        mine = self._run, claim.step.attempt.step
        return {p.key: lease for p in claim.work if (lease := found[p.key].lease) and (lease.run, lease.step) != mine}

    def _lease(self, claim: _Claim, parts: KeyParts) -> Lease:
        return Lease(
            backend=claim.step.backend,
            place=claim.step.place,
            name=claim.step.job_name,
            run=self._run,
            step=claim.step.attempt.step,
            attempt=claim.step.attempt.number,
            host=socket.gethostname(),
            user=_user(),
            directory=str(self._site.directory),
            when=now(),
            time_min=claim.step.time_min,
            asset=parts.asset,
            partition=parts.partition,
        )

    def _sign(self, found: Mapping[str, Found], waits: Mapping[str, Lease]) -> None:
        """Says in one lease of each job that this run waits for it."""
        jobs: dict[str, list[str]] = {}
        for key, lease in waits.items():
            jobs.setdefault(lease.name, []).append(key)

        def sign(key: str) -> None:
            lease = waits[key]
            self._leases.put(key, lease.model_copy(update={"waiters": {**lease.waiters, self._run: now()}}), found[key].mark)

        def unsigned(keys: Iterable[str]) -> bool:
            return all(age_s(waits[key].waiters.get(self._run, "")) > SIGN_S for key in keys)

        _at_once(sign, [keys[0] for keys in jobs.values() if unsigned(keys)])

    def _words(self, claim: _Claim, live: dict[str, Lease]) -> Iterable[str]:
        for key, lease in {lease.name: (k, lease) for k, lease in live.items()}.values():
            if lease.name not in claim.told:
                claim.told.add(lease.name)
                stop = self._watch.how_to_stop(lease)
                yield f"waits for {described(lease)}, which makes the same; to end that job: {stop}; to wait no longer: Ctrl-C"
            trouble = self._watch.trouble(lease)
            if trouble and lease.name + trouble not in claim.told:
                claim.told.add(lease.name + trouble)
                yield (
                    f"{lease.backend} does not say what became of job {lease.job or lease.name} ({trouble}), which is taken to go on; "
                    f"if it is gone for good, remove {self._leases.address(key)}"
                )

    def _work(self, context: IStepContext) -> list[KeyParts]:
        tag = (context.step.tags or {}).get(WORK_TAG)
        if tag is None:
            return []
        try:
            value = self._given(context) if is_mapped(tag) else None
            try:
                return work_of(tag, self._seen(), value)
            except MissingArtifact:  # it may have been made since
                return work_of(tag, self._seen(again=True), value)
        except (MissingArtifact, StoreError, OSError) as e:
            log.info("no lease for step %s: %s", context.step.key, e)  # the step itself says what is wrong
            return []

    def _given(self, context: IStepContext) -> Any:
        """What a mapped step is given by the step that planned it."""
        for given in context.step.step_inputs:
            handle = getattr(given.source, "step_output_handle", None)
            if handle is not None and handle.mapping_key:
                name = step_value([self._run, handle.step_key, handle.output_name, handle.mapping_key])
                return decode(self._leases.store.get_value(name))
        raise StoreError(f"step {context.step.key} is mapped over nothing")

    def _seen(self, again: bool = False) -> Workspace:
        if again or self._workspace is None or time.monotonic() - self._workspace[0] > _FRESH_S:
            self._workspace = time.monotonic(), Workspace(self._config, self._leases.store)
        return self._workspace[1]


def _at_once(do: Callable[[T], R], items: Sequence[T]) -> list[R]:
    if len(items) < 2:
        return [do(item) for item in items]
    with ThreadPoolExecutor(min(_PARALLEL, len(items))) as pool:
        return list(pool.map(do, items))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a passwd entry
        return str(os.getuid())
