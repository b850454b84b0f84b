"""One measurement: background, injections and a population in; V(FAR), p_astro and their files out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aframe_assets.config import SECONDS_PER_YEAR
from aframe_assets.sensitivity.curves import FIRST_COUNT, Curves, Rate, volume_curves
from aframe_assets.sensitivity.far import Background, per_hour, per_year
from aframe_assets.sensitivity.p_astro import PAstro, fit_p_astro, tail_warning
from aframe_assets.sensitivity.population import ASTROPHYSICAL, Population, comoving_volume
from aframe_assets.sensitivity.snr_cut import QuietSignals
from aframe_assets.sensitivity.volume import Draws

if TYPE_CHECKING:
    from aframe_assets.config import Config


@dataclass(frozen=True)
class Measurement:
    """What `measure` found; `p_astro` is None when there is too little to fit it, and a warning says why."""

    background: Background
    draws: Draws
    curves: Curves
    p_astro: PAstro | None
    warnings: tuple[str, ...]


def measure(
    config: Config,
    background: Any,
    foreground: Any,
    rejected: Any,
    prior: Any,
    astrophysical: Any,
    *,
    zero_lag_livetime: float = 0.0,
    rings: Sequence[tuple[float, float]] = (),
) -> Measurement:
    """V(FAR) of every mass pair and the p_astro model.

    Args:
        background: EventSet of all slides, with its livetime `Tb`.
        foreground: RecoveredInjectionSet.
        rejected: InjectionParameterSet of the draws below the SNR cut.
        prior: the prior that the injections were drawn from.
        astrophysical: the prior that stands for nature in p_astro.
        zero_lag_livetime: T0, seconds, for VT.
        rings: (start, duration) of chunks that were slid in a ring, GPS seconds.

    Raises:
        ValueError: nothing to measure with, a background that holds zero-lag events, or injections that are not of `prior`; the message
            says what to change.
    """
    s, window = config.sensitivity, config.inference.recovery_window
    _require_slid(background)
    slides = Background.of_slides(background, config.inference.cluster_window_length, rings)
    draws = Draws.of(foreground, rejected, recovery_window=window, snr_max=s.snr_max)
    population = Population.of(prior)
    curves = volume_curves(
        draws,
        population,
        slides,
        s.mass_combos,
        Rate.wanted(s.fars_per_hour, s.fars_per_year),
        sigma=s.target_sigma,
        max_far=None if s.max_far is None else s.max_far / SECONDS_PER_YEAR,
        min_effective_samples=s.min_effective_samples,
        recovery_window=window,
        compatible=s.aframe_compatible,
        zero_lag_livetime=zero_lag_livetime,
        snr_threshold=config.waveforms.snr_threshold,
    )
    warnings = list(curves.warnings)
    stated = getattr(foreground, "num_injections", None)
    rows = len(foreground) + len(rejected)
    if stated is not None and stated != rows:
        warnings.append(f"the injection campaign states {stated} draws, but {rows} were stored; V is normalised by those stored")
    model = None
    try:
        volume = _sampled_volume(foreground, rejected) if s.aframe_compatible else population.volume
        model, doubts = _p_astro(config, slides, draws, population, astrophysical, volume)
        warnings += doubts
    except ValueError as e:
        warnings.append(f"no p_astro: {e}")
    return Measurement(slides, draws, curves, model, tuple(warnings))


def _require_slid(background: Any) -> None:
    """A signal in zero lag that entered the background would raise its own false-alarm rate and lower its own p_astro."""
    shift = np.asarray(background.shift, dtype=float)
    unslid = int((~shift.reshape(len(shift), -1).any(axis=1)).sum()) if len(shift) else 0
    if unslid:
        raise ValueError(f"background: {unslid} of {len(background)} events have shift 0 in every detector; expected slid events only")


def _sampled_volume(foreground: Any, rejected: Any) -> float:
    """V0 over the redshifts and declinations between the lowest and highest drawn, as reference 2.14 takes it, Gpc^3."""
    z, dec = (np.concatenate([getattr(foreground, k), getattr(rejected, k)]) for k in ("redshift", "dec"))
    return comoving_volume(float(z.min()), float(z.max()), float(dec.min()), float(dec.max()), time_dilated=True)


def _p_astro(
    config: Config, slides: Background, draws: Draws, population: Population, astrophysical: Any, volume: float
) -> tuple[PAstro, list[str]]:
    """The model, and what speaks against it."""
    s, doubts = config.sensitivity, []
    if s.aframe_compatible:
        weights = np.ones(len(draws))
    else:
        log_source = population.log_density_of_draws(draws.mass_1, draws.mass_2, draws.redshift)
        log_target = astrophysical.log_mass_density(draws.mass_1, draws.mass_2)
        ratio = np.exp(log_target - log_source)
        weights = ratio * np.exp(population.log_redshift_weight(draws.redshift))
        share, error = float(ratio.mean()), float(ratio.std() / np.sqrt(len(ratio)))
        if abs(share - 1) > max(0.05, 5 * error):
            doubts.append(
                f"p_astro: the injections' prior holds {share:.3f} +- {error:.3f} of {ASTROPHYSICAL}, expected 1; V is that of this part, "
                "the merger rate is taken to be that of all"
            )
    found = np.isfinite(draws.statistic) & (weights > 0)
    model = fit_p_astro(
        slides.statistics,
        slides.livetime,
        draws.statistic[found],
        weights[found],
        float(weights.sum()),
        float((weights**2).sum()),
        volume,
        rate=s.merger_rate,
        rate_interval=s.merger_rate_interval,
        population=config.injections.prior if s.aframe_compatible else ASTROPHYSICAL,
        compatible=s.aframe_compatible,
        independence=slides.independence,
    )
    if tail := tail_warning(model, slides.statistics, slides.livetime, slides.independence):
        doubts.append(tail)
    if model.effective_samples < s.min_effective_samples:
        few = f"{model.effective_samples:.1f} effective found injections of {model.population}"
        doubts.append(f"p_astro rests on {few}, fewer than {s.min_effective_samples:g}")
    return model, doubts


def summary(config: Config, m: Measurement) -> dict[str, Any]:
    """The measurement as plain data: rows, limits, counts and warnings."""
    s = config.sensitivity
    first = 1 if s.aframe_compatible else FIRST_COUNT
    lowest = first / m.background.livetime
    return {
        "rows": [dict(r) for r in m.curves.rows],
        "warnings": list(m.warnings),
        "exercise": s.exercise,
        "aframe_compatible": s.aframe_compatible,
        "estimator": "aframe_v1" if s.aframe_compatible else "self_normalised_redshift_weighted",
        "Tb": m.background.livetime,
        "Tb_effective": _effective_livetime(m, first),
        "accepted_near_cut": _quiet(m.curves.quiet),
        "num_background": len(m.background.statistics),
        "lowest_count": first,
        "lowest_far_per_hour": per_hour(lowest),
        "lowest_far_per_year": per_year(lowest),
        "speaks_of_one_per_year": bool(per_year(lowest) <= 1),
        "far_limit_per_year": per_year(1 / m.background.livetime),
        "V0": m.curves.v0,
        "redshift_range": list(m.curves.redshift_range),
        "num_draws": len(m.draws),
        "num_accepted": int(m.draws.accepted.sum()),
        "num_recovered": int(np.isfinite(m.draws.statistic).sum()),
        "min_effective_samples": s.min_effective_samples,
        "pairs": [
            {
                "mass_1": t.mass_1,
                "mass_2": t.mass_2,
                "total_samples": e.total_samples,
                "mean_weight": e.mean_weight,
                "mean_weight_error": e.mean_weight_error,
                "coverage": e.coverage,
            }
            for t, e in zip(m.curves.targets, m.curves.curves, strict=True)
        ],
        "p_astro": None
        if m.p_astro is None
        else {
            "volume": m.p_astro.volume,
            "volume_error": m.p_astro.volume_error,
            "rate": m.p_astro.rate,
            "rate_interval": list(m.p_astro.rate_interval),
            "population": m.p_astro.population,
            "effective_samples": m.p_astro.effective_samples,
        },
    }


def _effective_livetime(m: Measurement, first: int) -> float | None:
    """Tb_eff, seconds, at the lowest rate that V is given at, or else the lowest measurable one; None with less background than that."""
    counts = [r["count"] for r in m.curves.rows if r["status"] != "not_measurable"]
    k = min(counts, default=first)
    return float(m.background.independence.livetime(k, m.background.livetime)) if k <= len(m.background.statistics) else None


def _quiet(q: QuietSignals | None) -> dict[str, Any] | None:
    if q is None:
        return None
    return {
        "cut": q.cut,
        "num": q.num,
        "num_found": q.num_found,
        "found_share": q.found_share,
        "accidental": q.accidental,
        "probability": q.probability,
        "text": q.text,
    }


def write_hdf5(path: Path, m: Measurement) -> Path:
    """V(FAR) in Aframe's layout (reference 2.13, step 7): `thresholds`, `fars` (1/yr), groups ``{m1}-{m2}`` with `sv` and `err` (Gpc^3).

    Added: `counts`, `effective_counts`, and per group `effective_samples`, `upper_limit`, and `sv_by_count` and `err_by_count`, the
    estimate divided by the number of draws; attributes Tb (s), V0 (Gpc^3).
    """
    import h5py

    with h5py.File(path, "w") as f:
        f.attrs.update({"Tb": m.background.livetime, "V0": m.curves.v0, "far_unit": "1/yr", "volume_unit": "Gpc^3"})
        f.attrs["mass_combos"] = [[t.mass_1, t.mass_2] for t in m.curves.targets]
        f["thresholds"], f["fars"], f["counts"] = m.curves.thresholds, per_year(m.curves.fars), m.curves.counts
        f["effective_counts"] = m.curves.effective_counts
        for target, curve in zip(m.curves.targets, m.curves.curves, strict=True):
            group = f.create_group(target.name)
            group["sv"], group["err"] = curve.volume, curve.error
            group["effective_samples"], group["upper_limit"] = curve.found_samples, curve.upper_limit
            group["sv_by_count"], group["err_by_count"] = curve.volume_by_count, curve.error_by_count
    return path


def write_json(path: Path, value: Any) -> Path:
    """`value` as JSON without NaN or infinity."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False))
    return path


def write_p_astro(path: Path, model: PAstro | None) -> Path:
    """The model, or ``null`` when there is none."""
    path.write_text("null" if model is None else model.to_json())
    return path


def read_p_astro(path: Path) -> PAstro | None:
    """The inverse of `write_p_astro`."""
    text = path.read_text()
    return None if text.strip() == "null" else PAstro.from_json(text)
