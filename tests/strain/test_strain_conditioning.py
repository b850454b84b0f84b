"""PSD and whitening against scipy, ml4gw and real detector noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ml4gw.transforms import Whiten
from scipy import signal

from aframe_assets.config import Conditioning
from aframe_assets.strain.checks import WHITENED_STD, whitened_std
from aframe_assets.strain.conditioning import Whitener, interpolate_psd, spectral_density
from aframe_assets.strain.simulated import SimulatedNoise, read_curve

FS = 2048
SETTINGS = Conditioning(psd_length=8, fftlength=2, fduration=1, kernel_length=1.5, highpass=32)


@pytest.fixture(scope="module")
def coloured() -> np.ndarray:
    """128 s of Gaussian noise with the spectrum of a detector, without lines or glitches."""
    noise = SimulatedNoise("H1", *read_curve("aLIGO_O4_high_asd.txt"), sample_rate=FS, seed=3)
    return noise.strain(1_240_600_000, 1_240_600_128)


def scipy_whiten(
    x: np.ndarray, psd: np.ndarray, kernel: float, fduration: float, highpass: float | None, lowpass: float | None
) -> np.ndarray:
    """The formulas of reference 2.6 in numpy and scipy, applied as a convolution."""
    size, taps = int((kernel + fduration) * FS), int(fduration * FS)
    f = np.arange(size // 2 + 1) * FS / size
    gain = np.interp(f, np.linspace(0, FS / 2, len(psd)), psd) ** -0.5
    if highpass:
        gain[f < highpass] = 0
    if lowpass:
        gain[f >= lowpass] = 0
    if len(gain) % 2:
        gain[-1] = 0
    response = np.roll(np.fft.irfft(gain, size), taps // 2)[:taps] * signal.windows.hann(taps, sym=False)
    out = signal.fftconvolve(x - x.mean(), response * np.sqrt(2 / FS), mode="full")
    return out[taps : len(x)]


@pytest.mark.parametrize("average", ["median", "mean"])
@pytest.mark.parametrize("seconds", [2, 8, 9.5])
def test_psd_is_that_of_scipy(coloured, average, seconds):
    x = coloured[: int(seconds * FS)]
    ours = spectral_density(torch.tensor(x), FS, 2, average=average).numpy()
    f, theirs = signal.welch(x, FS, window="hann", nperseg=2 * FS, noverlap=FS, detrend="constant", average=average)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert len(f) == 2 * FS // 2 + 1
    fast = spectral_density(torch.tensor(x), FS, 2, average=average, fast=True).numpy()
    np.testing.assert_allclose(fast[4:], theirs[4:], rtol=1e-3)


def test_psd_takes_any_leading_axes_and_much_data(coloured):
    x = torch.tensor(coloured[: 8 * FS])
    one = spectral_density(x, FS, 2)
    batch = spectral_density(x.expand(3, 20, 2, -1), FS, 2)
    assert batch.shape == (3, 20, 2, 2 * FS // 2 + 1) and batch.dtype == torch.float64
    torch.testing.assert_close(batch[2, 19, 1], one)


def test_psd_of_too_little_data_is_refused(coloured):
    with pytest.raises(ValueError, match=r"fftlength 2 s, got 1.5 s"):
        spectral_density(torch.tensor(coloured[: 3 * FS // 2]), FS, 2)
    with pytest.raises(ValueError, match=r"psd_length 8 s asked of 7 s"):
        Whitener(SETTINGS, FS).psd(torch.tensor(coloured[: 7 * FS]))


def test_interpolation_keeps_every_frequency_in_place():
    for bins in (257, 2049, 5000):
        line = torch.linspace(0, 1024, 1025, dtype=torch.float64)
        torch.testing.assert_close(interpolate_psd(line, bins), torch.linspace(0, 1024, bins, dtype=torch.float64))


@pytest.mark.parametrize(("highpass", "lowpass"), [(32, None), (32, 400), (None, None)])
def test_whitening_is_the_formula(coloured, highpass, lowpass):
    whitener = Whitener(SETTINGS.model_copy(update={"highpass": highpass, "lowpass": lowpass}), FS)
    x = torch.tensor(coloured).reshape(1, 1, -1)
    psd = whitener.psd(x[..., : 8 * FS])
    for first, last in ((8, 10.5), (8, 12.123046875), (8, 41)):
        part = x[..., int(first * FS) : int(last * FS)]
        ours = whitener.whiten(part, psd)[0, 0].numpy()
        theirs = scipy_whiten(part[0, 0].numpy(), psd[0, 0].numpy(), 1.5, 1, highpass, lowpass)
        assert ours.dtype == np.float32 and len(ours) == part.shape[-1] - FS
        np.testing.assert_allclose(ours, theirs, atol=3e-6 * theirs.std() + 1e-6, rtol=1e-5)


def test_kernel_agrees_with_ml4gw(coloured):
    """ml4gw's Whiten takes the modulus of the response; in the pass band that is the same filter."""
    whitener = Whitener(SETTINGS, FS)
    x = torch.tensor(coloured[: 8 * FS + whitener.design_size]).reshape(1, 1, -1)
    psd, kernel = whitener.psd(x[..., : 8 * FS]), x[..., 8 * FS :]
    theirs = Whiten(1, FS, 32)(kernel, interpolate_psd(psd, whitener.design_size // 2 + 1))
    ours = whitener.whiten(kernel, psd)
    assert float((ours - theirs).std() / theirs.std()) < 0.01


def test_long_block_and_short_kernel_agree(coloured):
    whitener = Whitener(SETTINGS, FS)
    x = torch.tensor(coloured[: 45 * FS]).reshape(1, -1)
    psd = whitener.psd(x[..., : 8 * FS])
    block = whitener.whiten(x[..., 8 * FS : 41 * FS], psd)
    for start in (8, 8.25, 20, 38.5):
        kernel = whitener.whiten(x[..., int(start * FS) : int((start + 2.5) * FS)], psd)
        first = int((start - 8) * FS)
        assert float((block[..., first : first + kernel.shape[-1]] - kernel).abs().max()) < 1e-3


def test_whitening_is_linear(coloured):
    whitener = Whitener(SETTINGS, FS)
    x = torch.tensor(coloured[: 32 * FS]).reshape(2, -1)
    psd = whitener.psd(x[:, : 8 * FS])
    a, b = x[:, 8 * FS : 12 * FS], x[:, 12 * FS :]
    torch.testing.assert_close(whitener.whiten(a + 5 * b, psd), whitener.whiten(a, psd) + 5 * whitener.whiten(b, psd), atol=1e-4, rtol=1e-4)


def test_coloured_gaussian_noise_gets_unit_variance(coloured):
    """Band [32, 1024) Hz of white noise of variance 1; the true spectrum, so no scatter of an estimate."""
    whitener = Whitener(SETTINGS, FS)
    x = torch.tensor(coloured).reshape(1, -1)
    smooth = spectral_density(x, FS, 2)
    white = whitener.whiten(x, smooth)[0].numpy()
    assert abs(white.std() - np.sqrt(1 - 32 / 1024)) < 0.02
    assert abs(white.mean()) < 0.01
    f, p = signal.welch(white.astype(float), FS, nperseg=FS)
    quiet = (f > 70) & (f < 1000)
    assert abs(p[quiet].mean() * FS / 2 - 1) < 0.03
    assert np.all(p[f < 28] * FS / 2 < 0.01)


def test_forward_is_psd_then_whiten(coloured):
    whitener = Whitener(SETTINGS, FS)
    x = torch.tensor(coloured[: 21 * FS]).reshape(2, -1)[None]
    out = whitener(x)
    assert out.shape == (1, 2, int(1.5 * FS)) and out.dtype == torch.float32
    torch.testing.assert_close(out, whitener.whiten(x[..., 8 * FS :], whitener.psd(x[..., : 8 * FS])))
    assert not list(whitener.state_dict())


def test_dead_bins_do_not_spread():
    whitener = Whitener(SETTINGS, FS)
    psd = torch.ones(1, 2049, dtype=torch.float64)
    psd[:, 100] = 0
    assert torch.isfinite(whitener.whiten(torch.randn(1, 3 * FS, dtype=torch.float64), psd)).all()


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="even number of samples"):
        Whitener(SETTINGS.model_copy(update={"fduration": 0.30001}), FS)
    with pytest.raises(ValueError, match="fduration 1 s, got 1 s"):
        Whitener(SETTINGS, FS).whiten(torch.zeros(1, FS), torch.ones(1, 2049))


def test_whitened_real_noise_has_unit_variance(shared_data):
    """DESIGN decision 6, on every file of real strain and noise."""
    import h5py

    from aframe_assets.strain.files import describe, resampled_stretch

    low, high = WHITENED_STD
    found = {}
    for path in sorted((shared_data / "strain").glob("*.hdf5")):
        info = describe(path)[0]
        stretch = resampled_stretch([info], info.ifo, info.gps_start, info.gps_stop, FS)
        found[path.name] = whitened_std(stretch.strain, FS, SETTINGS)
    with h5py.File(shared_data / "noise" / "real_noise.hdf") as f:
        found["real_noise.hdf"] = whitened_std(f["data"][:], FS, SETTINGS)
    assert len(found) == 12
    assert all(low < s < high for s in found.values()), found
