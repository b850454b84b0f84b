"""`aframe incoming`: what became of files that were dropped in the watched places."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from filelock import Timeout
from rich.console import Console

from aframe_assets.config_load import ConfigError
from aframe_ops.run_directory import RunDirectory

if TYPE_CHECKING:
    from aframe_ops.site import SiteConfig

VERDICTS = ("searched", "waiting", "gone", "duplicate", "unused", "bad")


def show_incoming(run: RunDirectory, console: Console, *, look: bool, verdict: str | None, as_json: bool) -> bool:
    """Prints the ledger, newest last; returns whether every watched place could be read.

    Args:
        look: first look for new files, as the sensor does.
        verdict: only these.

    Raises:
        ConfigError: nothing is watched, no such verdict, or the sensor is looking now.
    """
    from aframe_ops.automation.incoming import Incoming
    from aframe_ops.automation.inspector import Inspector

    config, site = run.config(), run.site()
    if not site.automation.watch:
        raise ConfigError(f"{run.path / 'site.yaml'}: automation.watch names no folder or bucket; see docs/new-data.md")
    if verdict not in (None, *VERDICTS):
        raise ConfigError(f"--only {verdict}: expected one of {', '.join(VERDICTS)}")
    incoming = Incoming(config, site)
    troubles: list[str] = []
    if look:
        try:
            with Inspector(config) as reader:
                found = incoming.look(reader, waits=_waits(run, site), budget_s=float("inf"))
        except Timeout:
            raise ConfigError("the sensor is looking at the watched places just now; try again in a moment") from None
        troubles = found.troubles
        console.print(str(found), style="dim", soft_wrap=True)
    entries = [(incoming.whereabouts(e), e) for e in incoming.ledger.read()]
    chosen = [(where, e) for where, e in entries if verdict in (None, where)]
    if as_json:
        typer.echo(json.dumps([{**asdict(e), "verdict": where} for where, e in chosen], indent=1))
        return not troubles
    for where, e in chosen:
        typer.echo(f"{where}\t{e.shown}{f'{chr(9)}{e.why}' if e.why else ''}")
    counted = Counter(where for where, _ in entries)
    words = ", ".join(f"{counted[v]} {v}" for v in VERDICTS if counted[v])
    console.print(words or "no file has been read yet", style="dim")
    return not troubles


def _waits(run: RunDirectory, site: SiteConfig) -> str:
    """What of Dagster reads the experiment's files now, if Dagster is used here."""
    from aframe_ops.automation.sensors import reads_files
    from aframe_ops.cli.running import open_instance

    if not (run.dagster_home / "dagster.yaml").exists():
        return ""
    run.activate()
    with open_instance(run) as instance:
        return reads_files(instance, site) or ""
