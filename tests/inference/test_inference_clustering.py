"""Integration and clustering of many slides against literal references."""

from __future__ import annotations

import numpy as np
import pytest

from aframe_assets.inference.clustering import cluster, cluster_slides, detection_statistic, integrate


def literal_clustering(y, rate, window_length):
    """Reference 2.11, step 3, word for word."""
    half = int(rate * window_length) // 2
    i, events = int(np.argmax(y[:half])), []
    while i < len(y):
        following = y[i + 1 : i + 1 + half]
        if len(following) and following.max() > y[i]:
            i += int(np.argmax(following)) + 1
        else:
            if y[i] > -np.inf:
                events.append(i)
            i += half + 1
    return events


def hard_series(size: int, rng: np.random.Generator) -> np.ndarray:
    """Series on which a walk is easily wrong: ties, slopes, gaps, what a cascade leaves of a slide."""
    smooth = np.convolve(rng.standard_normal(size + 6), np.ones(7) / 7, "valid")
    islands = np.convolve(rng.random(size + 20) < 0.02, np.ones(21), "valid") > 0
    return np.stack(
        [
            rng.standard_normal(size),
            np.round(rng.standard_normal(size), 1),
            np.round(smooth, 1),
            np.zeros(size),
            np.cumsum(rng.standard_normal(size)),
            np.arange(size) * 1.0,
            -np.arange(size) * 1.0,
            np.where(rng.random(size) < 0.6, -np.inf, rng.standard_normal(size)),
            np.where(islands, smooth, -np.inf),
            np.where(islands, np.round(smooth, 1), -np.inf),
            np.full(size, -np.inf),
        ]
    )


@pytest.mark.parametrize("rate,length", [(4, 8), (4, 1), (16, 8), (1, 3)])
@pytest.mark.parametrize("size", [1, 5, 40, 3001])
def test_clustering_is_the_walk_of_the_reference(rate, length, size):
    y = hard_series(size, np.random.default_rng(size))
    slide, sample = cluster_slides(y, rate, length)
    assert sorted(zip(slide, sample, strict=True)) == list(zip(slide, sample, strict=True))
    for i, row in enumerate(y):
        assert sample[slide == i].tolist() == literal_clustering(row, rate, length)
        assert cluster(row, rate, length).tolist() == literal_clustering(row, rate, length)


@pytest.mark.parametrize("seed", range(20))
def test_every_small_series_clusters_as_the_reference_says(seed):
    rng = np.random.default_rng(seed)
    size, length = int(rng.integers(1, 30)), float(rng.integers(2, 12))
    y = np.where(rng.random((300, size)) < 0.2, -np.inf, rng.integers(0, 5, (300, size)).astype(float))
    slide, sample = cluster_slides(y, 1.0, length)
    for i, row in enumerate(y):
        assert sample[slide == i].tolist() == literal_clustering(row, 1.0, length)


def test_masked_outputs_never_give_events():
    y = np.full((1, 400), 1.0)
    y[:, 100:200] = np.nan
    y[:, 150] = -np.inf
    _, sample = cluster_slides(y, 4, 8)
    assert len(sample) and not ((sample >= 100) & (sample < 200)).any()


@pytest.mark.parametrize("shape", [(0, 10), (3, 0)])
def test_nothing_gives_no_events(shape):
    slide, sample = cluster_slides(np.empty(shape), 4, 8)
    assert len(slide) == len(sample) == 0


def test_a_window_below_two_samples_is_refused():
    with pytest.raises(ValueError, match="expected at least 2"):
        cluster(np.zeros(10), 4, 0.25)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 13, 25, 64])
def test_boxcar_is_the_causal_mean(size):
    x = np.random.default_rng(size).standard_normal((5, 50))
    expected = [[row[max(0, i - size + 1) : i + 1].sum() / size for i in range(50)] for row in x]
    assert np.allclose(integrate(x, size), expected, rtol=0, atol=1e-14)
    assert np.array_equal(integrate(x, size)[3], integrate(x[3], size))


