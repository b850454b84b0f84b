"""What a filter keeps, and that the search of what is kept finds events of the full search only, with their statistic."""

from __future__ import annotations

import numpy as np
import pytest

from aframe_assets.config import Inference
from aframe_assets.inference.cascade import AROUND, MARGIN, Reach, Threshold, Thresholds, TriggerChooser
from aframe_assets.inference.clustering import cluster_slides, detection_statistic
from aframe_assets.inference.scoring import NOT_KEPT, CascadeScorer, Change, Layout, NetworkScorer
from aframe_assets.inference.windows import needed

RATES = [(4, 1.5, 8.0), (16, 1.0, 4.0), (2, 0.0, 1.0)]


def settings(rate=4.0, integration=1.5, window=8.0, **cascade) -> Inference:
    values = {"inference_rate": rate, "integration_window_length": max(integration, 1e-3), "cluster_window_length": window}
    return Inference.model_validate(values | {"cascade": cascade})


def slides(num: int, size: int, rng: np.random.Generator, agreement: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the joint network and of a filter that agree as far as `agreement`, with something loud now and then."""
    loud = np.zeros((num, size))
    for i, k in zip(*np.nonzero(rng.random((num, size)) < 0.005), strict=True):
        loud[i, k : k + int(rng.integers(1, 9))] += rng.exponential(6)
    common = rng.standard_normal((num, size)) + loud
    joint, chooses = (agreement * common + (1 - agreement) * rng.standard_normal((num, size)) for _ in range(2))
    return joint, chooses


def gaps(num: int, size: int, rng: np.random.Generator, boxcar: int) -> tuple[np.ndarray, np.ndarray]:
    """Valid and wanted outputs of slides with vetoes."""
    valid = np.repeat(rng.random((num, -(-size // 50))) < 0.9, 50, axis=1)[:, :size]
    valid[:, : boxcar - 1] = False
    return valid, np.stack([needed(v, boxcar) for v in valid])


@pytest.mark.parametrize("agreement", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("keep", [0.03, 0.2])
def test_events_of_what_is_kept_are_the_full_search_s_with_a_trigger(rate, agreement, keep):
    rng, inference = np.random.default_rng(7), settings(*rate, keep=keep)
    reach = Reach.of(inference)
    joint, chooses = slides(40, 3000, rng, agreement)
    valid, wanted = gaps(*joint.shape, rng, reach.boxcar)
    seen_before = slides(40, 3000, rng, agreement)
    chooser = TriggerChooser.of(Thresholds.of(list(seen_before[1]), list(seen_before[0]), inference), inference)
    cluster = (inference.inference_rate, inference.cluster_window_length)
    full = detection_statistic(np.where(wanted, joint, np.nan), valid, reach.boxcar)
    events = set(zip(*cluster_slides(full, *cluster), strict=True))

    scores = np.where(wanted, chooses, np.nan)
    look = chooser.look(scores, wanted)
    seen = np.where(look, joint, np.nan)
    kept, triggers = chooser.keep(scores, seen, wanted), chooser.triggers(scores, wanted)
    assert not ((kept | look) & ~wanted).any() and (triggers & valid).any()
    # only what the full search gives for a trigger decides
    assert all(look[i, k - reach.boxcar + 1 : k + 1].all() for i, k in zip(*np.nonzero(triggers), strict=True))
    triggers &= full >= max(chooser.joint, np.finfo(float).min)
    assert triggers.any() and (kept | look).mean() < 2 * keep
    masked = detection_statistic(np.where(kept, joint, np.where(wanted, NOT_KEPT, np.nan)), valid, reach.boxcar)
    known = masked > -np.inf
    assert np.array_equal(masked[known], full[known])
    found = set(zip(*cluster_slides(masked, *cluster, valid & ~known), strict=True))
    assert found <= events

    loudest = set()
    for i, row in enumerate(full):
        for k in np.flatnonzero(triggers[i] & valid[i]):
            around = row[max(0, k - reach.half) : k + reach.half + 1]
            assert (known[i] | ~valid[i])[max(0, k - reach.half) : k + reach.half + 1].all()
            if row[k] == around.max() and (row[max(0, k - reach.half) : k] < row[k]).all():
                loudest.add((i, k))
    assert len(loudest) > 1 and loudest <= found
    with_trigger = {(i, k) for i, k in events if triggers[i, k]}
    # what is missing lies in the shadow of something louder, less than half a window before, that was not kept whole
    for i, k in with_trigger - found:
        assert full[i, max(0, k - reach.half) : k].max() >= full[i, k]
    assert len(with_trigger & found) >= 0.9 * len(with_trigger)


def test_a_loud_event_is_found_where_the_filter_sees_it_and_nowhere_else():
    inference = settings(keep=0.05)
    reach = Reach.of(inference)
    joint, chooses = np.full((2, 1000), -3.0), np.full((2, 1000), -3.0)
    joint[:, 400:406] = 8.0
    chooses[0, 399:407] = 8.0
    valid = np.ones((2, 1000), bool)
    chooser = TriggerChooser(4.0, 1.0, reach)
    look = chooser.look(chooses, valid)
    kept = chooser.keep(chooses, np.where(look, joint, np.nan), valid)
    triggers = np.flatnonzero(chooser.triggers(chooses, valid)[0])
    assert np.flatnonzero(look[0]).tolist() == list(range(triggers[0] - reach.boxcar + 1, triggers[-1] + 1))
    assert np.flatnonzero(kept[0]).tolist() == list(range(triggers[0] - reach.before, triggers[-1] + reach.after + 1))
    assert not kept[1].any() and not look[1].any()
    # what is quiet for the joint network is looked at and not kept
    assert not chooser.keep(chooses, np.where(look, -3.0, np.nan), valid).any()
    masked = detection_statistic(np.where(kept, joint, NOT_KEPT), valid, reach.boxcar)
    row, sample = cluster_slides(masked, 4, 8, masked == -np.inf)
    assert row.tolist() == [0] and sample.tolist() == [405] and masked[0, 405] == pytest.approx((6 * 8 - 3) / 7)


def literal_statistic(scores: np.ndarray, reach: Reach) -> np.ndarray:
    """Means over full boxcars, -inf before the first."""
    full = [scores[i - reach.boxcar + 1 : i + 1].sum() / reach.boxcar for i in range(reach.boxcar - 1, len(scores))]
    return np.array([-np.inf] * (reach.boxcar - 1) + full)


def literal_share(statistics: list[np.ndarray], threshold: float, reach: Reach) -> float:
    """Share of outputs next to a trigger, one by one."""
    kept = 0
    for y in statistics:
        near = {k for i in np.flatnonzero(y >= threshold) for k in range(i - reach.before, i + reach.after + 1)}
        kept += len(near & set(range(len(y))))
    return kept / sum(map(len, statistics))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("keep", [0.03, 0.05, 0.5])
@pytest.mark.parametrize("near", [False, True])
def test_the_threshold_keeps_the_share_and_the_next_one_keeps_more(rate, keep, near):
    rng, inference = np.random.default_rng(3), settings(*rate)
    reach = Reach.of(inference).near if near else Reach.of(inference)
    scores = [rng.standard_normal(n) for n in (4000, 777, 3)]
    found = Threshold.of(scores, reach, inference.inference_rate, keep)
    # stretches too short for a window do not count
    long = [s for s in scores if len(s) >= reach.before + reach.after + 1]
    assert found.livetime == sum(map(len, long)) / inference.inference_rate
    y = [literal_statistic(s, reach) for s in long]
    assert literal_share(y, found.value, reach) == pytest.approx(found.share, abs=1e-12) and found.share <= keep
    lower = np.sort(np.concatenate(y))[::-1]
    shares = (literal_share(y, value, reach) for value in lower[lower < found.value])
    assert next(s for s in shares if s > found.share) > keep
    # and of other noise of the same kind
    other = rng.standard_normal((20, 4000))
    chooser, every = TriggerChooser(found.value, -np.inf, Reach.of(inference)), np.ones(other.shape, bool)
    kept = (chooser.look(other, every) if near else chooser.keep(other, other, every)).mean()
    assert kept == pytest.approx(keep, rel=0.7, abs=2 / found.stretches)


@pytest.mark.parametrize("rate", RATES[:2])
def test_the_threshold_is_not_set_by_scores_that_are_not_yet_integrated(rate):
    # the first score is the loudest, in no complete boxcar that is loud
    reach = Reach.of(settings(*rate))
    scores = np.random.default_rng(4).standard_normal(4000)
    scores[0], scores[1 : reach.boxcar] = 500.0, -500.0
    found = Threshold.of([scores], reach, rate[0], 0.05)
    y = literal_statistic(scores, reach)
    assert y.max() < 5 and literal_share([y], found.value, reach) == pytest.approx(found.share, abs=1e-12)
    assert 0.02 < found.share <= 0.05


def test_all_is_kept_when_all_may_be():
    inference = settings(keep=1.0)
    some = [np.random.default_rng(0).standard_normal(500)]
    found = Thresholds.of(some, some, inference)
    assert found.share == found.filtered.share == found.joint.share == 1.0 and found.as_meta()["joint"]["threshold"] is None
    assert Thresholds.from_meta(found.as_meta()) == found
    other = np.random.default_rng(1).standard_normal((3, 200)) - 100
    assert TriggerChooser.of(found, inference).keep(other, other, np.ones(other.shape, bool)).all()


def test_both_steps_together_keep_the_share():
    rng, inference = np.random.default_rng(5), settings(keep=0.1)
    joint, chooses = slides(60, 4000, rng, 0.5)
    found = Thresholds.of(list(chooses[:30]), list(joint[:30]), inference)
    assert found.filtered.share == pytest.approx((1 - AROUND) * MARGIN * 0.1, rel=0.01)
    assert found.joint.share == pytest.approx(AROUND * MARGIN * 0.1, rel=0.02)
    assert found.share <= MARGIN * 0.1 and 0 < found.scatter < 0.01
    chooser, every = TriggerChooser.of(found, inference), np.ones((30, 4000), bool)
    look = chooser.look(chooses[30:], every)
    scored = (look | chooser.keep(chooses[30:], np.where(look, joint[30:], np.nan), every)).mean()
    # at most the sum of both, since what is around a loud trigger is in part judged already
    assert 0.05 < scored < MARGIN * 0.1 + 3 * found.scatter


def test_a_row_does_not_depend_on_the_others():
    rng = np.random.default_rng(2)
    scores, wanted = rng.standard_normal((5, 600)), rng.random((5, 600)) < 0.98
    chooser = TriggerChooser(0.3, 0.2, Reach.of(settings()))
    look = chooser.look(scores, wanted)
    seen = np.where(look, rng.standard_normal((5, 600)), np.nan)
    kept = chooser.keep(scores, seen, wanted)
    assert 0 < kept.mean() < 1 and 0 < look.mean() < 1
    for i in range(5):
        row = slice(i, i + 1)
        assert np.array_equal(chooser.look(scores[row], wanted[row])[0], look[i])
        assert np.array_equal(chooser.keep(scores[row], seen[row], wanted[row])[0], kept[i])


def test_background_too_short_for_a_threshold_is_refused():
    with pytest.raises(ValueError, match=r"last 5 s at most; expected stretches of at least 9.75 s"):
        Threshold.of([np.zeros(20)], Reach.of(settings()), 4.0, 0.05)
    with pytest.raises(ValueError, match=r"cascade.keep: the share 0.0018 of 250 s .* less than the 9.75 s around one trigger"):
        Thresholds.of([np.zeros(1000)], [np.zeros(1000)], settings(keep=0.01))


class Table(NetworkScorer):
    """A scorer of one slide whose scores are given; it notes for which outputs it was asked."""

    layout = Layout(kernel=8, context=0, stride=1, size=1000)

    def __init__(self, scores: np.ndarray, later: np.ndarray | None = None) -> None:
        self.table, self.later, self.asked = scores, later, np.zeros(len(scores), bool)

    def scores(self, offsets, wanted):
        self.asked |= wanted[0]
        return np.where(wanted, self.table, np.nan)

    def changed(self, change):
        other = Table(self.later)
        other.asked = self.asked
        return other


@pytest.mark.parametrize("seed", range(8))
def test_after_a_change_only_what_it_can_alter_is_judged_again(seed):
    rng, n, shift = np.random.default_rng(seed), 900, np.zeros((1, 2))
    (joint,), (filtering,) = slides(1, n, rng, 0.3)
    first, stop = 400, 430
    reached = (np.arange(n) >= first) & (np.arange(n) < stop)
    bump = np.where(reached, rng.exponential(4, n), 0.0)
    reach, wanted = Reach(half=12, boxcar=5), np.ones((1, n), bool)
    chooser = TriggerChooser(0.4, 0.8, reach)
    second = Table(joint, joint + bump)
    run = CascadeScorer(Table(filtering, filtering + bump), second, chooser)
    (before,) = run.scores(shift, wanted)
    second.asked[:] = False
    after = run.rescored(before, shift[0], wanted[0], Change([], [], reached))
    (fresh,) = CascadeScorer(Table(filtering + bump), Table(joint + bump), chooser).scores(shift, wanted)
    assert np.array_equal(after, fresh) and not np.array_equal(before, after)
    near = np.arange(n)
    near = (near >= first - chooser.span - reach.before) & (near < stop + chooser.span + reach.after)
    quiet = chooser.look(filtering[None], wanted)[0] & (before == NOT_KEPT)
    assert second.asked.any() and not second.asked[~near].any() and quiet[~near].sum() > 20
