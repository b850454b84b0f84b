"""Sensitive volume against pycbc.sensitivity, and its two normalisations against each other."""

import numpy as np
import pytest

from aframe_assets.sensitivity.curves import Rate, volume_curves
from aframe_assets.sensitivity.far import Background
from aframe_assets.sensitivity.population import LogNormalPair, Population, comoving_volume, differential_volume
from aframe_assets.sensitivity.volume import Draws, Sample, estimate, sensitive_distance
from aframe_assets.waveforms.frames import SourceFrame

TARGET = LogNormalPair(35, 20, 0.1)
MAX_REDSHIFT = 1.0
REDSHIFTS = np.linspace(0, MAX_REDSHIFT, 4001)


def enclosed(time_dilated):
    """Volume inside each of REDSHIFTS, Gpc^3."""
    shells = differential_volume(REDSHIFTS) / (1 + REDSHIFTS if time_dilated else 1)
    inside = np.concatenate([[0], np.cumsum((shells[1:] + shells[:-1]) / 2)])
    return inside / inside[-1] * comoving_volume(0, MAX_REDSHIFT, time_dilated=time_dilated)


VOLUMES = enclosed(time_dilated=True)


def own_target(m1, m2, z):
    """Draws that follow the target itself: mass weights are one, and only distance is left, which is all that PyCBC weights."""
    return TARGET.log_density(np.log(m1), np.log(m2))


def campaign(n, rng, comoving):
    """Draws of the target with a soft horizon near redshift 0.5; z from dVc/dz (comoving) or from dVc/dz / (1 + z)."""
    m1, m2 = 35 * np.exp(0.1 * rng.normal(size=n)), 20 * np.exp(0.1 * rng.normal(size=n))
    cdf = enclosed(time_dilated=not comoving)
    z = np.interp(rng.random(n), cdf / cdf[-1], REDSHIFTS)
    found = rng.random(n) < 1 / (1 + np.exp((z - 0.5) / 0.08))
    return Draws(np.where(found, 1.0, -np.inf), SourceFrame(mass_1=m1, mass_2=m2, redshift=z), np.ones(n, bool)), found


def ball_radius(redshift):
    """Radius (Mpc) of the flat ball with the time-dilated comoving volume inside `redshift`.

    PyCBC's estimators live in flat space, where sources are uniform in radius cubed. In this radius a constant rate per comoving volume
    and source-frame time is just that, so that both sides integrate the same thing.
    """
    return sensitive_distance(np.interp(redshift, REDSHIFTS, VOLUMES))


def test_equal_weights_give_pycbcs_monte_carlo():
    """Draws from dVc/dz / (1 + z) are PyCBC's 'volume' distribution: the same sums, so the same V and error to rounding."""
    from pycbc.sensitivity import volume_montecarlo

    population = Population(own_target, (0, MAX_REDSHIFT), comoving=False)
    draws, found = campaign(4000, np.random.default_rng(1), comoving=False)
    ours = estimate(Sample.of(draws, population, np.array([0.5])), TARGET, population)
    radius, chirp = ball_radius(draws.redshift), (draws.mass_1 * draws.mass_2) ** 0.6 / (draws.mass_1 + draws.mass_2) ** 0.2
    theirs, error = volume_montecarlo(
        radius[found],
        radius[~found],
        chirp[found],
        chirp[~found],
        "distance",
        "volume",
        "distance",
        max_param=float(ball_radius(MAX_REDSHIFT)),
    )
    # Mpc^3 -> Gpc^3; 1e-9 is rounding and the quadrature of V0
    assert ours.volume[0] == pytest.approx(theirs / 1e9, rel=1e-9)
    assert ours.error[0] == pytest.approx(error / 1e9, rel=1e-9)
    assert ours.volume_by_count[0] == pytest.approx(theirs / 1e9, rel=1e-9)
    assert ours.error_by_count[0] == pytest.approx(error / 1e9, rel=1e-9)


