"""The networks that can be asked for by name; each maps (batch, num_ifos, kernel + 2 context) to a logit (batch, 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aframe_assets.model import own_networks
from aframe_assets.model.lag_map import MapNet
from aframe_assets.model.receptive import impossible, lag_frames, least_context, streams, total_stride
from aframe_assets.model.resnet import ResNet1D
from aframe_assets.model.state_space import S4Net
from aframe_assets.model.streaming import StreamingNet
from aframe_assets.model.wavenet import WaveNet

if TYPE_CHECKING:
    from aframe_assets.config import Architecture, Config


@dataclass(frozen=True)
class Sky:
    """What a network must know of the detectors and the data it looks at.

    Attributes:
        num_ifos: detectors.
        sample_rate: Hz.
        travel_times: light travel time of each pair in seconds, in the order of itertools.combinations.
        kernel: samples of a window without its context; 0 where nobody said.
    """

    num_ifos: int
    sample_rate: float
    travel_times: tuple[float, ...]
    kernel: int = 0

    @classmethod
    def of(cls, config: Config) -> Sky:
        """Of the experiment's detectors."""
        from aframe_assets.waveforms.detectors import get_detectors, travel_time

        pairs = combinations(get_detectors(config.ifos, config.detectors), 2)
        kernel = round(config.conditioning.kernel_length * config.sample_rate)
        return cls(len(config.ifos), config.sample_rate, tuple(travel_time(a, b) for a, b in pairs), kernel)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Sky:
        """Of a bundle; one from before the networks needed travel times has none."""
        times = description.get("light_travel_times", {}).values()
        rate = float(description["sample_rate"])
        kernel = round(float(description["conditioning"]["kernel_length"]) * rate)
        return cls(len(description["ifos"]), rate, tuple(map(float, times)), kernel)


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


def _wavenet(architecture: Architecture, sky: Sky, context: int) -> nn.Module:
    a = architecture
    return WaveNet(sky.num_ifos, list(a.layers), a.width, a.kernel_size, a.stem_kernel, a.stem_stride, a.pooling, context)


def _s4(architecture: Architecture, sky: Sky, context: int) -> nn.Module:
    a, s = architecture, architecture.s4
    return S4Net(sky.num_ifos, a.layers[0], a.width, s.state, s.dt_min, s.dt_max, a.stem_kernel, a.stem_stride, a.pooling)


ARCHITECTURES: dict[str, Callable[[Architecture, Sky, int], nn.Module]] = {
    "resnet": _resnet,
    "streaming": _streaming,
    "map": _map,
    "wavenet": _wavenet,
    "s4": _s4,
}
"""This package's networks by the name in `model.architecture.name`."""


def build_network(architecture: Architecture, sky: Sky) -> nn.Module:
    """The untrained network of `architecture`, of this package or of the one that registers its name.

    Raises:
        ValueError: settings that `impossible` names, too little context, or a network of your own that does not keep its word.
    """
    for key, value, expected in impossible(architecture):
        raise ValueError(f"model.architecture.{key} = {value}: {expected}")
    context = round(architecture.context * sky.sample_rate)
    least, step = least_context(architecture, sky.sample_rate, max(sky.travel_times, default=0.0)), total_stride(architecture)
    if streams(architecture) and (context < least or context % step):
        raise ValueError(
            f"model.architecture.context = {architecture.context:g} s ({context} samples): expected at least {least} samples "
            f"({least / sky.sample_rate:g} s), a multiple of {step}, for frames that do not feel the window's end"
        )
    if architecture.name in ARCHITECTURES:
        return ARCHITECTURES[architecture.name](architecture, sky, context)
    return _own(architecture, sky, context)


def require_usable(architecture: Architecture, sky: Sky) -> None:
    """Refuse a network of your own that cannot be trained or exported, before it is trained.

    Raises:
        ValueError: it gives something else than a logit for each window, a weight that no logit depends on, frames that are others in a
            longer stretch, or no ``torch.export``.
    """
    network = build_network(architecture, sky).eval()
    x = torch.zeros(2, sky.num_ifos, sky.kernel + 2 * round(architecture.context * sky.sample_rate))
    logits = network(x)
    if tuple(logits.shape) != (2, 1) or not torch.isfinite(logits).all():
        raise ValueError(
            f"network {architecture.name!r} maps {tuple(x.shape)} to {tuple(logits.shape)}; expected a finite logit each, (2, 1)"
        )
    logits.sum().backward()
    idle = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        raise ValueError(f"network {architecture.name!r}: no logit depends on {idle[0]}, which cannot be trained; use it or take it away")
    if streams(architecture):
        _require_shared(architecture.name, network, x.shape[1:])
    try:
        torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    except Exception as e:  # what a graph breaks on is torch's and the network's own
        first = (str(e).splitlines() or [""])[0]
        raise ValueError(
            f"network {architecture.name!r} cannot be exported with any batch, so no engine could run it: {type(e).__name__}: {first}"
        ) from None


@torch.no_grad()
def _require_shared(name: str, network: nn.Module, window: torch.Size) -> None:
    """Refuse frames that change with what is beside the window: a search would not have the scores of what was trained."""
    size = window[-1]
    x = torch.randn(1, window[0], 2 * size, generator=torch.Generator().manual_seed(0))
    whole, first, last = (network.frames(part) for part in (x, x[..., :size], x[..., size:]))
    long, many = whole.shape[-1], first.shape[-1]
    for part, same in ((first, whole[..., :many]), (last, whole[..., long - many :])):
        if float((part - same).abs().max()) > 1e-3 * float(part.abs().max()):
            raise ValueError(
                f"network {name!r}: frames of a window are not those of a longer stretch; expected enough least_context(), and nothing (as "
                "a norm) that looks at the whole window"
            )
    logits = torch.cat([network(x[..., :size]), network(x[..., size:])])[:, 0]
    found = network.slide(whole, many, long - many)[0]
    if tuple(found.shape) != (2,) or float((found - logits).abs().max()) > 1e-3 * float(1 + logits.abs().max()):
        raise ValueError(f"network {name!r}: slide() gives {found.tolist()} of two windows, forward {logits.tolist()}; expected the same")


def _own(architecture: Architecture, sky: Sky, context: int) -> nn.Module:
    kind = own_networks.find(architecture.name).of(architecture.settings)
    network = kind.build(sky, context)
    said = f"network {architecture.name!r} of {type(kind).__module__}.{type(kind).__qualname__}"
    if not isinstance(network, nn.Module):
        raise ValueError(f"{said}: build gave {type(network).__name__}; expected a torch.nn.Module")
    found, wanted = getattr(network, "total_stride", 0) if hasattr(network, "frames") else 0, kind.total_stride()
    if found != wanted:
        raise ValueError(
            f"{said}: its module has frames of total stride {found}, and total_stride() says {wanted}; expected the same (0: none)"
        )
    if wanted and network.context != context:
        raise ValueError(f"{said}: its module has context {network.context}; expected the {context} samples that build was given")
    return network
