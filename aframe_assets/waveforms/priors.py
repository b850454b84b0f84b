"""Populations that signals are drawn from (reference 2.3), with the densities that a sensitive volume needs.

Priors are bilby's; sampling is vectorised and seeded: a uniform variate per parameter from the given seed, mapped by
the prior's inverse distribution, so that the same seed gives the same draws.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from bilby.core.prior import (
    ConditionalPowerLaw,
    ConditionalPriorDict,
    ConditionalUniform,
    Constraint,
    Cosine,
    DeltaFunction,
    Gaussian,
    LogNormal,
    PowerLaw,
    PriorDict,
    Sine,
    Triangular,
    Uniform,
)
from bilby.gw.prior import UniformComovingVolume, UniformSourceFrame

from aframe_assets.waveforms.parameters import chirp_mass, complete, component_masses, mass_ratio, redshift_at

Frame = Literal["source", "detector"]
MASS_PAIRS = ((35.0, 35.0), (35.0, 20.0), (20.0, 20.0), (20.0, 10.0))
"""Mass pairs at which sensitive volumes are given (reference 2.13)."""

_DERIVED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "mass_1": lambda a, b: a,
    "mass_2": lambda a, b: b,
    "chirp_mass": chirp_mass,
    "mass_ratio": lambda a, b: b / a,
    "total_mass": lambda a, b: a + b,
    "symmetric_mass_ratio": lambda a, b: a * b / (a + b) ** 2,
}
_GRID = 1024
"""Midpoints per mass in the integral of a constraint; its relative error is below 1e-3."""


@dataclass(frozen=True, eq=False)
class Component:
    """One population of a mixture: `weight` > 0 and a bilby prior over mass_1 and mass_2 (or chirp_mass and mass_ratio),
    redshift (or luminosity_distance in Mpc), spins and angles; `Constraint`s may cut on quantities made of the masses.
    """

    weight: float
    priors: PriorDict

    @cached_property
    def _order(self) -> list[str]:
        joined = ConditionalPriorDict(dict(self.priors), conversion_function=lambda x: x)
        return [k for k in joined.sorted_keys if not isinstance(self.priors[k], Constraint)]

    @cached_property
    def _constraints(self) -> dict[str, Constraint]:
        return {k: p for k, p in self.priors.items() if isinstance(p, Constraint)}

    def _mapped(self, uniforms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        out: dict[str, np.ndarray] = {}
        for key in self._order:
            if key in uniforms:
                prior = self.priors[key]
                given = {k: out[k] for k in getattr(prior, "required_variables", [])}
                out[key] = np.asarray(prior.rescale(uniforms[key], **given), np.float64) * np.ones_like(uniforms[key])
        if "mass_1" not in out:
            out["mass_1"], out["mass_2"] = component_masses(out.pop("chirp_mass"), out.pop("mass_ratio"))
        return out

    def _allowed(self, mass_1: np.ndarray, mass_2: np.ndarray) -> np.ndarray:
        good = (mass_1 > 0) & (mass_2 > 0)
        for key, constraint in self._constraints.items():
            value = _DERIVED[key](np.where(good, mass_1, 1.0), np.where(good, mass_2, 1.0))
            good &= (value >= constraint.minimum) & (value <= constraint.maximum)
        return good

    def sample(self, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        parts: list[dict[str, np.ndarray]] = []
        have, tries = 0, 0
        while have < n:
            batch = self._mapped({k: rng.random(n) for k in self._order})
            keep = self._allowed(batch["mass_1"], batch["mass_2"])
            parts.append({k: v[keep] for k, v in batch.items()})
            have, tries = have + int(keep.sum()), tries + 1
            if tries == 1000 and have < n:
                raise ValueError(f"the prior's constraints {self._constraints} pass {have} of {tries * n} draws; widen them")
        return {k: np.concatenate([p[k] for p in parts])[:n] for k in parts[0]} if n else {k: np.empty(0) for k in self._mapped_names()}

    def _mapped_names(self) -> list[str]:
        return list(self._mapped({k: np.full(1, 0.5) for k in self._order}))

    @cached_property
    def _passed(self) -> float:
        # share of the unconstrained density that the constraints leave, on a grid of equal probability
        if not self._constraints:
            return 1.0
        u = (np.arange(_GRID) + 0.5) / _GRID
        first, second = ("mass_1", "mass_2") if "mass_1" in self._order else ("chirp_mass", "mass_ratio")
        masses = self._mapped({first: np.repeat(u, _GRID), second: np.tile(u, _GRID)})
        return float(self._allowed(masses["mass_1"], masses["mass_2"]).mean())

    def mass_density(self, mass_1: np.ndarray, mass_2: np.ndarray) -> np.ndarray:
        """p(mass_1, mass_2) in the prior's own frame, normalised over the constrained support; 1-D arrays."""
        p = self.priors
        if "mass_1" in self._order:
            density = p["mass_1"].prob(mass_1)
            given = dict.fromkeys(getattr(p["mass_2"], "required_variables", []), mass_1)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                conditional = p["mass_2"].prob(mass_2, **given)
                # a conditional prior of no width (mass_1 at its minimum) has no density; bilby gives the largest float
                density = np.where((density > 0) & (conditional < 1e100), density * conditional, 0.0)
        else:
            # |d(chirp mass, q) / d(m1, m2)| = chirp mass / m1^2
            ordered = mass_2 <= mass_1
            chirp, ratio = chirp_mass(mass_1, mass_2), mass_ratio(mass_1, mass_2)
            density = np.where(ordered, p["chirp_mass"].prob(chirp) * p["mass_ratio"].prob(ratio) * chirp / mass_1**2, 0.0)
        return np.where(self._allowed(mass_1, mass_2), density, 0.0) / self._passed


