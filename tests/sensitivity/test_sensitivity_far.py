"""False-alarm rates against counting by hand, the table of reference 4.2, and Poisson universes."""

import numpy as np
import pytest
from scipy import stats

from aframe_assets.config import SECONDS_PER_YEAR
from aframe_assets.sensitivity.far import Background, UnmeasurableRate, ifar_years, per_hour, per_year
from aframe_assets.waveforms.ledger import EventSet


@pytest.fixture
def ten():
    """Reference 4.2: statistics 0 to 9 in two years."""
    return Background.of(np.arange(10.0)[::-1], 2 * SECONDS_PER_YEAR)


def test_count_oracle(ten):
    assert [ten.count(x) for x in (5, 5.5, -1)] == [5, 4, 10]
    np.testing.assert_array_equal(ten.count(np.array([5, 5.5, -1])), [5, 4, 10])
    assert isinstance(ten.count(5.0), int)


def test_far_oracle(ten):
    assert [per_year(ten.far(x)[0]) for x in (5, 5.5)] == pytest.approx([2.5, 2.0])
    assert ten.far(5)[1] is False


def test_far_of_the_loudest_is_a_limit(ten):
    far, limit = ten.far(9.5)
    assert limit and per_year(far) == pytest.approx(0.5) and ifar_years(far) == pytest.approx(2)
    fars, limits = ten.far(np.array([9.0, 9.5]))
    np.testing.assert_array_equal(limits, [False, True])
    # nb = 1 and nb = 0 have the same number, and only the second is a bound
    assert fars[0] == fars[1]
    assert per_hour(1 / 3600) == 1


def test_significance_oracle(ten):
    for x, nb in ((5, 5), (9.5, 0)):
        assert ten.significance(x, SECONDS_PER_YEAR) == pytest.approx(1 - np.exp(-(1 + nb) / 2))
    # 1 - exp of a tiny number keeps its digits
    assert ten.significance(9.5, 1e-9) == pytest.approx(1e-9 / (2 * SECONDS_PER_YEAR))


def test_threshold_has_the_rate_it_promises():
    rng = np.random.default_rng(1)
    b = Background.of(rng.normal(size=1000), 1000.0)
    for far in (0.001, 0.0105, 0.3, 1.0):
        x = b.threshold(far)
        assert b.far(x)[0] <= far < (b.count(x) + 1) / b.livetime
    # the k-th loudest at exactly k / Tb, in spite of rounding
    for k in range(1, 1001):
        assert b.count(b.threshold(k / b.livetime)) == k


def test_threshold_below_one_over_Tb_is_refused(ten):
    # reference 5.3, number 18: index 0 of a sorted list is the lowest statistic
    with pytest.raises(UnmeasurableRate, match="below 1/Tb"):
        ten.threshold(0.4 / SECONDS_PER_YEAR)
    with pytest.raises(UnmeasurableRate, match="above the rate of all 10"):
        ten.threshold(6 / SECONDS_PER_YEAR)


def test_ties_do_not_raise_the_rate():
    b = Background.of(np.array([1, 2, 2, 2, 3.0]), 5.0)
    assert b.count(b.threshold(2 / 5)) == 1
    assert b.count(b.threshold(4 / 5)) == 4


def test_grid(ten):
    big = Background.of(np.arange(100_000.0), 1.0)
    k = big.grid(10)
    assert k[0] == 10 and k[-1] == 100_000 and len(k) <= 1000 and (np.diff(k) > 0).all()
    np.testing.assert_array_equal(ten.grid(1, max_far=7 / (2 * SECONDS_PER_YEAR), num=None), np.arange(1, 8))
    assert len(ten.grid(11)) == 0


@pytest.mark.parametrize(
    ("statistics", "livetime", "text"), [([1, np.nan], 1, "1 of 2"), ([1, np.inf], 1, "not finite"), ([1], 0, "Tb = 0 s")]
)
def test_bad_background(statistics, livetime, text):
    with pytest.raises(ValueError, match=text):
        Background.of(np.array(statistics, float), livetime)


def test_no_background_event_gives_limits_only():
    b = Background.of(np.empty(0), 100.0)
    assert b.far(3.0) == (0.01, True) and len(b.grid(1)) == 0


def test_significance_is_uniform_over_universes():
    """The loudest zero-lag noise event of many universes: 1 - exp(-T (1 + nb) / Tb) is uniform (issue 3, FAR calibration i).

    Discreteness of nb and the finite background widen it by about T / Tb, small here.
    """
    rng = np.random.default_rng(7)
    livetime, total, rate = 1.0, 200.0, 30.0
    p = []
    for _ in range(1000):
        b = Background.of(rng.exponential(size=rng.poisson(rate * total)), total)
        zero = rng.exponential(size=max(1, rng.poisson(rate * livetime)))
        p.append(b.significance(zero.max(), livetime))
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_no_background_at_all_says_what_to_change():
    with pytest.raises(ValueError, match="livetime Tb = 0 s; expected > 0"):
        Background.of_slides(EventSet(), 8.0)
