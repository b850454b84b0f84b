"""What V leaves out: signals beyond the farthest injections, and signals below the SNR cut."""

import numpy as np
import pytest

from aframe_assets.sensitivity.curves import Rate, volume_curves
from aframe_assets.sensitivity.far import Background
from aframe_assets.sensitivity.horizon import Shell
from aframe_assets.sensitivity.population import Population, comoving_volume
from aframe_assets.sensitivity.snr_cut import quiet_signals
from aframe_assets.sensitivity.volume import Draws
from aframe_assets.waveforms.frames import SourceFrame
from aframe_assets.waveforms.priors import get_prior

PRIOR = get_prior("demo_mixture")
RATE = Rate(3.0, "1/h", 3 / 3600)


def campaign(horizon: float, n: int = 40_000) -> Draws:
    """Every draw nearer than `horizon` is found, no other; all are accepted."""
    values = PRIOR.sample(n, 5)
    found = np.where(values["redshift"] < horizon, 50.0, -np.inf)
    return Draws(found, SourceFrame(values), np.ones(n, bool), snr=np.full(n, 4.5))


def curves(draws: Draws, **options):
    background = Background.of(np.random.default_rng(1).exponential(size=5000), 3600 * 100)
    return volume_curves(draws, Population.of(PRIOR), background, [(35, 35), (20, 10)], [RATE], **options)


def test_the_shell_holds_a_tenth_of_the_volume():
    population = Population.of(PRIOR)
    low, high = population.redshift_range
    shell = Shell.of(campaign(0.5), population)
    outer = comoving_volume(shell.redshift, high, time_dilated=True)
    assert outer == pytest.approx(0.1 * comoving_volume(low, high, time_dilated=True), rel=1e-4)


def test_a_search_that_sees_farther_than_the_injections_is_told():
    """A horizon at 2 against draws to 0.7: V is V0, whatever the truth; a horizon inside the draws is no cause for doubt."""
    cut = curves(campaign(2.0))
    assert all(r["cut_off"] and r["edge_efficiency"] == 1 for r in cut.rows)
    assert any("within z = 0.7" in w for w in cut.warnings)
    free = curves(campaign(0.5))
    assert not any(r["cut_off"] for r in free.rows) and not any("reaches farther" in w for w in free.warnings)
    assert all(r["edge_efficiency"] == 0 for r in free.rows)


@pytest.mark.parametrize("cut", [4.0, 6.0, 8.0])
def test_finds_just_above_any_cut_are_told(cut):
    """Nothing but the place of the cut differs, so each must be told of (chance finds: 0.1 %)."""
    n = 1000
    values = PRIOR.sample(n, 5)
    rng = np.random.default_rng(2)
    draws = Draws(np.full(n, 50.0), SourceFrame(values), np.ones(n, bool), snr=cut + 3 * rng.random(n))
    got = quiet_signals(draws, 1.0, 0.001, cut)
    assert got.lost and got.num == int((draws.snr < cut + 1).sum())
    assert f"SNR {cut:g} to {cut + 1:g}" in got.text


def test_a_cut_with_nothing_just_above_it_cannot_be_judged():
    values = PRIOR.sample(100, 5)
    draws = Draws(np.full(100, 50.0), SourceFrame(values), np.ones(100, bool), snr=np.full(100, 30.0))
    got = quiet_signals(draws, 1.0, 0.001, 4.0)
    assert not got.lost and got.num == 0 and "cannot be told" in got.text
