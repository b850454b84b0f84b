"""What an audit of a cascade counts, on events and injections whose fate is known."""

from __future__ import annotations

import re
from dataclasses import fields

import numpy as np
import pytest
from scipy import stats

from aframe_assets.inference.audit import CONFIDENCE, LOUDEST, Audit, Count, audited, daily_threshold
from aframe_assets.inference.checks import loss_check, run_share_check, share_check
from aframe_assets.waveforms.ledger import EventSet

SHIFTS = [(0.0, float(i)) for i in range(1, 51)]


def events(num: int, rng: np.random.Generator, livetime: float = 1000.0) -> EventSet:
    shift = np.column_stack([np.zeros(num), rng.integers(1, 3, num).astype(float)])
    return EventSet(rng.normal(0, 3, num), 1e9 + np.arange(num) * 10.25, shift, livetime)


def audit(num=400, lost=(), injections=(), filtered=(), livetime=1000.0) -> Audit:
    full = events(num, np.random.default_rng(0), livetime)
    keep = np.ones(num, bool)
    order = np.argsort(-full.detection_statistic)
    keep[order[list(lost)]] = False
    return Audit.of(full, full[keep], np.array(injections, float), np.array(filtered, float))


def test_the_same_slides_are_audited_every_time_and_those_with_injections_first():
    first = audited(SHIFTS, SHIFTS[:5], 3, seed=7)
    assert first == audited(SHIFTS, SHIFTS[:5], 3, seed=7) and set(first) < set(SHIFTS[:5]) and len(first) == 3
    assert len({tuple(audited(SHIFTS, [], 3, seed=s)) for s in range(20)}) > 10
    more = audited(SHIFTS, SHIFTS[:5], 8, seed=7)
    assert set(SHIFTS[:5]) < set(more) and len(more) == 8 and more == sorted(more)
    assert audited(SHIFTS, [], 100, seed=1) == SHIFTS and audited(SHIFTS, [], 0, seed=1) == []


def test_lost_events_are_those_that_the_filter_search_does_not_have():
    found = audit(lost=(3, 50, 399))
    loss = found.loss(threshold=float(np.sort(found.statistic)[-51]))
    assert (loss.events.lost, loss.events.of) == (2, 51)
    assert (loss.loudest.lost, loss.loudest.of) == (1, LOUDEST)
    assert found.unmatched == 0 and not loss.acceptable(0.5)
    assert audit(lost=(21, 50)).loss(-100.0).acceptable(0.0)
    # the loudest of the audited slides have to be kept whatever their rate, and those above the threshold are counted apart
    above = audit(lost=(3, 50)).loss(float(np.sort(found.statistic)[-3]))
    assert (above.events.lost, above.events.of) == (0, 3)
    assert (above.loudest.lost, above.loudest.of) == (1, LOUDEST) and not above.acceptable(0.5)
    # unless a cascade keeps nothing so quiet
    least = float(np.sort(found.statistic)[-3])
    claimed = audit(lost=(3, 50)).loss(least, least)
    assert (claimed.loudest.lost, claimed.loudest.of) == (0, 3) and claimed.acceptable(0.0)


def test_a_filter_that_keeps_nothing_loses_everything():
    full = events(30, np.random.default_rng(4))
    found = Audit.of(full, full[np.zeros(30, bool)], np.array([7.0]), np.array([-np.inf]))
    loss = found.loss(-100.0)
    assert (loss.events.lost, loss.loudest.lost, loss.injections.lost, found.unmatched) == (30, LOUDEST, 1, 0)
    empty = EventSet(Tb=full.Tb)
    assert not Audit.of(full, empty, np.empty(0), np.empty(0)).kept.any() and not len(Audit.of(empty, empty, np.empty(0), np.empty(0)).kept)


def test_the_same_time_in_another_slide_is_another_event():
    rng = np.random.default_rng(1)
    full = events(10, rng)
    other = EventSet(full.detection_statistic, full.detection_time, np.add(full.shift, (0.0, 5.0)), full.Tb)
    found = Audit.of(full, other, np.empty(0), np.empty(0))
    assert not found.kept.any() and found.unmatched == 10
    assert not found.loss(100.0).acceptable(1.0) and not found.loss(100.0).events.of


