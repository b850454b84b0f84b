"""`aframe detect`: candidates in a few strain files, by the shipped model or another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from aframe_assets.config_load import ConfigError
from aframe_assets.model.importing import PRETRAINED
from aframe_ops.cli.models import Model, open_model
from aframe_ops.run_directory import RunDirectory

if TYPE_CHECKING:
    from aframe_assets.inference.detect import Detection

_VETOES_SHOWN = 20


def chosen_model(run: Path | None, model: str | None) -> Model:
    """The model that the options of `aframe detect` mean; without any the shipped one.

    Raises:
        ConfigError: both are given, or what is given holds no usable model.
    """
    if run is not None and model is not None:
        raise ConfigError(f"--run {run} --model {model}: expected one of them; --run is a run directory, --model anything with a model")
    if run is not None:
        RunDirectory.find(run)
        # the engine of the search, not another that gives nearly the same
        return open_model(run, "cpu")
    return open_model(model or PRETRAINED)


def show_detection(run: Path | None, model: str | None, files: Sequence[Path], console: Console, *, as_json: bool) -> None:
    """Searches `files` and prints the candidates, loudest first.

    Raises:
        ConfigError: as `chosen_model`.
        StrainError: what is wrong with the files.
    """
    from aframe_assets.strain.files import describe_all

    describe_all([str(f) for f in files])  # a bad file is refused before anything heavy is loaded
    chosen = chosen_model(run, model)
    found = _search(chosen, files)
    if as_json:
        typer.echo(json.dumps(found.as_dict() | {"false_alarms": chosen.rates}, indent=1))
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
    console.print(f"merger times are {chosen.timing}; {chosen.rates}", style="dim", soft_wrap=True)


def _rate(far: float | None, limit: bool) -> str:
    return "" if far is None else f"{'< ' if limit else ''}{far * 3600:.3g} /h"


def _search(model: Model, files: Sequence[Path]) -> Detection:
    from aframe_assets.inference.detect import detect

    return detect([str(f) for f in files], model.engine, model.config, model.calibration, model.background, thresholds=model.thresholds)
