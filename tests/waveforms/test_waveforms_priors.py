"""Populations of reference 2.3: supports, densities against histograms and closed forms, seeds, prior files."""

import numpy as np
import pytest
from scipy import integrate, stats

from aframe_assets.waveforms.parameters import (
    chirp_mass,
    component_masses,
    lal_spins,
    luminosity_distance,
    mass_ratio,
    redshift_at,
)
from aframe_assets.waveforms.priors import get_prior

MASS_PAIRS = ((35.0, 35.0), (35.0, 20.0), (20.0, 20.0), (20.0, 10.0))

ALL = [
    "end_o3_ratesandpops",
    "end_o3_ratesandpops_bns",
    "nonspin_bbh",
    "spin_bbh",
    "gaussian_masses(35, 20)",
    "log_normal_masses(35, 20, 0.1)",
    "training_prior",
    "demo_training",
    "demo_mixture",
]


@pytest.mark.parametrize("name", ALL)
def test_samples_are_seeded_complete_and_physical(name):
    prior = get_prior(name)
    a, b, c = prior.sample(500, 7), prior.sample(500, 7), prior.sample(500, 8)
    assert all(np.array_equal(a[k], b[k]) and a[k].shape == (500,) and np.isfinite(a[k]).all() for k in a)
    assert not np.array_equal(a["mass_1"], c["mass_1"])
    assert (a["mass_1"] > 0).all() and (a["redshift"] > 0).all() and (a["redshift"] <= prior.redshift_range[1]).all()
    if "gaussian" not in name:
        assert (a["mass_2"] <= a["mass_1"]).all()
    assert all(len(v) == 0 for v in prior.sample(0, 1).values())


@pytest.mark.parametrize(
    ("name", "frame", "kind", "zmax"),
    [
        ("end_o3_ratesandpops", "source", "comoving", 2),
        ("end_o3_ratesandpops_bns", "source", "source_frame", 0.15),
        ("nonspin_bbh", "detector", "source_frame", 0.5),
        ("spin_bbh", "detector", "source_frame", 0.5),
        ("gaussian_masses(35, 20)", "source", "source_frame", 2),
        ("log_normal_masses(35, 20)", "source", "source_frame", 2),
        ("demo_mixture", "source", "comoving", 0.7),
    ],
)
def test_frames_and_redshifts(name, frame, kind, zmax):
    prior = get_prior(name)
    assert (prior.frame, prior.redshift_kind, prior.redshift_range) == (frame, kind, (0.0, float(zmax)))
    assert prior.declination_range == pytest.approx((-np.pi / 2, np.pi / 2))


@pytest.mark.parametrize(("name", "power"), [("demo_mixture", 0), ("end_o3_ratesandpops", 0), ("nonspin_bbh", 1)])
def test_redshift_measure(name, power):
    from astropy.cosmology import Planck15

    prior = get_prior(name)
    z = np.linspace(0, prior.redshift_range[1], 400)
    density = Planck15.differential_comoving_volume(z).value / (1 + z) ** power
    cdf = integrate.cumulative_trapezoid(density, z, initial=0)
    drawn = prior.sample(4000, 5)["redshift"]
    assert stats.kstest(drawn, lambda x: np.interp(x, z, cdf / cdf[-1])).pvalue > 1e-3


def test_angles_of_the_default_population():
    s = get_prior("end_o3_ratesandpops").sample(4000, 1)
    for name, cdf in (
        ("dec", lambda x: (np.sin(x) + 1) / 2),
        ("theta_jn", lambda x: (1 - np.cos(x)) / 2),
        ("tilt_1", lambda x: (1 - np.cos(x)) / 2),
        ("psi", lambda x: x / np.pi),
        ("a_1", lambda x: x / 0.998),
        ("mass_1", lambda x: (5**-1.35 - x**-1.35) / (5**-1.35 - 100**-1.35)),
    ):
        assert stats.kstest(s[name], cdf).pvalue > 1e-3, name


