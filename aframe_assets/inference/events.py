"""Which event recovered which injection."""

from __future__ import annotations

import numpy as np

MISSED = -np.inf
"""Statistic of an injection without an event near it: below every threshold."""


def recover(injection_times: np.ndarray, event_times: np.ndarray, statistics: np.ndarray, window: float) -> np.ndarray:
    """Index of the loudest event within `window` of each injection, -1 where there is none.

    Reference 2.11 takes the nearest event at any distance instead, which credits an injection with an unrelated event
    far away. Within a window that holds one event the two agree.

    Args:
        injection_times: seconds (n,).
        event_times: seconds (m,), ascending; of the same slide.
        statistics: of the events (m,).
        window: seconds on each side, inclusive.
    """
    low = np.searchsorted(event_times, injection_times - window, side="left")
    high = np.searchsorted(event_times, injection_times + window, side="right")
    return np.array([a + int(np.argmax(statistics[a:b])) if b > a else -1 for a, b in zip(low, high, strict=True)], dtype=np.int64)


def recovered(injection_times: np.ndarray, event_times: np.ndarray, statistics: np.ndarray, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Statistic and detection time for each injection; (MISSED, NaN) without an event. Arguments as in `recover`."""
    found = recover(injection_times, event_times, statistics, window)
    hit = found >= 0
    statistic, time = np.full(len(found), MISSED), np.full(len(found), np.nan)
    statistic[hit], time[hit] = statistics[found[hit]], event_times[found[hit]]
    return statistic, time
