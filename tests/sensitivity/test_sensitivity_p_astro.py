"""p_astro against scipy's kernel density, the forms of reference 2.14, and universes with planted signals."""

import json
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from aframe_assets.config import SECONDS_PER_YEAR
from aframe_assets.sensitivity.density import Density, Falloff, background_tail
from aframe_assets.sensitivity.independence import Independence
from aframe_assets.sensitivity.p_astro import PAstro, fit_p_astro, tail_warning

RATE, VOLUME = 30.0, 2.0


def toy(seed=1, n_bg=40_000, n_fg=4_000, compatible=False):
    """Background: standard normal; signals: normal about 4, half of all draws found."""
    rng = np.random.default_rng(seed)
    background, foreground = rng.normal(size=n_bg), rng.normal(4, 1.5, n_fg)
    w = np.ones(n_fg)
    model = fit_p_astro(
        background,
        SECONDS_PER_YEAR,
        foreground,
        w,
        2.0 * n_fg,
        2.0 * n_fg,
        VOLUME,
        rate=RATE,
        rate_interval=(20, 40),
        population="toy",
        compatible=compatible,
    )
    return model, background, foreground


@pytest.mark.parametrize("weighted", [False, True])
def test_density_equals_scipy(weighted):
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(size=700), rng.normal(6, 0.5, 300)])
    weights = rng.exponential(size=1000) if weighted else None
    grid = np.linspace(-5, 10, 333)
    np.testing.assert_allclose(Density.of(values, weights)(grid), stats.gaussian_kde(values, weights=weights)(grid), atol=2e-4 * 0.3)


def test_density_needs_a_spread():
    with pytest.raises(ValueError, match="no spread"):
        Density.of(np.ones(5))


def test_counting_errors_of_densities():
    """Against the scatter of 300 densities from Poisson numbers of events; 300 values give a scatter to 4 %, 12 % is three times that."""
    rng = np.random.default_rng(20)
    x = np.array([-1.0, 0.0, 2.0])
    curves, said = [], []
    for _ in range(300):
        d = Density.of(rng.normal(size=rng.poisson(3000)), None)
        curves.append(np.log(d(x) * round(1 / d.square.sum())))
        said.append(d.relative_variance(x))
    np.testing.assert_allclose(np.std(curves, axis=0), np.sqrt(np.mean(said, axis=0)), rtol=0.12)
    np.testing.assert_allclose(np.diag(d.log_covariance(x)), d.relative_variance(x), rtol=0.01)
    weighted = Density.of(np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0]))
    far = np.array([2 + 7 * weighted.width])
    assert weighted.relative_variance(far)[0] == pytest.approx(1, abs=1e-3), "the kernel of one event"


@pytest.mark.parametrize("n", [200, 3000, 100_000])
def test_errors_of_the_tail(n):
    """ln of the tail at and beyond the split, against 150 exponential backgrounds: pull of mean 0 and width 1."""
    pulls = []
    for seed in range(150):
        values = np.random.default_rng(seed).exponential(0.5, n)
        tail = background_tail(values, Density.of(values))
        x = tail.split + np.array([0.0, 1.0, 2.0])
        pulls.append((tail.log_density(x) - np.log(2) + 2 * x) / np.sqrt(tail.variance(x)))
    # the width of 150 pulls is known to 6 %; where the split falls depends on the same events, which no formula of a fit knows
    assert np.all(np.abs(np.mean(pulls, axis=0)) < 0.5) and np.all(np.abs(np.std(pulls, axis=0) - 1) < 0.25), n


def test_tail_of_exponential_background():
    rng = np.random.default_rng(3)
    values = rng.exponential(0.5, 200_000)
    tail = background_tail(values, Density.of(values))
    assert tail.slope == pytest.approx(-2, rel=0.1)
    # reference 2.14: the split is where the density falls below 1 / sqrt(n)
    assert 2 * np.exp(-2 * tail.split) == pytest.approx(1 / np.sqrt(200_000), rel=0.35)
    assert tail.log_density(4) == pytest.approx(np.log(2) - 8, abs=0.6)


