"""Streaming equals one shot, and clustering equals the words of the reference."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from aframe_assets.config import Conditioning
from aframe_assets.inference.streaming import StreamingScorer, StreamingWhitener, WindowSnapshotter, in_batches
from aframe_assets.strain.conditioning import Whitener

RATE = 512.0


@pytest.fixture(scope="module")
def whitener() -> Whitener:
    return Whitener(Conditioning(psd_length=4, fftlength=1, fduration=1, highpass=20), RATE)


@pytest.fixture(scope="module")
def strain() -> np.ndarray:
    rng = np.random.default_rng(5)
    return rng.standard_normal((2, int(40 * RATE))) * 1e-22


def cuts(rng: np.random.Generator, size: int, mean: float) -> list[int]:
    return [0, *np.sort(rng.choice(size, max(1, int(size / mean)), replace=False)).tolist(), size]


class Energy:
    """Mean power of a window."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def score_windows(self, windows: np.ndarray) -> np.ndarray:
        self.sizes.append(len(windows))
        return (windows**2).mean((1, 2))


def test_preceding_block_is_whitened_with_the_psd_before_it(whitener, strain):
    block, settle, crop = int(8 * RATE), int(4 * RATE), whitener.crop
    machine = StreamingWhitener(whitener, block)
    out = np.concatenate([machine.update(strain[0]), machine.finish()])
    assert len(out) == strain.shape[1] - settle - 2 * crop
    for b in range(5):
        psd = whitener.psd(torch.from_numpy(strain[0, b * block : b * block + settle]))
        data = strain[0, settle + b * block : settle + (b + 1) * block + 2 * crop]
        expected = whitener.whiten(torch.from_numpy(data)[None], psd[None])[0].numpy()
        assert np.array_equal(out[b * block : b * block + len(expected)], expected)
    assert len(machine.psds) == 5
    assert 0.9 < out.std() < 1.1


@pytest.mark.parametrize("mean", [700, 5_000, 30_000])
@pytest.mark.parametrize("given", [False, True])
def test_any_chunking_whitens_to_the_same_bits(whitener, strain, mean, given):
    psd = whitener.psd(torch.from_numpy(strain[0])) if given else None
    whole = StreamingWhitener(whitener, int(8 * RATE), psd)
    expected = np.concatenate([whole.update(strain[0]), whole.finish()])
    edges = cuts(np.random.default_rng(int(mean)), strain.shape[1], mean)
    parts = StreamingWhitener(whitener, int(8 * RATE), psd)
    got = np.concatenate([*(parts.update(strain[0, a:b]) for a, b in pairwise(edges)), parts.finish()])
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("stride", [1, 37, 128, 200])
@pytest.mark.parametrize("mean", [1.5, 60, 1000])
def test_snapshotter_gives_every_window_once(stride, mean):
    rng, kernel = np.random.default_rng(stride), 128
    data = rng.standard_normal((2, 3001)).astype(np.float32)
    expected = np.lib.stride_tricks.sliding_window_view(data, kernel, axis=1)[:, ::stride].transpose(1, 0, 2)
    machine, edges = WindowSnapshotter(2, kernel, stride), cuts(rng, data.shape[1], mean)
    got = np.concatenate([machine.update(data[:, a:b]).copy() for a, b in pairwise(edges)])
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("mean", [128, 3_000, 20_000])
def test_scores_do_not_depend_on_chunks(whitener, strain, mean):
    def scorer(engine):
        return StreamingScorer([StreamingWhitener(whitener, int(8 * RATE)) for _ in strain], engine, 768, 128, 32)

    one, many = Energy(), Energy()
    whole, parts = scorer(one), scorer(many)
    expected = np.concatenate([whole.update(strain), whole.finish()])
    edges = cuts(np.random.default_rng(1), strain.shape[1], mean)
    got = np.concatenate([*(parts.update(strain[:, a:b]) for a, b in pairwise(edges)), parts.finish()])
    assert np.array_equal(got, expected)
    assert len(got) == (int(35 * RATE) - 768) // 128 + 1
    assert set(many.sizes) == {32} and len(many.sizes) == len(one.sizes)


def test_every_engine_call_has_the_same_size():
    engine = Energy()
    windows = np.random.default_rng(0).standard_normal((70, 2, 16)).astype(np.float32)
    assert np.allclose(in_batches(engine, windows, 32), (windows**2).mean((1, 2)))
    assert engine.sizes == [32, 32, 32]
