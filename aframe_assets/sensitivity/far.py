"""False-alarm rates of a ranking statistic from slid background.

Conventions, used everywhere:

* a candidate of statistic x with nb(x) background events at or above it in background livetime Tb has FAR = nb / Tb;
* when nothing is as loud (nb = 0) the rate is not known, only bounded: FAR < (nb + 1) / Tb = 1 / Tb, always shown as a limit;
* one year is 31,557,600 s (`SECONDS_PER_YEAR`);
* the FAR of the k-th loudest background event is k / Tb, with a relative error 1 / sqrt(N_eff) of which `independence` tells N_eff <= k;
* Tb is the time of all outputs of all slides that counted, also of slides and chunks without any event.

Formulae: reference 2.12; the significance is that of Usman et al. 2016 (Class. Quantum Grav. 33, 215004).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aframe_assets.config import SECONDS_PER_YEAR
from aframe_assets.sensitivity.independence import BLOCK_WINDOWS, POISSON, Independence, independence

SECONDS_PER_HOUR = 3600.0


class UnmeasurableRate(ValueError):
    """A FAR that this background cannot give; the message holds the lowest or highest that it can."""


@dataclass(frozen=True)
class Background:
    """Background events of all slides.

    Attributes:
        statistics: detection statistics, ascending, shape (n,), finite.
        livetime: background livetime Tb of all slides, seconds, > 0.
        independence: how many independent events the loudest are worth; by default as many as there are.
    """

    statistics: np.ndarray
    livetime: float
    independence: Independence = POISSON

    @classmethod
    def of(cls, statistics: np.ndarray, livetime: float, independence: Independence = POISSON) -> Background:
        """Sorts `statistics`.

        Raises:
            ValueError: livetime is not > 0, or a statistic is not finite.
        """
        values = np.sort(np.asarray(statistics, dtype=np.float64).ravel())
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise ValueError(f"background: {bad} of {len(values)} detection statistics are not finite; look into inference_results")
        if not livetime > 0:
            raise ValueError(
                f"background livetime Tb = {livetime:g} s; expected > 0: add test data, or raise inference.num_slides or inference.Tb"
            )
        return cls(values, float(livetime), independence)

    @classmethod
    def of_slides(cls, events: Any, cluster_window: float, rings: Sequence[tuple[float, float]] = ()) -> Background:
        """From an EventSet of slides, with the independence of its events.

        Args:
            events: statistics, times and shifts, and their livetime `Tb`.
            cluster_window: seconds, inference.cluster_window_length; `BLOCK_WINDOWS` of it are one block of own time.
            rings: (start, duration) of chunks that were slid in a ring, GPS seconds.

        Raises:
            ValueError: as `of`.
        """
        plain = cls.of(events.detection_statistic, events.Tb)
        if not len(events):
            return plain
        columns = events.detection_statistic, events.detection_time, np.reshape(events.shift, (len(events), -1))
        return replace(plain, independence=independence(*columns, BLOCK_WINDOWS * cluster_window, rings))

    @property
    def years(self) -> float:
        return self.livetime / SECONDS_PER_YEAR

    def count(self, statistic: Any) -> Any:
        """nb(x): events with a statistic >= x. float -> int, array -> int array of the same shape."""
        below = np.searchsorted(self.statistics, statistic, side="left")
        found = len(self.statistics) - below
        return int(found) if np.ndim(found) == 0 else found

    def far(self, statistic: Any) -> tuple[Any, Any]:
        """FAR in Hz and whether it is an upper limit, (nb + 1) / Tb where nb = 0."""
        nb = self.count(statistic)
        if np.ndim(nb) == 0:
            return max(nb, 1) / self.livetime, nb == 0
        return np.maximum(nb, 1) / self.livetime, nb == 0

    def significance(self, statistic: Any, livetime: float) -> Any:
        """Probability of one or more background events as loud in `livetime` seconds of zero lag: 1 - exp(-T (1 + nb) / Tb)."""
        return -np.expm1(-livetime * (1 + self.count(statistic)) / self.livetime)

    def kth_loudest(self, k: Any) -> Any:
        """Statistic of the k-th loudest event, 1 <= k <= n."""
        return self.statistics[len(self.statistics) - np.asarray(k, dtype=np.int64)]

    def threshold(self, far: float) -> float:
        """The lowest statistic whose FAR (Hz) does not exceed `far`.

        Raises:
            UnmeasurableRate: far < 1 / Tb, or far above the rate of the whole background.
        """
        # A rate written as k / Tb must give k events in spite of rounding.
        k = int(np.floor(far * self.livetime * (1 + 1e-12)))
        n = len(self.statistics)
        if k < 1:
            raise UnmeasurableRate(f"FAR {far:g} Hz is below 1/Tb = {1 / self.livetime:g} Hz")
        if k > n:
            raise UnmeasurableRate(f"FAR {far:g} Hz is above the rate of all {n} background events, {n / self.livetime:g} Hz")
        value = float(self.kth_loudest(k))
        # Equal statistics come over a threshold together; the next number above keeps the promised rate.
        return value if self.count(value) <= k else float(np.nextafter(value, np.inf))

    def grid(self, first: int, max_far: float | None = None, num: int | None = 1000) -> np.ndarray:
        """Counts k of a FAR grid k / Tb, ascending, from `first` up.

        Args:
            first: lowest k; its rate has a relative error 1 / sqrt(first) or more.
            max_far: highest rate, Hz; None for that of the whole background.
            num: at most this many points, evenly in log k; None for every k.
        """
        n = len(self.statistics)
        last = n if max_far is None else min(n, int(np.floor(max_far * self.livetime * (1 + 1e-12))))
        if last < first:
            return np.empty(0, dtype=np.int64)
        if num is None or last - first < num:
            return np.arange(first, last + 1)
        return np.unique(np.round(np.geomspace(first, last, num)).astype(np.int64))


def per_year(far: Any) -> Any:
    """Hz -> 1/yr."""
    return far * SECONDS_PER_YEAR


def per_hour(far: Any) -> Any:
    """Hz -> 1/h."""
    return far * SECONDS_PER_HOUR


def ifar_years(far: Any) -> Any:
    """Inverse FAR in years of a rate in Hz."""
    return 1 / (far * SECONDS_PER_YEAR)