def test_tail_of_a_small_background_falls():
    values = np.random.default_rng(4).normal(size=30)
    tail = background_tail(values, Density.of(values))
    assert tail.slope < 0 and np.isfinite([tail.split, tail.intercept, *tail.covariance.ravel()]).all()


def test_compatible_mode_is_2_14():
    """Written out from reference 2.14 with scipy's density; 1 % for the lattice and the grid."""
    model, background, foreground = toy(compatible=True)
    kde = stats.gaussian_kde(background)
    x = np.linspace(background.min(), background.max(), 100)
    pdf, tau = kde(x), 1 / np.sqrt(len(background))
    right = np.arange(len(x)) >= pdf.argmax()
    start = np.flatnonzero(right & (pdf < 10 * tau))[0]
    stop = np.flatnonzero(right & (pdf < tau))[0]
    slope, intercept = np.polyfit(x[start : stop + 1], np.log(pdf[start : stop + 1]), 1)
    assert (model.slope, model.split) == (pytest.approx(slope, rel=0.01), pytest.approx(x[stop]))
    at = np.linspace(-3, 7, 41)
    f = RATE * VOLUME * 0.5 * stats.gaussian_kde(foreground)(at)
    b = len(background) * np.where(at > x[stop], np.exp(intercept + slope * at), kde(at))
    np.testing.assert_allclose(np.exp(np.interp(at, model.statistic, model.log_foreground)), f, rtol=0.01, atol=1e-6)
    smooth = np.abs(at - x[stop]) > 0.05  # b jumps at the split
    np.testing.assert_allclose(model(at)[smooth], (f / (f + b))[smooth], rtol=0.02)
    assert model.volume == pytest.approx(VOLUME / 2)
    assert model.volume_error == pytest.approx(VOLUME * np.sqrt(0.25 / 8000), rel=1e-6)
    assert model.probability(3.0) == (model(3.0), None, None, False)


