"""Kernel densities of detection statistics with their counting errors, and the loud end of a background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TAIL_POINTS = 100
"""Points between the lowest and highest background statistic on which the tail is fitted (reference 2.14)."""

TAIL_EVENTS = 50
"""Loudest events that a tail is fitted to; twice as many at most."""

KERNEL_EVENTS = 400
"""Events under one kernel (1 / relative variance of the density) below which a background is no longer left to the kernels."""

_REACH = 8  # kernel widths after which a kernel is nothing


@dataclass(frozen=True)
class Density:
    """Weighted Gaussian kernel density with Scott's bandwidth, as scipy's gaussian_kde.

    Values are first put on a fine lattice (linear binning, a twentieth of the bandwidth or finer), so that 10^7 of them cost a second.

    Attributes:
        low, step: the lattice.
        width: of the kernel.
        mass: share of the weight at each lattice point; sums to one.
        square: sum of squared shares at each lattice point.
    """

    low: float
    step: float
    width: float
    mass: np.ndarray
    square: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, weights: np.ndarray | None = None) -> Density:
        """Raises ValueError for fewer than two distinct values, or values too far apart for their kernel."""
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
        low = values.min() - _REACH * width
        size = int((values.max() + _REACH * width - low) / step) + 2
        if size > 5_000_000:
            span = (values.max() - values.min()) / width
            raise ValueError(f"detection statistics span {span:.3g} kernel widths; look for outliers in inference_results")
        place = (values - low) / step
        left = place.astype(np.int64)
        part = place - left
        mass = np.bincount(left, w * (1 - part), size) + np.bincount(left + 1, w * part, size)
        square = np.bincount(np.rint(place).astype(np.int64), w * w, size)
        return cls(float(low), float(step), float(width), mass, square)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The density at `x` (1-D), per unit statistic; zero beyond the reach of the outermost kernels."""
        return self._sum(self.mass, x, 1)

    def relative_variance(self, x: np.ndarray) -> np.ndarray:
        """Variance of ln of (count x density) at `x` from Poisson counts: sum w^2 K^2 / (sum w K)^2, at most 1, which one event has."""
        density, noise = self(x), self._sum(self.square, x, 2)
        return np.where(density > 0, np.minimum(noise / np.where(density > 0, density, 1) ** 2, 1), 1)

    def log_covariance(self, x: np.ndarray) -> np.ndarray:
        """Covariance of ln of (count x density) at the points `x`, shape (len(x), len(x)); the density must be > 0 there."""
        first = max(0, int((x.min() - _REACH * self.width - self.low) / self.step))
        last = int((x.max() + _REACH * self.width - self.low) / self.step) + 2
        held = first + np.flatnonzero(self.square[first:last])
        kernels = self._kernel(np.subtract.outer(x, self.low + self.step * held)) / self(x)[:, None]
        return (kernels * self.square[held]) @ kernels.T

    def _kernel(self, distance: np.ndarray) -> np.ndarray:
        return np.exp(-((distance / self.width) ** 2) / 2) / (np.sqrt(2 * np.pi) * self.width)

    def _sum(self, lattice: np.ndarray, x: np.ndarray, power: int) -> np.ndarray:
        """Sum of lattice x kernel^power about each x, term by term: an FFT's rounding errors would be a floor under the tails."""
        reach = int(_REACH * self.width / self.step)
        near = np.rint((x - self.low) / self.step).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
        held = np.where((near >= 0) & (near < len(lattice)), lattice[np.clip(near, 0, len(lattice) - 1)], 0.0)
        return (held * self._kernel(x[:, None] - self.low - self.step * near) ** power).sum(axis=1)


@dataclass(frozen=True)
class Tail:
    """ln pdf = intercept + slope x above `split`; `covariance` of (slope, intercept) from Poisson counts."""

    split: float
    slope: float
    intercept: float
    covariance: np.ndarray

    def log_density(self, x: np.ndarray) -> np.ndarray:
        return self.intercept + self.slope * x

    def variance(self, x: np.ndarray) -> np.ndarray:
        """Variance of ln of (count x density) at `x`: it grows with the distance over which the tail is continued."""
        c = self.covariance
        return np.maximum(c[0, 0] * x * x + 2 * c[0, 1] * x + c[1, 1], 0)


