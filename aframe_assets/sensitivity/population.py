"""Populations that a volume is weighted from and to, and the comoving volume they live in.

All masses here are source-frame solar masses, redshifts are cosmological (Planck15), volumes Gpc^3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from aframe_assets.waveforms.prior_files import FOR_VOLUME

_NODES = 400
_LATTICE = (28657, 17711)  # two Fibonacci numbers
ASTROPHYSICAL = "end_o3_ratesandpops"
"""The population that stands for nature in p_astro."""


@dataclass(frozen=True)
class Population:
    """What the injections were drawn from.

    Attributes:
        log_density: ln p(mass_1, mass_2 | redshift) of source-frame masses, arrays of equal shape -> array; -inf outside the support.
        redshift_range: lowest and highest redshift drawn.
        comoving: redshifts are drawn from dVc/dz (bilby's UniformComovingVolume); False: from dVc/dz / (1 + z).
        dec_range: declinations drawn, radians.
        detector_frame: the masses drawn are those in the detector, so that the source-frame support moves with redshift.
    """

    log_density: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] = field(repr=False)
    redshift_range: tuple[float, float]
    comoving: bool = True
    dec_range: tuple[float, float] = (-math.pi / 2, math.pi / 2)
    detector_frame: bool = False

    @classmethod
    def of(cls, prior: Any) -> Population:
        """From an `aframe_assets.waveforms.priors.Prior`.

        Raises:
            ValueError: redshifts are distributed in another way than the two that have a volume weight, or the sky is not
                drawn evenly (a band of declinations may be left out, nothing else).
        """
        if prior.volume_flaw:
            raise ValueError(f"injections.prior = {prior.name}: {prior.volume_flaw}; {FOR_VOLUME}")
        comoving, moving = prior.redshift_kind == "comoving", prior.frame == "detector"
        return cls(prior.log_mass_density, prior.redshift_range, comoving, prior.declination_range, moving)

    @property
    def volume(self) -> float:
        """V0 = Omega int dVc/dz / (1 + z) dz over the range of the draws, Gpc^3 (reference 2.13, step 4)."""
        return comoving_volume(*self.redshift_range, *self.dec_range, time_dilated=True)

    @property
    def solid_angle(self) -> float:
        """Of the declinations drawn, steradian."""
        return 2 * math.pi * (math.sin(self.dec_range[1]) - math.sin(self.dec_range[0]))

    def log_redshift_weight(self, redshift: np.ndarray) -> np.ndarray:
        """ln of p_target(z) / p_source(z) where sources are uniform in comoving volume and source-frame time.

        C_z / (1 + z) with C_z = int dVc / int dVc / (1 + z) for draws from dVc/dz (reference 2.13, correct estimator);
        zero for draws that carry the 1 / (1 + z) themselves.
        """
        if not self.comoving:
            return np.zeros(np.shape(redshift))
        ratio = comoving_volume(*self.redshift_range) / comoving_volume(*self.redshift_range, time_dilated=True)
        return math.log(ratio) - np.log1p(redshift)

    def supports(self, mass_1: np.ndarray, mass_2: np.ndarray) -> np.ndarray:
        """Mask of masses that can be drawn at every redshift (a prior in the detector frame covers others at each)."""
        if not self.detector_frame:
            return np.isfinite(self.log_density(mass_1, mass_2, np.zeros(np.shape(mass_1))))
        ends = [self.log_density(mass_1, mass_2, np.full(np.shape(mass_1), z)) for z in self.redshift_range]
        return np.isfinite(ends[0]) & np.isfinite(ends[1])

    def log_density_of_draws(self, mass_1: np.ndarray, mass_2: np.ndarray, redshift: np.ndarray) -> np.ndarray:
        """`log_density` where masses may lie a rounding error (1e-6) outside an edge of the support.

        Raises:
            ValueError: draws that this population cannot have made, with the first of them.
        """
        out = np.array(self.log_density(mass_1, mass_2, redshift), dtype=np.float64)
        for sign in (-1, 1):
            bad = np.flatnonzero(~np.isfinite(out))
            if len(bad):
                out[bad] = self.log_density(mass_1[bad] * (1 + sign * 1e-6), mass_2[bad] * (1 - sign * 1e-6), redshift[bad])
        bad = np.flatnonzero(~np.isfinite(out))
        if len(bad):
            i = bad[0]
            raise ValueError(
                f"{len(bad)} of {len(out)} injections lie outside their prior, the first with source-frame masses "
                f"({mass_1[i]:.3f}, {mass_2[i]:.3f}) at redshift {redshift[i]:.4f}; injections.prior must be the one they were drawn from"
            )
        return out


def differential_volume(redshift: np.ndarray) -> np.ndarray:
    """dVc/dz per steradian, Gpc^3/sr, Planck15."""
    from astropy.cosmology import Planck15

    return Planck15.differential_comoving_volume(np.asarray(redshift, dtype=float)).value / 1e9


@lru_cache(maxsize=256)
def comoving_volume(
    z_min: float, z_max: float, dec_min: float = -math.pi / 2, dec_max: float = math.pi / 2, *, time_dilated: bool = False
) -> float:
    """Comoving volume of a shell and a declination band, Gpc^3.

    Args:
        z_min, z_max: redshifts, 0 <= z_min <= z_max.
        dec_min, dec_max: radians.
        time_dilated: divide dVc/dz by 1 + z, which makes it the volume of a rate per detector time.

    Raises:
        ValueError: z_max < z_min or a negative redshift.
    """
    if not 0 <= z_min <= z_max:
        raise ValueError(f"redshift range ({z_min:g}, {z_max:g}): expected 0 <= minimum <= maximum")
    x, weights = np.polynomial.legendre.leggauss(_NODES)
    half = (z_max - z_min) / 2
    if half == 0:
        return 0.0
    z = z_min + half * (x + 1)
    shell = differential_volume(z) / (1 + z if time_dilated else 1)
    solid_angle = 2 * math.pi * (math.sin(dec_max) - math.sin(dec_min))
    return float(half * (weights * shell).sum() * solid_angle)


@dataclass(frozen=True)
class LogNormalPair:
    """Target of one mass pair: independent log-normals about (mass_1, mass_2), restricted to the prior's support.

    Attributes:
        mass_1, mass_2: medians, solar masses, source frame.
        sigma: standard deviation of the logarithms.
    """

    mass_1: float
    mass_2: float
    sigma: float

    @property
    def name(self) -> str:
        return f"{self.mass_1:g}-{self.mass_2:g}"

    @property
    def label(self) -> str:
        return f"({self.mass_1:g}, {self.mass_2:g})"

    def log_density(self, log_mass_1: np.ndarray, log_mass_2: np.ndarray) -> np.ndarray:
        """ln p(m1, m2) per solar mass squared on the whole plane, of logarithms of masses."""
        d1, d2 = (log_mass_1 - math.log(self.mass_1)) / self.sigma, (log_mass_2 - math.log(self.mass_2)) / self.sigma
        return -(d1 * d1 + d2 * d2) / 2 - log_mass_1 - log_mass_2 - 2 * math.log(self.sigma * math.sqrt(2 * math.pi))

    @lru_cache(maxsize=64)  # noqa: B019 - keyed by two small frozen values
    def support(self, population: Population) -> tuple[float, float]:
        """Probability of the target inside the population's support, and the share of its part m2 <= m1 that is inside.

        On a Fibonacci lattice of equal probability; the error is about 3e-4. The first normalises the density, which does not enter
        a self-normalised volume, only the one that is divided by the number of draws.
        """
        from scipy.special import ndtri

        i = np.arange(_LATTICE[0])
        u1, u2 = (i + 0.5) / _LATTICE[0], (i * _LATTICE[1] % _LATTICE[0] + 0.5) / _LATTICE[0]
        m1, m2 = self.mass_1 * np.exp(self.sigma * ndtri(u1)), self.mass_2 * np.exp(self.sigma * ndtri(u2))
        inside, ordered = population.supports(m1, m2), m2 <= m1
        return float(inside.mean()), float((inside & ordered).sum() / max(1, ordered.sum()))
