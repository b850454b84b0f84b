"""Strain about an event, whitened as the search whitened it, and what one can tell of its quality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aframe_assets.config import Config
from aframe_assets.inference.whitened import WhitenedChunk
from aframe_assets.strain.background_file import StrainFile
from aframe_assets.strain.psd import Spectrum, inspiral_range

REACH = 40.0
"""Seconds of whitened strain wanted on each side of an event."""

QUALITY = 8.0
"""Seconds on each side of an event that its quality is judged by."""

EVENT = 1.0
"""Seconds on each side that are the event itself, and are left out of it."""

OUTSIDE = (0.9, 1.3)
"""Expected standard deviation of whitened noise (DESIGN, decision 6)."""


@dataclass(frozen=True)
class Surroundings:
    """A part of a chunk about an event.

    Attributes:
        ifos: detectors.
        chunk: their whitened streams; sample 0 is GPS `chunk.whitened_start`.
        start, stop: of the whole chunk, GPS seconds.
    """

    ifos: tuple[str, ...]
    chunk: WhitenedChunk
    start: float
    stop: float

    @property
    def times(self) -> tuple[float, float]:
        """First whitened sample and the end of the last, GPS seconds."""
        first = self.chunk.whitened_start
        return first, first + len(self.chunk.streams[0]) / self.chunk.sample_rate

    def cut(self, ifo: str, time: float, before: float, after: float) -> tuple[float, np.ndarray]:
        """Whitened strain of `ifo` from `time - before` to `time + after`, as far as there is any.

        Returns:
            GPS seconds of the first sample, and samples in standard deviations (time,).
        """
        fs, origin = self.chunk.sample_rate, self.chunk.whitened_start
        stream = self.chunk.streams[self.ifos.index(ifo)]
        first = min(max(0, round((time - before - origin) * fs)), len(stream))
        last = min(max(first, round((time + after - origin) * fs)), len(stream))
        return origin + first / fs, stream[first:last]

    def spectrum(self, ifo: str, time: float) -> Spectrum:
        """The PSD that the strain of `ifo` at `time` was whitened with."""
        psds = self.chunk.psds[self.ifos.index(ifo)]
        sample = (time - self.chunk.whitened_start) * self.chunk.sample_rate
        psd = psds[int(np.clip(sample // self.chunk.block, 0, len(psds) - 1))].numpy()
        return Spectrum(np.linspace(0, self.chunk.sample_rate / 2, len(psd)), psd)


def surroundings(file: StrainFile, config: Config, time: float, reach: float = REACH) -> Surroundings:
    """Strain about `time`, with the PSDs that the search of the whole chunk had there.

    Blocks that share a PSD are counted from the start of the chunk, so whole ones are read, and no more of the chunk than needed.
    Where one PSD of the whole chunk is used (``inference.psd_source: segment``), all of it is read.

    Args:
        file: background strain of the chunk.
        config: of the search.
        time: GPS seconds, inside the chunk.
        reach: seconds wanted on each side.

    Raises:
        StrainError: the file is damaged or of other detectors.
        ValueError: less strain than one PSD needs.
    """
    fs, c = file.sample_rate, config.conditioning
    whole = config.inference.psd_source == "segment"
    block, crop = round(config.psd_block * fs), round(c.fduration * fs) // 2
    settle = 0 if whole else round(c.psd_length * fs)
    first, last = 0, file.size
    if not whole:
        at = (time - file.gps_start) * fs - settle - crop
        first = max(0, math.floor((at - reach * fs) / block)) * block
        last = min(file.size, (math.floor((at + reach * fs) / block) + 1) * block + settle + 2 * crop)
    chunk = WhitenedChunk.of(
        (file.read(ifo, first, last) for ifo in config.ifos),
        file.gps_start + first / fs,
        fs,
        c,
        block=config.psd_block,
        psd_source=config.inference.psd_source,
    )
    return Surroundings(tuple(config.ifos), chunk, file.gps_start, file.gps_start + file.size / fs)


@dataclass(frozen=True)
class Quality:
    """A detector's data about an event, the event itself left out.

    Attributes:
        ifo: detector.
        std: standard deviation of its whitened strain.
        loudest: largest deviation, in standard deviations of unit noise; `loudest_at` seconds after the event.
        inspiral_range: of the PSD in use, Mpc; see `aframe_assets.strain.psd.inspiral_range`.
        reference_range: the same of the role's reference PSD, or None.
        flags: what is unusual, in words.
    """

    ifo: str
    std: float
    loudest: float
    loudest_at: float
    inspiral_range: float
    reference_range: float | None
    flags: tuple[str, ...]


def qualities(about: Surroundings, time: float, references: Mapping[str, Spectrum] | None = None) -> list[Quality]:
    """The data of each detector within QUALITY of the event at `time`, GPS seconds.

    Flags are raised where the standard deviation is outside OUTSIDE, where a sample is less likely than 1 in 1000 in as much Gaussian
    noise, and where the inspiral range is below 70 % of the reference's.
    """
    out = []
    # a coarse spectrum says nothing of its lowest bins
    low = max(20.0, 2 * about.spectrum(about.ifos[0], time).df)
    for ifo in about.ifos:
        start, x = about.cut(ifo, time, QUALITY, QUALITY)
        t = start + np.arange(len(x)) / about.chunk.sample_rate - time
        noise = np.abs(t) > EVENT
        if not noise.any():
            continue
        x, t = x[noise], t[noise]
        worst = int(np.argmax(np.abs(x)))
        reach = inspiral_range(about.spectrum(ifo, time), minimum_frequency=low)
        reference = (references or {}).get(ifo)
        typical = None if reference is None else inspiral_range(reference, minimum_frequency=low)
        std, loudest = float(x.std()), float(np.abs(x[worst]))
        flags = []
        if not OUTSIDE[0] <= std <= OUTSIDE[1]:
            flags.append(f"noise of standard deviation {std:.2f}, expected {OUTSIDE[0]:g} to {OUTSIDE[1]:g}")
        if loudest > _unlikely(len(x)):
            flags.append(f"{loudest:.1f} σ at {t[worst]:+.2f} s: not Gaussian")
        if typical and reach < 0.7 * typical:
            flags.append(f"inspiral range {reach:.3g} Mpc, {reach / typical:.0%} of the reference's")
        out.append(Quality(ifo, std, loudest, float(t[worst]), reach, typical, tuple(flags)))
    return out


def _unlikely(samples: int, probability: float = 1e-3) -> float:
    """Deviation that unit Gaussian noise exceeds anywhere in so many samples with this probability."""
    from scipy.stats import norm

    return float(norm.isf(probability / (2 * samples)))


def edges(about: Surroundings, time: float) -> str:
    """Where in its stretch an event lies, in words: the distance to the nearer end."""
    before, after = time - about.start, about.stop - time
    return f"{min(before, after):.1f} s from the {'start' if before < after else 'end'} of its stretch of {about.stop - about.start:g} s"
