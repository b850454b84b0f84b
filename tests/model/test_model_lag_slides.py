"""The head over many slides against the network's own methods, slide by slide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aframe_assets.config import Architecture
from aframe_assets.model.lag_slides import DetectorMap, SlideHead
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.model.receptive import least_context

RATE = 2048.0
HEAD = {"channels": 16, "groups": 4, "hidden": 8}


def network(ifos: int, pooling: str = "mean_max", **head) -> torch.nn.Module:
    travel = tuple(0.01 + 0.008 * k for k in range(ifos * (ifos - 1) // 2))
    bare = Architecture(name="map", layers=[1, 1, 1], width=4, stem_stride=4, pooling=pooling, lag_head=HEAD | head)
    context = least_context(bare, RATE, max(travel, default=0)) / RATE
    torch.manual_seed(ifos)
    return build_network(bare.model_copy(update={"context": context}), Sky(ifos, RATE, travel)).eval()


def expected(net, maps, start, count, size, hop):
    frames = (count - 1) * hop + size
    cut = [m[None, :, s - net.reach : s + frames + net.reach] for m, s in zip(maps, start, strict=True)]
    with torch.no_grad():
        return net.slide(net.combine(cut), size, hop)[0]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(("size", "hop"), [(192, 32), (48, 32), (20, 1), (7, 30), (32, 32)])
@pytest.mark.parametrize(("ifos", "pooling"), [(2, "mean_max"), (3, "mean"), (1, "mean_max")])
def test_equal_to_the_network_slide_by_slide(ifos, pooling, size, hop, batched):
    net, rng = network(ifos, pooling), np.random.default_rng(size + hop)
    maps = [torch.from_numpy(rng.standard_normal((24, 900 + 50 * c)).astype(np.float32)) for c in range(ifos)]
    counts = np.array([5, 1, 0, 12, 700 // hop if hop < 30 else 9])
    starts = np.array(
        [[int(rng.integers(net.reach, 850 + 50 * c - (n - 1) * hop - size)) if n else 0 for c in range(ifos)] for n in counts]
    )
    got = SlideHead(net, size, hop, batched)([DetectorMap.of(net, m) for m in maps], starts, counts)
    want = torch.cat([expected(net, maps, s, int(n), size, hop) for s, n in zip(starts, counts, strict=True) if n])
    assert got.shape == (counts.sum(),)
    assert torch.allclose(got, want, rtol=1e-5, atol=1e-5 * float(want.std()))


def test_long_runs_are_cut_without_a_seam(monkeypatch):
    net = network(2)
    maps = [torch.randn(24, 3000) for _ in range(2)]
    starts, counts = np.array([[10, 500], [300, 40]]), np.array([100, 60])
    whole = SlideHead(net, 32, 16)([DetectorMap.of(net, m) for m in maps], starts, counts)
    monkeypatch.setattr("aframe_assets.model.lag_slides._OUTPUTS", 7)
    monkeypatch.setattr("aframe_assets.model.lag_slides._TILE", 48)
    monkeypatch.setattr("aframe_assets.model.lag_slides._PIECES", 2000)
    for batched in (False, True):
        cut = SlideHead(net, 32, 16, batched, joined=200_000)([DetectorMap.of(net, m) for m in maps], starts, counts)
        assert torch.allclose(cut, whole, rtol=1e-5, atol=1e-6)


def test_slides_are_joined_at_once_as_memory_allows(monkeypatch):
    net = network(2)
    maps, starts, counts = [DetectorMap.of(net, torch.randn(24, 900)) for _ in range(2)], np.full((7, 2), 50), np.full(7, 20)
    seen, combine = [], net.combine
    monkeypatch.setattr(net, "combine", lambda taken: seen.append(len(taken[0])) or combine(taken))
    # frames of a slide, each with both maps and the similarities of 5 or so lags
    head = SlideHead(net, 32, 16, True)
    one = 4 * (19 * 16 + 32) * (head.rows + 2 * 24)
    for slides, batches in ((0, [1] * 7), (3.5, [3, 3, 1]), (100, [7])):
        seen.clear()
        SlideHead(net, 32, 16, True, joined=int(slides * one))(maps, starts, counts)
        assert seen == batches


def test_a_run_beyond_a_map_is_told():
    net = network(2)
    maps = [DetectorMap.of(net, torch.zeros(24, n)) for n in (100, 90)]
    with pytest.raises(ValueError, match=r"run 1 reads frames .* of detector 1's map; expected 0 to 90"):
        SlideHead(net, 32, 16)(maps, np.array([[4, 4], [4, 90 - net.reach - 32 - 15]]), np.array([2, 2]))
    with pytest.raises(ValueError, match="detector 0"):
        SlideHead(net, 32, 16)(maps, np.array([[net.reach - 1, 4]]), np.array([1]))
