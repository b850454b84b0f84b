"""Every packaged population against bilby: joint mass densities, their normalisation, and draws (reference 2.3).

The populations are written down here anew, from the table of reference 2.3, as bilby priors and as closed forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import bilby
import numpy as np
import pytest
from astropy.cosmology import Planck15
from bilby.core import prior as core
from bilby.gw.prior import UniformComovingVolume, UniformSourceFrame
from scipy import integrate, stats

from aframe_assets.waveforms.prior_files import packaged
from aframe_assets.waveforms.priors import get_prior

N = 20_000
SMALL = 1e-4
"""Smallest p-value of a Kolmogorov-Smirnov test; some 250 are made below, with fixed seeds."""


def below(lowest):
    return lambda reference, mass_1: {"minimum": lowest, "maximum": mass_1}


def with_ratio(sample):
    return sample | {"mass_ratio": sample["mass_2"] / sample["mass_1"]}


@dataclass
class Population:
    """A row of the table.

    Attributes:
        parts: (weight, bilby priors of the masses) of a mixture.
        edges: from the smallest to the largest mass, solar masses, and where the density of either jumps or has a peak.
        redshift: measure and largest redshift.
        max_spin: largest spin magnitude, None without spins.
        flat_tilts: even in the angle, not on the sphere.
        ordered: mass_2 <= mass_1.
        zero: parameters that are 0.
    """

    frame: str
    parts: list[tuple[float, dict]]
    edges: list[float]
    redshift: tuple[str, float]
    max_spin: float | None = 0.998
    ordered: bool = True
    zero: tuple[str, ...] = ()
    flat_tilts: bool = False

    def bilby(self, part: dict) -> core.PriorDict:
        constrained = isinstance(part.get("mass_ratio"), core.Constraint)
        return core.ConditionalPriorDict(dict(part), conversion_function=with_ratio if constrained else None)

    def masses(self, part: dict, n: int) -> dict:
        """Draws of mass_1 and mass_2 by bilby's sampler, and by its conversion where it drew others."""
        drawn = self.bilby(part).sample(n)
        if "chirp_mass" in drawn:
            pair = bilby.gw.conversion.chirp_mass_and_mass_ratio_to_component_masses(drawn["chirp_mass"], drawn["mass_ratio"])
            drawn = dict(zip(("mass_1", "mass_2"), pair, strict=True))
        return drawn


def power_law(alpha, low, high, lowest):
    return {
        "mass_1": core.PowerLaw(alpha, low, high, name="mass_1"),
        "mass_2": core.ConditionalPowerLaw(below(lowest), name="mass_2", alpha=1, minimum=lowest, maximum=high),
    }


def log_normal(m1, m2, sigma):
    return {
        "mass_1": core.LogNormal(np.log(m1), sigma, name="mass_1"),
        "mass_2": core.LogNormal(np.log(m2), sigma, name="mass_2"),
        "mass_ratio": core.Constraint(0.02, 1),
    }


def uniform(low, high):
    return {
        "mass_1": core.Uniform(low, high, name="mass_1"),
        "mass_2": core.Uniform(low, high, name="mass_2"),
        "mass_ratio": core.Constraint(0, 1),
    }


