"""Whether the injections reach farther than the search: V cannot be larger than where signals were drawn."""

from __future__ import annotations

import numpy as np

from aframe_assets.sensitivity.population import LogNormalPair, Population, comoving_volume
from aframe_assets.sensitivity.volume import Draws

SHELL = 0.1
"""The outermost part of V0 that is looked at."""

FAINT = 0.05
"""Efficiency there above which V is cut off: what lies beyond the farthest injections would be found as well."""


def shell_redshift(population: Population) -> float:
    """The redshift beyond which `SHELL` of V0 lies."""
    from scipy.optimize import brentq

    low, high = population.redshift_range
    whole = comoving_volume(low, high, time_dilated=True)
    return float(brentq(lambda z: comoving_volume(low, z, time_dilated=True) - (1 - SHELL) * whole, low, high, xtol=1e-6))


def shell_efficiency(
    draws: Draws, population: Population, target: LogNormalPair, threshold: float, from_redshift: float
) -> tuple[float, float]:
    """Weighted share of a target's signals at or above `threshold` among draws beyond `from_redshift`, and its standard error.

    Weights are those of V (reference 2.13, corrected); (0, 0) where no draw beyond it has any weight.
    """
    far = draws.redshift >= from_redshift
    m1, m2, z = draws.mass_1[far], draws.mass_2[far], draws.redshift[far]
    if not len(z):
        return 0.0, 0.0
    log_weight = target.log_density(np.log(m1), np.log(m2)) - population.log_density_of_draws(m1, m2, z)
    log_weight = np.where(population.supports(m1, m2), log_weight + population.log_redshift_weight(z), -np.inf)
    top = float(log_weight.max())
    if not np.isfinite(top):
        return 0.0, 0.0
    w = np.exp(log_weight - top)
    found = draws.statistic[far] >= threshold
    share = float(w[found].sum() / w.sum())
    return share, float(np.sqrt(((w * (found - share)) ** 2).sum()) / w.sum())


def cut_off(efficiency: float, error: float) -> bool:
    """Whether V is cut off: the efficiency at the farthest injections is above `FAINT`, by twice its error."""
    return efficiency - 2 * error > FAINT
