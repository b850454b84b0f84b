"""Are false-alarm rates what they say? 1000 toy universes, from single-detector triggers to FAR and significance.

A universe is two detectors' triggers at random times and nothing else. They go through the real windows, slides, clustering,
livetimes and `Background`; only the strain and the network are replaced, by a stream of triggers and by the loudness of the
detector that is quieter.

What is expected. Noise of a lag does not know how far it was slid, so the zero lag is one of many equal lags. Where its events are
a Poisson process, each event, from the loudest down, is the zero lag's with probability T / (T + Tb), and

* the zero lag has m T / Tb events louder than the m-th loudest of the background in the mean, for every m and any size of the
  background: the count at FAR < m / Tb;
* P(nb >= k) of the loudest is (Tb / (T + Tb))^k, so that the significance 1 - exp(-T (1 + nb) / Tb) is uniform but for its steps of
  T / Tb (of which the first is its smallest value) and a term of second order, T / (2 e Tb).

So T / Tb is 1/50 or less where the significance itself is held against a uniform one; with few slides a uniform number within its
step is. Events are Poisson where few triggers meet another (here 11 %; each lag's count is narrower by about that share) and
the clustering window is short beside the time between loud events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from scipy import stats

from aframe_assets.config import Inference
from aframe_assets.inference.slides import run_slides
from aframe_assets.inference.whitened import WhitenedChunk
from aframe_assets.segments.geometry import SlideGeometry, shift_vectors
from aframe_assets.sensitivity.far import Background
from aframe_assets.waveforms.ledger import EventSet

RATE = 2
"""Samples and outputs per second; a window is one sample."""

GPS, NUM, NUM_SLIDES = 1_240_000_000.0, 1000, 50


class Both:
    """The quieter detector; a little of the louder one, so that no two pairs of triggers are tied."""

    def score_windows(self, windows: np.ndarray) -> np.ndarray:
        peaks = windows.max(axis=2)
        return peaks.min(axis=1) + peaks.max(axis=1) / 100


class Either:
    """The louder detector; a little of the quieter one. A network that lets glitches of one detector through."""

    def score_windows(self, windows: np.ndarray) -> np.ndarray:
        peaks = windows.max(axis=2)
        return peaks.max(axis=1) + peaks.min(axis=1) / 100


@dataclass(frozen=True)
class Universe:
    """Statistics and livetime (s) of the zero lag and of each slide."""

    zero_lag: np.ndarray
    livetime: float
    slides: tuple[np.ndarray, ...]
    livetimes: tuple[float, ...]

    @property
    def Tb(self) -> float:
        return sum(self.livetimes)

    def background(self, *, wrong: float = 1.0, forget_empty: bool = False) -> Background:
        """Of all slides; with a livetime that is `wrong` by a factor, or without that of slides without events."""
        parts = [_events(x, t) for x, t in zip(self.slides, self.livetimes, strict=True) if len(x) or not forget_empty]
        joined = EventSet.concatenate(parts)
        return Background.of(joined.detection_statistic, joined.Tb * wrong)

    def every(self, step: int) -> Universe:
        return replace(self, slides=self.slides[::step], livetimes=self.livetimes[::step])

    def above(self, statistic: float) -> Universe:
        """A search that writes down loud events only."""
        slides = tuple(s[s > statistic] for s in self.slides)
        return replace(self, zero_lag=self.zero_lag[self.zero_lag > statistic], slides=slides)


def _events(statistics: np.ndarray, livetime: float) -> EventSet:
    return EventSet(statistics, np.zeros(len(statistics)), np.zeros((len(statistics), 2)), livetime)


def triggers(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    """A sample is a trigger, of loudness 1 and more, with probability `share`; the others are near 0 and differ."""
    loudness = 1 + rng.exponential(size=size)
    return np.where(rng.random(size) < share, loudness, rng.uniform(0, 0.01, size)).astype(np.float32)


@cache
def _livetimes(geometry: SlideGeometry, step: float) -> tuple[float, ...]:
    return tuple(geometry.livetime(s) for s in shift_vectors(NUM_SLIDES, [0, step]))


def universe(seed: int, *, ring: bool, engine=None, kernel: int = 1, step: float = 2.0, share: float = 0.11) -> Universe:
    """200 s of zero lag; `kernel` in samples, `step` between slides in seconds."""
    rng, size = np.random.default_rng(seed), 200 * RATE
    chunk = WhitenedChunk(tuple(triggers(rng, size, share) for _ in range(2)), ((), ()), GPS, RATE, 0, 0, size, None)
    geometry = SlideGeometry(GPS, size / RATE, 0.0, 0.0, kernel / RATE, RATE, 0.5, ring)
    settings = Inference(inference_rate=RATE, batch_size=512, integration_window_length=0.5, cluster_window_length=2, shifts=[0, step])
    out = run_slides(chunk, geometry, engine or Both(), settings, shift_vectors(NUM_SLIDES, [0, step]))
    first = np.searchsorted(out.background.shift[:, 1], step * np.arange(2, NUM_SLIDES + 1))
    slides, livetimes = tuple(np.split(out.background.detection_statistic, first)), _livetimes(geometry, step)
    assert out.background.Tb == sum(livetimes)
    return Universe(out.zero_lag.detection_statistic, out.zero_lag.Tb, slides, livetimes)


@pytest.fixture(scope="module")
def rings() -> list[Universe]:
    return [universe(i, ring=True) for i in range(NUM)]


@pytest.fixture(scope="module")
def lines() -> list[Universe]:
    """Slides that cut the overlap: the last has half the livetime of the zero lag."""
    return [universe(i, ring=False) for i in range(NUM, NUM + 400)]


def significance(universes: list[Universe], wrong: float = 1.0) -> np.ndarray:
    """Of the loudest zero-lag event of each universe."""
    return np.array([u.background(wrong=wrong).significance(u.zero_lag.max(), u.livetime) for u in universes])


def without_one(universes: list[Universe]) -> np.ndarray:
    """The same with nb in the place of 1 + nb."""
    return np.array([-np.expm1(-u.livetime * u.background().count(u.zero_lag.max()) / u.Tb) for u in universes])


def ks(values: np.ndarray) -> float:
    return float(stats.kstest(values, "uniform").pvalue)


def excess(universes: list[Universe], expected: float, **change) -> tuple[float, float]:
    """Zero-lag events at FAR < x less x T, over all universes, and its standard error from their scatter.

    x is a whole multiple of 1 / Tb with x T near `expected`. The error is that of the difference, so the background's is in it.
    """
    out = []
    for u in universes:
        far = max(1, round(expected * u.Tb / u.livetime)) / u.Tb
        # FARs are multiples of 1 / Tb as well: a hair below, so that rounding does not decide
        found = u.background(**change).far(u.zero_lag)[0] < far * (1 - 1e-9) if len(u.zero_lag) else np.zeros(0)
        out.append(found.sum() - far * u.livetime)
    return float(np.sum(out)), float(np.std(out) * len(out) ** 0.5)


@pytest.mark.parametrize("kind", ["rings", "lines"])
def test_the_significance_of_the_loudest_is_uniform(kind, request):
    assert ks(significance(request.getfixturevalue(kind))) > 0.01


@pytest.mark.parametrize("kind", ["rings", "lines"])
@pytest.mark.parametrize("expected", [0.25, 1, 3])
def test_as_many_events_as_the_rate_says(kind, expected, request):
    universes = request.getfixturevalue(kind)
    difference, error = excess(universes, expected)
    assert abs(difference) < 3 * error
    # the scatter is that of Poisson counts, or a little less
    assert 0.75 < error / (expected * len(universes)) ** 0.5 < 1.1


@pytest.mark.parametrize("wrong", [0.8, 1.2])
def test_a_livetime_wrong_by_a_fifth_is_seen(rings, wrong):
    assert ks(significance(rings, wrong)) < 0.01
    for expected in (1, 3):
        difference, error = excess(rings, expected, wrong=wrong)
        assert abs(difference) > 3 * error


def test_with_few_slides_every_step_has_its_probability(rings):
    """Ten slides: the smallest significance is 0.095, and with nb in the place of 1 + nb it would be 0 in a tenth of the universes."""
    ten = [u.every(5) for u in rings]
    high, low = significance(ten), without_one(ten)
    assert high.min() == pytest.approx(-np.expm1(-0.1), rel=0.02) and low.min() == 0
    assert ks(high - np.random.default_rng(5).random(NUM) * (high - low)) > 0.01
    assert ks(low) < 0.01 and np.mean(low == 0) > 0.05


def test_the_livetime_of_slides_without_events_counts(rings):
    """Reference 2.11 forgets it."""
    loud = [u.above(1.0) for u in rings]
    assert 0.2 < np.mean([len(s) == 0 for u in loud for s in u.slides]) < 0.5
    for expected in (0.25, 0.5):
        difference, error = excess(loud, expected)
        assert abs(difference) < 3 * error
        difference, error = excess(loud, expected, forget_empty=True)
        assert abs(difference) > 3 * error


def test_slides_that_share_their_coincidences_agree():
    """Windows of 2 s in steps of 0.5 s: the same two triggers meet in up to seven slides, in the zero lag too."""
    shared = [universe(i, ring=True, kernel=4, step=0.5, share=0.055) for i in range(300)]
    assert ks(significance(shared)) > 0.01
    for expected in (0.25, 1, 3):
        difference, error = excess(shared, expected)
        assert abs(difference) < 3 * error


def test_glitches_of_one_detector_make_the_significance_cautious():
    """An event that one detector makes alone is in every lag (Was et al. 2010): its count hardly scatters, and is still right.

    The zero lag has the background's loudest events, so its loudest is never rarer than it should be, and rarely louder.
    """
    either = [universe(i, ring=True, engine=Either(), share=0.02) for i in range(300)]
    values = significance(either)
    assert ks(values) < 0.01
    for level in (0.05, 0.1, 0.2):
        assert np.mean(values <= level) < level + 3 * (level / len(values)) ** 0.5
    assert values.max() < 0.8
    for expected in (0.25, 1, 3):
        difference, error = excess(either, expected)
        assert abs(difference) < 3 * error
    assert error < 0.5 * (expected * len(either)) ** 0.5
