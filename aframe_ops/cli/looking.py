"""`aframe status --asset`: every segment of one asset."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from aframe_assets.config_load import ConfigError
from aframe_assets.store.workspace import Workspace
from aframe_ops.cli.progress import duration, size
from aframe_ops.survey import AssetState, state_of, survey


def show_asset(workspace: Workspace, console: Console, asset: str, *, as_json: bool) -> None:
    """The state of each segment of `asset`, or of the one artifact that it is, and why what is not complete is not.

    Raises:
        ConfigError: no such asset.
    """
    if asset not in workspace.graph:
        raise ConfigError(f"--asset {asset}: no such asset; expected one of {', '.join(workspace.graph)}")
    state = survey(workspace)[asset]
    rows = [_row(workspace, state, p) for p in state.partitions]
    if as_json:
        typer.echo(json.dumps({"asset": asset, "store": workspace.store.url, "partitions": rows}, indent=1))
        return
    if not rows:
        console.print(f"{asset}: waits for segments")
        return
    table = Table(box=None, pad_edge=False)
    names = (("segment", "role") if state.partitioned else ()) + ("state", "made", "size", "took", "why")
    for name in names:
        table.add_column(name, justify="right" if name in ("size", "took") else "left")
    for row in rows:
        first = (row["partition"], row["role"]) if state.partitioned else ()
        done = row["state"] == "complete"
        table.add_row(
            *first, row["state"], row["made"], size(row["nbytes"]) if done else "", duration(row["wall_s"]) if done else "", row["why"]
        )
    console.print(table)


def _row(workspace: Workspace, state: AssetState, partition: str | None) -> dict[str, Any]:
    manifest, why = workspace.manifest(state.name, partition), state.why.get(partition)
    provenance = manifest.provenance if manifest else {}
    return {
        "partition": partition,
        "role": workspace.rows()[partition]["role"] if partition else None,
        "state": state_of(why),
        "why": why or "",
        "made": str(provenance.get("created", "")),
        "host": str(provenance.get("host", "")),
        "run_id": str(provenance.get("run_id", "")),
        "wall_s": float(provenance.get("wall_s", 0.0)),
        "nbytes": manifest.handle.nbytes if manifest and manifest.handle else 0,
        "uri": manifest.handle.uri if manifest and manifest.handle else None,
    }
