"""Reference power spectra: two per detector and role, from chunks chosen for their quality, never for their place in a list.

A chunk's quality is its inspiral range in each detector. The *typical* chunk is, among the long ones, the one whose ranges
are nearest to the medians of its role. The *most sensitive* chunk of a detector has the largest range that can be trusted:
a signal that is too faint for its spectrum is too faint at nearly any time of the role. (Upstream takes the last file,
whatever it is; reference 2.4.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from aframe_assets.strain.stretch import StrainError

FFTLENGTH = 8.0
"""Seconds; shorter where a chunk holds fewer than `MIN_FRAMES` frames of it."""

MIN_FRAMES = 7

PROBE = 4096.0
"""Seconds in the middle of a chunk that spectra are made from."""

OUTLIER = 4.0
"""Robust standard deviations from the median range beyond which a chunk is no candidate."""

FEW = 5
"""With fewer chunks than this their scatter says nothing."""

ONE_STATE = 1.5
"""Ratio of ranges up to which a detector may be in one state."""

LARGEST_STATE = 3.0
"""Ratio of ranges that an improved detector may reach: they gained a factor of 2 to 3 from O1 to O4."""

ENOUGH = 0.25
"""Share of the chunks, all in one state, that is the detector whatever the others say: these are bad data."""

MOST_SENSITIVE = "_most_sensitive"
"""Ends the name of a role's second group in ``psd.hdf5``."""

G, C, MSUN, PC = 6.6743e-11, 299_792_458.0, 1.988409870698051e30, 3.0856775814913673e16


@dataclass(frozen=True)
class Spectrum:
    """One-sided power spectral density on evenly spaced bins from 0 Hz.

    Attributes:
        frequencies: hertz, shape (freq,).
        psd: 1/Hz, shape (freq,).
    """

    frequencies: np.ndarray
    psd: np.ndarray

    @property
    def df(self) -> float:
        return float(self.frequencies[1] - self.frequencies[0])


@dataclass(frozen=True)
class Quality:
    """What a chunk is judged by: its length in seconds and the inspiral range of each detector, Mpc."""

    duration: float
    ranges: Mapping[str, float]


@dataclass(frozen=True)
class Choice:
    """The chunk whose spectrum stands for a role (or, most sensitive, for a detector of a role), and why."""

    partition: str
    reason: str
    doubt: str = ""
    """What speaks against it; empty where nothing does."""


def frame_length(duration: float) -> float:
    """Seconds of a frame for a PSD of `duration` seconds: 8, halved until there are seven half-overlapping frames.

    Raises:
        ValueError: less than 2 s of data.
    """
    length = FFTLENGTH
    while length > 0.25 and duration < length * (MIN_FRAMES + 1) / 2:
        length /= 2
    if duration < length * (MIN_FRAMES + 1) / 2:
        raise ValueError(f"a reference PSD needs at least 1 s of strain, got {duration:g} s")
    return length


def reference_spectrum(strain: np.ndarray, sample_rate: float) -> Spectrum:
    """Median PSD of the middle `PROBE` seconds of a chunk (reference 2.6, exact form; frames of `frame_length`).

    Args:
        strain: shape (time,), float64.
        sample_rate: hertz.
    """
    import torch

    from aframe_assets.strain.conditioning import spectral_density

    size = min(len(strain), round(PROBE * sample_rate))
    first = (len(strain) - size) // 2
    length = frame_length(size / sample_rate)
    psd = spectral_density(torch.as_tensor(strain[first : first + size]), sample_rate, length).numpy()
    return Spectrum(np.arange(len(psd)) / length, psd)


def inspiral_range(spectrum: Spectrum, *, mass: float = 10.0, snr: float = 8.0, minimum_frequency: float = 20.0) -> float:
    """Distance in Mpc at which an equal-mass inspiral has `snr`, averaged over sky and orientation.

    Newtonian chirp, |h(f)| = sqrt(5/24) pi^(-2/3) (G Mc / c^3)^(5/6) c f^(-7/6) / D, from `minimum_frequency` to the
    innermost stable orbit c^3 / (6^(3/2) pi G M) (Allen et al. 2012, PRD 85 122006, appendix D); horizon / 2.2648
    (Finn & Chernoff 1993). No redshift: this ranks chunks, it is no distance reach.

    Args:
        mass: of each component, solar masses.
    """
    chirp = mass * 2 ** (-1 / 5) * MSUN * G / C**3
    last = 1 / (6**1.5 * np.pi * 2 * mass * MSUN * G / C**3)
    f = spectrum.frequencies
    use = (f >= minimum_frequency) & (f < last)
    integral = np.sum(f[use] ** (-7 / 3) / spectrum.psd[use]) * spectrum.df
    horizon = np.sqrt(4 * 5 / 24 * integral) * np.pi ** (-2 / 3) * chirp ** (5 / 6) * C / snr
    return float(horizon / 2.2648 / (1e6 * PC))


