"""How far apart two searches of the same strain and the same injections are, and how sure that is.

A quantity Q of a search at a false-alarm rate is a weighted share of draws whose statistic is at or above the threshold t of that rate,

    Q_m = sum_i w_i [x_mi >= t_m],   sum_i w_i = 1,   D = Q_a - Q_b,

as the sensitive volume of a mass pair (in units of V0), or the share of injections that are found. Its error has two sources. Each is
paired: what both searches feel alike cancels.

* Injections: draws are independent, so Var(D) = sum_i w_i^2 (d_i - D)^2 with d_i = [x_ai >= t_a] - [x_bi >= t_b]. Were there no true
  difference it would be sum_i w_i^2 d_i^2, and that decides how sure D is: for equal weights the test of McNemar (1947, Psychometrika
  12, 153). The other vanishes where one search alone finds every draw, the surest difference there is.
* Noise: t_m is the k_m-th loudest event of a finite background. Were N_m events counted above the true threshold instead of k_m, Q_m
  would be off by s_m (N_m - k_m), s_m = dQ_m/dk (the delta method), so that Var(D) = s' C s with the covariance C of the counts of both
  searches. Slides reuse the same strain, and a glitch is loud in both searches: C is that of sums clustered by the own time of every
  detector at once (Cameron, Gelbach & Miller 2011, J. Bus. Econ. Stat. 29, 238), as in `aframe_assets.sensitivity.independence`,

      C_ab = sum_c sum_blocks r_a r_b - sum_{c < d} sum_cells r_a r_b + ...,   r = counted - expected in that block or cell.

This speaks of the networks as they were trained. What another seed of the same training would change is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from aframe_assets.sensitivity.far import Background
from aframe_assets.sensitivity.independence import own_times

FEW_DISCORDANT = 10
"""Effective number of draws that only one of two searches found, below which a normal distribution of D is a poor guess."""


@dataclass(frozen=True)
class Noise:
    """Background events of one search, from the loudest down.

    Attributes:
        statistics: (n,).
        blocks: number of the block of own time of each event in each detector, counted from GPS 0 (num_ifos, n).
        background: the same events; its counts give thresholds.
    """

    statistics: np.ndarray
    blocks: np.ndarray
    background: Background

    @classmethod
    def of(cls, events, background: Background, block: float, rings: Sequence[tuple[float, float]] = ()) -> Noise:
        """From an EventSet of slides.

        Args:
            events: with at least one event.
            background: of the same events.
            block: seconds of own time that count as one cluster.
            rings: (start, duration) of chunks that were slid in a ring, GPS seconds.
        """
        order = np.argsort(-events.detection_statistic, kind="stable")
        shifts = np.reshape(events.shift, (len(order), -1))[order]
        own = own_times(events.detection_time[order], shifts, rings)
        blocks = np.stack([np.floor(t / block).astype(np.int64) for t in own])
        return cls(np.asarray(events.detection_statistic, float)[order], blocks, background)


@dataclass(frozen=True)
class Difference:
    """Q_a - Q_b of one quantity at one rate.

    Attributes:
        value, error: in the unit of the quantity; one standard deviation.
        error_null: the error were there no true difference.
        error_injections, error_noise: the parts of the error; they add in square.
        only_first, only_second: draws with a weight that only one of the searches found.
        discordant: effective number of both together.
    """

    value: float
    error: float
    error_null: float
    error_injections: float
    error_noise: float
    only_first: int
    only_second: int
    discordant: float

    @property
    def sigma(self) -> float:
        """value / error_null, with the sign of the value; 0 of equal searches."""
        return self.value / self.error_null if self.error_null > 0 else 0.0

    @property
    def p_value(self) -> float:
        """Probability of a difference as large, of either sign, were there none: of a normal distribution."""
        return math.erfc(abs(self.sigma) / math.sqrt(2))

    @property
    def few(self) -> bool:
        """Whether so few draws decide that `p_value` is rough."""
        return self.discordant < FEW_DISCORDANT


def count_covariance(searches: Sequence[Noise], counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of the numbers of background events above the thresholds of `searches`, two estimates of shape (m, m).

    Args:
        searches: of the same slides.
        counts: events counted in each, 1 <= k <= n.

    Returns:
        Clustered by the own time of every detector; and as if only events of the same block of all detectors belonged together, which
        is the least that it can be. The first may be smaller by chance.
    """
    from scipy.sparse import coo_array

    sizes = [len(s.statistics) for s in searches]
    which = np.repeat(np.arange(len(searches)), sizes)
    share = np.array([k / n for k, n in zip(counts, sizes, strict=True)])
    # counting a share p of events whose total is taken as given loses p of the variance of a Poisson count
    lost = np.sqrt(np.maximum(1 - share, 1 / np.maximum(sizes, 1)))
    residual = np.concatenate([((np.arange(n) < k) - p) / c for n, k, p, c in zip(sizes, counts, share, lost, strict=True)])
    blocks = np.concatenate([s.blocks for s in searches], axis=1)
    blocks = blocks - blocks.min(axis=1, keepdims=True)
    total = np.zeros((len(searches), len(searches)))
    same = total
    for size in range(1, len(blocks) + 1):
        for ways in combinations(blocks, size):
            cluster = ways[0]
            for other in ways[1:]:
                cluster = np.unique(cluster * (int(other.max()) + 1) + other, return_inverse=True)[1]
            sums = coo_array((residual, (which, cluster)), shape=(len(searches), int(cluster.max()) + 1)).tocsr()
            same = (sums @ sums.T).toarray()
            total = total + (-1) ** (size + 1) * same
    return total, same


