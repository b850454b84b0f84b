"""A finished run beside a search that was not trained: coincident power in whitened strain, through the same slides and injections.

    python -m benchmarks.baseline RUN

The baseline sees the run's own chunks, whitened once, the same windows, slides and injections, and its scores are integrated and
clustered by the same code; only the network is replaced. Excess power in one detector is the energy of a stretch of whitened,
band-limited strain (Anderson, Brady, Creighton & Flanagan 2001, Phys. Rev. D 63, 042003, equation 2.10), here brought to a unit normal by
the cube root of Wilson & Hilferty (1931, Proc. Natl. Acad. Sci. 17, 684) so that stretches of several lengths compare. Detectors are
joined by the least of them, so that a glitch in one alone is quiet, and a window's score is the largest over times and lengths.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import maximum_filter1d

from aframe_assets.config import Config, Inference
from aframe_assets.inference.aggregate import (
    BACKGROUND,
    FOREGROUND,
    REJECTED,
    aggregate_events,
    aggregate_foreground,
    aggregate_rejected,
)
from aframe_assets.inference.assets import INJECTIONS
from aframe_assets.inference.slides import SlideResults, run_slides
from aframe_assets.inference.streaming import Scorer
from aframe_assets.inference.whitened import WhitenedChunk
from aframe_assets.segments.catalog import catalog_times
from aframe_assets.segments.geometry import SlideGeometry, num_slides, shift_vectors
from aframe_assets.segments.vetoes import VETOES, read_vetoes, vetoed_times
from aframe_assets.store.handle import Handle
from aframe_assets.store.workspace import MissingArtifact, Workspace
from aframe_assets.strain.background_file import read_background
from aframe_assets.waveforms.detectors import get_detectors, travel_time
from aframe_ops.run_directory import RunDirectory
from benchmarks.sensitivity import DAY, SNR_EDGES, Search, compare, names_of_quantities
from benchmarks.table import show

MODEL, POWER = "model", "coincident power"
BAND = (32.0, 350.0)
"""Hertz; holds most of the signal of a binary black hole. Wider bands add noise to it."""
LENGTHS = (1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""Seconds of strain whose energy is taken together."""
STEP = 1 / 512
"""Seconds between the times that are looked at."""


@dataclass(frozen=True)
class CoincidentPower:
    """Scores windows as an engine does (`aframe_assets.inference.streaming.Scorer`).

    Attributes:
        sample_rate: Hz.
        kernel, context: samples of a window and on each side of it; the context is not used.
        delays: largest delay of each detector after the first, seconds.
        band: Hz, inside that of the whitening.
        lengths: seconds.
    """

    sample_rate: float
    kernel: int
    context: int
    delays: tuple[float, ...]
    band: tuple[float, float] = BAND
    lengths: tuple[float, ...] = LENGTHS

    @classmethod
    def of(cls, config: Config, band: tuple[float, float] = BAND) -> CoincidentPower:
        """The baseline for an experiment.

        Raises:
            ValueError: nothing of `band` is left after whitening, or it is too narrow for a chi-squared of a few degrees of freedom.
        """
        c, fs, sites = config.conditioning, config.sample_rate, get_detectors(config.ifos, config.detectors)
        low, high = max(band[0], c.highpass or 0.0), min(band[1], c.lowpass or fs / 2)
        if 2 * (high - low) * min(LENGTHS) < 4:
            raise ValueError(
                f"band {band[0]:g} to {band[1]:g} Hz: {max(0.0, high - low):g} Hz of it are in the whitened strain; "
                f"expected at least {2 / min(LENGTHS):g}"
            )
        delays = tuple(travel_time(sites[0], site) for site in sites[1:])
        kernel, context = round(c.kernel_length * fs), round(config.model.architecture.context * fs)
        return cls(fs, kernel, context, delays, (low, high))

    def score_windows(self, windows: np.ndarray) -> np.ndarray:
        """(window, ifo, kernel + 2 context) float32 -> (window,) float64."""
        x = windows[..., self.context : self.context + self.kernel]
        spectrum = np.fft.rfft(x)
        frequency = np.fft.rfftfreq(self.kernel, 1 / self.sample_rate)
        inside = (frequency >= self.band[0]) & (frequency < self.band[1])
        spectrum[..., ~inside] = 0
        energy = np.zeros((*x.shape[:-1], self.kernel + 1))
        np.cumsum(np.fft.irfft(spectrum, n=self.kernel) ** 2, axis=-1, out=energy[..., 1:])
        # of white noise of unit variance this share is in the band: the variance that is left, and degrees of freedom of each sample
        share = 2 * inside.sum() / self.kernel
        step, best = max(1, round(STEP * self.sample_rate)), np.full(len(x), -np.inf)
        for length in self.lengths:
            size = round(length * self.sample_rate)
            freedom = size * share
            power = (energy[..., size::step] - energy[..., :-size:step]) / freedom
            # rounding of the sum may leave a negative rest
            excess = (np.cbrt(np.maximum(power, 0)) - (1 - 2 / (9 * freedom))) / np.sqrt(2 / (9 * freedom))
            joint = excess[:, 0]
            for other, delay in zip(excess[:, 1:].swapaxes(0, 1), self.delays, strict=True):
                reach = int(np.ceil(delay * self.sample_rate / step))
                joint = np.minimum(joint, maximum_filter1d(other, 2 * reach + 1, axis=-1))
            best = np.maximum(best, joint.max(axis=-1))
        return best