def choose_psd(chunks: Mapping[str, Quality]) -> Choice:
    """The chunk whose spectrum stands for all of `chunks`; the order of `chunks` does not matter.

    Left out are chunks whose range in any detector is zero, not finite or, with five chunks or more, farther than
    `OUTLIER` robust deviations from the median; then those shorter than half the longest left. Of the rest, the one
    whose ranges are nearest to the rest's medians (in its worst detector); then the longest; then the first by name.

    Raises:
        ValueError: no chunk can be used.
    """
    sound = {p: q for p, q in chunks.items() if all(_usable(r) for r in q.ranges.values())}
    if not sound:
        raise ValueError(f"no chunk of {len(chunks)} has a usable spectrum; expected at least one with a positive range in every detector")
    ifos = sorted(next(iter(sound.values())).ranges)
    typical = sound
    if len(sound) >= FEW:
        medians = _medians(sound, ifos)
        spread = {i: _spread([q.ranges[i] for q in sound.values()]) for i in ifos}
        typical = {p: q for p, q in sound.items() if all(abs(q.ranges[i] - medians[i]) <= OUTLIER * spread[i] for i in ifos)} or sound
    longest = max(q.duration for q in typical.values())
    long = {p: q for p, q in typical.items() if q.duration >= longest / 2}
    medians = _medians(long, ifos)

    def badness(p: str) -> tuple[float, float, str]:
        return max(abs(long[p].ranges[i] / medians[i] - 1) for i in ifos), -long[p].duration, p

    best = min(long, key=badness)
    dropped = sorted(set(chunks) - set(typical))
    ranges = ", ".join(f"{i} {long[best].ranges[i]:.4g} Mpc (median {medians[i]:.4g})" for i in ifos)
    text = (
        f"{long[best].duration:g} s; inspiral range {ranges}; "
        f"nearest to the medians of the {len(long)} chunks at least half as long as the longest, of {len(chunks)}"
    )
    if dropped:
        text += f"; left out as unusual: {', '.join(dropped[:5])}{' ...' if len(dropped) > 5 else ''}"
    return Choice(best, text)


def choose_most_sensitive(chunks: Mapping[str, Quality]) -> dict[str, Choice]:
    """For each detector the chunk with the largest range that can be trusted; the order of `chunks` does not matter.

    Each detector is judged alone: a bad hour of one says nothing about the other. A range is not trusted when

    * it is zero or not finite, or its chunk is shorter than half the longest (`PROBE` and longer are equal): a median of few
      frames scatters, and the best of many scattered spectra is only the luckiest;
    * of `FEW` chunks or more, it lies above the median by more than `OUTLIER` robust deviations, as where a detector was off,
      dead or miscalibrated - unless that is a better state of the detector, whose signals can be found: at least three chunks
      and a tenth of all are above and within `LARGEST_STATE` medians, or at least two and `ENOUGH` of all within `ONE_STATE`.

    Bad data lower a range tenfold and nothing about a detector raises it so; and a PSD that is too noisy rejects signals that
    can be found, where one too quiet only keeps some that cannot. Hence of fewer than `FEW` chunks the largest is taken.

    Returns:
        ifo -> choice; its `doubt` tells of larger ranges not trusted, and of a largest of few that stands `LARGEST_STATE` times
        above the next.

    Raises:
        ValueError: a detector without a usable spectrum.
    """
    out = {}
    for ifo in sorted({i for q in chunks.values() for i in q.ranges}):
        usable = {p: q for p, q in chunks.items() if _usable(q.ranges.get(ifo, np.nan))}
        if not usable:
            raise ValueError(f"no chunk of {len(chunks)} has a usable spectrum of {ifo}; expected at least one with a positive range")
        enough = min(max(q.duration for q in usable.values()), PROBE) / 2
        ranges = {p: q.ranges[ifo] for p, q in usable.items() if q.duration >= enough}
        median = float(np.median(list(ranges.values())))
        dropped = _not_trusted(ranges, median) if len(ranges) >= FEW else set()
        best = min(set(ranges) - dropped, key=lambda p: (-ranges[p], p))
        text = f"inspiral range {ifo} {ranges[best]:.4g} Mpc (median {median:.4g}), "
        text += f"the largest of {len(ranges)} chunks of at least {enough:g} s"
        dropped = {p for p in dropped if ranges[p] > ranges[best]}
        second = max((r for p, r in ranges.items() if p != best), default=ranges[best])
        doubt = ""
        if dropped:
            worst = max(dropped, key=lambda p: (ranges[p], p))
            text += f"; {len(dropped)} not trusted, up to {ranges[worst]:.4g} Mpc in {worst}"
            doubt = (
                f"{len(dropped)} of {len(ranges)} chunks, up to {ranges[worst]:.4g} Mpc in {worst}, not trusted: far above the median "
                f"{median:.4g} Mpc; where the detector was so good, the SNR cut rejects signals that could be found, and V is too small"
            )
        elif len(ranges) < FEW and ranges[best] > LARGEST_STATE * second:
            doubt = (
                f"{best} has {ranges[best]:.4g} Mpc, the next of {len(ranges)} chunks {second:.4g}; if not the others but this one is bad, "
                "the SNR cut keeps many signals that cannot be found, and V is known less well"
            )
        out[ifo] = Choice(best, text, doubt)
    return out


