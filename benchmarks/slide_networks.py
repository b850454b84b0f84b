"""The four ways of searching slides at a chosen size, with random weights, and what upstream's way is: a loop over windows.

Random weights cost what trained ones do. Batch norms get their statistics from a forward pass on white noise, as a training would
leave them, and are then folded into the convolutions, as an export does.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aframe_assets.config import Architecture, Config
from aframe_assets.config_load import build_config
from aframe_assets.engine.engine import Engine, network_engine
from aframe_assets.engine.export import CheapestForm
from aframe_assets.engine.fold import fold_batch_norms
from aframe_assets.inference.whitened import WhitenedChunk
from aframe_assets.model.bundle import Bundle, describe
from aframe_assets.model.lag_map import MapNet
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.model.receptive import least_context
from aframe_assets.strain.conditioning import Whitener

METHODS = ("windowed", "streaming", "cascade", "direct")
"""'windowed' is upstream's network, run anew for each window; the others are those of reference fast-timeslides."""

MAP = {"name": "map", "pooling": "mean_max"}

BLOCKS = 1
"""Blocks of a call: on a CPU more at once leave its caches."""

TRAVEL_TIME = 0.0101
"""Seconds, not less than the light travel time between H1 and L1."""


@dataclass(frozen=True)
class Size:
    """How large everything is; the default is upstream's.

    Attributes:
        layers, width: of every network; see `aframe_assets.model.resnet.Trunk`.
        sample_rate: Hz.
        block: seconds of output of one call of a network of frames or maps.
    """

    layers: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    sample_rate: float = 2048.0
    block: float = 16.0


def experiment(method: str, size: Size, inference: Mapping[str, Any]) -> Config:
    """An experiment on H1 and L1.

    Args:
        method: one of METHODS.
        size: of the networks.
        inference: settings of that section.
    """
    shared = {"layers": list(size.layers), "width": size.width, "norm_groups": min(16, size.width)}
    names = {"windowed": {"name": "resnet"}, "direct": MAP}
    model = {"architecture": _with_context(shared | names.get(method, {"name": "streaming"}), size)}
    if method == "cascade":
        model["filter"] = _with_context(shared | MAP, size)
    sections = {"model": model, "inference": {"num_slides": 1, "zero_lag": False, "exclude_catalog": None, **inference}}
    return build_config({"preset": "o3", "sample_rate": size.sample_rate, **sections}, source="benchmark")


def _with_context(architecture: dict[str, Any], size: Size) -> dict[str, Any]:
    """With the context that a map of this size needs at least, which is enough for the others: both networks of a cascade have one."""
    if architecture["name"] == "resnet":
        return architecture
    least = least_context(Architecture.model_validate(architecture | {"name": "map"}), size.sample_rate, TRAVEL_TIME)
    return architecture | {"context": least / size.sample_rate}


def random_bundle(config: Config, architecture: Architecture, seed: int = 0) -> Bundle:
    """A bundle of random weights for `architecture`, batch norms folded."""
    torch.manual_seed(seed)
    network = build_network(architecture, Sky.of(config))
    window = round((config.conditioning.kernel_length + 2 * architecture.context) * config.sample_rate)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = None  # statistics of all that was seen, not a running average
    with torch.no_grad():
        network.train()(torch.randn(4, len(config.ifos), window))
    network = fold_batch_norms(network) if norms else network.eval()
    description = describe(config, {}, {"weights": "random"})
    return Bundle(network, architecture, list(config.ifos), config.sample_rate, config.conditioning, {}, description)


def engine_of(config: Config, bundle: Bundle, size: Size) -> Engine:
    """A bundle's engine, in torch on one CPU thread; with its filter if the experiment has one."""
    first = None
    if config.model.filter is not None:
        first = network_engine(random_bundle(config, config.model.filter), block=size.block, threads=1, batch=BLOCKS)
    return network_engine(bundle, block=size.block, threads=1, batch=BLOCKS, filter=first)