@pytest.mark.parametrize("name", ALL)
def test_mass_density_is_the_density_of_the_samples(name):
    prior = get_prior(name)
    n = 40_000
    s = prior.sample(n, 3)
    edges1, edges2 = (np.quantile(s[k], np.linspace(0.02, 0.98, 7)) for k in ("mass_1", "mass_2"))
    found = np.histogram2d(s["mass_1"], s["mass_2"], [edges1, edges2])[0]
    fine = 40
    expected = np.empty_like(found)
    for i in range(6):
        for j in range(6):
            x = edges1[i] + (np.arange(fine) + 0.5) / fine * np.diff(edges1)[i]
            y = edges2[j] + (np.arange(fine) + 0.5) / fine * np.diff(edges2)[j]
            # at redshift 0 the two frames are one
            density = prior.mass_density(x[:, None], y[None], np.zeros(1))
            expected[i, j] = n * density.mean() * np.diff(edges1)[i] * np.diff(edges2)[j]
    # cells that the diagonal cuts are integrated to a percent
    error = np.sqrt(expected + (0.03 * expected) ** 2 + 1)
    assert (np.abs(found - expected) < 5 * error).all()
    assert found.sum() == pytest.approx(expected.sum(), rel=0.02)


def test_log_normal_density_in_closed_form():
    from scipy.special import ndtr

    prior = get_prior("log_normal_masses(35, 20, 0.3)")
    m1, m2 = np.array([30.0, 40.0, 20.0]), np.array([20.0, 25.0, 30.0])
    plain = stats.lognorm(0.3, scale=35).pdf(m1) * stats.lognorm(0.3, scale=20).pdf(m2)
    width, mean = 0.3 * np.sqrt(2), np.log(20 / 35)
    passed = ndtr((0 - mean) / width) - ndtr((np.log(0.02) - mean) / width)
    expected = np.where(m2 <= m1, plain / passed, 0)
    assert prior.mass_density(m1, m2) == pytest.approx(expected, rel=1e-3)
    assert np.exp(prior.log_mass_density(m1, m2)) == pytest.approx(expected, rel=1e-3)


def test_the_demo_proposal_is_the_mixture():
    prior = get_prior("demo_mixture")
    m1, m2 = np.random.default_rng(0).uniform(10, 60, (2, 200))
    m1, m2 = np.maximum(m1, m2), np.minimum(m1, m2)
    pairs = sum(get_prior(f"log_normal_masses({a}, {b}, 0.15)").mass_density(m1, m2) for a, b in MASS_PAIRS) / 4
    astro = get_prior("end_o3_ratesandpops").mass_density(m1, m2)
    assert prior.mass_density(m1, m2) == pytest.approx(0.9 * pairs + 0.1 * astro, rel=1e-9)
    s = prior.sample(20_000, 4)
    # the mean mass of the mixture, from its own density on a grid
    x = np.linspace(5, 100, 800)
    grid = prior.mass_density(x[:, None], x[None])
    assert s["mass_1"].mean() == pytest.approx((grid * x[:, None]).sum() / grid.sum(), rel=0.01)


def test_detector_frame_density_needs_the_redshift():
    prior = get_prior("spin_bbh")
    with pytest.raises(ValueError, match="redshift"):
        prior.mass_density(20.0, 10.0)
    at = prior.mass_density(20.0, 10.0, 0.5)
    assert at == pytest.approx(1.5**2 * 2 / 95**2, rel=2e-3)


def test_prior_files(tmp_path):
    path = tmp_path / "bbh.prior"
    rest = "redshift = bilby.gw.prior.UniformSourceFrame(0, 1, name='redshift', cosmology='Planck15')\ndec = Cosine(name='dec')\n"
    path.write_text("mass_1_source = Uniform(20, 30, name='mass_1_source')\nmass_2_source = Uniform(5, 10, name='mass_2_source')\n" + rest)
    prior = get_prior(str(path))
    assert (prior.frame, prior.redshift_kind) == ("source", "source_frame")
    assert prior.mass_density(25.0, 7.0) == pytest.approx(1 / 50) and prior.mass_density(25.0, 12.0) == 0
    other = tmp_path / "chirp.prior"
    other.write_text(
        "chirp_mass = Uniform(10, 20, name='chirp_mass')\nmass_ratio = Uniform(0.25, 1, name='mass_ratio')\n"
        "mass_2 = Constraint(10, 100)\nluminosity_distance = bilby.gw.prior.UniformSourceFrame(100, 2000, name='luminosity_distance')\n"
    )
    prior = get_prior(str(other))
    s = prior.sample(2000, 1)
    assert s["mass_2"].min() >= 10 and chirp_mass(s["mass_1"], s["mass_2"]).max() <= 20
    assert luminosity_distance(s["redshift"]).max() <= 2001
    x = np.linspace(5, 60, 1500)
    assert prior.mass_density(x[:, None], x[None], 0.0).sum() * (x[1] - x[0]) ** 2 == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_such_prior", "neither a file"),
        ("no_such_prior(1, 2)", "neither a file"),
        ("gaussian_masses()", "expected gaussian_masses"),
        ("log_normal_masses(1)", "expected gaussian_masses"),
        ("log_normal_masses(35, -20)", "positive"),
        ("demo_mixture(35, 20)", "expected gaussian_masses"),
        ("ringdown_prior", "without masses"),
    ],
)
def test_unknown_priors(name, text):
    with pytest.raises(ValueError, match=text):
        get_prior(name)


