"""The head of a factorised network over many slides of the same maps: `MapNet.combine` and `.slide`, without copies of the maps.

A slide only chooses where each detector's map is read. Everything between the maps and the pooled pieces of a few frames that
windows share stays in the processor's cache; what leaves it is a hundredth of the maps. On a GPU the same runs over a batch of
slides at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from aframe_assets.model.lag_map import MapNet

_CACHE = 400_000
"""Bytes of similarities made at a time on a CPU: with what they are made of they stay in its second-level cache."""

_OUTPUTS = 4096
"""Windows of a slide pooled together."""

_BATCH = 256_000_000
"""Bytes of similarities made at a time on a GPU."""


class SlideHead:
    """Scores of windows over maps of which each detector's is read at its own frame.

    Args:
        network: whose head it is; in evaluation mode.
        size, hop: frames of a window and between windows.
        batched: many runs at a time, as suits a GPU; None: where the maps are on one.
    """

    def __init__(self, network: MapNet, size: int, hop: int, batched: bool | None = None) -> None:
        self.network, self.size, self.hop, self.batched = network, size, hop, batched
        self.hidden = network.single[0].out_channels
        self.piece = math.gcd(size, hop)
        self.many, self.step = size // self.piece, hop // self.piece

    def __call__(self, maps: Sequence[Tensor], starts: np.ndarray, counts: np.ndarray) -> Tensor:
        """Logits (sum of counts,), run after run; as MapNet.slide(MapNet.combine(...)) but for rounding.

        Args:
            maps: for each detector (channels + hidden, frame); the numbers of frames may differ.
            starts: (run, ifo), frame of each detector's map at which the first window of the run begins.
            counts: (run,), windows of each run, `hop` apart.

        Raises:
            ValueError: a run reads beyond a map; windows need `reach` frames more on each side.
        """
        starts, counts = np.asarray(starts, np.int64).reshape(-1, len(maps)), np.asarray(counts, np.int64)
        reach, used = self.network.reach, (counts - 1) * self.hop + self.size
        for c, m in enumerate(maps):
            outside = (counts > 0) & ((starts[:, c] < reach) | (starts[:, c] + used + reach > m.shape[-1]))
            if outside.any():
                run = int(outside.argmax())
                raise ValueError(
                    f"run {run} reads frames {starts[run, c] - reach} to {starts[run, c] + used[run] + reach} of detector {c}'s map; "
                    f"expected 0 to {m.shape[-1]}"
                )
        batched = maps[0].is_cuda if self.batched is None else self.batched
        tasks = list(self._tasks(starts, counts))
        with torch.inference_mode():
            parts = self._batches(maps, tasks) if batched else (self._windows(self._run(maps, *task), task[1]) for task in tasks)
            parts = list(parts)
        return torch.cat(parts) if parts else maps[0].new_empty(0)

    def _tasks(self, starts: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        for start, count in zip(starts, counts.tolist(), strict=True):
            for first in range(0, count, _OUTPUTS):
                yield start + first * self.hop, min(_OUTPUTS, count - first)

    def _run(self, maps: Sequence[Tensor], start: np.ndarray, count: int) -> Tensor:
        """Sums over pieces, and maxima if wanted, (hidden or twice as many, piece) of `count` windows, by tiles of frames."""
        net, piece = self.network, self.piece
        frames = (count - 1) * self.hop + self.size
        rows = sum(net.groups * (2 * lag + 1) for lag in net.lags)
        tile = min(frames, max(1, _CACHE // (4 * piece * max(rows, self.hidden))) * piece)
        similar, joined = maps[0].new_empty(rows, tile), maps[0].new_empty(self.hidden, tile)
        out = maps[0].new_empty(self.hidden * (2 if net.pooling == "mean_max" else 1), frames // piece)
        for first in range(0, frames, tile):
            size = min(tile, frames - first)
            z = self._joined(maps, [int(s) + first for s in start], similar[:, :size], joined[:, :size])
            part = z.unflatten(1, (-1, piece))
            at = slice(first // piece, (first + size) // piece)
            torch.sum(part, 2, out=out[: self.hidden, at])
            if net.pooling == "mean_max":
                torch.amax(part, 2, out=out[self.hidden :, at])
        return out

    def _joined(self, maps: Sequence[Tensor], at: Sequence[int], similar: Tensor, joined: Tensor) -> Tensor:
        """`MapNet.combine` of frames that begin at `at` in each map, into `joined` (hidden, frame)."""
        net, size = self.network, joined.shape[1]
        singles = [m[net.channels :, a : a + size] for m, a in zip(maps, at, strict=True)]
        if len(singles) == 1:
            joined.copy_(singles[0])
        else:
            torch.add(*singles[:2], out=joined)
        for single in singles[2:]:
            joined.add_(single)
        if net.mix is None:
            return joined.relu_()
        first, width = 0, net.channels // net.groups
        for (i, j), lag in zip(net.pairs, net.lags, strict=True):
            rows = net.groups * (2 * lag + 1)
            into = similar[first : first + rows].unflatten(0, (-1, net.groups))
            here = maps[i][: net.channels, at[i] : at[i] + size].unflatten(0, (net.groups, width))
            # all lags are one view of the other map: (feature of a group, lag, group, frame)
            row, column = maps[j].stride()
            shape, steps = (width, 2 * lag + 1, net.groups, size), (row, column, width * row, column)
            there = maps[j].as_strided(shape, steps, maps[j].storage_offset() + (at[j] - lag) * column)
            torch.mul(here[:, 0], there[0], out=into)
            for k in range(1, width):
                into.addcmul_(here[:, k], there[k])
            first += rows
        return joined.addmm_(net.mix.weight[:, :, 0], similar).relu_()

    def _batches(self, maps: Sequence[Tensor], tasks: Sequence[tuple[np.ndarray, int]]) -> Iterator[Tensor]:
        """`_run` and `_windows` of many tasks at once; a shorter task is filled up by repeating frames, and what that gives dropped."""
        net = self.network
        rows = sum(net.groups * (2 * lag + 1) for lag in net.lags) + len(maps) * (net.channels + self.hidden)
        longest = max((count for _, count in tasks), default=1)
        frames = (longest - 1) * self.hop + self.size
        together = max(1, _BATCH // (4 * rows * frames))
        inside = torch.arange(-net.reach, frames + net.reach, device=maps[0].device)
        for i in range(0, len(tasks), together):
            part = tasks[i : i + together]
            at = torch.from_numpy(np.stack([start for start, _ in part])).to(maps[0].device)
            taken = [
                m[:, (at[:, c, None] + inside).clamp(max=m.shape[-1] - 1)].transpose(0, 1) for c, m in enumerate(maps)
            ]  # each (task, channels + hidden, frame)
            z = net.combine(taken).unflatten(2, (-1, self.piece))
            pieces = torch.cat([z.sum(3), z.amax(3)], 1) if net.pooling == "mean_max" else z.sum(3)
            logits = self._windows(pieces, longest)
            yield from (row[:count] for row, (_, count) in zip(logits, part, strict=True))

    def _windows(self, pieces: Tensor, count: int) -> Tensor:
        """Logits (..., count) from pieces (..., hidden or twice as many, piece)."""
        parts = [_sliding(pieces[..., : self.hidden, :], self.many, torch.add) / self.size]
        if self.network.pooling == "mean_max":
            parts.append(_sliding(pieces[..., self.hidden :, :], self.many, torch.maximum))
        pooled = torch.cat([p[..., :: self.step][..., :count] for p in parts], -2)
        return self.network.head(pooled.transpose(-1, -2))[..., 0]


def _sliding(x: Tensor, size: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sums or maxima of `size` neighbours (..., n - size + 1), in about log2(size) passes."""
    total, done, power, width = None, 0, x, 1
    while True:
        if size & width:
            # of the neighbours from `done` on
            total = power if total is None else join(total[..., : power.shape[-1] - done], power[..., done:])
            done += width
        if done == size:
            return total
        power, width = join(power[..., :-width], power[..., width:]), 2 * width
