"""Pictures of an event as PNG bytes: whitened strain with the network's output, and Q-scans."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from aframe_assets.sensitivity.surroundings import Surroundings
from aframe_assets.strain.event_plots import AROUND, LOUDEST_COLOUR, q_scan

if TYPE_CHECKING:
    from aframe_assets.sensitivity.contributions import Response

BEFORE, AFTER = 1.0, 0.5
"""Seconds shown before and after the merger."""

COLOURS = {"H1": "#d55e00", "L1": "#0072b2", "V1": "#cc79a7", "K1": "#e69f00", "G1": "#555555"}


def traces_png(about: Surroundings, time: float, centre: float, response: Response | None) -> bytes:
    """Whitened strain of every detector about an event, and the network's output below.

    Args:
        time: detection time, GPS seconds; a dotted line.
        centre: GPS seconds that the axis counts from, the merger where it is known.
        response: of the network, or None.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context("default"):
        rows = len(about.ifos) + (response is not None)
        figure = Figure(figsize=(9, 0.7 + 1.45 * rows), dpi=90, layout="constrained")
        axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
        for ax, ifo in zip(axes, about.ifos, strict=False):
            start, x = about.cut(ifo, centre, BEFORE, AFTER)
            t = start + np.arange(len(x)) / about.chunk.sample_rate - centre
            ax.plot(t, x, lw=0.7, color=COLOURS.get(ifo, "#333333"))
            ax.set_ylabel(f"{ifo} [σ]")
            ax.set_xlim(-BEFORE, AFTER)
        if response is not None:
            axes[-1].plot(response.times - centre, response.outputs, "k.-", lw=0.8, ms=3)
            axes[-1].set_ylabel("network output")
        for ax in axes:
            ax.axvline(time - centre, color="0.5", ls=":", lw=1)
            ax.grid(alpha=0.25)
        axes[len(about.ifos) - 1].set_xlabel(f"seconds from GPS {centre:.3f}" if response is None else "")
        if response is not None:
            axes[-1].set_xlabel(f"right edge of the window, seconds from GPS {centre:.3f}")
        return _png(figure)


def q_scans_png(about: Surroundings, centre: float, band: tuple[float, float]) -> bytes:
    """Q-scans of every detector: normalised energy of the whitened strain over time and frequency (`aframe_assets.strain.event_plots`).

    Args:
        about: whitened strain.
        centre: GPS seconds that the axis counts from.
        band: lowest and highest frequency, Hz; what whitening leaves.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    fs = about.chunk.sample_rate
    with matplotlib.style.context("default"):
        figure = Figure(figsize=(9, 0.5 + 2.3 * len(about.ifos)), dpi=90, layout="constrained")
        axes = figure.subplots(len(about.ifos), 1, squeeze=False, sharex=True)[:, 0]
        image = None
        for ax, ifo in zip(axes, about.ifos, strict=True):
            start, x = about.cut(ifo, centre, AROUND, AROUND)
            if len(x) < 2 * fs:
                ax.text(0.5, 0.5, f"too little {ifo} strain about the event", transform=ax.transAxes, ha="center")
            else:
                frequencies, energy = q_scan(x, fs, band)
                seconds = start - centre + np.linspace(0, len(x) / fs, energy.shape[1])
                near = (seconds >= -BEFORE) & (seconds <= AFTER)
                drawn = {"vmin": 0, "vmax": LOUDEST_COLOUR, "cmap": "viridis", "shading": "nearest"}
                image = ax.pcolormesh(seconds[near], frequencies, energy[:, near], **drawn)
                ax.set_title(ifo, fontsize="medium", loc="left")
                ax.set_yscale("log")
                ax.set_ylim(frequencies[0], frequencies[-1])
                ax.set_yticks([f for f in (20, 30, 50, 100, 200, 500, 1000) if frequencies[0] <= f <= frequencies[-1]], minor=False)
                ax.minorticks_off()
                ax.yaxis.set_major_formatter("{x:g}")
            ax.set_ylabel("frequency [Hz]")
            ax.set_xlim(-BEFORE, AFTER)
        axes[-1].set_xlabel(f"seconds from GPS {centre:.3f}")
        if image is not None:
            figure.colorbar(image, ax=list(axes), label="normalised energy", pad=0.01)
        return _png(figure)


def _png(figure: Any) -> bytes:
    """As PNG of 128 colours, a third of the size of one in full colour."""
    from PIL import Image

    raw, out = io.BytesIO(), io.BytesIO()
    figure.savefig(raw, format="png")
    Image.open(raw).convert("RGB").quantize(128).save(out, format="png", optimize=True)
    return out.getvalue()
