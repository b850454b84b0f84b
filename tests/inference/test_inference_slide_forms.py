"""A whole search of a chunk with networks of frames and of maps, event by event against the same network window by window."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from frame_networks import Windowed, frame_engine

from aframe_assets.config import Conditioning, Inference
from aframe_assets.inference.injected import Foreground, overlapping
from aframe_assets.inference.merger_time import Calibration, merger_time
from aframe_assets.inference.scorers import slide_scorer
from aframe_assets.inference.scoring import NOT_KEPT
from aframe_assets.inference.slides import CELL, Pass, _blocks, run_slides, score_zero_lag
from aframe_assets.inference.whitened import WhitenedChunk
from aframe_assets.segments.geometry import SlideGeometry, shift_vectors
from aframe_assets.waveforms.ledger import SIGNAL, InterferometerResponseSet

FS, GPS = 512, 1_240_000_000.0
CONDITIONING = Conditioning(psd_length=4, fftlength=1, fduration=1, kernel_length=1.5, highpass=20)
DURATION, RIGHT_PAD = 4.0, 1.0


@pytest.fixture(scope="module")
def engines():
    made = (("streaming", 2), ("map", 2), ("map", 3), ("wavenet", 2))
    return {(name, ifos): frame_engine(name, ifos=ifos, block=4.0) for name, ifos in made}


def search(engine, *, seconds=50.0, ring=False, ifos=2, vetoes=(), mergers=(), rate=4.0, **settings):
    """Chunk, geometry and settings of white noise."""
    strain = np.random.default_rng(1).standard_normal((ifos, int(seconds * FS))) * 1e-22
    options = {"psd_source": "segment"} if ring else {}
    chunk = WhitenedChunk.of(list(strain), GPS, FS, CONDITIONING, block=8, **options)
    geometry = SlideGeometry(
        GPS, seconds, 0.0 if ring else 4.0, 1.0, 1.5, rate, 1.5, ring, tuple(mergers), 0.5, tuple(vetoes), engine.context / FS
    )
    values = {"inference_rate": rate, "batch_size": 32, "integration_window_length": 1.5, "cluster_window_length": 2}
    values |= {"shifts": list(range(ifos)), "slide_mode": "ring" if ring else "linear", "recovery_window": 1.0}
    return chunk, geometry, Inference(**values | settings)


def signals(geometry, shifts, path, ifos=2):
    """Bursts in some slides, as loud as noise."""
    sets = []
    t = np.arange(int(DURATION * FS)) / FS - (DURATION - RIGHT_PAD)
    wave = np.where(np.abs(t) < 0.4, 2e-21 * np.exp(-((t / 0.05) ** 2)) * np.sin(2 * np.pi * 100 * t), 0.0)
    for shift in shifts:
        times = geometry.injection_times(shift, step=9, buffer=1, jitter=0.1, rng=np.random.default_rng(2))
        n = len(times)
        sets.append(
            InterferometerResponseSet(
                **{p: np.ones(n) for p in SIGNAL},
                snr=np.full(n, 20.0),
                ifo_snrs=np.full((n, ifos), 14.0),
                injection_time=times,
                shift=np.tile(shift, (n, 1)),
                waveforms={i: np.tile(wave, (n, 1)) for i in ("h1", "l1", "v1")[:ifos]},
                sample_rate=FS,
                duration=DURATION,
                right_pad=RIGHT_PAD,
                num_injections=n,
                ifos=["H1", "L1", "V1"][:ifos],
            )
        )
    return InterferometerResponseSet.concatenate(sets).write(path)


def same_events(got, want, scale):
    return (
        got.Tb == want.Tb
        and np.array_equal(got.detection_time, want.detection_time, equal_nan=True)
        and np.array_equal(got.shift, want.shift)
        and np.allclose(got.detection_statistic, want.detection_statistic, rtol=0, atol=1e-4 * scale)
    )


@pytest.mark.parametrize(
    ("name", "ifos", "options"),
    [
        ("streaming", 2, {}),
        ("streaming", 2, {"ring": True}),
        ("streaming", 2, {"rate": 16.0, "seconds": 30.0}),
        ("map", 2, {}),
        ("map", 2, {"ring": True, "mergers": (GPS + 22.0,)}),
        ("map", 3, {"vetoes": (((GPS + 20.0, GPS + 21.0),), (), ((GPS + 30.5, GPS + 30.75),))}),
        ("map", 2, {"memory_gb": 1e-3}),
        ("wavenet", 2, {}),
    ],
)
def test_events_equal_those_of_windows(engines, tmp_path, monkeypatch, name, ifos, options):
    engine = engines[name, ifos]
    if "memory_gb" in options:
        # less than the maps of the chunk
        monkeypatch.setattr("aframe_assets.inference.memory.LEAST", 2e5)
    chunk, geometry, inference = search(engine, ifos=ifos, **options)
    shifts = shift_vectors(4, [0.5 * k for k in range(ifos)])
    path = signals(geometry, shifts[:3:2], tmp_path / "w.hdf5", ifos)
    got = run_slides(chunk, geometry, engine, inference, shifts, path)
    want = run_slides(chunk, geometry, Windowed(engine), inference, shifts, path)
    scale = np.ptp(want.background.detection_statistic)
    assert len(want.background) > 15 and len(want.zero_lag) > 3 and len(want.foreground) >= 3
    assert same_events(got.background, want.background, scale) and same_events(got.zero_lag, want.zero_lag, scale)
    assert same_events(got.foreground, want.foreground, scale)
    assert np.isfinite(want.foreground.detection_statistic).any()
    assert got.windows == want.windows and got.expected == want.expected == {"background": got.background.Tb, "zero_lag": got.zero_lag.Tb}
    assert np.allclose(got.merger_residuals, want.merger_residuals, atol=0.05, equal_nan=True)


@pytest.mark.parametrize("name", ["streaming", "map"])
def test_one_slide_or_many_at_once_and_another_chunk_of_the_same_data(engines, monkeypatch, name):
    engine = engines[name, 2]
    chunk, geometry, inference = search(engine)
    shifts = shift_vectors(5, [0, 1])
    together = run_slides(chunk, geometry, engine, inference, shifts)
    alone = [run_slides(chunk, geometry, engine, inference.model_copy(update={"zero_lag": False}), [s]) for s in shifts]
    monkeypatch.setattr("aframe_assets.inference.memory.LEAST", 1e5)
    small = run_slides(chunk, geometry, engine, inference.model_copy(update={"memory_gb": 1e-3}), shifts)
    scale = np.ptp(together.background.detection_statistic)
    assert same_events(small.background, together.background, scale)
    for shift, one in zip(shifts, alone, strict=True):
        part = together.background.select_shift(shift)
        assert np.array_equal(part.detection_time, one.background.detection_time) and one.zero_lag.Tb == 0
        assert np.allclose(part.detection_statistic, one.background.detection_statistic, rtol=0, atol=1e-4 * scale)
    # a chunk that begins 10.25 s later has the scores of the longer one
    late = replace(chunk, streams=tuple(s[round(10.25 * FS) :] for s in chunk.streams), gps_start=GPS + 10.25)
    part = replace(geometry, gps_start=GPS + 10.25, duration=39.75)
    scores = [Pass(c, g, engine, inference).scores(g, shifts, "background")[0] for c, g in ((chunk, geometry), (late, part))]
    both = np.isfinite(scores[0][:, 41:]) & np.isfinite(scores[1])
    assert both.sum() > 400 and np.abs(scores[0][:, 41:] - scores[1])[both].max() < 1e-4 * scale


def with_signals(run: Pass, kind: type[Foreground], shift: tuple[float, ...], folder):
    """Scores of a slide without signals (1, output), what signals changed, and its scores with them (output,)."""
    path = signals(run.geometry, [shift], folder / "w.hdf5")
    before, valid = run.scores(run.geometry, [shift], "background")
    seen = []
    run.rescored = lambda scores, good, s, change: seen.append((change, Pass.rescored(run, scores, good, s, change))) or seen[-1][1]
    kind(run, path).add([shift], before, valid)
    return before, *seen[0]


@pytest.mark.parametrize("name", ["streaming", "map"])
def test_where_no_signal_reaches_the_foreground_is_the_background(engines, tmp_path, name):
    engine = engines[name, 2]
    chunk, geometry, inference = search(engine)
    shift = (0.0, 1.0)
    run = Pass(chunk, geometry, engine, inference)
    before, change, after = with_signals(run, Foreground, shift, tmp_path)
    assert 20 < change.reached.sum() < 0.9 * len(after)
    assert np.array_equal(after[~change.reached], before[0, ~change.reached], equal_nan=True)
    assert np.abs(after - before[0])[change.reached & np.isfinite(after)].max() > 0.01


class Sharp(Foreground):
    """Signals that are loud up to the last sample that they touch; whitening lets real ones fade there, beyond what context shows."""

    def _inject(self, responses, shift):
        touched, rng = super()._inject(responses, shift)[1], np.random.default_rng(3)
        streams = tuple(stream.copy() for stream in self.run.chunk.streams)
        for stream, stretches in zip(streams, touched, strict=True):
            for a, b in stretches:
                stream[a:b] += 5 * rng.standard_normal(b - a).astype(np.float32)
        return streams, touched


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("name", ["streaming", "map"])
def test_the_foreground_is_the_whole_slide_with_its_signals_scored_from_scratch(engines, tmp_path, name, ring):
    engine = engines[name, 2]
    chunk, geometry, inference = search(engine, seconds=40.0, rate=16.0, ring=ring)
    shift = (0.0, 1.0)
    run = Pass(chunk, geometry, engine, inference)
    before, change, after = with_signals(run, Sharp, shift, tmp_path)
    at, offsets = run.layout, run.offsets([shift])
    whole = slide_scorer(Windowed(engine), change.streams, at, inference).scores(offsets, np.isfinite(before))[0]
    tolerance = 1e-4 * np.ptp(whole[np.isfinite(whole)])
    assert np.isfinite(whole).sum() > 300 and np.allclose(after, whole, rtol=0, atol=tolerance, equal_nan=True)
    # some outputs change that see a signal in nothing but their context
    own = at.own(np.arange(len(after)) * at.stride, offsets[0])
    kernels = np.logical_or.reduce([overlapping(s, at.kernel, touched) for s, touched in zip(own, change.touched, strict=True)])
    assert at.context > 0 and np.any((np.abs(whole - before[0]) > 10 * tolerance) & change.reached & ~kernels)


def test_slides_are_handled_together_as_memory_allows(engines):
    geometry = search(engines["map", 2])[1]
    shifts = shift_vectors(7, [0, 1])
    one = CELL * geometry.num_windows(shifts[0])
    sizes = {n: [len(b) for b in _blocks(geometry, shifts, n * one)] for n in (0, 1, 3.5, 7, 100)}
    assert sizes == {0: [1] * 7, 1: [1] * 7, 3.5: [3, 3, 1], 7: [7], 100: [7]}
    assert [s for b in _blocks(geometry, shifts, 3.5 * one) for s in b] == list(shifts)


class Everything:
    """A chooser that keeps all, or of each slide what is above a threshold."""

    span = 0

    def __init__(self, threshold=-np.inf):
        self.threshold = threshold

    def look(self, scores, wanted):
        return np.where(wanted, scores, -np.inf) > self.threshold

    def keep(self, scores, seen, wanted):
        return self.look(scores, wanted)


def test_a_cascade_that_keeps_all_is_its_second_network(engines, tmp_path):
    joint, filtering = engines["streaming", 2], engines["map", 2]
    context = max(joint.context, filtering.context)
    engine = frame_engine("streaming", block=4.0, context=context / FS)
    engine.filter = frame_engine("map", block=4.0, context=context / FS)
    chunk, geometry, inference = search(engine)
    shifts = shift_vectors(3, [0, 1])
    path = signals(geometry, shifts[:1], tmp_path / "w.hdf5")
    plain = run_slides(chunk, geometry, engine, inference, shifts, path)
    every = run_slides(chunk, geometry, engine, inference, shifts, path, chooser=Everything())
    scale = np.ptp(plain.background.detection_statistic)
    for kind in ("background", "zero_lag", "foreground"):
        assert same_events(getattr(every, kind), getattr(plain, kind), scale), kind
    none = run_slides(chunk, geometry, engine, inference, shifts, path, chooser=Everything(np.inf))
    assert len(none.background) == len(none.zero_lag) == 0 and none.background.Tb == plain.background.Tb
    assert np.all(none.foreground.detection_statistic == -np.inf) and none.windows == dict.fromkeys(plain.windows, 0)
    some = run_slides(chunk, geometry, engine, inference, shifts, chooser=Everything(1.0))
    assert 0 < some.windows["background"] < plain.windows["background"] and some.background.Tb == plain.background.Tb
    assert np.all(some.background.detection_statistic > NOT_KEPT)


@pytest.mark.parametrize("name", ["streaming", "map"])
def test_zero_lag_alone_and_its_merger_times(engines, name):
    engine = engines[name, 2]
    chunk, geometry, inference = search(engine)
    got, want = (score_zero_lag(chunk, geometry, e, inference) for e in (engine, Windowed(engine)))
    assert same_events(got.events, want.events, np.ptp(want.events.detection_statistic)) and got.spans == want.spans
    # the first output whose integrated windows all have their context, and the last one that has it
    first = geometry.right_edges((0, 0))[0] - 1.5 + 1.5 + np.ceil(engine.context / 128) / 4
    assert got.spans[0][0] == first and len(got.spans) == 1
    calibration = Calibration(0.0, 0.1, 10)
    times = [[merger_time(lag.rescorer, t, calibration) for t in want.events.detection_time[:3]] for lag in (got, want)]
    assert times[0] == times[1] and any(t is not None for t in times[0])


def test_an_engine_of_other_windows_is_refused(engines):
    engine = engines["streaming", 2]
    chunk, geometry, inference = search(engine)
    with pytest.raises(ValueError, match=r"the engine sees kernels of 768 samples and \d+ on each side.*model\.architecture\.context"):
        run_slides(chunk, replace(geometry, context=0.0), engine, inference, [(0.0, 1.0)])