def background_tail(values: np.ndarray, density: Density) -> Tail:
    """The exponential tail of reference 2.14.

    The fit runs, right of the peak, from where the density falls below 10 / sqrt(n) to where it falls below 1 / sqrt(n), the
    split. A background too small or too flat to show such a region is given the exponential of its loudest tenth.
    """
    x = np.linspace(values.min(), values.max(), TAIL_POINTS)
    pdf = density(x)
    tau = 1 / np.sqrt(len(values))
    peak = int(pdf.argmax())
    start = next((i for i in range(peak, len(x)) if pdf[i] < 10 * tau), len(x) - 1)
    stop = next((i for i in range(start, len(x)) if pdf[i] < tau), len(x) - 1)
    if stop - start >= 2 and pdf[start : stop + 1].min() > 0:
        at = x[start : stop + 1]
        solve = np.linalg.pinv(np.stack([at, np.ones_like(at)], axis=1))
        slope, intercept = solve @ np.log(pdf[start : stop + 1])
        if slope < 0:
            return Tail(float(x[stop]), float(slope), float(intercept), solve @ density.log_covariance(at) @ solve.T)
    return _loud_tail(np.sort(values)[-max(2, len(values) // 10) :], len(values))


def _loud_tail(loud: np.ndarray, n: int) -> Tail:
    """The exponential of greatest likelihood for the loudest of n events; `loud` ascending."""
    m, first = len(loud), float(loud[0])
    slope = -1 / max(float(loud.mean() - first), 1e-6)
    # normalised so that the tail holds the events it was taken from: ln pdf = ln(-slope m / n) + slope (x - first), where the count m
    # and, independently, the mean excess have relative errors 1 / sqrt(m)
    intercept = float(np.log(-slope * m / n) - slope * first)
    by_slope = np.array([slope, 1 - slope * first]) / np.sqrt(m)  # change of (slope, intercept) with one sigma of ln(-slope)
    by_count = np.array([0.0, 1.0]) / np.sqrt(m)
    return Tail(first, slope, intercept, np.outer(by_slope, by_slope) + np.outer(by_count, by_count))


@dataclass(frozen=True)
class Falloff:
    """Density of the loud part of a background that follows its events, of whatever shape, as long as there are some tens of them.

    ln pdf = ln share above x + ln hazard. The share is the counted one at `knots`, each of which has half the events of the one before
    above it, and falls exponentially in between. The hazard between two knots is that of greatest likelihood, events / (sum over events
    of the length that they cross), the piecewise exponential of survival analysis (Friedman 1982, Ann. Statist. 10, 101); it is
    interpolated between their middles. From the last knot, `tail.split`, on it is that of `tail`, the exponential of the last 50 to 100
    events. At the first, `start`, the density is that of the kernels.

    Attributes:
        knots, log_share, share_variance: statistic, ln of the share of events there or above, and its variance.
        places, log_hazard, hazard_variance: statistic, ln hazard per unit statistic, and its variance.
    """

    knots: np.ndarray
    log_share: np.ndarray
    share_variance: np.ndarray
    places: np.ndarray
    log_hazard: np.ndarray
    hazard_variance: np.ndarray
    tail: Tail

    @classmethod
    def of(cls, values: np.ndarray, density: Density) -> Falloff:
        """From the first halving, at or above the median, at which a kernel of `density` holds fewer than `KERNEL_EVENTS` events."""
        n, loud = len(values), np.sort(values)[::-1]
        above = [n // 2]
        while above[-1] // 2 >= TAIL_EVENTS:
            above.append(above[-1] // 2)
        variance = density.relative_variance(loud[np.array(above) - 1])
        first = next((i for i, v in enumerate(variance) if v > 1 / KERNEL_EVENTS), len(above) - 1)
        # of equal statistics, as of one that saturates, the knot with most events counts them all
        above = [int(n - np.searchsorted(loud[::-1], loud[k - 1])) for k in above[first:]]
        k = np.unique(above)[::-1]
        knots, total = loud[k - 1], np.cumsum(loud)[k - 1]
        crossed = total[:-1] - k[:-1] * knots[:-1] - (total[1:] - k[1:] * knots[1:])
        events = k[:-1] - k[1:]
        tail = _loud_tail(loud[: k[-1]][::-1], n)
        places, hazard, error = (knots[:-1] + knots[1:]) / 2, events / crossed, 1 / events
        if len(k) > 1:
            here = knots[:1]
            places = np.append(here, places)
            hazard, error = np.append(density(here) * n / k[0], hazard), np.append(density.relative_variance(here), error)
        places, hazard, error = np.append(places, knots[-1]), np.append(hazard, -tail.slope), np.append(error, 1 / k[-1])
        return cls(knots, np.log(k / n), 1 / k, places, np.log(hazard), error, tail)

    @property
    def start(self) -> float:
        return float(self.knots[0])

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """For x >= `start`."""
        inside = np.interp(x, self.knots, self.log_share) + np.interp(x, self.places, self.log_hazard)
        return np.where(x > self.tail.split, self.tail.log_density(x), inside)

    def variance(self, x: np.ndarray) -> np.ndarray:
        """Variance of ln of (count x density) at x >= `start` from Poisson counts."""
        inside = np.interp(x, self.knots, self.share_variance) + np.interp(x, self.places, self.hazard_variance)
        return np.where(x > self.tail.split, self.tail.variance(x), inside)
