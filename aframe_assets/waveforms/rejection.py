"""Signals above a network SNR, with the count of draws that a sensitive volume needs (reference 2.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.waveforms.detectors import Detector, get_detectors
from aframe_assets.waveforms.generation import WaveformGenerator
from aframe_assets.waveforms.ledger import SIGNAL
from aframe_assets.waveforms.parameters import detector_frame
from aframe_assets.waveforms.projection import project
from aframe_assets.waveforms.snr import PSDS, ifo_snrs, network_snr

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.waveforms.priors import Prior

BATCH = 512
"""Most signals in memory at once; waveforms.max_num_samples may lower it."""
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
        accepted: parameters (`SIGNAL`, `snr`, `ifo_snrs`) of exactly the signals asked for, in the order drawn.
        strain: their waveforms, (n, n_ifo, size), float32.
        rejected: the same parameters of every draw below threshold before the last acceptance.
        num_failed: draws that could not be generated. They are drawn anew and are in no other count: the population is
            that of signals that exist.
    """

    accepted: dict[str, np.ndarray]
    strain: np.ndarray
    rejected: dict[str, np.ndarray]
    num_failed: int = 0
    batches: list[int] = field(default_factory=list)

    @property
    def num_injections(self) -> int:
        """Draws made to get the accepted ones, these included; later draws of the last batch do not count."""
        return len(self.accepted["snr"]) + len(self.rejected["snr"])


def rejection_sample(
    num_signals: int,
    prior: Prior,
    generator: WaveformGenerator,
    selection: Selection,
    rng: np.random.Generator,
    max_num_samples: int = 3000,
) -> Draws:
    """Draw until `num_signals` signals are at or above the threshold.

    Args:
        num_signals: signals wanted, >= 0.
        prior: population.
        generator: waveforms.
        selection: detectors, PSDs and threshold.
        rng: source of every draw.
        max_num_samples: most draws in one batch.

    Raises:
        ValueError: no acceptance in `HOPELESS` draws, or more than `MAX_FAILED` of the draws cannot be generated.
    """
    kept: list[dict[str, np.ndarray]] = []
    lost: list[dict[str, np.ndarray]] = []
    strains = [np.empty((0, len(selection.ifos), generator.size), np.float32)]
    accepted = drawn = failed = 0
    batches: list[int] = []
    while accepted < num_signals:
        rate = accepted / drawn if accepted else 1.0 if not drawn else 0.5 / drawn
        n = min(max_num_samples, BATCH, math.ceil(1.1 * (num_signals - accepted) / rate))
        values = detector_frame(prior.sample(n, rng), prior.frame)
        polarizations, good = generator(values)
        strain = project(polarizations, values, selection.detectors or selection.ifos, generator.sample_rate)
        snrs = ifo_snrs(strain, selection.psds, selection.ifos, generator.sample_rate, selection.highpass, selection.lowpass)
        values = values | {"snr": network_snr(snrs), "ifo_snrs": snrs}
        above = good & (values["snr"] >= selection.threshold)
        hits = np.flatnonzero(above)[: num_signals - accepted]
        stop = hits[-1] + 1 if len(hits) == num_signals - accepted else n
        used = np.arange(n) < stop
        kept.append({k: v[hits] for k, v in values.items()})
        lost.append({k: v[used & good & ~above] for k, v in values.items()})
        strains.append(strain[hits].astype(np.float32))
        accepted, drawn, failed = accepted + len(hits), drawn + stop, failed + int((used & ~good).sum())
        batches.append(n)
        _check(accepted, drawn, failed, prior, selection, kept + lost)
    return Draws(_stacked(kept, selection), np.concatenate(strains), _stacked(lost, selection), failed, batches)


def _check(accepted: int, drawn: int, failed: int, prior: Prior, selection: Selection, seen: list[dict[str, np.ndarray]]) -> None:
    if drawn >= 200 and failed > MAX_FAILED * drawn:
        raise ValueError(
            f"{failed} of {drawn} draws of prior '{prior.name}' cannot be generated (not finite, or outside the approximant's range); "
            "narrow the prior or use another waveforms.approximant"
        )
    if not accepted and drawn >= HOPELESS:
        loudest = max(float(d["snr"].max(initial=0)) for d in seen)
        asds = ", ".join(f"{i} {math.sqrt(float(np.interp(100, *selection.psds[i]))):.2g}" for i in selection.ifos)
        raise ValueError(
            f"none of {drawn} draws of prior '{prior.name}' reaches network SNR {selection.threshold:g} (loudest {loudest:.2g}) against "
            f"{selection.psd_label} (ASD at 100 Hz: {asds} Hz^-1/2); check the PSD, lower waveforms.snr_threshold or use another prior"
        )


def _stacked(parts: list[dict[str, np.ndarray]], selection: Selection) -> dict[str, np.ndarray]:
    empty = {k: np.empty(0) for k in (*SIGNAL, "snr")} | {"ifo_snrs": np.empty((0, len(selection.ifos)))}
    return {k: np.concatenate([empty[k], *(p[k] for p in parts)]) for k in empty}