def test_types_and_json():
    model, *_ = toy()
    assert type(model(3.0)) is float
    out = model(np.array([[1.0, 2.0]]))
    assert out.shape == (1, 2)
    again = PAstro.from_json(model.to_json())
    assert again == model and again(3.0) == model(3.0)
    json.loads(model.to_json(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    with pytest.raises(ValueError, match="not a p_astro model"):
        PAstro.from_json("{}")


def test_louder_is_never_less_probable():
    model, *_ = toy()
    x = np.linspace(-30, 60, 1000)
    p = model(x)
    assert (np.diff(p) >= 0).all() and p[0] < 1e-3 and p[-1] > 0.99


def test_weights_change_the_population():
    """Signals weighted to a population that is half as often found: f is halved and moves with the weights."""
    rng = np.random.default_rng(5)
    background, foreground = rng.normal(size=20_000), rng.normal(5, 2, 4_000)
    equal = fit_p_astro(background, 1e6, foreground, np.ones(4000), 8e3, 8e3, 1.0, rate=1, rate_interval=(1, 1), population="a")
    w = np.where(foreground > 5, 1.0, 1e-3)
    loud = fit_p_astro(background, 1e6, foreground, w, 8e3, 8e3, 1.0, rate=1, rate_interval=(1, 1), population="b")
    at = lambda m, x: np.exp(np.interp(x, m.statistic, m.log_foreground))  # noqa: E731
    assert at(loud, 7) == pytest.approx(at(equal, 7), rel=0.15)
    assert at(loud, 2) < 0.05 * at(equal, 2)
    assert loud.volume == pytest.approx(equal.volume / 2, rel=0.05)
    assert loud.effective_samples < equal.effective_samples


YEAR_OF_NOISE, YEAR_OF_SIGNALS = 400_000, 6000.0
"""Events per year of the toy universe: noise above 4 and mergers in V0 = 1 Gpc^3."""


def noise(n, rng):
    """Statistics of noise: exponential above 4."""
    return 4 + rng.exponential(0.5, n)


def heard(distance, rng):
    """Statistics of signals at a relative distance; -inf for those that are not recovered."""
    statistic = 4 / np.maximum(distance, 0.1) + rng.normal(size=len(distance))
    return np.where(statistic > 4, statistic, -np.inf)


def universe_model(rng, years, n_draws, rate=YEAR_OF_SIGNALS, **more):
    """A model from `years` of noise and draws of distance that are not those of nature: p ~ sqrt(d) where nature has d^2."""
    d = rng.random(n_draws) ** (1 / 1.5)
    w, statistic = 3 * d**2 / (1.5 * np.sqrt(d)), heard(d, rng)
    found = np.isfinite(statistic)
    return fit_p_astro(
        noise(int(YEAR_OF_NOISE * years), rng),
        years * SECONDS_PER_YEAR,
        statistic[found],
        w[found],
        w.sum(),
        (w**2).sum(),
        1.0,
        rate=rate,
        **({"rate_interval": (rate, rate), "population": "toy"} | more),
    )


def deviations(p, signal):
    """(true signals - sum of p) / sqrt(sum of p (1 - p)) in those of five bins of p that have at least 100 events."""
    out = []
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 0.95), (0.95, 1.01)):
        at = (p >= low) & (p < high)
        if at.sum() >= 100:
            out.append((signal[at].sum() - p[at].sum()) / np.sqrt((p[at] * (1 - p[at])).sum()))
    return np.array(out)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_probabilities_are_those_of_planted_signals(seed):
    """Issue 3, calibration iii: 10^4 events, known rate of signals; in five bins the sum of p and the signals agree within 3 sigma.

    The sigma is of counting alone: ten years of background make the model's own error smaller. The same events with a rate wrong by
    two, either way, or with unweighted injections, are noticed.
    """
    rng = np.random.default_rng(seed)
    model, years = universe_model(rng, 10, 400_000), 1.15
    real = heard(rng.random(rng.poisson(YEAR_OF_SIGNALS * years)) ** (1 / 3), rng)
    false = noise(rng.poisson(YEAR_OF_NOISE * years), rng)
    real, false = real[real > 6], false[false > 6]
    x, signal = np.concatenate([real, false]), np.arange(len(real) + len(false)) < len(real)
    assert 10_000 < len(x) < 11_500
    right = deviations(model(x), signal)
    assert len(right) == 5 and np.abs(right).max() < 3, right
    for factor in (0.5, 2):
        wrong = universe_model(np.random.default_rng(seed), 10, 400_000, rate=factor * YEAR_OF_SIGNALS)
        assert np.abs(deviations(wrong(x), signal)).max() > 6, factor
    d = np.random.default_rng(seed).random(400_000) ** (1 / 1.5)
    s = heard(d, rng)
    flat = np.isfinite(s)
    n = float(len(d))
    unweighted = fit_p_astro(
        noise(4_000_000, rng),
        10 * SECONDS_PER_YEAR,
        s[flat],
        np.ones(flat.sum()),
        n,
        n,
        1.0,
        rate=YEAR_OF_SIGNALS,
        rate_interval=(YEAR_OF_SIGNALS, YEAR_OF_SIGNALS),
        population="toy",
    )
    assert np.abs(deviations(unweighted(x), signal)).max() > 3.5


