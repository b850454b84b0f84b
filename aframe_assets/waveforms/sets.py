"""Making the three kinds of signal sets: training, validation, and the injections of a chunk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aframe_assets.waveforms.frames import DetectorFrame
from aframe_assets.waveforms.generation import WaveformGenerator
from aframe_assets.waveforms.injections import SlideTimes
from aframe_assets.waveforms.ledger import (
    InjectionParameterSet,
    InterferometerResponseSet,
    WaveformPolarizationSet,
    WaveformSet,
)
from aframe_assets.waveforms.parameters import SIGNAL
from aframe_assets.waveforms.priors import Prior
from aframe_assets.waveforms.rejection import BATCH, MAX_FAILED, Draws, Selection, rejection_sample


def shard_size(total: int, shards: int, index: int) -> int:
    """Signals that shard `index` of `shards` makes of `total`; they differ by at most one."""
    return total * (index + 1) // shards - total * index // shards


def training_set(num_signals: int, prior: Prior, generator: WaveformGenerator, seed: int) -> tuple[WaveformPolarizationSet, int]:
    """`num_signals` raw polarisations (float32), without a cut on SNR, and the number of draws that could not be generated.

    Raises:
        ValueError: more than one draw in a hundred cannot be generated.
    """
    rng = np.random.default_rng(seed)
    values = {k: np.empty(num_signals) for k in SIGNAL}
    waves = {k: np.empty((num_signals, generator.size), np.float32) for k in ("cross", "plus")}
    made = failed = 0
    while made < num_signals:
        draws = prior.sample(min(BATCH, num_signals - made), rng).detector()
        polarizations, good = generator(draws)
        stop = made + int(good.sum())
        for out, new in ((values, draws), (waves, polarizations)):
            for name in out:
                out[name][made:stop] = new[name][good]
        made, failed = stop, failed + int((~good).sum())
        if failed > max(10, MAX_FAILED * (made + failed)):
            raise ValueError(f"{failed} of {made + failed} draws of prior '{prior.name}' cannot be generated; narrow it")
    return WaveformPolarizationSet.of(DetectorFrame(values), **_window(generator, made), waveforms=waves), failed


def validation_set(
    num_signals: int, prior: Prior, generator: WaveformGenerator, selection: Selection, seed: int, max_num_samples: int
) -> tuple[WaveformSet, Draws]:
    """`num_signals` projected signals above the SNR threshold; and how they were drawn.

    They have no time, and their `ra` is the longitude.
    """
    draws = rejection_sample(num_signals, prior, generator, selection, seed, max_num_samples)
    made = WaveformSet.of(
        draws.accepted, **_window(generator, draws.num_injections), ifos=list(selection.ifos), waveforms=_by_ifo(draws, selection)
    )
    return made, draws


def injection_sets(
    slides: Sequence[SlideTimes], prior: Prior, generator: WaveformGenerator, selection: Selection, seed: int, max_num_samples: int
) -> tuple[InterferometerResponseSet, InjectionParameterSet, Draws]:
    """The signals of a chunk's slides, placed; the draws rejected on the way; and how they were drawn.

    A signal's `injection_time` is its GPS time, by which its `ra` is turned to a place over the Earth. A slide moves detectors
    apart in time, not the Earth: response and delay are those of that one time.
    `num_injections` of both sets is the number of draws, accepted and rejected.
    """
    times = np.concatenate([s.times for s in slides]) if slides else np.empty(0)
    shifts = np.concatenate([np.tile(np.asarray(s.shift, float), (len(s.times), 1)) for s in slides]) if slides else None
    draws = rejection_sample(len(times), prior, generator, selection, seed, max_num_samples, times)
    meta = _window(generator, draws.num_injections) | {"ifos": list(selection.ifos)}
    placed = InterferometerResponseSet.of(
        draws.accepted,
        **meta,
        injection_time=times,
        shift=np.empty((0, len(selection.ifos))) if shifts is None else shifts,
        waveforms=_by_ifo(draws, selection),
    )
    return placed, InjectionParameterSet.of(draws.rejected, **meta), draws


def _window(generator: WaveformGenerator, num_injections: int) -> dict[str, float]:
    return {
        "sample_rate": float(generator.sample_rate),
        "duration": float(generator.duration),
        "right_pad": float(generator.right_pad),
        "num_injections": num_injections,
    }


def _by_ifo(draws: Draws, selection: Selection) -> dict[str, np.ndarray]:
    return {ifo.lower(): draws.strain[:, i] for i, ifo in enumerate(selection.ifos)}
