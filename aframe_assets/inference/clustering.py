"""Network output -> detection statistic -> events (reference 2.11, steps 2 and 3), for many slides at once."""

from __future__ import annotations

import numpy as np

_CELLS = 4_000_000
"""Array cells looked at together; bounds the memory of the peak search to some tens of MB."""

_SAMPLES = 65_536
"""Samples of a slide looked at together, for the same reason."""


def integrate(scores: np.ndarray, size: int) -> np.ndarray:
    """Causal moving average: output i is the mean of scores i - size + 1 ... i, with zeros before the start.

    Every output is summed by itself, not with a running sum, so equal scores give equal outputs wherever they lie.

    Args:
        scores: [..., time]; NaN (never evaluated) counts as 0: such outputs are masked by the caller.
        size: samples of the boxcar, int(rate * integration_window_length) + 1.

    Returns:
        [..., time] float64.
    """
    values = np.nan_to_num(np.asarray(scores, np.float64), nan=0.0)
    padded = np.concatenate([np.zeros((*values.shape[:-1], size - 1)), values], axis=-1)
    out = np.zeros_like(values)
    for k in range(size):
        out += padded[..., k : k + values.shape[-1]]
    return out / size


def cluster(statistic: np.ndarray, rate: float, window_length: float) -> np.ndarray:
    """Indices of the events of one time series, ascending. See `cluster_slides`."""
    return cluster_slides(np.asarray(statistic)[None], rate, window_length)[1]


def cluster_slides(statistic: np.ndarray, rate: float, window_length: float) -> tuple[np.ndarray, np.ndarray]:
    """Events of every row: the walk of reference 2.11, step 3, for all rows in lockstep.

    Half window h = int(rate * window_length) // 2. Start at the first maximum of the first h samples. Where a larger
    value exists among the next h samples, move to the first maximum of them; otherwise the sample is an event, and
    the walk goes on h + 1 samples later.

    Args:
        statistic: [slide, time]; -inf or NaN never gives an event.
        rate: samples per second.
        window_length: seconds, with h >= 1.

    Returns:
        (slide, sample) of each event, ordered by slide, then time.

    Raises:
        ValueError: the window is shorter than two samples.
    """
    half = int(rate * window_length) // 2
    if half < 1:
        raise ValueError(
            f"cluster_window_length {window_length:g} s at {rate:g} Hz is {int(rate * window_length)} samples; expected at least 2"
        )
    statistic = np.asarray(statistic, np.float64)
    slides, size = statistic.shape
    if not slides or not size:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    step = max(1, _CELLS // (size * half))
    found = [_walk(statistic[i : i + step], half) for i in range(0, slides, step)]
    rows = np.concatenate([r + i * step for i, (r, _) in enumerate(found)])
    columns = np.concatenate([c for _, c in found])
    order = np.lexsort((columns, rows))
    return rows[order], columns[order]


def _walk(statistic: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    y = np.where(np.isnan(statistic), -np.inf, statistic)
    slides, size = y.shape
    ahead = np.concatenate([y[:, 1:], np.full((slides, half), -np.inf)], axis=1)
    view = np.lib.stride_tricks.sliding_window_view(ahead, half, axis=1)
    step = np.empty((slides, size), np.int32)
    for i in range(0, size, _SAMPLES):
        step[:, i : i + _SAMPLES] = view[:, i : i + _SAMPLES].argmax(axis=2)
    best = np.take_along_axis(ahead, np.arange(size)[None] + step, axis=1)
    peak = ~(best > y)
    target = np.arange(size)[None] + np.where(peak, half, step) + 1
    event = peak & (y > -np.inf)
    at = y[:, :half].argmax(axis=1)
    live = np.arange(slides)
    rows, columns = [], []
    while len(live):
        here = event[live, at]
        rows.append(live[here])
        columns.append(at[here])
        at = target[live, at]
        inside = at < size
        live, at = live[inside], at[inside]
    return np.concatenate(rows), np.concatenate(columns)
