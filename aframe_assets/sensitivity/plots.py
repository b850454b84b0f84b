"""Interactive figures as plain plotly data for a page: background, injections, zero lag; those of V(FAR) are in `volume_plots`.

An interactive figure is a `Figure` (id, title, caption, plotly JSON); `page` makes one self-contained HTML file of several,
plotly's script inside it once, so that it works without a network.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aframe_assets.config import SECONDS_PER_YEAR

if TYPE_CHECKING:
    from aframe_assets.sensitivity.far import Background
    from aframe_assets.sensitivity.volume import Draws

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, told apart by colour-blind readers."""

MAX_POINTS = 3000
"""Points of a scatter plot; more would only make the page slow."""

UNITS = {"1/h": 3600.0, "1/yr": SECONDS_PER_YEAR}


def add_band(figure: Any, x: np.ndarray, y: np.ndarray, error: np.ndarray, *, name: str, colour: str) -> None:
    """Adds to a plotly figure the band of one `error` about `y`, shown and hidden with the curve `name`.

    Args:
        x, y, error: shape (point,); a gap in them is filled across.
    """
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([y + error, (y - error)[::-1]]),
        fill="toself",
        fillcolor=colour,
        opacity=0.18,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )


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


def background_figure(background: Background, unit: str, found: np.ndarray | None = None) -> Figure:
    """FAR against detection statistic, with the error band of the background count; `found`: statistics of recovered injections."""
    import plotly.graph_objects as go

    k = background.grid(1, num=600)
    x, far = background.kth_loudest(k), k / background.livetime * UNITS[unit]
    width = far * background.independence.relative_error(k)
    figure = go.Figure()
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([far + width, np.maximum(far - width, far[:1] / 20)[::-1]]),
        fill="toself",
        fillcolor=COLOURS[0],
        opacity=0.2,
        line={"width": 0},
        hoverinfo="skip",
        name="error",
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
        "with the error of the count, in which a glitch that many slides share counts once, "
        "and the share of recovered injections that are as loud.",
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


def efficiency(draws: Draws, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of injected signals at or above `threshold` in bins of equal number of network SNR.

    Returns:
        mean SNR, share, and its binomial error, which none found and all found have too; shape (bin,) each.
    """
    snr, statistic = draws.snr[draws.accepted], draws.statistic[draws.accepted]
    bins = [b for b in np.array_split(np.argsort(snr), np.clip(len(snr) // 30, 4, 25)) if len(b)]
    number, found = np.array([len(b) for b in bins], float), np.array([(statistic[b] >= threshold).sum() for b in bins], float)
    # half a signal more found and half a one more missed
    share = (found + 0.5) / (number + 1)
    return np.array([snr[b].mean() for b in bins]), found / number, np.sqrt(share * (1 - share) / number)


def efficiency_figure(draws: Draws, thresholds: Sequence[tuple[str, float]]) -> Figure:
    """Share of injected signals found against their network SNR, with binomial errors, for each (label, threshold)."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, (label, threshold) in enumerate(thresholds):
        snr, share, error = efficiency(draws, threshold)
        colour = {"color": COLOURS[i % len(COLOURS)]}
        figure.add_scatter(x=snr, y=share, mode="lines+markers", name=label, line=colour, error_y={"type": "data", "array": error})
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
    spread = np.sqrt(expected + expected**2 / background.independence.count(k))
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


_CONTROLS = {
    "responsive": True,
    "displaylogo": False,
    # "Share chart..." would send the figure, with results nobody has published yet, to Plotly's own servers
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d"],
}

PLOT_STYLE = (
    ".modebar-btn:focus-visible{outline:3px solid #0b5394!important}"
    "@media (prefers-reduced-motion:reduce){.modebar,.modebar *{transition:none!important}}"
)
"""For who comes to a plot's buttons by the keyboard, and for who wants nothing to move."""


def plotly_script() -> str:
    """plotly's JavaScript as one text, to be put inline."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def embed(figure: Figure) -> str:
    """HTML of one figure in a page that holds `plotly_script` already."""
    # "</" would end the script element
    data = figure.plotly.replace("</", "<\\/")
    name = html.escape(figure.id, quote=True)
    # a group, no image: its buttons are to be reached
    return (
        f'<figure><div id="fig-{name}" class="plot" role="group" aria-label="{html.escape(figure.title, quote=True)}, plot"></div>'
        f"<figcaption>{html.escape(figure.caption)}</figcaption></figure>"
        f"<script>(function(){{const f={data};"
        f'Plotly.newPlot("fig-{name}",f.data,f.layout,{json.dumps(_CONTROLS)});}})();</script>'
    )


@dataclass(frozen=True)
class Table:
    """A table of a page: its title, the names of its columns, and its cells as text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        """The table with its title above it."""
        head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in self.columns)
        body = "".join(
            f'<tr><th scope="row">{html.escape(first)}</th>' + "".join(f"<td>{html.escape(c)}</td>" for c in rest) + "</tr>"
            for first, *rest in self.rows
        )
        return f"<h2>{html.escape(self.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def page(title: str, figures: Sequence[Figure], notes: Sequence[str] = (), tables: Sequence[Table] = ()) -> str:
    """One self-contained HTML page of `tables` and `figures`."""
    body = "".join(t.html() for t in tables) + "".join(f"<h2>{html.escape(f.title)}</h2>{embed(f)}" for f in figures)
    lines = "".join(f"<p>{html.escape(n)}</p>" for n in notes)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;color:#222}figure{margin:0 0 2rem}"
        "table{border-collapse:collapse;font-size:.9rem}td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top}"
        f"figcaption{{color:#555;font-size:.9rem}}{PLOT_STYLE}</style><script>{plotly_script()}</script></head>"
        f"<body><main><h1>{html.escape(title)}</h1>{lines}{body}</main></body></html>"
    )
