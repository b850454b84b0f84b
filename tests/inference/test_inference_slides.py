"""Slides, injections and livetime of a chunk, against brute force and closed forms, with engines whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from aframe_assets.config import Conditioning, Inference
from aframe_assets.inference.clustering import cluster, integrate
from aframe_assets.inference.events import recover, recovered
from aframe_assets.inference.slides import run_slides
from aframe_assets.inference.whitened import WhitenedChunk
from aframe_assets.inference.windows import SlidWindows, needed
from aframe_assets.segments.geometry import SlideGeometry, shift_vectors
from aframe_assets.strain.conditioning import Whitener
from aframe_assets.waveforms.inject import add_signals
from aframe_assets.waveforms.ledger import SIGNAL, EventSet, InterferometerResponseSet

FS, GPS = 512, 1_240_000_000.0
CONDITIONING = Conditioning(psd_length=4, fftlength=1, fduration=1, kernel_length=1.5, highpass=20)
DURATION, RIGHT_PAD = 4.0, 1.0


class Energy:
    """Loudest of the detectors' quietest: the smaller of the peaks, so that a signal counts only when both see it."""

    def score_windows(self, windows: np.ndarray) -> np.ndarray:
        return np.abs(windows).max(axis=2).min(axis=1)


class Mean:
    """Something that depends on every sample."""

    def score_windows(self, windows: np.ndarray) -> np.ndarray:
        weights = np.linspace(0.5, 1.5, windows.shape[2])
        return ((windows**2) * weights).mean(axis=(1, 2)).astype(np.float32)


def noise(seconds: float, seed: int = 0, ifos: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ifos, int(seconds * FS))) * 1e-22


def place(size: int, starts: np.ndarray, waveforms: np.ndarray) -> np.ndarray:
    return add_signals(np.zeros(size), 0, 1.0, waveforms, starts, 0)


def geometry(seconds: float, *, ring: bool = False, mergers=()) -> SlideGeometry:
    settle = 0.0 if ring else CONDITIONING.psd_length
    return SlideGeometry(GPS, seconds, settle, 1.0, 1.5, 4.0, 1.5, ring, tuple(mergers))


def whitened(strain: np.ndarray, *, ring: bool = False) -> WhitenedChunk:
    return WhitenedChunk.of(list(strain), GPS, FS, CONDITIONING, block=8, psd_source="segment" if ring else "preceding")


def settings(**change) -> Inference:
    values = {
        "inference_rate": 4,
        "batch_size": 32,
        "integration_window_length": 1.5,
        "cluster_window_length": 8,
        "shifts": [0, 1],
    } | change
    return Inference(**values)


def burst(amplitude: float = 1e-20) -> np.ndarray:
    """A 100 Hz burst at the coalescence sample, the same in two detectors, zero outside half a second of it."""
    t = np.arange(int(DURATION * FS)) / FS - (DURATION - RIGHT_PAD)
    wave = amplitude * np.exp(-((t / 0.02) ** 2)) * np.sin(2 * np.pi * 100 * t)
    return np.where(np.abs(t) < 0.5, wave, 0.0)


def response(times, shift, amplitudes=None) -> InterferometerResponseSet:
    n = len(times)
    wave = np.stack([burst(a) for a in (amplitudes if amplitudes is not None else [1e-20] * n)])
    return InterferometerResponseSet(
        **{p: np.ones(n) for p in SIGNAL},
        snr=np.full(n, 20.0),
        ifo_snrs=np.full((n, 2), 14.0),
        injection_time=np.asarray(times, float),
        shift=np.tile(np.asarray(shift, float), (n, 1)),
        waveforms={"h1": wave, "l1": wave},
        sample_rate=FS,
        duration=DURATION,
        right_pad=RIGHT_PAD,
        num_injections=n + 3,
        ifos=["H1", "L1"],
    )


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.0, 3.0)])
def test_a_signal_in_the_strain_is_found_at_its_time(ring, shift):
    strain, merger = noise(60), GPS + 30.3
    for c, s in enumerate(shift):
        start = int((merger + s - GPS) * FS) - int((DURATION - RIGHT_PAD) * FS)
        strain[c] += place(strain.shape[1], np.array([start]), burst()[None])
    chunk, g = whitened(strain, ring=ring), geometry(60, ring=ring)
    out = run_slides(chunk, g, Energy(), settings(), [(0.0, 3.0), (0.0, 5.0)])
    events = out.zero_lag if not any(shift) else out.background.select_shift(shift)
    assert abs(events.detection_time[events.detection_statistic.argmax()] - merger) <= 1 / 4
    other = out.background.select_shift((0.0, 5.0))
    assert other.detection_statistic.max() < events.detection_statistic.max() / 2


