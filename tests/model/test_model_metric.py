"""Validation metric against areas worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aframe_assets.config import Training
from aframe_assets.inference.slides import run_slides
from aframe_assets.inference.whitened import WhitenedChunk
from aframe_assets.model.metric import HOUR, Injected, Pooling, efficiencies, max_pool, partial_auroc, threshold_at
from aframe_assets.model.validation import Scores, ValidationSet, score, score_noise, slide_shifts
from aframe_assets.segments.geometry import SlideGeometry
from aframe_assets.strain.background_file import parse_background_name, read_background


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


def test_the_drawn_roc_is_the_curve_whose_area_is_the_metric():
    rng = np.random.default_rng(3)
    background, foreground = rng.normal(size=(5, 4000)), rng.normal(1.5, 1, 3000)
    training = Training(valid_stride=0.5, pool_length=1)
    fpr, tpr = Scores(list(background), foreground, None).roc(training)
    assert len(fpr) == len(tpr) <= 200 and fpr == sorted(fpr) and tpr == sorted(tpr) and fpr[-1] == 1
    pooled = np.concatenate([max_pool(b, 2) for b in background])
    assert np.trapezoid([0, *tpr], [0, *fpr]) == pytest.approx(partial_auroc(pooled, foreground, 1.0), abs=0.02)


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


def test_scores_are_pooled_by_the_largest():
    assert max_pool(np.array([1, 5, 2, 4, 3]), 2).tolist() == [5, 4, 3]


def walked(statistic, half):
    """Events of one series by the words of reference 2.11, step 3."""
    events, i = [], int(np.argmax(statistic[:half]))
    while i < len(statistic):
        ahead = statistic[i + 1 : i + 1 + half]
        if len(ahead) and ahead.max() > statistic[i]:
            i += 1 + int(np.argmax(ahead))
        else:
            events.append(i)
            i += half + 1
    return events


def test_background_becomes_events_as_in_a_search():
    rng = np.random.default_rng(3)
    slides = [rng.normal(size=n) for n in (400, 57, 3, 1)]
    pooling = Pooling(rate=4.0, boxcar=7, window=8.0)
    events, livetime = pooling.events(slides)
    expected = []
    for scores in slides[:2]:
        integrated = np.convolve(scores, np.ones(7) / 7, "valid")
        expected += [integrated[i] for i in walked(np.concatenate([np.full(6, -np.inf), integrated]), 16) - np.array(6)]
    assert sorted(events) == pytest.approx(sorted(expected)) and len(events) > 12
    # outputs that look back on seven scores of their own slide; the short slides have none
    assert livetime == (394 + 51) / 4


def test_a_signal_is_found_by_the_event_of_its_own_windows():
    quiet = np.zeros(100)
    quiet[72] = 50.0
    pooling = Pooling(rate=2.0, boxcar=4, window=8.0)
    scores = np.array([[8.0, 8.0, 8.0], [1.0, 1.0, 1.0], [8.0, 8.0, 8.0]])
    found = pooling.recovered([quiet, quiet], Injected(np.array([0, 1, 1]), np.array([20, 65, 92]), scores, np.ones(3)))
    # three of four scores that are averaged see the merger
    assert found[0] == pytest.approx(6.0) and found[2] == pytest.approx(6.0)
    # the loudest output of the second is that of the noise shortly after: no event of its own
    assert found[1] == -np.inf


def test_efficiency_at_a_false_alarm_rate():
    events = np.arange(100.0)
    # 10 hours at one an hour: ten may be as loud
    least = threshold_at(events, 10 * HOUR, 1 / HOUR)
    assert least == 89.0 and (events > least).sum() == 10
    # nothing is rarer than once in the livetime; more alarms than events: everything is found
    assert threshold_at(events, 10 * HOUR, 1e-9) == 99.0 and threshold_at(events, HOUR, 1.0) == -np.inf
    snr = np.array([4.5, 5.0, 6.0, 7.9, 30.0])
    found = np.array([False, True, True, True, True])
    assert efficiencies(found, snr, [5, 6, 8, 10]) == {
        "valid_efficiency": 0.8,
        "valid_efficiency_snr_5_6": 1.0,
        "valid_efficiency_snr_6_8": 1.0,
        "valid_efficiency_snr_10_up": 1.0,
    }


def test_metrics_of_scores(tiny_config):
    training = tiny_config(valid_stride=0.5, pool_length=8, valid_far_per_hour=7).model.training
    rng = np.random.default_rng(0)
    background = [rng.normal(size=1200), rng.normal(size=2400)]
    events, livetime = Pooling.of(training).events(background)
    assert livetime == (1197 + 2397) / 2
    # 0.499 hours: three events may be as loud as a signal
    least = np.sort(events)[-4]
    loud, faint = np.full(3, 1.5 * least + 2), np.full(3, -9.0)
    injected = Injected(np.array([0, 1]), np.array([600, 700]), np.stack([loud, faint]), np.array([12.0, 7.0]))
    metrics = Scores(background, np.array([9.0, -9.0]), injected).metrics(training)
    assert metrics["valid_efficiency"] == 0.5 and metrics["valid_background_max"] == events.max()
    assert metrics["valid_efficiency_snr_12_15"] == 1 and metrics["valid_efficiency_snr_6_8"] == 0
    assert "valid_efficiency_snr_4_6" not in metrics and metrics["valid_auroc"] > 0.7
    injected.scores[1, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 6 validation scores are not finite"):
        Scores(background, np.array([9.0, -9.0]), injected).metrics(training)


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
    numbers, x = next(iter(data.background(4)))
    stream = data._strain[0]
    assert numbers.tolist() == [0, 1, 2, 3] and data.slides[0].shifts == (0, 512)
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


def test_injected_windows_hold_one_signal_that_stays_where_it_is_in_time(tiny_config, tiny_data):
    data = ValidationSet(tiny_config(valid_stride=0.25), tiny_data.background["validation"], tiny_data.validation)
    seen, places = [], []
    for rows, x in data.injected(16):
        assert x.shape[1:] == (4, 2, 512)
        for row, windows in zip(rows.tolist(), x, strict=True):
            slide, first = data.slides[data._slide[row]], int(data._first[row])
            noise = data._windows(slide, first + torch.arange(4))[0]
            signal = (windows - noise)[:, 0]
            # a sine-Gaussian of 0.05 s is 512 samples of power around its merger, which moves by a stride from window to window
            # the last window may have lost half of it over its edge
            centre = [float((s.square() * torch.arange(512)).sum() / s.square().sum()) for s in signal[1:3]]
            assert centre[0] - centre[1] == pytest.approx(128, abs=3)
            places.append(centre[0])
            assert 256 - 5 < centre[0] < 384 + 5
            # every window lies so that all outputs that see the signal count
            assert first >= data.pooling.boxcar - 1 and first + 4 + data.pooling.boxcar - 1 <= slide.windows
        seen += rows.tolist()
    assert seen == list(range(12)) and len(set(data._first.tolist())) == 12
    # spread over the stride
    assert max(places) - min(places) > 90


def test_slides_too_short_for_a_signal_are_told(tiny_config, tiny_data):
    with pytest.raises(ValueError, match=r"at most 4 windows; expected more than 8.*raise model\.training\.valid_livetime"):
        ValidationSet(tiny_config(valid_livetime=2, valid_stride=0.5), tiny_data.background["validation"], tiny_data.validation)


class Loudest(torch.nn.Module):
    """A network without weights: the largest sample of a window."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs().amax((1, 2))[:, None]

    def score_windows(self, windows: np.ndarray) -> np.ndarray:
        return np.abs(windows).max((1, 2))


