"""Conversions of source parameters: frames, masses, spins, distance. Vectorised, float64.

Angles are radians, masses solar masses, distances Mpc; the cosmology is Planck15 everywhere (reference 2.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from aframe_assets.waveforms.frames import DetectorFrame, SourceFrame

INTRINSIC = ("mass_1", "mass_2", "a_1", "a_2", "tilt_1", "tilt_2", "phi_12", "phi_jl")
EXTRINSIC = ("ra", "dec", "redshift", "psi", "theta_jn", "phase")
SIGNAL = INTRINSIC + EXTRINSIC
"""Names of the parameters of a signal."""
MAX_REDSHIFT = 20.0


def chirp_mass(mass_1: np.ndarray, mass_2: np.ndarray) -> np.ndarray:
    """(m1 m2)^(3/5) / (m1 + m2)^(1/5)."""
    return (mass_1 * mass_2) ** 0.6 / (mass_1 + mass_2) ** 0.2


def mass_ratio(mass_1: np.ndarray, mass_2: np.ndarray) -> np.ndarray:
    """Lighter over heavier mass, in (0, 1]."""
    return np.minimum(mass_1, mass_2) / np.maximum(mass_1, mass_2)


def distance_of_chirp(chirp_distance: np.ndarray, mass_1: np.ndarray, mass_2: np.ndarray) -> np.ndarray:
    """Luminosity distance, Mpc, of a chirp distance, Mpc (arXiv:2209.11146, section on data sets).

    A binary with detector-frame masses `mass_1`, `mass_2` has the amplitude of one of 1.4 + 1.4 solar masses at the chirp
    distance: strain goes as chirp mass^(5/6) / distance.
    """
    return np.asarray(chirp_distance, float) * (chirp_mass(mass_1, mass_2) / chirp_mass(1.4, 1.4)) ** (5 / 6)


def component_masses(chirp: np.ndarray, ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mass_1, mass_2), heavier first, of a chirp mass and a ratio in (0, 1]."""
    mass_1 = chirp * (1 + ratio) ** 0.2 / ratio**0.6
    return mass_1, mass_1 * ratio


@lru_cache(maxsize=1)
def _distance_table():
    # Planck15 has massive neutrinos, so astropy integrates point by point; a spline of 2000 knots is good to 1e-8
    from bilby.gw.cosmology import get_cosmology
    from scipy.interpolate import CubicSpline

    x = np.linspace(0, np.log1p(MAX_REDSHIFT), 2000)
    distance = get_cosmology("Planck15").luminosity_distance(np.expm1(x)).value
    return CubicSpline(x, distance), CubicSpline(distance, x)


def luminosity_distance(redshift: np.ndarray) -> np.ndarray:
    """Mpc, for 0 <= redshift <= 20.

    Raises:
        ValueError: a redshift outside that range.
    """
    z = np.asarray(redshift, float)
    if z.size and not (z.min() >= 0 and z.max() <= MAX_REDSHIFT):
        raise ValueError(f"redshift must lie in [0, {MAX_REDSHIFT:g}]; got {z.min():g} to {z.max():g}")
    return _distance_table()[0](np.log1p(z))


def redshift_at(distance: np.ndarray) -> np.ndarray:
    """The redshift of a luminosity distance in Mpc; inverse of `luminosity_distance`."""
    return np.expm1(_distance_table()[1](np.asarray(distance, float)))


def complete(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All parameters of a signal (`SIGNAL`), float64, in the frame they came in; a spin or angle that is not given is 0.

    Raises:
        ValueError: a mass or the redshift is not given.
    """
    missing = {"mass_1", "mass_2", "redshift"} - set(values)
    if missing:
        raise ValueError(f"a signal needs {sorted(missing)}; got {sorted(values)}")
    n = len(values["mass_1"])
    kind = type(values) if isinstance(values, SourceFrame | DetectorFrame) else dict
    return kind({name: np.asarray(values.get(name, np.zeros(n)), np.float64) for name in SIGNAL})


def lal_spins(values: Mapping[str, np.ndarray], reference_frequency: float | np.ndarray) -> dict[str, np.ndarray]:
    """Inclination and Cartesian spins in LAL's frame at `reference_frequency` (Hz, a number or one per signal).

    ml4gw's transcription of SimInspiralTransformPrecessingNewInitialConditions takes one frequency. Only the product
    of mass and frequency enters beside ratios of masses, so a frequency per signal is given by scaling the masses.

    Returns:
        inclination, s1x, s1y, s1z, s2x, s2y, s2z, each of shape (n,).
    """
    import torch
    from ml4gw.waveforms.conversion import bilby_spins_to_lalsim

    t = {k: torch.as_tensor(np.asarray(values[k], np.float64)) for k in SIGNAL}
    f = torch.as_tensor(np.broadcast_to(np.asarray(reference_frequency, np.float64), t["mass_1"].shape).copy())
    if not (f > 0).all():
        raise ValueError(f"reference_frequency must be positive; got {float(f.min()):g} Hz")
    angles = (t[k] for k in ("theta_jn", "phi_jl", "tilt_1", "tilt_2", "phi_12", "a_1", "a_2"))
    out = bilby_spins_to_lalsim(*angles, t["mass_1"] * f, t["mass_2"] * f, 1.0, t["phase"])
    names = ("inclination", "s1x", "s1y", "s1z", "s2x", "s2y", "s2z")
    return {k: v.numpy() for k, v in zip(names, out, strict=True)}