@dataclass(frozen=True, eq=False)
class Prior:
    """A population of compact binaries: a mixture of components that share one redshift and sky distribution.

    Attributes:
        name: as in the configuration.
        frame: frame of the masses that are drawn.
        components: with weights that add to 1.
    """

    name: str
    frame: Frame
    components: tuple[Component, ...]

    def sample(self, n: int, seed: int | np.random.Generator) -> dict[str, np.ndarray]:
        """`n` draws of every parameter of a signal, masses in `frame` (see `parameters.detector_frame`).

        Args:
            n: number of draws, >= 0.
            seed: a seed, or a generator that is advanced.
        """
        rng = np.random.default_rng(seed)
        if len(self.components) == 1:
            return self._complete(self.components[0].sample(n, rng))
        which = rng.choice(len(self.components), size=n, p=[c.weight for c in self.components])
        drawn = [self._complete(c.sample(int((which == i).sum()), rng)) for i, c in enumerate(self.components)]
        out = {k: np.empty(n) for k in drawn[0]}
        for i, part in enumerate(drawn):
            for k, v in part.items():
                out[k][which == i] = v
        return out

    @staticmethod
    def _complete(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if "luminosity_distance" in values:
            values["redshift"] = redshift_at(values.pop("luminosity_distance"))
        return complete(values)

    def mass_density(self, mass_1: np.ndarray, mass_2: np.ndarray, redshift: np.ndarray | None = None) -> np.ndarray:
        """p(mass_1, mass_2) of *source-frame* masses, per solar mass squared: the mixture's density (reference 2.13).

        It integrates to 1 over its support: m2 <= m1 where the population orders them, else the whole plane. With
        detector-frame masses it is the density at `redshift`, (1+z)^2 p_det(m1 (1+z), m2 (1+z)).

        Raises:
            ValueError: the population is drawn in the detector frame and `redshift` is not given.
        """
        if self.frame == "detector" and redshift is None:
            raise ValueError(f"prior '{self.name}' is drawn in the detector frame: its source-frame mass density needs the redshift")
        scale = 1 + np.asarray(redshift, float) if self.frame == "detector" else np.float64(1)
        m1, m2, scale = np.broadcast_arrays(np.asarray(mass_1, float), np.asarray(mass_2, float), scale)
        shape, m1, m2, scale = m1.shape, m1.ravel() * scale.ravel(), m2.ravel() * scale.ravel(), scale.ravel()
        total = sum(c.weight * c.mass_density(m1, m2) for c in self.components) if m1.size else np.empty(0)
        return (total * scale**2).reshape(shape)

    def log_mass_density(self, mass_1: np.ndarray, mass_2: np.ndarray, redshift: np.ndarray | None = None) -> np.ndarray:
        """Natural logarithm of `mass_density`; -inf outside the support."""
        with np.errstate(divide="ignore"):
            return np.log(self.mass_density(mass_1, mass_2, redshift))

    @property
    def _distance_prior(self):
        p = self.components[0].priors
        return p["redshift"] if "redshift" in p else p["luminosity_distance"]

    @property
    def redshift_kind(self) -> Literal["comoving", "source_frame", "other"]:
        """'comoving': p(z) ~ dVc/dz; 'source_frame': p(z) ~ dVc/dz / (1+z); 'other': neither."""
        kinds = {"UniformComovingVolume": "comoving", "UniformSourceFrame": "source_frame"}
        return kinds.get(type(self._distance_prior).__name__, "other")

    @property
    def redshift_range(self) -> tuple[float, float]:
        """Smallest and largest redshift."""
        p = self._distance_prior
        low, high = float(p.minimum), float(p.maximum)
        if p.name == "luminosity_distance":
            return float(redshift_at(low)), float(redshift_at(high))
        return low, high

    @property
    def declination_range(self) -> tuple[float, float]:
        """Smallest and largest declination, radians."""
        p = self.components[0].priors.get("dec")
        return (-np.pi / 2, np.pi / 2) if p is None else (float(p.minimum), float(p.maximum))


def _below_primary(reference: dict, mass_1: np.ndarray) -> dict:
    return {"minimum": reference["minimum"], "maximum": mass_1}


def _sky() -> dict:
    return {
        "dec": Cosine(name="dec"),
        "ra": Uniform(0, 2 * np.pi, name="ra"),
        "theta_jn": Sine(name="theta_jn"),
        "phase": Uniform(0, 2 * np.pi, name="phase"),
    }


def _orientation(max_spin: float = 0.998) -> dict:
    return _sky() | {
        "psi": Uniform(0, np.pi, name="psi"),
        "a_1": Uniform(0, max_spin, name="a_1"),
        "a_2": Uniform(0, max_spin, name="a_2"),
        "tilt_1": Sine(name="tilt_1"),
        "tilt_2": Sine(name="tilt_2"),
        "phi_12": Uniform(0, 2 * np.pi, name="phi_12"),
        "phi_jl": Uniform(0, 2 * np.pi, name="phi_jl"),
    }


@lru_cache
def _comoving(zmax: float) -> UniformComovingVolume:
    return UniformComovingVolume(0, zmax, name="redshift", cosmology="Planck15")


@lru_cache
def _source_frame(zmax: float) -> UniformSourceFrame:
    return UniformSourceFrame(0, zmax, name="redshift", cosmology="Planck15")


def _astrophysical_masses() -> dict:
    return {
        "mass_1": PowerLaw(-2.35, 5, 100, name="mass_1"),
        "mass_2": ConditionalPowerLaw(_below_primary, name="mass_2", alpha=1, minimum=5, maximum=100),
    }


def _log_normal(m1: float, m2: float, sigma: float, smallest_ratio: float = 0.02) -> dict:
    return {
        "mass_1": LogNormal(np.log(m1), sigma, name="mass_1"),
        "mass_2": LogNormal(np.log(m2), sigma, name="mass_2"),
        "mass_ratio": Constraint(smallest_ratio, 1, name="mass_ratio"),
    }


def _one(name: str, frame: Frame, priors: dict) -> Prior:
    return Prior(name, frame, (Component(1.0, PriorDict(priors, conversion_function=lambda x: x)),))


def end_o3_ratesandpops() -> Prior:
    """Binary black holes as in the LVK's end-of-O3 rates and populations injections; the default."""
    return _one("end_o3_ratesandpops", "source", _astrophysical_masses() | {"redshift": _comoving(2)} | _orientation())


def end_o3_ratesandpops_bns() -> Prior:
    """Binary neutron stars."""
    masses = {
        "mass_1": Triangular(mode=2.5, minimum=1, maximum=2.5, name="mass_1"),
        "mass_2": ConditionalUniform(_below_primary, name="mass_2", minimum=1, maximum=2.5),
    }
    return _one("end_o3_ratesandpops_bns", "source", masses | {"redshift": _source_frame(0.15)} | _orientation(0.4))


def _uniform_masses() -> dict:
    return {
        "mass_1": Uniform(5, 100, name="mass_1"),
        "mass_2": Uniform(5, 100, name="mass_2"),
        "mass_ratio": Constraint(0, 1, name="mass_ratio"),
        "redshift": _source_frame(0.5),
        "psi": DeltaFunction(0.0, name="psi"),
    }


def nonspin_bbh() -> Prior:
    """Uniform detector-frame masses, no spins."""
    return _one("nonspin_bbh", "detector", _sky() | _uniform_masses())


def spin_bbh() -> Prior:
    """Uniform detector-frame masses with spins."""
    flat = {"phi_12": DeltaFunction(0.0, name="phi_12"), "phi_jl": DeltaFunction(0.0, name="phi_jl")}
    return _one("spin_bbh", "detector", _orientation() | _uniform_masses() | flat)


def gaussian_masses(m1: float, m2: float, sigma: float = 2.0) -> Prior:
    """Masses around (m1, m2), unordered; no spins."""
    masses = {"mass_1": Gaussian(m1, sigma, name="mass_1"), "mass_2": Gaussian(m2, sigma, name="mass_2")}
    return _one("gaussian_masses", "source", _sky() | masses | {"redshift": _source_frame(2)})


def log_normal_masses(m1: float, m2: float, sigma: float = 2.0) -> Prior:
    """Log-normal masses around (m1, m2) with mass_2 / mass_1 in [0.02, 1]; no spins."""
    return _one("log_normal_masses", "source", _sky() | _log_normal(m1, m2, sigma) | {"redshift": _source_frame(2)})


def demo_training() -> Prior:
    """A broad training population: detector-frame masses 5 to 120, even in log(mass_1), favouring comparable masses."""
    masses = {
        "mass_1": PowerLaw(-1, 8, 120, name="mass_1"),
        "mass_2": ConditionalPowerLaw(_below_primary, name="mass_2", alpha=1, minimum=5, maximum=120),
    }
    return _one("demo_training", "detector", _orientation() | masses | {"redshift": _comoving(1.0)})


def demo_mixture() -> Prior:
    """A proposal for few injections: 90 % log-normals (sigma 0.15, m2 <= m1) at the four mass pairs in equal parts,
    10 % the masses of `end_o3_ratesandpops`; redshift uniform in comoving volume up to 0.7.
    """
    rest = _orientation() | {"redshift": _comoving(0.7)}
    pairs = [(0.9 / len(MASS_PAIRS), _log_normal(*pair, 0.15)) for pair in MASS_PAIRS]
    parts = [*pairs, (0.1, _astrophysical_masses())]
    return Prior("demo_mixture", "source", tuple(Component(w, PriorDict(m | rest, conversion_function=lambda x: x)) for w, m in parts))


PRIORS: dict[str, Callable[..., Prior]] = {
    f.__name__: f
    for f in (
        end_o3_ratesandpops,
        end_o3_ratesandpops_bns,
        nonspin_bbh,
        spin_bbh,
        gaussian_masses,
        log_normal_masses,
        demo_training,
        demo_mixture,
    )
}


@lru_cache
def get_prior(name_or_path: str) -> Prior:
    """A named prior (`demo_mixture`, `log_normal_masses(35, 20, 0.1)`) or a bilby prior file.

    In a file `mass_1_source`/`mass_2_source` are drawn in the source frame, `mass_1`/`mass_2` and
    `chirp_mass`/`mass_ratio` in the detector frame, as bilby names them.

    Raises:
        ValueError: unknown name, wrong arguments, or a file without masses or distance.
    """
    call = re.fullmatch(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*", str(name_or_path))
    if call and call[1] in PRIORS:
        try:
            return PRIORS[call[1]](*(float(x) for x in (call[2] or "").split(",") if x.strip()))
        except TypeError as e:
            raise ValueError(f"prior '{name_or_path}': {e}; write it as 'log_normal_masses(35, 20, 0.1)'") from None
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(f"prior '{name_or_path}' is neither a file nor one of {', '.join(PRIORS)}")
    return _from_file(path)


def _from_file(path: Path) -> Prior:
    try:
        priors = dict(ConditionalPriorDict(str(path), conversion_function=lambda x: x))
    except Exception as e:
        raise ValueError(f"{path}: not a bilby prior file: {e}") from e
    frame: Frame = "detector"
    drawn = {k for k, p in priors.items() if not isinstance(p, Constraint)}
    if {"mass_1_source", "mass_2_source"} <= drawn:
        frame = "source"
        priors = {k.removesuffix("_source"): p for k, p in priors.items()}
        drawn = {k.removesuffix("_source") for k in drawn}
    if not ({"mass_1", "mass_2"} <= drawn or {"chirp_mass", "mass_ratio"} <= drawn):
        raise ValueError(f"{path}: needs priors of mass_1 and mass_2, mass_1_source and mass_2_source, or chirp_mass and mass_ratio")
    if not {"redshift", "luminosity_distance"} & drawn:
        raise ValueError(f"{path}: needs a prior of redshift or luminosity_distance")
    foreign = [k for k, p in priors.items() if isinstance(p, Constraint) and k not in _DERIVED]
    if foreign:
        raise ValueError(f"{path}: constraints on {foreign} are not supported; on {', '.join(_DERIVED)} they are")
    return Prior(str(path), frame, (Component(1.0, PriorDict(priors, conversion_function=lambda x: x)),))