def test_background_events_are_those_that_a_search_of_the_same_slide_has(tiny_config, tiny_data):
    path = tiny_data.background["validation"][0]
    start, stop = parse_background_name(path)
    config = tiny_config(valid_stride=0.5, valid_livetime=1000, pool_length=2, integration_length=1.0)
    settings = {"inference_rate": 2, "integration_window_length": 1.0, "cluster_window_length": 2, "batch_size": 16, "zero_lag": False}
    config = config.model_copy(update={"inference": config.inference.model_copy(update=settings)})
    assert config.psd_block == config.model.training.psd_block
    data = ValidationSet(config, [path], tiny_data.validation)
    strain = read_background(path, config.ifos).strain
    chunk = WhitenedChunk.of([strain[i] for i in config.ifos], start, config.sample_rate, config.conditioning, block=config.psd_block)
    for number in (0, 2):
        shift = slide_shifts(number, 2)
        geometry = SlideGeometry.of(config, start, stop)
        found = run_slides(chunk, geometry, Loudest(), config.inference, [shift]).background
        events, livetime = data.pooling.events([score_noise(Loudest(), data, 16)[number]])
        assert len(events) > 10 and sorted(events) == pytest.approx(sorted(found.detection_statistic), abs=1e-4)
        assert livetime == found.Tb


def test_a_signal_is_recovered_as_from_the_whole_slide(tiny_config, tiny_data):
    data = ValidationSet(tiny_config(valid_stride=0.5), tiny_data.background["validation"], tiny_data.validation)
    scores, pooling = score(Loudest(), data, 16), data.pooling
    recovered = pooling.recovered(scores.background, scores.injected)
    for i, (slide, first) in enumerate(zip(scores.injected.slide, scores.injected.first, strict=True)):
        whole = scores.background[slide].astype(float)
        whole[first : first + 2] = scores.injected.scores[i]
        integrated = np.convolve(whole, np.ones(pooling.boxcar) / pooling.boxcar, "valid")
        near = integrated[first - pooling.boxcar + 1 : first + 2]
        # these signals are louder than all noise
        assert recovered[i] == pytest.approx(near.max()) and near.max() == integrated.max()
