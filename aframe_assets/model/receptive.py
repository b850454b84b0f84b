"""Strides and reach of the networks, from their settings alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aframe_assets.model import own_networks

if TYPE_CHECKING:
    from aframe_assets.config import Architecture


WINDOWED = ("resnet", "s4")
"""Networks of this package whose every output depends on the whole window, so that each is computed by itself."""


def streams(architecture: Architecture) -> bool:
    """Whether the network has frames that windows share (`aframe_assets.model.streaming.FrameNetwork`)."""
    return total_stride(architecture) > 0


def impossible(architecture: Architecture) -> list[tuple[str, object, str]]:
    """Settings with which no network can be built, each with its key in `architecture`, its value and what was expected.

    Whether the context reaches far enough depends on the detectors too: see `least_context`.
    """
    a, out = architecture, []
    if a.name not in own_networks.BUILT_IN:
        return _impossible_own(a)
    if a.settings:
        out.append(("settings", a.settings, f"expected none: {a.name!r} is no network of your own, its settings are keys of this section"))
    if not a.layers or min(a.layers) < 1:
        out.append(("layers", a.layers, "expected at least one stage, of at least one block each"))
    if a.kernel_size % 2 == 0 and a.name != "s4":
        out.append(("kernel_size", a.kernel_size, "expected an odd number: a block's output is as long as its input"))
    if a.stem_kernel < a.stem_stride:
        out.append(("stem_kernel", a.stem_kernel, f"expected at least stem_stride {a.stem_stride}, so that no sample is passed over"))
    if a.name in WINDOWED and a.context:
        out.append(("context", a.context, f"expected 0: {a.name!r} looks at its window and nothing else"))
    if a.name == "s4":
        if len(a.layers) != 1:
            out.append(("layers", a.layers, "expected one stage, as [4]: every layer of 's4' reaches over the whole window"))
        if a.s4.dt_max < a.s4.dt_min:
            out.append(("s4.dt_max", a.s4.dt_max, f"expected at least s4.dt_min {a.s4.dt_min:g}"))
    elif a.name == "resnet":
        widths = [a.width * 2**i for i in range(max(1, len(a.layers)))]
        uneven = [width for width in widths if width % min(a.norm_groups, width)]
        if uneven:
            out.append(("norm_groups", a.norm_groups, f"expected a number that divides the channels of every stage, {widths}"))
    elif a.stem_kernel % 2 == 0:
        out.append(("stem_kernel", a.stem_kernel, f"expected an odd number: a frame of {a.name!r} has a sample in its middle"))
    if a.name == "map" and a.layers and a.lag_head.map_stride not in stage_strides(a):
        out.append(("lag_head.map_stride", a.lag_head.map_stride, f"expected the stride of a stage, {stage_strides(a)}"))
    if a.name == "map" and a.lag_head.channels % a.lag_head.groups:
        out.append(("lag_head.groups", a.lag_head.groups, f"expected a number that divides channels {a.lag_head.channels}"))
    return out


def _impossible_own(architecture: Architecture) -> list[tuple[str, object, str]]:
    """Of a network that is not of this package: whether there is one, and what it says itself."""
    a = architecture
    if not own_networks.is_registered(a.name):
        known = ", ".join(own_networks.names())
        return [("name", a.name, f"expected one of {known}, or what an installed package registers in {own_networks.GROUP}")]
    stride = total_stride(a)
    if not stride and a.context:
        return [("context", a.context, f"expected 0: {a.name!r} takes windows one by one (its total_stride is 0)")]
    return []


def stage_strides(architecture: Architecture) -> list[int]:
    """Samples per frame after each stage: the stem and its pooling, then twice as many from stage to stage."""
    return [architecture.stem_stride * 2 * 2**i for i in range(len(architecture.layers))]


def total_stride(architecture: Architecture) -> int:
    """Samples by which data must be moved for the frames of every stage to move with them; 0 for a network of windows."""
    if architecture.name in WINDOWED:
        return 0
    if architecture.name not in own_networks.BUILT_IN:
        return _own(architecture).total_stride()
    return stage_strides(architecture)[-1]


def _own(architecture: Architecture) -> own_networks.OwnNetwork:
    return own_networks.find(architecture.name).of(architecture.settings)


def reach_of(architecture: Architecture) -> int:
    """Samples on each side of a last-stage frame that it depends on; of a 'wavenet', of a frame that is the mean of its samples."""
    half, stride = architecture.kernel_size // 2, architecture.stem_stride
    if architecture.name == "wavenet":
        # dilations 1, 2, 4, ... of each block
        return architecture.stem_kernel // 2 + stride * half * sum(2**layers - 1 for layers in architecture.layers)
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
        architecture: of the network; 0 for one that looks at its window and nothing else.
        sample_rate: Hz.
        travel_time: longest between two detectors, seconds.
    """
    if not streams(architecture):
        return 0
    if architecture.name not in own_networks.BUILT_IN:
        return _own(architecture).least_context(sample_rate, travel_time)
    reach, total = reach_of(architecture), total_stride(architecture)
    if architecture.name == "map":
        stride = architecture.lag_head.map_stride
        # a smoothed frame next to it, a coarser frame that is repeated, and the lags
        reach += stride + total + stride * lag_frames(architecture, sample_rate, travel_time)
    return -(-reach // total) * total