def test_incomplete_prior_files(tmp_path):
    for text, message in (("mass_1 = Uniform(1, 2)\n", "mass_2"), ("mass_1 = Uniform(1, 2)\nmass_2 = Uniform(1, 2)\n", "redshift")):
        path = tmp_path / f"{message}.prior"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            get_prior(str(path))


def test_masses_and_distances():
    from astropy.cosmology import Planck15
    from bilby.gw.conversion import component_masses_to_chirp_mass

    m1, m2 = np.array([36.0, 10.0]), np.array([29.0, 2.0])
    assert chirp_mass(m1, m2) == pytest.approx(component_masses_to_chirp_mass(m1, m2))
    assert np.array(component_masses(chirp_mass(m1, m2), mass_ratio(m1, m2))) == pytest.approx(np.array([m1, m2]))
    z = np.array([1e-3, 0.1, 0.7, 2, 10])
    assert luminosity_distance(z) == pytest.approx(Planck15.luminosity_distance(z).value, rel=1e-6)
    assert redshift_at(luminosity_distance(z)) == pytest.approx(z, rel=1e-6)
    with pytest.raises(ValueError, match="redshift"):
        luminosity_distance(-0.1)


def test_spins_are_those_of_lalsimulation_and_go_back_a_hundred_times():
    from lal import MSUN_SI
    from lalsimulation import SimInspiralTransformPrecessingNewInitialConditions, SimInspiralTransformPrecessingWvf2PE

    s = get_prior("end_o3_ratesandpops").sample(50, 9)
    f_ref = np.linspace(10, 40, 50)
    made = lal_spins(s, f_ref)
    names = ("theta_jn", "phi_jl", "tilt_1", "tilt_2", "phi_12", "a_1", "a_2")
    for i in range(50):
        m1, m2 = float(s["mass_1"][i]), float(s["mass_2"][i])
        theirs = SimInspiralTransformPrecessingNewInitialConditions(
            *(float(s[k][i]) for k in names), m1 * MSUN_SI, m2 * MSUN_SI, float(f_ref[i]), float(s["phase"][i])
        )
        assert [float(v[i]) for v in made.values()] == pytest.approx(list(theirs), abs=1e-6)
    # reference 4.2: round trip of m 35/20, a 0.5/0, tilts pi/2, f_ref 20
    one = {k: np.array([v]) for k, v in zip(names, (0.5, 0.3, np.pi / 2, np.pi / 2, 1.0, 0.5, 0.2), strict=True)}
    one |= {k: np.array([v]) for k, v in (("mass_1", 35.0), ("mass_2", 20.0), ("phase", 0.4))}
    start = dict(one)
    for _ in range(100):
        whole = {k: np.zeros(1) for k in s} | one
        lal = [float(v[0]) for v in lal_spins(whole, 20.0).values()]
        back = SimInspiralTransformPrecessingWvf2PE(*lal, 35.0, 20.0, 20.0, 0.4)
        one = one | {k: np.array([v]) for k, v in zip(names, back, strict=True)}
    for k in names:
        assert one[k] == pytest.approx(start[k], abs=1e-6), k
    with pytest.raises(ValueError, match="reference_frequency"):
        lal_spins(whole, 0.0)
