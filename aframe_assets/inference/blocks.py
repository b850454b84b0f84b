"""Stretches of streams through a network that takes blocks of a fixed size, with nothing computed twice but the context.

Stretches are laid side by side, each with its own context, and the row of them is cut into the network's blocks, which overlap by
the context (overlap-save). A frame that has its context is the same wherever it lies, so a stretch need not start with a block,
and a block may hold the end of one stretch and the beginning of the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np


class BlockEngine(Protocol):
    """What a network of frames or maps offers; see `aframe_assets.engine.engine.Engine`.

    Attributes:
        form: 'frames' or 'maps'.
        kernel, context, stride, total_stride, block: samples.
        together: blocks that are best asked for at once.
        head: the network in torch.
    """

    form: str
    kernel: int
    context: int
    stride: int
    total_stride: int
    block: int
    together: int
    head: Any

    def infer(self, x: np.ndarray) -> np.ndarray:
        """(n, ifo, block + 2 context) -> frames (n, channels, frame) or maps (n, ifo, channels + hidden, frame + 2 reach)."""
        ...


class Row:
    """Stretches of one detector's stream side by side.

    Args:
        stream: whitened samples; beyond its ends there are zeros.
        starts, sizes: samples of the stream whose frames are wanted, for each stretch.
        context: samples that each stretch has on both sides as well.
        unit: every stretch begins at a multiple of `unit` samples of the row.

    Attributes:
        at: where in the row the frames of each stretch begin, samples.
        length: samples of the row that are worth frames.
    """

    def __init__(self, stream: np.ndarray, starts: np.ndarray, sizes: np.ndarray, context: int, unit: int) -> None:
        self.stream, self.starts, self.context = stream, np.asarray(starts, np.int64), context
        self.sizes = np.asarray(sizes, np.int64)
        taken = -(-(self.sizes + 2 * context) // unit) * unit
        self.at = np.concatenate([[0], np.cumsum(taken)[:-1]]) if len(taken) else np.empty(0, np.int64)
        self.length = int(self.at[-1] + self.sizes[-1]) if len(taken) else 0

    def read(self, first: int, out: np.ndarray) -> None:
        """What a network must see to make frames from sample `first` of the row on: the row and the context, len(out) samples."""
        out[:] = 0
        stop = first + len(out)
        low = int(np.searchsorted(self.at, first, side="right")) - 1
        for i in range(max(low, 0), int(np.searchsorted(self.at, stop))):
            a, b = max(first, int(self.at[i])), min(stop, int(self.at[i] + self.sizes[i]) + 2 * self.context)
            own = int(self.starts[i]) - self.context + a - int(self.at[i])
            left, right = max(0, -own), max(0, own + b - a - len(self.stream))
            if b - a > left + right:
                out[a - first + left : b - first - right] = self.stream[own + left : own + b - a - right]


def through(engine: BlockEngine, rows: Sequence[Row]) -> Iterator[np.ndarray]:
    """What `engine` makes of rows (one per detector), some blocks at a time: (n, ...) for n blocks next to each other.

    Rows are filled up with zeros to the longest and to whole blocks.
    """
    count, size = -(-max(row.length for row in rows) // engine.block), engine.block + 2 * engine.context
    for i in range(0, count, engine.together):
        data = np.empty((min(engine.together, count - i), len(rows), size), np.float32)
        for k, block in enumerate(data):
            for row, out in zip(rows, block, strict=True):
                row.read((i + k) * engine.block, out)
        yield engine.infer(data)


def require_steps(engine: BlockEngine, **samples: object) -> None:
    """Refuse moves of the data after which frames would be others.

    Args:
        engine: of frames or maps.
        samples: name of what is moved -> samples, a number or several.

    Raises:
        ValueError: not whole steps of the total stride.
    """
    for name, value in samples.items():
        if (np.asarray(value) % engine.total_stride).any():
            raise ValueError(
                f"{name} of {value} samples; expected multiples of the network's total stride, {engine.total_stride} samples: "
                "only then a frame serves the windows of every slide"
            )
