"""Scores of slides from the shared frames of a joint network: each stretch of a slide goes through it once, at any inference rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from aframe_assets.inference.blocks import BlockEngine, Row, require_steps, through
from aframe_assets.inference.scoring import Change, Layout, NetworkScorer, Runs


class Pooling:
    """Logits of windows from frames that arrive in parts; keeps the frames that later windows still need.

    Args:
        head: the network in torch, for its `slide`.
        size, hop: frames of a window and between windows.
        skip: frames before the first window.
    """

    def __init__(self, head: torch.nn.Module, size: int, hop: int, skip: int = 0) -> None:
        self.head, self.size, self.hop = head, size, hop
        self._frames: torch.Tensor | None = None
        self._skip = skip

    def update(self, frames: torch.Tensor) -> np.ndarray:
        """Logits (n,) float64 of the windows that `frames` (channels, any number) complete; window i starts `hop` frames after i - 1."""
        held = frames if self._frames is None else torch.cat([self._frames, frames], 1)
        if self._skip:
            dropped = min(self._skip, held.shape[1])
            held, self._skip = held[:, dropped:], self._skip - dropped
        count = max(0, (held.shape[1] - self.size) // self.hop + 1)
        used = count * self.hop
        if not count:
            self._frames = held.clone()
            return np.empty(0)
        with torch.inference_mode():
            out = self.head.slide(held[None, :, : used - self.hop + self.size], self.size, self.hop)[0]
        # where windows do not overlap, frames between them that have not arrived yet are not wanted
        self._frames, self._skip = held[:, used:].clone(), max(0, used - held.shape[1])
        return out.double().cpu().numpy()


class FrameScorer(NetworkScorer):
    """A network whose frames depend on all detectors together.

    Args:
        engine: of form 'frames'.
        streams: whitened, one array per detector.
        layout: of the windows; kernel, stride, context and ring are multiples of the network's total stride.

    Raises:
        ValueError: they are not.
    """

    def __init__(self, engine: BlockEngine, streams: Sequence[np.ndarray], layout: Layout) -> None:
        require_steps(engine, kernel=layout.kernel, stride=layout.stride, context=layout.context, ring=layout.ring)
        self.engine, self.streams, self.layout = engine, streams, layout
        self._device = next(engine.head.parameters()).device

    def scores(self, offsets: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """See `SlideScorer.scores`."""
        require_steps(self.engine, offsets=np.asarray(offsets))
        at, out = self.layout, np.full(wanted.shape, np.nan)
        # windows that are left out cost less than a new stretch with its context
        runs = Runs.of(at, offsets, wanted, gap=(at.kernel + 2 * at.context) // at.stride)
        if not len(runs.slide):
            return out
        sizes = (runs.count - 1) * at.stride + at.kernel
        rows = [Row(s, runs.start[:, c], sizes, at.context, at.stride) for c, s in enumerate(self.streams)]
        pooling = Pooling(self.engine.head, at.kernel // self.engine.stride, at.stride // self.engine.stride)
        made = np.concatenate(
            [pooling.update(torch.from_numpy(frames).to(self._device).transpose(0, 1).flatten(1)) for frames in through(self.engine, rows)]
        )
        for slide, first, count, where in zip(runs.slide, runs.first, runs.count, rows[0].at // at.stride, strict=True):
            out[slide, first : first + count] = made[where : where + count]
        out[~wanted] = np.nan
        self.evaluated += int(wanted.sum())
        return out

    def changed(self, change: Change) -> FrameScorer:
        """See `NetworkScorer.changed`."""
        return FrameScorer(self.engine, change.streams, self.layout)
