"""Makes the shipped model's folder from a finished run: bundle, what its search measured, and a card written from both.

    python -m benchmarks.pretrained RUN --strain ../shared/data/strain --noise ../shared/data/noise/real_noise.hdf

The card says nothing that is not in the run or was not tried here: real events in `--strain`, and `--noise`, one detector's strain
taken twice and slid against itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from aframe_assets.model.importing import BUNDLE_FILES, shipped_folder
from aframe_ops.run_directory import RunDirectory
from benchmarks import model_card

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.workspace import Workspace
    from aframe_assets.waveforms.ledger import EventSet
    from aframe_ops.cli.models import Model

LIMIT = 8_000_000
"""Bytes of weights that may be shipped."""

SHIFT, NUM_SHIFTS = 16.0, 15
"""Seconds between slides of a detector against itself, and their number."""

CARD = "CARD.md"


class PackagingError(ValueError):
    """A run from which no model can be shipped; the message says what it lacks."""


@dataclass(frozen=True)
class Tried:
    """A catalogued merger in files that were searched.

    Attributes:
        name, gps: of the catalogue; GPS seconds to 0.1 s.
        rank: of the candidate within half a second of it, 1 the loudest of its files; None when there is none.
        detection_offset, merger_offset: that candidate's times less `gps`, seconds.
        width90: of its merger time, seconds.
        statistic: of it.
        next_statistic: of the loudest other candidate.
        far: Hz, of the candidate; `far_is_limit` when no background event is as loud.
        livetime: seconds of output of these files.
    """

    name: str
    gps: float
    rank: int | None
    detection_offset: float | None
    merger_offset: float | None
    width90: float | None
    statistic: float | None
    next_statistic: float | None
    far: float | None
    far_is_limit: bool
    livetime: float


def try_events(folder: Path, model: Model, within: float = 0.5) -> list[Tried]:
    """Every catalogued merger in the strain files of `folder`, by time; files of one span are searched together."""
    from aframe_assets.inference.detect import detect
    from aframe_assets.segments.catalog import catalog
    from aframe_assets.strain.files import describe_all

    groups: dict[tuple[float, float], list[str]] = {}
    for info in describe_all([str(folder)]):
        if info.ifo in model.engine.ifos:
            groups.setdefault((float(info.gps_start), float(info.gps_stop)), []).append(str(info.path))
    out = []
    for (start, stop), paths in sorted(groups.items()):
        found = None
        for merger in catalog("packaged"):
            if not start <= merger.gps < stop:
                continue
            found = found or detect(paths, model.engine, model.config, model.calibration, model.background)
            near = [i for i, c in enumerate(found.candidates) if abs(c.detection_time - merger.gps) <= within]
            if not near:
                loudest = found.candidates[0].detection_statistic if found.candidates else None
                out.append(Tried(merger.name, merger.gps, None, None, None, None, None, loudest, None, False, found.livetime))
                continue
            c = found.candidates[near[0]]
            others = [x.detection_statistic for i, x in enumerate(found.candidates) if i != near[0]]
            out.append(
                Tried(
                    merger.name,
                    merger.gps,
                    near[0] + 1,
                    c.detection_time - merger.gps,
                    None if c.merger_time is None else c.merger_time - merger.gps,
                    c.merger_time_width90,
                    c.detection_statistic,
                    max(others, default=None),
                    c.far,
                    c.far_is_limit,
                    found.livetime,
                )
            )
    return out


def slide_against_itself(path: Path, model: Model, shift: float = SHIFT, num: int = NUM_SHIFTS) -> EventSet:
    """Events of one detector's strain taken for every detector, slid by 1 ... `num` times `shift` seconds; `Tb` is their livetime.

    Args:
        path: HDF5 file with a dataset ``data`` at the model's rate and its attributes ``start_time`` (GPS) and ``delta_t`` (s).
        model: what searches.

    Raises:
        PackagingError: strain of another rate.
    """
    from aframe_assets.inference.slides import run_slides
    from aframe_assets.inference.whitened import WhitenedChunk
    from aframe_assets.segments.geometry import SlideGeometry

    engine, config = model.engine, model.config
    with h5py.File(path) as f:
        strain, start, rate = f["data"][:], float(f["data"].attrs["start_time"]), 1 / float(f["data"].attrs["delta_t"])
    if abs(rate - engine.sample_rate) > 1e-6:
        raise PackagingError(f"{path}: {rate:g} Hz; expected the model's {engine.sample_rate:g} Hz")
    inference = config.inference.model_copy(update={"zero_lag": False, "slide_mode": "linear"})
    chunk = WhitenedChunk.of(
        [strain] * len(engine.ifos), start, rate, config.conditioning, block=config.psd_block, psd_source=inference.psd_source
    )
    geometry = SlideGeometry.of(config.model_copy(update={"inference": inference}), start, start + len(strain) / rate)
    shifts = [tuple(i * k * shift for i in range(len(engine.ifos))) for k in range(1, num + 1)]
    return run_slides(chunk, geometry, engine, inference, shifts).background


def package(
    run: Path,
    output: Path,
    *,
    strain: Path | None = None,
    noise: Path | None = None,
    trained_in: Path | None = None,
    far_per_day: Sequence[float] = (1.0, 24.0),
    replicates: int = 200,
) -> Path:
    """Write `output` anew from the run directory `run`; whoever reads it meanwhile sees the old folder or the new one, whole.

    Args:
        run: a run whose model, events and sensitive volume are complete.
        output: folder to make or to replace.
        strain, noise: real data to try the model on, see `try_events` and `slide_against_itself`.
        trained_in: a run with the training data of the model, when `run` has others.
        far_per_day: rates at which the card gives volumes and efficiencies.
        replicates: of their bootstrap.

    Raises:
        PackagingError: something is not complete, weights are too large, a run that trained another model.
    """
    workspace = RunDirectory.find(run).workspace()
    handles = {name: workspace.complete(name) for name in ("segments", "model", "events", "sensitive_volume")}
    lacking = [name for name, handle in handles.items() if handle is None]
    if lacking:
        raise PackagingError(f"{run}: {', '.join(lacking)} is not complete; make it with `aframe run {run}`")
    store, config = workspace.store, workspace.config
    bundle, events = store.open_local(handles["model"]), store.open_local(handles["events"])
    size = (bundle / "model.safetensors").stat().st_size
    if size > LIMIT:
        raise PackagingError(f"{run}: weights of {size:,} bytes; expected at most {LIMIT:,}, as with a smaller model.architecture.width")
    training = _training(workspace, trained_in, bundle)
    output.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        for name in BUNDLE_FILES:
            if (bundle / name).is_file():
                shutil.copyfile(bundle / name, made / name)
        search_record(config, handles["events"].meta, events).write(made)
        material = model_card.Material(
            bundle=made,
            evaluation=config,
            events=events,
            meta=dict(handles["events"].meta),
            volume=json.loads(store.open_local(handles["sensitive_volume"], "sensitive_volume.json").read_text()),
            rows=handles["segments"].meta["rows"],
            training=training,
            far_per_day=tuple(far_per_day),
            replicates=replicates,
        )
        tried, slid = _tried(made, strain, noise)
        (made / CARD).write_text(model_card.render(material, tried, slid))
        made.chmod(0o755)
        _swap(made, output)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return output


def search_record(config: Config, meta: dict[str, Any], events: Path):
    """The record of a run's search; `events` is the folder of the asset."""
    from aframe_assets.inference.aggregate import BACKGROUND
    from aframe_assets.inference.merger_time import Calibration
    from aframe_assets.inference.search_record import SearchRecord
    from aframe_assets.waveforms.ledger import EventSet

    background = EventSet.read(events / BACKGROUND)
    calibration = Calibration.from_meta(meta["merger_time_calibration"])
    return SearchRecord(config.inference, calibration, background.detection_statistic, background.Tb, model_card.noise_kind(config))


