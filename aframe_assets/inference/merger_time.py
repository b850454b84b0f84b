"""When did it merge: a candidate re-scored finely, its plateau, and the calibration of both on injections.

A network trained with the merger anywhere between left_pad after the left edge and right_pad before the right edge
of the kernel answers with a plateau: high while the merger is inside, low otherwise. As a function of the right edge R it
begins at merger + right_pad and ends at merger + kernel - left_pad. We fit two levels with free edges, and take the
beginning, the end or the centre, each less its part of the kernel, as a raw time. Which of them is sharpest depends on the
network (a loud inspiral may be seen before its merger is inside, which smears the beginning): injections decide, and tell
the offset and the spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aframe_assets.inference.streaming import Scorer
from aframe_assets.inference.windows import SlidWindows

EDGES = ("first", "centre", "last")
"""Points of the plateau that a raw time is taken from."""

NOMINAL_EDGE = "last"
"""Used without injections: the merger leaves the kernel at a moment, it enters it gradually."""

REACH = 3.0
"""Seconds on each side of a candidate that are re-scored."""


@dataclass(frozen=True)
class Calibration:
    """What injections say about raw merger times.

    Attributes:
        edge: point of the plateau that is used, one of EDGES: the one with the narrowest residuals.
        offset: median of raw estimate - true merger time, seconds; subtracted from every estimate.
        width90: length of the interval that holds 90 % of the residuals, seconds.
        num: injections behind it; with 0 the offset is nominal and the width that of the whole kernel.
    """

    offset: float
    width90: float
    num: int
    edge: str = NOMINAL_EDGE

    @classmethod
    def of(cls, residuals: np.ndarray, kernel_length: float) -> Calibration:
        """From raw estimates - true merger time of injections, seconds, (n, len(EDGES)); rows that are not finite are left out."""
        residuals = np.asarray(residuals, float).reshape(-1, len(EDGES))
        residuals = residuals[np.isfinite(residuals).all(axis=1)]
        if not len(residuals):
            return cls(0.0, kernel_length, 0)
        low, high = np.quantile(residuals, [0.05, 0.95], axis=0)
        best = int(np.argmin(high - low))
        return cls(float(np.median(residuals[:, best])), float(high[best] - low[best]), len(residuals), EDGES[best])

    @classmethod
    def nominal(cls, bundle: Mapping[str, Any], kernel_length: float) -> Calibration:
        """Without injections: the end of the plateau, known to a kernel.

        Training shows mergers up to left_pad from the kernel's left edge and says nothing of those beyond, so the plateau ends
        where the merger is between left_pad and the edge; half of it is taken.

        Args:
            bundle: a model's description.
            kernel_length: seconds.
        """
        return cls(-bundle.get("placement", {}).get("left_pad", 0.0) / 2, kernel_length, 0)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Calibration:
        return cls(float(meta["offset"]), float(meta["width90"]), int(meta["num"]), str(meta["edge"]))

    def as_meta(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Rescorer:
    """Scores around a candidate, finely.

    Attributes:
        windows: streams of the slide that the candidate was found in.
        engine: the network.
        whitened_start: GPS seconds of sample 0 of the unshifted frame.
        sample_rate: Hz.
        kernel_length, integration: seconds.
        rate: windows per second wanted; the next rate above whose step is a whole number of samples is used.
        batch: windows per engine call.
        early: seconds that the event-time convention puts events before right edge - integration (0 but for upstream V1).
    """

    windows: SlidWindows
    engine: Scorer
    whitened_start: float
    sample_rate: float
    kernel_length: float
    integration: float
    rate: float
    batch: int
    early: float = 0.0

    def scores(self, right_edge: float) -> tuple[np.ndarray, np.ndarray]:
        """Right edges (GPS seconds) within REACH of `right_edge`, and their scores; windows outside the data are left out."""
        step = max(1, int(self.sample_rate // self.rate))
        centre = round((right_edge - self.whitened_start) * self.sample_rate) - self.windows.kernel
        count = int(REACH * self.sample_rate) // step
        frame = centre + np.arange(-count, count + 1) * step
        frame = frame[frame >= 0]
        scores = self.windows.score(self.engine, frame, self.batch)
        kept = np.isfinite(scores)
        return self.whitened_start + (frame[kept] + self.windows.kernel) / self.sample_rate, scores[kept]

    def raw(self, detection_time: float) -> np.ndarray:
        """Uncalibrated merger times of the event at `detection_time` from each of EDGES, GPS seconds; NaN without a plateau."""
        right_edge = detection_time + self.integration + self.early
        return raw_times(*self.scores(right_edge), right_edge, self.kernel_length, self.integration)


def raw_times(edges: np.ndarray, scores: np.ndarray, right_edge: float, kernel_length: float, integration: float) -> np.ndarray:
    """Uncalibrated merger times of an event from each of EDGES, GPS seconds; NaN without a plateau.

    Args:
        edges: right edges of windows around the event, ascending, GPS seconds.
        scores: of those windows.
        right_edge: of the window at which the event was found.
        kernel_length, integration: seconds.
    """
    # the integrated output peaks once the plateau is inside the integration window; half a kernel of slack
    found = plateau(edges, scores, right_edge - integration - kernel_length / 2, right_edge + kernel_length / 2)
    if found is None:
        return np.full(len(EDGES), np.nan)
    first, last = found
    return np.array([first, (first + last) / 2 - kernel_length / 2, last - kernel_length])


def merger_time(rescorer: Rescorer, detection_time: float, calibration: Calibration) -> tuple[float, float] | None:
    """Merger time in GPS seconds and its 90 % width in seconds, or None when no plateau is found."""
    raw = float(rescorer.raw(detection_time)[EDGES.index(calibration.edge)])
    return None if np.isnan(raw) else (raw - calibration.offset, calibration.width90)


def plateau(right_edges: np.ndarray, scores: np.ndarray, low: float, high: float) -> tuple[float, float] | None:
    """First and last right edge of the plateau, by least squares of two levels; None when there is none.

    Scores are clipped between their median (the plateau is the smaller part of the stretch) and their 95th percentile,
    so that neither a deep trough nor one spike decides.

    Args:
        right_edges: ascending, seconds.
        scores: of the same length.
        low, high: the centre of the plateau lies in [low, high].
    """
    n = len(scores)
    if n < 3:
        return None
    base, top = np.quantile(scores, [0.5, 0.95])
    if not top > base:
        return None
    y = np.clip(scores, base, top)
    y = y - y.mean()
    total = np.concatenate([[0.0], np.cumsum(y)])
    first, last = np.triu_indices(n)
    size = last - first + 1
    # with zero mean, the variance explained by "one level in [first, last], one outside" is sum^2 n / (size (n - size))
    inside = total[last + 1] - total[first]
    centre = (right_edges[first] + right_edges[last]) / 2
    fits = (size < n) & (inside > 0) & (centre >= low) & (centre <= high)
    if not fits.any():
        return None
    gain = np.where(fits, inside**2 / (size * np.maximum(n - size, 1)), -1.0)
    best = int(np.argmax(gain))
    return float(right_edges[first[best]]), float(right_edges[last[best]])
