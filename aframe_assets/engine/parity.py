"""Does an engine answer as the torch model does? Measured on noise and on signals and glitches in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

EXPORT_TOLERANCE = 1e-3
"""Largest accepted difference of logits between an exported file and the network it was made from."""

_SIZES = (1, 3, 32)
"""Batch sizes that are tried: an exporter may have frozen one."""


@dataclass(frozen=True)
class Parity:
    """Largest and root-mean-square difference of logits, the spread of the logits themselves, and the number of windows."""

    max_difference: float
    rms_difference: float
    logit_std: float
    windows: int
    tolerance: float

    @property
    def passed(self) -> bool:
        # a NaN difference is no agreement
        return bool(self.max_difference <= self.tolerance)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def probes(num_ifos: int, kernel: int, sample_rate: float, num: int = 96, seed: int = 0) -> np.ndarray:
    """Windows like those of a search (num, ifo, kernel) float32.

    In turn: white noise; noise with a rising chirp in all detectors at network SNR 5 to 100; noise with a glitch of up to
    100 sigma in one detector; and, last, a window of zeros (padding).
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num, num_ifos, kernel))
    t = np.arange(kernel) / sample_rate
    for i in range(num):
        when = rng.uniform(0.2, 0.95) * t[-1]
        if i % 3 == 1:
            to_go = np.maximum(when - t, 1 / sample_rate)
            phase = rng.uniform(20, 60) * to_go ** (5 / 8) * 2 * np.pi
            wave = np.where(t < when, to_go ** (-1 / 4) * np.sin(phase), 0.0) * np.exp(-np.maximum(0.2 - t, 0) / 0.05)
            x[i] += wave / np.linalg.norm(wave) * np.geomspace(5, 100, num)[i] / np.sqrt(num_ifos)
        elif i % 3 == 2:
            width, frequency = rng.uniform(0.002, 0.05), rng.uniform(30, 400)
            x[i, i % num_ifos] += np.geomspace(3, 100, num)[i] * np.exp(-(((t - when) / width) ** 2)) * np.sin(2 * np.pi * frequency * t)
    x[-1] = 0
    return x.astype(np.float32)


def compare(
    engine: Callable[[np.ndarray], np.ndarray], reference: Callable[[np.ndarray], np.ndarray], windows: np.ndarray, tolerance: float
) -> Parity:
    """Parity of two maps from windows to logits (batch,), over batches of several sizes.

    Args:
        engine, reference: (batch, ifo, kernel) float32 -> (batch,).
        windows: as `probes` gives.
        tolerance: largest accepted difference.
    """
    wanted = np.concatenate([reference(windows[i : i + 32]) for i in range(0, len(windows), 32)]).astype(np.float64)
    differences = [
        np.concatenate([engine(windows[i : i + n]) for i in range(0, len(windows), n)]).astype(np.float64) - wanted for n in _SIZES
    ]
    all_of_them = np.concatenate(differences)
    return Parity(
        float(np.abs(all_of_them).max()), float(np.sqrt((all_of_them**2).mean())), float(wanted.std()), len(windows), float(tolerance)
    )
