"""The networks that can be asked for by name; each maps (batch, num_ifos, kernel + 2 context) to a logit (batch, 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from torch import nn

from aframe_assets.model.lag_map import MapNet
from aframe_assets.model.receptive import impossible, lag_frames, least_context, total_stride
from aframe_assets.model.resnet import ResNet1D
from aframe_assets.model.streaming import StreamingNet

if TYPE_CHECKING:
    from aframe_assets.config import Architecture, Config


@dataclass(frozen=True)
class Sky:
    """What a network must know of the detectors it looks at.

    Attributes:
        num_ifos: detectors.
        sample_rate: Hz.
        travel_times: light travel time of each pair in seconds, in the order of itertools.combinations.
    """

    num_ifos: int
    sample_rate: float
    travel_times: tuple[float, ...]

    @classmethod
    def of(cls, config: Config) -> Sky:
        """Of the experiment's detectors."""
        from aframe_assets.waveforms.detectors import get_detectors, travel_time

        pairs = combinations(get_detectors(config.ifos, config.detectors), 2)
        return cls(len(config.ifos), config.sample_rate, tuple(travel_time(a, b) for a, b in pairs))

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Sky:
        """Of a bundle; one from before the networks needed travel times has none."""
        times = description.get("light_travel_times", {}).values()
        return cls(len(description["ifos"]), float(description["sample_rate"]), tuple(map(float, times)))


def _resnet(architecture: Architecture, sky: Sky, context: int) -> nn.Module:
    a = architecture
    return ResNet1D(sky.num_ifos, list(a.layers), a.width, a.kernel_size, a.norm_groups, a.stem_kernel, a.stem_stride, a.pooling)


def _streaming(architecture: Architecture, sky: Sky, context: int) -> nn.Module:
    a = architecture
    return StreamingNet(sky.num_ifos, list(a.layers), a.width, a.kernel_size, a.stem_kernel, a.stem_stride, a.pooling, context)


def _map(architecture: Architecture, sky: Sky, context: int) -> nn.Module:
    a, h = architecture, architecture.lag_head
    encoder = {"layers": list(a.layers), "channels": h.channels, "stride": h.map_stride}
    encoder |= {k: getattr(a, k) for k in ("width", "kernel_size", "stem_kernel", "stem_stride")}
    return MapNet(
        sky.num_ifos,
        encoder,
        shared=h.encoder == "shared",
        groups=h.groups,
        hidden=h.hidden,
        similarity=h.similarity,
        lags=[lag_frames(a, sky.sample_rate, t) for t in sky.travel_times],
        pooling=a.pooling,
        context=context,
    )


ARCHITECTURES: dict[str, Callable[[Architecture, Sky, int], nn.Module]] = {"resnet": _resnet, "streaming": _streaming, "map": _map}
"""Networks by the name in `model.architecture.name`."""


def build_network(architecture: Architecture, sky: Sky) -> nn.Module:
    """The untrained network of `architecture`.

    Raises:
        ValueError: settings that `impossible` names, or too little context.
    """
    for key, value, expected in impossible(architecture):
        raise ValueError(f"model.architecture.{key} = {value}: {expected}")
    context = round(architecture.context * sky.sample_rate)
    least, step = least_context(architecture, sky.sample_rate, max(sky.travel_times, default=0.0)), total_stride(architecture)
    if architecture.name != "resnet" and (context < least or context % step):
        raise ValueError(
            f"model.architecture.context = {architecture.context:g} s ({context} samples): expected at least {least} samples "
            f"({least / sky.sample_rate:g} s), a multiple of {step}, for frames that do not feel the window's end"
        )
    return ARCHITECTURES[architecture.name](architecture, sky, context)
