"""Rejection sampling: which draws are counted, and what is said when nothing can be accepted (reference 2.4)."""

import numpy as np
import pytest

from aframe_assets.waveforms import rejection
from aframe_assets.waveforms.generation import WaveformGenerator
from aframe_assets.waveforms.parameters import detector_frame
from aframe_assets.waveforms.priors import get_prior
from aframe_assets.waveforms.projection import project
from aframe_assets.waveforms.rejection import Selection, rejection_sample
from aframe_assets.waveforms.snr import ifo_snrs, network_snr

GENERATOR = WaveformGenerator("IMRPhenomD", 1024, 4, 20, 50, 1)
FREQUENCIES = np.arange(0, 513.0)


def selection(level=1e-46, threshold=4.0):
    psd = np.full(len(FREQUENCIES), level)
    return Selection(("H1", "L1"), {"H1": (FREQUENCIES, psd), "L1": (FREQUENCIES, psd)}, threshold, 32, None, "a flat PSD")


def sample(n, cap=3000, seed=1, **over):
    return rejection_sample(n, get_prior("demo_mixture"), GENERATOR, selection(**over), np.random.default_rng(seed), cap)


def test_stops_at_the_last_acceptance_and_counts_the_draws_before_it():
    wanted, level = 40, 4e-46
    draws = sample(wanted, level=level)
    assert len(draws.accepted["snr"]) == len(draws.strain) == wanted
    assert (draws.accepted["snr"] >= 4).all() and (draws.rejected["snr"] < 4).all() and len(draws.rejected["snr"])
    assert draws.num_injections == wanted + len(draws.rejected["snr"])
    # the same draws, made plainly
    rng = np.random.default_rng(1)
    prior = get_prior("demo_mixture")
    values = [detector_frame(prior.sample(n, rng), prior.frame) for n in draws.batches]
    values = {k: np.concatenate([v[k] for v in values]) for k in values[0]}
    waves, good = GENERATOR(values)
    strain = project(waves, values, ("H1", "L1"), 1024)
    s = selection(level)
    snr = network_snr(ifo_snrs(strain, s.psds, s.ifos, 1024, 32))
    stop = np.flatnonzero(good & (snr >= 4))[wanted - 1] + 1
    assert draws.num_injections == stop < len(snr)
    above = snr[:stop] >= 4
    assert draws.accepted["mass_1"] == pytest.approx(values["mass_1"][:stop][above])
    assert draws.rejected["mass_1"] == pytest.approx(values["mass_1"][:stop][~above])
    assert draws.accepted["snr"] == pytest.approx(snr[:stop][above], rel=1e-3)


def test_is_a_function_of_the_seed():
    a, b, c = sample(10), sample(10), sample(10, seed=2)
    assert np.array_equal(a.strain, b.strain) and a.num_injections == b.num_injections
    assert not np.array_equal(a.strain, c.strain)


def test_the_cap_holds_when_more_signals_than_that_are_wanted():
    draws = sample(30, cap=7)
    assert max(draws.batches) <= 7 and len(draws.strain) == 30


def test_nothing_wanted_nothing_drawn():
    draws = sample(0)
    assert draws.strain.shape == (0, 2, 4096) and draws.num_injections == 0 and draws.rejected["ifo_snrs"].shape == (0, 2)


def test_a_hopeless_threshold_is_an_error_that_names_psd_and_threshold(monkeypatch):
    monkeypatch.setattr(rejection, "HOPELESS", 60)
    with pytest.raises(ValueError, match=r"network SNR 4 .*a flat PSD .*ASD at 100 Hz: H1 0\.001.*snr_threshold"):
        sample(5, cap=30, level=1e-6)


class Faulty:
    """A population of which a share cannot be generated."""

    name, frame = "faulty", "source"

    def __init__(self, share):
        self.share, self.prior = share, get_prior("demo_mixture")

    def sample(self, n, rng):
        out = self.prior.sample(n, rng)
        out["mass_1"][rng.random(n) < self.share] = np.nan
        return out


def test_draws_that_fail_are_neither_accepted_nor_rejected(monkeypatch):
    monkeypatch.setattr(rejection, "MAX_FAILED", 0.15)
    rng = np.random.default_rng(3)
    draws = rejection_sample(60, Faulty(0.05), GENERATOR, selection(1e-46), rng, 50)
    assert draws.num_failed > 0 and len(draws.strain) == 60
    both = np.concatenate([draws.accepted["mass_1"], draws.rejected["mass_1"]])
    assert np.isfinite(both).all() and len(both) == draws.num_injections
    with pytest.raises(ValueError, match="cannot be generated"):
        rejection_sample(400, Faulty(0.3), GENERATOR, selection(1e-46), rng)
