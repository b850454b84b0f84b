"""How many independent events a slid background is worth.

Slides reuse the same strain: one glitch of one detector makes an event in every slide in which it meets quiet strain of the other.
N counted events then scatter by more than sqrt(N) from one stretch of data to another, and more slides do not help (Was et al. 2010,
Class. Quantum Grav. 27, 015005). The variance here is that of sums clustered in several ways at once (Cameron, Gelbach & Miller 2011,
J. Bus. Econ. Stat. 29, 238), with the own time of each detector, cut into blocks, as the clusters:

    Var(N) = sum_c sum_blocks r_b^2 - sum_{c < d} sum_cells r_bb'^2 + ...,   r = counted - expected,   N_eff = N^2 / Var(N)

It counts every ordered pair of events that share a block in at least one detector. The own time of detector c is detection_time +
shift_c. What is expected in a block is its share of all events of any statistic: clustering makes one every few seconds whatever the
network says, so they measure the livetime that the slides give to a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

BLOCK_WINDOWS = 4
"""Cluster windows in a block. An event strays from its glitch by less than half a window, so that few glitches are cut by an edge of
a block, and a block still is short against a chunk: it is noise of one glitch that is counted as one, not of one hour."""


@dataclass(frozen=True)
class Independence:
    """Effective counts of the loudest events.

    Attributes:
        ratio: N_eff / N of the k loudest events at index k - 1, in (0, 1]; for k up to half of all events. Beyond, the events that
            say what is expected are mostly the counted ones themselves, and the last value holds.
    """

    ratio: np.ndarray

    def count(self, k: Any) -> Any:
        """N_eff of the k loudest events, 1 <= N_eff <= k. int -> float, array -> array."""
        if not len(self.ratio):
            return np.asarray(k, dtype=np.float64)[()]
        k = np.asarray(k, dtype=np.int64)
        return (k * self.ratio[np.clip(k, 1, len(self.ratio)) - 1])[()]

    def relative_error(self, k: Any) -> Any:
        """Standard deviation of the count (and of the FAR k / Tb) over the count: 1 / sqrt(N_eff)."""
        return 1 / np.sqrt(self.count(k))

    def livetime(self, k: Any, livetime: float) -> Any:
        """Tb_eff = Tb N_eff / N, seconds: independent background that would give the count the same relative error."""
        return livetime * self.count(k) / np.asarray(k)[()]


POISSON = Independence(np.empty(0))
"""Every event is independent: N_eff = N."""


def independence(
    statistics: np.ndarray, times: np.ndarray, shifts: np.ndarray, block: float, rings: Sequence[tuple[float, float]] = ()
) -> Independence:
    """Effective counts of a slid background at every threshold, in a few sorts; 10^7 events of two detectors take seconds.

    Args:
        statistics: detection statistics (n,).
        times: detection times, GPS seconds in the frame of shift 0 (n,).
        shifts: seconds that each detector is read later (n, num_ifos).
        block: seconds of own time that count as one cluster, > 0; `BLOCK_WINDOWS` cluster windows.
        rings: (start, duration) of chunks that were slid in a ring, GPS seconds: own times of their events wrap inside them.

    Raises:
        ValueError: shapes that do not agree, or block <= 0.
    """
    statistics, times, shifts = np.asarray(statistics, float), np.asarray(times, float), np.asarray(shifts, float)
    n = len(statistics)
    if times.shape != (n,) or shifts.ndim != 2 or len(shifts) != n:
        raise ValueError(
            f"{n} statistics, times of shape {times.shape}, shifts of shape {shifts.shape}; expected (n,), (n,) and (n, num_ifos)"
        )
    if not block > 0:
        raise ValueError(f"block = {block:g} s; expected > 0: some cluster windows")
    num = n // 2
    if not num:
        return POISSON
    order = np.argsort(-statistics, kind="stable")
    own = own_times(times[order], shifts[order], rings)
    blocks = [_dense(np.floor((t - t.min()) / block).astype(np.int64)) for t in own]
    k = np.arange(1, num + 1)
    part = k / n
    variance = np.zeros(num)
    for size in range(1, len(blocks) + 1):
        for ways in combinations(blocks, size):
            variance += (-1) ** (size + 1) * _clustered(_cells(ways), part)
    # counting a share p of events whose total is taken as given loses p of the variance of a Poisson count
    variance /= 1 - part
    return Independence(np.clip(k / np.maximum(variance, k), 1 / k, 1))


def own_times(times: np.ndarray, shifts: np.ndarray, rings: Sequence[tuple[float, float]] = ()) -> list[np.ndarray]:
    """Time of each event in the data of every detector, GPS seconds: one array (n,) per detector. Arguments as in `independence`."""
    own = [times + s for s in shifts.T]
    if len(rings):
        start, duration = np.array(sorted(rings), float).T
        chunk = np.searchsorted(start, times, side="right") - 1
        inside = (chunk >= 0) & (times < (start + duration)[chunk])
        low, lap = start[chunk], duration[chunk]
        own = [np.where(inside, low + np.mod(t - low, lap), t) for t in own]
    return own


def _clustered(cluster: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Sum over clusters of (counted - expected)^2 when the first k events are counted, for k = 1 ... len(part).

    A cluster of n_b events is expected to hold part[k - 1] n_b of them. Only the event that is added changes its cluster's term,
    so that cumulative sums give all k at once.
    """
    sizes = np.bincount(cluster)
    first = cluster[: len(part)]
    by_cluster = np.argsort(first, kind="stable")
    counted = np.bincount(first, minlength=len(sizes))
    rank = np.empty(len(first), np.int64)
    rank[by_cluster] = np.arange(len(first)) - np.repeat(np.cumsum(counted) - counted, counted)
    square = np.cumsum(2 * rank + 1, dtype=np.float64)
    cross = np.cumsum(sizes[first], dtype=np.float64)
    return square - 2 * part * cross + part**2 * float((sizes.astype(np.float64) ** 2).sum())


def _cells(ways: Sequence[np.ndarray]) -> np.ndarray:
    """Number of the combination of blocks that each event lies in."""
    cell = ways[0]
    for other in ways[1:]:
        # blocks of two detectors lie near each other: their difference takes few values
        apart = other - cell if len(other) else other
        apart = apart - apart.min()
        cell = _dense(cell * (int(apart.max()) + 1) + apart)
    return cell


def _dense(ids: np.ndarray) -> np.ndarray:
    """`ids` >= 0 as they are when counting them takes memory of the order of their number, else renumbered."""
    return ids if ids.max() < 8 * len(ids) + 1024 else np.unique(ids, return_inverse=True)[1]
