"""Populations that signals are drawn from (reference 2.3), with the densities that a sensitive volume needs.

Priors are bilby's; sampling is vectorised and seeded: a uniform variate per parameter from the given seed, mapped by
the prior's inverse distribution, so that the same seed gives the same draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from bilby.core import prior as core
from bilby.core.prior import ConditionalPriorDict, Constraint, PriorDict
from bilby.core.prior import Prior as BilbyPrior
from bilby.gw import prior as gw

from aframe_assets.waveforms.frames import FRAMES, DetectorFrame, SourceFrame
from aframe_assets.waveforms.parameters import (
    MAX_REDSHIFT,
    chirp_mass,
    complete,
    component_masses,
    distance_of_chirp,
    mass_ratio,
    redshift_at,
)
from aframe_assets.waveforms.prior_files import DISTANCES, Frame, Line, PriorFile, below_mass_1, read

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
    redshift (or luminosity_distance or chirp_distance in Mpc), spins and angles; `Constraint`s may cut on quantities made of the masses.
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
        frame: frame of the masses that are drawn, 'source' or 'detector'.
        components: with weights that add to 1.
        volume_flaw: `PriorFile.volume_flaw`: why no sensitive volume can be measured with its draws, or None.
    """

    name: str
    frame: Frame
    components: tuple[Component, ...]
    volume_flaw: str | None = None

    def sample(self, n: int, seed: int | np.random.Generator) -> SourceFrame | DetectorFrame:
        """`n` draws of every parameter of a signal, masses in `frame`; `.detector()` and `.source()` go to either.

        Args:
            n: number of draws, >= 0.
            seed: a seed, or a generator that is advanced.
        """
        rng = np.random.default_rng(seed)
        if len(self.components) == 1:
            return self._complete(self.components[0].sample(n, rng))
        which = rng.choice(len(self.components), size=n, p=[c.weight for c in self.components])
        drawn = [self._complete(c.sample(int((which == i).sum()), rng)) for i, c in enumerate(self.components)]
        out = FRAMES[self.frame]({k: np.empty(n) for k in drawn[0]})
        for i, part in enumerate(drawn):
            for k, v in part.items():
                out[k][which == i] = v
        return out

    def _complete(self, values: dict[str, np.ndarray]) -> SourceFrame | DetectorFrame:
        if "chirp_distance" in values:
            values["luminosity_distance"] = distance_of_chirp(values.pop("chirp_distance"), values["mass_1"], values["mass_2"])
        if "luminosity_distance" in values:
            values["redshift"] = redshift_at(values.pop("luminosity_distance"))
        return FRAMES[self.frame](complete(values))

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
        return next(p[name] for name in DISTANCES if name in p)

    @property
    def redshift_kind(self) -> Literal["comoving", "source_frame", "other"]:
        """'comoving': p(z) ~ dVc/dz; 'source_frame': p(z) ~ dVc/dz / (1+z); 'other': neither."""
        kinds = {"UniformComovingVolume": "comoving", "UniformSourceFrame": "source_frame"}
        return kinds.get(type(self._distance_prior).__name__, "other")

    @property
    def redshift_range(self) -> tuple[float, float]:
        """Smallest and largest redshift.

        Raises:
            ValueError: redshifts follow from chirp distances, so their range depends on the masses.
        """
        p = self._distance_prior
        if p.name == "chirp_distance":
            raise ValueError(f"prior '{self.name}' draws chirp distances: it has a range of redshifts for each chirp mass, not one")
        low, high = float(p.minimum), float(p.maximum)
        if p.name == "luminosity_distance":
            return float(redshift_at(low)), float(redshift_at(high))
        return low, high

    @property
    def declination_range(self) -> tuple[float, float]:
        """Smallest and largest declination, radians."""
        p = self.components[0].priors["dec"]
        return float(p.minimum), float(p.maximum)


@lru_cache
def _made(kind: str, values: tuple, options: tuple) -> BilbyPrior:
    """A prior of bilby; tables of cosmological ones take a while, so equal ones are the same."""
    return (getattr(core, kind, None) or getattr(gw, kind))(*values, **dict(options))


