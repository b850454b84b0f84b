"""Short noise transients: for simulated strain, and for augmenting training data.

Four families stand for what a search meets: blips (short, broad), sine-Gaussians, whistles (a sweep down and up
again through the band) and scattered light (slow arches below 60 Hz). Shapes only; none is fitted to a detector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

KINDS = {"blip": 0.4, "sine_gaussian": 0.3, "whistle": 0.15, "scattering": 0.15}
"""Family -> share."""

MAX_DURATION = 4.0
"""Seconds; every glitch has died out (below 1e-3 of its peak) 2 s from its centre."""

SNR_POWER = -3.0
"""Exponent of the density of SNR: most glitches are quiet."""


@dataclass(frozen=True)
class Shape:
    """What one glitch looks like.

    Attributes:
        kind: a key of `KINDS`.
        frequency: hertz; the lowest of a whistle, the highest of an arch.
        quality: cycles within the envelope: tau = quality / (sqrt(2) pi frequency). Blips and sine-Gaussians.
        width: seconds; envelope sigma of a whistle, length of an arch.
        phase: radians.
    """

    kind: str
    frequency: float
    quality: float
    width: float
    phase: float


def draw_shape(rng: np.random.Generator) -> Shape:
    """A random shape; always draws as many numbers, so that streams stay aligned."""
    u = rng.random(5)
    kind = list(KINDS)[int(np.searchsorted(np.cumsum(list(KINDS.values()))[:-1], u[0], side="right"))]
    low, high, q0, q1, w0, w1 = {
        "blip": (60.0, 300.0, 1.5, 4.0, 0.0, 0.0),
        "sine_gaussian": (30.0, 500.0, 5.0, 30.0, 0.0, 0.0),
        "whistle": (100.0, 300.0, 0.0, 0.0, 0.05, 0.25),
        "scattering": (30.0, 60.0, 0.0, 0.0, 1.0, 3.5),
    }[kind]
    return Shape(kind, low * (high / low) ** u[1], q0 + (q1 - q0) * u[2], w0 + (w1 - w0) * u[3], 2 * math.pi * u[4])


def waveform(shape: Shape, times: np.ndarray, sample_rate: float) -> np.ndarray:
    """The glitch, with an envelope of peak 1 at time 0.

    Args:
        times: seconds from its centre, shape (time,).
        sample_rate: hertz; a whistle stays below 0.45 of it.

    Returns:
        float64, shape (time,).
    """
    t = np.asarray(times, dtype=np.float64)
    f, phase = shape.frequency, shape.phase
    if shape.kind in ("blip", "sine_gaussian"):
        tau = shape.quality / (math.sqrt(2) * math.pi * f)
        return np.exp(-((t / tau) ** 2)) * np.cos(2 * math.pi * f * t + phase)
    if shape.kind == "whistle":
        # frequency f + k t^2 reaches its highest value at 3 sigma, where the envelope is 1 %; held there beyond
        edge = 3 * shape.width
        k = (min(900.0, 0.45 * sample_rate) - f) / edge**2
        inside = np.clip(t, -edge, edge)
        cycles = f * inside + k * inside**3 / 3 + (f + k * edge**2) * (t - inside)
        return np.exp(-0.5 * (t / shape.width) ** 2) * np.cos(2 * math.pi * cycles + phase)
    arch = np.clip(t / shape.width, -0.5, 0.5) * math.pi
    return np.cos(arch) ** 2 * np.cos(2 * f * shape.width * np.sin(arch) + phase)


def optimal_snr(strain: np.ndarray, sample_rate: float, psd: np.ndarray, *, minimum_frequency: float = 20.0) -> np.ndarray:
    """Matched-filter SNR of a known signal: rho^2 = 4 sum |h(f)|^2 / S(f) df (reference 2.4).

    Args:
        strain: [..., time].
        sample_rate: hertz.
        psd: [..., freq], one-sided, 1/Hz, evenly spaced from 0 to Nyquist; interpolated where its bins differ.
        minimum_frequency: hertz; bins below do not count.

    Returns:
        [...], float64.
    """
    size = strain.shape[-1]
    frequencies = np.fft.rfftfreq(size, 1 / sample_rate)
    if psd.shape[-1] != len(frequencies):
        grid = np.linspace(0, sample_rate / 2, psd.shape[-1])
        psd = np.apply_along_axis(lambda row: np.interp(frequencies, grid, row), -1, psd)
    spectrum = np.abs(np.fft.rfft(strain) / sample_rate) ** 2
    use = frequencies >= minimum_frequency
    return np.sqrt(4 * (spectrum[..., use] / psd[..., use]).sum(-1) * sample_rate / size)


def glitch_bank(rng: np.random.Generator, num: int, sample_rate: float, duration: float = MAX_DURATION) -> np.ndarray:
    """Random glitches, each centred in its window, with an envelope of peak 1.

    Their loudness is the caller's: whitened with unit variance, a waveform w has SNR sqrt(sum w^2); before whitening
    `optimal_snr` gives it. Dividing by either makes a glitch of unit SNR.

    Args:
        num: how many.
        sample_rate: hertz.
        duration: seconds of the window; arches longer than it are cut off.

    Returns:
        float64, shape (num, duration * sample_rate).
    """
    size = round(duration * sample_rate)
    times = (np.arange(size) - size // 2) / sample_rate
    return np.stack([waveform(draw_shape(rng), times, sample_rate) for _ in range(num)]) if num else np.empty((0, size))


def draw_snr(rng: np.random.Generator, low: float, high: float, size: int | None = None) -> float | np.ndarray:
    """SNR between `low` and `high` with density proportional to SNR^-3 (`SNR_POWER`)."""
    p = SNR_POWER + 1
    u = rng.random(size)
    return (low**p + u * (high**p - low**p)) ** (1 / p)