def test_redshift_weights_against_pycbcs_shells():
    """PyCBC's sum over shells between found and missed injections needs no weights; ours needs C_z / (1 + z) for draws from dVc/dz.

    Both have the scatter of the same injections, though not in the same way: 4 joint errors.
    """
    from pycbc.sensitivity import volume_shell

    population = Population(own_target, (0, MAX_REDSHIFT))
    draws, found = campaign(60_000, np.random.default_rng(2), comoving=True)
    sample = Sample.of(draws, population, np.array([0.5]))
    ours = estimate(sample, TARGET, population)
    radius = ball_radius(draws.redshift)
    theirs, error = volume_shell(radius[found], radius[~found])
    joint = np.hypot(ours.error[0], error / 1e9)
    assert abs(ours.volume[0] - theirs / 1e9) < 4 * joint < 0.1 * ours.volume[0]
    # which Aframe's weights would fail by far
    old = estimate(Sample.of(draws, population, np.array([0.5]), compatible=True), TARGET, population)
    assert abs(old.volume[0] - theirs / 1e9) > 8 * joint


def test_sensitive_distance_is_pycbcs():
    from pycbc.sensitivity import volume_to_distance_with_errors

    distance, high, low = volume_to_distance_with_errors(2.5e9, 0.05e9)
    assert sensitive_distance(2.5) == pytest.approx(distance)
    # the tabulated error is of first order: a third of the relative error of V
    assert sensitive_distance(2.5) * 0.05 / 2.5 / 3 == pytest.approx((high + low) / 2, rel=1e-3)
    # half of the sky holds the same ball in half of the volume
    assert sensitive_distance(1.25, 2 * np.pi) == pytest.approx(distance)


