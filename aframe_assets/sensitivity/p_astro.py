"""Probability that a candidate is astrophysical: p = f / (f + b) (reference 2.14, with the corrected volume).

f(x) = R V KDE_fg(x), events per year: R the merger rate, V the corrected sensitive volume of all recovered injections
for the astrophysical population, and KDE_fg weighted as V is, by [p_target / p_source] C_z / (1 + z).
b(x) = n_bg (year / Tb) KDE_bg(x), with an exponential tail above the split where the estimate runs out of events.
Zero-lag events enter neither. `compatible` keeps the forms of 2.14: unweighted density, V0 n_fg / n_total, no monotonic rule.

The model is three lists of numbers and is kept as JSON, never pickled.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aframe_assets.config import SECONDS_PER_YEAR

GRID_POINTS = 512
TAIL_POINTS = 100
"""Points between the lowest and highest background statistic on which the tail is fitted (reference 2.14)."""

_FLOOR = -700.0  # log of the smallest density kept; JSON has no infinity


@dataclass(frozen=True)
class PAstro:
    """A p_astro model.

    Attributes:
        statistic: grid, ascending.
        log_foreground, log_background: ln of f and b, per year and unit statistic, on the grid.
        log_odds: ln f/b used for p; equal to their difference where `monotonic` does not hold it.
        rate: merger rate, Gpc^-3 yr^-1.
        volume, volume_error: Gpc^3.
        split, slope: background tail b ~ exp(slope x) above split.
        effective_samples: of the weighted foreground.
        population: name of the target population.
    """

    statistic: tuple[float, ...]
    log_foreground: tuple[float, ...]
    log_background: tuple[float, ...]
    log_odds: tuple[float, ...]
    rate: float
    volume: float
    volume_error: float
    split: float
    slope: float
    effective_samples: float
    population: str
    compatible: bool = False

    def __call__(self, statistic: Any) -> Any:
        """p_astro of a detection statistic; float -> float, array -> array. Held at its end values outside the grid."""
        odds = np.interp(statistic, self.statistic, self.log_odds)
        p = 1 / (1 + np.exp(-np.clip(odds, _FLOOR, -_FLOOR)))
        return float(p) if np.ndim(p) == 0 else p

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> PAstro:
        """Raises ValueError for a text that is not a model."""
        data = json.loads(text)
        if not isinstance(data, dict) or set(data) != set(cls.__dataclass_fields__):
            raise ValueError(f"not a p_astro model; expected the fields {sorted(cls.__dataclass_fields__)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def gaussian_density(values: np.ndarray, grid: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Weighted Gaussian kernel density of `values` on `grid`, Scott's bandwidth, as scipy's gaussian_kde.

    Values are first put on a fine lattice (linear binning, a twentieth of the bandwidth or finer) and convolved by FFT, so that
    10^7 values cost a second.

    Raises:
        ValueError: fewer than two distinct values.
    """
    from scipy.signal import fftconvolve

    w = np.full(len(values), 1 / max(1, len(values))) if weights is None else weights / weights.sum()
    effective = 1 / (w**2).sum() if len(values) else 0.0
    mean = (w * values).sum()
    # the unbiased weighted variance, as numpy's cov with aweights
    variance = (w * (values - mean) ** 2).sum() / (1 - (w**2).sum()) if effective > 1 else 0.0
    if not variance > 0:
        raise ValueError(
            f"{len(values)} detection statistics ({effective:.1f} effective) have no spread; expected two or more distinct ones"
        )
    width = effective ** (-1 / 5) * np.sqrt(variance)
    step = min(width / 20, (values.max() - values.min()) / 200)
    low = min(values.min(), grid[0]) - 8 * width
    size = int((max(values.max(), grid[-1]) + 8 * width - low) / step) + 2
    if size > 5_000_000:
        span = (values.max() - values.min()) / width
        raise ValueError(f"detection statistics span {span:.3g} kernel widths; look for outliers in inference_results")
    place = (values - low) / step
    left = place.astype(np.int64)
    part = place - left
    lattice = np.bincount(left, w * (1 - part), size) + np.bincount(left + 1, w * part, size)
    reach = int(8 * width / step)
    offsets = np.arange(-reach, reach + 1) * step / width
    kernel = np.exp(-(offsets**2) / 2) / (np.sqrt(2 * np.pi) * width)
    density = np.maximum(fftconvolve(lattice, kernel, mode="same"), 0)
    return np.interp(grid, low + step * np.arange(size), density)


