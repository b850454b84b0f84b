"""A search with a filter beside the same search without it: the same events as far as the filter sees them, the same livetime."""

from __future__ import annotations

import numpy as np
import pytest
from frame_networks import frame_bundle

from aframe_assets.config import Conditioning, Inference
from aframe_assets.engine.engine import network_engine
from aframe_assets.inference.cascade import Reach, TriggerChooser
from aframe_assets.inference.slides import run_slides
from aframe_assets.inference.whitened import WhitenedChunk
from aframe_assets.segments.geometry import SlideGeometry, shift_vectors
from aframe_assets.waveforms.ledger import SIGNAL, InterferometerResponseSet

FS, GPS = 512, 1_240_000_000.0
CONDITIONING = Conditioning(psd_length=4, fftlength=1, fduration=1, kernel_length=1.5, highpass=20)
CONTEXT = 0.25
SECONDS = 90.0


def response(times: np.ndarray, shift: tuple[float, ...], amplitudes: np.ndarray) -> InterferometerResponseSet:
    """Bursts of 100 Hz at `times`, the same in two detectors."""
    n, t = len(times), np.arange(4 * FS) / FS - 3.0
    wave = amplitudes[:, None] * np.where(np.abs(t) < 0.5, np.exp(-((t / 0.02) ** 2)) * np.sin(2 * np.pi * 100 * t), 0.0)
    return InterferometerResponseSet(
        **{p: np.ones(n) for p in SIGNAL},
        snr=np.full(n, 20.0),
        ifo_snrs=np.full((n, 2), 14.0),
        injection_time=np.asarray(times, float),
        shift=np.tile(np.asarray(shift, float), (n, 1)),
        waveforms={"h1": wave, "l1": wave},
        sample_rate=FS,
        duration=4.0,
        right_pad=1.0,
        num_injections=n,
        ifos=["H1", "L1"],
    )


class Loudness:
    """The quieter detector's loudest sample, of windows; with `noise`, disturbed by something that depends on the window alone."""

    form, context = "windows", round(CONTEXT * FS)

    def __init__(self, noise: float = 0.0, filter=None) -> None:
        self.noise, self.filter = noise, filter

    def score_windows(self, windows: np.ndarray) -> np.ndarray:
        own = windows[..., self.context : -self.context]
        return np.abs(own).max(axis=2).min(axis=1) + self.noise * np.sin(1e3 * own[:, 0, 0])


def engines(kind: str):
    """A cascade of this kind, and its joint network alone."""
    if kind == "windows":
        return Loudness(filter=Loudness(0.3)), Loudness()
    joint, small = (frame_bundle(n, context=CONTEXT) for n in ("streaming", "map"))
    alone = network_engine(joint, block=2.0, threads=1, batch=3)
    filtering = network_engine(small, block=2.0, threads=1, batch=3)
    return network_engine(joint, block=2.0, threads=1, batch=3, filter=filtering), alone


def thresholds(kind: str) -> tuple[float, float]:
    """Of the filter and of the statistic."""
    return {"windows": (3.5, 3.4), "networks": (1.0, -np.inf)}[kind]


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("kind", ["windows", "networks"])
def test_a_cascade_finds_events_of_the_full_search_and_counts_what_it_loses(tmp_path, kind, ring):
    settle = 0.0 if ring else CONDITIONING.psd_length
    g = SlideGeometry(GPS, SECONDS, settle, 1.0, 1.5, 4.0, 1.5, ring, context=CONTEXT)
    inference = Inference(batch_size=32, shifts=[0, 1], slide_mode="ring" if ring else "linear", cluster_window_length=4)
    shifts = shift_vectors(6, [0, 2])
    times = {s: g.injection_times(s, step=12, buffer=2, jitter=0.1, rng=np.random.default_rng(1)) for s in shifts[:2]}
    quiet = [response(t, s, 10 ** np.random.default_rng(2).uniform(-22, -20, len(t))) for s, t in times.items()]
    path = InterferometerResponseSet.concatenate(quiet).write(tmp_path / "waveforms.hdf5")
    cascade, alone = engines(kind)
    strain = np.random.default_rng(0).standard_normal((2, int(SECONDS * FS))) * 1e-22
    chunk = WhitenedChunk.of(list(strain), GPS, FS, CONDITIONING, block=8, psd_source="segment" if ring else "preceding")
    chooser = TriggerChooser(*thresholds(kind), Reach.of(inference))
    audited = [shifts[1], shifts[4]]
    full = run_slides(chunk, g, alone, inference, shifts, path)
    found = run_slides(chunk, g, cascade, inference, shifts, path, chooser=chooser, audit=audited)

    assert found.background.Tb == full.background.Tb == found.expected["background"]
    assert found.zero_lag.Tb == full.zero_lag.Tb and found.foreground.Tb == full.foreground.Tb
    assert 0.02 < found.outputs["kept"] / found.outputs["asked"] < 0.9
    assert found.windows["background"] + found.windows["zero_lag"] == found.outputs["kept"]
    assert found.outputs["asked"] == full.windows["background"] + full.windows["zero_lag"]
    for ours, theirs in ((found.background, full.background), (found.zero_lag, full.zero_lag)):
        known = {(t, *s): x for t, s, x in zip(theirs.detection_time, theirs.shift, theirs.detection_statistic, strict=True)}
        for t, s, x in zip(ours.detection_time, ours.shift, ours.detection_statistic, strict=True):
            assert known[(t, *s)] == pytest.approx(x, abs=1e-4)
    assert 0 < len(found.background) < len(full.background)

    audit = found.audit
    chosen = [full.background.select_shift(s) for s in audited]
    assert len(audit.statistic) == sum(map(len, chosen)) and audit.unmatched == 0 and audit.difference < 1e-4
    assert audit.kept.sum() == sum(len(found.background.select_shift(s)) for s in audited)
    assert audit.livetime == sum(map(g.livetime, audited)) and found.windows["audit"] > 0
    injected = np.all(full.foreground.shift == shifts[1], axis=1)
    assert np.allclose(audit.injections, full.foreground.detection_statistic[injected], atol=1e-4)
    assert np.array_equal(audit.filtered, found.foreground.detection_statistic[injected])
    assert injected.sum() == len(times[shifts[1]]) > 3
    if kind == "windows":
        # what is far above the filter's noise and threshold is never lost
        loss = audit.loss(8.0)
        assert loss.injections.of > 0 == loss.injections.lost
    assert full.audit.livetime == 0 and full.outputs == {"kept": 0, "asked": 0}
