"""`aframe mlgwsc1`: the mock data challenge MLGWSC-1, from a run directory for its data sets to event files for its evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from aframe_assets.config_load import ConfigError, merge
from aframe_ops.cli.initialise import initialise
from aframe_ops.cli.models import open_model
from aframe_ops.run_directory import RunDirectory

if TYPE_CHECKING:
    from aframe_assets.engine.opening import Device
    from aframe_assets.inference.mlgwsc1.search import Analysis

PRESET = "mlgwsc1"

NAMED = 10
"""Skipped segments that are named; the others are counted. A month of real data may have thousands."""


def _data_set(population: str, approximant: str, asd: str) -> dict[str, Any]:
    return {
        "strain": {"simulated": {"asd": {"H1": asd, "L1": asd}}},
        "waveforms": {"prior": population, "validation_prior": population, "approximant": approximant},
    }


# O3a's spectra are not packaged: bilby's curve of the same range as Hanford's in O3a (109 Mpc for neutron stars), without lines.
DATA_SETS: dict[int, dict[str, Any]] = {
    1: _data_set("mlgwsc1_1", "IMRPhenomD", "aLIGO_ZERO_DET_high_P_asd.txt"),
    2: _data_set("mlgwsc1_2", "IMRPhenomD", "aLIGO_mid_asd.txt"),
    3: _data_set("mlgwsc1_3", "IMRPhenomXPHM", "aLIGO_mid_asd.txt"),
}
"""What a model for each data set needs beside the preset."""


def train_config(directory: Path, dataset: int, asd: Sequence[str], console: Console) -> RunDirectory:
    """Makes a run directory whose model is for `dataset`.

    Args:
        asd: IFO=CURVE of detectors whose noise follows another curve: a file, or the name of one of bilby's.

    Raises:
        ConfigError: no such data set or curve, or a directory that holds another experiment.
    """
    if dataset not in DATA_SETS:
        raise ConfigError(
            f"--dataset {dataset}: expected {', '.join(map(str, DATA_SETS))}; for set 4, real noise, train on real strain "
            "(preset o3) with waveforms.prior: mlgwsc1_3"
        )
    run, new = initialise(
        directory, PRESET, overrides=merge(DATA_SETS[dataset], {"strain": {"simulated": {"asd": _curves(asd)}}} if asd else {})
    )
    console.print(
        f"{run.path}: {'new run directory' if new else 'is this experiment already'} (MLGWSC-1, data set {dataset})", soft_wrap=True
    )
    console.print(f"next: aframe run {directory}", soft_wrap=True)
    return run


def _curves(asd: Sequence[str]) -> dict[str, str]:
    from aframe_assets.strain.simulated import packaged_curve, read_curve

    out: dict[str, str] = {}
    for text in asd:
        ifo, equals, name = text.partition("=")
        if not equals or not ifo or not name or ifo in out:
            raise ConfigError(f"--asd {text}: expected IFO=CURVE, each detector once, as H1=asd/H1.txt")
        try:
            read_curve(name)
            out[ifo] = str(packaged_curve(name).resolve()) if Path(name).is_file() else name
        except (OSError, ValueError) as e:
            raise ConfigError(f"--asd {text}: {e}") from None
    return out


def analyze(
    files: Sequence[Path],
    model: str | Path,
    output: Path,
    console: Console,
    *,
    threshold: float | None = None,
    var: float | None = None,
    refine_above: float | None = None,
    cover_start: bool = True,
    device: Device = "auto",
    overwrite: bool = False,
) -> None:
    """Searches `files` and writes the events; see `aframe_assets.inference.mlgwsc1.search.Settings` for the options.

    Raises:
        ConfigError, BundleError, ChallengeError, OpeningError: what is wrong with files, model or output.
    """
    from aframe_assets.inference.mlgwsc1.files import refuse_output, write_events
    from aframe_assets.inference.mlgwsc1.search import Settings
    from aframe_assets.inference.mlgwsc1.search import analyze as search

    given = {"threshold": threshold, "var": var, "refine_above": refine_above}
    given = {k: v for k, v in given.items() if v is not None}
    for name, value in given.items():
        # an infinite threshold of either kind has a meaning, an infinite var has none
        if math.isnan(value) or (name == "var" and math.isinf(value)):
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected a number")
    refuse_output(output, overwrite, files)
    made = open_model(model, device)
    settings = Settings(made.config.inference, made.calibration, cover_start=cover_start, **given)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("searched")
        found = search(files, made.engine, settings, progress=lambda done, total: bar.update(task, completed=done, total=total))
    attributes = {
        "livetime": found.livetime,
        "duration": found.duration,
        "skipped": sum(s.duration for s in found.skipped),
        "model": str(made.engine.bundle.get("name", "")),
    }
    write_events(output, found.events, attributes)
    console.print(
        f"{output}: {len(found.events)} events; {len(found.segments)} segments of {found.duration:.10g} s, "
        f"{found.livetime:.10g} s of output",
        soft_wrap=True,
    )
    for line in _skips(found):
        console.print(line, style="yellow", soft_wrap=True)
    console.print(
        f"var is {settings.fine_var:.3g} s ({settings.coarse_var:.3g} s for faint events); merger times are {made.timing}",
        style="dim",
        soft_wrap=True,
    )


def _skips(found: Analysis) -> list[str]:
    lines = [f"skipped {s}: {s.duration:g} s, expected at least {found.shortest:g} s" for s in found.skipped[:NAMED]]
    rest = found.skipped[NAMED:]
    if rest:
        lines.append(f"and {len(rest)} more, {sum(s.duration for s in rest):.10g} s in all")
    return lines
