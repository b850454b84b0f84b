"""Signals above a network SNR, with the count of draws that a sensitive volume needs (reference 2.4).

Every signal has a place of its own, an injection's also a time, and each place gets draws until one is accepted. So the
time is known when a draw is projected, and no draw depends on how many are computed at once: draw number k of place i
is a function of the seed, i and k, and so is its waveform but for rounding (see `generation`). Draws that were computed
beyond a place's acceptance are forgotten: they are counted nowhere. Where acceptance does not depend on time, as in a
population uniform in `ra`, the numbers of draws are distributed as if all places were one queue, so accepted and
rejected draws together are a sample of the population.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.waveforms.detectors import Detector, get_detectors
from aframe_assets.waveforms.frames import DetectorFrame
from aframe_assets.waveforms.generation import WaveformGenerator
from aframe_assets.waveforms.parameters import SIGNAL
from aframe_assets.waveforms.projection import project
from aframe_assets.waveforms.snr import PSDS, ifo_snrs, network_snr

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.waveforms.priors import Prior

BATCH = 512
"""Most signals in memory at once; waveforms.max_num_samples may lower it."""
FULL = 128
"""When fewer places than this are open, each gets several draws at once."""
BLOCK, GROUP = 512, 8
"""Places whose draws are made by one generator of random numbers, and draws of each that are made at once: what a seed means."""
HOPELESS = 20_000
"""Draws without one acceptance after which sampling gives up."""
MAX_FAILED = 0.01
"""Largest share of draws that may fail to be generated."""


@dataclass(frozen=True)
class Selection:
    """What decides whether a draw is kept.

    Attributes:
        ifos, psds: detectors, and the PSD of each as (frequencies, psd).
        threshold: network SNR.
        highpass, lowpass: band of the SNR, Hz.
        psd_label: what the PSD is, for messages.
        detectors: where `ifos` stand; () for those that are built in.
    """

    ifos: Sequence[str]
    psds: PSDS
    threshold: float
    highpass: float | None = None
    lowpass: float | None = None
    psd_label: str = "the given PSD"
    detectors: tuple[Detector, ...] = ()

    @classmethod
    def of(cls, config: Config, psds: PSDS, psd_label: str = "the given PSD") -> Selection:
        c = config.conditioning
        sites = get_detectors(config.ifos, config.detectors)
        return cls(tuple(config.ifos), psds, config.waveforms.snr_threshold, c.highpass, c.lowpass, psd_label, sites)


@dataclass
class Draws:
    """The outcome of rejection sampling.

    Attributes:
        accepted: parameters (`SIGNAL`, `snr`, `ifo_snrs`) of the signals asked for, one for each place, in that order.
        strain: their waveforms, (n, n_ifo, size), float32.
        rejected: the same parameters of every draw below threshold before its place's acceptance; by place, then as drawn.
        num_failed: draws that could not be generated. They are drawn anew and are in no other count: the population is
            that of signals that exist.
        batches: signals computed at once, for each time that was done.
    """

    accepted: DetectorFrame
    strain: np.ndarray
    rejected: DetectorFrame
    num_failed: int = 0
    batches: list[int] = field(default_factory=list)

    @property
    def num_injections(self) -> int:
        """Draws made to get the accepted ones, these included; what was computed beyond an acceptance does not count."""
        return len(self.accepted["snr"]) + len(self.rejected["snr"])


class _Block:
    """Draw number k of place i of one block of places."""

    def __init__(self, prior: Prior, seed: int, block: int, size: int) -> None:
        self.prior, self.words, self.size = prior, (seed, block), size
        self.groups: dict[int, DetectorFrame] = {}

    def rows(self, places: np.ndarray, numbers: np.ndarray) -> DetectorFrame:
        parts, order = [], []
        for group in np.unique(numbers // GROUP):
            if group not in self.groups:
                rng = np.random.default_rng((*self.words, int(group)))
                self.groups[int(group)] = self.prior.sample(GROUP * self.size, rng).detector()
            here = np.flatnonzero(numbers // GROUP == group)
            parts.append(self.groups[int(group)].rows(numbers[here] % GROUP * self.size + places[here]))
            order.append(here)
        back = np.argsort(np.concatenate(order))
        return DetectorFrame({k: np.concatenate([p[k] for p in parts])[back] for k in parts[0]})

    def forget(self, below: int) -> None:
        """Draws with numbers less than `below` will not be asked for again."""
        self.groups = {g: v for g, v in self.groups.items() if (g + 1) * GROUP > below}


@dataclass
class _Tally:
    """What has been drawn so far."""

    strain: np.ndarray
    where: list[np.ndarray] = field(default_factory=list)
    kept: list[DetectorFrame] = field(default_factory=list)
    lost_where: list[np.ndarray] = field(default_factory=list)
    lost: list[DetectorFrame] = field(default_factory=list)
    accepted: int = 0
    drawn: int = 0
    failed: int = 0
    batches: list[int] = field(default_factory=list)


def rejection_sample(
    num_signals: int,
    prior: Prior,
    generator: WaveformGenerator,
    selection: Selection,
    seed: int,
    max_num_samples: int = 3000,
    gps: np.ndarray | None = None,
) -> Draws:
    """Draw until each of `num_signals` places has a signal at or above the threshold.

    Args:
        num_signals: signals wanted, >= 0.
        prior: population.
        generator: waveforms.
        selection: detectors, PSDs and threshold.
        seed: of every draw, >= 0.
        max_num_samples: most draws in one batch; no draw depends on it, and a waveform by less than 1e-9 of its peak.
        gps: merger time of each place, (num_signals,); None: sidereal time zero for all (see `project`).

    Raises:
        ValueError: no acceptance in `HOPELESS` draws, or in as many at one place where others need far fewer; or more
            than `MAX_FAILED` of the draws cannot be generated; or not one time for each place.
    """
    if gps is not None and np.shape(gps) != (num_signals,):
        raise ValueError(f"gps has shape {np.shape(gps)}; expected a time for each of {num_signals} signals")
    tally = _Tally(np.empty((num_signals, len(selection.ifos), generator.size), np.float32))
    for block, first in enumerate(range(0, num_signals, BLOCK)):
        size = min(BLOCK, num_signals - first)
        source = _Block(prior, seed, block, size)
        still, number = np.arange(size), np.zeros(size, np.int64)
        while len(still):
            most = min(max_num_samples, BATCH)
            places = still[:most]
            depth = max(1, min(min(most, FULL) // len(places), math.ceil(0.5 * tally.drawn / max(tally.accepted, 1))))
            done = _round(tally, source, places, number[places], depth, first, generator, selection, gps)
            number[places] += depth
            still = np.setdiff1d(still, places[done], assume_unique=True)
            if len(still):
                slowest = still[number[still].argmax()]
                _check(tally, prior, selection, number[slowest], None if gps is None else gps[first + slowest])
                source.forget(int(number[still].min()))
    _check(tally, prior, selection)
    accepted, rejected = _stacked(tally.kept, tally.where, selection), _stacked(tally.lost, tally.lost_where, selection)
    return Draws(accepted, tally.strain, rejected, tally.failed, tally.batches)


def _round(
    tally: _Tally,
    source: _Block,
    places: np.ndarray,
    number: np.ndarray,
    depth: int,
    first: int,
    generator: WaveformGenerator,
    selection: Selection,
    gps: np.ndarray | None,
) -> np.ndarray:
    """The next `depth` draws of each of `places`; which of these now have their signal."""
    who, numbers = np.repeat(places, depth), (number[:, None] + np.arange(depth)).ravel()
    values = source.rows(who, numbers)
    polarizations, good = generator(values)
    when = None if gps is None else gps[first + who]
    strain = project(polarizations, values, selection.detectors or selection.ifos, generator.sample_rate, when)
    snrs = ifo_snrs(strain, selection.psds, selection.ifos, generator.sample_rate, selection.highpass, selection.lowpass)
    values = values | {"snr": network_snr(snrs), "ifo_snrs": snrs}
    above = good & (values["snr"] >= selection.threshold)
    done = above.reshape(len(places), depth).any(1)
    last = np.where(done, above.reshape(len(places), depth).argmax(1), depth - 1)
    used = (np.arange(depth) <= last[:, None]).ravel()
    hits, misses = np.flatnonzero(used & above), np.flatnonzero(used & good & ~above)
    tally.strain[first + who[hits]] = strain[hits]
    tally.kept.append(values.rows(hits))
    tally.where.append(first + who[hits])
    tally.lost.append(values.rows(misses))
    tally.lost_where.append((first + who[misses]) * 2.0**32 + numbers[misses])
    tally.accepted += len(hits)
    tally.drawn += int(used.sum())
    tally.failed += int((used & ~good).sum())
    tally.batches.append(len(who))
    return done


def _check(tally: _Tally, prior: Prior, selection: Selection, slowest: int = 0, time: float | None = None) -> None:
    accepted, drawn, failed = tally.accepted, tally.drawn, tally.failed
    if drawn >= 200 and failed > MAX_FAILED * drawn:
        raise ValueError(
            f"{failed} of {drawn} draws of prior '{prior.name}' cannot be generated (not finite, or outside the approximant's range); "
            "narrow the prior or use another waveforms.approximant"
        )
    if not accepted and drawn >= HOPELESS:
        loudest = max(float(d["snr"].max(initial=0)) for d in tally.lost)
        asds = ", ".join(f"{i} {math.sqrt(float(np.interp(100, *selection.psds[i]))):.2g}" for i in selection.ifos)
        raise ValueError(
            f"none of {drawn} draws of prior '{prior.name}' reaches network SNR {selection.threshold:g} (loudest {loudest:.2g}) against "
            f"{selection.psd_label} (ASD at 100 Hz: {asds} Hz^-1/2); check the PSD, lower waveforms.snr_threshold or use another prior"
        )
    # e^-50 by chance
    if accepted and slowest >= max(HOPELESS, 50 * (drawn - slowest) / accepted):
        raise ValueError(
            f"none of {slowest} draws of prior '{prior.name}' reaches network SNR {selection.threshold:g}"
            f"{'' if time is None else f' at GPS {time:.1f}'}, where {accepted} of {drawn - slowest} do elsewhere; its `ra` and `dec` may "
            "lie where no detector looks at that time; use a prior that covers the sky"
        )


def _stacked(parts: list[DetectorFrame], where: list[np.ndarray], selection: Selection) -> DetectorFrame:
    empty = {k: np.empty(0) for k in (*SIGNAL, "snr")} | {"ifo_snrs": np.empty((0, len(selection.ifos)))}
    order = np.argsort(np.concatenate([np.empty(0), *where]), kind="stable")
    return DetectorFrame({k: np.concatenate([empty[k], *(p[k] for p in parts)])[order] for k in empty})