def search(workspace: Workspace, scorer: Scorer, folder: Path) -> Path:
    """The run's test chunks with `scorer` for its network; `folder` gets the files of the asset `events`, and is returned.

    Chunks that `folder` has are not searched again.

    Raises:
        MissingArtifact: an input of the search is not complete.
    """
    config, store = workspace.config, workspace.store
    rows = {p: r for p, r in workspace.rows().items() if r["role"] == "test"}
    mergers, vetoes = catalog_times(config.inference.exclude_catalog), None
    if config.vetoes.asked:
        vetoes = vetoed_times(read_vetoes(store.open_local(_complete(workspace, "vetoes"), VETOES)), config.ifos)
    geometries = {p: SlideGeometry.of(config, r["gps_start"], r["gps_stop"], mergers, vetoes) for p, r in rows.items()}
    shifts = shift_vectors(num_slides(config, list(geometries.values())), config.inference.shifts)
    # no network of frames and no filter here, whatever the run's own search has
    inference = config.inference.model_copy(update={"zero_lag": False})
    folder.mkdir(parents=True, exist_ok=True)
    for partition, row in rows.items():
        if not (folder / partition).is_dir():
            out = _chunk(workspace, scorer, inference, geometries[partition], shifts, partition, row["gps_start"])
            # whole or not at all, so that the same call again goes on where one was killed
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = Path(scratch) / partition
                made.mkdir()
                out.background.write(made / BACKGROUND)
                out.foreground.write(made / FOREGROUND)
                made.rename(folder / partition)
    aggregate_events([folder / p / BACKGROUND for p in rows], folder / BACKGROUND, inference.inference_rate)
    aggregate_foreground([folder / p / FOREGROUND for p in rows], folder / FOREGROUND)
    # the last file says that all are there, so it must not be there in part
    last = folder / f"{REJECTED}~"
    aggregate_rejected([store.open_local(_complete(workspace, "injections", p), REJECTED) for p in rows], last)
    last.rename(folder / REJECTED)
    return folder


def _chunk(
    workspace: Workspace,
    scorer: Scorer,
    inference: Inference,
    geometry: SlideGeometry,
    shifts: list[tuple[float, ...]],
    partition: str,
    gps_start: float,
) -> SlideResults:
    config, store = workspace.config, workspace.store
    background, injections = (_complete(workspace, asset, partition) for asset in ("background", "injections"))
    path = store.open_local(background, background.files[0].name)
    # one detector's strain in memory at a time
    strain = (read_background(path, [ifo]).strain[ifo] for ifo in config.ifos)
    chunk = WhitenedChunk.of(
        strain, gps_start, config.sample_rate, config.conditioning, block=config.psd_block, psd_source=inference.psd_source
    )
    return run_slides(chunk, geometry, scorer, inference, shifts, store.open_local(injections, INJECTIONS), num_calibrate=0)


def _complete(workspace: Workspace, asset: str, partition: str | None = None) -> Handle:
    handle = workspace.complete(asset, partition)
    if handle is None:
        raise MissingArtifact(asset, partition, "not complete", "benchmarks.baseline")
    return handle


