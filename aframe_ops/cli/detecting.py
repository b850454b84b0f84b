"""`aframe detect`: candidates in a few strain files, by a run's trained model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from aframe_assets.config_load import ConfigError
from aframe_ops.run_directory import RunDirectory

_VETOES_SHOWN = 20


def show_detection(run: RunDirectory, files: Sequence[Path], console: Console, *, as_json: bool) -> None:
    """Searches `files` and prints the candidates, loudest first.

    Raises:
        ConfigError: the run has no engine yet.
        StrainError: what is wrong with the files.
    """
    from aframe_assets.strain.files import describe_all

    describe_all([str(f) for f in files])  # a bad file is refused before anything heavy is loaded
    found, far_note = _search(run, files)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
        return
    spans = ", ".join(f"GPS {a:.2f} to {b:.2f}" for a, b in found.analysed)
    console.print(f"{' '.join(found.ifos)}: {found.livetime:g} s of output, {spans or 'none of it valid'}", soft_wrap=True)
    for start, stop in found.skipped:
        console.print(f"skipped GPS {start:.2f} to {stop:.2f}: too short", style="yellow")
    for v in found.vetoed[:_VETOES_SHOWN]:
        console.print(f"vetoed GPS {v.start:.2f} to {v.stop:.2f}: {v.ifo} {v.category} ({v.source})", style="yellow", soft_wrap=True)
    if len(found.vetoed) > _VETOES_SHOWN:
        console.print(f"and {len(found.vetoed) - _VETOES_SHOWN} vetoes more; --json lists all", style="yellow")
    for line in found.unanswered:
        console.print(f"{line}; not vetoed", style="yellow", soft_wrap=True)
    if not found.candidates:
        console.print("no candidate")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("", "detection_time", "merger_time", "90 % width", "detection_statistic", "false alarms"):
        table.add_column(name, justify="right")
    for i, c in enumerate(found.candidates, 1):
        merger = "" if c.merger_time is None else f"{c.merger_time:.3f}"
        width = "" if c.merger_time_width90 is None else f"{c.merger_time_width90:.3f} s"
        table.add_row(str(i), f"{c.detection_time:.3f}", merger, width, f"{c.detection_statistic:.3f}", _rate(c.far, c.far_is_limit))
    console.print(table)
    num = found.calibration.num
    calibrated = f"calibrated on {num} injections" if num else "not calibrated: that run has recovered no injection"
    console.print(f"merger times are {calibrated}; {far_note}", style="dim", soft_wrap=True)


def _rate(far: float | None, limit: bool) -> str:
    return "" if far is None else f"{'< ' if limit else ''}{far * 3600:.3g} /h"


def _search(run: RunDirectory, files: Sequence[Path]):
    from aframe_assets.engine.engine import load_engine
    from aframe_assets.inference.aggregate import BACKGROUND
    from aframe_assets.inference.detect import detect
    from aframe_assets.inference.merger_time import Calibration
    from aframe_assets.waveforms.ledger import EventSet

    workspace = run.workspace()
    store = workspace.store
    manifest = store.manifest("engine")
    if manifest is None or manifest.handle is None or manifest.status != "ok" or manifest.blocked:
        raise ConfigError(f"{run.path}: has no usable engine yet; make it with `aframe run {run.path} --until engine`")
    engine = load_engine(store.open_local(manifest.handle))
    calibration = background = None
    note = "false alarms need a search: `aframe run` makes its background"
    events = workspace.complete("events")
    if events is not None:
        calibration = Calibration.from_meta(events.meta["merger_time_calibration"])
        background = EventSet.read(store.open_local(events, BACKGROUND))
        note = f"false alarms are against {background.Tb / 3600:.3g} h of that run's background, which is not of these files"
    return detect([str(f) for f in files], engine, workspace.config, calibration, background), note
