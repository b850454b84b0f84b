"""Small pictures of strain and spectra, as PNG bytes for an asset's page."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from aframe_assets.strain.psd import Spectrum


def asd_plot(spectra: Mapping[str, Spectrum], title: str, reference: tuple[str, np.ndarray, np.ndarray] | None = None) -> bytes:
    """Amplitude spectral densities.

    Args:
        spectra: label -> spectrum.
        title: above the axes.
        reference: name, frequencies (Hz) and ASD of a curve to compare with.
    """
    figure = Figure(figsize=(6.4, 3.6), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    for label, s in spectra.items():
        use = s.frequencies >= 10
        axes.loglog(s.frequencies[use], np.sqrt(s.psd[use]), lw=0.7, label=label)
    if reference is not None:
        name, f, asd = reference
        use = (f >= 10) & (f <= max(s.frequencies[-1] for s in spectra.values()))
        axes.loglog(f[use], asd[use], "k--", lw=0.8, label=name)
    axes.set(xlabel="frequency [Hz]", ylabel="ASD [1/√Hz]", title=title)
    axes.legend(fontsize="small")
    return _png(figure)


def whitened_plot(whitened: Mapping[str, np.ndarray], gps_start: float, sample_rate: float, title: str) -> bytes:
    """Whitened strain of a few seconds, one row for each detector, in units of its standard deviation.

    Args:
        whitened: ifo -> shape (time,).
        gps_start: GPS seconds of the first sample.
        sample_rate: hertz.
    """
    figure = Figure(figsize=(6.4, 1.2 + 1.1 * len(whitened)), dpi=80, layout="constrained")
    rows = figure.subplots(len(whitened), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (ifo, x) in zip(rows, whitened.items(), strict=True):
        axes.plot(np.arange(len(x)) / sample_rate, x, lw=0.4)
        axes.set_ylabel(ifo)
    rows[0].set_title(title)
    rows[-1].set_xlabel(f"seconds from GPS {gps_start:.2f}")
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
