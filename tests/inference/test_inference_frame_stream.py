"""Streams in chunks of any length against every window by itself, with gaps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from frame_networks import Windowed, frame_engine

from aframe_assets.config import Conditioning
from aframe_assets.inference.frame_stream import FrameStream
from aframe_assets.inference.streaming import StreamingScorer, StreamingWhitener
from aframe_assets.strain.conditioning import Whitener

RATE, STEP = 512, 16


@pytest.fixture(scope="module")
def engines():
    return {name: frame_engine(name) for name in ("streaming", "map", "wavenet")}


def windows(engine, data: np.ndarray, hop: int, origin: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Kernel starts and scores of every window of a stretch that begins with sample `origin`."""
    first = -(-engine.context // hop) * hop
    starts = np.arange(first, data.shape[1] - engine.kernel - engine.context + 1, hop)
    cut = [data[:, s - engine.context : s + engine.kernel + engine.context] for s in starts]
    return starts + origin, engine.score_windows(np.stack(cut)) if cut else np.empty(0)


def cuts(kind: str, size: int, rng: np.random.Generator) -> list[int]:
    if kind == "any":
        return [0, *np.sort(rng.choice(size, 9, replace=False)).tolist(), size]
    return [*range(0, size, {"sample": 1, "step": STEP, "odd": 37, "long": 5001}[kind]), size]


def together(parts) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.concatenate(x) for x in zip(*parts, strict=True))


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("kind", ["sample", "step", "odd", "any", "long"])
@pytest.mark.parametrize("name", ["streaming", "map"])
def test_any_chunks_give_the_windows(engines, name, kind, eager):
    engine, rng = engines[name], np.random.default_rng(1)
    size = 2000 if kind == "sample" else 6033
    data, hop = rng.standard_normal((2, size)).astype(np.float32), 128 if kind != "step" else STEP
    stream = FrameStream(engine, hop, eager)
    edges = cuts(kind, size, rng)
    starts, scores = together([*(stream.update(data[:, a:b]) for a, b in pairwise(edges)), stream.finish()])
    at, want = windows(engine, data, hop)
    assert np.array_equal(starts, at) and len(at) > 3
    assert np.abs(scores - want).max() < 1e-4 * np.ptp(want)


def test_blocks_are_the_same_to_the_bit_for_any_chunks(engines):
    data = np.random.default_rng(2).standard_normal((2, 5000)).astype(np.float32)
    one, many = FrameStream(engines["streaming"], 64), FrameStream(engines["streaming"], 64)
    whole = together([one.update(data), one.finish()])
    parts = together([*(many.update(data[:, a : a + 217]) for a in range(0, 5000, 217)), many.finish()])
    assert np.array_equal(whole[1], parts[1]) and np.array_equal(whole[0], parts[0]) and len(whole[0]) > 50


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("hop", [32, 128, 1024])
def test_a_gap_begins_another_stretch(engines, hop, eager):
    """Windows never hold samples of both sides, and each stretch has its own grid; a short stretch gives nothing."""
    engine, rng = engines["streaming"], np.random.default_rng(3)
    stretches = {40: 4100, 4777: 300, 6001: 3000}
    stream, parts, want = FrameStream(engine, hop, eager), [], []
    for start, size in stretches.items():
        data = rng.standard_normal((2, size)).astype(np.float32)
        at = 0
        while at < size:
            n = int(rng.integers(1, 700))
            parts.append(stream.update(data[:, at : at + n], start + at))
            at += n
        want.append(windows(engine, data, hop, start))
    parts.append(stream.finish())
    (starts, scores), (at, expected) = together(parts), together(want)
    assert np.array_equal(starts, at) and len(want[0][0]) and len(want[2][0]) and not len(want[1][0])
    assert np.abs(scores - expected).max() < 1e-4 * np.ptp(expected)


def test_refusals(engines):
    stream = FrameStream(engines["streaming"], 128)
    stream.update(np.zeros((2, 100), np.float32))
    with pytest.raises(ValueError, match="samples from 50 on, 100 is the next"):
        stream.update(np.zeros((2, 10), np.float32), 50)
    with pytest.raises(ValueError, match="expected finite"):
        stream.update(np.full((2, 10), np.nan, np.float32))
    with pytest.raises(ValueError, match="hop of 100 samples"):
        FrameStream(engines["streaming"], 100)


@pytest.mark.parametrize("name", ["streaming", "map", "wavenet"])
def test_strain_to_scores_of_both_forms(engines, name):
    """The streaming form of a network against its windowed form, from strain, over a gap."""
    engine, rng = engines[name], np.random.default_rng(4)
    whitener = Whitener(Conditioning(psd_length=4, fftlength=1, fduration=1, highpass=20), RATE)
    strain, scores = rng.standard_normal((2, 26 * RATE)) * 1e-22, []
    for network in (engine, Windowed(engine)):
        scorer = StreamingScorer([StreamingWhitener(whitener, 4 * RATE) for _ in strain], network, engine.kernel, 128, 32)
        found = [scorer.update(strain[:, : 12 * RATE]), scorer.finish()]
        found += [scorer.update(strain[:, a : a + 700]) for a in range(13 * RATE, 26 * RATE, 700)]
        scores.append(np.concatenate([*found, scorer.finish()]))
    # 7 and 8 s of whitened strain; windows start where they have their context
    first, last = -(-engine.context // 128), [(s * RATE - engine.kernel - engine.context) // 128 for s in (7, 8)]
    assert len(scores[0]) == len(scores[1]) == sum(n + 1 - first for n in last)
    assert np.abs(scores[0] - scores[1]).max() < 1e-4 * np.ptp(scores[1])