def test_intervals_hold_the_truth():
    """150 universes with a small background, few injections and a true rate drawn from the stated interval: 90 % intervals hold p.

    80 to 98 % are accepted: binomial scatter is 2.5 %, and kernels smooth a density that is steep. Bounds of events louder than all
    background hold at least as often as they say.
    """
    rng = np.random.default_rng(0)
    found = heard(rng.random(2_000_000) ** (1 / 3), rng)
    edges = np.arange(4, 42, 0.05)
    density = np.histogram(found[np.isfinite(found)], edges)[0] / len(found) / 0.05
    inside = {x: [] for x in (6.0, 7.0, 8.0, 9.0)}
    bounds = []
    for seed in range(150):
        rng = np.random.default_rng(100 + seed)
        true_rate = YEAR_OF_SIGNALS * 1.6 ** (rng.normal() / 1.645)
        model = universe_model(rng, 0.1, 3000, rate_interval=(YEAR_OF_SIGNALS / 1.6, YEAR_OF_SIGNALS * 1.6))
        for x in (*inside, 10.0, 12.0, 20.0):
            f = true_rate * np.interp(x, edges[:-1] + 0.025, density)
            truth = f / (f + 2 * YEAR_OF_NOISE * np.exp(-2 * (x - 4)))
            p, low, high, limit = model.probability(x)
            assert low <= p <= high
            if limit:
                assert high == 1
                bounds.append(low <= truth)
            elif x in inside:
                inside[x].append(low <= truth <= high)
    for x, held in inside.items():
        assert len(held) > 100 and 0.80 <= np.mean(held) <= 0.98, (x, np.mean(held))
    assert len(bounds) > 300 and np.mean(bounds) > 0.95


def test_what_widens_the_interval():
    known = universe_model(np.random.default_rng(1), 0.1, 5000)
    x = 8.0
    p, low, high, _ = known.probability(x)

    def width(**more):
        _, a, b, _ = universe_model(np.random.default_rng(1), 0.1, 5000, **more).probability(x)
        return np.log(b / (1 - b)) - np.log(a / (1 - a))

    plain = np.log(high / (1 - high)) - np.log(low / (1 - low))
    rate = width(rate_interval=(YEAR_OF_SIGNALS / 2, YEAR_OF_SIGNALS * 2))
    assert rate == pytest.approx(np.hypot(plain, 2 * np.log(2)), rel=0.02), "in quadrature"
    assert width(independence=Independence(np.full(20_000, 0.25))) > 1.3 * plain, "slides that reuse glitches tell less"
    assert p == known(x)


def test_the_bound_above_the_loudest_background():
    """By hand: f from the density, b no more than 2.30 / (Tb (x - loudest))."""
    model = universe_model(np.random.default_rng(3), 0.1, 50_000)
    x = model.loudest + 2
    p, low, high, limit = model.probability(x)
    assert limit and high == 1 and low < p
    f = np.exp(np.interp(x, model.statistic, model.log_foreground))
    rough = f / (f + 2.3026 / 0.1 / 2)
    assert low == pytest.approx(rough, abs=0.03)
    assert not model.probability(model.loudest).is_limit
    grid = [model.probability(v).low for v in np.linspace(4, 40, 400)]
    assert all(a <= b + 1e-12 for a, b in pairwise(grid)), "louder is never surely less"


def test_a_background_that_leaves_the_tail_is_noticed():
    """Thirty glitches are enough to be followed, by ours and not by the line of 2.14; twelve, far from all else, are not."""
    rng = np.random.default_rng(4)
    clean = rng.exponential(0.5, 50_000)
    thirty, twelve = np.concatenate([clean, rng.uniform(6, 12, 30)]), np.concatenate([clean, rng.uniform(20, 30, 12)])
    foreground, w = rng.normal(9, 2, 4000), np.ones(4000)
    known = {"rate": 1, "rate_interval": (1, 1), "population": "a"}
    for values, warned in ((clean, ()), (thirty, (True,)), (twelve, (False, True))):
        for compatible in (False, True):
            model = fit_p_astro(values, 1e6, foreground, w, 8e3, 8e3, 1.0, compatible=compatible, **known)
            text = tail_warning(model, values, 1e6)
            assert bool(text) is (compatible in warned)
            assert not text or ("10 background events" in text and "too high" in text)