UNIFORM = uniform(5, 100)
CHIRP = {"chirp_mass": core.Uniform(5, 250, name="chirp_mass"), "mass_ratio": core.Uniform(0.05, 0.999, name="mass_ratio")}
SPINS = ("a_1", "a_2", "tilt_1", "tilt_2", "phi_12", "phi_jl", "psi")
PAIRS = [(35, 35), (35, 20), (20, 20), (20, 10)]
O3 = power_law(-2.35, 5, 100, 5)
POPULATIONS = {
    "end_o3_ratesandpops": Population("source", [(1, O3)], [5, 100], ("comoving", 2)),
    "end_o3_ratesandpops_bns": Population(
        "source",
        [
            (
                1,
                {
                    "mass_1": core.Triangular(mode=2.5, minimum=1, maximum=2.5, name="mass_1"),
                    "mass_2": core.ConditionalUniform(below(1), name="mass_2", minimum=1, maximum=2.5),
                },
            )
        ],
        [1, 2.5],
        ("source_frame", 0.15),
        max_spin=0.4,
    ),
    "nonspin_bbh": Population("detector", [(1, UNIFORM)], [5, 100], ("source_frame", 0.5), max_spin=None, zero=SPINS),
    "spin_bbh": Population("detector", [(1, UNIFORM)], [5, 100], ("source_frame", 0.5), zero=("phi_12", "phi_jl", "psi")),
    "gaussian_masses(35, 20)": Population(
        "source",
        [(1, {"mass_1": core.Gaussian(35, 2, name="mass_1"), "mass_2": core.Gaussian(20, 2, name="mass_2")})],
        [4, 20, 35, 51],
        ("source_frame", 2),
        max_spin=None,
        ordered=False,
        zero=SPINS,
    ),
    "log_normal_masses(35, 20, 0.1)": Population(
        "source", [(1, log_normal(35, 20, 0.1))], [9, 20, 35, 78], ("source_frame", 2), max_spin=None, zero=SPINS
    ),
    "log_normal_masses(35, 35)": Population(
        "source",
        [(1, log_normal(35, 35, 2))],
        list(35 * np.exp(2.0 * np.arange(-8, 9))),
        ("source_frame", 2),
        max_spin=None,
        zero=SPINS,
    ),
    "demo_training": Population("detector", [(1, power_law(-1, 8, 120, 5))], [5, 8, 120], ("comoving", 1)),
    "demo_mixture": Population(
        "source", [*[(0.9 / 4, log_normal(*p, 0.15)) for p in PAIRS], (0.1, O3)], [3, 5, 10, 20, 35, 100, 120], ("comoving", 0.7)
    ),
    # the edges are curves in these masses, met by many panels
    "training_prior": Population("detector", [(1, CHIRP)], list(np.geomspace(1.4, 1600, 25)), ("comoving", 2), 0.999, flat_tilts=True),
    "mlgwsc1_1": Population("detector", [(1, uniform(10, 50))], [10, 50], ("chirp_distance", 350), None, zero=SPINS[:-1]),
    "mlgwsc1_2": Population("detector", [(1, uniform(7, 50))], [7, 50], ("chirp_distance", 350), 0.99, zero=("phi_12", "phi_jl")),
    "mlgwsc1_3": Population("detector", [(1, uniform(7, 50))], [7, 50], ("chirp_distance", 350), 0.99),
}
NO_MASSES = {"ringdown_prior"}
every = pytest.mark.parametrize("name", POPULATIONS)


def integral(function, edges, ordered, nodes=48) -> float:
    """Of a density over masses in [edges], by Gauss-Legendre panels in the logarithms, m2 < m1 where `ordered`."""
    x, w = np.polynomial.legendre.leggauss(nodes)

    def panels(a, b):
        centre, half = (np.log(a) + np.log(b)) / 2, (np.log(b) - np.log(a)) / 2
        m = np.exp(centre + half * x)
        return m, w * half * m

    total = 0.0
    for a, b in pairwise(edges):
        for m1, w1 in zip(*panels(a, b), strict=True):
            inner = [e for e in edges if e < m1] + [m1] if ordered else edges
            # mass_ratio >= 0.02 is an edge of the log-normals
            inner = sorted({*inner, *([0.02 * m1] if ordered and inner[0] < 0.02 * m1 else [])})
            for c, d in pairwise(inner):
                m2, w2 = panels(c, d)
                total += w1 * float(np.sum(w2 * function(np.full_like(m2, m1), m2)))
    return total


@every
@pytest.mark.parametrize("redshift", [0.0, 0.7])
def test_density_is_normalised_over_its_support(name, redshift):
    """To 2e-3: the quadrature is exact to 1e-5, the share that constraints leave is counted on a grid to 1e-3.

    With detector-frame masses the density of source-frame ones integrates to 1 at any redshift.
    """
    population, prior = POPULATIONS[name], get_prior(name)
    assert prior.frame == population.frame
    scale = 1 + redshift if population.frame == "detector" else 1.0
    edges = [e / scale for e in population.edges]
    nodes = 20 if len(edges) > 10 else 48
    found = integral(lambda a, b: prior.mass_density(a, b, np.full_like(a, redshift)), edges, population.ordered, nodes)
    assert found == pytest.approx(1, abs=2e-3)


