"""Searches of one test set by several trained networks: V and efficiency by SNR at equal false-alarm rates, with their errors.

Errors are a bootstrap over blocks of strain of each detector and over injections: an event of a slide has the weight of its block in
every detector, each drawn from Poisson(1) (the pigeonhole bootstrap, Owen 2007, Ann. Appl. Stat. 1, 386, which errs on the large
side), an injection a weight of its own. All searches share the weights, so that ratios of two of them gain from it. What trainings
with other seeds scatter by is told apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from aframe_assets.inference.aggregate import BACKGROUND, FOREGROUND, REJECTED
from aframe_assets.sensitivity.independence import own_times
from aframe_assets.sensitivity.population import LogNormalPair, Population
from aframe_assets.sensitivity.volume import Draws
from aframe_assets.waveforms.ledger import EventSet, InjectionParameterSet, RecoveredInjectionSet
from aframe_assets.waveforms.priors import get_prior
from benchmarks.table import show

DAY = 86400.0
SNR_EDGES = (5.0, 8.0, 10.0, 12.0, 15.0, 20.0, np.inf)
PAIRS = ((35.0, 35.0), (35.0, 20.0), (20.0, 20.0), (20.0, 10.0))
BLOCK = 64.0
"""Seconds of a detector's own time that are drawn together: a glitch and its neighbours, some cluster windows."""


