"""Are the false-alarm rates of a real network on real-like noise what they say?

Simulated noise of two detectors with lines and many glitches, whitened, scored by a small network that is trained here,
slid, clustered, and the background of all seeds pooled, as ``events`` pools the segments of a search. Noise alone: so the zero lag
must have x T events at FAR < x.

The background is pooled, and not that of each seed by itself, because at 1 per hour a seed's own has a dozen events and the
rate is a whole number of them. The seeds are one population: the same spectrum, lines, glitches and network.

Errors. Slides use the same glitches over and over, in the zero lag too, so events are not independent. The strain is cut into
blocks of a minute and whole blocks, both detectors at once, are drawn with replacement. A block drawn w times is there w times: an
event whose windows lie in block a of one detector and in block b of the other counts w_a w_b times, and w_a times where a = b, as
in the zero lag; livetimes likewise. Each draw ranks anew, so that the error is that of the difference, background and all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aframe_assets.config import Config
from aframe_assets.config_load import build_config
from aframe_assets.inference.detect import detect
from aframe_assets.inference.slides import SlideResults, run_slides
from aframe_assets.inference.whitened import WhitenedChunk
from aframe_assets.model.training import train
from aframe_assets.segments.geometry import SlideGeometry, shift_vectors
from aframe_assets.sensitivity.candidates import find_candidates
from aframe_assets.sensitivity.far import Background, per_hour
from aframe_assets.strain.background_file import background_name, write_background
from aframe_assets.strain.glitches import optimal_snr
from aframe_assets.strain.simulated import simulator
from aframe_assets.waveforms.inject import add_signals
from aframe_assets.waveforms.ledger import SIGNAL, EventSet, WaveformPolarizationSet, WaveformSet

IFOS, RATE = ("H1", "L1"), 512
GPS, TRAINING_GPS = 1_240_100_000.0, 1_240_000_000.0
DURATION, MERGER = 4.0, 3.0
"""Seconds of a signal, and of it before the merger."""

STEP = 5.0
"""Seconds between slides: more than window, integration and whitening filter together, so that no two slides see the same pair."""

FARS = (1.0, 3.0, 10.0)
"""Per hour."""

BLOCK = 60.0
"""Seconds of strain that are drawn together; longer than any glitch, and than what its whitening touches."""

CURVE = "aLIGO_O4_high_asd.txt"


def make_config(**inference) -> Config:
    """An hour has 120 glitches in each detector."""
    training = {
        "batch_size": 64,
        "batches_per_epoch": 100,
        "max_epochs": 4,
        "learning_rate": 4e-3,
        "gradient_clip": 5,
        "waveform_prob": 0.5,
        "glitch_prob": 0.2,
        "min_snr": 6,
        "snr_start": None,
        "valid_livetime": 200,
        "valid_stride": 1.0,
        "valid_views": 1,
        "max_fpr": 0.1,
        "num_threads": 1,
    }
    return build_config(
        {
            "preset": "demo",
            "sample_rate": RATE,
            "strain": {"source": "simulated", "simulated": {"asd": dict.fromkeys(IFOS, CURVE), "glitch_rate": 120}},
            "conditioning": {"kernel_length": 1.5, "psd_length": 8, "fduration": 1, "fftlength": 1, "highpass": 25, "lowpass": None},
            "waveforms": {"duration": DURATION, "right_pad": DURATION - MERGER},
            "model": {"architecture": {"layers": [1, 1, 1, 1], "width": 8, "norm_groups": 4}, "training": training},
            "inference": inference,
        }
    )


def noise(config: Config, gps: float, duration: float) -> dict[str, np.ndarray]:
    return {ifo: simulator(config, ifo).strain(gps, gps + duration) for ifo in IFOS}


def chirps(num: int, rng: np.random.Generator) -> np.ndarray:
    """(num, 2, samples): two phases of the lowest-order inspiral of chirp masses 15 to 40 and a short fall after the merger."""
    t = np.arange(int(DURATION * RATE)) / RATE - MERGER
    mass = rng.uniform(15, 40, (num, 1)) * 4.925e-6
    before = np.maximum(-t, 1e-4)
    frequency = np.minimum((5 / (256 * before)) ** 0.375 * mass**-0.625 / np.pi, 0.0095 / mass)
    phase = 2 * np.pi * np.cumsum(frequency, axis=1) / RATE + rng.uniform(0, 2 * np.pi, (num, 1))
    envelope = 1e-21 * (frequency / 100) ** (2 / 3) * np.exp(-np.maximum(t, 0) / 0.005) * np.clip((t + MERGER) * 4, 0, 1)
    return np.stack([envelope * np.sin(phase), envelope * np.cos(phase)], 1)


def with_snr(waves: np.ndarray, snr: np.ndarray, config: Config) -> np.ndarray:
    """(n, 2, samples): the same in both detectors, of network SNR `snr`."""
    psd = simulator(config, "H1").asd(np.fft.rfftfreq(waves.shape[-1], 1 / RATE)) ** 2
    unit = waves / optimal_snr(waves, RATE, psd)[:, None]
    return np.repeat((unit * (snr / 2**0.5)[:, None])[:, None], 2, axis=1)


class Network:
    """The network as an engine."""

    ifos, sample_rate, bundle = list(IFOS), float(RATE), {}

    def __init__(self, module: torch.nn.Module, conditioning: dict) -> None:
        self.module, self.conditioning = module, conditioning

    def score_windows(self, windows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.module(torch.from_numpy(windows))[:, 0].numpy()


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Network:
    """400 steps of our own training on 20 minutes of noise; ten seconds."""
    config, folder, rng = make_config(), tmp_path_factory.mktemp("network"), np.random.default_rng(1)
    background: dict[str, list[Path]] = {"train": [], "validation": []}
    for role, gps, duration in (("train", 0, 600), ("train", 1000, 600), ("validation", 2000, 300)):
        path = folder / background_name(TRAINING_GPS + gps, duration)
        write_background(path, noise(config, TRAINING_GPS + gps, duration), TRAINING_GPS + gps, RATE)
        background[role].append(path)
    common = {"sample_rate": float(RATE), "duration": DURATION, "right_pad": DURATION - MERGER}
    waves = chirps(400, rng)
    signals = WaveformPolarizationSet(
        **{k: np.ones(400) for k in SIGNAL}, **common, num_injections=400, waveforms={"cross": waves[:, 0], "plus": waves[:, 1]}
    ).write(folder / "training.hdf5")
    snr = rng.uniform(8, 20, 100)
    waves = with_snr(chirps(100, rng)[:, 0], snr, config)
    validation = WaveformSet(
        **{k: np.ones(100) for k in SIGNAL},
        **common,
        snr=snr,
        ifo_snrs=np.tile(snr[:, None] / 2**0.5, (1, 2)),
        ifos=list(IFOS),
        num_injections=100,
        waveforms={"h1": waves[:, 0], "l1": waves[:, 1]},
    ).write(folder / "validation.hdf5")
    done = train(config, background=background, training_signals=signals, validation_signals=validation, workdir=folder / "work", seed=3)
    # a network that learnt nothing would make this test one of another thing
    assert max(row["valid_auroc"] for row in done.history) > 0.85
    return Network(done.network, config.conditioning.model_dump(mode="json"))


@dataclass(frozen=True)
class Searched:
    """One seed."""

    geometry: SlideGeometry
    shifts: list[tuple[float, ...]]
    results: SlideResults


def search(
    network: Network,
    seed: int,
    duration: float,
    num_slides: int,
    *,
    signals: Sequence[float] = (),
    exclude: Sequence[float] = (),
    **inference,
) -> Searched:
    """Zero lag and slides of `duration` seconds of noise.

    `signals` are GPS times at which signals of network SNR 20 merge in both detectors; slides leave out the mergers `exclude`.
    """
    config = make_config(**inference).model_copy(update={"seed": seed})
    strain, i = noise(config, GPS, duration), config.inference
    if len(signals):
        waves = with_snr(chirps(len(signals), np.random.default_rng(seed))[:, 0], np.full(len(signals), 20.0), config)
        starts = np.round((np.array(signals) - GPS - MERGER) * RATE).astype(int)
        strain = {ifo: add_signals(x, 0, 1.0, waves[:, c], starts, 0) for c, (ifo, x) in enumerate(strain.items())}
    chunk = WhitenedChunk.of(strain.values(), GPS, RATE, config.conditioning, block=config.psd_block, psd_source=i.psd_source)
    plain = SlideGeometry.of(config, GPS, GPS + duration)
    geometry = replace(plain, mergers=tuple(exclude))
    shifts = shift_vectors(num_slides, [0, STEP])
    return Searched(geometry, shifts, run_slides(chunk, geometry, network, i, shifts))


def background_of(seeds: list[Searched]) -> Background:
    joined = EventSet.concatenate([s.results.background for s in seeds])
    return Background.of(joined.detection_statistic, joined.Tb)


def excess(seeds: list[Searched], background: Background) -> np.ndarray:
    """Zero-lag events of `seeds` at FAR < x less x T for each of FARS."""
    zero_lag = EventSet.concatenate([s.results.zero_lag for s in seeds])
    rates = per_hour(background.far(zero_lag.detection_statistic)[0])
    return np.array([(rates < x).sum() - x * zero_lag.Tb / 3600 for x in FARS])


def _times(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How often what comes from block a of one detector and b of the other is there."""
    return np.where(a == b, weights[a], weights[a] * weights[b])