@pytest.mark.parametrize("ring", [False, True])
def test_injections_are_found_at_their_times_in_their_own_slide(tmp_path, ring):
    g, shifts = geometry(90, ring=ring), shift_vectors(3, [0, 2])
    times = {s: g.injection_times(s, step=12, buffer=2, jitter=0.1, rng=np.random.default_rng(1)) for s in shifts[:2]}
    sets = [response(t, s) for s, t in times.items()]
    path = InterferometerResponseSet.concatenate(sets).write(tmp_path / "waveforms.hdf5")
    out = run_slides(whitened(noise(90), ring=ring), g, Energy(), settings(slide_mode="ring" if ring else "linear"), shifts, path)
    fg = out.foreground
    assert len(fg) == sum(map(len, times.values())) >= 6
    assert np.all(np.abs(fg.detection_time - fg.injection_time) <= 1 / 4)
    assert fg.detection_statistic.min() > 2 * out.background.detection_statistic.max()
    assert fg.num_injections == len(fg) + 6 and fg.Tb == sum(g.livetime(s) for s in shifts[:2])
    assert {tuple(s) for s in fg.shift} == set(shifts[:2])
    assert len(out.merger_residuals) and np.all(np.abs(out.merger_residuals) < 0.06)


def test_foreground_equals_brute_force(tmp_path):
    """Signals put into the strain, whitened with the noise's PSD, every window evaluated."""
    strain, g, shift = noise(60, 3), geometry(60), (0.0, 2.0)
    times = np.array([GPS + 15.13, GPS + 17.02, GPS + 40.5])
    path = response(times, shift, [3e-21, 2e-21, 4e-22]).write(tmp_path / "w.hdf5")
    chunk, engine, config = whitened(strain), Mean(), settings(recovery_window=2)
    out = run_slides(chunk, g, engine, config, [shift], path)

    whitener, block, crop, settle = Whitener(CONDITIONING, FS), 8 * FS, FS // 2, 4 * FS
    streams = []
    for c in range(2):
        loud = strain[c].copy()
        starts = np.round((times + shift[c] - GPS) * FS).astype(int) - int((DURATION - RIGHT_PAD) * FS)
        loud += place(len(loud), starts, np.stack([burst(a) for a in (3e-21, 2e-21, 4e-22)]))
        parts = []
        for b, psd in enumerate(chunk.psds[c]):
            first = settle + b * block
            part = loud[first : first + block + 2 * crop]
            parts.append(whitener.whiten(torch.from_numpy(part)[None], psd[None])[0].numpy())
        streams.append(np.concatenate(parts))
    n = g.num_windows(shift)
    windows = np.stack([[s[int(o * FS) + k * 128 :][:768] for s, o in zip(streams, shift, strict=True)] for k in range(n)])
    statistic = np.where(g.valid(shift), integrate(engine.score_windows(windows), g.boxcar), -np.inf)
    events = cluster(statistic, 4, 8)
    expected, when = recovered(times, g.detection_times(shift)[events], statistic[events], 2)
    assert np.allclose(out.foreground.detection_statistic, expected, rtol=1e-4)
    assert np.array_equal(out.foreground.detection_time, when, equal_nan=True)
    assert out.windows["foreground"] < n


