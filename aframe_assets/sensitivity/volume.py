"""Sensitive volume by importance sampling of injections (reference 2.13).

With draws i of masses and redshift, all of them (accepted, rejected, found and missed),

    w_i = p_target(m1, m2) / p_source(m1, m2) * C_z / (1 + z),   mu(x) = sum w_i [statistic_i >= x] / sum w_i,   V = V0 mu,

with variance sum w_i^2 ([statistic_i >= x] - mu)^2 / (sum w_i)^2 over all draws. `compatible` reproduces Aframe v1 instead:
mass weights only (which counts distant signals too often and gives 0.49 to 0.76 of the true volume), and a variance over
accepted draws only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aframe_assets.sensitivity.population import LogNormalPair, Population

LIMIT_CONFIDENCE = 0.9
"""Confidence of upper limits on V."""


@dataclass(frozen=True)
class Draws:
    """Every draw of an injection campaign.

    Attributes:
        statistic: detection statistic of the event that recovered it, -inf where none did or the draw was rejected.
        mass_1, mass_2: source-frame solar masses.
        redshift: cosmological redshift.
        accepted: whether the draw passed the SNR cut and was injected.
        num_outside_window: found rows counted as missed because the event is too far from the injection in time.
        num_too_loud: draws left out because their SNR is above `snr_max` (they sit at redshift zero).
        snr: network SNR, where known.
    """

    statistic: np.ndarray
    mass_1: np.ndarray
    mass_2: np.ndarray
    redshift: np.ndarray
    accepted: np.ndarray
    num_outside_window: int = 0
    num_too_loud: int = 0
    snr: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.statistic)

    @classmethod
    def of(cls, foreground, rejected, *, recovery_window: float = np.inf, snr_max: float = 1e4) -> Draws:
        """From a RecoveredInjectionSet and the InjectionParameterSet of rejected draws (masses in the detector frame).

        Args:
            recovery_window: seconds; an event farther than this from its injection does not recover it.
            snr_max: draws with a higher SNR are left out.
        """
        found = np.asarray(foreground.detection_statistic, dtype=np.float64)
        found = np.where(np.isnan(found), -np.inf, found)
        with np.errstate(invalid="ignore"):
            far_away = np.isfinite(found) & ~(np.abs(foreground.detection_time - foreground.injection_time) <= recovery_window + 1e-6)
        found = np.where(far_away, -np.inf, found)
        statistic = np.concatenate([found, np.full(len(rejected), -np.inf)])
        accepted = np.arange(len(statistic)) < len(found)

        def both(name: str) -> np.ndarray:
            return np.concatenate([getattr(foreground, name), getattr(rejected, name)]).astype(np.float64)

        redshift, snr = both("redshift"), both("snr")
        keep = ~(snr > snr_max)
        return cls(
            statistic[keep],
            (both("mass_1") / (1 + redshift))[keep],
            (both("mass_2") / (1 + redshift))[keep],
            redshift[keep],
            accepted[keep],
            int(far_away.sum()),
            int((~keep).sum()),
            snr[keep],
        )


@dataclass(frozen=True)
class Estimate:
    """V of one target at several thresholds; arrays of shape (num_thresholds,).

    Attributes:
        volume, error: Gpc^3, with one standard deviation.
        found_samples: effective sample size of the found draws, (sum w)^2 / sum w^2.
        upper_limit: 90 % upper limit of V, Gpc^3.
        total_samples: effective sample size of all draws.
        mean_weight, mean_weight_error: mean of p_target / p_source over all draws; 1 when the draws follow p_source and
            cover the target.
        coverage: share of the target (its part m2 <= m1) inside the support of the draws.
    """

    volume: np.ndarray
    error: np.ndarray
    found_samples: np.ndarray
    upper_limit: np.ndarray
    total_samples: float
    mean_weight: float
    mean_weight_error: float
    coverage: float


@dataclass(frozen=True)
class Sample:
    """Draws made ready for many targets: logarithms and the bin of every statistic among the thresholds, once.

    `order` sorts the thresholds ascending; `bins[i]` counts thresholds <= statistic i.
    """

    draws: Draws
    log_mass_1: np.ndarray
    log_mass_2: np.ndarray
    log_source: np.ndarray
    log_redshift: np.ndarray
    inside: np.ndarray
    order: np.ndarray
    bins: np.ndarray

    @classmethod
    def of(cls, draws: Draws, population: Population, thresholds: np.ndarray) -> Sample:
        """Raises ValueError when a draw lies outside the population it is said to come from."""
        log_source = population.log_density_of_draws(draws.mass_1, draws.mass_2, draws.redshift)
        order = np.argsort(thresholds, kind="stable")
        bins = np.searchsorted(np.asarray(thresholds)[order], draws.statistic, side="right")
        return cls(
            draws,
            np.log(draws.mass_1),
            np.log(draws.mass_2),
            log_source,
            population.log_redshift_weight(draws.redshift),
            population.supports(draws.mass_1, draws.mass_2) if population.detector_frame else np.ones(len(draws), bool),
            order,
            bins,
        )

    def sum_above(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` over draws at or above each threshold, in the thresholds' order; one pass for all of them."""
        per_bin = np.bincount(self.bins, weights=values, minlength=len(self.order) + 1)
        above = per_bin[::-1].cumsum()[::-1][1:]
        out = np.empty(len(self.order))
        out[self.order] = above
        return out

    def num_above(self) -> np.ndarray:
        """Draws at or above each threshold."""
        return self.sum_above(np.ones(len(self.draws))).astype(np.int64)


