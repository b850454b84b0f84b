"""Probability that a candidate is astrophysical: p = f / (f + b) (reference 2.14, with the corrected volume).

f(x) = R V KDE_fg(x), events per year: R the merger rate, stated with its 90 % interval and never measured here, V the corrected
sensitive volume of all recovered injections for the astrophysical population, and KDE_fg weighted as V is, by
[p_target / p_source] C_z / (1 + z). b(x) = n_bg (year / Tb) KDE_bg(x); where a kernel runs out of events it follows their counts
(see `Falloff`), and is an exponential only beyond the last 50 to 100. Zero-lag events enter neither. `compatible` keeps 2.14:
unweighted density, V n_fg / n_total, the tail of a line fitted to KDE_bg, no monotonic rule, no interval.

The interval of p holds 90 %: deviations of ln f/b from the interval of R, from the injections behind V and f at x, and from the
background's count are added in quadrature. Louder than all background, b is not known: there p is at least what the upper limit
2.30 / Tb on a rate without events allows, and may be 1 (see `_bound`).

The model is lists of numbers and is kept as JSON, never pickled.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from aframe_assets.config import SECONDS_PER_YEAR
from aframe_assets.sensitivity.density import Density, Falloff, Tail, background_tail
from aframe_assets.sensitivity.independence import POISSON, Independence

GRID_POINTS = 1024
SIGMAS = 1.6449
"""Standard deviations on each side of a 90 % interval."""

NO_EVENT = 2.3026
"""90 % upper limit of a Poisson mean of which no event was seen."""

TAIL_COUNT = 10
"""Loudest background events that must follow the tail."""

_FLOOR = -700.0  # log of the smallest density kept; JSON has no infinity


class Probability(NamedTuple):
    """p_astro of one event.

    Attributes:
        p: the value; where `is_limit`, continued beyond the background by its exponential tail.
        low, high: 90 % interval; where `is_limit`, `low` is a bound that does not rest on the tail, and `high` is 1. None if compatible.
        is_limit: the event is louder than all background, so that only `low` is known.
    """

    p: float
    low: float | None
    high: float | None
    is_limit: bool


@dataclass(frozen=True)
class PAstro:
    """A p_astro model.

    Attributes:
        statistic: grid, ascending.
        log_foreground, log_background: ln of f and b, per year and unit statistic, on the grid.
        log_background_variance: of ln b, from the background's count.
        log_odds: ln f/b used for p; equal to their difference where the monotonic rule does not hold it.
        log_odds_low, log_odds_high: 90 % interval of it; above `loudest` the bound, and nothing. Empty if compatible.
        loudest: statistic of the loudest background event.
        rate: merger rate, Gpc^-3 yr^-1.
        rate_interval: its 90 % interval.
        volume, volume_error: of injections recovered at any statistic, Gpc^3, so chance coincidences of faint ones are in it; the
            density of signals at a statistic is what p rests on, and those lie at the statistics of noise.
        split, slope: background tail b ~ exp(slope x) above split.
        effective_samples: of the weighted foreground.
        population: name of the target population.
    """

    statistic: tuple[float, ...]
    log_foreground: tuple[float, ...]
    log_background: tuple[float, ...]
    log_background_variance: tuple[float, ...]
    log_odds: tuple[float, ...]
    log_odds_low: tuple[float, ...]
    log_odds_high: tuple[float, ...]
    loudest: float
    rate: float
    rate_interval: tuple[float, ...]
    volume: float
    volume_error: float
    split: float
    slope: float
    effective_samples: float
    population: str
    compatible: bool = False

    def __call__(self, statistic: Any) -> Any:
        """p_astro of a detection statistic; float -> float, array -> array. Held at its end values outside the grid."""
        p = _p(np.interp(statistic, self.statistic, self.log_odds))
        return float(p) if np.ndim(p) == 0 else p

    def probability(self, statistic: float) -> Probability:
        """p_astro of one event with its interval, or bound."""
        p, limit = self(statistic), bool(statistic > self.loudest)
        if self.compatible:
            return Probability(p, None, None, limit)
        low = float(_p(np.interp(statistic, self.statistic, self.log_odds_low)))
        high = 1.0 if limit else float(_p(np.interp(statistic, self.statistic, self.log_odds_high)))
        return Probability(p, low, high, limit)

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> PAstro:
        """Raises ValueError for a text that is not a model."""
        data = json.loads(text)
        if not isinstance(data, dict) or set(data) != set(cls.__dataclass_fields__):
            raise ValueError(f"not a p_astro model; expected the fields {sorted(cls.__dataclass_fields__)}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def _p(log_odds: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(log_odds, _FLOOR, -_FLOOR)))


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
    rate_interval: tuple[float, float],
    population: str,
    independence: Independence = POISSON,
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
        rate_interval: its 90 % interval; equal ends for a rate that is known.
        population: name of the population that the weights stand for.
        independence: how many independent events the background is worth where slides reuse the same glitches; taken at the count of
            events above a statistic, or above the tail's split beyond that.
        compatible: the tail of 2.14, no monotonic rule, no interval.

    Raises:
        ValueError: too few events to estimate a density from, or a rate outside its interval.
    """
    for what, values in (("background events", background), ("recovered injections", foreground)):
        if len(np.unique(values)) < 10:
            raise ValueError(f"p_astro: {len(values)} {what}; expected at least 10 with different statistics")
    if not 0 < rate_interval[0] <= rate <= rate_interval[1]:
        raise ValueError(f"p_astro: merger rate {rate:g} with interval {tuple(rate_interval)}; expected 0 < low <= rate <= high")
    kde_b, kde_f = Density.of(background), Density.of(foreground, weights)
    above = background_tail(background, kde_b) if compatible else Falloff.of(background, kde_b)
    tail, start = (above, above.split) if isinstance(above, Tail) else (above.tail, above.start)
    loudest = float(background.max())
    low, high = min(background.min(), foreground.min()), max(loudest, foreground.max())
    x = np.unique(np.append(np.linspace(low, high, GRID_POINTS), loudest))
    with np.errstate(divide="ignore"):
        share = weights.sum() / total_weight
        log_f = np.log(rate * volume * share) + np.log(kde_f(x))
        log_b = np.where(x > start, above.log_density(x), np.log(kde_b(x)))
    log_b = log_b + np.log(len(background) * SECONDS_PER_YEAR / background_livetime)
    log_f, log_b = np.maximum(log_f, _FLOOR), np.maximum(log_b, _FLOOR)
    odds = log_f - log_b
    square = float((weights**2).sum())
    variance = max((square * (1 - 2 * share) + share**2 * total_square) / total_weight**2, 0)
    in_tail = max(TAIL_COUNT, int((background >= tail.split).sum()))
    independent = independence.livetime(in_tail, background_livetime)
    counted = np.maximum(len(background) - np.searchsorted(np.sort(background), x), in_tail)
    var_b = np.where(x > start, above.variance(x), kde_b.relative_variance(x)) * counted / independence.count(counted)
    ends: tuple[np.ndarray, np.ndarray] = (np.empty(0), np.empty(0))
    if not compatible:
        middle = int(np.searchsorted(x, np.median(background)))
        odds = _rising(odds, middle)
        # the injections at x decide f there; V as a whole is never better known than its error
        var_f = np.maximum(kde_f.relative_variance(x), variance / share**2)
        down, up = np.log(rate / rate_interval[0]), np.log(rate_interval[1] / rate)
        sure = odds - np.sqrt(down**2 + SIGMAS**2 * (var_f + var_b))
        least_f = log_f - np.sqrt(down**2 + SIGMAS**2 * var_f)
        most_b = log_b[x == loudest][0] + SIGMAS * np.sqrt(var_b[x == loudest][0])
        sure = np.where(x > loudest, _bound(x, least_f, loudest, most_b, independent), sure)
        possible = odds + np.sqrt(up**2 + SIGMAS**2 * (var_f + var_b))
        # as the odds rise, what is sure of a quieter event is sure of a louder one, and the other way round
        ends = _rising(sure, middle), np.minimum.accumulate(possible[::-1])[::-1]
    return PAstro(
        tuple(x.tolist()),
        tuple(log_f.tolist()),
        tuple(log_b.tolist()),
        tuple(var_b.tolist()),
        tuple(odds.tolist()),
        tuple(ends[0].tolist()),
        tuple(ends[1].tolist()),
        loudest,
        float(rate),
        (float(rate_interval[0]), float(rate_interval[1])),
        float(volume * share),
        float(volume * np.sqrt(variance)),
        tail.split,
        tail.slope,
        float(weights.sum() ** 2 / square),
        population,
        compatible,
    )


