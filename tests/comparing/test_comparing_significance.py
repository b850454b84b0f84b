"""The error of a difference of two searches, against universes whose scatter is simulated, and against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from aframe_assets.comparing.measurement import _plain
from aframe_assets.comparing.significance import Noise, Paired, count_covariance
from aframe_assets.comparing.summary import difference_text
from aframe_assets.sensitivity.far import Background
from aframe_assets.waveforms.ledger import EventSet

SPAN, SLIDES, BLOCK, DRAWS = 6000.0, 12, 32.0, 1500


def universe(rng, glitches: float, shared: float = 0.9, better: float = 0.0):
    """Two searches of the same strain and injections; (noise, statistics of the draws).

    Quiet events every 8 s of every slide; single-detector glitches, `glitches` in each detector, that every slide sees and both
    searches feel alike but for a part. Draws have strengths that both see with noise of their own; the second search sees them
    stronger by `better`.
    """
    n, slides = int(SPAN * SLIDES / 8), np.arange(1, SLIDES + 1)
    time, slide, loud = [rng.uniform(0, SPAN, n)], [rng.integers(1, SLIDES + 1, n)], [rng.exponential(1, (2, n))]
    for c in range(2):
        num = rng.poisson(glitches)
        own, strength, every = rng.uniform(0, SPAN, num), 5 + rng.exponential(2, num), np.tile(slides, num)
        time.append(np.repeat(own, SLIDES) - c * every + rng.normal(0, 0.3, len(every)))
        slide.append(every)
        loud.append(np.repeat(strength, SLIDES) + rng.normal(0, 1 - shared, (2, len(every))))
    time, slide, loud = np.concatenate(time), np.concatenate(slide), np.concatenate(loud, axis=1)
    noise = []
    for x in loud:
        events = EventSet(x, time, np.stack([0 * slide, slide], axis=1).astype(float), SPAN * SLIDES)
        noise.append(Noise.of(events, Background.of_slides(events, BLOCK / 4), BLOCK))
    strength = rng.normal(6, 3, DRAWS)
    statistics = strength + rng.normal(0, 0.5, (2, DRAWS)) + np.array([[0], [better]])
    return noise, statistics


WEIGHTS = np.full(DRAWS, 1 / DRAWS)
FAR = 40 / (SPAN * SLIDES)


@pytest.mark.parametrize("glitches", [0, 25])
def test_equal_searches_differ_by_as_much_as_their_error_says(glitches):
    """D / error of 200 universes without a true difference has mean 0 and standard deviation 1.

    The scatter of 200 is known to 5 %, the mean to 7 %; with glitches each counts twelve times, so that few are independent and the
    error itself scatters: 15 %, and 20 % for the mean. Errors without the noise would be too small by more than that with glitches.
    """
    rng = np.random.default_rng(1)
    pulls, blind = [], []
    for _ in range(200):
        found = Paired.of(*universe(rng, glitches, shared=0.3), FAR).difference(1, 0, WEIGHTS)
        pulls.append(found.sigma)
        blind.append(found.value / found.error_injections)
    print(f"{glitches} glitches: pulls {np.mean(pulls):.3f} +- {np.std(pulls):.3f}, without noise {np.std(blind):.3f}")
    assert abs(np.mean(pulls)) < 0.2
    assert np.std(pulls) == pytest.approx(1, abs=0.15)
    assert np.std(blind) > 1.3


def test_what_both_searches_feel_alike_cancels():
    """Shared glitches move both thresholds: the paired error is well below that of two searches taken as independent."""
    rng = np.random.default_rng(2)
    paired, apart = [], []
    for _ in range(20):
        both = Paired.of(*universe(rng, 25, shared=0.95), FAR)
        _, errors = both.values(WEIGHTS)
        paired.append(both.difference(1, 0, WEIGHTS).error), apart.append(np.hypot(*errors))
    assert np.mean(paired) < 0.5 * np.mean(apart)


def test_a_better_search_is_found_to_be_better():
    """A true difference: D scatters about the one of infinitely many draws, at the same thresholds, by no more than its error."""
    rng, found, truth = np.random.default_rng(3), [], []
    for _ in range(100):
        noise, statistics = universe(rng, 10, better=0.5)
        found.append(Paired.of(noise, statistics, FAR).difference(1, 0, WEIGHTS))
        at = [n.background.threshold(FAR) for n in noise]
        truth.append(norm.sf(at[1], 6.5, math.hypot(3, 0.5)) - norm.sf(at[0], 6, math.hypot(3, 0.5)))
    values, errors = np.array([f.value for f in found]), np.array([f.error for f in found])
    # 1500 draws of which a few per cent decide: 0.004 each, 0.0004 for the mean of 100
    assert (values - truth).mean() == pytest.approx(0, abs=0.002)
    assert errors.mean() == pytest.approx(values.std(), rel=0.25)
    assert np.mean([f.sigma for f in found]) > 2
    assert all(f.p_value < 0.05 for f in found if f.sigma > 2)


def test_equal_searches_do_not_differ():
    noise, statistics = universe(np.random.default_rng(4), 10)
    found = Paired.of([noise[0], noise[0]], statistics[[0, 0]], FAR).difference(0, 1, WEIGHTS)
    assert (found.value, found.error, found.sigma, found.p_value, found.discordant) == (0, 0, 0, 1, 0)
    assert found.few


def test_without_noise_the_error_is_that_of_discordant_pairs():
    """Thresholds that no draw is near: McNemar's test, (b - c) / sqrt(b + c), counted by hand."""
    events = EventSet(np.linspace(0, 1, 800), np.linspace(0, 1e5, 800), np.tile([0.0, 1.0], (800, 1)), 8000.0)
    noise = Noise.of(events, Background.of(events.detection_statistic, events.Tb), 32.0)
    x = np.full((2, 100), -np.inf)
    x[:, :50], x[0, 50:60], x[1, 60:75] = 9, 9, 9
    found = Paired.of([noise, noise], x, 0.01).difference(0, 1, np.full(100, 0.01))
    assert (found.only_first, found.only_second) == (10, 15)
    assert found.discordant == pytest.approx(25)
    assert found.value == pytest.approx(-0.05)
    assert found.error == pytest.approx(0.01 * math.sqrt(25 - 25 / 100))
    assert found.sigma == pytest.approx(-5 / math.sqrt(25))
    assert found.error_noise == 0
    weighted = np.where(np.arange(100) < 55, 2.0, 1.0)
    weighted /= weighted.sum()
    again = Paired.of([noise, noise], x, 0.01).difference(0, 1, weighted)
    d = np.zeros(100)
    d[50:60], d[60:75] = 1, -1
    assert again.value == pytest.approx(weighted @ d)
    assert again.error == pytest.approx(math.sqrt((weighted**2 * (d - weighted @ d) ** 2).sum()))


