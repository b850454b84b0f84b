"""Pictures of a set of signals as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aframe_assets.strain.plots import figure_of, png_of

POPULATION = {
    "mass_1": "mass 1, detector frame [M☉]",
    "mass_2": "mass 2, detector frame [M☉]",
    "redshift": "redshift",
    "a_1": "spin magnitude 1",
}


def snr_plot(snr: np.ndarray, threshold: float, title: str) -> bytes:
    """Histogram of network SNR, beside p(rho) ~ rho^-4 of sources evenly in Euclidean space (Schutz 2011, CQG 28 125023).

    Args:
        snr: shape (signal,).
        threshold: of the cut, drawn as a line.
    """
    figure = figure_of(6.4, 3.2)
    axes = figure.add_subplot()
    if len(snr):
        low = max(float(snr.min()), 1e-3)
        edges = np.geomspace(low, max(float(snr.max()), 1.01 * low), 31)
        axes.hist(snr, edges, alpha=0.6, label=f"{len(snr)} signals")
        share = (edges[:-1] ** -3 - edges[1:] ** -3) / (edges[0] ** -3 - edges[-1] ** -3)
        axes.step(edges[:-1], len(snr) * share, "k--", where="post", lw=0.8, label="ρ⁻⁴, sources nearby")
        axes.set(xscale="log", yscale="log", ylim=(0.5, None))
        ticks = [t for t in (2, 4, 6, 8, 10, 15, 20, 30, 50, 100, 200) if edges[0] <= t <= edges[-1]]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
    if threshold > 0:
        axes.axvline(threshold, color="C1", lw=0.8, label=f"cut at {threshold:g}")
    axes.set(xlabel="network SNR", ylabel="signals", title=title)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    return png_of(figure)


def population_plot(parameters: Mapping[str, np.ndarray], title: str) -> bytes:
    """Histograms of what decides how signals look.

    Args:
        parameters: values of every name in `POPULATION`, shape (signal,).
    """
    figure = figure_of(6.4, 4.4)
    for axes, (name, label) in zip(figure.subplots(2, 2).ravel(), POPULATION.items(), strict=True):
        axes.hist(np.asarray(parameters[name], float), 40)
        axes.set_xlabel(label)
    figure.suptitle(title)
    return png_of(figure)
