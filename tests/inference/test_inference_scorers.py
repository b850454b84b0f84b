"""Frames and maps of slides against every window by itself; stretches, parts and changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from frame_networks import Windowed, frame_engine

from aframe_assets.config import Inference
from aframe_assets.inference.blocks import Row, require_steps, through
from aframe_assets.inference.frames import FrameScorer
from aframe_assets.inference.maps import MapScorer
from aframe_assets.inference.memory import SCORES
from aframe_assets.inference.scorers import slide_scorer
from aframe_assets.inference.scoring import NOT_KEPT, CascadeScorer, Change, Layout, NetworkScorer, Runs
from aframe_assets.inference.windows import WindowScorer

RATE, STEP = 512, 16


@pytest.fixture(scope="module")
def engines():
    return {(name, ifos): frame_engine(name, ifos=ifos) for name in ("streaming", "map") for ifos in (1, 2, 3)}


def layout(engine, seconds: float, rate: float = 4.0, ring: bool = False) -> Layout:
    size = int(seconds * RATE)
    return Layout(engine.kernel, engine.context, round(RATE / rate), size, size // 128 * 128 if ring else 0)


def noise(layout: Layout, ifos: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).standard_normal((ifos, layout.size)).astype(np.float32))


def inside(at: Layout, offsets: np.ndarray) -> np.ndarray:
    """Outputs whose windows lie in the data of every detector, none across a seam."""
    num = (at.ring or at.size) // at.stride
    own = at.own(np.arange(num) * at.stride, offsets)
    return ((own >= at.context) & (own + at.kernel + at.context <= (at.ring or at.size))).all(axis=1)


def scorer_of(engine, streams, at, memory=1e9):
    return FrameScorer(engine, streams, at) if engine.form == "frames" else MapScorer(engine, streams, at, memory)


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize(("name", "ifos"), [("streaming", 2), ("streaming", 3), ("map", 1), ("map", 2), ("map", 3)])
def test_slides_equal_their_windows(engines, name, ifos, ring):
    engine, rng = engines[name, ifos], np.random.default_rng(ifos)
    at = layout(engine, 21.7, ring=ring)
    streams, offsets = noise(at, ifos), np.outer(np.arange(5), np.arange(ifos)) * 11 * STEP
    wanted = inside(at, offsets) & (rng.random((5, 1)) < 0.9)
    wanted[2, 30:37] = wanted[3, 50:55] = wanted[3, 62] = False
    want = WindowScorer(Windowed(engine), streams, at, 32).scores(offsets, wanted)
    scorer = scorer_of(engine, streams, at)
    got = scorer.scores(offsets, wanted)
    assert np.array_equal(np.isnan(got), ~wanted) and wanted.sum() > 200 and scorer.evaluated == wanted.sum()
    assert np.nanmax(np.abs(got - want)) < 1e-4 * np.ptp(want[wanted])


@pytest.mark.parametrize("rate", [1.0, 16.0, 32.0])
@pytest.mark.parametrize("name", ["streaming", "map"])
def test_any_rate_up_to_the_frames(engines, name, rate):
    engine = engines[name, 2]
    at = layout(engine, 12.0, rate)
    streams, offsets = noise(at, 2), np.array([[0, 0], [0, 7 * STEP]])
    wanted = inside(at, offsets)
    got, want = scorer_of(engine, streams, at).scores(offsets, wanted), WindowScorer(engine, streams, at, 32).scores(offsets, wanted)
    assert np.nanmax(np.abs(got - want)) < 1e-4 * np.ptp(want[wanted])


@pytest.mark.parametrize("ring", [False, True])
def test_maps_in_parts_equal_maps_of_the_whole(engines, ring):
    engine = engines["map", 2]
    at = layout(engine, 40.0, ring=ring)
    streams, offsets = noise(at, 2), np.stack([np.zeros(6, int), np.arange(6) * 40 * STEP], 1)
    wanted = inside(at, offsets)
    whole = scorer_of(engine, streams, at)
    seconds = 14 * 4 * 64  # bytes of a second of map of one detector
    parts = scorer_of(engine, streams, at, memory=12 * seconds)
    want, got = whole.scores(offsets, wanted), parts.scores(offsets, wanted)
    assert whole._held is not None and parts._held is None
    assert np.array_equal(np.isnan(got), ~wanted) and np.nanmax(np.abs(got - want)) < 1e-5


def test_parts_stay_below_the_memory(engines):
    engine = engines["map", 2]
    at = layout(engine, 100.0)
    streams, offsets = noise(at, 2), np.stack([np.zeros(20, int), np.arange(20) * 100 * STEP], 1)
    scorer = scorer_of(engine, streams, at, memory=16 * 14 * 4 * 64)
    parts = list(scorer._parts(Runs.of(at, offsets, inside(at, offsets))))
    assert len(parts) > 10 and max(scorer._bytes(s) for _, s in parts) <= scorer.memory
    assert sum(r.count.sum() for r, _ in parts) == inside(at, offsets).sum()


@pytest.mark.parametrize("memory", [1e9, 50_000])
@pytest.mark.parametrize("name", ["streaming", "map"])
def test_a_change_is_scored_where_it_reaches_and_nowhere_else(engines, name, memory):
    engine = engines[name, 2]
    at = layout(engine, 30.0)
    streams, offset, rng = noise(at, 2), np.array([0, 20 * STEP]), np.random.default_rng(1)
    touched = [np.array([[3000, 3400], [9000, 9050]]), np.array([[3100, 3700], [15_300, 15_360]])]
    loud = [s.copy() for s in streams]
    for stream, stretches in zip(loud, touched, strict=True):
        for a, b in stretches:
            stream[a:b] += 5 * rng.standard_normal(b - a).astype(np.float32)
    wanted = inside(at, offset[None])[0]
    own = at.own(np.arange(len(wanted)) * at.stride, offset)
    reached = np.zeros(len(wanted), bool)
    for c, stretches in enumerate(touched):
        for a, b in stretches:
            reached |= (own[c] - at.context < b) & (own[c] + at.kernel + at.context > a)
    scorer = scorer_of(engine, streams, at, memory)
    before = scorer.scores(offset[None], wanted[None])[0]
    after = scorer.rescored(before, offset, wanted, Change(loud, touched, reached))
    assert np.array_equal(after[~reached], before[~reached], equal_nan=True)
    want = WindowScorer(engine, loud, at, 32).scores(offset[None], wanted[None])[0]
    again = reached & wanted
    assert 20 < again.sum() < wanted.sum() / 2 and np.all(np.abs(after[again] - want[again]) < 1e-4 * np.ptp(want[wanted]))
    assert np.abs(after - before)[again].max() > 0.1
    assert scorer.evaluated == wanted.sum() + again.sum()


def test_offsets_between_the_steps_are_refused(engines):
    for engine in (engines["streaming", 2], engines["map", 2]):
        at = layout(engine, 10.0)
        scorer = scorer_of(engine, noise(at, 2), at)
        with pytest.raises(ValueError, match=r"offsets of .* samples; expected multiples of the network's total stride, 16"):
            scorer.scores(np.array([[0, 8]]), np.ones((1, 10), bool))
        with pytest.raises(ValueError, match="stride of 100 samples"):
            scorer_of(engine, noise(at, 2), replace(at, stride=100))
    with pytest.raises(ValueError, match="kernel of 30 samples"):
        require_steps(engine, context=32, kernel=30)


def test_runs_end_at_gaps_and_seams():
    at, wanted = Layout(20, 0, 10, 100, 100), np.ones((2, 10), bool)
    wanted[0, 3] = wanted[1, [0, 9]] = False
    runs = Runs.of(at, np.array([[0, 0], [0, 30]]), wanted)
    assert list(zip(runs.slide, runs.first, runs.count, strict=True)) == [(0, 0, 3), (0, 4, 6), (1, 1, 6), (1, 7, 2)]
    assert runs.start.tolist() == [[0, 0], [40, 40], [10, 40], [70, 0]]
    over = Runs.of(at, np.array([[0, 0], [0, 30]]), wanted, gap=1)
    assert list(zip(over.slide, over.first, over.count, strict=True)) == [(0, 0, 10), (1, 1, 6), (1, 7, 2)]
    assert len(Runs.of(at, np.array([[0, 0]]), np.zeros((1, 10), bool)).slide) == 0
    # a search without zero lag asks for no slides
    none = Runs.of(at, np.empty((0, 2)), np.zeros((0, 10), bool))
    assert len(none.slide) == 0 and none.start.shape == (0, 2)


def test_stretches_lie_side_by_side_with_their_context():
    stream = np.arange(1, 101, dtype=np.float32)
    row = Row(stream, np.array([0, 50, 90]), np.array([8, 16, 12]), 4, 8)
    assert row.at.tolist() == [0, 16, 40] and row.length == 52
    whole = np.empty(row.length + 8, np.float32)
    row.read(0, whole)
    expected = np.zeros(60)
    expected[4:12] = np.arange(8) + 1  # from the first sample: zeros before it
    expected[12:16] = np.arange(9, 13)
    expected[16:40] = np.arange(46, 70) + 1
    expected[40:54] = np.arange(86, 100) + 1
    assert whole.tolist() == expected.tolist()
    part = np.empty(11, np.float32)
    for first in range(0, 55, 3):
        row.read(first, part)
        assert part[: 60 - first].tolist() == expected[first : first + 11].tolist()


def test_blocks_are_as_many_as_the_row_needs():
    class Echo:
        block, context, together = 8, 4, 2

        def infer(self, x):
            return x[:, 0, 4:-4]

    stream = np.arange(100, dtype=np.float32)
    rows = [Row(stream, np.array([10]), np.array([37]), 4, 8)]
    parts = list(through(Echo(), rows))
    assert [len(p) for p in parts] == [2, 2, 1]
    assert np.concatenate(parts).ravel()[:37].tolist() == stream[10:47].tolist()


class Loudest:
    """Looks at what is above a threshold, and keeps it with `around` outputs on each side if the second score is not low."""

    span = 0

    def __init__(self, threshold: float, around: int) -> None:
        self.threshold, self.around = threshold, around

    def look(self, scores, wanted):
        return np.where(wanted, scores, -np.inf) > self.threshold

    def keep(self, scores, seen, wanted):
        look = self.look(scores, wanted)
        assert np.isnan(seen[~look]).all()
        loud = look & (seen > -0.5)
        out = loud.copy()
        for k in range(1, self.around + 1):
            out[:, k:] |= loud[:, :-k]
            out[:, :-k] |= loud[:, k:]
        return out


class Network(NetworkScorer):
    """Scores that depend on the slide and the output alone, and on how loud a signal is in the changed streams."""

    def __init__(self, at: Layout, seed: int, loud: float = 0.0) -> None:
        self.layout, self.seed, self.loud = at, seed, loud

    def scores(self, offsets, wanted):
        rows = [np.random.default_rng([self.seed, *o]).standard_normal(wanted.shape[1]) for o in np.asarray(offsets).tolist()]
        self.evaluated += int(wanted.sum())
        return np.where(wanted, np.array(rows) + self.loud, np.nan)

    def changed(self, change):
        return Network(self.layout, self.seed, np.where(change.reached, change.streams, 0.0))


@pytest.mark.parametrize("loud", [-9.0, 0.5, 9.0])
def test_cascade_scores_what_is_kept_with_and_without_a_change(loud):
    at, rng = Layout(20, 0, 10, 4000), np.random.default_rng(0)
    offsets, wanted = np.array([[0, 10], [0, 20], [0, 30]]), rng.random((3, 398)) < 0.95
    scorer = CascadeScorer(Network(at, 1), Network(at, 2), Loudest(1.0, 3))
    first, second = Network(at, 1).scores(offsets, wanted), Network(at, 2).scores(offsets, wanted)
    chooser = Loudest(1.0, 3)
    look = chooser.look(first, wanted)
    keep = chooser.keep(first, np.where(look, second, np.nan), wanted) & wanted
    assert (look & ~keep).any() and (keep & ~look).any()
    got = scorer.scores(offsets, wanted)
    assert np.array_equal(got, np.where(keep, second, np.where(wanted, NOT_KEPT, np.nan)), equal_nan=True)
    scored = (keep | look).sum()
    assert (scorer.kept, scorer.asked, scorer.evaluated) == (scored, wanted.sum(), scored) and 0 < scored < wanted.sum()
    # one block or a slide at a time is the same
    assert np.array_equal(scorer.scores(offsets[1:2], wanted[1:2])[0], got[1], equal_nan=True)

    reached = np.zeros(398, bool)
    reached[100:140] = True
    after = scorer.rescored(got[1], offsets[1], wanted[1], Change(loud, [], reached))
    one = np.where(reached, first[1] + loud, first[1])
    two = np.where(reached, second[1] + loud, second[1])
    look = chooser.look(one[None], wanted[1:2])
    keep = (chooser.keep(one[None], np.where(look, two, np.nan), wanted[1:2]) & wanted[1:2])[0]
    assert (look[0] & ~keep).any() or loud == 9
    assert np.array_equal(after, np.where(keep, two, np.where(wanted[1], NOT_KEPT, np.nan)), equal_nan=True)
    with pytest.raises(ValueError, match="expected those of the second network"):
        CascadeScorer(Network(replace(at, stride=20), 1), Network(at, 2), Loudest(1.0, 3))


class Broken(Network):
    """Gives no number for one output."""

    def scores(self, offsets, wanted):
        out = super().scores(offsets, wanted)
        out[:, 50] = np.nan
        return out

    def changed(self, change):
        return Broken(self.layout, self.seed, change.streams)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_score_that_is_no_number_is_not_taken_for_a_quiet_one(broken):
    at, wanted = Layout(20, 0, 10, 4000), np.ones((1, 398), bool)
    networks = [Broken(at, 1) if i == broken else Network(at, 1) for i in (0, 1)]
    # the filter sends output 50 to the joint network
    chooser = Loudest(Network(at, 1).scores(np.zeros((1, 2), int), wanted)[0, 50] - 0.1, 0)
    scorer = CascadeScorer(*networks, chooser)
    got = scorer.scores(np.zeros((1, 2), int), wanted)[0]
    reached = np.zeros(398, bool)
    reached[40:60] = True
    after = scorer.rescored(np.where(np.isnan(got), NOT_KEPT, got), np.zeros(2, int), wanted[0], Change(0.0, [], reached))
    for scores in (got, after):
        assert (np.isnan(scores) == (np.arange(398) == 50)).all() if broken else scores[50] != NOT_KEPT


@pytest.mark.parametrize(("memory_gb", "slides"), [(2.0, 1.3e9), (1.0, 0.3e9)])
def test_memory_for_slides_is_what_libraries_leave(engines, memory_gb, slides):
    engine = engines["map", 2]
    at = layout(engine, 10.0)
    streams = noise(at, 2)
    made = slide_scorer(engine, streams, at, Inference(memory_gb=memory_gb))
    left = slides - 2 * 2 * 4 * at.size
    assert made.memory == pytest.approx(left / 2) and made.head.most == pytest.approx(0.35 * left, abs=1)
    # maps, what is joined of them, and the outputs of the slides are all within it
    assert made.memory + made.head.most + SCORES * left <= left * (1 + 1e-9)
    assert made.changed(Change(streams, [np.empty((0, 2), int)] * 2, None)).head.most == made.head.most


def test_scorer_follows_the_form(engines):
    streaming, direct = engines["streaming", 2], engines["map", 2]
    at, inference = layout(streaming, 10.0), Inference()
    kinds = {FrameScorer: streaming, MapScorer: direct, WindowScorer: Windowed(streaming)}
    for kind, engine in kinds.items():
        assert type(slide_scorer(engine, noise(at, 2), replace(at, context=engine.context), inference)) is kind
    with pytest.raises(ValueError, match=r"build the engine again with model\.filter"):
        slide_scorer(streaming, noise(at, 2), at, inference, Loudest(2.0, 3))
    streaming.filter = direct
    try:
        assert isinstance(slide_scorer(streaming, noise(at, 2), at, inference), FrameScorer)
        assert isinstance(slide_scorer(streaming, noise(at, 2), at, inference, Loudest(2.0, 3)), CascadeScorer)
    finally:
        streaming.filter = None
