"""Populations of MLGWSC-1 (arXiv:2209.11146 and its configuration files), against PyCBC and closed forms; chirp distance in prior files."""

import numpy as np
import pytest
from pycbc.conversions import chirp_distance, distance_from_chirp_distance_mchirp
from scipy import stats

from aframe_assets.waveforms.parameters import chirp_mass, distance_of_chirp, luminosity_distance
from aframe_assets.waveforms.priors import get_prior

N = 20_000
SMALL = 1e-4
"""Smallest p-value of a Kolmogorov-Smirnov test; some 40 are made below, with fixed seeds."""

LOWEST = {1: 10.0, 2: 7.0, 3: 7.0}


def fits(values, cdf):
    return stats.kstest(values, cdf).pvalue > SMALL


def test_chirp_distance_is_pycbcs():
    rng = np.random.default_rng(1)
    m1, m2, d = rng.uniform(7, 50, 100), rng.uniform(7, 50, 100), rng.uniform(130, 350, 100)
    mchirp = (m1 * m2) ** 0.6 / (m1 + m2) ** 0.2
    # both are the same closed form in double precision
    np.testing.assert_allclose(distance_of_chirp(d, m1, m2), distance_from_chirp_distance_mchirp(d, mchirp), rtol=1e-12)


@pytest.mark.parametrize("dataset", LOWEST)
def test_draws_are_the_challenges(dataset):
    prior = get_prior(f"mlgwsc1_{dataset}")
    assert prior.frame == "detector"
    draws, low = prior.sample(N, 3), LOWEST[dataset]
    m1, m2 = draws["mass_1"], draws["mass_2"]
    # two uniform masses, ordered: the larger has the square of the uniform distribution, the smaller its mirror image
    uniform = stats.uniform(low, 50 - low).cdf
    assert fits(m1, lambda m: uniform(m) ** 2)
    assert fits(m2, lambda m: 1 - (1 - uniform(m)) ** 2)
    assert (m2 <= m1).all()
    # distances, even in volume, as PyCBC makes a chirp distance of them; redshift and back is good to 1e-8
    far = chirp_distance(luminosity_distance(draws["redshift"]), chirp_mass(m1, m2))
    assert far.min() >= 130 * (1 - 1e-6)
    assert far.max() <= 350 * (1 + 1e-6)
    assert fits(far, lambda d: (d**3 - 130**3) / (350**3 - 130**3))
    assert abs(np.corrcoef(far, m1)[0, 1]) < 4 / np.sqrt(N)
    for angle, period in (("ra", 2 * np.pi), ("phase", 2 * np.pi), ("psi", np.pi)):
        assert fits(draws[angle], stats.uniform(0, period).cdf)
    assert fits(np.cos(draws["theta_jn"]), stats.uniform(-1, 2).cdf)
    assert fits(np.sin(draws["dec"]), stats.uniform(-1, 2).cdf)


def test_no_spins_in_set_1():
    draws = get_prior("mlgwsc1_1").sample(100, 3)
    assert not draws["a_1"].any()
    assert not draws["a_2"].any()


def test_aligned_spins_in_set_2():
    draws = get_prior("mlgwsc1_2").sample(N, 3)
    along = [draws[f"a_{i}"] * np.cos(draws[f"tilt_{i}"]) for i in (1, 2)]
    for i, component in enumerate(along, 1):
        assert fits(component, stats.uniform(-0.99, 1.98).cdf)
        np.testing.assert_allclose(draws[f"a_{i}"] * np.sin(draws[f"tilt_{i}"]), 0, atol=1e-15)
    assert abs(np.corrcoef(*along)[0, 1]) < 4 / np.sqrt(N)


def test_isotropic_spins_in_set_3():
    draws = get_prior("mlgwsc1_3").sample(N, 3)
    for i in (1, 2):
        assert fits(draws[f"a_{i}"], stats.uniform(0, 0.99).cdf)
        assert fits(np.cos(draws[f"tilt_{i}"]), stats.uniform(-1, 2).cdf)
    for angle in ("phi_12", "phi_jl"):
        assert fits(draws[angle], stats.uniform(0, 2 * np.pi).cdf)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("mass_1_source = 30\nmass_2_source = 20\nchirp_distance = 200", "line 3: chirp_distance needs detector-frame masses"),
        ("mass_1 = 30\nmass_2 = 20\nchirp_distance = 200\nredshift = 0.1", "one of them"),
        ("mass_1 = 30\nmass_2 = 20\nchirp_distance = UniformComovingVolume(minimum=1, maximum=2)", "a prior of redshift or lum"),
    ],
)
def test_chirp_distances_that_make_no_sense_are_refused(tmp_path, lines, words):
    file = tmp_path / "odd.prior"
    file.write_text(lines)
    with pytest.raises(ValueError, match=words):
        get_prior(str(file))


def test_a_range_of_redshifts_is_not_made_up():
    prior = get_prior("mlgwsc1_1")
    assert prior.redshift_kind == "other"
    with pytest.raises(ValueError, match="range of redshifts for each chirp mass"):
        _ = prior.redshift_range
