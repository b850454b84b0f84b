"""Frames that do not depend on the window: one pass over a stretch against every window by itself."""

from __future__ import annotations

import pytest
import torch

from aframe_assets.config import Architecture
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.model.receptive import least_context, total_stride
from aframe_assets.model.streaming import pool_windows

RATE, TRAVEL = 2048.0, 0.01001
SMALL = {"layers": [1, 2, 1, 1], "width": 8, "stem_kernel": 15, "stem_stride": 4, "pooling": "mean_max"}
HEAD = {"channels": 16, "groups": 4, "hidden": 8}


def settings(name: str, sky: Sky, **values) -> Architecture:
    bare = Architecture(name=name, **SMALL | values)
    return bare.model_copy(update={"context": least_context(bare, sky.sample_rate, max(sky.travel_times, default=0)) / sky.sample_rate})


def trained(architecture: Architecture, sky: Sky) -> torch.nn.Module:
    """Random weights and norms with statistics of their own, in eval mode."""
    torch.manual_seed(3)
    network = build_network(architecture, sky).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, sky.num_ifos, 3072 + 2 * network.context))
    return network.eval()


@pytest.mark.parametrize(
    ("name", "values", "ifos"),
    [
        ("streaming", {}, 2),
        ("streaming", {"pooling": "mean", "layers": [2, 1]}, 3),
        ("map", {"lag_head": HEAD}, 2),
        ("map", {"lag_head": HEAD | {"encoder": "separate", "similarity": "product", "map_stride": 32}}, 3),
        ("map", {"lag_head": HEAD, "pooling": "mean"}, 1),
        ("wavenet", {"layers": [4, 3]}, 2),
        ("wavenet", {"pooling": "mean", "layers": [5], "kernel_size": 5}, 3),
    ],
)
def test_a_pass_over_a_stretch_equals_every_window_of_it(name, values, ifos):
    sky = Sky(ifos, RATE, tuple([TRAVEL, 0.0273, 0.0264][: ifos * (ifos - 1) // 2]))
    architecture = settings(name, sky, **values)
    network, kernel = trained(architecture, sky), 3072
    step = total_stride(architecture)
    x = torch.randn(1, ifos, 5 * kernel + 2 * network.context) * torch.linspace(0.5, 20, 5 * kernel + 2 * network.context)
    size, hop = kernel // network.stride, 4 * step // network.stride
    with torch.no_grad():
        slid = network.slide(network.frames(x), size, hop)[0]
        windows = x[0].unfold(-1, kernel + 2 * network.context, 4 * step).transpose(0, 1)
        alone = network(windows)[:, 0]
    assert slid.shape == alone.shape and alone.std() > 0
    assert (slid - alone).abs().max() < 1e-5 * (alone.max() - alone.min()) + 1e-6


@pytest.mark.parametrize("name", ["streaming", "map", "wavenet"])
def test_the_context_is_as_long_as_the_reach(name):
    sky = Sky(2, RATE, (TRAVEL,))
    architecture = settings(name, sky, lag_head=HEAD)
    network = trained(architecture, sky)
    x = torch.randn(1, 2, 3072 + 2 * network.context, dtype=torch.float64)
    network.double()
    with torch.no_grad():
        here = network.frames(x)
        more = torch.nn.functional.pad(x, (10 * network.total_stride,) * 2, value=50.0)
        there = network.frames(more)
    extra = 10 * network.total_stride // network.stride
    torch.testing.assert_close(there[..., extra:-extra], here, rtol=0, atol=1e-9)


def test_too_little_context_is_refused():
    sky = Sky(2, RATE, (TRAVEL,))
    good = settings("streaming", sky)
    with pytest.raises(ValueError, match=r"model\.architecture\.context = 0\.0625 s \(128 samples\): expected at least"):
        build_network(good.model_copy(update={"context": 0.0625}), sky)


def test_pooling_in_shared_pieces_is_pooling_of_each_window():
    x = torch.randn(2, 3, 96, dtype=torch.float64)
    got = pool_windows(x, 24, 10, "mean_max")
    windows = x.unfold(-1, 24, 10)
    torch.testing.assert_close(got, torch.cat([windows.mean(-1), windows.amax(-1)], 1))


@pytest.mark.parametrize("similarity", ["product", "cosine"])
def test_a_delay_is_seen_at_its_lag_and_not_beyond_light_travel(similarity):
    sky = Sky(2, RATE, (TRAVEL,))
    network = trained(settings("map", sky, lag_head=HEAD | {"similarity": similarity}), sky)
    # ceil(10.01 ms x 2048 Hz / 16) frames
    assert network.lags == [2]
    maps = torch.zeros(2, 1, 16 + 8, 12)
    maps[0, :, :16, 6], maps[1, :, :16, 6 + 3] = 1.0, 1.0
    with torch.no_grad():
        alone = network.combine([maps[0], torch.zeros_like(maps[0])])
        beyond = network.combine([maps[0], maps[1]])
        maps[1] = maps[1].roll(-2, -1)
        within = network.combine([maps[0], maps[1]])
    torch.testing.assert_close(beyond, alone)
    assert (within - alone).abs().max() > 0


def test_a_bounded_similarity_cannot_grow_with_loudness():
    sky = Sky(2, RATE, (TRAVEL,))
    network = trained(settings("map", sky, lag_head=HEAD), sky)
    x = torch.randn(1, 2, 3072 + 2 * network.context)
    with torch.no_grad():
        loud = network.encode(1e4 * x)[:, :, : network.channels]
    assert loud.unflatten(2, (network.groups, -1)).square().sum(3).max() < 1 + 1e-5
