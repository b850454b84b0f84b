"""V(FAR) of mass pairs on a grid k / Tb, and at the rates that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aframe_assets.config import SECONDS_PER_YEAR
from aframe_assets.sensitivity.far import Background
from aframe_assets.sensitivity.horizon import Shell, cut_off
from aframe_assets.sensitivity.population import LogNormalPair, Population
from aframe_assets.sensitivity.snr_cut import QuietSignals, quiet_signals
from aframe_assets.sensitivity.volume import COVERAGE_FLOOR, Draws, Estimate, Sample, estimate, sensitive_distance

FIRST_COUNT = 10
"""Lowest background count of the FAR grid: an error of 32 % were every event independent."""

FEW_INDEPENDENT = 4
"""Effective background count below which a rate has an error above half of itself, and a warning says so."""

COMPATIBLE_MAX_FAR = 365 / SECONDS_PER_YEAR
"""Aframe's cap of the FAR grid, Hz."""


@dataclass(frozen=True)
class Rate:
    """A FAR at which V is wanted: `value` per `unit` ('1/h' or '1/yr'), in Hz `hertz`."""

    value: float
    unit: str
    hertz: float

    @classmethod
    def wanted(cls, per_hour: Sequence[float], per_year: Sequence[float]) -> list[Rate]:
        """The rates of a configuration, those per hour first."""
        return [cls(f, "1/h", f / 3600) for f in per_hour] + [cls(f, "1/yr", f / SECONDS_PER_YEAR) for f in per_year]


@dataclass(frozen=True)
class Curves:
    """V(FAR) of every mass pair.

    Attributes:
        counts: background counts k of the grid, ascending.
        fars: k / Tb, Hz.
        thresholds: k-th loudest background statistic.
        effective_counts: independent events that the counts are worth, N_eff.
        curves: one Estimate over the grid per target.
        rows: V at the wanted rates, plain data, one row per rate and target (see `row_fields`).
        warnings: sentences for the reader.
        v0: Gpc^3.
        num_found: injections at or above each threshold.
        quiet: what became of injections just above the SNR cut; None where no rate could be measured or
            the draws have no SNR.
        redshift_range: of the injections.
    """

    targets: tuple[LogNormalPair, ...]
    counts: np.ndarray
    fars: np.ndarray
    thresholds: np.ndarray
    effective_counts: np.ndarray
    curves: tuple[Estimate, ...]
    rows: tuple[dict, ...]
    warnings: tuple[str, ...]
    v0: float
    num_found: np.ndarray
    quiet: QuietSignals | None
    redshift_range: tuple[float, float]


