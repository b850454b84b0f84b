"""Still pictures of a measurement as PNG bytes, for assets' pages; the interactive ones are in `plots` and `volume_plots`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.sensitivity.plots import COLOURS, MAX_POINTS, UNITS, efficiency
from aframe_assets.sensitivity.summary import candidate_far_text, p_astro_text
from aframe_assets.strain.plots import figure_of, png_of

if TYPE_CHECKING:
    from aframe_assets.sensitivity.candidates import Candidate
    from aframe_assets.sensitivity.far import Background
    from aframe_assets.sensitivity.volume import Draws


def far_png(background: Background, unit: str) -> bytes:
    """False-alarm rate against detection statistic, with the error of the background count.

    Args:
        unit: '1/h' or '1/yr'.
    """
    figure = figure_of(6.4, 3.4)
    axes = figure.add_subplot()
    k = background.grid(1, num=600)
    if len(k):
        statistic, far = background.kth_loudest(k), k / background.livetime * UNITS[unit]
        width = far * background.independence.relative_error(k)
        axes.fill_between(statistic, np.maximum(far - width, far[0] / 20), far + width, alpha=0.25, lw=0, label="error of the count")
        axes.plot(statistic, far, label=f"{background.livetime / 3600:.3g} h of slides")
        axes.set_yscale("log")
        axes.legend(fontsize="small")
    axes.set(xlabel="detection statistic", ylabel=f"false-alarm rate [{unit}]", title="FAR")
    axes.grid(alpha=0.3)
    return png_of(figure)


def efficiency_png(draws: Draws, thresholds: Sequence[tuple[str, float]]) -> bytes:
    """Share of injections found by network SNR, for each (label, threshold), and found and missed ones by mass and redshift."""
    figure = figure_of(9.2, 3.6)
    left, right = figure.subplots(1, 2)
    for i, (label, threshold) in enumerate(thresholds):
        snr, share, error = efficiency(draws, threshold)
        left.errorbar(snr, share, error, color=COLOURS[i % len(COLOURS)], marker=".", lw=1, label=label)
    left.set(xlabel="network SNR", ylabel="share found", ylim=(0, 1.03), title="efficiency")
    if thresholds:
        label, threshold = thresholds[0]
        left.legend(fontsize="small")
        some = np.flatnonzero(draws.accepted)
        some = some[:: max(1, -(-len(some) // MAX_POINTS))]
        m1, m2, z = draws.mass_1[some], draws.mass_2[some], draws.redshift[some]
        chirp, found = (m1 * m2) ** 0.6 / (m1 + m2) ** 0.2, draws.statistic[some] >= threshold
        right.plot(chirp[~found], z[~found], "x", color="0.6", ms=3, label="missed")
        right.plot(chirp[found], z[found], ".", color=COLOURS[0], ms=4, label="found")
        right.legend(fontsize="small")
        right.set_title(f"found and missed at {label}", fontsize="medium")
    right.set(xlabel="source-frame chirp mass [M☉]", ylabel="redshift")
    return png_of(figure)


def zero_lag_png(statistics: np.ndarray, livetime: float, background: Background) -> bytes:
    """Zero-lag events as loud as a statistic, beside what the background leads to expect with one and two standard deviations.

    Args:
        statistics: of zero-lag events.
        livetime: of zero lag, seconds.
    """
    figure = figure_of(6.4, 3.4)
    axes = figure.add_subplot()
    k = background.grid(1, num=400)
    if len(k) and livetime:
        x, expected = background.kth_loudest(k), k * livetime / background.livetime
        spread = np.sqrt(expected + expected**2 / background.independence.count(k))
        for n in (2, 1):
            low = np.maximum(expected - n * spread, 1e-3)
            axes.fill_between(x, low, expected + n * spread, color="0.5", alpha=0.25, lw=0, label=f"{n} σ")
        axes.plot(x, expected, "k--", lw=0.8, label="expected of noise")
    if len(statistics):
        axes.step(np.sort(statistics)[::-1], np.arange(1, len(statistics) + 1), where="post", color=COLOURS[1], label="zero lag")
    axes.set(xlabel="detection statistic", ylabel="events as loud", title=f"zero lag, {livetime / 3600:.3g} h")
    if axes.get_legend_handles_labels()[0]:
        axes.set_yscale("log")
        axes.legend(fontsize="small")
    return png_of(figure)


def candidate_table(found: Sequence[Candidate], unit: str, num: int = 10) -> str:
    """The loudest `num` candidates as a markdown table; a FAR or p_astro that is a limit is marked so.

    Args:
        unit: of FARs, '1/h' or '1/yr'.
    """
    rows = [f"| rank | GPS | statistic | FAR [{unit}] | p_astro | flags | catalogue |", "|---|---|---|---|---|---|---|"]
    for c in found[:num]:
        row = asdict(c)
        rows.append(
            f"| {c.rank} | {c.detection_time:.3f} | {c.detection_statistic:.3f} | {candidate_far_text(row, unit, None)} | "
            f"{p_astro_text(row, short=True)} | {', '.join(c.flags)} | {', '.join(m.name for m in c.matches)} |"
        )
    return "\n".join(rows)