@pytest.mark.parametrize("num", [1, 3, 40])
def test_a_search_that_finds_all_where_the_other_finds_none_is_better(num):
    """As of a network that was never trained: McNemar's (b - c) / sqrt(b + c) is sqrt(num), though the draws do not scatter about D."""
    events = EventSet(np.linspace(0, 1, 800), np.linspace(0, 1e5, 800), np.tile([0.0, 1.0], (800, 1)), 8000.0)
    noise = Noise.of(events, Background.of(events.detection_statistic, events.Tb), 32.0)
    x = np.full((2, num), -np.inf)
    x[0] = 9
    found = Paired.of([noise, noise], x, 0.01).difference(0, 1, np.full(num, 1 / num))
    assert found.value == pytest.approx(1)
    assert found.sigma == pytest.approx(math.sqrt(num))
    assert found.p_value == pytest.approx(math.erfc(math.sqrt(num / 2)))
    assert found.few == (num < 10)
    assert difference_text(_plain(found)) == f"+{math.sqrt(num):.1f} σ{'?' if num < 10 else ''}"


def test_covariance_of_one_search_is_that_of_its_effective_count():
    """The diagonal is N^2 / N_eff of `sensitivity.independence`, which counts the same pairs in another way."""
    noise, _ = universe(np.random.default_rng(5), 25)
    counts = (40, 300)
    covariance, _ = count_covariance(noise, counts)
    for i, k in enumerate(counts):
        # blocks are counted from GPS 0 here and from the first event there: glitches are cut by other edges
        assert covariance[i, i] == pytest.approx(k * k / noise[i].background.independence.count(k), rel=0.25)
    assert covariance[0, 1] == covariance[1, 0] > 0


@pytest.mark.parametrize("detectors", [1, 3])
def test_covariance_counts_pairs_that_share_a_block(detectors):
    """Few loud among very many quiet events: the sum over ordered pairs that share a block of some detector."""
    rng = np.random.default_rng(6)
    quiet, ks = 60_000, (30, 20)
    noise, blocks = [], []
    for k in ks:
        own = np.concatenate([rng.integers(0, 8, (k, detectors)), rng.integers(100, 10**5, (quiet, detectors))])
        statistics = np.concatenate([np.linspace(10, 9, k), np.linspace(1, 0, quiet)])
        noise.append(Noise(statistics, own.T, Background.of(statistics, 1e6)))
        blocks.append(own[:k])
    covariance, least = count_covariance(noise, ks)
    for a, b in ((0, 0), (0, 1), (1, 1)):
        same = blocks[a][:, None] == blocks[b]
        assert covariance[a, b] == pytest.approx(same.any(axis=2).sum(), abs=1.5)
        assert least[a, b] == pytest.approx(same.all(axis=2).sum(), abs=1.5)
