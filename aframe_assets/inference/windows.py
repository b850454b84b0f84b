"""Windows of slid streams: where they start in each detector, and their scores one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aframe_assets.inference.scoring import Change, Layout, NetworkScorer
from aframe_assets.inference.streaming import Scorer


@dataclass(frozen=True)
class SlidWindows:
    """Windows over whitened streams of which detector c is read `offsets[c]` samples later.

    Attributes:
        streams: one array per detector.
        offsets: samples, >= 0.
        kernel: samples of a window without its context.
        ring: samples of the ring, or 0 when the overlap is cut. No window crosses the seam of a ring.
        context: samples on each side of the kernel that belong to the window too.
    """

    streams: Sequence[np.ndarray]
    offsets: tuple[int, ...]
    kernel: int
    ring: int = 0
    context: int = 0

    def starts(self, frame: np.ndarray) -> np.ndarray:
        """Own-time start samples (ifo, n) of kernels that start at `frame` samples of the unshifted frame."""
        own = np.asarray(frame, np.int64)[None] + np.asarray(self.offsets, np.int64)[:, None]
        return own % self.ring if self.ring else own

    def inside(self, frame: np.ndarray) -> np.ndarray:
        """Which windows lie in the data of every detector, context included (n,)."""
        own = self.starts(frame)
        size = self.ring or min(len(s) for s in self.streams)
        return ((own >= self.context) & (own + self.kernel + self.context <= size)).all(axis=0)

    def score(self, engine: Scorer, frame: np.ndarray, batch: int) -> np.ndarray:
        """Scores (n,) float64 of windows whose kernels start at `frame`; NaN where a window is not inside.

        Every call has `batch` windows, the last filled with zeros. One batch is in memory at a time, or as many as an engine that
        has several calls under way takes at once (`Engine.together`); the scores do not depend on it.
        """
        together = batch * max(1, engine.together // batch) if getattr(engine, "calls", 1) > 1 else batch
        frame = np.asarray(frame, np.int64)
        out = np.full(len(frame), np.nan)
        chosen = np.flatnonzero(self.inside(frame))
        own, window = self.starts(frame[chosen]) - self.context, self.kernel + 2 * self.context
        views = [np.lib.stride_tricks.sliding_window_view(s, window) for s in self.streams] if len(chosen) else []
        batches = min(together // batch, -(-len(chosen) // batch))
        buffer = np.zeros((batches * batch, len(self.streams), window), np.float32)
        for i in range(0, len(chosen), together):
            part = chosen[i : i + together]
            for c, view in enumerate(views):
                buffer[: len(part), c] = view[own[c, i : i + together]]
            buffer[len(part) :] = 0
            filled = buffer[: -(-len(part) // batch) * batch]
            scores = engine.score_windows(filled) if together == batch else engine.score_windows(filled, batch)
            out[part] = scores[: len(part)]
        return out


class WindowScorer(NetworkScorer):
    """Every window by itself, in calls of `batch` windows of one slide.

    Args:
        engine: any network.
        streams: whitened, one array per detector.
        layout: of the windows.
        batch: windows per engine call.
    """

    def __init__(self, engine: Scorer, streams: Sequence[np.ndarray], layout: Layout, batch: int) -> None:
        self.engine, self.streams, self.layout, self.batch = engine, streams, layout, batch

    def scores(self, offsets: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """See `SlideScorer.scores`."""
        at, out = self.layout, np.full(wanted.shape, np.nan)
        for row, (own, chosen) in enumerate(zip(np.asarray(offsets).tolist(), wanted, strict=True)):
            output = np.flatnonzero(chosen)
            slid = SlidWindows(self.streams, tuple(own), at.kernel, at.ring, at.context)
            out[row, output] = slid.score(self.engine, output * at.stride, self.batch)
        self.evaluated += int(wanted.sum())
        return out

    def changed(self, change: Change) -> WindowScorer:
        """See `NetworkScorer.changed`."""
        return WindowScorer(self.engine, change.streams, self.layout, self.batch)


def needed(valid: np.ndarray, boxcar: int) -> np.ndarray:
    """Windows (..., n) that some valid integrated output looks back on: the output itself and the boxcar - 1 before it."""
    ahead = np.concatenate([valid, np.zeros((*valid.shape[:-1], boxcar - 1), bool)], axis=-1)
    out = np.zeros_like(valid)
    for k in range(boxcar):
        out |= ahead[..., k : k + valid.shape[-1]]
    return out