def _training(workspace: Workspace, trained_in: Path | None, bundle: Path) -> tuple[Config, dict[str, Any]] | None:
    """Config and segments of a run whose background trained the bundle, as the bundle has it; None when this run's did not."""
    own = workspace if trained_in is None else RunDirectory.find(trained_in).workspace()
    inputs = json.loads((bundle / "bundle.json").read_text())["provenance"].get("inputs", {})
    index, segments = own.complete("background_index"), own.complete("segments")
    if index is None or segments is None or inputs.get("background_index", {}).get("sha256") != index.sha256:
        if trained_in is None:
            return None
        raise PackagingError(f"{trained_in}: has not trained this model; expected the run whose background_index the bundle names")
    return own.config, segments.meta["rows"]


def _tried(folder: Path, strain: Path | None, noise: Path | None) -> tuple[list[Tried] | None, EventSet | None]:
    from aframe_ops.cli.models import open_model

    if strain is None and noise is None:
        return None, None
    model = open_model(folder, "cpu")
    return (try_events(strain, model) if strain else None), (slide_against_itself(noise, model) if noise else None)


def _swap(made: Path, output: Path) -> None:
    old = made.with_name(f"{made.name}.old")
    if output.exists():
        os.rename(output, old)
    try:
        os.rename(made, output)
    except OSError:
        if old.exists():
            os.rename(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pretrained", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory whose model, events and sensitive volume are complete")
    parser.add_argument("--output", type=Path, default=shipped_folder(), help="folder to make or replace; default: that of the package")
    parser.add_argument("--strain", type=Path, help="folder with real strain around known mergers")
    parser.add_argument("--noise", type=Path, help="real strain of one detector, to be slid against itself")
    parser.add_argument("--trained-in", type=Path, help="a run with the model's training data, when RUN has others")
    parser.add_argument("--far-per-day", type=float, nargs="+", default=[1.0, 24.0])
    parser.add_argument("--replicates", type=int, default=200)
    a = parser.parse_args(argv)
    try:
        made = package(
            a.run,
            a.output,
            strain=a.strain,
            noise=a.noise,
            trained_in=a.trained_in,
            far_per_day=a.far_per_day,
            replicates=a.replicates,
        )
    except Exception as e:
        # Errors of our own classes are written for users; anything else is a defect and keeps its trace.
        if not isinstance(e, PackagingError) and not type(e).__module__.startswith(("aframe_assets", "aframe_ops")):
            raise
        sys.exit(f"benchmarks.pretrained: {e}")
    total = sum(p.stat().st_size for p in made.iterdir())
    sys.stdout.write(f"{made}: {total / 1e6:.2f} MB\n{(made / CARD).read_text()}")


if __name__ == "__main__":
    main()