def test_background_is_reused_where_no_signal_reaches(tmp_path):
    """With signals of zeros nothing is evaluated again, and the foreground is the background."""
    g, shift = geometry(60), (0.0, 1.0)
    path = response([GPS + 30.0], shift, [0.0]).write(tmp_path / "w.hdf5")
    out = run_slides(whitened(noise(60)), g, Mean(), settings(recovery_window=4), [shift], path)
    assert out.windows["foreground"] == 0
    assert out.foreground.detection_statistic[0] in out.background.detection_statistic


def test_signals_that_overlap_and_straddle_blocks_add():
    strain = noise(40, 4)
    chunk = whitened(strain)
    starts = np.array([[100, 5000], [900, 6100], [20_000, -200]])
    waves = np.stack([np.stack([burst(a), burst(-a)]) for a in (1e-20, 2e-20, 3e-20)])
    got = chunk.with_signals(starts, waves)
    for c in range(2):
        signal = place(strain.shape[1], starts[:, c], waves[:, c])
        for b, psd in enumerate(chunk.psds[c]):
            first = 4 * FS + b * 8 * FS
            part = (strain[c] + signal)[first : first + 9 * FS]
            expected = chunk.whitener.whiten(torch.from_numpy(part)[None], psd[None])[0].numpy()
            assert np.allclose(got[c][b * 8 * FS :][: len(expected)], expected, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("seconds,shifts", [(60.0, shift_vectors(4, [0, 1])), (33.7, shift_vectors(3, [0, 2.5])), (11.75, [(0.0, 1.0)])])
def test_linear_livetime_is_the_closed_form(seconds, shifts):
    g = geometry(seconds)
    out = run_slides(whitened(noise(seconds)), g, Mean(), settings(), shifts)
    closed = [max(0, math.floor((seconds - 4 - 1 - max(s) - 1.5) * 4 + 1e-6) + 1 - 6) / 4 for s in shifts]
    assert out.background.Tb == sum(closed) == out.expected["background"]
    assert out.zero_lag.Tb == max(0, math.floor((seconds - 6.5) * 4 + 1e-6) + 1 - 6) / 4 == out.expected["zero_lag"]


def test_ring_livetime_leaves_out_seams_and_mergers():
    """Each detector loses the outputs whose 3 s of data cross its seam or touch the merger, at its own frame time."""
    seconds, merger = 32.0, GPS + 16.2
    g, shifts = geometry(seconds, ring=True, mergers=[merger]), shift_vectors(5, [0, 2])
    out = run_slides(whitened(noise(seconds), ring=True), g, Mean(), settings(slide_mode="ring"), shifts)
    total = 0
    for shift in shifts:
        for k in range(31 * 4):
            good = k / 4 - 1.5 >= 0
            for s in shift:
                own = (k / 4 - 1.5 + s) % 31.0
                good &= own + 3.0 <= 31.0
                good &= merger < GPS + 0.5 + own - 0.5 or merger > GPS + 0.5 + own + 3.0 + 0.5
            total += good
    assert out.background.Tb == total / 4 == out.expected["background"] > 0
    assert out.zero_lag.Tb == (31 * 4 - 6 - 5) / 4  # the merger stays in zero lag; first 6 outputs and 5 at the seam do not count


def test_excluded_merger_is_in_zero_lag_only():
    strain, merger = noise(32, 7), GPS + 16.0
    start = int(16 * FS) - int((DURATION - RIGHT_PAD) * FS)
    for x in strain:
        x += place(len(x), np.array([start]), burst()[None])
    g = geometry(32, ring=True, mergers=[merger])
    out = run_slides(
        whitened(strain, ring=True), g, Energy(), settings(slide_mode="ring", cluster_window_length=4), shift_vectors(10, [0, 2])
    )
    assert out.zero_lag.detection_statistic.max() > 2 * out.background.detection_statistic.max()


def test_a_slide_without_output_adds_nothing_and_one_without_events_keeps_its_livetime():
    g = geometry(20)
    out = run_slides(whitened(noise(20)), g, Mean(), settings(), [(0.0, 1.0), (0.0, 50.0)])
    assert out.background.Tb == g.livetime((0.0, 1.0))
    assert EventSet.concatenate([EventSet(Tb=100), EventSet(Tb=50)]).Tb == 150


def test_scores_that_are_not_numbers_are_not_livetime():
    class Broken(Mean):
        def score_windows(self, windows):
            return np.full(len(windows), np.nan, np.float32)

    out = run_slides(whitened(noise(30)), geometry(30), Broken(), settings(), [(0.0, 1.0)])
    assert out.background.Tb == 0 < out.expected["background"] and len(out.background) == 0


def test_a_chunk_alone_gives_the_same_bits():
    one, two = (run_slides(whitened(noise(60)), geometry(60), Mean(), settings(), shift_vectors(3, [0, 1])) for _ in range(2))
    assert np.array_equal(one.background.detection_statistic, two.background.detection_statistic)


def test_three_detectors():
    g = geometry(40)
    chunk = WhitenedChunk.of(list(noise(40, ifos=3)), GPS, FS, CONDITIONING, block=8)
    out = run_slides(chunk, g, Mean(), settings(shifts=[0, 1, 2]), shift_vectors(2, [0, 1, 2]))
    assert out.background.shift.shape[1] == 3 and out.background.Tb == g.livetime((0, 1, 2)) + g.livetime((0, 2, 4))


def test_geometry_of_other_settings_is_refused():
    with pytest.raises(ValueError, match="conditioning and inference settings"):
        run_slides(whitened(noise(30)), replace(geometry(30), settle=8.0), Mean(), settings(), [(0.0, 1.0)])


def test_strain_with_nan_names_the_time():
    strain = noise(30)
    strain[1, 20 * FS] = np.nan
    with pytest.raises(ValueError, match=rf"detector 1 is not finite at GPS {GPS + 20:.6f}"):
        whitened(strain)


def test_detection_time_of_both_conventions():
    """Reference 4.2: t0 = 0, PSD 10 s, fduration 1 s, rate 100 Hz, integration 0.5 s."""
    # upstream's first kernel is the one whose strain, half of fduration longer than it, ends at t0 + 10 s + 1 / rate
    g = SlideGeometry(0.0, 100.0, 10.01 - 1.0 - 1.5, 1.0, 1.5, 100.0, 0.5)
    assert g.detection_times((0, 0))[0] == pytest.approx(9.01, abs=1e-9)
    assert g.detection_times((0, 0), "upstream_v1")[0] == pytest.approx(9.0, abs=1e-9)


def test_recovery_table():
    """Reference 4.2, with a window that holds one event; then the loudest of several, and none."""
    times, statistic = np.arange(10.0), np.arange(5.0, 15.0)
    stats, when = recovered(np.array([1.4, 8.6, 3.1]), times, statistic, 0.5)
    assert stats.tolist() == [6, 14, 8] and when.tolist() == [1, 9, 3]
    stats, when = recovered(np.array([1.4]), times, statistic, 1.0)
    assert stats.tolist() == [7] and when.tolist() == [2]
    stats, when = recovered(np.array([30.0]), times, statistic, 1.0)
    assert stats[0] == -np.inf and np.isnan(when[0])
    assert recover(np.array([2.0]), np.empty(0), np.empty(0), 1.0).tolist() == [-1]


def test_needed_windows_are_those_a_valid_output_looks_back_on():
    valid = np.zeros(20, bool)
    valid[[3, 12]] = True
    assert np.flatnonzero(needed(valid, 3)).tolist() == [1, 2, 3, 10, 11, 12]


def test_windows_never_cross_a_seam():
    streams = [np.arange(100, dtype=np.float32)] * 2
    slid = SlidWindows(streams, (0, 30), 10, 100)
    frame = np.arange(0, 100, 10)
    assert slid.inside(frame).tolist() == [True] * 10
    assert slid.inside(frame + 5).tolist() == [True, True, True, True, True, True, False, True, True, False]
    assert np.isnan(slid.score(Mean(), np.array([65]), 4)).all()