def rates_of(livetime: float, per_hour: Sequence[float]) -> list[float]:
    """`per_hour`, and one a day where `livetime` (seconds) is ten days or more, in Hz."""
    return [r / 3600 for r in per_hour] + ([1 / DAY] if livetime >= 10 * DAY else [])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baseline", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory whose events are complete")
    parser.add_argument("--far-per-hour", type=float, nargs="+", default=[1.0], help="one a day is added where Tb is ten days or more")
    parser.add_argument("--band", type=float, nargs=2, default=list(BAND), metavar=("LOW", "HIGH"), help="of the baseline, Hz")
    parser.add_argument("--replicates", type=int, default=500, help="of the bootstrap")
    parser.add_argument("--events", type=Path, help="folder that keeps the baseline's events; taken from there when it has them")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    a = parser.parse_args(argv)
    workspace = RunDirectory.find(a.run).workspace()
    events = workspace.complete("events")
    if events is None:
        parser.error(f"{a.run}: its events are not complete; make them with `aframe run {a.run} --until events`")
    try:
        power = CoincidentPower.of(workspace.config, tuple(a.band))
    except ValueError as e:
        parser.error(str(e))
    with tempfile.TemporaryDirectory() as scratch:
        folder = a.events or Path(scratch) / "events"
        try:
            _claim(folder, {"events": events.sha256, "band": list(power.band)})
        except ValueError as e:
            parser.error(str(e))
        if not (folder / REJECTED).is_file():
            search(workspace, power, folder)
        prior, window = workspace.config.injections.prior, workspace.config.inference.recovery_window
        files = {MODEL: workspace.store.open_local(events), POWER: folder}
        searches = {name: [Search.read(path, prior, window)] for name, path in files.items()}
    rates = rates_of(min(s[0].livetime for s in searches.values()), a.far_per_hour)
    _show(compare(searches, rates, a.replicates), rates, power, a.json)


def _claim(folder: Path, what: dict[str, Any]) -> None:
    """Says in `folder` what it is of; raises ValueError where it is of something else."""
    record = folder / "baseline.json"
    if record.is_file() and json.loads(record.read_text()) != what:
        raise ValueError(f"--events {folder}: holds the events of another run or band; expected a new folder, or one of this run and band")
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(what))


def _show(found: dict[str, dict[str, Any]], rates: Sequence[float], power: CoincidentPower, as_json: bool) -> None:
    columns, rows = names_of_quantities(), []
    ours, theirs = found[MODEL], found[POWER]
    gain, error = -theirs["difference"], theirs["difference_error"]
    with np.errstate(divide="ignore", invalid="ignore"):
        sigma = gain / error
    for i, rate in enumerate(rates):
        for q, name in enumerate(columns):
            numbers = (f"{f['value'][i, q]:.3f} ± {f['error'][i, q]:.3f}" for f in (ours, theirs))
            rows.append((_rate(rate), name, *numbers, f"{gain[i, q]:+.3f} ± {error[i, q]:.3f}", f"{sigma[i, q]:.1f}"))
    at = columns.index("all injections")
    notes = [
        f"Tb {ours['Tb'][0] / 3600:.2f} h and {theirs['Tb'][0] / 3600:.2f} h, {ours['num_injections'][0]:,} injections, "
        f"power from {power.band[0]:g} to {power.band[1]:g} Hz"
    ]
    for i, rate in enumerate(rates):
        verdict = "more" if sigma[i, at] > 2 else "NOT more"
        notes.append(f"{_rate(rate)}: the model finds {verdict} of all injections by over 2 sigma ({sigma[i, at]:.1f})")
    result = {
        "ratio": [float(t / o) if o else float("nan") for t, o in zip(theirs["value"][:, at], ours["value"][:, at], strict=True)],
        "fars": list(rates),
        "quantities": columns,
        "snr_bins": [list(b) for b in pairwise(e if np.isfinite(e) else None for e in SNR_EDGES)],
        "model": ours["value"].tolist(),
        "baseline": theirs["value"].tolist(),
        "difference": gain.tolist(),
        "difference_error": error.tolist(),
        "Tb": ours["Tb"][0],
        "num_injections": ours["num_injections"][0],
    }
    title = "Efficiency at equal false-alarm rates, errors by a paired bootstrap over blocks of strain and injections"
    show(title, ("FAR", "", MODEL, POWER, "difference", "sigma"), rows, result, as_json, notes)


def _rate(rate: float) -> str:
    return f"{rate * 3600:.3g} /h" if rate * 3600 >= 0.1 else f"{rate * DAY:.3g} /day"


if __name__ == "__main__":
    main()
