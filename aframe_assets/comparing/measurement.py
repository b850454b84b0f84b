"""Searches of the same strain and injections by several models: V(FAR) and shares found of each, and their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aframe_assets.comparing.models import ComparisonError
from aframe_assets.comparing.significance import Noise, Paired
from aframe_assets.config import SECONDS_PER_YEAR
from aframe_assets.inference.aggregate import BACKGROUND, FOREGROUND, REJECTED
from aframe_assets.sensitivity.curves import FIRST_COUNT, Curves, Rate, volume_curves
from aframe_assets.sensitivity.far import Background
from aframe_assets.sensitivity.independence import BLOCK_WINDOWS
from aframe_assets.sensitivity.plots import UNITS
from aframe_assets.sensitivity.population import LogNormalPair, Population
from aframe_assets.sensitivity.volume import Draws, log_constants
from aframe_assets.waveforms.ledger import EventSet, InjectionParameterSet, RecoveredInjectionSet

if TYPE_CHECKING:
    from aframe_assets.config import Config

SEEN = "seen.npy"
"""File of a model's search: which injections it saw whole."""

SNR_EDGES = (8.0, 10.0, 12.0, 15.0, 20.0)
"""Of bins of network SNR; the first begins at the cut of the injections."""


@dataclass(frozen=True)
class Search:
    """One model's events.

    Attributes:
        background: slid events.
        foreground: every injection, in order of time and slide.
        rejected: draws below the SNR cut.
        seen: which injections were seen whole (n,).
        rings: (start, duration) of chunks that were slid in a ring, GPS seconds.
    """

    background: EventSet
    foreground: RecoveredInjectionSet
    rejected: InjectionParameterSet
    seen: np.ndarray
    rings: Sequence[tuple[float, float]] = ()

    @classmethod
    def read(cls, folder: Path, rings: Sequence[tuple[float, float]] = ()) -> Search:
        """From a folder with the files of the asset `events`, and `SEEN` where there is one; else every injection was seen whole."""
        foreground = RecoveredInjectionSet.read(folder / FOREGROUND)
        order = np.lexsort((*np.reshape(foreground.shift, (len(foreground), -1)).T, foreground.injection_time))
        return cls(
            EventSet.read(folder / BACKGROUND),
            foreground[order],
            InjectionParameterSet.read(folder / REJECTED),
            np.load(folder / SEEN)[order] if (folder / SEEN).is_file() else np.ones(len(order), bool),
            rings,
        )


@dataclass(frozen=True)
class Quantity:
    """What models are compared in: a weighted share of draws.

    Attributes:
        name: 'found', 'snr 8-10', or a mass pair as '35-20'.
        label: for readers.
        unit: 'Gpc^3' of volumes, else ''.
        weights: of the draws, adding up to one (num_draws,).
        scale: V0 of volumes, else 1.
    """

    name: str
    label: str
    unit: str
    weights: np.ndarray
    scale: float = 1.0


@dataclass(frozen=True)
class Compared:
    """Result of `compare`; `table` is plain data."""

    curves: dict[str, Curves]
    table: dict[str, Any]


def common_draws(searches: Mapping[str, Search], config: Config) -> tuple[dict[str, Draws], int]:
    """The draws that every model had the chance to find, row by row the same for all, and how many injections that leaves out.

    Which injections are left out depends on their times alone, so that as large a share of the rejected draws is left out with them.

    Raises:
        ComparisonError: the searches are not of the same injections.
    """
    names = list(searches)
    first = searches[names[0]].foreground
    for name in names[1:]:
        other = searches[name].foreground
        same = len(other) == len(first) and all(
            np.array_equal(getattr(first, k), getattr(other, k)) for k in ("injection_time", "shift", "mass_1", "snr")
        )
        if not same:
            raise ComparisonError(
                f"{names[0]} and {name} were not given the same injections; remove neither's artifacts by hand, run again"
            )
    keep = np.logical_and.reduce([s.seen for s in searches.values()])
    if not len(first):
        raise ComparisonError("there are no injections to compare models on; expected a run with injections.num_signals > 0")
    if not keep.any():
        raise ComparisonError(f"none of {len(first)} injections is seen whole by every model: segments are too short for some of them")
    rejected = searches[names[0]].rejected
    chosen = np.linspace(0, len(rejected), round(len(rejected) * keep.mean()), endpoint=False).astype(int)
    window, snr_max = config.inference.recovery_window, config.sensitivity.snr_max
    of = {n: Draws.of(s.foreground[keep], rejected[chosen], recovery_window=window, snr_max=snr_max) for n, s in searches.items()}
    return of, int((~keep).sum())


def quantities(config: Config, draws: Draws, population: Population) -> list[Quantity]:
    """Share of all injections found, the volume of each mass pair, share found by network SNR; those without a draw are left out."""
    s, accepted = config.sensitivity, draws.accepted.astype(float)
    out = [Quantity("found", "injections found", "", accepted)]
    constants = log_constants(draws, population, compatible=s.aframe_compatible)
    for a, b in s.mass_combos:
        target = LogNormalPair(a, b, s.target_sigma)
        log_w = target.log_density(np.log(draws.mass_1), np.log(draws.mass_2)) + constants
        out.append(Quantity(target.name, f"V {a:g} + {b:g}", "Gpc^3", np.exp(log_w - log_w.max()), population.volume))
    edges = [e for e in SNR_EDGES if e > config.waveforms.snr_threshold]
    for low, high in pairwise([config.waveforms.snr_threshold, *edges, np.inf]):
        label = f"SNR {low:g} to {high:g}" if np.isfinite(high) else f"SNR above {low:g}"
        name = f"snr {low:g}-{high:g}" if np.isfinite(high) else f"snr {low:g}-"
        out.append(Quantity(name, label, "", accepted * ((draws.snr >= low) & (draws.snr < high))))
    return [Quantity(q.name, q.label, q.unit, q.weights / q.weights.sum(), q.scale) for q in out if q.weights.sum() > 0]


