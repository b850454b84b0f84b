"""Lowering the sample rate without aliasing and without moving anything in time."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

import numpy as np

_ATTENUATION_DB = 100.0
"""Stop band of the anti-aliasing filter."""
_TRANSITION = 0.1
"""Width of its transition band, which ends at the new Nyquist frequency, as a fraction of that frequency."""

BLOCK = 1024
"""Seconds resampled at a time by `resample_stream`; bounds memory, changes no value."""


@lru_cache(maxsize=16)
def _filter(up: int, down: int) -> np.ndarray:
    # Kaiser window design (Kaiser 1974, eq. for beta and length as in scipy.signal.kaiserord), linear phase, odd length.
    from scipy.signal import firwin, kaiserord

    # In units of the Nyquist frequency of the rate raised by `up`; the new Nyquist frequency is then 1 / max(up, down).
    edge = 1 / max(up, down)
    length, beta = kaiserord(_ATTENUATION_DB, _TRANSITION * edge)
    return firwin(length | 1, edge * (1 - _TRANSITION / 2), window=("kaiser", beta))


def _ratio(rate: float, new_rate: float) -> Fraction:
    if rate <= 0 or new_rate <= 0 or rate != int(rate) or new_rate != int(new_rate):
        raise ValueError(f"sample rates {rate:g} and {new_rate:g} Hz; expected whole numbers above 0")
    if new_rate > rate:
        raise ValueError(
            f"data at {rate:g} Hz cannot give {new_rate:g} Hz: what lies above {rate / 2:g} Hz is not in them; lower sample_rate"
        )
    return Fraction(int(new_rate), int(rate))


def margin(rate: float, new_rate: float) -> int:
    """Samples at `rate` on each side of a sample that its resampled value depends on."""
    ratio = _ratio(rate, new_rate)
    if ratio == 1:
        return 0
    return math.ceil(len(_filter(ratio.numerator, ratio.denominator)) / 2 / ratio.numerator) + 1


def resample(strain: np.ndarray, rate: float, new_rate: float) -> np.ndarray:
    """Strain at a lower rate by a linear-phase low-pass FIR filter and decimation; zero delay.

    Frequencies up to 0.9 of the new Nyquist frequency pass within 1e-4; above the new Nyquist frequency they are
    suppressed by 100 dB. Beyond its ends the data are continued by odd reflection, so the outermost ~30 ms (at 2048 Hz) are
    approximate.

    Args:
        strain: shape (num,), finite.
        rate, new_rate: hertz, whole numbers, new_rate <= rate; num / rate must be a whole number of new samples.

    Returns:
        float64, shape (num * new_rate / rate,); sample 0 is at the time of sample 0.

    Raises:
        ValueError: rates that are not whole or rise, or a length that is no whole number of new samples.
    """
    from scipy.signal import resample_poly

    ratio = _ratio(rate, new_rate)
    strain = np.asarray(strain, np.float64)
    if ratio == 1:
        return strain.copy()
    up, down = ratio.numerator, ratio.denominator
    if len(strain) * up % down:
        raise ValueError(f"{len(strain)} samples at {rate:g} Hz are no whole number of samples at {new_rate:g} Hz")
    pad = min(math.ceil(margin(rate, new_rate) / down), max(0, (len(strain) - 1) // down)) * down
    if pad:
        left, right = 2 * strain[0] - strain[pad:0:-1], 2 * strain[-1] - strain[-2 : -pad - 2 : -1]
        strain = np.concatenate([left, strain, right])
    out = resample_poly(strain, up, down, window=_filter(up, down))
    skip = pad * up // down
    return out[skip : len(out) - skip]


def resample_stream(
    read: Callable[[float, float], np.ndarray], start: float, stop: float, rate: float, new_rate: float, block: float = BLOCK
) -> np.ndarray:
    """Resample [start, stop) read block by block, equal to resampling it whole.

    Args:
        read: gives the samples at `rate` of [a, b) within [start, stop).
        start, stop: GPS seconds, a whole number of seconds apart.
        block: seconds.

    Returns:
        float64, shape ((stop - start) * new_rate,).
    """
    out = np.empty(round((stop - start) * new_rate))
    around = math.ceil(2 * margin(rate, new_rate) / rate)
    a = start
    while a < stop:
        b = min(a + block, stop)
        lo, hi = max(start, a - around), min(stop, b + around)
        piece = resample(read(lo, hi), rate, new_rate)
        first = round((a - lo) * new_rate)
        where = round((a - start) * new_rate)
        count = round((b - a) * new_rate)
        out[where : where + count] = piece[first : first + count]
        a = b
    return out
