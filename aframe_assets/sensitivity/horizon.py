"""Whether the injections reach farther than the search: V cannot be larger than where signals were drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aframe_assets.sensitivity.population import LogNormalPair, Population, comoving_volume
from aframe_assets.sensitivity.volume import Draws

PART = 0.1
"""The outermost part of V0 that is looked at."""

FAINT = 0.05
"""Efficiency there above which V is cut off: what lies beyond the farthest injections would be found as well."""


@dataclass(frozen=True)
class Shell:
    """The draws in the outermost `PART` of V0.

    Attributes:
        redshift: where it begins.
        statistic: of the draws in it (num,).
        log_mass_1, log_mass_2: of source-frame masses (num,).
        log_constant: what every target's weight shares, ln of C_z / (1 + z) / p_source (num,).
    """

    redshift: float
    statistic: np.ndarray
    log_mass_1: np.ndarray
    log_mass_2: np.ndarray
    log_constant: np.ndarray

    @classmethod
    def of(cls, draws: Draws, population: Population) -> Shell:
        """Raises ValueError when a draw lies outside the population it is said to come from."""
        from scipy.optimize import brentq

        low, high = population.redshift_range
        inner = (1 - PART) * comoving_volume(low, high, time_dilated=True)
        start = float(brentq(lambda z: comoving_volume(low, z, time_dilated=True) - inner, low, high, xtol=1e-6))
        far = draws.redshift >= start
        m1, m2, z = draws.mass_1[far], draws.mass_2[far], draws.redshift[far]
        log_source = np.where(population.supports(m1, m2), population.log_density_of_draws(m1, m2, z), np.inf)
        return cls(start, draws.statistic[far], np.log(m1), np.log(m2), population.log_redshift_weight(z) - log_source)

    def efficiency(self, target: LogNormalPair, threshold: float) -> tuple[float, float]:
        """Weighted share of the target's signals here that are at or above `threshold`, and its standard error.

        Weights are those of V (reference 2.13, corrected); (0, 0) where no draw has any.
        """
        log_weight = target.log_density(self.log_mass_1, self.log_mass_2) + self.log_constant
        top = float(log_weight.max(initial=-np.inf))
        if not np.isfinite(top):
            return 0.0, 0.0
        w = np.exp(log_weight - top)
        found = self.statistic >= threshold
        share = float(w[found].sum() / w.sum())
        return share, float(np.sqrt(((w * (found - share)) ** 2).sum()) / w.sum())


def cut_off(efficiency: float, error: float) -> bool:
    """Whether V is cut off: the efficiency at the farthest injections is above `FAINT`, by twice its error."""
    return efficiency - 2 * error > FAINT