def rates_of(config: Config, backgrounds: Mapping[str, Background]) -> list[Rate]:
    """The rates of the experiment; with the lowest that all backgrounds can give, if they can give none of these."""
    s, first = config.sensitivity, 1 if config.sensitivity.aframe_compatible else FIRST_COUNT
    asked = Rate.wanted(s.fars_per_hour, s.fars_per_year)
    lowest = max(first / b.livetime for b in backgrounds.values())
    if any(rate.hertz >= lowest * (1 - 1e-12) for rate in asked):
        return asked
    unit = "1/h" if s.fars_per_hour else "1/yr"
    # rounded up, to be read
    value = float(f"{1.005 * lowest * UNITS[unit]:.3g}")
    return [*asked, Rate(value, unit, value / UNITS[unit])]


def compare(config: Config, searches: Mapping[str, Search], prior: Any) -> Compared:
    """All models at the rates of the experiment, and every difference of two.

    Args:
        config: of the search that they share.
        searches: by name of the model; the first is what others are compared with in print.
        prior: of the injections.

    Raises:
        ComparisonError: searches of other injections, or a model without any background.
        ValueError: as `aframe_assets.sensitivity.curves.volume_curves`.
    """
    s, window = config.sensitivity, config.inference.recovery_window
    draws, left_out = common_draws(searches, config)
    population, block = Population.of(prior), BLOCK_WINDOWS * config.inference.cluster_window_length
    backgrounds: dict[str, Background] = {}
    for name, search in searches.items():
        if not len(search.background):
            raise ComparisonError(f"{name}: its search has no background event: no test segment is long enough for its conditioning")
        backgrounds[name] = Background.of_slides(search.background, config.inference.cluster_window_length, search.rings)
    noise = {n: Noise.of(s.background, backgrounds[n], block, s.rings) for n, s in searches.items()}
    rates = rates_of(config, backgrounds)
    curves = {
        name: volume_curves(
            draws[name],
            population,
            background,
            s.mass_combos,
            rates,
            sigma=s.target_sigma,
            max_far=None if s.max_far is None else s.max_far / SECONDS_PER_YEAR,
            min_effective_samples=s.min_effective_samples,
            recovery_window=window,
            compatible=s.aframe_compatible,
            snr_threshold=config.waveforms.snr_threshold,
        )
        for name, background in backgrounds.items()
    }
    names = list(searches)
    asked = quantities(config, draws[names[0]], population)
    statistics = np.stack([draws[n].statistic for n in names])
    rows: dict[str, list[dict[str, Any]]] = {n: [] for n in names}
    differences, refused = [], []
    for rate in rates:
        at = {"far": rate.value, "far_unit": rate.unit}
        unable = {n: r["note"] for n in names for r in curves[n].rows if _is(r, rate) and r["status"] == "not_measurable"}
        if unable:
            worst = min(unable, key=lambda n: backgrounds[n].livetime)
            refused.append(at | {"note": f"{unable[worst]} ({worst})"})
            continue
        paired = Paired.of([noise[n] for n in names], statistics, rate.hertz)
        limits = {
            (n, f"{r['mass_1']:g}-{r['mass_2']:g}"): {"upper_limit": r["upper_limit"]}
            for n in names
            for r in curves[n].rows
            if _is(r, rate) and r["status"] == "upper_limit"
        }
        for q in asked:
            values, errors = paired.values(q.weights)
            for n, value, error in zip(names, values, errors, strict=True):
                own = {"quantity": q.name, "value": q.scale * float(value), "error": q.scale * float(error)}
                rows[n].append(at | own | limits.get((n, q.name), {}))
            for a, b in combinations(range(len(names)), 2):
                d = paired.difference(b, a, q.weights, q.scale)
                differences.append(at | {"quantity": q.name, "first": names[b], "second": names[a]} | _plain(d))
    return Compared(
        curves,
        {
            "reference": names[0],
            "quantities": [{"name": q.name, "label": q.label, "unit": q.unit} for q in asked],
            "models": [
                {
                    "name": n,
                    "Tb": backgrounds[n].livetime,
                    "num_background": len(backgrounds[n].statistics),
                    "values": rows[n],
                }
                for n in names
            ],
            "differences": differences,
            "not_measurable": refused,
            "num_injections": int(draws[names[0]].accepted.sum()),
            "num_left_out": left_out,
            "warnings": list(dict.fromkeys(w for n in names for w in curves[n].warnings)),
        },
    )


def _is(row: Mapping[str, Any], rate: Rate) -> bool:
    return (row["far"], row["far_unit"]) == (rate.value, rate.unit)


def _plain(d: Any) -> dict[str, Any]:
    """A difference as plain data."""
    derived = ("sigma", "p_value", "few")
    return {k: getattr(d, k) for k in (*(f.name for f in fields(d)), *derived)}