def _not_trusted(ranges: Mapping[str, float], median: float) -> set[str]:
    limit = median + OUTLIER * _spread(list(ranges.values()))
    above = {p: r for p, r in ranges.items() if r > limit}
    better = {p for p, r in above.items() if r <= LARGEST_STATE * median}
    trusted = better if len(better) >= max(3, 0.1 * len(ranges)) else set()
    for top in above.values():
        alike = {p for p, r in above.items() if top / ONE_STATE <= r <= top}
        if len(alike) >= max(2, ENOUGH * len(ranges)):
            trusted = trusted | alike
    return set(above) - trusted


def _usable(value: float) -> bool:
    return bool(np.isfinite(value) and value > 0)


def _spread(ranges: Sequence[float]) -> float:
    # chunks of one night agree to a percent; a deviation below 2 % is no outlier however well the others agree
    median = np.median(ranges)
    return max(1.4826 * float(np.median(np.abs(np.asarray(ranges) - median))), 0.02 * float(median))


def _medians(chunks: Mapping[str, Quality], ifos: Sequence[str]) -> dict[str, float]:
    return {i: float(np.median([q.ranges[i] for q in chunks.values()])) for i in ifos}


def write_psd(
    path: Path, roles: Mapping[str, Mapping[str, Spectrum]], attributes: Mapping[str, Mapping[str, object]] | None = None
) -> None:
    """Write reference PSDs: a group per role, a dataset per detector, with gwpy's attributes and `df`.

    Args:
        path: the file to make.
        roles: role, or role + `MOST_SENSITIVE`, -> ifo -> spectrum.
        attributes: the same -> what to keep with the group (chunk, reason).
    """
    with h5py.File(path, "w") as f:
        for role, spectra in roles.items():
            group = f.create_group(role)
            group.attrs.update(dict((attributes or {}).get(role, {})))
            for ifo, s in spectra.items():
                data = group.create_dataset(ifo, data=np.asarray(s.psd, dtype=np.float64))
                data.attrs.update({"x0": 0.0, "dx": s.df, "df": s.df, "xunit": "Hz", "unit": "1 / Hz", "name": ifo, "channel": ifo})


def read_psd(
    path: Path, role: str, ifos: Sequence[str] | None = None, most_sensitive: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reference PSDs of one role: typical ones, or those of each detector's most sensitive chunk.

    Returns:
        ifo -> (frequencies in Hz, PSD in 1/Hz), each of shape (freq,), in the order of `ifos` or of the file.

    Raises:
        StrainError: unreadable file, or no such role or detector in it; a file of a version that chose no most sensitive PSD.
    """
    name = role + MOST_SENSITIVE if most_sensitive else role
    try:
        with h5py.File(path, "r") as f:
            if role not in f:
                roles = [r for r in f if not r.endswith(MOST_SENSITIVE)]
                raise StrainError(f"{path}: no reference PSD for role '{role}'; the file holds {', '.join(roles) or 'none'}")
            if name not in f:
                raise StrainError(
                    f"{path}: only the typical PSD of role '{role}', not the most sensitive one (group '{name}'): an older version "
                    "made this file; make it anew with `aframe run --until psd`"
                )
            group = f[name]
            wanted = list(ifos) if ifos is not None else list(group)
            missing = [i for i in wanted if i not in group]
            if missing:
                raise StrainError(f"{path}: no {name} PSD of {', '.join(missing)}; the file holds {', '.join(group)}")
            return {i: (np.arange(len(group[i])) * float(group[i].attrs["df"]), group[i][:]) for i in wanted}
    except OSError as e:
        raise StrainError(f"{path}: not a readable PSD file ({e})") from None
