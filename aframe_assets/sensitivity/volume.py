"""Sensitive volume by importance sampling of injections (reference 2.13).

With draws i of masses and redshift, all of them (accepted, rejected, found and missed),

    w_i = p_target(m1, m2) / p_source(m1, m2) * C_z / (1 + z),   mu(x) = sum w_i [statistic_i >= x] / sum w_i,   V = V0 mu,

with variance sum w_i^2 ([statistic_i >= x] - mu)^2 / (sum w_i)^2 over all draws. With p_target normalised on the support of
p_source the weights average to one, and V0 (1/N) sum w_i [statistic_i >= x], divided by the number of draws (Tiwari 2018,
Class. Quantum Grav. 35, 145009; Farr 2019, Res. Notes AAS 3, 66), estimates the same volume: the two are compared.
`compatible` reproduces Aframe v1 instead: mass weights only (which counts distant signals too often and gives 0.49 to 0.76 of the
true volume), and a variance over accepted draws only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from aframe_assets.sensitivity.population import LogNormalPair, Population
from aframe_assets.waveforms.frames import DetectorFrame, SourceFrame

LIMIT_CONFIDENCE = 0.9
"""Confidence of upper limits on V."""

COVERAGE_FLOOR = 0.95
"""Least share of a target inside the support of the draws; V of less speaks of another population, and a warning says so."""

WEIGHT_TOLERANCE = 0.01
"""Difference of the mean weight from one that numerical normalisation and rounding of masses may make."""

GPC = 1000.0  # Mpc


@dataclass(frozen=True)
class Draws:
    """Every draw of an injection campaign.

    Attributes:
        statistic: detection statistic of the event that recovered it, -inf where none did or the draw was rejected.
        source: `mass_1`, `mass_2` (solar masses) and the cosmological `redshift` of each, in the source frame.
        accepted: whether the draw passed the SNR cut and was injected.
        num_outside_window: found rows counted as missed because the event is too far from the injection in time.
        num_too_loud: draws left out because their SNR is above `snr_max` (they sit at redshift zero).
        snr: network SNR, where known.
    """

    statistic: np.ndarray
    source: SourceFrame
    accepted: np.ndarray
    num_outside_window: int = 0
    num_too_loud: int = 0
    snr: np.ndarray | None = None

    def __post_init__(self) -> None:
        SourceFrame.require(self.source)

    def __len__(self) -> int:
        return len(self.statistic)

    @property
    def mass_1(self) -> np.ndarray:
        return self.source["mass_1"]

    @property
    def mass_2(self) -> np.ndarray:
        return self.source["mass_2"]

    @property
    def redshift(self) -> np.ndarray:
        return self.source["redshift"]

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

        signals, snr = DetectorFrame({k: both(k) for k in ("mass_1", "mass_2", "redshift")}), both("snr")
        keep = ~(snr > snr_max)
        return cls(
            statistic[keep],
            signals.rows(keep).source(),
            accepted[keep],
            int(far_away.sum()),
            int((~keep).sum()),
            snr[keep],
        )


@dataclass(frozen=True)
class Estimate:
    """V of one target at several thresholds; arrays of shape (num_thresholds,).

    Attributes:
        volume, error: Gpc^3, with one standard deviation; self-normalised.
        found_samples: effective sample size of the found draws, (sum w)^2 / sum w^2.
        upper_limit: 90 % upper limit of V, Gpc^3.
        volume_by_count, error_by_count: the estimate divided by the number of draws, Gpc^3.
        total_samples: effective sample size of all draws.
        mean_weight, mean_weight_error: mean of w over all draws, and so volume_by_count / volume; 1 when the draws follow p_source
            and cover the target.
        coverage: share of the target (its part m2 <= m1) inside the support of the draws.
    """

    volume: np.ndarray
    error: np.ndarray
    found_samples: np.ndarray
    upper_limit: np.ndarray
    volume_by_count: np.ndarray
    error_by_count: np.ndarray
    total_samples: float
    mean_weight: float
    mean_weight_error: float
    coverage: float

    @property
    def agrees(self) -> bool:
        """Whether the self-normalised and the divided-by-N volume differ by less than 3 joint errors.

        Their ratio is the mean weight, so the joint error is that of the mean weight, and the same at every threshold.
        """
        return abs(self.mean_weight - 1) <= max(WEIGHT_TOLERANCE, 3 * self.mean_weight_error)

    def cut(self, part: slice) -> Estimate:
        """At some of the thresholds."""
        return replace(self, **{f.name: v[part] for f in fields(self) if isinstance(v := getattr(self, f.name), np.ndarray)})


def log_constants(draws: Draws, population: Population, *, compatible: bool = False) -> np.ndarray:
    """What the weights w of every target share (num_draws,): ln of C_z / (1 + z) / p_source; of 1 / p_source if compatible.

    Raises:
        ValueError: a draw lies outside the population it is said to come from.
    """
    log_source = population.log_density_of_draws(draws.mass_1, draws.mass_2, draws.redshift)
    if population.detector_frame:
        # mass pairs that only some redshifts can draw carry no weight
        log_source = np.where(population.supports(draws.mass_1, draws.mass_2), log_source, np.inf)
    return -log_source if compatible else population.log_redshift_weight(draws.redshift) - log_source


@dataclass(frozen=True)
class Sample:
    """Draws made ready for many targets, once: their logarithms, sorted from the loudest down.

    Attributes:
        log_mass_1, log_mass_2: of source-frame masses (num_draws,).
        log_constant: see `log_constants` (num_draws,).
        accepted: whether the draw was injected (num_draws,).
        above: number of draws at or above each threshold, in the order of the thresholds given (num_thresholds,).
        compatible: whether weights leave out redshift.
    """

    log_mass_1: np.ndarray
    log_mass_2: np.ndarray
    log_constant: np.ndarray
    accepted: np.ndarray
    above: np.ndarray
    compatible: bool

    @classmethod
    def of(cls, draws: Draws, population: Population, thresholds: np.ndarray, *, compatible: bool = False) -> Sample:
        """Raises ValueError when a draw lies outside the population it is said to come from."""
        log_constant = log_constants(draws, population, compatible=compatible)
        ascending = np.argsort(thresholds, kind="stable")
        levels = np.asarray(thresholds, float)[ascending]
        # only draws that some threshold lets through need to be in order; a threshold's sums end at its count
        bins = np.searchsorted(levels, draws.statistic, side="right")
        order = np.argsort(_small(len(levels) - bins, len(levels)), kind="stable")
        passed = np.bincount(bins, minlength=len(levels) + 1)[::-1].cumsum()[::-1][1:]
        above = np.empty(len(levels), np.int64)
        above[ascending] = passed
        return cls(
            np.log(draws.mass_1[order]),
            np.log(draws.mass_2[order]),
            log_constant[order],
            draws.accepted[order],
            above,
            compatible,
        )

    def sum_above(self, values: np.ndarray) -> np.ndarray:
        """Sum of `values` over draws at or above each threshold; one pass for all of them."""
        most = int(self.above.max(initial=0))
        return np.concatenate([[0.0], np.cumsum(values[:most])])[self.above]


def _small(values: np.ndarray, highest: int) -> np.ndarray:
    """`values` in 0 ... highest, as 16 bit integers where these hold them: numpy sorts those by radix."""
    return values.astype(np.uint16) if highest < 2**16 else values


def estimate(sample: Sample, target: LogNormalPair, population: Population) -> Estimate:
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
    w = target.log_density(sample.log_mass_1, sample.log_mass_2)
    w += sample.log_constant
    top = float(w.max(initial=-np.inf))
    if not np.isfinite(top):
        raise ValueError(f"mass pair {target.label}: there are no injections to weight")
    w -= top
    np.exp(w, out=w)
    square = w * w
    num, total, total_square = len(w), float(w.sum()), float(square.sum())
    found, found_square = sample.sum_above(w), sample.sum_above(square)
    mu = found / total
    spread = float(square[sample.accepted].sum()) if sample.compatible else total_square
    variance = np.maximum(found_square * (1 - 2 * mu) + mu * mu * spread, 0) / total**2

    # The mean weight of found draws is the weight of one event of an equivalent Poisson count (Bohm & Zech 2014,
    # Nucl. Instrum. Meth. A 748, 1). Few found draws may all have tiny weights, and say nothing of the weight of the next one:
    # it is taken no smaller than that of a typical draw of the target.
    scale = np.maximum(found_square / np.where(found > 0, found, 1), total_square / total)
    limit = gammaincinv(found / scale + 1, LIMIT_CONFIDENCE) * scale / total
    v0 = population.volume
    mean, mean_square = total / num, total_square / num
    # weights as p_target normalised on the support has them, per draw
    unit = np.exp(top - np.log(share))
    return Estimate(
        v0 * mu,
        v0 * np.sqrt(variance),
        np.where(found_square > 0, found**2 / np.where(found_square > 0, found_square, 1), 0.0),
        v0 * np.minimum(limit, 1),
        v0 * unit * found / num,
        v0 * unit * np.sqrt(np.maximum(found_square - found**2 / num, 0)) / num,
        total**2 / total_square,
        float(unit * mean),
        float(unit * np.sqrt(max(mean_square - mean**2, 0) / num)),
        coverage,
    )


def sensitive_distance(volume: Any, solid_angle: float = 4 * np.pi) -> Any:
    """Radius of the Euclidean ball of `volume` (of the cone of `solid_angle` where only part of the sky was drawn), Mpc.

    (3 V / solid_angle)^(1/3): neither a luminosity nor a comoving distance, but the usual one number for a volume.

    Args:
        volume: Gpc^3, >= 0.
        solid_angle: steradian.
    """
    return GPC * np.cbrt(3 * np.asarray(volume, dtype=float) / solid_angle)[()]
