"""`aframe verify`, `prune` and `adopt`: what the store holds is whole, no more than is needed, and may come from elsewhere."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aframe_assets.config_load import ConfigError
from aframe_assets.store.leftovers import Leftover, find_leftovers
from aframe_assets.store.verifying import verify_store
from aframe_ops.cli.progress import duration, size
from aframe_ops.cli.running import only_one, open_instance
from aframe_ops.run_directory import RunDirectory

if TYPE_CHECKING:
    from dagster import DagsterInstance


def verify_all(run: RunDirectory, console: Console, assets: Iterable[str], segments: Iterable[str], *, mark: bool, as_json: bool) -> bool:
    """Reads every byte of the store's artifacts; whether all are as recorded.

    Raises:
        ConfigError: no such asset in the store, or nothing of such a segment.
    """
    store, segments = run.workspace().store, set(segments)
    there = store.assets()
    if unknown := sorted(set(assets) - set(there)):
        raise ConfigError(f"--asset {unknown[0]}: nothing of it is in {store.url}; there are {', '.join(there) or 'no artifacts'}")
    chosen = sorted(assets) or there
    # that nothing was read must not look as if all were well
    if unknown := segments and sorted(segments.difference(*(store.manifests(a) for a in chosen))):
        raise ConfigError(f"--segment {unknown[0]}: nothing of it is in {store.url}; see `aframe segments list`")
    count, nbytes, bad = 0, 0, []
    for found in verify_store(store, chosen, segments, mark):
        count, nbytes = count + 1, nbytes + found.nbytes
        if found.problems:
            bad.append(found)
            if not as_json:
                console.print(f"{found.label}: {'; '.join(found.problems)}", style="red", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps({"store": store.url, "verified": count, "nbytes": nbytes, "damaged": [asdict(f) for f in bad]}, indent=1))
        return not bad
    console.print(
        f"{count:,} artifact{'' if count == 1 else 's'}, {size(nbytes)}: {f'{len(bad)} damaged' if bad else 'every file is as recorded'}"
    )
    if any(f.condemned for f in bad):
        console.print("what is damaged counts as failed now; `aframe run` makes it again")
    return not bad


def prune(run: RunDirectory, console: Console, *, yes: bool, older_than: float, runs_days: float | None, as_json: bool) -> None:
    """Shows what no manifest needs and, with `yes`, removes it.

    Args:
        older_than: seconds; what was written more recently stays.
        runs_days: Dagster's records and the logs of runs that ended so many days ago, too; None: not of any.

    Raises:
        ConfigError: `aframe run` is at work here, or Dagster's database cannot be opened for `runs_days`.
        StoreError: the store cannot be read.
    """
    store = run.workspace().store

    def say(text: str) -> None:
        typer.echo(text, err=as_json)

    found = [x for part in getattr(store, "parts", (store,)) for x in find_leftovers(part, older_than, say)]
    with contextlib.ExitStack() as stack:
        if runs_days is not None:
            run.activate()
            found += _old_runs(run, stack.enter_context(open_instance(run)), runs_days * 86400.0)
        _prune(run, found, console, yes=yes, as_json=as_json)


def _prune(run: RunDirectory, found: list[Leftover], console: Console, *, yes: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([{"why": x.why, "address": x.address, "nbytes": x.nbytes, "age_s": round(x.age_s)} for x in found], indent=1))
    else:
        _show(found, console)
    if not found:
        return
    if not yes:
        typer.echo("nothing was removed; `aframe prune --yes` removes these", err=as_json)
        return
    with only_one(run):
        for one in found:
            one.remove()
    typer.echo(f"removed: {len(found)}, {size(sum(x.nbytes for x in found))}", err=as_json)


def adopt_files(run: RunDirectory, console: Console, asset: str, files: Sequence[Path], sums: Path | None) -> None:
    """Makes files that are there already artifacts of the run. Raises as `aframe_ops.adopting.adopt`."""
    from aframe_ops.adopting import adopt

    workspace = run.workspace()
    with only_one(run):
        there = {p: m.handle for p, m in workspace.store.manifests(asset).items()} if asset in workspace.graph else {}
        taken = adopt(workspace, asset, files, sums)
    for path, handle in taken.items():
        words = "was complete already" if there.get(handle.partition) == handle else f"is {handle.label}, {size(handle.nbytes)}"
        console.print(f"{path}: {words}", soft_wrap=True)


def _show(found: list[Leftover], console: Console) -> None:
    by_why = defaultdict(list)
    for one in found:
        by_why[one.why].append(one)
    if not found:
        console.print("nothing is left over")
        return
    for why, those in by_why.items():
        console.print(Text.assemble((why, "bold"), f": {len(those)}, {size(sum(x.nbytes for x in those))}"))
        table = Table(box=None, pad_edge=False, show_header=False)
        for one in those[:20]:
            table.add_row(f"  {one.address}", size(one.nbytes), f"{duration(one.age_s)} old")
        console.print(table)
        if len(those) > 20:
            console.print(f"  and {len(those) - 20} more; --json lists all")


def _old_runs(run: RunDirectory, instance: DagsterInstance, older_s: float) -> list[Leftover]:
    """Runs that ended so many seconds ago: Dagster's records of them and the output of their steps. No artifact is of a run."""
    from dagster import DagsterRunStatus, RunsFilter

    ended = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
    out = []
    for record in instance.get_run_records(RunsFilter(statuses=ended)):
        age = time.time() - (record.end_time or record.update_timestamp.timestamp())
        if age < older_s:
            continue
        run_id = record.dagster_run.run_id
        logs = run.path / "logs" / run_id
        nbytes = sum(p.stat().st_size for p in logs.rglob("*") if p.is_file()) if logs.is_dir() else 0

        def remove(run_id: str = run_id) -> None:
            instance.delete_run(run_id)
            shutil.rmtree(run.path / "logs" / run_id, ignore_errors=True)

        out.append(Leftover("a run that ended: Dagster's record and its logs", f"run {run_id}", nbytes, age, remove))
    return out
