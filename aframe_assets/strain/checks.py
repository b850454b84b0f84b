"""What must hold of background strain and reference PSDs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.store.job import Check, Declared

if TYPE_CHECKING:
    from aframe_assets.config import Conditioning
    from aframe_assets.strain.psd import Spectrum

STRAIN_STD = (1e-24, 1e-15)
"""Standard deviation of calibrated strain from 10 Hz or so up; a file in other units, or scaled by 1e21, is outside."""

DECADES_FROM_DESIGN = 1.5
DECADES_BETWEEN_DETECTORS = 1.0
"""Largest distance, in factors of ten of the median ASD of `BAND`, from a design curve and between detectors."""

DEEPEST = 0.1
"""Lowest ASD within the used band, of the median in `BAND`: detectors are never quieter, filters of resampling are."""

BAND = (40.0, 400.0)
"""Hertz."""

WHITENED_STD = (0.9, 1.3)
"""Standard deviation of whitened noise (DESIGN, decision 6)."""

EXCEEDED = 1.05
"""Range of new data, in ranges of the frozen most sensitive spectrum, from which a warning is given."""

DESIGN_CURVE = "aLIGO_O4_high_asd.txt"


BACKGROUND_CHECKS = [
    Declared("no_nan_no_gap", True, "Every sample is finite; no stretch is constant."),
    Declared("strain_scale", True, f"Standard deviation of each detector's strain between {STRAIN_STD[0]:g} and {STRAIN_STD[1]:g}."),
]
INDEX_CHECKS = [Declared("all_segments_present", False, "0 registered segments are without background.")]
PSD_CHECKS = [
    Declared("psd_finite", True, "Every bin of every spectrum is finite and positive."),
    Declared(
        "psd_holds_to_its_edges",
        True,
        f"Within the whitened band no ASD falls below {DEEPEST:g} of its median in {BAND[0]:g} to {BAND[1]:g} Hz.",
    ),
    Declared(
        "psd_near_design",
        False,
        f"Median ASD of {BAND[0]:g} to {BAND[1]:g} Hz within a factor 10^{DECADES_FROM_DESIGN:g} of {DESIGN_CURVE}.",
    ),
    Declared(
        "detectors_comparable",
        False,
        f"Median ASDs of {BAND[0]:g} to {BAND[1]:g} Hz of a role's detectors within a factor 10^{DECADES_BETWEEN_DETECTORS:g}.",
    ),
    Declared("whitened_std", False, f"Standard deviation of whitened strain {WHITENED_STD[0]:g} to {WHITENED_STD[1]:g}."),
    Declared(
        "most_sensitive_holds",
        False,
        f"No chunk has above {EXCEEDED:g} times the range of its role's frozen most sensitive one; nothing speaks against that choice.",
    ),
]
"""Of each asset of this room."""


def background_checks(strain: Mapping[str, np.ndarray], gps_start: float, sample_rate: float) -> list[Check]:
    """Strain is finite, without gaps, and of the size of strain.

    Args:
        strain: ifo -> shape (time,).
    """
    from aframe_assets.strain.fetch import first_fault

    faults = {i: f for i, x in strain.items() if (f := first_fault(x, sample_rate))}
    text = "; ".join(f"{i}: {what} at GPS {gps_start + k / sample_rate:.4f}" for i, (k, what) in faults.items())
    std = {i: float(np.std(x)) for i, x in strain.items()}
    low, high = STRAIN_STD
    odd = [i for i, s in std.items() if not low <= s <= high]
    scale = "; ".join(f"{i} has standard deviation {std[i]:.3g}, expected {low:g} to {high:g}" for i in odd)
    return [
        Check("no_nan_no_gap", not faults, "error", text, {"samples": sum(map(len, strain.values()))}),
        Check("strain_scale", not odd, "error", scale, {f"{i}_std": s for i, s in std.items()}),
    ]


def band_asd(spectrum: Spectrum) -> float:
    """Median amplitude spectral density in `BAND`, 1/sqrt(Hz)."""
    use = (spectrum.frequencies >= BAND[0]) & (spectrum.frequencies < BAND[1])
    return float(np.sqrt(np.median(spectrum.psd[use])))


def psd_checks(
    roles: Mapping[str, Mapping[str, Spectrum]], stds: Mapping[str, Mapping[str, float]], used: tuple[float, float] = BAND
) -> list[Check]:
    """Reference PSDs can be divided by, and look like those of detectors.

    Args:
        roles: role -> ifo -> spectrum.
        stds: role -> ifo -> standard deviation of the chunk's whitened strain (`whitened_std`).
        used: band of whitening and SNR, Hz.
    """
    from aframe_assets.strain.simulated import read_curve

    every = {f"{r} {i}": s for r, spectra in roles.items() for i, s in spectra.items()}
    bad = {k: int((~(np.isfinite(s.psd) & (s.psd > 0))).sum()) for k, s in every.items()}
    bad = {k: n for k, n in bad.items() if n}
    band = {k: band_asd(s) for k, s in every.items()}
    f, asd = read_curve(DESIGN_CURVE)
    design = float(np.median(asd[(f >= BAND[0]) & (f < BAND[1])]))
    far = {k: np.log10(a / design) for k, a in band.items() if not abs(np.log10(a / design)) <= DECADES_FROM_DESIGN}
    spans = {r: np.log10(max(a) / min(a)) for r in roles if (a := [band[f"{r} {i}"] for i in roles[r]])}
    apart = {r: d for r, d in spans.items() if not d <= DECADES_BETWEEN_DETECTORS}
    fallen = {k: hz for k, s in every.items() if (hz := _falls_at(s, used, DEEPEST * band[k])) is not None}
    low, high = WHITENED_STD
    std = {f"{r} {i}": s for r, own in stds.items() for i, s in own.items()}
    odd = {k: s for k, s in std.items() if not low <= s <= high}
    return [
        Check(
            "psd_finite",
            not bad,
            "error",
            "; ".join(f"{k}: {n} bins are not finite and positive" for k, n in bad.items()),
            {"spectra": len(every)},
        ),
        Check(
            "psd_holds_to_its_edges",
            not fallen,
            "error",
            "; ".join(
                f"{k}: ASD falls below {DEEPEST:g} of its level in mid-band at {hz:g} Hz, where strain was filtered away; signals there "
                "would have SNR that no detector sees: lower conditioning.lowpass"
                for k, hz in fallen.items()
            ),
            {"highpass": float(used[0]), "lowpass": float(used[1])},
        ),
        Check(
            "psd_near_design",
            not far,
            "warn",
            "; ".join(f"{k}: ASD of {BAND[0]:g} to {BAND[1]:g} Hz is 10^{d:.1f} times that of {DESIGN_CURVE}" for k, d in far.items()),
            band,
        ),
        Check(
            "detectors_comparable",
            not apart,
            "warn",
            "; ".join(f"{r}: detectors differ by 10^{d:.1f} in ASD of {BAND[0]:g} to {BAND[1]:g} Hz" for r, d in apart.items()),
            {f"{r}_decades": float(d) for r, d in spans.items()},
        ),
        Check(
            "whitened_std",
            not odd,
            "warn",
            "; ".join(
                f"{k}: whitened strain has standard deviation {s:.2f}, expected {low} to {high}; its lines are "
                "wider than the filter can remove"
                for k, s in odd.items()
            ),
            std,
        ),
    ]


def most_sensitive_check(exceeded: Mapping[str, str], doubted: Mapping[str, str], roles: int) -> Check:
    """No data are clearly more sensitive than the frozen most sensitive spectrum of their role, and nothing speaks against the choice.

    Args:
        exceeded: "role ifo" -> the chunk that would be chosen now, and why.
        doubted: "role ifo" -> what speaks against that choice.
        roles: number of roles with data.
    """
    told = [
        f"{k}: another chunk is more sensitive than the one chosen before it came ({why}); signals below waveforms.snr_threshold could be "
        "found in it, and the sensitive volume is a little too small"
        for k, why in exceeded.items()
    ]
    told += [f"{k}: {why}" for k, why in doubted.items()]
    return Check("most_sensitive_holds", not told, "warn", "; ".join(told), {"roles": roles})


def _falls_at(spectrum: Spectrum, used: tuple[float, float], floor: float) -> float | None:
    f = spectrum.frequencies
    low = (f >= used[0]) & (f < used[1]) & (np.sqrt(np.abs(spectrum.psd)) < floor)
    return float(f[low][0]) if low.any() else None


def whitened_std(strain: np.ndarray, sample_rate: float, conditioning: Conditioning) -> float:
    """Median over kernels of the standard deviation of strain whitened with its own PSD (DESIGN, decision 6).

    Args:
        strain: shape (time,), float64, at least psd_length and kernel_length + fduration seconds; the middle 256 s are used.
        sample_rate: hertz.

    Returns:
        About 1; the median, so that a glitch does not count.
    """
    import torch

    from aframe_assets.strain.conditioning import Whitener

    size = min(len(strain), round(max(256.0, conditioning.psd_length) * sample_rate))
    first = (len(strain) - size) // 2
    whitener = Whitener(conditioning, sample_rate)
    data = torch.as_tensor(strain[first : first + size])[None]
    white = whitener.whiten(data, whitener.psd(data))[0]
    kernel = round(conditioning.kernel_length * sample_rate)
    return float(white.unfold(-1, kernel, max(1, kernel // 2)).std(-1).median())
