"""`aframe segments list`, `sync` and `retire`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from aframe_assets.config_load import ConfigError
from aframe_assets.lineage import ROLES
from aframe_assets.store.workspace import MissingArtifact, Workspace
from aframe_ops.selecting import FAILED, MISSING, select

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from aframe_ops.run_directory import RunDirectory
    from aframe_ops.segment_changes import Change
    from aframe_ops.site import SiteConfig


RETIRED = "aframe segments list --retired"


def show_segments(workspace: Workspace, *, role: str | None, as_json: bool, segments: Sequence[str] = (), retired: bool = False) -> None:
    """The segments table, a line each, the key first.

    Args:
        role: only of this one.
        segments: only these, see `aframe_ops.selecting.select`.
        retired: those that were taken out, with date and reason.

    Raises:
        ConfigError: there is none yet, or no such role or segments.
    """
    if role is not None and role not in ROLES:
        raise ConfigError(f"--role {role}: expected {', '.join(ROLES)}")
    try:
        rows = workspace.rows()
    except MissingArtifact as e:
        raise ConfigError(str(e)) from None
    if retired:
        rows = _retired(workspace)
        rows = {p: rows[p] for p in select(rows, segments, see=RETIRED)} if segments else rows
    elif segments:
        rows = {p: rows[p] for p in _selected(workspace, segments)}
    rows = {p: r for p, r in rows.items() if role in (None, r["role"])}
    if as_json:
        typer.echo(json.dumps([{"partition": p, **r} for p, r in rows.items()], indent=1))
        return
    for partition, row in rows.items():
        more = f"\t{row['since']}\t{row['reason']}" if retired else ""
        typer.echo(f"{partition}\t{row['gps_start']:.10g}\t{row['gps_stop']:.10g}\t{row['role']}{more}")


def _selected(workspace: Workspace, segments: Sequence[str]) -> list[str]:
    from aframe_ops.survey import survey

    asked = {w.strip() for text in segments for w in text.split(",")}
    states = survey(workspace).values() if asked & {FAILED, MISSING} else ()
    return select(workspace.rows(), segments, list(states))


def sync_segments(run: RunDirectory, console: Console, *, recut: bool, remove: bool, rechoose_psd: bool, dry_run: bool) -> None:
    """Looks the segments up again.

    Raises:
        SegmentsRefused: nothing was changed, and why.
        ConfigError: another command is at work here.
    """
    from aframe_ops import segment_changes
    from aframe_ops.cli.running import only_one, open_instance
    from aframe_ops.run_directory import require_readable

    run.activate()
    with run.pinned() as (config, site):
        require_readable(config)
        workspace = run.workspace(config, site)
        if dry_run:
            _tell(console, workspace, segment_changes.sync(workspace, dry_run=True, recut=recut), "would be")
            return
        with only_one(run), open_instance(run) as instance:
            _require_no_run(instance, site)
            change = segment_changes.sync(workspace, instance, recut=recut, remove=remove)
            _tell(console, workspace, change, "")
            if rechoose_psd:
                there = segment_changes.rechoose_psd(workspace)
                console.print("reference PSDs: the next run chooses anew" if there else "reference PSDs: none was chosen yet")


def _require_no_run(instance: DagsterInstance, site: SiteConfig) -> None:
    """Raises SegmentsRefused if a run of Dagster's, which holds no lock of the directory, works on the table as it is."""
    from aframe_ops.automation.sensors import reads_files
    from aframe_ops.leases_reaping import GoingOn
    from aframe_ops.runs import reap
    from aframe_ops.segment_changes import SegmentsRefused

    # with the lock held, what `aframe run` has left is dead, however young
    reap(instance, site, locked=True, leave=GoingOn(site))
    if words := reads_files(instance, site):
        raise SegmentsRefused(f"segments stay as they are: {words}; wait for its end, or stop it on its page in `dagster dev`")


def _tell(console: Console, workspace: Workspace, change: Change, mood: str) -> None:
    from aframe_ops.segment_changes import trains_again

    if not change:
        console.print("segments are as the source says")
        return
    for word, rows in (("added", change.added), ("removed", change.removed), ("changed", change.changed)):
        if rows:
            console.print(f"{mood} {word}:".strip())
            for partition, row in rows.items():
                console.print(f"  {partition}  {row['role']}")
    if change.late:
        console.print("slides and injections stay planned for the first test segments; `aframe segments sync --recut` plans anew")
    for line in trains_again(workspace, {**change.added, **change.removed, **change.changed}):
        console.print(line, style="yellow", soft_wrap=True)
    console.print("next: aframe run")


def retire_segments(run: RunDirectory, console: Console, segments: Sequence[str], *, reason: str, restore: bool, dry_run: bool) -> None:
    """Takes segments out of the search, or back.

    Raises:
        SegmentsRefused: nothing was changed, and why.
        ConfigError: no such segments, or another command is at work here.
    """
    from aframe_ops import segment_changes
    from aframe_ops.cli.running import only_one, open_instance

    run.activate()
    with run.pinned() as (config, site), only_one(run), open_instance(run) as instance:
        if not dry_run:
            _require_no_run(instance, site)
        workspace = run.workspace(config, site)
        try:
            rows = _retired(workspace) if restore else workspace.rows()
            chosen = select(rows, segments, see=RETIRED) if restore else _selected(workspace, segments)
        except MissingArtifact as e:
            raise ConfigError(str(e)) from None
        if not chosen:
            raise ConfigError(f"--segments {' --segments '.join(segments)}: there is none now")
        for partition in chosen:
            console.print(f"  {partition}  {rows[partition]['role']}")
        change = segment_changes.restore if restore else partial(segment_changes.retire, reason=" ".join(reason.split()))
        for line in change(workspace, instance, chosen, dry_run=dry_run):
            console.print(line, style="yellow", soft_wrap=True)
        done = "restored" if restore else "retired"
        console.print(f"{len(chosen)} would be {done}" if dry_run else f"{len(chosen)} {done}; next: aframe run")


def _retired(workspace: Workspace) -> Mapping[str, Any]:
    workspace.rows()
    return workspace.store.manifest("segments").handle.meta.get("retired", {})
