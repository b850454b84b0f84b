"""Reference power spectra: one per detector and role, from a chunk chosen for its quality, never for its place in a list.

A chunk's quality is its inspiral range in each detector. The chosen chunk is typical: among the long ones it is the one
whose ranges are nearest to the medians of its role. (Upstream takes the last file, whatever it is; reference 2.4.)
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
    """The chunk whose spectrum stands for a role, and why."""

    partition: str
    reason: str


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
    sound = {p: q for p, q in chunks.items() if all(np.isfinite(r) and r > 0 for r in q.ranges.values())}
    if not sound:
        raise ValueError(f"no chunk of {len(chunks)} has a usable spectrum; expected at least one with a positive range in every detector")
    ifos = sorted(next(iter(sound.values())).ranges)
    typical = sound
    if len(sound) >= 5:
        medians = _medians(sound, ifos)
        # chunks of one night agree to a percent; a deviation below 2 % is no outlier however well the others agree
        spread = {
            i: max(1.4826 * float(np.median([abs(q.ranges[i] - medians[i]) for q in sound.values()])), 0.02 * medians[i]) for i in ifos
        }
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


def _medians(chunks: Mapping[str, Quality], ifos: Sequence[str]) -> dict[str, float]:
    return {i: float(np.median([q.ranges[i] for q in chunks.values()])) for i in ifos}


def write_psd(
    path: Path, roles: Mapping[str, Mapping[str, Spectrum]], attributes: Mapping[str, Mapping[str, object]] | None = None
) -> None:
    """Write reference PSDs: a group per role, a dataset per detector, with gwpy's attributes and `df`.

    Args:
        path: the file to make.
        roles: role -> ifo -> spectrum.
        attributes: role -> what to keep with the group (chunk, reason).
    """
    with h5py.File(path, "w") as f:
        for role, spectra in roles.items():
            group = f.create_group(role)
            group.attrs.update(dict((attributes or {}).get(role, {})))
            for ifo, s in spectra.items():
                data = group.create_dataset(ifo, data=np.asarray(s.psd, dtype=np.float64))
                data.attrs.update({"x0": 0.0, "dx": s.df, "df": s.df, "xunit": "Hz", "unit": "1 / Hz", "name": ifo, "channel": ifo})


def read_psd(path: Path, role: str, ifos: Sequence[str] | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reference PSDs of one role.

    Returns:
        ifo -> (frequencies in Hz, PSD in 1/Hz), each of shape (freq,), in the order of `ifos` or of the file.

    Raises:
        StrainError: unreadable file, or no such role or detector in it.
    """
    try:
        with h5py.File(path, "r") as f:
            if role not in f:
                raise StrainError(f"{path}: no reference PSD for role '{role}'; the file holds {', '.join(f) or 'none'}")
            wanted = list(ifos) if ifos is not None else list(f[role])
            missing = [i for i in wanted if i not in f[role]]
            if missing:
                raise StrainError(f"{path}: no {role} PSD of {', '.join(missing)}; the file holds {', '.join(f[role])}")
            return {i: (np.arange(len(f[role][i])) * float(f[role][i].attrs["df"]), f[role][i][:]) for i in wanted}
    except OSError as e:
        raise StrainError(f"{path}: not a readable PSD file ({e})") from None
