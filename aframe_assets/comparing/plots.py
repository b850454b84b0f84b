"""Figures of a comparison: V(FAR) and shares found of all models over each other, and their differences."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from aframe_assets.comparing.summary import rates
from aframe_assets.sensitivity.curves import Curves
from aframe_assets.sensitivity.plots import COLOURS, UNITS, Figure, add_band, make_figure

_DASHES = ("solid", "dash", "dot", "dashdot")
_LINES = ("-", "--", ":", "-.")
MOST_PANELS = 6
"""Mass pairs on the still picture; the page has all."""


def volume_png(curves: Mapping[str, Curves], unit: str, min_effective: float, title: str = "") -> bytes:
    """V(FAR) of every mass pair, a panel each, all models in it with 1-sigma bands, as PNG below 150 kB.

    Args:
        curves: by name of the model.
        unit: of rates, '1/h' or '1/yr'.
        min_effective: effective found injections from which V is drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure
    from PIL import Image

    targets = next(iter(curves.values())).targets[:MOST_PANELS]
    fars = np.concatenate([c.fars * UNITS[unit] for c in curves.values()])
    ends = (fars.min(), fars.max()) if len(np.unique(fars)) > 1 else None
    across = min(2, len(targets))
    down = -(-len(targets) // across)
    figure = MatplotlibFigure(figsize=(4.2 * across, 0.6 + 2.9 * down), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
    for i, (ax, target) in enumerate(zip(axes, targets, strict=False)):
        for j, (name, c) in enumerate(curves.items()):
            colour, line = _style(j, _LINES)
            good = c.curves[i].found_samples >= min_effective
            far, volume = c.fars * UNITS[unit], np.where(good, c.curves[i].volume, np.nan)
            ax.fill_between(far, volume - c.curves[i].error, volume + c.curves[i].error, color=colour, alpha=0.15, lw=0)
            ax.plot(far, volume, color=colour, ls=line, label=name)
        if ends is not None:
            # where no volume is drawn there are no data that could set them
            ax.set_xscale("log")
            ax.set_xlim(*ends)
        ax.margins(y=0.1)
        ax.set_ylim(bottom=0)
        ax.set_title(rf"${target.mass_1:g} + {target.mass_2:g}\ M_\odot$", fontsize=9)
        ax.grid(alpha=0.3, which="both", lw=0.5)
    for ax in axes[len(targets) :]:
        ax.axis("off")
    figure.supxlabel(f"false-alarm rate [{unit}]", fontsize=9)
    figure.supylabel(r"sensitive volume [Gpc$^3$]", fontsize=9)
    axes[0].legend(frameon=False, fontsize=7, loc="lower right")
    figure.suptitle(title, fontsize=9)
    figure.canvas.draw()
    out = io.BytesIO()
    # bands of many models have so many colours that all of them would take more bytes than an asset's page may carry
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]).quantize(64).save(out, "png", optimize=True)
    return out.getvalue()


def _style(i: int, lines: tuple[str, ...]) -> tuple[str, str]:
    """Colour and line of the i-th model: colours first, then lines."""
    return COLOURS[i % len(COLOURS)], lines[i // len(COLOURS) % len(lines)]


def volume_figures(curves: Mapping[str, Curves], unit: str, min_effective: float) -> list[Figure]:
    """V(FAR) of all models, an interactive figure for each mass pair."""
    import plotly.graph_objects as go

    out = []
    for i, target in enumerate(next(iter(curves.values())).targets):
        figure = go.Figure()
        for j, (name, c) in enumerate(curves.items()):
            colour, dash = _style(j, _DASHES)
            good = c.curves[i].found_samples >= min_effective
            far, volume, error = (x[good] for x in (c.fars * UNITS[unit], c.curves[i].volume, c.curves[i].error))
            add_band(figure, far, volume, error, name=name, colour=colour)
            figure.add_scatter(
                x=far,
                y=volume,
                mode="lines",
                line={"color": colour, "dash": dash},
                name=name,
                legendgroup=name,
                hovertemplate="FAR %{x:.3g}<br>V %{y:.3g} Gpc³<extra>" + name + "</extra>",
            )
        _rate_axis(figure, unit)
        figure.update_yaxes(title="sensitive volume [Gpc³]", rangemode="tozero")
        title = f"Sensitive volume, {target.mass_1:g} + {target.mass_2:g} M☉"
        caption = (
            "One standard deviation of the injections. A difference of two models is better known than their bands say: "
            "both saw the same injections."
        )
        out.append(make_figure(f"volume-{target.name}", title, caption, figure))
    return out


def found_figure(curves: Mapping[str, Curves], unit: str, num_injections: int) -> Figure:
    """Share of all injections found against FAR, of all models."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for j, (name, c) in enumerate(curves.items()):
        colour, dash = _style(j, _DASHES)
        share = c.num_found / max(1, num_injections)
        figure.add_scatter(x=c.fars * UNITS[unit], y=share, mode="lines", line={"color": colour, "dash": dash}, name=name)
    _rate_axis(figure, unit)
    figure.update_yaxes(title="share of injections found", rangemode="tozero")
    return make_figure("found", "Injections found", f"Of {num_injections} injections above the SNR cut.", figure)


def efficiency_figure(table: Mapping[str, Any]) -> Figure | None:
    """Share found by network SNR at the lowest rate, of all models; None without a rate."""
    import plotly.graph_objects as go

    at = min(rates(table), key=lambda r: r[0] * UNITS["1/yr"] / UNITS[r[1]], default=None)
    bins = [q for q in table["quantities"] if q["name"].startswith("snr ")]
    if at is None or not bins:
        return None
    figure = go.Figure()
    for j, m in enumerate(table["models"]):
        own = {v["quantity"]: v for v in m["values"] if (v["far"], v["far_unit"]) == at}
        colour, dash = _style(j, _DASHES)
        figure.add_scatter(
            x=[q["label"].removeprefix("SNR ") for q in bins],
            y=[own[q["name"]]["value"] for q in bins],
            error_y={"type": "data", "array": [own[q["name"]]["error"] for q in bins]},
            mode="lines+markers",
            line={"color": colour, "dash": dash},
            name=m["name"],
        )
    figure.update_xaxes(title="network SNR", type="category")
    figure.update_yaxes(title="share found", range=[0, 1.03])
    caption = f"At a false-alarm rate of {at[0]:g} {at[1].removeprefix('1')}."
    return make_figure("efficiency", "Efficiency by network SNR", caption, figure)


def _rate_axis(figure: Any, unit: str) -> None:
    figure.update_xaxes(type="log", title=f"false-alarm rate [{unit}]", exponentformat="power", dtick=1)
