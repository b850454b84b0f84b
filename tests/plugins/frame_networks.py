"""Small networks of every form, untrained but with norms of their own, as engines."""

from __future__ import annotations

from itertools import combinations

import torch

from aframe_assets.config import Architecture, Conditioning
from aframe_assets.engine.engine import Engine, network_engine
from aframe_assets.model.bundle import Bundle
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.model.receptive import least_context

SMALL = {"layers": [1, 1, 1], "width": 4, "stem_kernel": 7, "stem_stride": 2, "pooling": "mean_max"}
HEAD = {"channels": 8, "groups": 4, "hidden": 6, "map_stride": 8}
TRAVEL = 0.012


def frame_bundle(name: str, ifos: int = 2, rate: float = 512.0, kernel: float = 1.5, context: float = 0.0) -> Bundle:
    """A network by the name of its architecture; its total stride is 16 samples, and its logits are spread over some units.

    Args:
        name: 'resnet', 'streaming', 'map' or 'wavenet'.
        ifos: detectors.
        rate: Hz.
        kernel: seconds.
        context: seconds on each side of the kernel; by default, or if it is not enough, the least that the network can have.
    """
    sky = Sky(ifos, rate, tuple(TRAVEL for _ in combinations(range(ifos), 2)))
    bare = Architecture(name=name, lag_head=HEAD, **SMALL)
    architecture = bare.model_copy(update={"context": max(context, least_context(bare, rate, TRAVEL) / rate)})
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = build_network(architecture, sky).train()
        window = round(kernel * rate) + 2 * round(architecture.context * rate)
        with torch.no_grad():
            for _ in range(4):
                network(torch.randn(16, ifos, window))
        network.eval()
        _spread(network, torch.randn(64, ifos, window))
    conditioning = Conditioning(psd_length=4, fftlength=1, fduration=1, kernel_length=kernel, highpass=20)
    return Bundle(network, architecture, ["H1", "L1", "V1", "K1"][:ifos], rate, conditioning, {}, {})


@torch.no_grad()
def _spread(network: torch.nn.Module, x: torch.Tensor) -> None:
    """Scale the last layer so that noise gives logits of mean 0 and deviation 1."""
    last = network.fc if hasattr(network, "fc") else network.head[-1]
    logits = network(x)
    last.weight /= logits.std()
    last.bias -= logits.mean()
    last.bias /= logits.std()


def frame_engine(name: str, block: float = 2.0, **options: object) -> Engine:
    """`frame_bundle` as an engine in torch; `block` in seconds."""
    return network_engine(frame_bundle(name, **options), block=block, threads=1, batch=3)


class Windowed:
    """An engine in its windowed form alone: the reference of what the others must give."""

    form = "windows"

    def __init__(self, engine: Engine) -> None:
        self.engine, self.kernel, self.context, self.score_windows = engine, engine.kernel, engine.context, engine.score_windows
        self.ifos, self.sample_rate = engine.ifos, engine.sample_rate
