"""Projection and SNR against bilby, lal and pycbc."""

import numpy as np
import pytest

from aframe_assets.waveforms.projection import antenna_patterns, geometry, project
from aframe_assets.waveforms.snr import ifo_snrs, network_snr

IFOS = ("H1", "L1", "V1", "K1")
RATE = 2048


def sky(n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "ra": rng.uniform(0, 2 * np.pi, n),
        "dec": np.arcsin(rng.uniform(-1, 1, n)),
        "psi": rng.uniform(0, np.pi, n),
        "mass_1": np.full(n, 30.0),
        "mass_2": np.full(n, 20.0),
        "redshift": np.full(n, 0.1),
    }


def lal_detector(ifo):
    import lal

    return lal.cached_detector_by_prefix[ifo]


def test_antenna_patterns_are_lals():
    from lal import ComputeDetAMResponse

    values = sky(30)
    plus, cross = antenna_patterns(values, IFOS)
    for j, ifo in enumerate(IFOS):
        response = lal_detector(ifo).response
        for i in range(30):
            # with Greenwich sidereal time 0 the right ascension is the Earth-fixed longitude
            theirs = ComputeDetAMResponse(response, float(values["ra"][i]), float(values["dec"][i]), float(values["psi"][i]), 0.0)
            assert (plus[i, j], cross[i, j]) == pytest.approx(theirs, abs=2e-6)


def test_antenna_patterns_are_bilbys_at_the_sidereal_hour():
    from bilby.gw.detector import get_empty_interferometer
    from bilby.gw.utils import greenwich_mean_sidereal_time

    values, time = sky(5, 2), 1187008882.4
    hour = float(greenwich_mean_sidereal_time(time))
    turned = values | {"ra": values["ra"] - hour}
    plus, cross = antenna_patterns(turned, ("H1", "V1"))
    for j, ifo in enumerate(("H1", "V1")):
        detector = get_empty_interferometer(ifo)
        for i in range(5):
            at = (values["ra"][i], values["dec"][i], time, values["psi"][i])
            assert plus[i, j] == pytest.approx(detector.antenna_response(*at, "plus"), abs=1e-4)
            assert cross[i, j] == pytest.approx(detector.antenna_response(*at, "cross"), abs=1e-4)


def test_delays_are_lals_within_a_sample():
    import lal
    from lal import LIGOTimeGPS, TimeDelayFromEarthCenter

    values = sky(20, 3)
    size, peak = 4096, 2000
    pulse = np.zeros((20, size))
    pulse[:, peak] = 1
    strain = project({"plus": pulse, "cross": pulse}, values, IFOS, RATE)
    time = LIGOTimeGPS(1187008882)
    hour = lal.GreenwichMeanSiderealTime(time)
    for j, ifo in enumerate(IFOS):
        for i in range(20):
            delay = TimeDelayFromEarthCenter(lal_detector(ifo).location, float(values["ra"][i] + hour), float(values["dec"][i]), time)
            found = int(np.abs(strain[i, j]).argmax()) - peak
            # a whole number of samples, truncated toward zero
            assert found == int(delay * RATE) or abs(found - delay * RATE) < 1.01


def test_projection_is_the_sum_of_responses():
    values = sky(70, 4)
    rng = np.random.default_rng(0)
    waves = {k: rng.normal(size=(70, 512)) * 1e-22 for k in ("cross", "plus")}
    strain = project(waves, values, ("H1", "L1"), RATE)
    plus, cross = antenna_patterns(values, ("H1", "L1"))
    for i in (0, 63, 64, 69):
        for j in range(2):
            unshifted = plus[i, j] * waves["plus"][i] + cross[i, j] * waves["cross"][i]
            shift = int(np.argmax(np.fft.irfft(np.fft.rfft(strain[i, j]) * np.fft.rfft(unshifted).conj())))
            assert strain[i, j] == pytest.approx(np.roll(unshifted, shift), abs=1e-28)


def test_unknown_detector():
    with pytest.raises(ValueError, match=r"X1.*H1"):
        geometry(("H1", "X1"))


def curve(frequencies):
    from bilby.gw.detector import PowerSpectralDensity

    c = PowerSpectralDensity(asd_file="aLIGO_O4_high_asd.txt")
    return np.interp(frequencies, c.frequency_array, c.psd_array)


def test_snr_is_pycbcs_sigma():
    from pycbc.filter import sigma
    from pycbc.types import FrequencySeries, TimeSeries
    from pycbc.waveform import get_td_waveform

    hp, _ = get_td_waveform(approximant="IMRPhenomD", mass1=30, mass2=25, delta_t=1 / RATE, f_lower=20, distance=500)
    merger = -round(float(hp.start_time) * RATE)
    strain = np.zeros(8 * RATE)
    strain[: 6 * RATE + 1000] = hp.numpy()[merger - 6 * RATE : merger + 1000]
    f = np.arange(0, 1024.01, 1 / 8)
    psd = curve(f)
    theirs = sigma(TimeSeries(strain, delta_t=1 / RATE), FrequencySeries(psd, delta_f=1 / 8), 32.0, 900.0)
    mine = ifo_snrs(strain[None, None], {"H1": (f, psd)}, ("H1",), RATE, 32, 900)
    assert mine[0, 0] == pytest.approx(theirs, rel=2e-3)
    # a coarser PSD is interpolated linearly
    coarse = f[::4]
    assert ifo_snrs(strain[None, None], {"H1": (coarse, psd[::4])}, ("H1",), RATE, 32, 900)[0, 0] == pytest.approx(theirs, rel=5e-3)


def test_snr_of_a_sine_in_white_noise():
    # rho^2 = 4 int |h|^2 / S df = 2 A^2 T / (2 S): amplitude A for T seconds, one-sided PSD S
    amplitude, psd, seconds = 3e-22, 1e-46, 4
    t = np.arange(seconds * RATE) / RATE
    strain = amplitude * np.sin(2 * np.pi * 100 * t)[None, None] * np.ones((1, 2, 1))
    flat = (np.array([0.0, 1024.0]), np.array([psd, psd]))
    snr = ifo_snrs(strain, {"H1": flat, "L1": flat}, ("H1", "L1"), RATE, 32)
    assert snr[0] == pytest.approx([amplitude * np.sqrt(seconds / psd)] * 2)
    assert network_snr(snr)[0] == pytest.approx(np.sqrt(2) * snr[0, 0])
    assert ifo_snrs(strain, {"H1": flat, "L1": flat}, ("H1", "L1"), RATE, 120)[0, 0] < 1e-6 * snr[0, 0]


@pytest.mark.parametrize(
    ("psds", "text"),
    [
        ({}, "no PSD of H1"),
        ({"H1": (np.arange(100.0), np.ones(100))}, "covers 0 to 99 Hz"),
        ({"H1": (np.arange(1025.0), np.r_[np.ones(50), 0, np.ones(974)])}, "not positive and finite at 50"),
    ],
)
def test_psds_that_cannot_be_used(psds, text):
    with pytest.raises(ValueError, match=text):
        ifo_snrs(np.zeros((1, 1, 2048)), psds, ("H1",), RATE, 32)
