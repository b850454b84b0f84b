"""Optimal signal-to-noise ratio (reference 2.4): rho^2 = 4 sum |h(f)|^2 / S(f) df over the band, no window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

PSDS = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""ifo -> (frequencies in Hz, one-sided PSD in 1/Hz), as `aframe_assets.strain.psd.read_psd` gives it."""


def psd_on(frequencies: np.ndarray, psds: PSDS, ifos: Sequence[str], low: float, high: float) -> np.ndarray:
    """PSDs at `frequencies`, linearly interpolated, (n_ifo, n_frequencies); infinite outside [low, high).

    Raises:
        ValueError: a detector without PSD; a PSD that does not reach over the band, or is not positive in it.
    """
    band = (frequencies >= low) & (frequencies < high)
    out = np.full((len(ifos), len(frequencies)), np.inf)
    for row, ifo in zip(out, ifos, strict=True):
        if ifo not in psds:
            raise ValueError(f"no PSD of {ifo}; there are PSDs of {', '.join(psds) or 'nothing'}")
        f, psd = (np.asarray(a, float) for a in psds[ifo])
        # up to one bin may be missing at the top: the last bin of an odd transform lies below Nyquist
        used = frequencies[band]
        if not len(f) or f[0] > used[0] or f[-1] < used[-1] - (f[1] - f[0]):
            span = f"{f[0]:g} to {f[-1]:g}" if len(f) else "no frequency"
            raise ValueError(f"the PSD of {ifo} covers {span} Hz; the band needs {used[0]:g} to {used[-1]:g} Hz")
        row[band] = np.interp(used, f, psd)
        if not (np.isfinite(row[band]) & (row[band] > 0)).all():
            worst = used[~(np.isfinite(row[band]) & (row[band] > 0))][0]
            raise ValueError(f"the PSD of {ifo} is not positive and finite at {worst:g} Hz")
    return out


def ifo_snrs(
    strain: np.ndarray,
    psds: PSDS,
    ifos: Sequence[str],
    sample_rate: float,
    highpass: float | None = None,
    lowpass: float | None = None,
) -> np.ndarray:
    """SNR of each signal in each detector.

    Args:
        strain: (n, n_ifo, size), in the order of `ifos`.
        psds: a PSD for each detector, at any resolution.
        ifos: detectors.
        sample_rate: Hz.
        highpass: lowest frequency, Hz; None is the first bin above 0.
        lowpass: frequencies stay below this, Hz; None is Nyquist.

    Returns:
        (n, n_ifo).
    """
    n, _, size = strain.shape
    frequencies = np.fft.rfftfreq(size, 1 / sample_rate)
    weight = 1 / psd_on(frequencies, psds, ifos, highpass or frequencies[1], min(lowpass or np.inf, sample_rate / 2))
    out = np.empty((n, len(ifos)))
    for i in range(0, n, 64):
        power = np.abs(np.fft.rfft(strain[i : i + 64]) / sample_rate) ** 2
        out[i : i + 64] = np.einsum("nif,if->ni", power, weight)
    return np.sqrt(4 * out * sample_rate / size)


def network_snr(ifo_snr: np.ndarray) -> np.ndarray:
    """Root of the sum of squares over detectors, (n, n_ifo) -> (n,)."""
    return np.sqrt((np.asarray(ifo_snr) ** 2).sum(axis=-1))