def ordered(m1, m2, z):
    """ln m1 and ln m2 uniform on [5, 100], m2 <= m1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        density = np.log(2) - np.log(m1 * m2) - 2 * np.log(np.log(20))
    return np.where((m1 <= 100) & (m2 >= 5) & (m2 <= m1), density, -np.inf)


def ordered_campaign(n, rng, population_mass_limit=100.0):
    """Draws of `ordered` (below a limit), uniform in time-dilated comoving volume, found with a probability that falls with redshift."""
    m2, m1 = np.sort(5 * (population_mass_limit / 5) ** rng.random((2, n)), axis=0)
    z = np.interp(rng.random(n), VOLUMES / VOLUMES[-1], REDSHIFTS)
    statistic = np.where(rng.random(n) < 1.2 - z, 10 - 5 * z + rng.normal(size=n), -np.inf)
    return Draws(statistic, SourceFrame(mass_1=m1, mass_2=m2, redshift=z), np.ones(n, bool), snr=8 / (0.3 + z))


def test_both_normalisations_agree_where_the_target_is_cut_in_half():
    """At (35, 35) half of the log-normals lies at m2 > m1, where nothing is drawn: normalised on the support, the weights average to one,
    and V / sum of weights and V / number of draws agree at every threshold. Normalised on the plane they would differ by 2."""
    population = Population(ordered, (0, MAX_REDSHIFT), comoving=False)
    draws = ordered_campaign(300_000, np.random.default_rng(3))
    e = estimate(Sample.of(draws, population, np.linspace(0, 12, 50)), LogNormalPair(35, 35, 0.1), population)
    assert e.mean_weight == pytest.approx(1, abs=3 * e.mean_weight_error) and e.mean_weight_error < 0.05 and e.agrees
    np.testing.assert_allclose(e.volume_by_count, e.volume * e.mean_weight, rtol=1e-9)
    # one draw's scatter of the numerator, and of the norm as well: dividing by a known number cannot be more exact where all is found
    assert (np.abs(e.volume_by_count - e.volume) <= 3 * np.hypot(e.error, e.error_by_count)).all()
    log_masses = np.log(draws.mass_1), np.log(draws.mass_2)
    direct = np.exp(LogNormalPair(35, 35, 0.1).log_density(*log_masses) - ordered(draws.mass_1, draws.mass_2, 0))
    hit = 2 * direct * (draws.statistic >= 0)
    # the support is 1/2 to 1e-3
    assert e.volume_by_count[0] == pytest.approx(population.volume * hit.mean(), rel=2e-3)
    assert e.error_by_count[0] == pytest.approx(population.volume * hit.std() / np.sqrt(len(hit)), rel=2e-3)


def test_disagreement_is_a_warning():
    """Draws that stop at 40 solar masses, said to reach 100: their weights do not average to one."""
    rng = np.random.default_rng(4)
    population = Population(ordered, (0, MAX_REDSHIFT), comoving=False)
    background = Background.of(rng.normal(size=2000), 3600.0 * 20)
    for limit, warned in ((100.0, False), (40.0, True)):
        curves = volume_curves(ordered_campaign(200_000, rng, limit), population, background, [(20, 20)], Rate.wanted([1], []))
        assert any("divided by the number of draws disagree" in w for w in curves.warnings) == warned


def test_rows_have_distance_and_vt():
    rng = np.random.default_rng(5)
    population = Population(ordered, (0, MAX_REDSHIFT), comoving=False, dec_range=(0, np.pi / 2))
    background = Background.of(rng.normal(size=2000), 3600.0 * 20)
    year = 31_557_600.0
    row = volume_curves(
        ordered_campaign(50_000, rng), population, background, [(20, 20)], Rate.wanted([1], []), sigma=0.3, zero_lag_livetime=year / 4
    ).rows[0]
    assert row["vt"] == pytest.approx(row["volume"] / 4) and row["vt_error"] == pytest.approx(row["error"] / 4)
    assert row["sensitive_distance"] == pytest.approx(1000 * (3 * row["volume"] / (2 * np.pi)) ** (1 / 3))
    assert row["sensitive_distance_error"] == pytest.approx(row["sensitive_distance"] * row["error"] / row["volume"] / 3)
    assert row["Tb_effective"] == pytest.approx(background.livetime) and row["effective_count"] == row["count"]


@pytest.mark.parametrize(("share", "lost"), [(0.0, False), (0.02, False), (0.05, True)])
def test_signals_lost_by_the_snr_cut_are_noticed(share, lost):
    """2000 injections of SNR 4 to 5. Noise at 36 per hour within 1 s finds 2 % of all; 5 % are many too many (p = 10^-15)."""
    rng = np.random.default_rng(6)
    population = Population(ordered, (0, MAX_REDSHIFT), comoving=False)
    background = Background.of(rng.uniform(size=7200), 3600.0 * 20)
    draws = ordered_campaign(20_000, rng)
    snr = np.concatenate([np.full(2000, 4.5), np.full(18_000, 20.0)])
    statistic = np.where(snr < 5, np.where(np.arange(20_000) < share * 2000, 5.0, -np.inf), draws.statistic)
    draws = Draws(statistic, draws.source, draws.accepted, snr=snr)
    curves = volume_curves(draws, population, background, [(20, 20)], Rate.wanted([1, 36], []), sigma=0.3)
    q = curves.quiet
    # of both rates the higher is looked at
    assert (q.num, q.found_share, q.lost) == (2000, share, lost)
    assert q.accidental == pytest.approx(-np.expm1(-2 * 36 / 3600))
    assert any("SNR cut" in w for w in curves.warnings) == lost


def test_rates_rest_on_independent_background():
    """Every background event is seen ten times: N_eff is a tenth, and thresholds may lie sqrt(10) times farther away."""
    from aframe_assets.sensitivity.independence import independence

    rng = np.random.default_rng(7)
    n, slides = 4000, 10
    own, slide = np.repeat(rng.uniform(0, 4e6, n), slides), np.tile(np.arange(1.0, slides + 1), n)
    statistic = np.repeat(rng.exponential(size=n), slides) + 1e-3 * rng.normal(size=n * slides)
    found = independence(statistic, own, np.stack([0 * slide, slide], axis=1), 32.0)
    population = Population(ordered, (0, MAX_REDSHIFT), comoving=False)
    draws = ordered_campaign(50_000, rng)
    draws = Draws(draws.statistic - 3, draws.source, draws.accepted)
    plain, right = (
        volume_curves(draws, population, Background.of(statistic, 3600.0 * 1000, *given), [(20, 20)], Rate.wanted([1], []), sigma=0.3).rows[
            0
        ]
        for given in ((), (found,))
    )
    assert plain["volume"] == right["volume"] and plain["far_relative_error"] == pytest.approx(1000**-0.5)
    # 1000 events are 100 glitches
    assert right["effective_count"] == pytest.approx(100, rel=0.1)
    assert right["far_relative_error"] == pytest.approx(0.1, rel=0.05)
    assert right["Tb_effective"] == pytest.approx(3.6e5, rel=0.1)
    assert right["volume_at_far_minus"] <= plain["volume_at_far_minus"] <= plain["volume_at_far_plus"] <= right["volume_at_far_plus"]
