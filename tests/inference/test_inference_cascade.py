"""What a filter keeps, and that the search of what is kept finds events of the full search only, with their statistic."""

from __future__ import annotations

import numpy as np
import pytest

from aframe_assets.config import Inference
from aframe_assets.inference.cascade import FilterThreshold, Reach, TriggerChooser
from aframe_assets.inference.clustering import cluster_slides, detection_statistic
from aframe_assets.inference.scoring import NOT_KEPT
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
@pytest.mark.parametrize("keep", [0.02, 0.2])
def test_events_of_what_is_kept_are_the_full_search_s_with_a_trigger(rate, agreement, keep):
    rng, inference = np.random.default_rng(7), settings(*rate, keep=keep)
    reach = Reach.of(inference)
    joint, chooses = slides(40, 3000, rng, agreement)
    valid, wanted = gaps(*joint.shape, rng, reach.boxcar)
    chooser = TriggerChooser(FilterThreshold.of(list(slides(40, 3000, rng, agreement)[1]), inference).value, reach)
    cluster = (inference.inference_rate, inference.cluster_window_length)
    full = detection_statistic(np.where(wanted, joint, np.nan), valid, reach.boxcar)
    events = set(zip(*cluster_slides(full, *cluster), strict=True))

    scores = np.where(wanted, chooses, np.nan)
    kept, triggers = chooser.keep(scores, wanted), chooser.triggers(scores, wanted)
    assert not (kept & ~wanted).any() and (triggers & valid).any()
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
    assert len(loudest) > 10 and loudest <= found
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
    chooser = TriggerChooser(4.0, reach)
    kept = chooser.keep(chooses, valid)
    triggers = np.flatnonzero(chooser.triggers(chooses, valid)[0])
    assert np.flatnonzero(kept[0]).tolist() == list(range(triggers[0] - reach.before, triggers[-1] + reach.after + 1))
    assert not kept[1].any()
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
        near = {k for i in np.flatnonzero(y >= threshold) for k in range(i - reach.half - reach.boxcar + 1, i + reach.half + 1)}
        kept += len(near & set(range(len(y))))
    return kept / sum(map(len, statistics))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("keep", [0.03, 0.05, 0.5])
def test_the_threshold_keeps_the_share_and_the_next_one_keeps_more(rate, keep):
    rng, inference = np.random.default_rng(3), settings(*rate, keep=keep)
    reach = Reach.of(inference)
    scores = [rng.standard_normal(n) for n in (4000, 777, 3)]
    found = FilterThreshold.of(scores, inference)
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
    kept = TriggerChooser(found.value, reach).keep(other, np.ones(other.shape, bool)).mean()
    assert kept == pytest.approx(keep, rel=0.7, abs=2 / found.stretches)


@pytest.mark.parametrize("rate", RATES[:2])
def test_the_threshold_is_not_set_by_scores_that_are_not_yet_integrated(rate):
    # the first score is the loudest, in no complete boxcar that is loud
    inference = settings(*rate, keep=0.05)
    reach = Reach.of(inference)
    scores = np.random.default_rng(4).standard_normal(4000)
    scores[0], scores[1 : reach.boxcar] = 500.0, -500.0
    found = FilterThreshold.of([scores], inference)
    y = literal_statistic(scores, reach)
    assert y.max() < 5 and literal_share([y], found.value, reach) == pytest.approx(found.share, abs=1e-12)
    assert 0.02 < found.share <= 0.05


def test_all_is_kept_when_all_may_be():
    inference = settings(keep=1.0)
    found = FilterThreshold.of([np.random.default_rng(0).standard_normal(500)], inference)
    assert found.share == 1.0 and found.as_meta()["threshold"] is None
    other = np.random.default_rng(1).standard_normal((3, 200)) - 100
    assert TriggerChooser(found.value, Reach.of(inference)).keep(other, np.ones(other.shape, bool)).all()


def test_a_row_does_not_depend_on_the_others():
    rng = np.random.default_rng(2)
    scores, wanted = rng.standard_normal((5, 600)), rng.random((5, 600)) < 0.98
    chooser = TriggerChooser(0.3, Reach.of(settings()))
    kept = chooser.keep(scores, wanted)
    assert 0 < kept.mean() < 1
    for i in range(5):
        assert np.array_equal(chooser.keep(scores[i : i + 1], wanted[i : i + 1])[0], kept[i])


def test_background_too_short_for_a_threshold_is_refused():
    with pytest.raises(ValueError, match=r"last 5 s at most; expected stretches of at least 9.75 s"):
        FilterThreshold.of([np.zeros(20)], settings())
    with pytest.raises(ValueError, match=r"cascade.keep = 0.01: of the 250 s .* less than the 9.75 s around one trigger"):
        FilterThreshold.of([np.zeros(1000)], settings(keep=0.01))