def _component(weight: float, lines: tuple[Line, ...], where: str) -> Component:
    priors: dict[str, BilbyPrior] = {}
    for line in lines:
        options = line.options if line.below is None else (*line.options, ("condition_func", below_mass_1))
        try:
            priors[line.name.removesuffix("_source")] = _made(line.kind, line.values, options)
        except Exception as e:
            raise ValueError(f"{where}, line {line.number}: bilby cannot make {line.name} = {line.kind}(...): {e}") from e
    return Component(weight, PriorDict(priors, conversion_function=lambda x: x))


@lru_cache
def _prior(name: str, file: PriorFile) -> Prior:
    components = tuple(_component(weight, lines, file.where) for weight, lines in file.components)
    return Prior(name, file.frame, components, file.volume_flaw)


def get_prior(name_or_path: str) -> Prior:
    """A named prior (`demo_mixture`, `log_normal_masses(35, 20, 0.1)`) or a file like those of the named ones.

    In a file `mass_1_source`/`mass_2_source` are drawn in the source frame, `mass_1`/`mass_2` and
    `chirp_mass`/`mass_ratio` in the detector frame, as bilby names them (see `prior_files`). Nothing in it is evaluated.

    Raises:
        ValueError: unknown name, wrong arguments, or a file with anything that is not a population; with file and line.
    """
    return _prior(str(name_or_path), read(str(name_or_path)))


_TRIED = 1000
"""Draws by which a population is judged, at equal steps of probability in every parameter."""


def require_possible(prior: Prior) -> Prior:
    """`prior`, when 1000 draws of it are of binaries that exist and its densities are densities.

    Raises:
        ValueError: a width that is not positive, a density that is not one, masses that are not finite
            and positive, redshifts not in (0, 20], or spins beyond 1; all of these, each with the parameter.
    """
    found = dict.fromkeys(line for component in prior.components for line in _flaws(prior, component))
    if found:
        raise ValueError(f"{prior.name}: {'; '.join(found)}")
    return prior


def _flaws(prior: Prior, component: Component) -> list[str]:
    out = []
    for name in component.priors:
        p = component.priors[name]
        if not getattr(p, "sigma", 1.0) > 0:
            out.append(f"{name} has sigma = {p.sigma:g}; expected a width above 0")
    if out:
        return out
    rng = np.random.default_rng(0)
    uniforms = {k: rng.permutation((np.arange(_TRIED) + 0.5) / _TRIED) for k in component._order}
    with np.errstate(all="ignore"):
        # without constraints, what `sample` would silently draw again (a mass below 0) counts as well: the density knows nothing of it
        drawn = component.sample(_TRIED, rng) if component._constraints else component._mapped(uniforms)
        for name in (k for k in component._order if k in drawn):
            p = component.priors[name]
            density = p.prob(drawn[name], **{k: drawn[k] for k in getattr(p, "required_variables", [])})
            if not np.all(np.asarray(density) >= 0):
                out.append(f"{name} has no density, or a negative one, where it is drawn")
        whole = prior._complete(drawn)
    bounded = {k: _ends(component.priors[k]) for k in component._order}
    for name, most, expected in (
        ("mass_1", np.inf, "finite solar masses > 0"),
        ("mass_2", np.inf, "finite solar masses > 0"),
        ("redshift", MAX_REDSHIFT, f"redshifts above 0, up to {MAX_REDSHIFT:g}"),
        ("a_1", 1.0, "spins from -1 to 1"),
        ("a_2", 1.0, "spins from -1 to 1"),
    ):
        values = whole[name]
        low, high = float(values.min()), float(values.max())
        least = -1.0 if name.startswith("a_") else 0.0
        if name in bounded:
            # draws may stop short of an edge; an edge at infinity is a tail, not a bound
            ends = [x for x in bounded[name] if np.isfinite(x)]
            low, high = min([low, *ends]), max([high, *ends])
        positive = values.min() > 0 or name.startswith("a_")
        if not (np.isfinite(values).all() and positive and low >= least and high <= most):
            out.append(f"{name} is drawn from {low:g} to {high:g}; expected {expected}")
    return out


def _ends(prior: BilbyPrior) -> tuple[float, float]:
    # a conditional prior's own attributes are those of its last draws
    given = getattr(prior, "reference_params", None) or {"minimum": prior.minimum, "maximum": prior.maximum}
    return float(given.get("minimum", -np.inf)), float(given.get("maximum", np.inf))
