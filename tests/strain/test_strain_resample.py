"""Resampling: no aliasing, no change in band, no time shift, and block by block as in one piece."""

from __future__ import annotations

import numpy as np
import pytest

from aframe_assets.strain.resample import margin, resample, resample_stream

NEW = 2048
EDGE = 256  # new samples, an eighth of a second


def tone(frequency: float, rate: int, seconds: int = 8, phase: float = 0.7) -> np.ndarray:
    return np.cos(2 * np.pi * frequency * np.arange(seconds * rate) / rate + phase)


@pytest.mark.parametrize("rate", [4096, 16384])
@pytest.mark.parametrize("frequency", [1025, 1100, 1500, 2000])
def test_above_the_new_nyquist_frequency_is_suppressed(rate, frequency):
    out = resample(tone(frequency, rate), rate, NEW)
    assert 20 * np.log10(np.abs(out[EDGE:-EDGE]).max()) < (-60 if frequency >= 1100 else -40)


@pytest.mark.parametrize("rate", [4096, 8192, 16384])
@pytest.mark.parametrize("frequency", [1, 20, 100, 500, 900])
def test_in_band_tone_keeps_amplitude_phase_and_time(rate, frequency):
    out = resample(tone(frequency, rate), rate, NEW)
    assert np.abs(out - tone(frequency, NEW))[EDGE:-EDGE].max() < 1e-3


@pytest.mark.parametrize("rate", [4096, 16384])
def test_impulse_stays_where_it_is(rate):
    x = np.zeros(4 * rate)
    x[2 * rate] = 1
    out = resample(x, rate, NEW)
    assert np.argmax(out) == 2 * NEW
    assert np.allclose(out[2 * NEW - 500 : 2 * NEW], out[2 * NEW + 500 : 2 * NEW : -1], atol=1e-15)  # no delay


def test_steep_spectrum_is_not_polluted():
    # Strain falls by ten orders of magnitude from 1 Hz to 100 Hz; what leaks must stay below the quiet band.
    rate = 16384
    loud, quiet = tone(1.3, rate, 16), 1e-6 * tone(300, rate, 16)
    out = resample(loud + quiet, rate, NEW)
    alone = resample(loud, rate, NEW)
    assert np.abs(out - alone - 1e-6 * tone(300, NEW, 16))[EDGE:-EDGE].max() < 1e-9
    assert np.abs(alone - tone(1.3, NEW, 16))[EDGE:-EDGE].max() < 1e-5


def test_agrees_with_scipy_in_the_fourier_domain():
    from scipy.signal import resample as fourier

    x = np.random.default_rng(0).normal(size=32 * 4096)
    a, b = resample(x, 4096, NEW), fourier(x, 32 * NEW)
    f = np.fft.rfftfreq(len(a), 1 / NEW)
    window = np.hanning(len(a))
    a, b = np.fft.rfft(window * a), np.fft.rfft(window * b)
    band = (f > 1) & (f < 900)
    assert np.linalg.norm((a - b)[band]) < 1e-4 * np.linalg.norm(b[band])


@pytest.mark.parametrize(("rate", "new"), [(4096, 2048), (16384, 2048), (4096, 4096), (3000, 2048), (4096, 3072)])
def test_blocks_equal_the_whole(rate, new):
    x = np.random.default_rng(1).normal(size=40 * rate)
    asked = []

    def read(a, b):
        asked.append((a, b))
        return x[round((a - 100) * rate) : round((b - 100) * rate)]

    out = resample_stream(read, 100, 140, rate, new, block=7)
    assert np.abs(out - resample(x, rate, new)).max() < 1e-12
    assert min(a for a, _ in asked) == 100 and max(b for _, b in asked) == 140 and len(asked) == 6


def test_rates_are_checked():
    with pytest.raises(ValueError, match="1024 Hz cannot give 2048 Hz"):
        resample(np.zeros(1024), 1024, 2048)
    with pytest.raises(ValueError, match="whole numbers"):
        resample(np.zeros(1024), 4096.5, 2048)
    with pytest.raises(ValueError, match="no whole number of samples"):
        resample(np.zeros(4097), 4096, 2048)
    assert margin(4096, 4096) == 0 and margin(4096, 2048) / 4096 < 0.04
    x = np.arange(10.0)
    assert np.array_equal(resample(x, 2048, 2048), x)
    assert len(resample(np.ones(16), 16384, 2048)) == 2  # shorter than the filter
