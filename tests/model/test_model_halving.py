"""Successive halving against the numbers of its papers and cases worked out by hand."""

from __future__ import annotations

import math

import pytest

from aframe_assets.model.halving import promotions, rungs


@pytest.mark.parametrize(
    ("first", "last", "reduction", "expected"),
    [(1, 81, 3, [1, 3, 9, 27, 81]), (21, 200, 2, [21, 42, 84, 168, 200]), (None, 50, 3, [50]), (4, 4, 2, [4])],
)
def test_rungs(first, last, reduction, expected):
    # the first: bracket s = 4 of Li et al. 2018 (Hyperband), table 1; the second: upstream's ASHA settings (reference 3.4)
    assert rungs(first, last, reduction) == expected


def test_synchronous_halving_is_that_of_hyperband():
    # Li et al. 2018, table 1, s = 4: 81, 27, 9, 3, 1 trials at 1, 3, 9, 27, 81 epochs; a trial's value is its number
    trials = [{0: float(t)} for t in range(81)]
    counts = [81]
    for rung in range(1, 5):
        going = promotions(trials, 5, 3, 81, growing=False)
        counts.append(len(going))
        assert {r for _, r in going} == {rung} and {t for t, _ in going} == set(range(81 - counts[-1], 81))
        for t, r in going:
            trials[t][r] = float(t)
    assert counts == [81, 27, 9, 3, 1] and not promotions(trials, 5, 3, 81, growing=False)


def test_asynchronous_halving_waits_for_enough_trials_and_prefers_the_upper_rungs():
    assert promotions([{0: 1.0}, {0: 2.0}], 3, 3, 9, growing=True) == []
    assert promotions([{0: 1.0}, {0: 3.0}, {0: 2.0}], 3, 3, 9, growing=True) == [(1, 1)]
    # of six at the lower rung two may go; one has
    six = [{0: 1.0}, {0: 3.0, 1: 3.0}, {0: 2.0}, {0: 0.0}, {0: 0.5}, {0: 2.5}]
    assert promotions(six, 3, 3, 9, growing=True) == [(5, 1)]
    # a third of three at the upper rung goes before those of the lower one
    nine = [{0: float(t)} | ({1: -float(t)} if t in (6, 7, 8) else {}) for t in range(12)]
    assert promotions(nine, 3, 3, 1, growing=True) == [(6, 2)]
    assert promotions(nine, 3, 3, 9, growing=True) == [(6, 2), (11, 1), (10, 1), (9, 1)]


def test_the_last_rung_is_reached_with_too_few_trials_and_never_by_a_failed_one():
    trials = [{0: 1.0}, {0: 2.0}]
    assert promotions(trials, 3, 3, 2, growing=False) == [(1, 1)]
    trials[1][1] = 2.0
    assert promotions(trials, 3, 3, 2, growing=False) == [(1, 2)]
    assert promotions([{0: -math.inf}, {0: -math.inf}], 3, 2, 2, growing=False) == []
    assert promotions([{0: 1.0, 1: -math.inf}, {0: 0.5}], 3, 2, 2, growing=False) == []
