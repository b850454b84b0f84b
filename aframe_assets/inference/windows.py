"""Windows of slid streams: where they start in each detector, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aframe_assets.inference.streaming import Scorer


@dataclass(frozen=True)
class SlidWindows:
    """Windows over whitened streams of which detector c is read `offsets[c]` samples later.

    Attributes:
        streams: one array per detector.
        offsets: samples, >= 0.
        kernel: samples of a window.
        ring: samples of the ring, or 0 when the overlap is cut. No window crosses the seam of a ring.
    """

    streams: Sequence[np.ndarray]
    offsets: tuple[int, ...]
    kernel: int
    ring: int = 0

    def starts(self, frame: np.ndarray) -> np.ndarray:
        """Own-time start samples (ifo, n) of windows that start at `frame` samples of the unshifted frame."""
        own = np.asarray(frame, np.int64)[None] + np.asarray(self.offsets, np.int64)[:, None]
        return own % self.ring if self.ring else own

    def inside(self, frame: np.ndarray) -> np.ndarray:
        """Which windows lie in the data of every detector (n,)."""
        own = self.starts(frame)
        size = self.ring or min(len(s) for s in self.streams)
        return ((own >= 0) & (own + self.kernel <= size)).all(axis=0)

    def score(self, engine: Scorer, frame: np.ndarray, batch: int) -> np.ndarray:
        """Scores (n,) float64 of windows that start at `frame`; NaN where a window is not inside.

        One batch of windows is in memory at a time; every engine call has `batch` windows, the last filled with zeros.
        """
        frame = np.asarray(frame, np.int64)
        out = np.full(len(frame), np.nan)
        chosen = np.flatnonzero(self.inside(frame))
        own = self.starts(frame[chosen])
        views = [np.lib.stride_tricks.sliding_window_view(s, self.kernel) for s in self.streams] if len(chosen) else []
        buffer = np.zeros((batch, len(self.streams), self.kernel), np.float32)
        for i in range(0, len(chosen), batch):
            part = chosen[i : i + batch]
            for c, view in enumerate(views):
                buffer[: len(part), c] = view[own[c, i : i + batch]]
            buffer[len(part) :] = 0
            out[part] = engine.infer(buffer)[: len(part)]
        return out


def needed(valid: np.ndarray, boxcar: int) -> np.ndarray:
    """Windows that some valid integrated output looks back on: the output itself and the boxcar - 1 before it."""
    ahead = np.concatenate([valid, np.zeros(boxcar - 1, bool)])
    out = np.zeros_like(valid)
    for k in range(boxcar):
        out |= ahead[k : k + len(valid)]
    return out
