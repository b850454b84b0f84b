"""Optimal SNR against PyCBC's sigma and bilby's optimal_snr_squared, with the PSDs of real detector noise."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from aframe_assets.strain.files import describe, resampled_stretch
from aframe_assets.strain.psd import reference_spectrum
from aframe_assets.waveforms.snr import ifo_snrs, network_snr

FS, DURATION = 2048, 8
BANDS = [(32.0, 900.0), (20.0, 1000.0), (43.0, 300.0)]
MASSES = [(36.0, 29.0), (8.0, 6.0), (70.0, 15.0)]


@pytest.fixture(scope="module")
def psds(shared_data):
    """500 s of O3 noise (8 s frames, bins of the signals') and the 16 s of L1 before GW151226 (4 s frames, bins wider than theirs)."""
    with h5py.File(shared_data / "noise" / "real_noise.hdf") as f:
        noise = f["data"][:]
    info = describe(shared_data / "strain" / "L-L1_LOSC_4_V2-1135136334-32.hdf5")[0]
    other = resampled_stretch([info], "L1", info.gps_start, info.gps_stop, FS).strain
    spectra = {"H1": reference_spectrum(noise, FS), "L1": reference_spectrum(other[: 16 * FS], FS)}
    assert (spectra["H1"].df, spectra["L1"].df) == (1 / 8, 1 / 4)
    return {i: (s.frequencies, s.psd) for i, s in spectra.items()}


@pytest.fixture(scope="module")
def strain():
    """(signal, ifo, time): PyCBC's time-domain IMRPhenomD, 100 Mpc, the L1 signal a tenth quieter."""
    from pycbc.waveform import get_td_waveform

    out = np.zeros((len(MASSES), 2, FS * DURATION))
    for row, (m1, m2) in zip(out, MASSES, strict=True):
        plus, _ = get_td_waveform(approximant="IMRPhenomD", mass1=m1, mass2=m2, delta_t=1 / FS, f_lower=20, distance=100)
        tail = plus.numpy()[-6 * FS :]
        row[:, 6 * FS - len(tail) : 6 * FS] = tail * np.array([[1.0], [0.9]])
    return out


@pytest.mark.parametrize(("low", "high"), BANDS)
def test_snr_is_pycbcs_sigma(strain, psds, low, high):
    """1e-6: the same sum in double precision. Both leave the upper edge out and interpolate the PSD linearly."""
    from pycbc.filter import sigma
    from pycbc.types import FrequencySeries, TimeSeries

    ours = ifo_snrs(strain, psds, ["H1", "L1"], FS, low, high)
    for i, ifo in enumerate(["H1", "L1"]):
        f = np.arange(FS * DURATION // 2 + 1) / DURATION
        psd = FrequencySeries(np.interp(f, *psds[ifo]), delta_f=1 / DURATION)
        for n in range(len(strain)):
            series = TimeSeries(strain[n, i], delta_t=1 / FS).to_frequencyseries()
            theirs = sigma(series, psd=psd, low_frequency_cutoff=low, high_frequency_cutoff=high)
            assert ours[n, i] == pytest.approx(theirs, rel=1e-6)
    assert network_snr(ours) == pytest.approx(np.hypot(*ours.T))


@pytest.mark.parametrize(("low", "high"), BANDS)
def test_snr_is_bilbys(strain, psds, low, high):
    """1e-6 when bilby's band ends where ours does: it keeps the bin at its upper edge, so the edge given is half a bin lower."""
    import bilby

    bilby.core.utils.log.setup_logger(log_level="ERROR")
    ours = ifo_snrs(strain, psds, ["H1", "L1"], FS, low, high)
    for i, ifo in enumerate(["H1", "L1"]):
        detector = bilby.gw.detector.get_empty_interferometer(ifo)
        detector.power_spectral_density = bilby.gw.detector.PowerSpectralDensity(frequency_array=psds[ifo][0], psd_array=psds[ifo][1])
        detector.minimum_frequency, detector.maximum_frequency = low, high - 0.5 / DURATION
        detector.set_strain_data_from_zero_noise(FS, DURATION, start_time=0)
        for n in range(len(strain)):
            series, _ = bilby.core.utils.nfft(strain[n, i], FS)
            theirs = np.sqrt(detector.optimal_snr_squared(series))
            assert ours[n, i] == pytest.approx(float(np.real(theirs)), rel=1e-6)
