"""Small pictures of strain and spectra, as PNG bytes for an asset's page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
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
    figure = figure_of(6.4, 3.6)
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
    return png_of(figure)


def whitened_plot(whitened: Mapping[str, np.ndarray], gps_start: float, sample_rate: float, title: str) -> bytes:
    """Whitened strain of a few seconds, one row for each detector, in units of its standard deviation.

    Args:
        whitened: ifo -> shape (time,).
        gps_start: GPS seconds of the first sample.
        sample_rate: hertz.
    """
    figure = figure_of(6.4, 1.2 + 1.1 * len(whitened))
    rows = figure.subplots(len(whitened), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (ifo, x) in zip(rows, whitened.items(), strict=True):
        axes.plot(np.arange(len(x)) / sample_rate, x, lw=0.4)
        axes.set_ylabel(f"{ifo} [σ]")
    rows[0].set_title(title)
    rows[-1].set_xlabel(f"seconds from GPS {gps_start:.2f}")
    return png_of(figure)


def range_plot(ranges: Mapping[str, Mapping[float, float]], title: str) -> bytes:
    """Inspiral range of each chunk over time.

    Args:
        ranges: ifo -> GPS seconds of a chunk's middle -> Mpc, of `aframe_assets.strain.psd.inspiral_range` at its masses.
    """
    figure = figure_of(6.4, 3.0)
    axes = figure.add_subplot()
    start = min((t for own in ranges.values() for t in own), default=0.0)
    for ifo, own in ranges.items():
        axes.plot([(t - start) / 3600 for t in own], list(own.values()), ".", label=ifo)
    axes.set(xlabel=f"hours from GPS {start:.0f}", ylabel="range, 10 + 10 M☉ [Mpc]", title=title)
    axes.set_ylim(0, 1.1 * max((r for own in ranges.values() for r in own.values()), default=1))
    axes.legend(fontsize="small")
    return png_of(figure)


def timeline_plot(rows: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], title: str) -> bytes:
    """Stretches of time, a row for each name.

    Args:
        rows: name of the row -> label of a colour -> [start, stop) in GPS seconds.
    """
    figure = figure_of(6.4, 1.3 + 0.35 * max(1, len(rows)))
    axes = figure.add_subplot()
    start = min((a for own in rows.values() for some in own.values() for a, _ in some), default=0.0)
    labels = list(dict.fromkeys(label for own in rows.values() for label in own))
    for i, own in enumerate(rows.values()):
        for label, some in own.items():
            spans = [((a - start) / 3600, (b - a) / 3600) for a, b in some]
            axes.broken_barh(spans, (i - 0.4, 0.8), color=f"C{labels.index(label)}", label=label, lw=0.4)
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlabel=f"hours from GPS {start:.0f}", title=title)
    if named:
        figure.legend(named.values(), named, fontsize="small", ncols=4, loc="outside lower center")
    return png_of(figure)


def figure_of(width: float, height: float, dpi: int = 80) -> Figure:
    """An empty figure; width and height in inches of `dpi` pixels, 80 for an asset's page."""
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def png_of(figure: Figure) -> bytes:
    """`figure` as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
