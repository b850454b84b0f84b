"""One event as a scientist looks at it: whitened strain and Q-scan of each detector, as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.strain.plots import figure_of, png_of

if TYPE_CHECKING:
    from aframe_assets.config import Conditioning

Q_RANGE = (4.0, 64.0)
BAND = (20.0, 500.0)
"""Hertz, of a Q-scan."""

LOUDEST_COLOUR = 25.0
"""Normalised energy at the end of the colour scale, as the field's Q-scans have it."""

AROUND = 4.0
"""Seconds on each side of an event that its Q-scans are made of."""

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


def whitened_around(path: Path, ifos: Sequence[str], conditioning: Conditioning, start: float, stop: float) -> WhitenedStretch:
    """Strain of a background file whitened from `start` to `stop` with the PSD of the time before, as the search whitens it.

    At a file's beginning, where there is no such time, the stretch begins as soon as there is.

    Raises:
        StrainError: the file cannot be read.
        ValueError: [start, stop) leaves no whitened sample in the file.
    """
    import torch

    from aframe_assets.strain.background_file import parse_background_name, read_background
    from aframe_assets.strain.conditioning import Whitener

    c, (gps, duration) = conditioning, parse_background_name(path)
    half = c.fduration / 2
    first = max(gps, start - half - c.psd_length)
    last = min(gps + duration, stop + half)
    if last - first <= c.psd_length + c.fduration:
        raise ValueError(
            f"{path}: no whitened strain at GPS {start:.2f} to {stop:.2f}; the file begins at {gps:.14g}, PSDs take {c.psd_length:g} s"
        )
    strain = read_background(path, list(ifos), start=first, stop=last)
    white = Whitener(c, strain.sample_rate)(torch.as_tensor(strain.stacked())).numpy()
    begins = strain.gps_start + c.psd_length + half
    return WhitenedStretch(dict(zip(strain.ifos, white, strict=True)), begins, strain.sample_rate)


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


def event_plot(stretch: WhitenedStretch, time: float, title: str, shown: tuple[float, float] = (1.5, 0.5)) -> bytes:
    """Whitened strain above the Q-scan, a column for each detector.

    Args:
        stretch: some seconds around the event; Q-scans are of all of it.
        time: of the event, GPS seconds; a dashed line.
        title: above all.
        shown: seconds before and after `time` that are shown.
    """
    figure = figure_of(3.4 * len(stretch.strain) + 0.6, 4.4)
    panels = figure.subplots(2, len(stretch.strain), squeeze=False, sharex=True, height_ratios=(1, 1.6), sharey="row")
    seconds, mesh = stretch.gps_start - time + np.arange(len(next(iter(stretch.strain.values())))) / stretch.sample_rate, None
    near = (seconds >= -shown[0]) & (seconds < shown[1])
    for (trace, scan), (ifo, x) in zip(panels.T, stretch.strain.items(), strict=True):
        trace.plot(seconds[near], x[near], lw=0.5)
        frequencies, energy = q_scan(x, stretch.sample_rate)
        at = np.linspace(seconds[0], seconds[-1], energy.shape[1])
        use = (at >= -shown[0]) & (at < shown[1])
        mesh = scan.pcolormesh(at[use], frequencies, energy[:, use], vmin=0, vmax=LOUDEST_COLOUR, rasterized=True)
        scan.set(yscale="log", xlabel=f"seconds from GPS {time:.3f}", ylim=(frequencies[0], frequencies[-1]))
        scan.set_yticks([30, 50, 100, 200, 400], ["30", "50", "100", "200", "400"])
        scan.minorticks_off()
        for axes in (trace, scan):
            axes.axvline(0, color="k" if axes is trace else "w", ls="--", lw=0.7)
        trace.set_title(ifo, fontsize="medium")
    panels[0, 0].set_ylabel("whitened strain [σ]")
    panels[1, 0].set_ylabel("frequency [Hz]")
    figure.colorbar(mesh, ax=panels[1].tolist(), label="normalised energy", pad=0.01)
    figure.suptitle(title, fontsize="medium")
    return png_of(figure)
