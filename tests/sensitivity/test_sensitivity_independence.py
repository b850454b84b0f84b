"""Effective counts against universes whose scatter is simulated, and against every pair counted by hand."""

import numpy as np
import pytest

from aframe_assets.sensitivity.independence import POISSON, independence, own_times

SPAN, SLIDES, BLOCK = 6000.0, 60, 32.0


def universe(rng, glitches=True, detectors=2):
    """Quiet events every 8 s of every slide, and single-detector glitches (one per 250 s) that are seen in all slides."""
    n = rng.poisson(SPAN * SLIDES / 8)
    time, slide, loud = [rng.uniform(0, SPAN, n)], [rng.integers(1, SLIDES + 1, n)], [rng.exponential(1, n)]
    slides = np.arange(1, SLIDES + 1)
    for c in range(detectors if glitches else 0):
        num = rng.poisson(SPAN / 250)
        own, strength = rng.uniform(0, SPAN, num), 8 + rng.exponential(2, num)
        every = np.tile(slides, num)
        time.append(np.repeat(own, SLIDES) - c * every + rng.normal(0, 0.3, len(every)))
        slide.append(every), loud.append(np.repeat(strength, SLIDES) + rng.normal(0, 1, len(every)))
    time, slide, loud = np.concatenate(time), np.concatenate(slide), np.concatenate(loud)
    return loud, time, slide[:, None] * np.arange(detectors)


@pytest.mark.parametrize("detectors", [2, 3])
def test_glitches_in_many_slides_against_300_universes(detectors):
    """The mean estimated variance is the scatter of the count between universes.

    The scatter of 300 is known to about sqrt(2 / 300) = 8 %, more for the few loudest (each glitch counts 60 times), and glitches cut by
    a block's edge cost a few per cent: agreement to 25 %. Taking events as independent is wrong by a factor of about 40.
    """
    rng = np.random.default_rng(1)
    thresholds = (9.0, 11.0, 13.0)
    counts, variances = [], []
    for _ in range(300):
        loud, *where = universe(rng, detectors=detectors)
        found = independence(loud, *where, BLOCK)
        k = [int((loud >= x).sum()) for x in thresholds]
        counts.append(k), variances.append([n * n / found.count(n) for n in k])
    truth, mean = np.var(counts, axis=0), np.mean(counts, axis=0)
    np.testing.assert_allclose(np.mean(variances, axis=0), truth, rtol=0.25)
    assert (truth > 25 * mean).all()


def test_coincidences_of_slid_triggers_against_the_formula():
    """Triggers of two detectors at rates r1, r2, coincident within a window w, in R slides of a ring.

    Each trigger of one detector makes a Poisson number of coincidences with the other, R r w on average, so that
    Var(N) / E(N) = 1 + R w (r1 + r2): more slides do not help (Was et al. 2010, Class. Quantum Grav. 27, 015005). The clusters of one
    universe are few (50 triggers of the rarer detector); 40 universes average to some 5 %: tolerance 15 %.
    """
    rng = np.random.default_rng(8)
    span, slides, window, r1, r2 = 10_000.0, 80, 2.0, 1 / 50, 1 / 200
    counted = variance = 0.0
    for _ in range(40):
        first, second = (rng.uniform(0, span, rng.poisson(span * r)) for r in (r1, r2))
        shifts = 100.0 * np.arange(1, slides + 1)
        # frame times of detector 2 at each shift, on the ring; distances to those of detector 1
        frame = np.mod(second[None] - shifts[:, None], span)
        apart = np.mod(frame[:, :, None] - first + span / 2, span) - span / 2
        which, _, trigger = np.nonzero(np.abs(apart) < window / 2)
        n = rng.poisson(span * slides / 8)
        time = np.concatenate([first[trigger], rng.uniform(0, span, n)])
        slide = np.concatenate([shifts[which], rng.choice(shifts, n)])
        k = len(trigger)
        loud = np.concatenate([rng.uniform(5, 6, k), rng.uniform(0, 1, n)])
        found = independence(loud, time, np.stack([0 * slide, slide], axis=1), BLOCK, [(0.0, span)])
        counted, variance = counted + k, variance + k**2 / found.count(k)
    assert counted / 40 == pytest.approx(span * slides * window * r1 * r2, rel=0.1)
    assert variance / counted == pytest.approx(1 + slides * window * (r1 + r2), rel=0.15)