@every
def test_joint_density_is_bilbys(name):
    """At 2000 draws of bilby's and outside the support. bilby counts what a constraint leaves by Monte Carlo: 2 %; else 1e-9 (1e-5
    where the Jacobian is by differences).

    A mixture is the explicit sum of its parts.
    """
    population, prior = POPULATIONS[name], get_prior(name)
    bilby.core.utils.random.seed(11)
    drawn = [population.masses(part, 2000 // len(population.parts)) for _, part in population.parts]
    m1, m2 = (np.concatenate([d[k] for d in drawn]) for k in ("mass_1", "mass_2"))
    theirs = np.zeros(len(m1))
    for weight, part in population.parts:
        bilbys = population.bilby(part)
        if any(isinstance(p, core.ConditionalBasePrior) for p in part.values()):
            inside = (m1 > part["mass_2"].minimum) & (m2 < m1)  # bilby divides by zero elsewhere
            theirs[inside] += weight * bilbys.prob({"mass_1": m1[inside], "mass_2": m2[inside]}, axis=0)
        elif "chirp_mass" in part:
            convert = bilby.gw.conversion.component_masses_to_chirp_mass
            # the Jacobian of (chirp mass, ratio), by differences
            h = 1e-4 * m1
            by_1 = np.array([(convert(m1 + h, m2) - convert(m1 - h, m2)) / (2 * h), (m2 / (m1 + h) - m2 / (m1 - h)) / (2 * h)])
            by_2 = np.array([(convert(m1, m2 + h) - convert(m1, m2 - h)) / (2 * h), 1 / m1])
            jacobian = np.abs(by_1[0] * by_2[1] - by_1[1] * by_2[0])
            theirs += weight * bilbys.prob({"chirp_mass": convert(m1, m2), "mass_ratio": m2 / m1}, axis=0) * jacobian
        else:
            theirs += weight * bilbys.prob({"mass_1": m1, "mass_2": m2}, axis=0)
    constrained = any(isinstance(part.get("mass_ratio"), core.Constraint) for _, part in population.parts)
    tolerance = 0.02 if constrained else 1e-5 if "chirp_mass" in population.parts[0][1] else 1e-9
    assert (theirs > 0).all()
    z = np.linspace(0, 1, len(m1))
    scale = 1 + z if population.frame == "detector" else np.ones(len(m1))
    ours = prior.mass_density(m1 / scale, m2 / scale, z)
    np.testing.assert_allclose(ours, theirs * scale**2, rtol=tolerance)
    np.testing.assert_allclose(prior.log_mass_density(m1 / scale, m2 / scale, z), np.log(ours), rtol=1e-12)
    if population.ordered:
        assert (prior.mass_density(np.array([20.0, 3.0]), np.array([20.1, 3.1]), np.zeros(2)) == 0).all()
    else:
        assert prior.mass_density(20.0, 35.0) > 0
    if (not constrained and name != "training_prior") or "bbh" in name or "mlgwsc1" in name:
        low, high = population.edges[0], population.edges[-1]
        beyond = prior.mass_density(np.array([high * 1.01, low, low * 0.99]), np.array([low * 1.01, low * 0.99, low * 0.98]), np.zeros(3))
        assert (beyond <= (1e-9 if "gaussian" in name else 0)).all()


@every
def test_draws_are_those_of_bilbys_sampler(name):
    """Two-sample Kolmogorov-Smirnov of both masses, their ratio and the redshift, in the population's own frame."""
    population = POPULATIONS[name]
    ours = get_prior(name).sample(N, 21)
    bilby.core.utils.random.seed(22)
    which = np.random.default_rng(23).choice(len(population.parts), N, p=[w for w, _ in population.parts])
    parts = [population.masses(part, int((which == i).sum())) for i, (_, part) in enumerate(population.parts)]
    theirs = {k: np.concatenate([p[k] for p in parts]) for k in ("mass_1", "mass_2")}
    kind, largest = population.redshift
    if kind == "chirp_distance":
        chirp = bilby.gw.conversion.component_masses_to_chirp_mass(theirs["mass_1"], theirs["mass_2"])
        distance = core.PowerLaw(2, 130, largest).sample(N) * (chirp / (1.4 / 2**0.2)) ** (5 / 6)
        z = np.linspace(0, 2, 20_001)  # bilby's own conversion solves for one at a time
        theirs["redshift"] = np.interp(distance, Planck15.luminosity_distance(z).value, z)
    else:
        measure = {"comoving": UniformComovingVolume, "source_frame": UniformSourceFrame}[kind]
        theirs["redshift"] = measure(0, largest, name="redshift", cosmology="Planck15").sample(N)
    for key in ("mass_1", "mass_2", "redshift"):
        assert stats.ks_2samp(ours[key], theirs[key]).pvalue > SMALL, key
    assert stats.ks_2samp(ours["mass_2"] / ours["mass_1"], theirs["mass_2"] / theirs["mass_1"]).pvalue > SMALL


def cdf_of(x, density):
    cumulative = integrate.cumulative_trapezoid(density, x, initial=0)
    return lambda v: np.interp(v, x, cumulative / cumulative[-1])


def mass_cdfs(name, sample):
    """Values and closed-form distribution of each, for every population."""
    m1, m2 = sample["mass_1"], sample["mass_2"]
    if name == "end_o3_ratesandpops":
        yield m1, lambda x: (5**-1.35 - x**-1.35) / (5**-1.35 - 100**-1.35)
        yield (m2**2 - 25) / (m1**2 - 25), lambda u: u
    elif name == "end_o3_ratesandpops_bns":
        yield m1, lambda x: ((x - 1) / 1.5) ** 2
        yield (m2 - 1) / (m1 - 1), lambda u: u
    elif name in ("nonspin_bbh", "spin_bbh"):  # the larger and the smaller of two uniform variates
        yield m1, lambda x: ((x - 5) / 95) ** 2
        yield m2, lambda x: 1 - (1 - (x - 5) / 95) ** 2
    elif name.startswith("mlgwsc1"):
        low = 10 if name == "mlgwsc1_1" else 7
        yield m1, lambda x: ((x - low) / (50 - low)) ** 2
        yield m2, lambda x: 1 - (1 - (x - low) / (50 - low)) ** 2
    elif name == "training_prior":
        yield (m1 * m2) ** 0.6 / (m1 + m2) ** 0.2, lambda x: (x - 5) / 245
        yield m2 / m1, lambda q: (q - 0.05) / 0.949
    elif name == "demo_training":
        yield m1, lambda x: np.log(x / 8) / np.log(120 / 8)
        yield (m2**2 - 25) / (m1**2 - 25), lambda u: u
    elif name.startswith("gaussian"):
        yield m1, stats.norm(35, 2).cdf
        yield m2, stats.norm(20, 2).cdf
    elif name.startswith("log_normal"):
        first, second = (35, 20) if "20" in name else (35, 35)
        sigma = 0.1 if "20" in name else 2.0
        a, b = stats.lognorm(sigma, scale=first), stats.lognorm(sigma, scale=second)
        x = np.exp(np.log(35) + sigma * np.linspace(-12, 12, 20_001))
        yield m1, cdf_of(x, a.pdf(x) * (b.cdf(x) - b.cdf(0.02 * x)))
        yield m2, cdf_of(x, b.pdf(x) * (a.cdf(50 * x) - a.cdf(x)))
    elif name == "demo_mixture":
        x = np.linspace(2, 200, 100_001)
        first = 0.1 * np.where((x > 5) & (x < 100), 1.35 * x**-2.35 / (5**-1.35 - 100**-1.35), 0)
        for p, q in PAIRS:
            a, b = stats.lognorm(0.15, scale=p), stats.lognorm(0.15, scale=q)
            part = a.pdf(x) * (b.cdf(x) - b.cdf(0.02 * x))
            first += 0.9 / 4 * part / integrate.trapezoid(part, x)
        yield m1, cdf_of(x, first)
    else:
        raise AssertionError(f"no closed form of {name} here")


@every
def test_draws_follow_the_closed_forms(name):
    """One-sample Kolmogorov-Smirnov of masses, redshift, sky and spins."""
    population = POPULATIONS[name]
    s = get_prior(name).sample(N, 31)
    for value, cdf in mass_cdfs(name, s):
        assert stats.kstest(value, cdf).pvalue > SMALL
    kind, largest = population.redshift
    if kind == "chirp_distance":
        chirp = (s["mass_1"] * s["mass_2"]) ** 0.6 / (s["mass_1"] + s["mass_2"]) ** 0.2
        distance = Planck15.luminosity_distance(s["redshift"]).value * (1.4 / 2**0.2 / chirp) ** (5 / 6)
        assert stats.kstest(distance, lambda x: (x**3 - 130**3) / (350**3 - 130**3)).pvalue > SMALL
    else:
        z = np.linspace(0, largest, 2000)
        volume = Planck15.differential_comoving_volume(z).value / (1 + z) ** (kind == "source_frame")
        assert stats.kstest(s["redshift"], cdf_of(z, volume)).pvalue > SMALL
    flat = {"ra": 2 * np.pi, "phase": 2 * np.pi, "psi": np.pi, "phi_12": 2 * np.pi, "phi_jl": 2 * np.pi}
    flat |= {"a_1": population.max_spin, "a_2": population.max_spin}
    cdfs = {k: (lambda x, high=high: x / high) for k, high in flat.items()}
    cdfs["theta_jn"] = lambda x: (1 - np.cos(x)) / 2
    cdfs |= {k: (lambda x: x / np.pi) if population.flat_tilts else cdfs["theta_jn"] for k in ("tilt_1", "tilt_2")}
    if name == "mlgwsc1_2":  # along the orbit: the components are even in +-0.99
        for i in "12":
            assert stats.kstest(s[f"a_{i}"] * np.cos(s[f"tilt_{i}"]), lambda x: (x + 0.99) / 1.98).pvalue > SMALL
            assert set(s[f"tilt_{i}"]) == {0.0, np.pi}
            del cdfs[f"tilt_{i}"]
        assert abs(np.corrcoef(np.cos(s["tilt_1"]), np.cos(s["tilt_2"]))[0, 1]) < 4 / np.sqrt(N)
    cdfs["dec"] = lambda x: (1 + np.sin(x)) / 2
    for key, cdf in cdfs.items():
        if key in population.zero:
            assert (s[key] == 0).all(), key
        else:
            assert stats.kstest(s[key], cdf).pvalue > SMALL, key


def test_every_packaged_population_is_here():
    assert {n.partition("(")[0] for n in POPULATIONS} | NO_MASSES == set(packaged())


@pytest.mark.parametrize("name", sorted({n.partition("(")[0] for n in POPULATIONS} - {"demo_mixture", "mlgwsc1_2"}))
def test_bilby_reads_the_packaged_file(name):
    """Whole, by its own reader: it draws the same masses as ours do (mixtures are beyond bilby's format)."""
    theirs = core.ConditionalPriorDict(str(packaged()[name]), conversion_function=lambda x: x)
    bilby.core.utils.random.seed(41)
    drawn = {k: p for k, p in theirs.items() if not isinstance(p, core.Constraint)}
    constraint = theirs.get("mass_ratio") if isinstance(theirs.get("mass_ratio"), core.Constraint) else None
    sample = core.ConditionalPriorDict(drawn).sample(N)
    sample = {k.removesuffix("_source"): v for k, v in sample.items()}
    keep = np.ones(N, bool) if constraint is None else constraint.prob(sample["mass_2"] / sample["mass_1"]) > 0
    ours = get_prior(name if "masses" not in name else f"{name}(35, 35)").sample(N, 42)
    for key in ({"mass_1", "mass_2", "redshift", "a_1", "tilt_2", "dec", "psi"} & set(sample)) - {"mass_ratio"}:
        assert stats.ks_2samp(sample[key][keep], ours[key]).pvalue > SMALL or np.ptp(ours[key]) == 0, key