def tail_warning(model: PAstro, background: np.ndarray, background_livetime: float, independence: Independence = POISSON) -> str | None:
    """A sentence when the loudest ten background events do not follow the tail that p_astro continues, or None.

    Args:
        background, background_livetime, independence: as fitted.
    """
    count = TAIL_COUNT
    if len(background) < 10 * count:
        return None
    at = float(np.sort(background)[-count])
    if at <= model.split:
        return None
    # ln b is straight above the split
    log_b = float(np.interp(at, model.statistic, model.log_background))
    expected = np.exp(log_b) / -model.slope * background_livetime / SECONDS_PER_YEAR
    spread = np.sqrt(1 / independence.count(count) + float(np.interp(at, model.statistic, model.log_background_variance)))
    if abs(np.log(expected / count)) <= 3 * spread:
        return None
    return (
        f"p_astro: {count} background events have a statistic of {at:.3g} or more, the exponential tail from {model.split:.3g} on "
        f"expects {expected:.3g}; p_astro is {'too high' if expected < count else 'too low'} there"
    )


def _rising(values: np.ndarray, middle: int) -> np.ndarray:
    """`values` made non-decreasing, outwards from `middle`, the median of the background.

    A louder event is never less probably a signal; beyond the data both kernels only show their own shape.
    """
    out = values.copy()
    out[middle:] = np.maximum.accumulate(out[middle:])
    out[: middle + 1] = np.minimum.accumulate(out[middle::-1])[::-1]
    return out


def _bound(x: np.ndarray, least_f: np.ndarray, loudest: float, most_b: float, livetime: float) -> np.ndarray:
    """ln of the least odds f/b above the loudest background event, from the count alone.

    No event was seen there in `livetime` seconds, so that the rate above `loudest` is below 2.30 / livetime at 90 %. A density that falls
    is then below 2.30 / (livetime (x - loudest)) at x, and below its value `most_b` (ln, 1/yr per unit statistic) at the loudest event.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.log(NO_EVENT * SECONDS_PER_YEAR / livetime) - np.log(np.maximum(x - loudest, 0))
    return least_f - np.minimum(np.where(x > loudest, spread, np.inf), most_b)