def estimate(sample: Sample, target: LogNormalPair, population: Population, *, compatible: bool = False) -> Estimate:
    """V of `target` at the thresholds of `sample`.

    Raises:
        ValueError: no draw has any weight under the target, or none can have.
    """
    from scipy.special import gammaincinv

    share, coverage = target.support(population)
    if share == 0:
        raise ValueError(
            f"mass pair {target.label}: none of this target lies where the injections' prior has draws; "
            "choose sensitivity.mass_combos inside the prior, or another injections.prior"
        )
    log_mass = np.where(sample.inside, target.log_density(sample.log_mass_1, sample.log_mass_2) - sample.log_source, -np.inf)
    log_weight = log_mass if compatible else log_mass + sample.log_redshift
    top = float(log_weight.max(initial=-np.inf))
    if not np.isfinite(top):
        raise ValueError(f"mass pair {target.label}: there are no injections to weight")
    w = np.exp(log_weight - top)
    square = w * w
    total, total_square = float(w.sum()), float(square.sum())
    found, found_square = sample.sum_above(w), sample.sum_above(square)
    mu = found / total
    spread = float(square[sample.draws.accepted].sum()) if compatible else total_square
    variance = np.maximum(found_square * (1 - 2 * mu) + mu * mu * spread, 0) / total**2

    # The mean weight of found draws is the weight of one event of an equivalent Poisson count (Bohm & Zech 2014,
    # Nucl. Instrum. Meth. A 748, 1). Few found draws may all have tiny weights, and say nothing of the weight of the next one:
    # it is taken no smaller than that of a typical draw of the target.
    scale = np.maximum(found_square / np.where(found > 0, found, 1), total_square / total)
    events = found / scale
    limit = gammaincinv(events + 1, LIMIT_CONFIDENCE) * scale / total
    v0 = population.volume
    mass = np.exp(log_mass - np.log(share))
    return Estimate(
        v0 * mu,
        v0 * np.sqrt(variance),
        np.where(found_square > 0, found**2 / np.where(found_square > 0, found_square, 1), 0.0),
        v0 * np.minimum(limit, 1),
        total**2 / total_square,
        float(mass.mean()),
        float(mass.std() / np.sqrt(len(mass))),
        coverage,
    )
