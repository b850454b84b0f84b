"""`aframe plan`, `status`, `segments list` and `config show`."""

from __future__ import annotations

import json
from collections import Counter

import typer
from rich.console import Console
from rich.table import Table

from aframe_assets.config import Config
from aframe_assets.config_load import ConfigError, config_hash, resolved_text
from aframe_assets.store.workspace import MissingArtifact, Workspace
from aframe_ops.cli.progress import duration, size
from aframe_ops.survey import AssetState, ancestors, survey


def _reasons(state: AssetState) -> str:
    """The reasons of all partitions, the commonest first."""
    counted = Counter(state.why.values()).most_common(3)
    if not state.partitioned:
        return counted[0][0] if counted else ""
    if not state.partitions:
        return "waits for segments"
    return "; ".join(f"{text} ({n} segment{'s' * (n > 1)})" for text, n in counted)


def show_plan(workspace: Workspace, console: Console, until: str | None) -> None:
    """What a run would make, upstream first.

    Raises:
        ConfigError: no such asset.
    """
    if until is not None and until not in workspace.graph:
        raise ConfigError(f"--until {until}: no such asset; expected one of {', '.join(workspace.graph)}")
    chosen = ancestors(workspace, until) if until else set(workspace.graph)
    todo = [s for s in survey(workspace).values() if s.name in chosen and not s.done]
    if not todo:
        console.print("nothing to do: everything is complete")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("would make")
    table.add_column("segments", justify="right")
    table.add_column("because")
    for state in todo:
        count = (str(len(state.why)) if state.partitions else "all") if state.partitioned else ""
        table.add_row(state.name, count, _reasons(state))
    console.print(table)


def show_status(workspace: Workspace, console: Console, *, why: bool, as_json: bool) -> None:
    """What is complete."""
    states = survey(workspace)
    if as_json:
        config = workspace.config
        typer.echo(
            json.dumps(
                {
                    "experiment": config.name,
                    "preset": config.preset,
                    "config": config_hash(config),
                    "store": workspace.store.url,
                    "assets": [s.plain() for s in states.values()],
                },
                indent=1,
            )
        )
        return
    table = Table(box=None, pad_edge=False)
    for name, justify in (("", "left"), ("asset", "left"), ("complete", "right"), ("size", "right"), ("took", "right")):
        table.add_column(name, justify=justify)
    if why:
        table.add_column("why not")
    for s in states.values():
        mark = "[green]✓[/green]" if s.done else "[yellow]◐[/yellow]" if s.complete else "[dim]·[/dim]"
        count = f"{len(s.complete)}/{len(s.partitions) if s.partitions else '?'}" if s.partitioned else "yes" if s.done else "no"
        row = [mark, s.name, count, size(s.nbytes) if s.complete else "", duration(s.wall_s) if s.complete else ""]
        table.add_row(*row, *([_reasons(s)] if why else []))
    console.print(table)


def show_segments(workspace: Workspace, *, role: str | None, as_json: bool) -> None:
    """The segments table, a line each, the key first.

    Raises:
        ConfigError: there is none yet, or no such role.
    """
    if role not in (None, "train", "validation", "test"):
        raise ConfigError(f"--role {role}: expected train, validation or test")
    try:
        rows = {p: r for p, r in workspace.rows().items() if role in (None, r["role"])}
    except MissingArtifact as e:
        raise ConfigError(str(e)) from None
    if as_json:
        typer.echo(json.dumps([{"partition": p, **r} for p, r in rows.items()], indent=1))
        return
    for partition, row in rows.items():
        typer.echo(f"{partition}\t{row['gps_start']:.10g}\t{row['gps_stop']:.10g}\t{row['role']}")


def show_config(config: Config, *, resolved: bool) -> None:
    """Every setting."""
    if resolved:
        typer.echo(resolved_text(config))
        typer.echo(f"hash {config_hash(config)}", err=True)
        return
    import yaml

    typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), nl=False)