def volume_curves(
    draws: Draws,
    population: Population,
    background: Background,
    pairs: Sequence[tuple[float, float]],
    rates: Sequence[Rate],
    *,
    sigma: float = 0.1,
    max_far: float | None = None,
    min_effective_samples: float = 10,
    recovery_window: float = 1.0,
    compatible: bool = False,
    num_grid: int | None = 1000,
    zero_lag_livetime: float = 0.0,
    snr_threshold: float = 4.0,
) -> Curves:
    """V of every mass pair on a FAR grid and at the wanted rates.

    Args:
        pairs: (mass_1, mass_2) of each target, source frame.
        rates: rates at which V is tabulated; a rate below 10 / Tb (1 / Tb if compatible) is refused in its row.
        sigma: of the log-normal targets.
        max_far: cap of the grid, Hz; None for no cap (Aframe's 365 / yr if compatible).
        min_effective_samples: below this many effective found draws, V is an upper limit.
        recovery_window: seconds, for the share of accidental recoveries.
        compatible: Aframe v1's weights, variance and grid.
        num_grid: most points of the grid.
        zero_lag_livetime: T0, seconds, for VT.
        snr_threshold: network SNR of the cut of the injections.

    Raises:
        ValueError: no draws, no weight, or draws that do not come from `population`.
    """
    if not len(draws):
        raise ValueError("no injections: foreground and rejected draws are both empty; expected injections.num_signals > 0 and test data")
    first = 1 if compatible else FIRST_COUNT
    counts = background.grid(first, max_far or (COMPATIBLE_MAX_FAR if compatible else None), None if compatible else num_grid)
    grid = background.kth_loudest(counts)
    asked, refused = _asked(rates, background, first)
    around = [t for k, t in asked.values() for t in (t, *_band(background, k))]
    sample = Sample.of(draws, population, np.concatenate([grid, around]), compatible=compatible)
    n = len(grid)
    found = sample.above
    targets, shell = tuple(LogNormalPair(a, b, sigma) for a, b in pairs), Shell.of(draws, population)
    curves, rows, warnings = [], [], []
    for target in targets:
        whole = estimate(sample, target, population)
        curves.append(whole.cut(slice(0, n)))
        if whole.coverage < COVERAGE_FLOOR:
            warnings.append(f"{target.label}: only {whole.coverage:.0%} of the target lies where the injections' prior has draws")
        if whole.total_samples < 10 * min_effective_samples:
            warnings.append(
                f"{target.label}: all injections together are worth {whole.total_samples:.0f} draws of this target; "
                "errors of V cannot be trusted, use more injections or a prior made for the mass pairs"
            )
        if not whole.agrees:
            warnings.append(
                f"{target.label}: mean weight {whole.mean_weight:.3f} +- {whole.mean_weight_error:.3f}, expected 1, so that the "
                "self-normalised volume and the one divided by the number of draws disagree: "
                "the injections do not follow the density of injections.prior, or do not cover this target"
            )
        for rate in rates:
            row = {"mass_1": target.mass_1, "mass_2": target.mass_2, "far": rate.value, "far_unit": rate.unit}
            if rate in refused:
                rows.append(row | {"status": "not_measurable", "note": refused[rate]})
                continue
            at = n + 3 * list(asked).index(rate)
            k, threshold = asked[rate]
            row |= _row(whole, at, k, threshold, background, int(found[at]), recovery_window)
            row |= _reach(row["volume"], row["error"], population.solid_angle, zero_lag_livetime)
            row["edge_efficiency"], row["edge_error"] = shell.efficiency(target, threshold)
            row["cut_off"] = cut_off(row["edge_efficiency"], row["edge_error"])
            if row["effective_samples"] < min_effective_samples:
                row["status"] = "upper_limit"
                few = f"{row['effective_samples']:.1f} effective found injections, fewer than {min_effective_samples:g}"
                row["note"] = f"{few}: V < {row['upper_limit']:.3g} Gpc^3 (90 %)"
                warnings.append(f"{target.label} at FAR {rate.value:g} {rate.unit}: {row['note']}")
            rows.append(row)
    farthest = population.redshift_range[1]
    for row in rows:
        if row.get("cut_off"):
            warnings.append(
                f"({row['mass_1']:g}, {row['mass_2']:g}) at FAR {row['far']:g} {row['far_unit']}: {row['edge_efficiency']:.0%} of the "
                f"signals at the farthest injections (z {shell.redshift:.2f} to {farthest:g}) are found: V is that within "
                f"z = {farthest:g}, not of all signals; use an injections.prior that reaches farther"
            )
    warnings += [f"FAR {r.value:g} {r.unit}: {text}" for r, text in refused.items()]
    for rate, (k, _) in asked.items():
        worth = background.independence.count(k)
        if worth < FEW_INDEPENDENT:
            warnings.append(
                f"FAR {rate.value:g} {rate.unit}: its {k} background events are worth {worth:.1f} independent ones "
                "(slides reuse glitches), "
                f"so the rate has an error of {background.independence.relative_error(k):.0%}; add test data rather than slides"
            )
    if draws.num_outside_window:
        many = draws.num_outside_window
        warnings.append(f"{many} injections were matched to an event more than {recovery_window:g} s away and count as missed")
    quiet = None
    if asked and draws.snr is not None:
        # at the highest rate most is found: if the SNR cut loses signals, it shows there first
        rate = max(asked, key=lambda r: r.hertz)
        k, threshold = asked[rate]
        quiet = quiet_signals(draws, threshold, accidental_probability(k / background.livetime, recovery_window), snr_threshold)
        if quiet.lost:
            warnings.append(f"at FAR {rate.value:g} {rate.unit}, {quiet.text}; lower waveforms.snr_threshold")
    return Curves(
        targets,
        counts,
        counts / background.livetime,
        grid,
        background.independence.count(counts),
        tuple(curves),
        tuple(rows),
        tuple(warnings),
        population.volume,
        found[:n],
        quiet,
        population.redshift_range,
    )


