"""Network output -> detection statistic -> events (reference 2.11, steps 2 and 3), for many slides at once."""

from __future__ import annotations

import numpy as np

_CELLS = 1 << 17
"""Array cells that are summed or looked at together: they stay in a processor's cache."""


def integrate(scores: np.ndarray, size: int) -> np.ndarray:
    """Causal moving average: output i is the mean of scores i - size + 1 ... i, with zeros before the start.

    Sums of 2, 4, 8, ... scores are made of pairs of shorter ones and joined to one of `size`, for every output in the same
    order and not with a running sum: equal scores give equal outputs wherever they lie, in whatever part of a series.

    Args:
        scores: [..., time]; NaN (never evaluated) makes the `size` outputs NaN that look back on it.
        size: samples of the boxcar, int(rate * integration_window_length) + 1.

    Returns:
        [..., time] float64.
    """
    scores = np.asarray(scores)
    rows = scores.reshape(-1, scores.shape[-1]) if scores.size else scores.reshape(0, scores.shape[-1])
    out = np.empty(rows.shape, np.float64)
    step = max(1, _CELLS // max(1, rows.shape[1]))
    for i in range(0, len(rows), step):
        _box_sum(rows[i : i + step], size, out[i : i + step])
    out /= size
    return out.reshape(scores.shape)


def _box_sum(rows: np.ndarray, size: int, out: np.ndarray) -> None:
    time = rows.shape[1]
    sums = np.zeros((len(rows), time + size - 1))
    sums[:, size - 1 :] = rows
    # sums[:, i] is over `width` scores, the first of them i - (size - 1); `done` scores next to each output are in `out`
    width, done = 1, 0
    while True:
        if size & width:
            part = sums[:, size - done - width :][:, :time]
            if done:
                out += part
            else:
                out[:] = part
            done += width
        if done == size:
            return
        sums = sums[:, width:] + sums[:, :-width]
        width *= 2


def detection_statistic(scores: np.ndarray, valid: np.ndarray, size: int) -> np.ndarray:
    """Integrated output; -inf where it does not count or a score behind it is missing.

    Args:
        scores: [..., time]; NaN where there is none.
        valid: [..., time] bool, or one row for all.
        size: samples of the boxcar.

    Returns:
        [..., time] float64.
    """
    out = integrate(scores, size)
    out[np.isnan(out) | ~np.broadcast_to(valid, out.shape)] = -np.inf
    return out


def half_window(rate: float, window_length: float) -> int:
    """Half of the clustering window in samples, int(rate * window_length) // 2.

    Raises:
        ValueError: the window is shorter than two samples.
    """
    half = int(rate * window_length) // 2
    if half < 1:
        raise ValueError(
            f"cluster_window_length {window_length:g} s at {rate:g} Hz is {int(rate * window_length)} samples; expected at least 2"
        )
    return half


def cluster(statistic: np.ndarray, rate: float, window_length: float) -> np.ndarray:
    """Indices of the events of one time series, ascending. See `cluster_slides`."""
    return cluster_slides(np.asarray(statistic)[None], rate, window_length)[1]


def cluster_slides(
    statistic: np.ndarray, rate: float, window_length: float, unknown: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Events of every row: the walk of reference 2.11, step 3, for all rows in lockstep.

    Half window h = int(rate * window_length) // 2. Start at the first maximum of the first h samples. Where a larger
    value exists among the next h samples, move to the first maximum of them; otherwise the sample is an event, and
    the walk goes on h + 1 samples later. Only the windows that the walk comes to are looked at, so that the cost is a
    few operations per sample whatever h.

    Where some values are unknown, the events are those that the walk over all values has whatever the unknown ones are,
    as far as this follows from one fact: a sample larger than the h before it and not smaller than the h after it is
    always an event. From such a sample on the walk is known for as long as the h samples that it looks at are.

    Args:
        statistic: [slide, time]; -inf or NaN never gives an event.
        rate: samples per second.
        window_length: seconds, with h >= 1.
        unknown: [slide, time] bool, whose values are not read; None where all are known.

    Returns:
        (slide, sample) of each event, ordered by slide, then time.

    Raises:
        ValueError: the window is shorter than two samples.
    """
    half = half_window(rate, window_length)
    statistic = np.asarray(statistic)
    slides, size = statistic.shape
    if not slides or not size:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    width = size + 2 * half
    padded = np.full((slides, width), -np.inf)
    padded[:, half : half + size] = statistic
    padded[np.isnan(padded)] = -np.inf
    certain = None if unknown is None else _Certain(padded, np.asarray(unknown, bool), half)
    flat, window = padded.ravel(), np.arange(1, half + 1)
    at = padded[:, half : 2 * half].argmax(axis=1)
    row = np.arange(slides)
    found = []
    while len(at):
        here = row * width + half + at
        ahead = flat[here[:, None] + window]
        first = ahead.argmax(axis=1)
        now = flat[here]
        peak = ~(ahead.max(axis=1) > now)
        event = peak & (now > -np.inf)
        found.append(here[event if certain is None else event & certain.visit(row, here, now, peak)])
        at = at + np.where(peak, half, first) + 1
        if at.max() >= size:
            inside = at < size
            at, row = at[inside], row[inside]
    where = np.sort(np.concatenate(found))
    return where // width, where % width - half


class _Certain:
    """Whether the walk of each row is where it would be if all values were known.

    Args:
        padded: [slide, time + 2 half], `half` samples of -inf on both sides; its unknown values become -inf.
        unknown: [slide, time].
        half: samples.
    """

    def __init__(self, padded: np.ndarray, unknown: np.ndarray, half: int) -> None:
        slides, size = unknown.shape
        padded[:, half : half + size][unknown] = -np.inf
        count = np.zeros((slides, padded.shape[1] + 1), np.int32)
        np.cumsum(unknown, axis=1, out=count[:, half + 1 : half + 1 + size], dtype=np.int32)
        count[:, half + 1 + size :] = count[:, half + size, None]
        self.half, self.flat, self.count, self.window = half, padded.ravel(), count.ravel(), np.arange(-half, 0)
        # the walk starts at the largest of the first samples
        self.state = count[:, 2 * half] == 0

    def visit(self, row: np.ndarray, here: np.ndarray, now: np.ndarray, peak: np.ndarray) -> np.ndarray:
        """Whether the events among `here` (flat index; value `now`; not below what follows: `peak`) are certain."""
        mark = here + row
        known_ahead = self.count[mark + self.half + 1] == self.count[mark]
        known_behind = self.count[mark] == self.count[mark - self.half]
        fresh = peak & known_ahead & known_behind & (now > -np.inf)
        chosen = np.flatnonzero(fresh & ~self.state[row])
        behind = self.flat[here[chosen, None] + self.window].max(axis=1)
        certain = self.state[row] & known_ahead
        certain[chosen[now[chosen] > behind]] = True
        self.state[row] = certain
        return certain
