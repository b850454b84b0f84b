"""Inference over strain that arrives in chunks, with all state carried across them.

Machines that each equal their one-shot result whatever the chunking:

* `StreamingWhitener`: strain of one detector in, whitened strain out, in blocks on the detector's own grid. Block b is
  whitened with the PSD of the psd_length seconds before its input ('preceding'), or with one given PSD ('segment');
* `WindowSnapshotter`: whitened streams in, overlapping windows out;
* `aframe_assets.inference.frame_stream.FrameStream`: whitened streams in, scores out, for networks whose frames windows share.

`StreamingScorer` joins them with an engine. Since the blocks belong to the detector and not to a slide, a detector is
whitened once for all slides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from aframe_assets.strain.conditioning import Whitener


class Scorer(Protocol):
    """What this room needs of any engine: windows (batch, ifo, kernel + 2 context) float32 -> one score each (batch,)."""

    def score_windows(self, windows: np.ndarray) -> np.ndarray: ...


class StreamingWhitener:
    """Whitens one detector's strain block by block.

    Attributes:
        settle: samples spent at the start on the first PSD; 0 with a given PSD.
        crop: samples lost at each end, half of fduration.
        psds: the PSD of each block so far, for whitening signals in the same way.

    Args:
        whitener: conditioning of the experiment.
        block: samples of whitened output that share a PSD, >= 1.
        psd: [freq], 1/Hz; the PSD of all blocks. None takes the psd_length seconds before each block's input.
    """

    def __init__(self, whitener: Whitener, block: int, psd: torch.Tensor | None = None) -> None:
        if block < 1:
            raise ValueError(f"a PSD block of {block} samples; expected at least 1")
        self.whitener, self.block, self.fixed = whitener, block, psd
        self.crop = whitener.crop
        self.settle = 0 if psd is not None else round(whitener.psd_length * whitener.sample_rate)
        self.psds: list[torch.Tensor] = []
        self._buffer: list[np.ndarray] = []
        self._held = 0

    def update(self, strain: np.ndarray) -> np.ndarray:
        """Whitened samples that `strain` (any length, contiguous with the last call) completes, float32."""
        self._buffer.append(np.asarray(strain, dtype=np.float64))
        self._held += len(strain)
        full = self.settle + self.block + 2 * self.crop
        if self._held < full:
            return np.empty(0, np.float32)
        data, out = np.concatenate(self._buffer), []
        while len(data) >= full:
            out.append(self._whiten(data[:full]))
            data = data[self.block :]
        self._buffer, self._held = [data.copy()], len(data)
        return np.concatenate(out)

    def finish(self) -> np.ndarray:
        """The last, shorter block; the stream has ended."""
        data = np.concatenate(self._buffer) if self._buffer else np.empty(0)
        self._buffer, self._held = [], 0
        if len(data) <= self.settle + 2 * self.crop:
            return np.empty(0, np.float32)
        return self._whiten(data)

    def _whiten(self, data: np.ndarray) -> np.ndarray:
        psd = self.fixed if self.fixed is not None else self.whitener.psd(torch.from_numpy(data[: self.settle]))
        self.psds.append(psd)
        return self.whitener.whiten(torch.from_numpy(data[self.settle :])[None], psd[None])[0].numpy()


class WindowSnapshotter:
    """Cuts streams into overlapping windows; keeps the samples that later windows still need.

    The first window ends where the first `kernel` samples do: no window ever holds made-up samples.

    Args:
        num_ifos: streams.
        kernel: samples of a window, with its context.
        stride: samples between windows.
        skip: samples before the first window.
    """

    def __init__(self, num_ifos: int, kernel: int, stride: int, skip: int = 0) -> None:
        self.kernel, self.stride = kernel, stride
        self._state = np.empty((num_ifos, 0), np.float32)
        self._skip = skip

    def update(self, streams: np.ndarray) -> np.ndarray:
        """Windows that `streams` (ifo, any length) completes: (n, ifo, kernel) float32, a view."""
        data = np.concatenate([self._state, streams], axis=1)
        if self._skip:
            dropped = min(self._skip, data.shape[1])
            data, self._skip = data[:, dropped:], self._skip - dropped
        count = max(0, (data.shape[1] - self.kernel) // self.stride + 1)
        if not count:
            self._state = data
            return np.empty((0, len(data), self.kernel), np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(data, self.kernel, axis=1)[:, :: self.stride][:, :count]
        used = count * self.stride
        # a stride longer than the kernel leaves samples that have not arrived yet to be skipped
        self._state, self._skip = data[:, used:].copy(), max(0, used - data.shape[1])
        return windows.transpose(1, 0, 2)


def in_batches(engine: Scorer, windows: np.ndarray, batch: int) -> np.ndarray:
    """Scores of `windows` (n, ifo, kernel), float64 (n,).

    Every call of the engine has exactly `batch` windows, the last padded with zeros: results do not depend on how
    an engine treats batches of different size.
    """
    out = np.empty(len(windows), np.float64)
    padded = np.zeros((batch, *windows.shape[1:]), np.float32)
    for i in range(0, len(windows), batch):
        part = windows[i : i + batch]
        padded[: len(part)] = part
        padded[len(part) :] = 0
        out[i : i + len(part)] = engine.score_windows(padded)[: len(part)]
    return out


class _Windows:
    """Whitened streams in, scores of windows out, a batch at a time."""

    def __init__(self, engine: Any, num_ifos: int, kernel: int, stride: int, batch: int) -> None:
        self.engine, self.batch = engine, batch
        context = getattr(engine, "context", 0)
        # kernels start at multiples of the stride
        self._fresh = lambda: WindowSnapshotter(num_ifos, kernel + 2 * context, stride, -context % stride)
        self._snapshotter, self._waiting = self._fresh(), []

    def update(self, whitened: np.ndarray) -> np.ndarray:
        self._waiting.extend(self._snapshotter.update(whitened))
        return self._score(len(self._waiting) // self.batch * self.batch)

    def finish(self) -> np.ndarray:
        self._snapshotter = self._fresh()
        return self._score(len(self._waiting))

    def _score(self, count: int) -> np.ndarray:
        if not count:
            return np.empty(0)
        ready, self._waiting = np.stack(self._waiting[:count]), self._waiting[count:]
        return in_batches(self.engine, ready, self.batch)


class _Frames:
    """The same for a network of frames or maps, a block at a time."""

    def __init__(self, engine: Any, stride: int) -> None:
        from aframe_assets.inference.frame_stream import FrameStream

        self._stream = FrameStream(engine, stride)

    def update(self, whitened: np.ndarray) -> np.ndarray:
        return self._stream.update(whitened)[1]

    def finish(self) -> np.ndarray:
        return self._stream.finish()[1]


class StreamingScorer:
    """Strain of all detectors in, one score per window out.

    Window i of a stretch has its kernel i strides after the first whitened sample; windows whose context reaches over either end
    of the data have no score.

    Args:
        whiteners: one per detector, equal settings.
        engine: the network; one whose `form` is not 'windows' goes over shared frames.
        kernel, stride: samples.
        batch: windows per engine call. Scores wait until a call is full, so that every chunking makes the same calls.
    """

    def __init__(self, whiteners: Sequence[StreamingWhitener], engine: Scorer, kernel: int, stride: int, batch: int) -> None:
        self.whiteners = list(whiteners)
        windowed = getattr(engine, "form", "windows") == "windows"
        self._machine = _Windows(engine, len(self.whiteners), kernel, stride, batch) if windowed else _Frames(engine, stride)

    def update(self, strain: np.ndarray) -> np.ndarray:
        """Scores that `strain` (ifo, any length) completes, float64."""
        return self._machine.update(np.stack([w.update(x) for w, x in zip(self.whiteners, strain, strict=True)]))

    def finish(self) -> np.ndarray:
        """Scores of what is left; the stretch has ended. Strain that comes later, after a gap, is another stretch."""
        last = self._machine.update(np.stack([w.finish() for w in self.whiteners]))
        return np.concatenate([last, self._machine.finish()])


def pieces(size: int, step: int) -> Iterator[slice]:
    """Slices of at most `step` that cover range(size)."""
    for i in range(0, size, step):
        yield slice(i, min(i + step, size))