def background_tail(values: np.ndarray) -> tuple[float, float, float]:
    """(split, slope, intercept) of ln pdf = intercept + slope x above `split` (reference 2.14).

    The fit runs, right of the peak, from where the density falls below 10 / sqrt(n) to where it falls below 1 / sqrt(n), the
    split. A background too small or too flat to show such a region is given the exponential of its loudest tenth.
    """
    x = np.linspace(values.min(), values.max(), TAIL_POINTS)
    pdf = gaussian_density(values, x)
    tau = 1 / np.sqrt(len(values))
    peak = int(pdf.argmax())
    start = next((i for i in range(peak, len(x)) if pdf[i] < 10 * tau), len(x) - 1)
    stop = next((i for i in range(start, len(x)) if pdf[i] < tau), len(x) - 1)
    if stop - start >= 2 and pdf[start : stop + 1].min() > 0:
        slope, intercept = np.polyfit(x[start : stop + 1], np.log(pdf[start : stop + 1]), 1)
        if slope < 0:
            return float(x[stop]), float(slope), float(intercept)
    loud = np.sort(values)[-max(2, len(values) // 10) :]
    slope = -1 / max(float(loud.mean() - loud[0]), 1e-6)
    # normalised so that the tail holds the events it was taken from
    return float(loud[0]), slope, float(np.log(-slope * len(loud) / len(values)) - slope * loud[0])


def fit_p_astro(
    background: np.ndarray,
    background_livetime: float,
    foreground: np.ndarray,
    weights: np.ndarray,
    total_weight: float,
    total_square: float,
    volume: float,
    *,
    rate: float,
    population: str,
    compatible: bool = False,
) -> PAstro:
    """Fit a model.

    Args:
        background: statistics of slid background, shape (n_bg,).
        background_livetime: Tb, seconds.
        foreground: statistics of recovered injections, shape (n_fg,), finite.
        weights: importance weight of each, arbitrary scale; all equal if compatible.
        total_weight, total_square: sums of weight and squared weight over all draws, rejected and missed ones included, on the same scale.
        volume: V0 of the draws, Gpc^3.
        rate: merger rate, Gpc^-3 yr^-1.
        population: name of the population that the weights stand for.
        compatible: no monotonic rule.

    Raises:
        ValueError: too few events to estimate a density from.
    """
    for what, values in (("background events", background), ("recovered injections", foreground)):
        if len(np.unique(values)) < 10:
            raise ValueError(f"p_astro: {len(values)} {what}; expected at least 10 with different statistics")
    split, slope, intercept = background_tail(background)
    low, high = min(background.min(), foreground.min()), max(background.max(), foreground.max())
    x = np.linspace(low, high, GRID_POINTS)
    with np.errstate(divide="ignore"):
        share = weights.sum() / total_weight
        log_f = np.log(rate * volume * share) + np.log(gaussian_density(foreground, x, weights))
        log_b = np.where(x > split, intercept + slope * x, np.log(gaussian_density(background, x)))
    log_b = log_b + np.log(len(background) * SECONDS_PER_YEAR / background_livetime)
    log_f, log_b = np.maximum(log_f, _FLOOR), np.maximum(log_b, _FLOOR)
    odds = log_f - log_b
    if not compatible:
        # A louder event is never less probably a signal; beyond the data both kernels only show their own shape.
        middle = int(np.searchsorted(x, np.median(background)))
        odds[middle:] = np.maximum.accumulate(odds[middle:])
        odds[: middle + 1] = np.minimum.accumulate(odds[middle::-1])[::-1]
    square = float((weights**2).sum())
    variance = (square * (1 - 2 * share) + share**2 * total_square) / total_weight**2
    return PAstro(
        tuple(x.tolist()),
        tuple(log_f.tolist()),
        tuple(log_b.tolist()),
        tuple(odds.tolist()),
        float(rate),
        float(volume * share),
        float(volume * np.sqrt(max(variance, 0))),
        split,
        slope,
        float(weights.sum() ** 2 / square),
        population,
        compatible,
    )
