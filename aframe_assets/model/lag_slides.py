"""The head of a factorised network over many slides of the same maps: `MapNet.combine` and `.slide`, without copies of the maps.

A slide only chooses where each detector's map is read. Everything between the maps and the pooled pieces of a few frames that
windows share stays in the processor's cache; what leaves it is a hundredth of the maps. Slides take turns at a tile, since they
read nearly the same frames of the maps. On a GPU the same runs over a batch of slides at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aframe_assets.model.lag_map import MapNet

_TILE = 1024
"""Frames joined at a time on a CPU: with the maps that they come from they stay in its second-level cache."""

_OUTPUTS = 4096
"""Windows of a slide pooled together."""

_PIECES = 64_000_000
"""Bytes of pooled pieces of slides that take turns, on a CPU."""

JOINED_AT_ONCE = 1_000_000_000
"""Bytes of maps and similarities of slides that are joined at once, on a GPU."""

Task = tuple[np.ndarray, int]
"""Frame of each map at which a first window begins, and a number of windows."""


@dataclass(frozen=True)
class DetectorMap:
    """A detector's map, `MapNet.encode`, in the layout that the head reads fastest.

    Attributes:
        query: (channels, frame), features to be compared.
        single: (frame, hidden), what stands for the detector alone.
    """

    query: Tensor
    single: Tensor

    @classmethod
    def of(cls, network: MapNet, whole: Tensor) -> DetectorMap:
        """From (channels + hidden, frame); the query is a view of it."""
        return cls(whole[: network.channels], whole[network.channels :].t().contiguous())

    @property
    def frames(self) -> int:
        return self.single.shape[0]


class SlideHead:
    """Scores of windows over maps of which each detector's is read at its own frame.

    Args:
        network: whose head it is; in evaluation mode.
        size, hop: frames of a window and between windows.
        batched: many slides at a time, as suits a GPU; None: where the maps are on one.
        joined: bytes of maps and similarities of slides that are joined at once where they are batched; one slide is always.
    """

    def __init__(self, network: MapNet, size: int, hop: int, batched: bool | None = None, joined: int = JOINED_AT_ONCE) -> None:
        self.network, self.size, self.hop, self.batched, self.most = network, size, hop, batched, joined
        self.hidden = network.single[0].out_channels
        self.piece = math.gcd(size, hop)
        self.many, self.step = size // self.piece, hop // self.piece
        self.rows = sum(network.groups * (2 * lag + 1) for lag in network.lags)

    def __call__(self, maps: Sequence[DetectorMap], starts: np.ndarray, counts: np.ndarray) -> Tensor:
        """Logits (sum of counts,), run after run; as MapNet.slide(MapNet.combine(...)) but for rounding.

        Args:
            maps: of each detector; their lengths may differ.
            starts: (run, ifo), frame of each detector's map at which the first window of the run begins.
            counts: (run,), windows of each run, `hop` apart.

        Raises:
            ValueError: a run reads beyond a map; windows need `reach` frames more on each side.
        """
        starts, counts = np.asarray(starts, np.int64).reshape(-1, len(maps)), np.asarray(counts, np.int64)
        reach, used = self.network.reach, (counts - 1) * self.hop + self.size
        for c, m in enumerate(maps):
            outside = (counts > 0) & ((starts[:, c] < reach) | (starts[:, c] + used + reach > m.frames))
            if outside.any():
                run = int(outside.argmax())
                raise ValueError(
                    f"run {run} reads frames {starts[run, c] - reach} to {starts[run, c] + used[run] + reach} of detector {c}'s map; "
                    f"expected 0 to {m.frames}"
                )
        batched = maps[0].query.is_cuda if self.batched is None else self.batched
        # a long run in parts, and the same part of all runs next to each other
        parts = [(first, run) for run, n in enumerate(counts.tolist()) for first in range(0, n, _OUTPUTS)]
        order = sorted(range(len(parts)), key=parts.__getitem__)
        tasks = [(starts[r] + f * self.hop, min(_OUTPUTS, int(counts[r]) - f)) for f, r in (parts[i] for i in order)]
        with torch.inference_mode():
            made = dict(zip(order, (self._batches if batched else self._tiles)(maps, tasks), strict=True))
        return torch.cat([made[i] for i in range(len(parts))]) if parts else maps[0].query.new_empty(0)

    def _tiles(self, maps: Sequence[DetectorMap], tasks: Sequence[Task]) -> Iterator[Tensor]:
        """Logits of each task; frames are joined a tile at a time."""
        both = self.network.pooling == "mean_max"
        tile = max(1, _TILE // self.piece) * self.piece
        new = maps[0].query.new_empty
        # fresh memory for each tile would cost as much as a tenth of the arithmetic
        similar, joined = new(self.rows, tile), new(tile, self.hidden)
        mix = None if self.network.mix is None else self.network.mix.weight[..., 0].t().contiguous()
        most = max(1, _PIECES // (4 * (1 + both) * self.hidden * ((_OUTPUTS - 1) * self.step + self.many)))
        for i in range(0, len(tasks), most):
            some = tasks[i : i + most]
            lengths = [(count - 1) * self.hop + self.size for _, count in some]
            pooled = [new(1 + both, length // self.piece, self.hidden) for length in lengths]
            for first in range(0, max(lengths), tile):
                for (start, _), length, out in zip(some, lengths, pooled, strict=True):
                    size = min(tile, length - first)
                    if size <= 0:
                        continue
                    z = self._joined(maps, [int(s) + first for s in start], similar[:, :size], joined[:size], mix)
                    z, at = z.view(-1, self.piece, self.hidden), slice(first // self.piece, (first + size) // self.piece)
                    torch.sum(z, 1, out=out[0, at])
                    if both:
                        torch.amax(z, 1, out=out[1, at])
            yield from (self._windows(out) for out in pooled)

    def _joined(self, maps: Sequence[DetectorMap], at: Sequence[int], similar: Tensor, joined: Tensor, mix: Tensor | None) -> Tensor:
        """`MapNet.combine` of frames that begin at `at` in each map, into `joined` (frame, hidden)."""
        net, size = self.network, len(joined)
        singles = [m.single[a : a + size] for m, a in zip(maps, at, strict=True)]
        if mix is None:
            return torch.clamp_min(singles[0], 0, out=joined)
        torch.add(*singles[:2], out=joined)
        for single in singles[2:]:
            joined.add_(single)
        done, width = 0, net.channels // net.groups
        for (i, j), lag in zip(net.pairs, net.lags, strict=True):
            rows = net.groups * (2 * lag + 1)
            into = similar[done : done + rows].unflatten(0, (-1, net.groups))
            done += rows
            here, other = maps[i].query[:, at[i] : at[i] + size].unflatten(0, (net.groups, width)), maps[j].query
            # all lags are one view of the other map: (feature of a group, lag, group, frame)
            row, frame = other.stride()
            shape, steps = (width, 2 * lag + 1, net.groups, size), (row, frame, width * row, frame)
            there = other.as_strided(shape, steps, other.storage_offset() + (at[j] - lag) * frame)
            torch.mul(here[:, 0], there[0], out=into)
            for k in range(1, width):
                into.addcmul_(here[:, k], there[k])
        return joined.addmm_(similar.t(), mix).relu_()

    def _batches(self, maps: Sequence[DetectorMap], tasks: Sequence[Task]) -> Iterator[Tensor]:
        """Logits of each task, many at once; a shorter one is filled up by repeating frames, and what that gives is dropped."""
        net = self.network
        longest = max((count for _, count in tasks), default=1)
        frames = (longest - 1) * self.hop + self.size
        together = max(1, self.most // (4 * frames * (self.rows + len(maps) * (net.channels + self.hidden))))
        inside = torch.arange(-net.reach, frames + net.reach, device=maps[0].query.device)
        for i in range(0, len(tasks), together):
            some = tasks[i : i + together]
            at = torch.from_numpy(np.stack([start for start, _ in some])).to(inside.device)
            taken = []
            for c, m in enumerate(maps):
                index = (at[:, c, None] + inside).clamp(max=m.frames - 1)
                taken.append(torch.cat([m.query[:, index].transpose(0, 1), m.single[index].transpose(1, 2)], 1))
            z = net.combine(taken).unflatten(2, (-1, self.piece))
            pooled = torch.stack([z.sum(3), z.amax(3)] if net.pooling == "mean_max" else [z.sum(3)])
            logits = self._windows(pooled.transpose(2, 3))
            yield from (row[:count] for row, (_, count) in zip(logits, some, strict=True))

    def _windows(self, pooled: Tensor) -> Tensor:
        """Logits (..., window) from sums over pieces, and their maxima if wanted: (1 or 2, ..., piece, hidden)."""
        features = [_sliding(pooled[0], self.many, torch.add) / self.size]
        if len(pooled) == 2:
            features.append(_sliding(pooled[1], self.many, torch.maximum))
        return self.network.head(torch.cat([f[..., :: self.step, :] for f in features], -1))[..., 0]


def _sliding(x: Tensor, size: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sums or maxima of `size` neighbours (..., n, k) -> (..., n - size + 1, k), in about log2(size) passes."""
    total, done, power, width = None, 0, x, 1
    while True:
        if size & width:
            # of the neighbours from `done` on
            total = power if total is None else join(total[..., : power.shape[-2] - done, :], power[..., done:, :])
            done += width
        if done == size:
            return total
        power, width = join(power[..., :-width, :], power[..., width:, :]), 2 * width