def white_chunk(config: Config, seconds: float, seed: int = 1) -> WhitenedChunk:
    """White noise in place of whitened strain: `seconds` of every detector."""
    fs, rng = config.sample_rate, np.random.default_rng(seed)
    whitener = Whitener(config.conditioning, fs)
    streams = tuple(rng.standard_normal(round(seconds * fs), np.float32) for _ in config.ifos)
    settle = round(config.conditioning.psd_length * fs)
    block = round(config.inference.batch_size / config.inference.inference_rate * fs)
    return WhitenedChunk(streams, ((),) * len(streams), 0.0, fs, settle, whitener.crop, block, whitener)


# --- upstream's way -------------------------------------------------------------------------------


def upstream_scores(network: nn.Module, streams: Sequence[np.ndarray], starts: np.ndarray, kernel: int, batch: int) -> np.ndarray:
    """Scores (n,) of windows, `batch` after `batch`.

    Args:
        network: of windows.
        streams: one array per detector.
        starts: (ifo, n) first sample of each window.
        kernel: samples of a window.
        batch: windows of a call.
    """
    views = [np.lib.stride_tricks.sliding_window_view(s, kernel) for s in streams]
    out = np.empty(starts.shape[1], np.float32)
    for i in range(0, len(out), batch):
        windows = np.stack([view[at[i : i + batch]] for view, at in zip(views, starts, strict=True)], axis=1)
        with torch.inference_mode():
            out[i : i + batch] = network(torch.from_numpy(windows))[:, 0].numpy()
    return out


def upstream_events(scores: np.ndarray, rate: float, integration: float, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Statistic and index of the events of one series: reference 2.11, step by step in Python."""
    size = int(rate * integration) + 1
    y = np.convolve(scores.astype(np.float64), np.ones(size) / size)[: len(scores)]
    half, found = int(rate * window) // 2, []
    at = int(np.argmax(y[:half]))
    while at < len(y):
        ahead = y[at + 1 : at + 1 + half]
        if len(ahead) and ahead.max() > y[at]:
            at += 1 + int(ahead.argmax())
        else:
            found.append(at)
            at += half + 1
    return y[found], np.array(found, np.int64)


# --- arithmetic -----------------------------------------------------------------------------------


def flops(network: nn.Module, *shape: int) -> float:
    """Floating-point operations of `network` on an input of `shape`, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        copy.deepcopy(network).to("meta")(torch.empty(*shape))
    return float(counter.get_total_flops())


def head_flops(network: MapNet, hop: int) -> float:
    """The same of the lag head for one frame: similarities, their mixing, pooling, and a frame's part of the last layers.

    Args:
        hop: frames between windows.
    """
    hidden, lags = network.single[0].out_channels, sum(2 * lag + 1 for lag in network.lags)
    mixing = 2 * lags * network.groups * hidden + hidden * network.num_ifos
    pooling = hidden * (2 if network.pooling == "mean_max" else 1)
    layers = sum(2 * m.weight.numel() for m in network.head if isinstance(m, nn.Linear))
    return 2 * lags * network.channels + mixing + pooling + layers / hop


def arithmetic(bundle: Bundle, rate: float) -> dict[str, float]:
    """Operations for a second of data, context of blocks not counted.

    Args:
        bundle: a network.
        rate: windows per second, Hz.

    Returns:
        'once': of what all slides share; 'slide': of each slide.
    """
    network, fs, ifos = bundle.network, bundle.sample_rate, len(bundle.ifos)
    if not hasattr(network, "frames"):
        return {"once": 0.0, "slide": rate * flops(network, 1, ifos, bundle.window_size)}
    # the difference of two lengths is free of what the ends cost
    form = CheapestForm(network, "maps" if isinstance(network, MapNet) else "frames")
    size = 64 * network.total_stride
    second = (flops(form, 1, ifos, 3 * size) - flops(form, 1, ifos, 2 * size)) * fs / size
    if not isinstance(network, MapNet):
        return {"once": 0.0, "slide": second}
    return {"once": second, "slide": head_flops(network, round(fs / rate / network.stride)) * fs / network.stride}