@dataclass(frozen=True)
class Paired:
    """Searches at one false-alarm rate.

    Attributes:
        found: whether each search found each draw (m, num_draws), bool.
        more, fewer: the same at the threshold one standard deviation of the count further down and up.
        span: background events between the two (m,).
        covariance, least: of `count_covariance`.
    """

    found: np.ndarray
    more: np.ndarray
    fewer: np.ndarray
    span: np.ndarray
    covariance: np.ndarray
    least: np.ndarray

    @classmethod
    def of(cls, noise: Sequence[Noise], statistics: np.ndarray, far: float) -> Paired:
        """At the rate `far`.

        Args:
            noise: background of each search.
            statistics: of every draw in each search, -inf where it was missed or never injected (m, num_draws).
            far: Hz.

        Raises:
            UnmeasurableRate: some background cannot give this rate.
        """
        thresholds = [n.background.threshold(far) for n in noise]
        counts = [n.background.count(t) for n, t in zip(noise, thresholds, strict=True)]
        counts = [max(1, k) for k in counts]
        covariance, least = count_covariance(noise, counts)
        spread = np.maximum(1, np.sqrt(np.maximum(np.diag(covariance), np.diag(least))))
        fewer, more, span = [], [], []
        for n, k, s, x in zip(noise, counts, spread, statistics, strict=True):
            low, high = max(1, round(k - s)), min(len(n.statistics), round(k + s))
            fewer.append(x >= n.statistics[low - 1])
            more.append(x >= n.statistics[high - 1])
            span.append(max(1, high - low))
        found = np.stack([x >= t for x, t in zip(statistics, thresholds, strict=True)])
        return cls(found, np.stack(more), np.stack(fewer), np.array(span), covariance, least)

    def slopes(self, weights: np.ndarray) -> np.ndarray:
        """dQ/dk of each search (m,): between one standard deviation of the count below and above."""
        return (self.more @ weights - self.fewer @ weights) / self.span

    def values(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Q of each search and its error, (m,) each; `weights` (num_draws,) add up to one."""
        value, slope = self.found @ weights, self.slopes(weights)
        square = weights**2
        injections = self.found @ square * (1 - 2 * value) + value**2 * square.sum()
        noise = slope**2 * np.maximum(np.diag(self.covariance), np.diag(self.least))
        return value, np.sqrt(np.maximum(injections, 0) + noise)

    def difference(self, a: int, b: int, weights: np.ndarray, unit: float = 1.0) -> Difference:
        """Q_a - Q_b.

        Args:
            a, b: numbers of the searches.
            weights: of the draws, adding up to one (num_draws,).
            unit: what Q is multiplied with, as V0.
        """
        d = self.found[a].astype(float) - self.found[b]
        value, weighted = float(weights @ d), weights * d
        injections = float((weighted**2).sum() - 2 * value * (weights * weighted).sum() + value**2 * (weights**2).sum())
        slope = np.zeros(len(self.found))
        slope[[a, b]] = self.slopes(weights)[[a, b]] * (1, -1)
        noise = float(max(slope @ self.covariance @ slope, slope @ self.least @ slope))
        # of equal searches only rounding is left
        noise = noise if noise > 1e-9 * float(slope**2 @ np.diag(self.least)) else 0.0
        square, injections = float((weighted**2).sum()), max(injections, 0.0)
        return Difference(
            unit * value,
            unit * math.sqrt(injections + noise),
            unit * math.sqrt(square + noise),
            unit * math.sqrt(injections),
            unit * math.sqrt(noise),
            int((weighted > 0).sum()),
            int((weighted < 0).sum()),
            float(np.abs(weighted).sum() ** 2 / square) if square else 0.0,
        )
