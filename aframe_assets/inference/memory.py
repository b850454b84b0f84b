"""What ``inference.memory_gb`` is spent on: libraries, strain, and slides with the maps that they read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from aframe_assets.config import Config, Inference

LIBRARIES = 0.7e9
"""Bytes of a process that has done nothing yet but import torch and open a network."""

LEAST = 0.2e9
"""Bytes for slides below which a search cannot work."""

MAPS, SCORES, JOINED = 0.5, 0.15, 0.35
"""Shares of the memory for slides: maps, outputs of the slides handled together, and, on a GPU, what is joined of maps at once."""

SAMPLE = 4
"""Bytes of a whitened sample."""


def memory_for_slides(inference: Inference, streams: Sequence[np.ndarray]) -> float:
    """Bytes that ``inference.memory_gb`` leaves beside the libraries, whitened strain, and whitened strain with signals.

    At least LEAST: `least_memory` has refused a smaller bound, save for strain longer than an experiment's chunks.
    """
    return max(LEAST, inference.memory_gb * 1e9 - LIBRARIES - 2 * sum(s.nbytes for s in streams))


def least_memory(config: Config) -> tuple[float, float]:
    """Least ``inference.memory_gb`` that can hold, GB, and what of it is the longest chunk's strain, with and without signals.

    The longest chunk is ``segments.max_duration``, or all test time where that is shorter; its strain counts 0 where chunks are never cut.
    """
    seg = config.segments
    longest = max(0.0, seg.max_duration)
    if seg.test_start is not None and seg.test_stop is not None:
        longest = min(longest, max(0.0, seg.test_stop - seg.test_start))
    strain = 2 * SAMPLE * longest * config.sample_rate * len(config.ifos)
    return (LIBRARIES + LEAST + strain) / 1e9, strain / 1e9
