"""Pictures of events as PNG bytes."""

from __future__ import annotations

import io

import numpy as np


def statistics_plot(background: np.ndarray, zero_lag: np.ndarray, foreground: np.ndarray, livetime: float) -> bytes:
    """Cumulative rate of background and zero lag, and the distribution of injections, over the detection statistic.

    Args:
        background, zero_lag, foreground: detection statistics; -inf of missed injections is left out.
        livetime: of the background, seconds.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    heard = foreground[np.isfinite(foreground)]
    if len(background) and livetime:
        x = np.sort(background)[::-1]
        left.step(x, np.arange(1, len(x) + 1) / livetime * 3600, where="post", label=f"background, {livetime / 3600:.3g} h")
        left.set_yscale("log")
    for i, x in enumerate(np.sort(zero_lag)[::-1][:20]):
        left.axvline(x, color="0.6", lw=0.6, label="zero lag, 20 loudest" if i == 0 else None)
    left.set_xlabel("detection statistic")
    left.set_ylabel("background events as loud [1/h]")
    if len(heard):
        right = left.twinx()
        right.hist(heard, bins=40, color="C1", alpha=0.4)
        # the curve is drawn above the bars
        left.set_zorder(right.get_zorder() + 1)
        left.patch.set_visible(False)
        right.set_ylabel(f"injections ({len(heard)} of {len(foreground)} with an event)", color="C1")
    if left.get_legend_handles_labels()[0]:
        left.legend(loc="upper right", fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    return out.getvalue()


def injections_plot(snr: np.ndarray, statistic: np.ndarray, loudest: float | None) -> bytes:
    """Detection statistic of every injection with an event, against its network SNR.

    Args:
        snr, statistic: shape (injection,); -inf where no event is near.
        loudest: statistic of the loudest background event, drawn as a line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    heard = np.isfinite(statistic)
    some = np.flatnonzero(heard)[:: max(1, int(heard.sum()) // 5000)]
    axes.plot(snr[some], statistic[some], ".", ms=3, alpha=0.6, rasterized=True)
    if loudest is not None:
        above = float((statistic > loudest).mean()) if len(statistic) else 0.0
        axes.axhline(loudest, color="k", ls="--", lw=0.8, label=f"loudest background; {above:.0%} of injections above")
        axes.legend(loc="lower right", fontsize="small")
    if len(some):
        axes.set_xscale("log")
    axes.set(xlabel="network SNR", ylabel="detection statistic", title=f"{int(heard.sum())} of {len(statistic)} injections with an event")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=90)
    return out.getvalue()
