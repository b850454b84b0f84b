"""Rejection sampling: which draws are counted, what is said when nothing can be accepted (reference 2.4), and that the counts are right."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from aframe_assets.waveforms import rejection
from aframe_assets.waveforms.frames import DetectorFrame, SourceFrame
from aframe_assets.waveforms.generation import WaveformGenerator
from aframe_assets.waveforms.priors import get_prior
from aframe_assets.waveforms.projection import project, sidereal_time
from aframe_assets.waveforms.rejection import GROUP, Selection, rejection_sample
from aframe_assets.waveforms.snr import ifo_snrs, network_snr

GENERATOR = WaveformGenerator("IMRPhenomD", 1024, 4, 20, 50, 1)
FREQUENCIES = np.arange(0, 513.0)
START = 1240610000.0


def selection(level=1e-46, threshold=4.0):
    psd = np.full(len(FREQUENCIES), level)
    return Selection(("H1", "L1"), {"H1": (FREQUENCIES, psd), "L1": (FREQUENCIES, psd)}, threshold, 32, None, "a flat PSD")


def times(n):
    return START + 977.0 * np.arange(n)


def sample(n, cap=3000, seed=1, gps=None, **over):
    return rejection_sample(n, get_prior("demo_mixture"), GENERATOR, selection(**over), seed, cap, gps)


def test_every_place_draws_until_its_first_acceptance_and_no_further():
    wanted, level, gps = 25, 2e-46, times(25)
    draws = sample(wanted, level=level, gps=gps)
    assert draws.accepted["snr"].shape == (wanted,) and draws.strain.shape == (wanted, 2, 4096)
    # the same draws made plainly: number k of place i is row i of the k-th set of draws for all places
    parts = [get_prior("demo_mixture").sample(GROUP * wanted, np.random.default_rng((1, 0, g))).detector() for g in range(12)]
    plain = DetectorFrame({k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
    accepted, rejected = [], []
    s = selection(level)
    for place in range(wanted):
        rows = np.arange(place, len(plain["mass_1"]), wanted)
        values = plain.rows(rows)
        waves, good = GENERATOR(values)
        strain = project(waves, values, s.ifos, 1024, gps[place])
        snr = network_snr(ifo_snrs(strain, s.psds, s.ifos, 1024, 32))
        stop = int(np.flatnonzero(good & (snr >= 4))[0])
        accepted.append((values["mass_1"][stop], snr[stop]))
        rejected += list(zip(values["mass_1"][:stop], snr[:stop], strict=True))
        # float32 is stored
        assert draws.strain[place] == pytest.approx(strain[stop], abs=1e-6 * np.abs(strain[stop]).max())
    for found, expected in ((draws.accepted, accepted), (draws.rejected, rejected)):
        assert np.column_stack([found["mass_1"], found["snr"]]) == pytest.approx(np.array(expected), rel=1e-6)
    assert draws.num_injections == len(accepted) + len(rejected) and len(rejected) > 10
    assert (draws.accepted["snr"] >= 4).all() and (draws.rejected["snr"] < 4).all() and draws.num_failed == 0


def test_depends_on_the_seed_but_not_on_how_many_are_computed_at_once():
    a, b, c = (sample(12, level=4e-46, gps=times(12), cap=cap, seed=seed) for cap, seed in ((3000, 1), (5, 1), (3000, 2)))
    assert max(b.batches) <= 5 < max(a.batches)
    for one, two in ((a.accepted, b.accepted), (a.rejected, b.rejected)):
        assert all(np.allclose(one[k], two[k], rtol=1e-6, atol=0) and len(one[k]) == len(two[k]) for k in one)
        assert np.array_equal(one["mass_1"], two["mass_1"])
    assert np.abs(a.strain - b.strain).max() < 1e-6 * np.abs(a.strain).max()
    assert not np.array_equal(a.accepted["mass_1"], c.accepted["mass_1"])
    assert np.array_equal(a.strain, sample(12, level=4e-46, gps=times(12)).strain)


def test_more_places_than_a_block(monkeypatch):
    monkeypatch.setattr(rejection, "BLOCK", 7)
    draws = sample(18, cap=10)
    assert draws.strain.shape[0] == 18 and (draws.accepted["snr"] >= 4).all() and len(np.unique(draws.accepted["ra"])) == 18
    assert all(np.abs(s).max() > 0 for s in draws.strain)


def test_signals_are_projected_at_their_own_times():
    gps = times(6)
    draws = sample(6, gps=gps)
    waves, _ = GENERATOR(draws.accepted)
    at = project(waves, draws.accepted, ("H1", "L1"), 1024, gps)
    assert draws.strain == pytest.approx(at, abs=1e-6 * np.abs(at).max())
    # without times `ra` is the longitude: as at a time when the sidereal time is zero
    still = sample(6)
    turned = still.accepted | {"ra": still.accepted["ra"] + sidereal_time(START)}
    at = project(GENERATOR(still.accepted)[0], turned, ("H1", "L1"), 1024, START)
    assert still.strain == pytest.approx(at, abs=1e-6 * np.abs(at).max())
    with pytest.raises(ValueError, match=r"gps has shape \(6,\).*each of 5"):
        sample(5, gps=gps)


def test_nothing_wanted_nothing_drawn():
    draws = sample(0)
    assert draws.strain.shape == (0, 2, 4096) and draws.num_injections == 0 and draws.rejected["ifo_snrs"].shape == (0, 2)
    assert isinstance(draws.rejected, DetectorFrame)


def test_a_hopeless_threshold_is_an_error_that_names_psd_and_threshold(monkeypatch):
    monkeypatch.setattr(rejection, "HOPELESS", 60)
    with pytest.raises(ValueError, match=r"network SNR 4 .*a flat PSD .*ASD at 100 Hz: H1 0\.001.*snr_threshold"):
        sample(5, cap=30, level=1e-6)


class Faulty:
    """A population of which a share cannot be generated."""

    name = "faulty"

    def __init__(self, share):
        self.share, self.prior = share, get_prior("demo_mixture")

    def sample(self, n, rng):
        out = self.prior.sample(n, rng)
        out["mass_1"][rng.random(n) < self.share] = np.nan
        return out


def test_draws_that_fail_are_neither_accepted_nor_rejected(monkeypatch):
    monkeypatch.setattr(rejection, "MAX_FAILED", 0.15)
    draws = rejection_sample(60, Faulty(0.05), GENERATOR, selection(1e-46), 3, 50)
    assert draws.num_failed > 0 and len(draws.strain) == 60
    both = np.concatenate([draws.accepted["mass_1"], draws.rejected["mass_1"]])
    assert np.isfinite(both).all() and len(both) == draws.num_injections
    with pytest.raises(ValueError, match="cannot be generated"):
        rejection_sample(400, Faulty(0.3), GENERATOR, selection(1e-46), 3)


# --- counts, on a universe whose acceptance is known ------------------------------------------------


@dataclass(frozen=True)
class Toy:
    """Signals of SNR 4 / redshift in one sample; the mass is a label drawn with it. Redshift U(0, 2): half are accepted at
    SNR >= 4 if `horizon` is 1. Some cannot be made. With `ra` fixed, sources are seen at certain times only."""

    horizon: float = 1.0
    fails: float = 0.0
    fixed: bool = False
    name: str = "toy"
    sample_rate: float = 64.0
    size: int = 64

    def sample(self, n, rng):
        u = rng.random((4, n))
        values = {"redshift": 2 * u[0], "mass_1": 10 + 20 * u[1], "mass_2": np.full(n, 10.0), "ra": 2 * np.pi * u[2]}
        values["mass_1"] = np.where(u[3] < self.fails, -1.0, values["mass_1"])
        values |= {k: np.zeros(n) for k in ("a_1", "a_2", "tilt_1", "tilt_2", "phi_12", "phi_jl", "dec", "psi", "theta_jn", "phase")}
        return DetectorFrame(values)

    def __call__(self, values):
        wave = np.zeros((len(values["redshift"]), self.size))
        wave[:, 32] = self.horizon / values["redshift"]
        return {"plus": wave, "cross": 0 * wave}, values["mass_1"] > 0


@pytest.fixture
def toy(monkeypatch):
    # SNR that of the merger's sample, times 4; and no detector geometry
    def strain(polarizations, values, detectors, rate, gps=None):
        seen = 1.0 if gps is None else (np.cos(values["ra"] - sidereal_time(gps)) > 0) * 1.0
        return (np.ones((1, 2, 1)) * polarizations["plus"][:, None]) * np.reshape(seen, (-1, 1, 1))

    monkeypatch.setattr(rejection, "project", strain)
    monkeypatch.setattr(rejection, "ifo_snrs", lambda strain, *_: 4 / 2**0.5 * strain[:, :, 32])
    monkeypatch.setattr(rejection, "MAX_FAILED", 1.0)

    def run(n, seed, gps=None, cap=3000, **over):
        universe = Toy(**over)
        return rejection_sample(n, universe, universe, selection(), seed, cap, gps)

    return run


@pytest.mark.parametrize(("horizon", "fails", "cap", "acceptance"), [(1.0, 0.0, 3000, 0.5), (0.1, 0.0, 64, 0.05), (0.4, 0.3, 3000, 0.2)])
def test_counts_give_the_known_acceptance(toy, horizon, fails, cap, acceptance):
    draws = [toy(700, seed, horizon=horizon, fails=fails, cap=cap) for seed in range(6)]
    accepted, total = 6 * 700, sum(d.num_injections for d in draws)
    # the number of draws for n acceptances is negative binomial: mean n / p, variance n (1 - p) / p^2
    error = (accepted * (1 - acceptance)) ** 0.5 / acceptance
    assert abs(total - accepted / acceptance) < 3 * error
    failed = sum(d.num_failed for d in draws)
    assert failed == pytest.approx(total * fails / (1 - fails), abs=3 * (total * fails) ** 0.5 / (1 - fails) + 1e-9)
    # what was accepted is the population cut at the threshold, what was rejected is the rest
    near = np.concatenate([d.accepted["redshift"] for d in draws])
    far = np.concatenate([d.rejected["redshift"] for d in draws])
    assert stats.kstest(near, stats.uniform(0, horizon).cdf).pvalue > 1e-3
    assert stats.kstest(far, stats.uniform(horizon, 2 - horizon).cdf).pvalue > 1e-3


def test_sums_over_accepted_and_rejected_draws_are_unbiased(toy):
    # what a volume is made of: sum of weights of found draws over that of all draws. Weight mass_1, found below redshift 0.3:
    # truth 0.15 whatever the weights; 200 universes of 60 signals pin it to 1 %
    gps = times(60)
    estimates, means = [], []
    for seed in range(200):
        d = toy(60, seed, horizon=0.6, gps=gps)
        weight = np.concatenate([d.accepted["mass_1"], d.rejected["mass_1"]])
        found = np.concatenate([d.accepted["redshift"] < 0.3, np.zeros(len(d.rejected["snr"]), bool)])
        estimates.append((weight * found).sum() / weight.sum())
        means.append(np.concatenate([d.accepted["redshift"], d.rejected["redshift"]]).mean())
    # half of the sky is seen at any time: acceptance 0.15, found 0.075
    error = np.std(estimates) / 200**0.5
    assert abs(np.mean(estimates) - 0.075) < 3 * error + 0.075 / 60 / 4
    assert error < 0.02 * 0.075
    # all draws together are the population
    assert abs(np.mean(means) - 1.0) < 4 * np.std(means) / 200**0.5 + 0.002


def test_the_time_of_a_place_decides_what_it_accepts(toy):
    gps = times(400)
    d = toy(400, 3, gps=gps)
    assert (np.cos(d.accepted["ra"] - sidereal_time(gps)) > 0).all()
    # over a day of times the accepted right ascensions are uniform again
    assert stats.kstest(d.accepted["ra"], stats.uniform(0, 2 * np.pi).cdf).pvalue > 1e-3


def test_a_place_that_sees_nothing_is_an_error_with_its_time(toy, monkeypatch):
    monkeypatch.setattr(rejection, "HOPELESS", 500)

    class Fixed(Toy):
        def sample(self, n, rng):
            values = super().sample(n, rng)
            return values | {"ra": np.full(n, sidereal_time(START))}

    universe = Fixed()
    with pytest.raises(ValueError, match=r"none of \d+ draws .* at GPS 1240653082.0, where \d+ of \d+ do elsewhere"):
        rejection_sample(2, universe, universe, selection(), 1, 64, np.array([START, START + 43082.0]))


def test_source_frame_draws_are_refused_where_waves_and_files_are_made():
    drawn = get_prior("demo_mixture").sample(3, 1)
    assert isinstance(drawn, SourceFrame)
    with pytest.raises(TypeError, match=r"DetectorFrame, got SourceFrame.*\.detector\(\)"):
        GENERATOR(drawn)
    with pytest.raises(TypeError, match="DetectorFrame, got dict"):
        GENERATOR(dict(drawn.detector()))