@dataclass(frozen=True)
class Search:
    """One trained network's events.

    Attributes:
        statistics: of background events, from the loudest down (n,).
        blocks: block of each event's own time in each detector (ifo, n).
        livetime: Tb, seconds.
        found: statistic of every draw of the campaign, -inf where it was missed or rejected (draw,).
        snr: network SNR of every draw.
        accepted: which draws were injected.
        log_weights: of each mass pair, ln of the draws' weights in V (pair, draw).
        volume: V0, Gpc^3.
    """

    statistics: np.ndarray
    blocks: np.ndarray
    livetime: float
    found: np.ndarray
    snr: np.ndarray
    accepted: np.ndarray
    log_weights: np.ndarray
    volume: float

    @classmethod
    def read(cls, folder: Path, prior: str, window: float = 1.0) -> Search:
        """From a folder with the files of the asset `events`.

        Raises:
            FileNotFoundError: one is missing.
        """
        background = EventSet.read(folder / BACKGROUND)
        order = np.argsort(-background.detection_statistic)
        own = own_times(background.detection_time[order], np.reshape(background.shift, (len(background), -1))[order])
        draws = Draws.of(
            RecoveredInjectionSet.read(folder / FOREGROUND), InjectionParameterSet.read(folder / REJECTED), recovery_window=window
        )
        population = Population.of(get_prior(prior))
        log_source = population.log_density_of_draws(draws.mass_1, draws.mass_2, draws.redshift) - population.log_redshift_weight(
            draws.redshift
        )
        masses = np.log(draws.mass_1), np.log(draws.mass_2)
        return cls(
            background.detection_statistic[order],
            np.stack([np.floor(t / BLOCK).astype(np.int64) for t in own]),
            background.Tb,
            draws.statistic,
            draws.snr,
            draws.accepted,
            np.stack([LogNormalPair(a, b, 0.1).log_density(*masses) - log_source for a, b in PAIRS]),
            population.volume,
        )

    def thresholds(self, rates: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Statistic that background exceeds at each rate (Hz); with weights, the livetime is weighted as all events are."""
        if weights is None:
            return self.statistics[np.clip(np.round(rates * self.livetime).astype(int), 1, len(self.statistics)) - 1]
        total = np.cumsum(weights)
        due = rates * self.livetime * total[-1] / len(weights)
        return self.statistics[np.clip(np.searchsorted(total, due), 0, len(total) - 1)]

    def quantities(self, thresholds: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """V of each pair, the efficiency of each SNR bin and that of all injections, at every threshold: (threshold, quantity)."""
        out = np.empty((len(thresholds), len(PAIRS) + len(SNR_EDGES)))
        bins = np.digitize(self.snr, SNR_EDGES) - 1
        w = np.exp(self.log_weights - self.log_weights.max(axis=1, keepdims=True)) * weights
        for i, x in enumerate(thresholds):
            louder = self.found >= x
            out[i, : len(PAIRS)] = self.volume * w[:, louder].sum(1) / w.sum(1)
            for b in range(len(SNR_EDGES) - 1):
                of_bin = self.accepted & (bins == b)
                out[i, len(PAIRS) + b] = weights[of_bin & louder].sum() / max(weights[of_bin].sum(), 1e-12)
            out[i, -1] = weights[self.accepted & louder].sum() / max(weights[self.accepted].sum(), 1e-12)
        return out


def compare(methods: Mapping[str, Sequence[Search]], rates: Sequence[float], replicates: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Of each method, over its seeds.

    Args:
        methods: name -> searches, one for each seed of the training.
        rates: false-alarm rates, Hz, none below 1 / Tb.
        replicates: of the bootstrap.

    Returns:
        name -> value (mean over seeds), error (bootstrap), scatter (standard deviation of one seed), each (rate, quantity);
        ratio and ratio_error against the first method, difference (of it) and difference_error; Tb; num_injections.

    Raises:
        ValueError: a rate that some background cannot give.
    """
    wanted = np.asarray(rates, float)
    for name, searches in methods.items():
        for search in searches:
            if wanted.min() * search.livetime < 1:
                raise ValueError(f"{name}: Tb = {search.livetime / DAY:.3g} d cannot give a FAR of {wanted.min() * DAY:g} /day")
    rng = np.random.default_rng(seed)
    first = min(int(s.blocks.min()) for searches in methods.values() for s in searches)
    last = max(int(s.blocks.max()) for searches in methods.values() for s in searches)
    point = {n: np.array([s.quantities(s.thresholds(wanted), np.ones(len(s.found))) for s in m]) for n, m in methods.items()}
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    most = max(len(s.found) for searches in methods.values() for s in searches)
    for _ in range(replicates):
        of_block = rng.poisson(1.0, (len(next(iter(methods.values()))[0].blocks), last - first + 1)).astype(float)
        of_draw = rng.poisson(1.0, most).astype(float)
        for name, searches in methods.items():
            made = []
            for s in searches:
                weights = np.prod([w[b - first] for w, b in zip(of_block, s.blocks, strict=True)], axis=0)
                made.append(s.quantities(s.thresholds(wanted, weights), of_draw[: len(s.found)]))
            drawn[name].append(np.mean(made, axis=0))
    reference = next(iter(methods))
    out = {}
    for name, searches in methods.items():
        value, replicas = point[name].mean(0), np.array(drawn[name])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio, ratios = value / point[reference].mean(0), replicas / np.array(drawn[reference])
        out[name] = {
            "value": value,
            "error": replicas.std(0),
            "scatter": point[name].std(0, ddof=1) if len(searches) > 1 else np.full_like(value, np.nan),
            "ratio": ratio,
            "ratio_error": np.ma.masked_invalid(ratios).std(0).filled(np.nan),
            "difference": value - point[reference].mean(0),
            "difference_error": (replicas - np.array(drawn[reference])).std(0),
            "Tb": [s.livetime for s in searches],
            "num_injections": [int(s.accepted.sum()) for s in searches],
        }
    return out


def names_of_quantities() -> list[str]:
    """Columns of `Search.quantities`."""
    bins = [f"SNR {a:g} to {b:g}" if np.isfinite(b) else f"SNR above {a:g}" for a, b in pairwise(SNR_EDGES)]
    return [f"V {a:g}+{b:g}, Gpc^3" for a, b in PAIRS] + bins + ["all injections"]


def plot(found: Mapping[str, Mapping[str, Any]], rates: Sequence[float], file: Path) -> None:
    """V of the first pair against FAR, and efficiency by SNR at the lowest FAR."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    days = np.asarray(rates) * DAY
    order = np.argsort(days)
    width = 0.8 / len(found)
    for i, (name, f) in enumerate(found.items()):
        total = np.sqrt(f["error"] ** 2 + np.nan_to_num(f["scatter"]) ** 2)
        left.errorbar(days[order], f["value"][order, 0], total[order, 0], marker="o", capsize=3, label=name)
        at, bins = order[0], slice(len(PAIRS), -1)
        where = np.arange(len(SNR_EDGES) - 1) + (i - len(found) / 2) * width
        right.errorbar(where, f["value"][at, bins], total[at, bins], fmt="o", capsize=3, label=name)
    left.set(xscale="log", xlabel="FAR, 1/day", ylabel=names_of_quantities()[0])
    right.set(ylabel=f"found at FAR {days[order[0]]:g} /day", ylim=(0, 1.05))
    right.set_xticks(range(len(SNR_EDGES) - 1), [n.removeprefix("SNR ") for n in names_of_quantities()[len(PAIRS) : -1]])
    right.set_xlabel("network SNR")
    left.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sensitivity", description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="+", help="NAME=FOLDER,FOLDER,...: event files of each seed, as benchmarks.study keeps them")
    parser.add_argument("--far-per-day", type=float, nargs="+", default=[1.0, 3.456, 24.0], help="3.456: 1e-5 per window at 4 Hz")
    parser.add_argument("--prior", default="demo_mixture", help="of the injections")
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--plot", type=Path, help="picture to write (svg, png)")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    a = parser.parse_args(argv)
    methods = {}
    for text in a.methods:
        name, _, folders = text.partition("=")
        if not folders:
            parser.error(f"{text}: expected NAME=FOLDER,FOLDER,...")
        methods[name] = [Search.read(Path(f), a.prior) for f in folders.split(",")]
    rates = [r / DAY for r in a.far_per_day]
    found = compare(methods, rates, a.replicates)
    if a.plot:
        plot(found, rates, a.plot)
    columns = names_of_quantities()
    rows = []
    for i, rate in enumerate(a.far_per_day):
        for q, column in enumerate(columns):
            cells = [_cell(f["value"][i, q], f["error"][i, q], f["scatter"][i, q]) for f in found.values()]
            rows.append((f"{rate:g} /day", column, *cells))
    result = {name: {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in f.items()} for name, f in found.items()}
    notes = [f"{n}: {len(f['Tb'])} seeds, Tb {min(f['Tb']) / DAY:.1f} d, {min(f['num_injections']):,} injections" for n, f in found.items()]
    show(
        "Sensitivity: value +- bootstrap over strain and injections (scatter of seeds)",
        ("FAR", "", *found),
        rows,
        {
            "ratio": {n: f["ratio"].tolist() for n, f in found.items()},
            "quantities": columns,
            "far_per_day": a.far_per_day,
            "methods": result,
        },
        a.json,
        notes,
    )


def _cell(value: float, error: float, scatter: float) -> str:
    digits = 3 if value < 1.5 else 1
    return f"{value:.{digits}f} +- {error:.{digits}f}" + (f" ({scatter:.{digits}f})" if np.isfinite(scatter) else "")


if __name__ == "__main__":
    main()
