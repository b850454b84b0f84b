"""One event as a scientist looks at it: whitened strain and Q-scan of each detector, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.strain.plots import figure_of, png_of

if TYPE_CHECKING:
    from aframe_assets.config import Conditioning

Q_RANGE = (4.0, 64.0)
BAND = (20.0, 500.0)
"""Hertz, of a Q-scan where whitening leaves more."""

LOUDEST_COLOUR = 25.0
"""Normalised energy at the end of the colour scale, as the field's Q-scans have it."""

AROUND = 4.0
"""Seconds on each side of an event that its Q-scans are made of."""

BEFORE, AFTER = 1.0, 0.5
"""Seconds of it that are shown before and after the event."""

SHORTEST = 2.0
"""Seconds below which there is no Q-scan."""

COLOURS = {"H1": "#d55e00", "L1": "#0072b2", "V1": "#cc79a7", "K1": "#e69f00", "G1": "#555555"}

_TILES = (160, 1000)
"""Frequencies and times of a Q-scan."""


@dataclass(frozen=True)
class WhitenedStretch:
    """Whitened strain of some seconds.

    Attributes:
        strain: ifo -> shape (time,), of unit variance in noise; equal lengths.
        gps_start: GPS seconds of the first sample.
        sample_rate: hertz.
    """

    strain: Mapping[str, np.ndarray]
    gps_start: float
    sample_rate: float

    def between(self, start: float, stop: float) -> WhitenedStretch:
        """The part in [start, stop), GPS seconds, as far as there is any; a copy."""
        first = max(0, round((start - self.gps_start) * self.sample_rate))
        last = max(first, round((stop - self.gps_start) * self.sample_rate))
        part = {ifo: np.array(x[first:last]) for ifo, x in self.strain.items()}
        return WhitenedStretch(part, self.gps_start + first / self.sample_rate, self.sample_rate)


def band_of(conditioning: Conditioning) -> tuple[float, float]:
    """The part of `BAND` that whitening leaves, hertz."""
    return max(conditioning.highpass or 0.0, BAND[0]), min(conditioning.lowpass or BAND[1], BAND[1])


def q_scan(whitened: np.ndarray, sample_rate: float, band: tuple[float, float] = BAND) -> tuple[np.ndarray, np.ndarray]:
    """Normalised energy of the Q transform whose Q has the loudest tile (Chatterji et al. 2004, CQG 21 S1809; by ml4gw).

    Args:
        whitened: shape (time,), of one detector.
        sample_rate: hertz.
        band: hertz.

    Returns:
        Frequencies (freq,) in hertz, evenly in their logarithm, and energies (freq, time) over the whole of `whitened`; 1 is the
        median of each row's noise.
    """
    import warnings

    import torch
    from ml4gw.transforms import QScan

    duration, high = len(whitened) / sample_rate, min(band[1], 0.4 * sample_rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Q values that a short stretch cannot have
        scan = QScan(duration, sample_rate, _TILES, list(Q_RANGE), [band[0], high])
        energy = scan(torch.as_tensor(np.ascontiguousarray(whitened), dtype=torch.float32)[None, None])
    return np.geomspace(band[0], high, _TILES[0]), energy.reshape(_TILES).numpy()


def event_plot(
    stretch: WhitenedStretch, time: float, title: str = "", *, centre: float | None = None, band: tuple[float, float] = BAND, dpi: int = 80
) -> bytes:
    """Whitened strain above the Q-scan, a column for each detector.

    Args:
        stretch: some seconds around the event; Q-scans are of all of it.
        time: detection time, GPS seconds; a dashed line.
        title: above all.
        centre: GPS seconds that axes count from, the merger where it is known; else `time`.
        band: of Q-scans, hertz; what whitening leaves.
        dpi: pixels per inch; 80 are for an asset's page.
    """
    centre = time if centre is None else centre
    figure = figure_of(3.4 * len(stretch.strain) + 0.6, 4.4, dpi)
    panels = figure.subplots(2, len(stretch.strain), squeeze=False, sharex=True, height_ratios=(1, 1.6), sharey="row")
    seconds, mesh = stretch.gps_start - centre + np.arange(len(next(iter(stretch.strain.values())))) / stretch.sample_rate, None
    near = (seconds >= -BEFORE) & (seconds < AFTER)
    for (trace, scan), (ifo, x) in zip(panels.T, stretch.strain.items(), strict=True):
        trace.plot(seconds[near], x[near], lw=0.5, color=COLOURS.get(ifo, "#333333"))
        trace.set_title(ifo, fontsize="medium")
        trace.grid(alpha=0.25)
        scan.set(xlabel=f"seconds from GPS {centre:.3f}", xlim=(-BEFORE, AFTER), xticks=np.arange(-BEFORE, AFTER + 0.1, 0.5))
        if len(x) < SHORTEST * stretch.sample_rate:
            scan.text(0.5, 0.5, "too little strain for a Q-scan", transform=scan.transAxes, ha="center")
            continue
        frequencies, energy = q_scan(x, stretch.sample_rate, band)
        at = np.linspace(seconds[0], seconds[-1], energy.shape[1])
        use = (at >= -BEFORE) & (at < AFTER)
        mesh = scan.pcolormesh(at[use], frequencies, energy[:, use], vmin=0, vmax=LOUDEST_COLOUR, rasterized=True)
        scan.set(yscale="log", ylim=(frequencies[0], frequencies[-1]))
        ticks = [f for f in (20, 30, 50, 100, 200, 500, 1000) if frequencies[0] <= f <= frequencies[-1]]
        scan.set_yticks(ticks, [str(f) for f in ticks])
        scan.minorticks_off()
        scan.axvline(time - centre, color="w", ls="--", lw=0.7)
    for trace in panels[0]:
        trace.axvline(time - centre, color="k", ls="--", lw=0.7)
    panels[0, 0].set_ylabel("whitened strain [σ]")
    panels[1, 0].set_ylabel("frequency [Hz]")
    if mesh is not None:
        figure.colorbar(mesh, ax=panels[1].tolist(), label="normalised energy", pad=0.01)
    if title:
        figure.suptitle(title, fontsize="medium")
    return png_of(figure)