def test_too_few_events_are_refused():
    with pytest.raises(ValueError, match="3 recovered injections"):
        fit_p_astro(np.arange(100.0), 1, np.arange(3.0), np.ones(3), 3, 3, 1, rate=1, rate_interval=(1, 1), population="a")
    with pytest.raises(ValueError, match="merger rate 1 with interval"):
        fit_p_astro(np.arange(100.0), 1, np.arange(30.0), np.ones(30), 30, 30, 1, rate=1, rate_interval=(2, 3), population="a")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_background_that_is_not_exponential_is_followed(seed):
    """Noise of two exponentials, one event in 200 a glitch of the slower: 6e6 events, 1700 of them beyond the line of 2.14, which is
    the first exponential continued. The true p is 0.79 to 0.95 at 7 to 10, where 700 to 60 events are; its 90 % interval must hold it.

    With the rate known the intervals are those of counts alone. The scatter of a sum of p over a bin is as in calibration iii.
    """
    rng, years, share = np.random.default_rng(seed), 20, 0.005
    mergers, per_year = 5000.0, 300_000

    def noisy(n):
        return 2.5 + rng.exponential(np.where(rng.random(n) < share, 1.2, 0.3))

    def signals(distance):
        s = 3 / np.maximum(distance, 0.08) + 0.7 * rng.normal(size=len(distance))
        return s[s > 2.5]

    background, draws = noisy(per_year * years), 300_000
    foreground = signals(rng.random(draws) ** (1 / 3))
    w = np.ones(len(foreground))
    known = {"rate": mergers, "population": "toy", "rate_interval": (mergers, mergers)}
    model = fit_p_astro(background, years * SECONDS_PER_YEAR, foreground, w, draws, draws, 1.0, **known)
    assert tail_warning(model, background, years * SECONDS_PER_YEAR) is None
    many = signals(rng.random(4_000_000) ** (1 / 3))
    held = []
    for x in (6.0, 6.5, 7.0, 8.0, 9.0, 10.0):
        f = mergers * (np.abs(many - x) < 0.1).sum() / 4e6 / 0.2
        b = per_year * ((1 - share) * np.exp(-(x - 2.5) / 0.3) / 0.3 + share * np.exp(-(x - 2.5) / 1.2) / 1.2)
        p, low, high, limit = model.probability(x)
        assert not limit and p == pytest.approx(f / (f + b), abs=0.05), x
        held.append(low <= f / (f + b) <= high)
        assert held[-1] or x not in (8.0, 10.0), (x, low, f / (f + b), high)
    assert sum(held) >= 5, held
    real, false = signals(rng.random(rng.poisson(2 * mergers)) ** (1 / 3)), noisy(rng.poisson(2 * per_year))
    x, signal = np.concatenate([real, false]), np.arange(len(real) + len(false)) < len(real)
    x, signal = x[x > 4], signal[x > 4]
    right = deviations(model(x), signal)
    assert (model(x) > 0.95).sum() > 100 and np.abs(right).max() < 3, right


@pytest.mark.parametrize("n", [200, 3000, 100_000])
def test_errors_of_the_falloff(n):
    """As `test_errors_of_the_tail`, where the density follows the events: mean and width of the pull from the start of it on."""
    pulls = []
    for seed in range(150):
        values = np.random.default_rng(seed).exponential(0.5, n)
        fall = Falloff.of(values, Density.of(values))
        x = np.array([fall.start + 0.05, (fall.start + fall.tail.split) / 2, fall.tail.split, fall.tail.split + 1])
        pulls.append((fall.log_density(x) - np.log(2) + 2 * x) / np.sqrt(fall.variance(x)))
    assert np.all(np.abs(np.mean(pulls, axis=0)) < 0.4), np.mean(pulls, axis=0)
    # 200 events start at their median, where the share above is known better than its count: an error stated too large, never too small
    assert np.all((np.std(pulls, axis=0) > 0.4) & (np.std(pulls, axis=0) < 1.25)), np.std(pulls, axis=0)