def _asked(rates: Sequence[Rate], background: Background, first: int) -> tuple[dict[Rate, tuple[int, float]], dict[Rate, str]]:
    """(count, threshold) of the rates that can be measured, and why the others cannot."""
    asked, refused = {}, {}
    for rate in rates:
        unit = SECONDS_PER_YEAR if rate.unit == "1/yr" else 3600.0
        per = rate.unit.removeprefix("1")
        lowest, highest = first / background.livetime, len(background.statistics) / background.livetime
        if rate.hertz < lowest * (1 - 1e-12):
            least = f"{first}/Tb = {lowest * unit:.4g} {per} with Tb = {background.livetime:.6g} s"
            refused[rate] = f"not measurable: the lowest measurable FAR is {least}"
        elif rate.hertz >= highest * (1 + 1e-12) + 1 / background.livetime:
            refused[rate] = f"not measurable: the whole background has a rate of {highest * unit:.4g} {per}"
        else:
            k = min(int(np.floor(rate.hertz * background.livetime * (1 + 1e-12))), len(background.statistics))
            asked[rate] = (k, background.threshold(k / background.livetime))
    return asked, refused


def _band(background: Background, k: int) -> tuple[float, float]:
    """Thresholds of k - s and k + s events, s the standard deviation of k: where the true threshold may lie."""
    n, spread = len(background.statistics), k * background.independence.relative_error(k)
    low, high = max(1, round(k - spread)), min(n, round(k + spread))
    return float(background.kth_loudest(low)), float(background.kth_loudest(high))


def accidental_probability(far: float, recovery_window: float) -> float:
    """Probability that noise as loud as FAR `far` (Hz) lies within `recovery_window` seconds of an injection: 1 - exp(-2 FAR dt)."""
    return float(-np.expm1(-far * 2 * recovery_window))


def _reach(volume: float, error: float, solid_angle: float, livetime: float) -> dict:
    """The volume as a distance (Mpc) and as VT (Gpc^3 yr), with errors."""
    distance = sensitive_distance(volume, solid_angle)
    years = livetime / SECONDS_PER_YEAR
    return {
        "sensitive_distance": float(distance),
        "sensitive_distance_error": float(distance * error / (3 * volume)) if volume > 0 else 0.0,
        "vt": volume * years,
        "vt_error": error * years,
    }


def _row(e: Estimate, at: int, k: int, threshold: float, background: Background, found: int, recovery_window: float) -> dict:
    far = k / background.livetime
    return {
        "status": "measured",
        "note": "",
        "count": k,
        "far_measured_per_year": far * SECONDS_PER_YEAR,
        "far_relative_error": float(background.independence.relative_error(k)),
        "effective_count": float(background.independence.count(k)),
        "Tb_effective": float(background.independence.livetime(k, background.livetime)),
        "threshold": threshold,
        "volume": float(e.volume[at]),
        "error": float(e.error[at]),
        "volume_by_count": float(e.volume_by_count[at]),
        "error_by_count": float(e.error_by_count[at]),
        "volume_at_far_minus": float(e.volume[at + 1]),
        "volume_at_far_plus": float(e.volume[at + 2]),
        "effective_samples": float(e.found_samples[at]),
        "num_found": found,
        "upper_limit": float(e.upper_limit[at]),
        "accidental_probability": accidental_probability(far, recovery_window),
    }