def test_lost_injections_are_found_without_the_filter_and_below_the_threshold_with_it():
    inf = np.inf
    found = audit(injections=[9, 8, 7, 6, 3, -inf], filtered=[9, -inf, 2, 6, 3, -inf])
    loss = found.loss(5.0)
    assert (loss.injections.lost, loss.injections.of) == (2, 4)
    assert not loss.acceptable(0.4) and loss.acceptable(0.5)
    # below every statistic what is missed is not found
    everything = found.loss(-inf)
    assert (everything.injections.lost, everything.injections.of) == (1, 5)


@pytest.mark.parametrize(("lost", "of"), [(0, 30), (0, 3000), (3, 1000), (7, 9)])
def test_the_bound_is_the_exact_binomial_one(lost, of):
    upper = Count(lost, of).upper
    assert stats.binom.cdf(lost, of, upper) == pytest.approx(1 - CONFIDENCE, rel=1e-6)
    assert str(Count(lost, of)).startswith(f"{lost} of {of} (< ")


def test_a_sample_of_nothing_bounds_nothing():
    assert Count(0, 0).upper == 1.0 and Count(4, 4).upper == 1.0
    assert Count(0, 230).upper == pytest.approx(0.01, rel=0.01)


def test_rounding_of_the_statistic_is_told_and_another_livetime_refused():
    full = events(5, np.random.default_rng(3))
    near = EventSet(full.detection_statistic + 1e-6, full.detection_time, full.shift, full.Tb)
    found = Audit.of(full, near, np.empty(0), np.empty(0))
    assert found.kept.all() and found.difference == pytest.approx(1e-6, rel=1e-3)
    assert found.loss(0.0).spread == pytest.approx(np.std(full.detection_statistic))
    with pytest.raises(ValueError, match="an output that is not kept counts as searched"):
        Audit.of(full, EventSet(near.detection_statistic, near.detection_time, near.shift, 999.0), np.empty(0), np.empty(0))


def test_audits_are_written_read_and_joined(tmp_path):
    parts = [audit(lost=(1,), injections=[5, 6], filtered=[5, -np.inf]), audit(num=3, livetime=50.0)]
    read = [Audit.read(p.write(tmp_path / f"{i}.hdf5")) for i, p in enumerate(parts)]
    for a, b in zip(parts, read, strict=True):
        assert all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Audit))
    joined = Audit.concatenate(read)
    assert len(joined.statistic) == 403 and joined.livetime == 1050.0 and joined.filtered.tolist() == [5, -np.inf]
    empty = Audit.concatenate([])
    assert empty.livetime == 0 and len(empty.kept) == 0


def test_the_threshold_of_one_a_day():
    background = np.arange(1000.0)
    assert daily_threshold(background, 10 * 86_400.0) == (990.0, 1.0)
    threshold, far = daily_threshold(background, 10.9 * 86_400)
    assert threshold == 990.0 and far == pytest.approx(10 / 10.9)
    # less than a day: the loudest, at the lowest FAR there is
    assert daily_threshold(background, 8_640.0) == (999.0, 10.0)
    assert daily_threshold(background[:3], 10 * 86_400.0) == (-np.inf, pytest.approx(0.3))
    assert daily_threshold(np.empty(0), 0.0) == (-np.inf, 0.0)


DAY = 86_400.0
BACKGROUND = np.sort(np.random.default_rng(1).normal(0, 2, 5000))
FOUND = np.linspace(4, 9, 50)


