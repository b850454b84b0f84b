"""p_astro against scipy's kernel density, the forms of reference 2.14, and universes with planted signals."""

import json

import numpy as np
import pytest
from scipy import stats

from aframe_assets.config import SECONDS_PER_YEAR
from aframe_assets.sensitivity.p_astro import PAstro, background_tail, fit_p_astro, gaussian_density

RATE, VOLUME = 30.0, 2.0


def toy(seed=1, n_bg=40_000, n_fg=4_000, compatible=False):
    """Background: standard normal; signals: normal about 4, half of all draws found."""
    rng = np.random.default_rng(seed)
    background, foreground = rng.normal(size=n_bg), rng.normal(4, 1.5, n_fg)
    w = np.ones(n_fg)
    model = fit_p_astro(
        background, SECONDS_PER_YEAR, foreground, w, 2.0 * n_fg, 2.0 * n_fg, VOLUME, rate=RATE, population="toy", compatible=compatible
    )
    return model, background, foreground


@pytest.mark.parametrize("weighted", [False, True])
def test_density_equals_scipy(weighted):
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(size=700), rng.normal(6, 0.5, 300)])
    weights = rng.exponential(size=1000) if weighted else None
    grid = np.linspace(-5, 10, 333)
    np.testing.assert_allclose(gaussian_density(values, grid, weights), stats.gaussian_kde(values, weights=weights)(grid), atol=2e-4 * 0.3)


def test_density_needs_a_spread():
    with pytest.raises(ValueError, match="no spread"):
        gaussian_density(np.ones(5), np.linspace(0, 1, 3))


def test_tail_of_exponential_background():
    rng = np.random.default_rng(3)
    values = rng.exponential(0.5, 200_000)
    split, slope, intercept = background_tail(values)
    assert slope == pytest.approx(-2, rel=0.1)
    # reference 2.14: the split is where the density falls below 1 / sqrt(n)
    assert 2 * np.exp(-2 * split) == pytest.approx(1 / np.sqrt(200_000), rel=0.35)
    assert intercept + slope * 4 == pytest.approx(np.log(2) - 8, abs=0.6)


def test_tail_of_a_small_background_falls():
    values = np.random.default_rng(4).normal(size=30)
    split, slope, intercept = background_tail(values)
    assert slope < 0 and np.isfinite([split, slope, intercept]).all()


def test_forms_of_the_densities():
    model, background, foreground = toy(compatible=True)
    x = np.array([0.5, 1.0, 2.0])
    f = RATE * VOLUME * 0.5 * stats.gaussian_kde(foreground)(x)
    b = len(background) * stats.gaussian_kde(background)(x)
    np.testing.assert_allclose(np.exp(np.interp(x, model.statistic, model.log_foreground)), f, rtol=0.05)
    np.testing.assert_allclose(np.exp(np.interp(x, model.statistic, model.log_background)), b, rtol=0.02)
    np.testing.assert_allclose(model(x), f / (f + b), rtol=0.06)
    assert model.volume == pytest.approx(VOLUME / 2)
    assert model.volume_error == pytest.approx(VOLUME * np.sqrt(0.25 / 8000), rel=1e-6)


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
    equal = fit_p_astro(background, 1e6, foreground, np.ones(4000), 8e3, 8e3, 1.0, rate=1, population="a")
    w = np.where(foreground > 5, 1.0, 1e-3)
    loud = fit_p_astro(background, 1e6, foreground, w, 8e3, 8e3, 1.0, rate=1, population="b")
    at = lambda m, x: np.exp(np.interp(x, m.statistic, m.log_foreground))  # noqa: E731
    assert at(loud, 7) == pytest.approx(at(equal, 7), rel=0.15)
    assert at(loud, 2) < 0.05 * at(equal, 2)
    assert loud.volume == pytest.approx(equal.volume / 2, rel=0.05)
    assert loud.effective_samples < equal.effective_samples


def test_probabilities_are_those_of_planted_signals():
    """Issue 3, calibration iii: 10^4 events, known rate of signals; in five bins the sum of p and the signals agree within 3 sigma."""
    rng = np.random.default_rng(7)
    n_bg, per_year, years, floor = 200_000, 30, 200, 6.0

    def noise(n):
        # a noise whose tail is exponential, as the form of the background takes it to be
        return rng.logistic(size=n)

    def signals(n):
        return rng.normal(10, 3, n)

    w = np.ones(40_000)
    model = fit_p_astro(noise(n_bg), SECONDS_PER_YEAR, signals(40_000), w, 2 * w.sum(), 2 * w.sum(), VOLUME, rate=RATE, population="toy")
    real, false = signals(rng.poisson(per_year * years)), noise(rng.poisson(n_bg * years))
    real, false = real[real > floor], false[false > floor]
    x, truth = np.concatenate([real, false]), np.arange(len(real) + len(false)) < len(real)
    p = model(x)
    assert len(x) > 10_000
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 0.95), (0.95, 1.01)):
        at = (p >= low) & (p < high)
        spread = (p[at] * (1 - p[at])).sum()
        assert at.sum() >= 100
        # counting, and 7 % in the odds: the tail's slope is fitted to a few hundred events
        assert abs(p[at].sum() - truth[at].sum()) < 3 * np.sqrt(spread) + 0.07 * spread, (low, p[at].sum(), truth[at].sum())


def test_too_few_events_are_refused():
    with pytest.raises(ValueError, match="3 recovered injections"):
        fit_p_astro(np.arange(100.0), 1, np.arange(3.0), np.ones(3), 3, 3, 1, rate=1, population="a")
