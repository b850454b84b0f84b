"""A network of frames or maps over whitened streams that arrive in chunks of any length: the state machine of one stretch of data.

What is carried from chunk to chunk are the last samples that later frames still need (twice the context, and what is not yet a whole
step) and the frames that later windows still need. A gap ends the stretch and begins another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from aframe_assets.inference.blocks import BlockEngine, require_steps
from aframe_assets.inference.frames import Pooling


class FrameStream:
    """Whitened streams in, scores of windows out.

    Windows lie where those of `aframe_assets.inference.slides` do: kernels start at multiples of `hop` samples from the start of
    the stretch, and a window is scored only if its context is data too.

    Args:
        engine: of form 'frames' or 'maps'; all detectors are read at the same time.
        hop: samples between windows, a multiple of the network's total stride.
        eager: make frames as soon as there is data for a step of them, by ``engine.head``, instead of a block at a time by the engine.
            Scores then come without delay; they are the same but for rounding.

    Raises:
        ValueError: `hop` is not whole steps.
    """

    def __init__(self, engine: BlockEngine, hop: int, eager: bool = False) -> None:
        require_steps(engine, hop=hop, kernel=engine.kernel, context=engine.context)
        self.engine, self.hop, self.eager = engine, hop, eager
        self.device = next(engine.head.parameters()).device
        # the first kernel that has its context
        self._lead = -(-engine.context // hop) * hop
        self._begin(0)

    def _begin(self, start: int) -> None:
        engine = self.engine
        self._data: np.ndarray | None = None
        self._end, self._window = start, start + self._lead
        skip = (self._lead - engine.context) // engine.stride
        self._pooling = Pooling(engine.head, engine.kernel // engine.stride, self.hop // engine.stride, skip)

    def update(self, streams: np.ndarray, start: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Windows that `streams` completes: sample at which each kernel starts (n,) int64, and its score (n,) float64.

        Args:
            streams: (ifo, any length) whitened samples.
            start: sample that they begin with; None: they follow the last ones. If it is another than the next, there is a gap:
                what can still be scored before it is, and a new stretch begins at `start`.

        Raises:
            ValueError: `start` is before the end of what came already, or not finite data of all detectors.
        """
        streams = np.asarray(streams, np.float32)
        if streams.ndim != 2 or not np.isfinite(streams).all():
            raise ValueError(f"streams of shape {streams.shape}; expected finite whitened samples (ifo, time)")
        found = []
        if start is not None and start != self._end:
            if start < self._end:
                raise ValueError(f"samples from {start} on, {self._end} is the next; expected data in the order of time")
            found.append(self.finish())
            self._begin(start)
        self._data = streams if self._data is None else np.concatenate([self._data, streams], axis=1)
        self._end += streams.shape[1]
        found.append(self._score(self._ready(self.engine.total_stride if self.eager else self.engine.block)))
        return _joined(found)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Windows of what is left; the stretch has ended, and the next data begin another."""
        found = self._score(self._ready(self.engine.total_stride))
        self._begin(self._end)
        return found

    def _ready(self, step: int) -> int:
        """Samples whose frames can be made now, in whole steps."""
        held = 0 if self._data is None else self._data.shape[1]
        return max(0, (held - 2 * self.engine.context) // step) * step

    def _score(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames of the next `size` samples and the windows that they complete."""
        if not size:
            return _joined([])
        context, block = self.engine.context, size if self.eager else self.engine.block
        scores = []
        for first in range(0, size, block):
            data = self._data[None, :, first : first + block + 2 * context]
            used = min(block, size - first)
            if data.shape[2] < block + 2 * context:
                data = np.pad(data, ((0, 0), (0, 0), (0, block + 2 * context - data.shape[2])))
            frames = self._frames(data)[:, : used // self.engine.stride]
            scores.append(self._pooling.update(frames))
        self._data = self._data[:, size:].copy()
        values = np.concatenate(scores)
        starts = self._window + self.hop * np.arange(len(values), dtype=np.int64)
        self._window += self.hop * len(values)
        return starts, values

    def _frames(self, data: np.ndarray) -> torch.Tensor:
        """(channels, frame) of data (1, ifo, any + 2 context)."""
        head: Any = self.engine.head
        with torch.inference_mode():
            if self.eager:
                return head.frames(torch.from_numpy(np.ascontiguousarray(data)).to(self.device))[0]
            made = torch.from_numpy(self.engine.infer(data)).to(self.device)
            return (head.combine(made.unbind(1)) if self.engine.form == "maps" else made)[0]


def _joined(found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([np.empty(0, np.int64), *(s for s, _ in found)]), np.concatenate([np.empty(0), *(v for _, v in found)])
