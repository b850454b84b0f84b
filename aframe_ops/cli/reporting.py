"""`aframe plan`, `status` and `config show`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aframe_assets.config import Config
from aframe_assets.config_load import ConfigError, config_hash, resolved_text
from aframe_assets.store.workspace import Workspace
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


def show_plan(workspace: Workspace, console: Console, until: str | None, segments: Sequence[str] = ()) -> None:
    """What a run would make, upstream first.

    Args:
        segments: of these alone, see `aframe_ops.selecting.select`.

    Raises:
        ConfigError: no such asset, or no such segments.
    """
    if until is not None and until not in workspace.graph:
        raise ConfigError(f"--until {until}: no such asset; expected one of {', '.join(workspace.graph)}")
    chosen = ancestors(workspace, until) if until else set(workspace.graph)
    todo = [s for s in survey(workspace).values() if s.name in chosen and not s.done]
    if segments and not any(s.name == "segments" for s in todo):
        todo = _of_segments(workspace, todo, segments)
    if not todo:
        console.print("nothing to do: everything is complete" if not segments else "nothing to do for these segments")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("would make")
    table.add_column("segments", justify="right")
    table.add_column("because")
    for state in todo:
        count = (str(len(state.why)) if state.partitions else "all") if state.partitioned else ""
        table.add_row(state.name, count, _reasons(state))
    console.print(table)
    if again := [s.name for s in todo if any(why.startswith("waits") and _there(workspace, s.name, p) for p, why in s.why.items())]:
        line = f"made before, and kept unless what they wait for comes out otherwise: {', '.join(again)}"
        console.print(line, style="dim", soft_wrap=True)


def _there(workspace: Workspace, asset: str, partition: str | None) -> bool:
    manifest = workspace.manifest(asset, partition)
    return manifest is not None and manifest.status == "ok"


def _of_segments(workspace: Workspace, todo: Sequence[AssetState], segments: Sequence[str]) -> list[AssetState]:
    """What of `todo` can be made when only `segments` are worked on."""
    from aframe_ops.selecting import doable, select

    chosen = select(workspace.rows(), segments, todo)
    work = doable(workspace, {s.name: s for s in todo}, chosen)
    return [replace(s, why={p: s.why[p] for p in s.why if p in work[s.name]}) for s in todo if s.name in work]


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
        mark = Text("✓", "green") if s.done else Text("◐", "yellow") if s.complete else Text("·", "dim")
        count = f"{len(s.complete)}/{len(s.partitions) if s.partitions else '?'}" if s.partitioned else "yes" if s.done else "no"
        row = [mark, s.name, count, size(s.nbytes) if s.complete else "", duration(s.wall_s) if s.complete else ""]
        table.add_row(*row, *([_reasons(s)] if why else []))
    console.print(table)


def show_config(config: Config, *, resolved: bool) -> None:
    """Every setting."""
    if resolved:
        typer.echo(resolved_text(config))
        typer.echo(f"hash {config_hash(config)}", err=True)
        return
    import yaml

    typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), nl=False)
