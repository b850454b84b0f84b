"""Strides and reach of the networks, from their settings alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aframe_assets.config import Architecture


def stage_strides(architecture: Architecture) -> list[int]:
    """Samples per frame after each stage: the stem and its pooling, then twice as many from stage to stage."""
    return [architecture.stem_stride * 2 * 2**i for i in range(len(architecture.layers))]


def total_stride(architecture: Architecture) -> int:
    """Samples by which data must be moved for the frames of every stage to move with them."""
    return stage_strides(architecture)[-1]


def trunk_reach(architecture: Architecture) -> int:
    """Samples on each side of a last-stage frame that it depends on."""
    half, stride = architecture.kernel_size // 2, architecture.stem_stride
    reach = architecture.stem_kernel // 2 + stride
    for stage, blocks in enumerate(architecture.layers):
        grid = stage_strides(architecture)[stage]
        reach += half * (grid if stage == 0 else grid // 2) + half * grid * (2 * blocks - 1)
    return reach


def lag_frames(architecture: Architecture, sample_rate: float, travel_time: float) -> int:
    """Frames of the map between two detectors that light needs `travel_time` seconds for, rounded up, and one for the rounding of both."""
    return -int(-travel_time * sample_rate // architecture.lag_head.map_stride)


def least_context(architecture: Architecture, sample_rate: float, travel_time: float) -> int:
    """Samples of context, a multiple of the total stride, with which no frame of the kernel feels the end of the data.

    Args:
        architecture: of the network; 0 for 'resnet', whose norm looks at its window and nothing else.
        sample_rate: Hz.
        travel_time: longest between two detectors, seconds.
    """
    if architecture.name == "resnet":
        return 0
    reach, total = trunk_reach(architecture), total_stride(architecture)
    if architecture.name == "map":
        stride = architecture.lag_head.map_stride
        # a smoothed frame next to it, a coarser frame that is repeated, and the lags
        reach += stride + total + stride * lag_frames(architecture, sample_rate, travel_time)
    return -(-reach // total) * total
