"""The comparison of trained networks, on searches whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.sensitivity import DAY, PAIRS, SNR_EDGES, Search, compare, names_of_quantities

NUM_BLOCKS, PER_BLOCK, NUM_DRAWS = 400, 20, 3000


def search(rng: np.random.Generator, efficiency: float, glitches: float = 0.0) -> Search:
    """Exponential background of 8000 events in 8 days; draws of SNR 10 to 12 found with `efficiency` at any threshold.

    `glitches` is the share of loud events that stand in one block of the first detector.
    """
    n = NUM_BLOCKS * PER_BLOCK
    statistics = np.sort(rng.exponential(1.0, n))[::-1]
    blocks = rng.integers(0, NUM_BLOCKS, (2, n))
    blocks[0, : int(glitches * 100)] = 7
    found = np.where(rng.random(NUM_DRAWS) < efficiency, 100.0, -np.inf)
    snr = rng.uniform(10, 12, NUM_DRAWS)
    return Search(statistics, blocks, 8 * DAY, found, snr, np.ones(NUM_DRAWS, bool), np.zeros((len(PAIRS), NUM_DRAWS)), 2.0)


def test_efficiency_and_volume_are_those_put_in_with_binomial_errors():
    rng = np.random.default_rng(0)
    found = compare({"a": [search(rng, 0.3)]}, [1 / DAY], 300)["a"]
    column = len(PAIRS) + SNR_EDGES.index(10.0)
    assert names_of_quantities()[column] == "SNR 10 to 12"
    # weights are equal, so V is V0 times the same share
    binomial = np.sqrt(0.3 * 0.7 / NUM_DRAWS)
    assert found["value"][0, column] == pytest.approx(0.3, abs=4 * binomial)
    assert found["value"][0, 0] == pytest.approx(2 * found["value"][0, column], rel=1e-12)
    assert found["error"][0, column] == pytest.approx(binomial, rel=0.2)
    assert found["error"][0, 0] == pytest.approx(2 * binomial, rel=0.2)


def test_the_threshold_is_that_of_the_rate():
    s = search(np.random.default_rng(1), 0.5)
    # the 80th loudest of 8000 exponential values is near ln(100)
    assert s.thresholds(np.array([10 / DAY]))[0] == s.statistics[79]
    assert s.thresholds(np.array([10 / DAY]), np.ones(len(s.statistics)))[0] == s.statistics[79]


def test_loud_events_of_one_stretch_make_the_threshold_uncertain():
    rng = np.random.default_rng(2)
    spread, together = search(rng, 0.5), search(rng, 0.5, glitches=1.0)
    rate = np.array([10 / DAY])

    def scatter(s: Search) -> float:
        made = []
        for _ in range(200):
            per_block = rng.poisson(1.0, (2, NUM_BLOCKS)).astype(float)
            made.append(s.thresholds(rate, per_block[0][s.blocks[0]] * per_block[1][s.blocks[1]])[0])
        return float(np.std(made))

    assert scatter(together) > 3 * scatter(spread)


def test_seeds_scatter_apart_from_errors_and_ratios_gain_from_shared_draws():
    rng = np.random.default_rng(3)
    base = search(rng, 0.5)
    worse = Search(**{**vars(base), "found": np.where(np.arange(NUM_DRAWS) % 10 == 0, -np.inf, base.found)})
    found = compare({"a": [base, base, base], "b": [worse, worse, worse], "c": [search(rng, e) for e in (0.3, 0.5, 0.7)]}, [1 / DAY], 200)
    column = len(PAIRS) + SNR_EDGES.index(10.0)
    assert found["a"]["scatter"][0, column] == 0
    assert found["c"]["scatter"][0, column] == pytest.approx(0.2, abs=0.04)
    # the same draws: a tenth of them lost, whatever the bootstrap draws
    assert found["b"]["ratio"][0, column] == pytest.approx(0.9, abs=0.02)
    independent = np.hypot(found["a"]["error"][0, column] / 0.5, found["b"]["error"][0, column] / 0.45)
    assert found["b"]["ratio_error"][0, column] < 0.5 * independent


def test_a_rate_below_one_event_is_refused():
    with pytest.raises(ValueError, match=r"a: Tb = 8 d cannot give a FAR of 0\.1 /day"):
        compare({"a": [search(np.random.default_rng(0), 0.5)]}, [0.1 / DAY], 1)