def test_the_check_says_what_was_lost_and_how_sure_it_is():
    fine = audit(injections=FOUND, filtered=FOUND)
    check = loss_check(fine, BACKGROUND, 10 * DAY, 1e-3)
    assert check.passed and check.severity == "warn" and check.metadata["injections_lost"] == 0
    assert "injections 0 of " in check.description and "at 90%" in check.description and check.metadata["far_per_day"] == 1.0
    # twenty events of 1000 s
    assert f"0 of {LOUDEST} " in check.description and "to a FAR of 1.7e+03 per day" in check.description
    lost = loss_check(audit(lost=(2,), injections=FOUND, filtered=FOUND), BACKGROUND, 10 * DAY, 1e-3)
    assert not lost.passed and lost.metadata["loudest_lost"] == 1
    few = loss_check(fine, BACKGROUND[:5], 10 * DAY, 1e-3)
    assert not few.passed and "raise inference.cascade.keep" in few.description


@pytest.mark.parametrize(
    ("sample", "lacks"),
    [
        (audit(), "no injection"),
        (audit(injections=[2.0, -np.inf], filtered=[2.0, -np.inf]), "no injection"),
        (audit(num=0, injections=FOUND, filtered=FOUND), "no background event"),
        (audit(num=0), "no injection .* and no background event"),
        (Audit.concatenate([]), "audit_slides is 0"),
    ],
)
def test_an_audit_that_saw_nothing_shows_nothing(sample, lacks):
    check = loss_check(sample, BACKGROUND, 10 * DAY, 1e-3)
    assert not check.passed and check.severity == "warn" and check.description.startswith("not tested: ")
    assert re.search(lacks, check.description)


def test_a_filter_that_loses_all_fails_below_the_threshold_too():
    full = events(400, np.random.default_rng(0))
    found = Audit.of(full, EventSet(Tb=full.Tb), np.full(50, 2.0), np.full(50, -np.inf))
    check = loss_check(found, np.append(BACKGROUND, np.full(20, 50.0)), 10 * DAY, 1e-3)
    assert not check.passed and check.metadata["events_of"] == 0
    assert (check.metadata["loudest_lost"], check.metadata["loudest_of"]) == (LOUDEST, LOUDEST)


def test_another_statistic_is_an_error():
    full = events(400, np.random.default_rng(0))

    def check(change: float, tolerance: float = 0.0):
        moved = full.detection_statistic.copy()
        moved[7] += change * full.detection_statistic.std()
        found = Audit.of(full, EventSet(moved, full.detection_time, full.shift, full.Tb), FOUND, FOUND)
        return loss_check(found, BACKGROUND, 10 * DAY, 1e-3, tolerance)

    assert check(0.9e-4).passed and not check(1.1e-4).passed and not check(3.0).passed
    assert "statistics differ by 0.00033 at most (accepted 0.0003)" in check(1.1e-4).description
    # as far as an engine that rounds to half precision moves them
    assert check(1.1e-4, 0.5).passed and not check(1.0, 0.5).passed


def test_the_share_of_a_segment_may_be_twice_what_was_asked_and_that_of_the_run_may_not():
    assert share_check(9, 100, 0.05).passed and not share_check(11, 100, 0.05).passed
    assert share_check(0, 0, 0.05).passed and share_check(9, 100, 0.05).metadata["share"] == 0.09
    filtered = {"threshold": 1.0, "share": 0.039, "livetime": 1000.0, "stretches": 25}
    thresholds = {"filtered": filtered, "joint": {"threshold": 2.0, "share": 0.01, "livetime": 900.0, "stretches": 4}}
    over = run_share_check([(9, 100), (3, 100), (0, 0)], thresholds, 0.05)
    assert not over.passed and over.severity == "warn" and over.metadata["share"] == 0.06
    assert (
        "segments from 0.03 to 0.09" in over.description
        and "keep 0.039 of 1000 s to judge triggers, 25 stretches, and at most 0.01 of 900 s around" in over.description
    )
    # Poisson: 0.039 / sqrt(25) and 0.01 / sqrt(4)
    assert "scatter of 0.009" in over.description and over.metadata["scatter"] == pytest.approx((0.0078**2 + 0.005**2) ** 0.5)
    assert run_share_check([(5, 100), (10, 200)], thresholds, 0.05).passed
    nothing = run_share_check([(0, 0)], None, 0.05)
    assert not nothing.passed and nothing.description.startswith("not tested: ")