@pytest.mark.parametrize("size", [2, 7, 25])
def test_equal_scores_give_equal_outputs_wherever_they_lie(size):
    rng = np.random.default_rng(1)
    piece = rng.standard_normal(size) * 10.0 ** rng.integers(-6, 6, size)
    long = rng.standard_normal((3, 200_000))
    long[0, 1000 : 1000 + size] = long[1, 3 : 3 + size] = long[2, -size:] = piece
    out = integrate(long, size)
    alone = integrate(piece, size)[-1]
    assert out[0, 999 + size] == out[1, 2 + size] == out[2, -1] == alone
    # also in a part of the series that begins a boxcar earlier
    assert np.array_equal(integrate(long[:, 500:900], size)[:, size - 1 :], out[:, 499 + size : 900])


def test_an_output_that_looks_back_on_a_missing_score_does_not_count():
    scores = np.array([[1.0, 2.0, np.nan, 3.0, 4.0, 5.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    valid = np.array([True, True, True, True, True, False])
    assert detection_statistic(scores, valid, 2).tolist() == [[0.5, 1.5, -np.inf, -np.inf, 3.5, -np.inf], [0.5, 1, 1, 1, 1, -np.inf]]


def two_sided_maxima(y: np.ndarray, half: int) -> list[int]:
    """Samples larger than the `half` before and not smaller than the `half` after."""
    out = []
    for i, value in enumerate(y):
        before, after = y[max(0, i - half) : i], y[i + 1 : i + 1 + half]
        if value > -np.inf and (before < value).all() and (after <= value).all():
            out.append(i)
    return out


@pytest.mark.parametrize("rate,length", [(4, 8), (4, 1), (1, 3)])
@pytest.mark.parametrize("size", [1, 5, 40, 2001])
def test_nothing_unknown_changes_nothing(rate, length, size):
    y = hard_series(size, np.random.default_rng(size))
    plain = cluster_slides(y, rate, length)
    assert all(map(np.array_equal, plain, cluster_slides(y, rate, length, np.zeros(y.shape, bool))))


@pytest.mark.parametrize("seed", range(8))
def test_events_beside_unknown_values_are_events_whatever_these_are(seed):
    rng = np.random.default_rng(seed)
    size, half = 60, int(rng.integers(1, 6))
    y = np.where(rng.random((20, size)) < 0.1, -np.inf, rng.integers(0, 9, (20, size)).astype(float))
    unknown = np.repeat(rng.random((20, size // 6)) < 0.3, 6, axis=1)
    slide, sample = cluster_slides(y, 1.0, 2.0 * half, unknown)
    for i, row in enumerate(y):
        found = set(sample[slide == i].tolist())
        # the extremes and draws in between stand for all values that could be there
        possible = [np.where(unknown[i], value, row) for value in (-np.inf, 0.0, 4.0, 100.0)]
        possible += [np.where(unknown[i], rng.integers(0, 12, size), row) for _ in range(60)]
        always = set.intersection(*(set(literal_clustering(x, 1.0, 2.0 * half)) for x in possible))
        assert found <= always - set(np.flatnonzero(unknown[i]).tolist())
        known = {k for k in two_sided_maxima(row, half) if not unknown[i, max(0, k - half) : k + half + 1].any()}
        assert known <= found
    assert len(sample) > 20


def test_values_that_are_unknown_are_not_read():
    rng = np.random.default_rng(5)
    y, unknown = rng.standard_normal((4, 500)), rng.random((4, 500)) < 0.02
    expected = cluster_slides(y, 4, 2, unknown)
    for value in (np.nan, np.inf, -np.inf):
        assert all(map(np.array_equal, expected, cluster_slides(np.where(unknown, value, y), 4, 2, unknown)))
    assert 0 < len(expected[0]) < len(cluster_slides(y, 4, 2)[0])
