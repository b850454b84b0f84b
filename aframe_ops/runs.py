"""Runs of a run directory: which are dead, and executing one in this process."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.execution.api import execute_run_iterator
from dagster._core.storage.dagster_run import DagsterRunStatus, RunsFilter
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from aframe_assets.partitions import SEGMENTS
from aframe_ops.executor.executor import LOCK_NAME, lock_holder, run_folder
from aframe_ops.run_directory import MODULE
from aframe_ops.site import SiteConfig

STARTUP_S = 300.0
"""A run that was asked for but whose worker has not reached the executor may take this long to get there."""

SIGN_OF_LIFE_S = 600.0
"""A worker on another host that gave a sign of life so recently is taken to live."""

DRIVER_TAG = "aframe/driver"
"""Run tag of the runs that `aframe run` executes."""

_ACTIVE = [DagsterRunStatus.STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.CANCELING]


def _process_lives(pid: int | None) -> bool:
    if pid is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Reaped(NamedTuple):
    """Ids of runs: marked failed, alive, and dead ones that were left because a job of theirs is waited for."""

    dead: list[str]
    alive: list[str]
    left: list[str]


def life(folder: Path) -> str | None:
    """What shows that the worker of the run with this folder lives, in words; None if nothing does.

    Its lock does. Where a shared disk does not pass locks on to other hosts, the worker's signs of life do: it gives one every minute
    while it has steps.
    """
    if holder := lock_holder(folder):
        return f"process {holder['pid']} on {holder['host']} executes it"
    path = folder / LOCK_NAME
    try:
        text, age = path.read_text(), time.time() - path.stat().st_mtime
        host = json.loads(text)["host"] if text else None
    except (OSError, ValueError):
        return None
    if host and host != socket.gethostname() and age < SIGN_OF_LIFE_S:
        return f"its worker on {host} gave a sign of life {max(age, 0):.0f} s ago"
    return None


def reap(
    instance: dg.DagsterInstance,
    site: SiteConfig,
    *,
    locked: bool = False,
    patience: float = 15.0,
    leave: Callable[[str], object] = lambda run_id: False,
    dry_run: bool = False,
) -> Reaped:
    """Marks dead runs failed and frees their pool slots.

    A run lives as long as any of its processes does. One whose worker has gone is given `patience` seconds for its steps
    to end (they do at once: see `forkserver`).

    Args:
        locked: this process holds the directory's run lock, so that runs of `aframe run` are another's no more.
        leave: says of a dead run whether it is left as it is. A step refuses to start in a failed run, so one with a
            job that somebody waits for is.
        dry_run: nothing is marked.
    """
    dead, alive, left = [], [], []
    for record in instance.get_run_records(RunsFilter(statuses=_ACTIVE)):
        run = record.dagster_run
        folder = run_folder(site, run.run_id)
        holder = lock_holder(folder)
        deadline = time.monotonic() + patience
        while holder and holder["host"] == socket.gethostname() and not _process_lives(holder["pid"]) and time.monotonic() < deadline:
            time.sleep(0.1)
            holder = lock_holder(folder)
        reached = (folder / LOCK_NAME).exists() or (locked and run.tags.get(DRIVER_TAG) == "run")
        starting = not reached and time.time() - record.update_timestamp.timestamp() < STARTUP_S
        if starting or life(folder):
            alive.append(run.run_id)
        elif (now := instance.get_run_by_id(run.run_id)) is None or now.status not in _ACTIVE:
            continue  # it has ended since it was listed, and only then let go of its lock
        elif leave(run.run_id):
            left.append(run.run_id)
        else:
            dead.append(run.run_id)
            if not dry_run:
                instance.report_run_failed(run, "The process that executed this run is gone.")
                instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return Reaped(dead, alive, left)


def covering_ranges(instance: dg.DagsterInstance, keys: Iterable[str], without: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Fewest ranges of the stored order, as (first, last) key, that cover `keys` and take in none of `without`."""
    wanted, avoided = set(keys), set(without)
    out: list[tuple[str, str]] = []
    current: tuple[str, str] | None = None
    for key in instance.get_dynamic_partitions(SEGMENTS.name):
        if key in wanted:
            current = (current[0] if current else key, key)
        elif key in avoided and current:
            out.append(current)
            current = None
    return [*out, current] if current else out


def dagster_line(assets: Sequence[str], keys: tuple[str, str] | None) -> str:
    """The `dagster` command that does the same."""
    line = f"dagster asset materialize --select {','.join(assets)}"
    return f"{line} --partition-range {keys[0]}...{keys[1]}" if keys else line


def load_job(assets: Sequence[str]) -> tuple[ReconstructableJob, frozenset[dg.AssetKey]]:
    """The job that makes `assets` of the experiment of ``$AFRAME_CONFIG`` as it is now, and what it makes."""
    # The module holds the graph of the experiment that there was when it was imported, Dagster the job that it was last asked for: both
    # may be those of an earlier run of this process.
    sys.modules.pop(MODULE, None)
    ReconstructableJob.get_repository_definition.cache_clear()
    ReconstructableJob.get_definition.cache_clear()
    selection = frozenset(dg.AssetKey(a) for a in assets)
    repository = ReconstructableRepository.for_module(MODULE, "defs", working_directory=os.getcwd())
    implicit = repository.get_definition().get_implicit_job_def_for_assets(selection)
    return repository.get_reconstructable_job(implicit.name).get_subset(asset_selection=selection), selection


def execute(
    instance: dg.DagsterInstance,
    assets: Sequence[str],
    keys: tuple[str, str] | None,
    *,
    started: Callable[[str], None],
) -> Iterator[dg.DagsterEvent]:
    """Executes one run of `assets` in this process, as `dagster asset materialize` would; yields its events.

    Args:
        keys: first and last partition, in stored order; None when no asset is partitioned.
        started: called with the run's id before anything happens.
    """
    job, selection = load_job(assets)
    all_tags = {DRIVER_TAG: "run"}
    if keys:
        all_tags |= {ASSET_PARTITION_RANGE_START_TAG: keys[0], ASSET_PARTITION_RANGE_END_TAG: keys[1]}
    run = instance.create_run_for_job(
        job_def=job.get_definition(),
        run_config={},
        tags=all_tags,
        job_code_origin=job.get_python_origin(),
        asset_selection=selection,
    )
    started(run.run_id)
    yield from execute_run_iterator(job, run, instance)