def test_independent_events_are_worth_their_number():
    """Poisson events: N_eff / N is 1 within the noise of some 190 blocks (10 %), never above, at any count."""
    rng = np.random.default_rng(2)
    ratio = []
    for _ in range(30):
        found = independence(*universe(rng, glitches=False), BLOCK)
        ratio.append([found.count(k) / k for k in (10, 100, 1000, 10_000)])
    assert (np.array(ratio) <= 1).all()
    assert (np.mean(ratio, axis=0) > 0.88).all()


def test_far_from_the_quiet_events_it_is_the_pairs_that_share_a_block():
    """k loud among very many quiet events: Var(N) counts the ordered pairs that share a block of some detector."""
    rng = np.random.default_rng(3)
    k, quiet = 40, 100_000
    block = rng.integers(0, 12, k)
    shift = rng.integers(0, 9, k)
    time = np.concatenate([block * 10.0 + 5 - 10 * shift, rng.uniform(0, 1e7, quiet)])
    shifts = np.zeros((k + quiet, 2))
    shifts[:k, 1] = shift * 10.0
    statistic = np.concatenate([np.linspace(10, 9, k), rng.uniform(0, 1, quiet)])
    # blocks begin at the first own time of each detector
    own = [t[:k] for t in own_times(time, shifts)]
    first = [np.floor((o - t.min()) / 10) for o, t in zip(own, own_times(time, shifts), strict=True)]
    share = (first[0][:, None] == first[0]) | (first[1][:, None] == first[1])
    found = independence(statistic, time, shifts, 10.0)
    for n in (1, 7, 40):
        # 40 of 10^5 events are counted: what is expected in a block changes the pairs by some 1e-3
        assert found.count(n) == pytest.approx(n * n / share[:n, :n].sum(), rel=5e-3)
    assert found.relative_error(40) == pytest.approx(found.count(40) ** -0.5)
    assert found.livetime(40, 1e6) == pytest.approx(1e6 * found.count(40) / 40)
    # beyond half of all events the last ratio holds
    assert found.count(len(time)) == pytest.approx(len(time) * found.count(len(time) // 2) / (len(time) // 2), rel=1e-4)


def test_one_glitch_is_one_event_however_often_it_is_seen():
    quiet = np.random.default_rng(4).uniform(0, 1e6, 200_000)
    slides = np.arange(1, 101)
    time = np.concatenate([5e5 - slides, quiet])
    shift = np.stack([np.zeros(len(time)), np.concatenate([slides, np.ones(len(quiet))])], axis=1)
    statistic = np.concatenate([10 + slides / 100, np.zeros(len(quiet))])
    assert independence(statistic, time, shift, 32.0).count(100) == pytest.approx(1, rel=0.05)


def test_own_times_wrap_in_a_ring():
    time, shift = np.array([110.0, 190.0, 250.0, 310.0]), np.array([[0, 20.0]] * 4)
    own = own_times(time, shift, [(300.0, 50.0), (100.0, 100.0)])
    np.testing.assert_array_equal(own[0], time)
    np.testing.assert_array_equal(own[1], [130.0, 110.0, 270.0, 330.0])


def test_no_background_and_bad_input():
    empty = independence(np.empty(0), np.empty(0), np.empty((0, 2)), 32.0)
    assert empty is POISSON and empty.count(9) == 9 and empty.relative_error(4) == 0.5
    np.testing.assert_array_equal(POISSON.count(np.array([1, 5])), [1, 5])
    with pytest.raises(ValueError, match=r"expected \(n,\), \(n,\) and \(n, num_ifos\)"):
        independence(np.zeros(3), np.zeros(2), np.zeros((3, 2)), 32.0)
    with pytest.raises(ValueError, match="expected > 0"):
        independence(np.zeros(3), np.zeros(3), np.zeros((3, 2)), 0.0)
