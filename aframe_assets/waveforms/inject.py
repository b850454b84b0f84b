"""Adding signals to a stretch of data (reference 2.11), summed where they overlap and cut at its ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def add_signals(
    strain: np.ndarray, start: float, sample_rate: float, waveforms: np.ndarray, times: Sequence[float] | np.ndarray, coalescence: int
) -> np.ndarray:
    """Add waveforms of one detector to `strain`, in place.

    The coalescence sample of a waveform falls on sample round((time - start) * sample_rate).

    Args:
        strain: (size,), float.
        start: GPS time of its first sample.
        sample_rate: Hz.
        waveforms: (n, samples).
        times: GPS times of coalescence in this detector's own data, (n,); any order, also outside the stretch.
        coalescence: sample of coalescence in a waveform.

    Returns:
        `strain`.

    Raises:
        ValueError: not one time for each waveform.
    """
    if len(waveforms) != len(times):
        raise ValueError(f"{len(waveforms)} waveforms, but {len(times)} times")
    for waveform, time in zip(waveforms, times, strict=True):
        first = round((float(time) - start) * sample_rate) - coalescence
        low, high = max(first, 0), min(first + len(waveform), len(strain))
        if low < high:
            strain[low:high] += waveform[low - first : high - first]
    return strain
