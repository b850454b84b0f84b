"""Figures of the sensitive volume: V(FAR) as PNG and interactive, V against mass, published volumes beside them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aframe_assets.config import SECONDS_PER_YEAR
from aframe_assets.sensitivity.comparators import Published, of_pairs
from aframe_assets.sensitivity.plots import COLOURS, UNITS, Figure, add_band, make_figure

if TYPE_CHECKING:
    from aframe_assets.sensitivity.curves import Curves


_SHAPES = (
    ("^", "triangle-up"),
    ("s", "square"),
    ("D", "diamond"),
    ("v", "triangle-down"),
    ("p", "pentagon"),
    ("P", "cross"),
    ("*", "star"),
)
"""Of published values: for matplotlib, for plotly."""


def _curve(curves: Curves, i: int, unit: str, min_effective: float) -> tuple[np.ndarray, ...]:
    """FAR in `unit`, V, error, 90 % limit, and which points have enough effective found injections."""
    c = curves.curves[i]
    return curves.fars * UNITS[unit], c.volume, c.error, c.upper_limit, c.found_samples >= min_effective


def _beside(curves: Curves, published: Sequence[Published]) -> list[tuple[str, list[tuple[Published, int, float]]]]:
    """(legend, [(value, index of the pair, FAR in 1/yr at which it is drawn)]) of each comparator that has one of the pairs.

    Values are of one per year, or of a threshold that is not known and drawn there; they are set apart a little for the eye.
    """
    pairs = [(t.mass_1, t.mass_2) for t in curves.targets]
    values = of_pairs(published, pairs)
    out = []
    for i, name in enumerate(dict.fromkeys(p.comparator for p in values)):
        own = [p for p in values if p.comparator == name]
        place = 1.06 ** (i // 2 + 1 if i % 2 else -(i // 2))
        out.append((own[0].label, [(p, pairs.index((p.mass_1, p.mass_2)), (p.far_per_year or 1.0) * place) for p in own]))
    return out


def volume_png(
    curves: Curves, unit: str, min_effective: float, title: str = "", published: Sequence[Published] = (), note: str = ""
) -> bytes:
    """V(FAR) of every pair with its 1-sigma band, as PNG below 150 kB; dashed where it is only an upper limit.

    Args:
        published: values drawn beside ours.
        note: said below the figure, as that they are of other data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(7, 4.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for i, target in enumerate(curves.targets):
        far, volume, error, limit, good = _curve(curves, i, unit, min_effective)
        colour = COLOURS[i % len(COLOURS)]
        band = np.where(good, volume, np.nan)
        ax.fill_between(far, band - error, band + error, color=colour, alpha=0.2, lw=0)
        ax.plot(far, band, color=colour, label=rf"${target.mass_1:g} + {target.mass_2:g}\ M_\odot$")
        ax.plot(far, np.where(good, np.nan, limit), color=colour, ls="--", lw=1)
        for row in curves.rows:
            if (row["mass_1"], row["mass_2"], row["far_unit"]) == (target.mass_1, target.mass_2, unit) and row["status"] == "measured":
                x, half = row["far_measured_per_year"] / SECONDS_PER_YEAR * UNITS[unit], row["far_relative_error"]
                ax.errorbar(x, row["volume"], row["error"], xerr=x * half, fmt="o", ms=4, color=colour, capsize=2)
    for k, (label, values) in enumerate(_beside(curves, published)):
        for j, (p, i, far) in enumerate(values):
            colour = COLOURS[i % len(COLOURS)]
            face = "none" if p.far_per_year is None else colour
            x = far / SECONDS_PER_YEAR * UNITS[unit]
            ax.errorbar(x, p.volume, p.error, fmt=_SHAPES[k % len(_SHAPES)][0], ms=6, mfc=face, color=colour, alpha=0.8, lw=0.8)
            if not j:
                ax.plot(
                    [], [], _SHAPES[k % len(_SHAPES)][0], ms=6, color="#555", mfc="none" if p.far_per_year is None else "#555", label=label
                )
    if len(curves.fars) or published:
        ax.set_xscale("log")
    ax.margins(y=0.1)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(f"false-alarm rate [{unit}]" + (f"\n{note}" if note else ""), fontsize=9 if note else None)
    ax.set_ylabel(r"sensitive volume [Gpc$^3$]")
    ax.set_title(title, fontsize=9)
    ax.grid(alpha=0.3, which="both", lw=0.5)
    ax.legend(frameon=False, **({"fontsize": 6} if published else {"ncols": 2}))
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def volume_figure(curves: Curves, unit: str, min_effective: float, published: Sequence[Published] = (), note: str = "") -> Figure:
    """V(FAR) with bands; hover shows the numbers. `published` and `note` as for `volume_png`."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, target in enumerate(curves.targets):
        far, volume, error, limit, good = _curve(curves, i, unit, min_effective)
        name, colour = f"{target.mass_1:g} + {target.mass_2:g} M☉", COLOURS[i % len(COLOURS)]
        # a gap in the data would be filled across, so the band is drawn only where the points are good
        x = far[good]
        add_band(figure, x, volume[good], error[good], name=name, colour=colour)
        figure.add_scatter(
            x=x,
            y=volume[good],
            customdata=np.stack([error[good], curves.curves[i].found_samples[good]], axis=1),
            name=name,
            legendgroup=name,
            mode="lines",
            line={"color": colour},
            hovertemplate="FAR %{x:.3g}<br>V = %{y:.4g} ± %{customdata[0]:.2g} Gpc³<br>ESS %{customdata[1]:.0f}<extra>" + name + "</extra>",
        )
        if (~good).any():
            figure.add_scatter(
                x=far[~good],
                y=limit[~good],
                mode="lines",
                line={"color": colour, "dash": "dash", "width": 1},
                legendgroup=name,
                name=f"{name}, 90 % limit",
            )
        rows = [
            r
            for r in curves.rows
            if (r["mass_1"], r["mass_2"], r["far_unit"], r["status"]) == (target.mass_1, target.mass_2, unit, "measured")
        ]
        x = [r["far_measured_per_year"] / SECONDS_PER_YEAR * UNITS[unit] for r in rows]
        figure.add_scatter(
            x=x,
            y=[r["volume"] for r in rows],
            mode="markers",
            marker={"color": colour, "size": 7},
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
            error_y={"type": "data", "array": [r["error"] for r in rows]},
            error_x={"type": "data", "array": [a * r["far_relative_error"] for a, r in zip(x, rows, strict=True)]},
        )
    beside = _beside(curves, published)
    for k, (label, values) in enumerate(beside):
        symbol = _SHAPES[k % len(_SHAPES)][1]
        colours = [COLOURS[i % len(COLOURS)] for _, i, _ in values]
        figure.add_scatter(
            x=[far / SECONDS_PER_YEAR * UNITS[unit] for _, _, far in values],
            y=[p.volume for p, _, _ in values],
            error_y={"type": "data", "array": [p.error for p, _, _ in values], "color": "#999", "thickness": 1},
            mode="markers",
            marker={"symbol": symbol + ("-open" if values[0][0].far_per_year is None else ""), "size": 9, "color": colours},
            name=label,
            text=[f"{p.mass_1:g} + {p.mass_2:g} M☉: {p.source}" for p, _, _ in values],
            hovertemplate="V = %{y:.3g} Gpc³<br>%{text}<extra>" + label + "</extra>",
        )
    figure.update_xaxes(type="log", title=f"false-alarm rate [{unit}]", exponentformat="power", dtick=1)
    figure.update_yaxes(rangemode="tozero", title="sensitive volume [Gpc³]")
    others = (
        " Symbols in a pair's colour: published volumes at one false alarm per year, set apart a little; open ones at a catalogue's own "
        f"threshold. {note}"
        if beside
        else ""
    )
    return make_figure(
        "volume",
        "Sensitive volume",
        "Sensitive volume against false-alarm rate. Bands: one standard deviation from all draws. Points: the tabulated rates, "
        "with the error of the background count, in which a glitch that many slides share counts once. "
        f"Dashed: 90 % upper limit, where fewer than {min_effective:g} effective injections are found.{others}",
        figure,
        430 + 22 * len(beside),
    )


def mass_figure(curves: Curves, published: Sequence[Published], note: str = "") -> Figure | None:
    """V against mass of equal-mass pairs, ours beside published curves at one per year; None when there is nothing to compare.

    Ours are at one per year too, or at the lowest rate above it that was measured.
    """
    import plotly.graph_objects as go

    equal = [t for t in curves.targets if t.mass_1 == t.mass_2]
    lines = [p for p in published if p.mass_1 == p.mass_2 and p.far_per_year == 1]
    if not equal or not lines:
        return None
    figure = go.Figure()
    for k, name in enumerate(dict.fromkeys(p.comparator for p in lines)):
        own = sorted((p for p in lines if p.comparator == name), key=lambda p: p.mass_1)
        figure.add_scatter(
            x=[p.mass_1 for p in own],
            y=[p.volume for p in own],
            error_y={"type": "data", "array": [p.error for p in own], "thickness": 1},
            mode="lines+markers",
            line={"color": COLOURS[(k + 1) % len(COLOURS)], "dash": "dot"},
            marker={"symbol": _SHAPES[k % len(_SHAPES)][1], "size": 7},
            name=own[0].label,
        )
    ours = [row for t in equal if (row := _lowest_row(curves, t.mass_1)) is not None]
    for far in dict.fromkeys((r["far"], r["far_unit"]) for r in ours):
        rows = [r for r in ours if (r["far"], r["far_unit"]) == far]
        figure.add_scatter(
            x=[r["mass_1"] for r in rows],
            y=[r["volume"] for r in rows],
            error_y={"type": "data", "array": [r["error"] for r in rows]},
            mode="markers",
            marker={"color": COLOURS[0], "size": 10},
            name=f"this run, {far[0]:g} {far[1].removeprefix('1')}",
        )
    figure.update_xaxes(title="mass of each component [M☉]")
    figure.update_yaxes(rangemode="tozero", title="sensitive volume [Gpc³]")
    own = "ours at the rate in the legend" if ours else "ours was not measured at one per year or above"
    return make_figure(
        "mass",
        "Sensitive volume against mass",
        f"Sensitive volume of equal masses. Published curves at one false alarm per year; {own}. {note}".strip(),
        figure,
        430 + 22 * len(lines) // 13,
    )


def _lowest_row(curves: Curves, mass: float) -> dict[str, Any] | None:
    """The measured row of an equal-mass pair at the lowest rate that is not below one per year."""

    def hertz(row: dict[str, Any]) -> float:
        return row["far"] / UNITS[row["far_unit"]]

    rows = [r for r in curves.rows if r["mass_1"] == r["mass_2"] == mass and r["status"] == "measured"]
    return min((r for r in rows if hertz(r) >= 0.999 / SECONDS_PER_YEAR), key=hertz, default=None)
