"""Validation metric against areas worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from aframe_assets.model.metric import efficiency, max_pool, partial_auroc
from aframe_assets.model.validation import Scores, ValidationSet, slide_shifts


def trapezoid_area(background, foreground, max_fpr):
    """Partial area of the empirical ROC curve by definition, then McClish's rescaling."""
    thresholds = np.unique(np.concatenate([background, foreground]))[::-1]
    fpr = np.array([0.0] + [(background >= t).mean() for t in thresholds])
    tpr = np.array([0.0] + [(foreground >= t).mean() for t in thresholds])
    grid = np.append(fpr[fpr < max_fpr], max_fpr)
    area = np.trapezoid(np.append(tpr[fpr < max_fpr], np.interp(max_fpr, fpr, tpr)), grid)
    low = max_fpr**2 / 2
    return 0.5 * (1 + (area - low) / (max_fpr - low))


def test_known_areas():
    background = np.arange(1000.0)
    assert partial_auroc(background, np.array([2000.0, 3000.0]), 0.01) == pytest.approx(1.0)
    assert partial_auroc(background, background - 1e9, 0.01) < 0.5
    # half of the signals above everything, half below: TPR is 1/2 everywhere
    half = np.array([5000.0] * 50 + [-1.0] * 50)
    assert partial_auroc(background, half, 1.0) == pytest.approx(0.5)
    area = 0.5 * 0.01
    assert partial_auroc(background, half, 0.01) == pytest.approx(0.5 * (1 + (area - 5e-5) / (0.01 - 5e-5)), rel=1e-4)


@pytest.mark.parametrize("max_fpr", [0.003, 0.05, 0.5])
def test_area_of_random_scores_is_that_of_the_definition(max_fpr):
    rng = np.random.default_rng(0)
    background, foreground = rng.normal(size=3000), rng.normal(1.0, 1.5, size=400)
    assert partial_auroc(background, foreground, max_fpr) == pytest.approx(trapezoid_area(background, foreground, max_fpr), abs=2e-3)


def test_loud_scores_are_told_apart():
    # float32 sigmoids of all of these are 1
    background, foreground = np.linspace(30, 40, 100), np.linspace(50, 60, 10)
    assert partial_auroc(background, foreground, 0.01) == pytest.approx(1.0)
    assert partial_auroc(foreground, background, 1.0) == pytest.approx(0.0)


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        partial_auroc(np.array([0.0, np.nan]), np.array([1.0]), 0.1)
    with pytest.raises(ValueError, match="both kinds"):
        partial_auroc(np.array([]), np.array([1.0]), 0.1)


def test_pooling_and_efficiency():
    assert max_pool(np.array([1, 5, 2, 4, 3]), 2).tolist() == [5, 4, 3]
    background = np.arange(100.0)
    # 2 of 100 may be louder: the threshold is the third loudest
    assert efficiency(background, np.array([96.5, 97.0, 97.5, 200.0]), 0.02) == 0.5
    assert efficiency(background, np.array([98.0, 99.0, 99.5]), 1e-6) == pytest.approx(1 / 3)
    metrics = Scores([background, background], np.array([99.5, 0.0])).metrics(max_fpr=0.01, pool=16)
    assert metrics["valid_efficiency"] == 0.5 and metrics["valid_background_max"] == 99


def test_slides_alternate_and_never_are_simultaneous():
    assert [slide_shifts(i, 2) for i in range(4)] == [(0, 1), (1, 0), (0, 2), (2, 0)]
    for i in range(6):
        assert len(set(slide_shifts(i, 3))) == 3


def test_every_window_is_scored(tiny_config, tiny_data):
    config = tiny_config(valid_livetime=1000, valid_stride=0.5)
    data = ValidationSet(config, tiny_data.background["validation"], tiny_data.validation)
    # one file of 44 s: 39 s whitened; a slide by s has (39 - s - 1) / 0.5 + 1 windows
    expected, index = 0, 0
    while expected < 2000:
        shift = max(slide_shifts(index, 2))
        expected = min(2000, expected + max(0, int((39 - shift - 1) / 0.5) + 1))
        index += 1
        if shift >= 38:
            break
    counted = sum(len(x) for _, x in data.background(7))
    assert counted == data.num_windows == expected
    small = ValidationSet(tiny_config(valid_livetime=10, valid_stride=0.5), tiny_data.background["validation"], tiny_data.validation)
    assert sum(len(x) for _, x in small.background(7)) == 20


def test_slid_windows_are_the_detectors_streams_at_their_shifts(tiny_config, tiny_data):
    data = ValidationSet(tiny_config(valid_stride=0.5), tiny_data.background["validation"], tiny_data.validation)
    number, x = next(iter(data.background(4)))
    stream = data._strain[0]
    assert number == 0 and data.slides[0].shifts == (0, 512)
    for i in range(4):
        assert (x[i, 0] == stream[0, i * 256 : i * 256 + 512]).all() and (x[i, 1] == stream[1, 512 + i * 256 : 1024 + i * 256]).all()


def test_foreground_adds_the_stored_signals(tiny_config, tiny_data):
    data = ValidationSet(tiny_config(valid_views=3), tiny_data.background["validation"], tiny_data.validation)
    seen = []
    for rows, x in data.foreground(16):
        assert x.shape[1:] == (3, 2, 512)
        seen += rows.tolist()
        # sine-Gaussians of 4e-21 stand far above white noise of 1.6e-22, in every view
        assert (x.abs().amax(-1) > 8).float().mean() > 0.8
    assert seen == list(range(12))
