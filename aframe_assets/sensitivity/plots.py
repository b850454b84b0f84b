"""Figures of a measurement: V(FAR) as PNG, and interactive ones as plain plotly data for a page.

An interactive figure is a `Figure` (id, title, caption, plotly JSON); `page` makes one self-contained HTML file of several,
plotly's script inside it once, so that it works without a network.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aframe_assets.config import SECONDS_PER_YEAR

if TYPE_CHECKING:
    from aframe_assets.sensitivity.curves import Curves
    from aframe_assets.sensitivity.far import Background
    from aframe_assets.sensitivity.volume import Draws

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, told apart by colour-blind readers."""

MAX_POINTS = 3000
"""Points of a scatter plot; more would only make the page slow."""

UNITS = {"1/h": 3600.0, "1/yr": SECONDS_PER_YEAR}


@dataclass(frozen=True)
class Figure:
    """An interactive figure: `plotly` is its JSON text."""

    id: str
    title: str
    caption: str
    plotly: str


def make_figure(id: str, title: str, caption: str, figure: Any, height: int = 430) -> Figure:
    """A plotly figure in the house style as a `Figure`; height in pixels."""
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 70, "r": 20, "t": 30, "b": 60},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        hovermode="closest",
    )
    return Figure(id, title, caption, figure.to_json())


def _curve(curves: Curves, i: int, unit: str, min_effective: float) -> tuple[np.ndarray, ...]:
    """FAR in `unit`, V, error, 90 % limit, and which points have enough effective found injections."""
    c = curves.curves[i]
    return curves.fars * UNITS[unit], c.volume, c.error, c.upper_limit, c.found_samples >= min_effective


