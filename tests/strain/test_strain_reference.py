"""PSD, whitening and range of real strain against gwpy and PyCBC, each of which reads the files itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aframe_assets.config import Conditioning
from aframe_assets.config_load import build_config
from aframe_assets.strain.checks import WHITENED_STD, whitened_std
from aframe_assets.strain.conditioning import Whitener, spectral_density
from aframe_assets.strain.files import describe, resampled_stretch
from aframe_assets.strain.psd import Spectrum, inspiral_range

# The recipe of GW150914.
START, STOP, MERGER = 1126259446, 1126259478, 1126259462.42
RATE = 2048  # resampled from 4096 Hz, each package by its own filter
PSD_STRETCH = 12  # first seconds of the file; the signal, at 16.4 s, is not in them
FFTLENGTH = 2.0  # overlap of half, periodic Hann window, median average
FDURATION = 1.0  # Hann-tapered impulse response
BAND = (43.0, 300.0)  # sharp edges, before the response is tapered
GRID = 32.0  # the filter is designed on bins of 1 / 32 Hz, to which the PSD is interpolated linearly
# divisor: sqrt(fs / 2), so that noise of the PSD's level has variance 1 per full band


def file(shared_data, ifo, start=START, version="LOSC_4_V2"):
    return shared_data / "strain" / f"{ifo[0]}-{ifo}_{version}-{start}-32.hdf5"


def read(path):
    info = describe(path)[0]
    return resampled_stretch([info], info.ifo, info.gps_start, info.gps_stop, RATE).strain


def whitened_here(path) -> tuple[np.ndarray, np.ndarray]:
    """PSD and whitened strain, FDURATION / 2 lost at each end."""
    settings = Conditioning(
        psd_length=PSD_STRETCH,
        fftlength=FFTLENGTH,
        fduration=FDURATION,
        kernel_length=GRID - FDURATION,
        highpass=BAND[0],
        lowpass=BAND[1],
    )
    whitener = Whitener(settings, RATE)
    strain = torch.as_tensor(read(path))[None]
    psd = whitener.psd(strain[:, : PSD_STRETCH * RATE])
    return psd[0].numpy(), whitener.whiten(strain, psd)[0].double().numpy()


def whitened_by_gwpy(path, resampled: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The same, with nothing of ours (or of strain that we resampled)."""
    from gwpy.frequencyseries import FrequencySeries
    from gwpy.timeseries import TimeSeries

    if resampled is None:
        series = TimeSeries.read(path, format="hdf5.gwosc").resample(RATE)
    else:
        series = TimeSeries(resampled, sample_rate=RATE, t0=START)
    psd = series.crop(START, START + PSD_STRETCH).psd(FFTLENGTH, FFTLENGTH / 2, method="median", window="hann")
    f = np.arange(int(GRID * RATE) // 2 + 1) / GRID
    asd = np.sqrt(np.interp(f, psd.frequencies.value, psd.value))
    asd[(f < BAND[0]) | (f >= BAND[1])] *= 1e10  # gwpy takes no upper edge: the filter is zero where the ASD is huge
    white = series.whiten(asd=FrequencySeries(asd, f0=0, df=1 / GRID), fduration=FDURATION, window="hann", detrend="constant")
    crop = int(FDURATION * RATE) // 2
    return psd.value, white.value[crop:-crop]


@pytest.mark.parametrize("ifo", ["H1", "L1"])
def test_whitened_gw150914_is_that_of_gwpy(shared_data, ifo):
    """Agreement: rms of the difference over rms of gwpy's, a second or more from the edges, where gwpy windows its input.

    Measured 0.05 %; asked for 0.5 %. All of it is the two packages' resampling filters: of the same resampled strain both make the
    same to 3e-8, float32's own rounding (asked for 1e-6).
    """
    (_, ours), (_, theirs) = whitened_here(file(shared_data, ifo)), whitened_by_gwpy(file(shared_data, ifo))
    assert len(ours) == len(theirs) == int((STOP - START - FDURATION) * RATE)
    inner = slice(RATE, -RATE)
    assert (ours - theirs)[inner].std() < 0.005 * theirs[inner].std()
    (_, same) = whitened_by_gwpy(file(shared_data, ifo), read(file(shared_data, ifo)))
    assert (ours - same)[inner].std() < 1e-6 * same[inner].std()
    # 257 of 1024 Hz of noise of variance 1 per full band, and a signal of SNR 13 to 20 in 28 s
    assert theirs[inner].std() == pytest.approx(np.sqrt((BAND[1] - BAND[0]) / (RATE / 2)), rel=0.2)
    for white in (ours, theirs):
        peak = START + FDURATION / 2 + np.argmax(np.abs(white[inner])) / RATE + 1
        assert peak == pytest.approx(MERGER, abs=0.01)
    assert np.abs(ours[inner]).max() == pytest.approx(np.abs(theirs[inner]).max(), rel=0.005)


def test_the_coarse_grid_of_searches_costs_little(shared_data):
    """As searches run: the filter's own grid of kernel_length + fduration, 2.5 s, against one of 32 s (DESIGN, decision 6).

    The coarse grid moves the edges of a line's notch by up to 0.2 Hz. Measured 4 % (H1) and 5 % (L1) rms, most of it at 60 and
    500 Hz; asked for less than 8 %. Training and search share the grid, so that a network never sees the difference.
    """
    for ifo in ("H1", "L1"):
        strain = torch.as_tensor(read(file(shared_data, ifo)))[None]
        white = {}
        for kernel in (1.5, 31.0):
            whitener = Whitener(Conditioning(psd_length=12, fftlength=2, kernel_length=kernel, highpass=32, lowpass=900), RATE)
            white[kernel] = whitener.whiten(strain, whitener.psd(strain[:, : 12 * RATE]))[0, RATE:-RATE]
        assert float((white[1.5] - white[31.0]).std() / white[31.0].std()) < 0.08


@pytest.mark.parametrize("ifo", ["H1", "L1"])
def test_psd_of_real_strain_is_that_of_gwpy_and_pycbc(shared_data, ifo):
    """All bins of 20 to 900 Hz, to 1e-7: the same formula in double precision (measured 2e-9), in both forms of reference 2.6,
    with the mean of each frame taken away or once that of the whole stretch.
    """
    from gwpy.timeseries import TimeSeries
    from pycbc.psd import welch
    from pycbc.types import TimeSeries as PyCBCSeries

    x = read(file(shared_data, ifo))[: PSD_STRETCH * RATE]
    exact = spectral_density(torch.as_tensor(x), RATE, FFTLENGTH).numpy()
    fast = spectral_density(torch.as_tensor(x), RATE, FFTLENGTH, fast=True).numpy()
    theirs = TimeSeries(x, sample_rate=RATE).psd(FFTLENGTH, FFTLENGTH / 2, method="median", window="hann").value
    size = int(FFTLENGTH * RATE)
    periodic = np.hanning(size + 1)[:-1]  # by name PyCBC takes the symmetric window, which differs by 2 % beside lines
    pycbcs = welch(PyCBCSeries(x, delta_t=1 / RATE), seg_len=size, seg_stride=size // 2, avg_method="median", window=periodic).numpy()
    band = slice(int(20 * FFTLENGTH), int(900 * FFTLENGTH))
    np.testing.assert_allclose(exact[band], theirs[band], rtol=1e-7)
    np.testing.assert_allclose(fast[band], theirs[band], rtol=1e-7)
    np.testing.assert_allclose(exact[band], pycbcs[band], rtol=1e-7)


@pytest.mark.parametrize("suffix", ["hdf", "gwf"])
def test_range_of_the_hardware_injection_frame(shared_data, suffix):
    """gwpy's own figure for L1 of this second, 19.33296 Mpc for 1.4 + 1.4 solar masses, by gwpy and by us.

    gwpy's horizon is divided by 4 / 1.77 (LIGO-T030276), ours by 2.2648 (Finn & Chernoff 1993, to more digits): 0.22 %. In gwpy's
    convention the two agree to 1e-5: 1e-6 in the constants and as much between the trapezoidal rule and a sum.
    Neither has a cosmology: gwpy's `inspiral_range`, 18.51990 Mpc for the same data, has one.
    """
    from gwpy.astro import sensemon_range
    from gwpy.timeseries import TimeSeries

    if suffix == "gwf":
        pytest.importorskip("lalframe")
    series = TimeSeries.read(shared_data / "frames" / f"HLV-HW100916-968654552-1.{suffix}", "L1:LDAS-STRAIN")
    psd = series.psd(0.4, overlap=0.2, method="median", window=("kaiser", 24))
    assert sensemon_range(psd).value == pytest.approx(19.33296, abs=1e-5)
    ours = inspiral_range(Spectrum(psd.frequencies.value, psd.value), mass=1.4, minimum_frequency=psd.df.value)
    assert ours == pytest.approx(19.29103, abs=1e-5)
    assert ours * 1.77 / (4 / 2.2648) == pytest.approx(19.33296, rel=1e-5)


@pytest.mark.parametrize("preset", ["demo", "o3"])
def test_whitened_real_noise_has_unit_variance_in_every_preset(shared_data, preset):
    """DESIGN decision 6 with the settings that searches use, lowpass 900 Hz: white noise would have 0.92.

    The files of strain are 32 s long, so the 64 s PSD of `o3` is tried on data/noise alone.
    """
    import h5py

    config = build_config({"preset": preset})
    found = {}
    with h5py.File(shared_data / "noise" / "real_noise.hdf") as f:
        found["real_noise.hdf"] = whitened_std(f["data"][:], RATE, config.conditioning)
    if config.conditioning.psd_length <= 16:
        found |= {p.name: whitened_std(read(p), RATE, config.conditioning) for p in sorted((shared_data / "strain").glob("*.hdf5"))}
    low, high = WHITENED_STD
    assert len(found) == (12 if preset == "demo" else 1)
    assert all(low < s < high for s in found.values()), found


def test_longer_frames_resolve_lines_that_the_filter_cannot_remove(shared_data):
    """Why fftlength stays at 2 s for fduration 1 s: Aframe's default, 2.5 s, on L1 at GW150914 (docs/science.md: 1.15 and 5.0)."""
    strain = read(file(shared_data, "L1"))
    base = Conditioning(psd_length=8, highpass=32)
    std = {seconds: whitened_std(strain, RATE, base.model_copy(update={"fftlength": seconds})) for seconds in (2, 2.5)}
    assert std[2] == pytest.approx(1.15, abs=0.01) and std[2.5] == pytest.approx(4.96, abs=0.05)
