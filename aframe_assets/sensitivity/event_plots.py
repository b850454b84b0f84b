"""Pictures of a candidate as PNG bytes: whitened strain with Q-scans, and the network's output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aframe_assets.strain.event_plots import AROUND, WhitenedStretch, band_of, event_plot
from aframe_assets.strain.plots import figure_of, png_of

if TYPE_CHECKING:
    from aframe_assets.config import Conditioning
    from aframe_assets.sensitivity.contributions import Response
    from aframe_assets.sensitivity.surroundings import Surroundings

LARGE = 110
"""Pixels per inch on a page of the report."""


def strain_png(
    about: Surroundings, conditioning: Conditioning, time: float, *, centre: float | None = None, title: str = "", dpi: int = 80
) -> bytes:
    """Whitened strain and Q-scans at a candidate, drawn as `aframe_assets.strain.event_plots.event_plot` says.

    Args:
        about: whitened strain, as the search whitened it.
        conditioning: of the search.
        time: detection time, GPS seconds.
        centre: GPS seconds that axes count from; else `time`.
    """
    own = {ifo: about.cut(ifo, time, AROUND, AROUND) for ifo in about.ifos}
    start = next(iter(own.values()))[0]
    stretch = WhitenedStretch({ifo: x for ifo, (_, x) in own.items()}, start, about.chunk.sample_rate)
    return event_plot(stretch, time, title, centre=centre, band=band_of(conditioning), dpi=dpi)


def output_png(response: Response, time: float, centre: float) -> bytes:
    """The network's output about a candidate.

    Args:
        time: detection time, GPS seconds; a dashed line.
        centre: GPS seconds that the axis counts from.
    """
    figure = figure_of(7.4, 1.9, LARGE)
    axes = figure.add_subplot()
    axes.plot(response.times - centre, response.outputs, "k.-", lw=0.8, ms=3)
    axes.axvline(time - centre, color="k", ls="--", lw=0.7)
    axes.grid(alpha=0.25)
    axes.set(xlabel=f"right edge of the window, seconds from GPS {centre:.3f}", ylabel="network output")
    return png_of(figure)
