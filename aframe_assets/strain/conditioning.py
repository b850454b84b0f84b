"""The one definition of PSD and whitening: training, export and inference all use this module.

The formulas are those of reference 2.6, with two choices of our own, both so that a long block and a short
kernel see the same filter (DESIGN, decision 6):

* the filter is designed on one frequency grid, that of kernel_length + fduration seconds, whatever the length of
  the data; the PSD is interpolated to it with every frequency kept in place (ml4gw's own interpolation moves a bin
  by up to half its width, by an amount that depends on the length of the data);
* the tapered impulse response is applied as it is, a symmetric FIR filter of `fduration` seconds. Taking the modulus
  of its transform first, as ml4gw does, changes signs in the stop band and makes the response longer than `fduration`.

For a kernel the result is that of ml4gw's ``Whiten`` up to these choices; a test holds this.
Everything is linear in the strain. Strain is float64 until whitened: 1e-22 squared is no float32.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import torch
from ml4gw.transforms import SpectralDensity
from torch import Tensor

if TYPE_CHECKING:
    from aframe_assets.config import Conditioning

_CACHE_VALUES = 2**18
"""Spectrogram values handed to ml4gw at a time on a CPU: what stays in its cache (measured: twice as fast as one large call)."""
_DEVICE_VALUES = 2**25
"""The same on an accelerator, where only memory limits it."""


@lru_cache(maxsize=8)
def _estimator(sample_rate: float, fftlength: float, average: str, fast: bool, device: str) -> SpectralDensity:
    window = torch.hann_window(int(fftlength * sample_rate), dtype=torch.float64)
    return SpectralDensity(sample_rate, fftlength, overlap=fftlength / 2, average=average, window=window, fast=fast).to(device)


def spectral_density(
    strain: Tensor, sample_rate: float, fftlength: float, *, average: Literal["median", "mean"] = "median", fast: bool = False
) -> Tensor:
    """One-sided power spectral density by Welch's method (reference 2.6).

    Periodic Hann window, overlap of half a frame, median over frames divided by its bias for exponential variables.

    Args:
        strain: [..., time], float64.
        sample_rate: Hz.
        fftlength: length of a frame, seconds; frequency resolution 1 / fftlength.
        average: 'median' or 'mean' over frames.
        fast: subtract the mean of the whole stretch once instead of that of each frame. Wrong in the two lowest
            bins only, so meant for data that are highpassed later.

    Returns:
        [..., fftlength * sample_rate / 2 + 1], float64, strain^2 / Hz, bins 0 ... Nyquist.

    Raises:
        ValueError: less data than one frame.
    """
    size = int(fftlength * sample_rate)
    if strain.shape[-1] < size:
        raise ValueError(
            f"PSD needs at least one frame of fftlength {fftlength:g} s, got "
            f"{strain.shape[-1] / sample_rate:g} s of strain; give more data or a shorter fftlength"
        )
    if average not in ("median", "mean"):
        raise ValueError(f"average = {average!r}: expected 'median' or 'mean'")
    rows = strain.double().reshape(-1, strain.shape[-1])
    estimator = _estimator(sample_rate, fftlength, average, fast, str(strain.device))
    frames = 1 + (strain.shape[-1] - size) // (size - size // 2)
    at_once = max(1, (_CACHE_VALUES if strain.device.type == "cpu" else _DEVICE_VALUES) // (frames * (size // 2 + 1)))
    psd = torch.cat([estimator(part) for part in rows.split(at_once)])
    return psd.reshape(*strain.shape[:-1], -1)


def interpolate_psd(psd: Tensor, num_bins: int) -> Tensor:
    """A PSD on `num_bins` bins from 0 to Nyquist, linear in frequency.

    Args:
        psd: [..., freq], bins from 0 to Nyquist.
        num_bins: bins wanted.

    Returns:
        [..., num_bins]; `psd` itself when it has that many bins.
    """
    if psd.shape[-1] == num_bins:
        return psd
    rows = psd.reshape(1, -1, psd.shape[-1])
    out = torch.nn.functional.interpolate(rows, size=(num_bins,), mode="linear", align_corners=True)
    return out.reshape(*psd.shape[:-1], num_bins)


class Whitener(torch.nn.Module):
    """PSD estimation and whitening with the settings of an experiment.

    Attributes:
        sample_rate: Hz.
        crop: samples lost at each end, fduration / 2.
        design_size: samples of the grid that the filter is designed on, kernel_length + fduration.

    Args:
        conditioning: `config.conditioning` (or the copy in a model bundle).
        sample_rate: Hz.

    Raises:
        ValueError: fduration or kernel is not a whole, even number of samples.
    """

    window: Tensor

    def __init__(self, conditioning: Conditioning, sample_rate: float) -> None:
        super().__init__()
        c = conditioning
        self.sample_rate = float(sample_rate)
        self.psd_length, self.fftlength = c.psd_length, c.fftlength
        self.fduration, self.highpass, self.lowpass = c.fduration, c.highpass, c.lowpass
        for name, seconds in (
            ("fduration", c.fduration),
            ("kernel_length + fduration", c.kernel_length + c.fduration),
            ("fftlength", c.fftlength),
        ):
            samples = seconds * sample_rate
            if abs(samples - round(samples)) > 1e-6 or round(samples) % 2:
                raise ValueError(
                    f"conditioning.{name} = {seconds:g} s: expected an even number of samples at {sample_rate:g} Hz, got {samples:g}"
                )
        self.crop = round(c.fduration * sample_rate) // 2
        self.design_size = round((c.kernel_length + c.fduration) * sample_rate)
        self.register_buffer("window", torch.hann_window(2 * self.crop, dtype=torch.float64), persistent=False)

    def psd(self, strain: Tensor) -> Tensor:
        """PSD of all of `strain`, with the experiment's fftlength.

        Args:
            strain: [..., time]; at least psd_length seconds, never fewer (DESIGN decision 6).

        Returns:
            [..., freq], float64, 1/Hz; fftlength * sample_rate / 2 + 1 bins.

        Raises:
            ValueError: `strain` is shorter than psd_length.
        """
        if strain.shape[-1] < round(self.psd_length * self.sample_rate):
            raise ValueError(
                f"PSD of psd_length {self.psd_length:g} s asked of {strain.shape[-1] / self.sample_rate:g} s of "
                "strain; give more data or lower conditioning.psd_length"
            )
        return spectral_density(strain, self.sample_rate, self.fftlength, fast=self.highpass is not None)

    def response(self, psd: Tensor) -> Tensor:
        """Impulse response of the whitening filter.

        Args:
            psd: [..., freq], bins from 0 to Nyquist at any resolution, 1/Hz. A bin of 0 is left out of the filter.

        Returns:
            [..., design_size], float64; time 0 at index 0, negative times at the end, zero beyond fduration / 2.
        """
        size = self.design_size
        inverse_asd = interpolate_psd(psd.double(), size // 2 + 1).rsqrt()
        inverse_asd = torch.where(torch.isinf(inverse_asd), 0.0, inverse_asd)
        df = self.sample_rate / size
        keep = torch.ones(size // 2 + 1, dtype=torch.bool, device=psd.device)
        if self.highpass is not None:
            keep[: int(self.highpass / df)] = False
        if self.lowpass is not None:
            keep[int(self.lowpass / df) :] = False
        if len(keep) % 2:
            keep[-1] = False
        response = torch.fft.irfft(inverse_asd * keep, n=size)
        taper = torch.zeros(size, dtype=torch.float64, device=psd.device)
        taper[: self.crop] = self.window[self.crop :]
        taper[-self.crop :] = self.window[: self.crop]
        # sqrt(2 / fs): white noise of one-sided PSD S has variance S fs / 2, so this makes the output's variance 1
        return response * taper * math.sqrt(2 / self.sample_rate)

    def whiten(self, strain: Tensor, psd: Tensor) -> Tensor:
        """Strain divided by its amplitude spectrum, of unit variance where `psd` describes the noise.

        Args:
            strain: [..., ifo, time], float64, longer than fduration; any length.
            psd: [..., ifo, freq], 1/Hz; leading axes broadcast against those of `strain`.

        Returns:
            [..., ifo, time - fduration * sample_rate], float32; sample i is that of time i + crop of `strain`.

        Raises:
            ValueError: not longer than fduration.
        """
        size = strain.shape[-1]
        if size <= 2 * self.crop:
            raise ValueError(f"whitening spends fduration {self.fduration:g} s, got {size / self.sample_rate:g} s of strain")
        response = self.response(psd)
        if size != self.design_size:
            # the circular convolution wraps only into samples that are cropped, so it may be as short as the data
            fft_size = _fast_size(max(size, 2 * self.crop))
            middle = response.new_zeros(*response.shape[:-1], fft_size - 2 * self.crop)
            response = torch.cat([response[..., : self.crop], middle, response[..., -self.crop :]], -1)
        else:
            fft_size = size
        strain = strain.double()
        strain = strain - strain.mean(-1, keepdim=True)
        spectrum = torch.fft.rfft(strain, n=fft_size) * torch.fft.rfft(response)
        return torch.fft.irfft(spectrum, n=fft_size)[..., self.crop : size - self.crop].float()

    def forward(self, strain: Tensor) -> Tensor:
        """Whiten the end of `strain` with the PSD of the psd_length seconds before it.

        Args:
            strain: [..., ifo, time], float64, longer than psd_length + fduration.

        Returns:
            [..., ifo, time - (psd_length + fduration) * sample_rate], float32.
        """
        split = round(self.psd_length * self.sample_rate)
        return self.whiten(strain[..., split:], self.psd(strain[..., :split]))


def _fast_size(size: int) -> int:
    """The smallest even FFT length >= size with no prime factor above 5."""
    best = 1 << (size - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            power = max(1, math.ceil(math.log2(size / three)) if size > three else 1)
            candidate = three << power
            if candidate >= size:
                best = min(best, candidate)
            three *= 3
        five *= 5
    return best