class Blocks:
    """All seeds' events and livetime by the blocks of strain that they come from."""

    def __init__(self, seeds: list[Searched]) -> None:
        self.num = 0
        zero, slid, live = [], [], []
        for s in seeds:
            results, zeros = s.results, np.zeros(2)
            zero.append((results.zero_lag.detection_statistic, *self._of(s, results.zero_lag.detection_time, zeros[None])))
            slid.append((results.background.detection_statistic, *self._of(s, results.background.detection_time, results.background.shift)))
            live.append([])
            for shift in [(0.0, 0.0), *s.shifts]:
                times = s.geometry.detection_times(shift)[s.geometry.valid(shift)]
                pairs, outputs = np.unique(np.stack(self._of(s, times, np.array([shift]))), axis=1, return_counts=True)
                live[-1].append((np.full(len(outputs), any(shift)), *pairs, outputs / s.geometry.inference_rate))
            live[-1] = [np.concatenate(x) for x in zip(*live[-1], strict=True)]
            self.num += int(np.ceil(s.geometry.duration / BLOCK))
        self.zero, slid, self.live = ([np.concatenate(x) for x in zip(*y, strict=True)] for y in (zero, slid, live))
        order = np.argsort(-slid[0], kind="stable")
        self.slid = [x[order] for x in slid]
        self.louder = np.searchsorted(-self.slid[0], -self.zero[0], side="right")

    def _of(self, s: Searched, times: np.ndarray, shift: np.ndarray) -> list[np.ndarray]:
        g, out = s.geometry, []
        for c in range(2):
            own = times + shift[:, c] - g.whitened_start
            own = own % g.whitened_duration if g.ring else own
            out.append(((own + g.whitened_start - g.gps_start) // BLOCK).astype(int) + self.num)
        return out

    def excess(self, weights: np.ndarray) -> np.ndarray:
        """Zero-lag events at FAR < x less x T for each of FARS, where block b is there weights[b] times."""
        slid, a, b, seconds = self.live
        seconds = seconds * _times(weights, a, b)
        livetime, total = seconds[~slid].sum(), seconds[slid].sum()
        louder = np.concatenate([[0.0], np.cumsum(_times(weights, *self.slid[1:]))])[self.louder]
        rates = per_hour(louder / total)
        return np.array([(weights[self.zero[1]] * (rates < x)).sum() - x * livetime / 3600 for x in FARS])

    def rates(self, weights: np.ndarray, thresholds: list[float]) -> np.ndarray:
        """Background events per hour at or above each threshold."""
        slid, a, b, seconds = self.live
        total = (seconds * _times(weights, a, b))[slid].sum()
        events = np.concatenate([[0.0], np.cumsum(_times(weights, *self.slid[1:]))])
        return per_hour(events[np.searchsorted(-self.slid[0], -np.array(thresholds), side="right")] / total)

    def errors(self, of: Callable[[np.ndarray], np.ndarray] | None = None, num: int = 400) -> np.ndarray:
        """Standard deviation over draws of the blocks of `excess`, or of another function of the weights."""
        rng = np.random.default_rng(0)
        draws = rng.multinomial(self.num, np.full(self.num, 1 / self.num), size=num)
        return np.std([(of or self.excess)(w.astype(float)) for w in draws], axis=0)


def due(seeds: list[Searched]) -> np.ndarray:
    """x T."""
    return np.array(FARS) * sum(s.results.zero_lag.Tb for s in seeds) / 3600


def show(title: str, seeds: list[Searched], difference: np.ndarray, error: np.ndarray) -> None:
    """The figures, for ``make test-calibration``."""
    background = background_of(seeds)
    zero_lag = sum(s.results.zero_lag.Tb for s in seeds)
    print(f"{title}: zero lag {zero_lag / 3600:.2f} h, background {background.livetime / 3600:.1f} h")
    for x, expected, d, e in zip(FARS, due(seeds), difference, error, strict=True):
        print(f"  FAR < {x:g}/h: {d + expected:.0f} events; due {expected:.1f} +- {e:.1f}")


def test_counts_agree_in_two_hours_of_slides_in_a_ring(network):
    """A quick look; 2, 6 and 20 events are due. With so few, a draw of the blocks may hold none: the error is at least Poisson's."""
    seeds = [search(network, 200 + i, 920, 12, slide_mode="ring") for i in range(8)]
    difference, blocks = excess(seeds, background_of(seeds)), Blocks(seeds)
    np.testing.assert_allclose(difference, blocks.excess(np.ones(blocks.num)), atol=1e-6)
    error = np.maximum(blocks.errors(), due(seeds) ** 0.5)
    show("8 seeds, ring", seeds, difference, error)
    assert (np.abs(difference) < 3 * error).all()


def test_detect_gives_the_rates_of_the_search(network, tmp_path):
    """The same strain from a file through `detect`: the events, the livetime and the FARs that ``candidates`` lists."""
    config, found = make_config(), search(network, 7, 400, 6)
    path = tmp_path / background_name(GPS, 400)
    write_background(path, noise(config.model_copy(update={"seed": 7}), GPS, 400), GPS, RATE)
    zero_lag, background = found.results.zero_lag, found.results.background
    detection = detect([path], network, config, None, background, max_candidates=30)
    listed = find_candidates(
        zero_lag.detection_statistic, zero_lag.detection_time, zero_lag.Tb, background_of([found]), None, max_candidates=30
    )
    assert detection.livetime == zero_lag.Tb and detection.background_livetime == background.Tb
    assert len(detection.candidates) == len(listed) == 30
    for a, b in zip(detection.candidates, listed, strict=True):
        assert a.detection_statistic == pytest.approx(b.detection_statistic, abs=1e-5)
        assert (a.detection_time, a.far, a.far_is_limit) == (b.detection_time, b.far, b.far_is_limit)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_counts_of_twenty_seeds_agree(network):
    """20 seeds of half an hour, 24 slides each: 10, 30 and 100 events are due."""
    seeds = [search(network, 100 + i, 1800, 24) for i in range(20)]
    background, blocks = background_of(seeds), Blocks(seeds)
    difference, error = excess(seeds, background), blocks.errors()
    show("20 seeds", seeds, difference, error)
    np.testing.assert_allclose(difference, blocks.excess(np.ones(blocks.num)), atol=1e-6)
    assert (np.abs(difference) < 3 * error).all()
    # the same error from the scatter of 20 seeds, which is itself known to a sixth
    scatter = np.std([excess([s], background) for s in seeds], axis=0, ddof=1) * len(seeds) ** 0.5
    assert (np.abs(scatter / error - 1) < 0.5).all()
    # what it can tell: a livetime wrong by a half
    for wrong in (2 / 3, 1.5):
        spoilt = excess(seeds, Background(background.statistics, background.livetime * wrong))
        assert np.abs(spoilt / error).max() > 3


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_signals_leak_into_the_background_unless_they_are_excluded(network):
    """Loud signals in the strain, 4 or 16 an hour. A slide pairs each with noise, once in each detector.

    So a lag has at most two events more for each signal. Excluded, they leave the rate of what stays as it was.
    """

    def searched(**change) -> list[Searched]:
        return [search(network, 300 + i, 920, 12, **change) for i in range(6)]

    def rates(seeds: list[Searched]) -> np.ndarray:
        found = background_of(seeds)
        return per_hour(found.count(np.array(thresholds)) / found.livetime)

    plain = searched()
    background, blocks = background_of(plain), Blocks(plain)
    thresholds = [background.threshold(x / 3600) for x in FARS]
    before, error = rates(plain), blocks.errors(lambda w: blocks.rates(w, thresholds))
    np.testing.assert_allclose(blocks.rates(np.ones(blocks.num), thresholds), before)
    one, four = GPS + np.array([460.0]), GPS + np.linspace(80, 840, 6)[1:-1]
    leaked = {4: rates(searched(signals=one)), 16: rates(searched(signals=four))}
    excluded = rates(searched(signals=four, exclude=four))
    print(f"Background of {background.livetime / 3600:.1f} h, events per hour; with 4 and with 16 signals an hour, and with 16 excluded")
    for row in zip(FARS, before, error, leaked[4], leaked[16], excluded, strict=True):
        print("  FAR {:g}/h: {:.2f} +- {:.2f}; {:.2f}, {:.2f}; {:.2f}".format(*row))
    assert (np.abs(excluded - before) < error).all()
    # what is left is the noise's own: signals change nothing but the PSDs of the blocks after them
    np.testing.assert_allclose(excluded, rates(searched(exclude=four)), rtol=0.1)
    for per_hour_planted, found in leaked.items():
        assert (found - before < 2 * per_hour_planted + error).all()

    # the error that reports give is this one; the seeds are laid one after the other
    apart = [
        EventSet(e.detection_statistic, e.detection_time + 1e4 * n, e.shift, e.Tb)
        for n, e in enumerate(s.results.background for s in plain)
    ]
    reported = Background.of_slides(EventSet.concatenate(apart), 8.0)
    shares = reported.independence.relative_error(reported.count(np.array(thresholds)))
    print(
        "  relative error: blocks",
        (error / before).round(2),
        "reported",
        shares.round(2),
        "Poisson",
        (before * background.livetime / 3600) ** -0.5,
    )
    assert (np.abs(np.log(shares / (error / before))) < np.log(2)).all()