def volume_png(curves: Curves, unit: str, min_effective: float, note: str = "") -> bytes:
    """V(FAR) of every pair with its 1-sigma band, as PNG below 150 kB; dashed where it is only an upper limit."""
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
    if len(curves.fars):
        ax.set_xscale("log")
    ax.margins(y=0.1)
    ax.set_ylim(bottom=0)
    ax.set_xlabel(f"false-alarm rate [{unit}]")
    ax.set_ylabel(r"sensitive volume [Gpc$^3$]")
    ax.set_title(note, fontsize=9)
    ax.grid(alpha=0.3, which="both", lw=0.5)
    ax.legend(frameon=False, ncols=2)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def volume_figure(curves: Curves, unit: str, min_effective: float) -> Figure:
    """V(FAR) with bands; hover shows the numbers."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, target in enumerate(curves.targets):
        far, volume, error, limit, good = _curve(curves, i, unit, min_effective)
        name, colour = f"{target.mass_1:g} + {target.mass_2:g} M☉", COLOURS[i % len(COLOURS)]
        # a gap in the data would be filled across, so the band is drawn only where the points are good
        x = far[good]
        figure.add_scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([(volume + error)[good], (volume - error)[good][::-1]]),
            fill="toself",
            fillcolor=colour,
            opacity=0.18,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
        )
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
    figure.update_xaxes(type="log", title=f"false-alarm rate [{unit}]", exponentformat="power", dtick=1)
    figure.update_yaxes(rangemode="tozero", title="sensitive volume [Gpc³]")
    return make_figure(
        "volume",
        "Sensitive volume",
        "Sensitive volume against false-alarm rate. Bands: one standard deviation from all draws. Points: the tabulated rates, "
        "with the Poisson error of the background count. "
        f"Dashed: 90 % upper limit, where fewer than {min_effective:g} effective injections are found.",
        figure,
    )


def background_figure(background: Background, unit: str, found: np.ndarray | None = None) -> Figure:
    """FAR against detection statistic, with the Poisson band of the background count; `found`: statistics of recovered injections."""
    import plotly.graph_objects as go

    k = background.grid(1, num=600)
    x, far = background.kth_loudest(k), k / background.livetime * UNITS[unit]
    width = np.sqrt(k) / background.livetime * UNITS[unit]
    figure = go.Figure()
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([far + width, np.maximum(far - width, far[:1] / 20)[::-1]]),
        fill="toself",
        fillcolor=COLOURS[0],
        opacity=0.2,
        line={"width": 0},
        hoverinfo="skip",
        name="Poisson error",
    )
    figure.add_scatter(
        x=x,
        y=far,
        mode="lines",
        line={"color": COLOURS[0]},
        name="slid background",
        hovertemplate="statistic %{x:.3f}<br>FAR %{y:.3g}<extra></extra>",
    )
    if found is not None and len(found):
        level = np.quantile(found, np.linspace(0, 1, 300))
        figure.add_scatter(
            x=level,
            y=np.linspace(1, 0, 300),
            yaxis="y2",
            mode="lines",
            line={"color": COLOURS[1]},
            name="share of injections above",
        )
        figure.update_layout(
            yaxis2={
                "overlaying": "y",
                "side": "right",
                "title": "share of recovered injections",
                "range": [0, 1.02],
                "showgrid": False,
                "tickmode": "auto",
            }
        )
    figure.update_xaxes(title="detection statistic")
    figure.update_layout(yaxis={"type": "log", "title": f"false-alarm rate [{unit}]", "exponentformat": "power", "dtick": 1})
    return make_figure(
        "background",
        "Background",
        f"False-alarm rate of a detection statistic from {len(background.statistics):,} background events "
        f"in {background.livetime / 3600:,.1f} h of slid data, "
        "with the Poisson error of the count, and the share of recovered injections that are as loud.",
        figure,
    )


def found_missed_figure(draws: Draws, threshold: float, far_text: str) -> Figure:
    """Injections found and missed at `threshold` in chirp mass and redshift."""
    import plotly.graph_objects as go

    accepted = np.flatnonzero(draws.accepted)
    accepted = accepted[:: max(1, -(-len(accepted) // MAX_POINTS))]
    m1, m2, z = draws.mass_1[accepted], draws.mass_2[accepted], draws.redshift[accepted]
    chirp = (m1 * m2) ** 0.6 / (m1 + m2) ** 0.2
    found = draws.statistic[accepted] >= threshold
    figure = go.Figure()
    for mask, name, colour, symbol in ((~found, "missed", "#999999", "x-thin"), (found, "found", COLOURS[0], "circle")):
        marker = {"color": colour, "symbol": symbol, "size": 5, "opacity": 0.7, "line": {"width": 1, "color": colour}}
        figure.add_scatter(x=chirp[mask], y=z[mask], mode="markers", marker=marker, name=f"{name} ({mask.sum():,} shown)")
    figure.update_xaxes(type="log", title="source-frame chirp mass [M☉]", tickvals=[2, 5, 10, 20, 30, 50, 100])
    figure.update_yaxes(title="redshift", rangemode="tozero")
    return make_figure(
        "found-missed",
        "Injections found and missed",
        f"Injected signals at {far_text}: found, and missed though above the SNR cut.",
        figure,
    )


def efficiency_figure(draws: Draws, thresholds: Sequence[tuple[str, float]]) -> Figure:
    """Share of injected signals found against their network SNR, with binomial errors, for each (label, threshold)."""
    import plotly.graph_objects as go

    figure = go.Figure()
    snr, statistic = draws.snr[draws.accepted], draws.statistic[draws.accepted]
    if len(snr):
        edges = np.unique(np.quantile(snr, np.linspace(0, 1, int(np.clip(len(snr) // 30, 4, 25)) + 1)))
        place = np.clip(np.digitize(snr, edges) - 1, 0, len(edges) - 2)
        number = np.bincount(place, minlength=len(edges) - 1)
        for i, (label, threshold) in enumerate(thresholds):
            hits = np.bincount(place, statistic >= threshold, minlength=len(edges) - 1)
            share = (hits + 0.5) / (number + 1)
            figure.add_scatter(
                x=np.sqrt(edges[1:] * edges[:-1]),
                y=hits / np.maximum(number, 1),
                mode="lines+markers",
                name=label,
                line={"color": COLOURS[i % len(COLOURS)]},
                error_y={"type": "data", "array": np.sqrt(share * (1 - share) / np.maximum(number, 1))},
            )
    figure.update_xaxes(type="log", title="network SNR", tickvals=[4, 5, 6, 8, 10, 15, 20, 30, 50, 100])
    figure.update_yaxes(range=[0, 1.03], title="share found")
    return make_figure(
        "efficiency",
        "Efficiency",
        "Share of injected signals that are found, against their optimal network SNR, in bins of equal number.",
        figure,
    )


def zero_lag_figure(statistics: np.ndarray, livetime: float, background: Background) -> Figure:
    """Zero-lag events as loud as a statistic, beside what the background leads to expect."""
    import plotly.graph_objects as go

    figure = go.Figure()
    k = background.grid(1, num=400)
    x, expected = background.kth_loudest(k), k * livetime / background.livetime
    # Poisson scatter of the zero-lag count and error of the background count together
    spread = np.sqrt(expected + expected**2 / k)
    for n, opacity in ((2, 0.12), (1, 0.22)):
        low = np.maximum(expected - n * spread, 1e-2)
        figure.add_scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([expected + n * spread, low[::-1]]),
            fill="toself",
            fillcolor="#888888",
            opacity=opacity,
            line={"width": 0},
            hoverinfo="skip",
            name=f"{n} σ",
        )
    figure.add_scatter(x=x, y=expected, mode="lines", line={"color": "#555", "dash": "dash"}, name="expected of noise")
    loudest = np.sort(np.asarray(statistics, float))[::-1][:MAX_POINTS]
    figure.add_scatter(
        x=loudest,
        y=np.arange(1, len(loudest) + 1),
        mode="markers",
        marker={"color": COLOURS[1], "size": 6},
        name="zero lag",
        hovertemplate="statistic %{x:.3f}<br>%{y} as loud<extra></extra>",
    )
    figure.update_xaxes(title="detection statistic")
    figure.update_yaxes(type="log", dtick=1, title="number of events as loud or louder", range=[-1, np.log10(max(10, 2 * len(loudest)))])
    return make_figure(
        "zero-lag",
        "Zero lag against background",
        f"Zero-lag events at or above a statistic in {livetime / 3600:,.2f} h, and the number that slid background leads to expect.",
        figure,
    )


def plotly_script() -> str:
    """plotly's JavaScript as one text, to be put inline."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def embed(figure: Figure) -> str:
    """HTML of one figure in a page that holds `plotly_script` already."""
    # "</" would end the script element
    data = figure.plotly.replace("</", "<\\/")
    name = html.escape(figure.id, quote=True)
    return (
        f'<figure><div id="fig-{name}" class="plot" role="img" aria-label="{html.escape(figure.caption, quote=True)}"></div>'
        f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
        f"<script>(function(){{const f={data};"
        f'Plotly.newPlot("fig-{name}",f.data,f.layout,{{responsive:true,displaylogo:false}});}})();</script>'
    )


def page(title: str, figures: Sequence[Figure], notes: Sequence[str] = ()) -> str:
    """One self-contained HTML page of `figures`."""
    body = "".join(f"<h2>{html.escape(f.title)}</h2>{embed(f)}" for f in figures)
    lines = "".join(f"<p>{html.escape(n)}</p>" for n in notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;color:#222}figure{margin:0 0 2rem}"
        f"figcaption{{color:#555;font-size:.9rem}}</style><script>{plotly_script()}</script></head>"
        f"<body><h1>{html.escape(title)}</h1>{lines}{body}</body></html>"
    )
