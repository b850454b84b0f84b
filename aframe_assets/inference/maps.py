"""Scores of slides from each detector's map: a detector is encoded once for all slides, and a slide costs the head alone.

A map lies on its detector's own grid of frames, which begins with the first whitened sample. Signals change a stretch of it, and
only that is encoded again. Where the maps of a whole chunk would not fit into the memory that is allowed, as long a part of the
chunk as fits is encoded at a time, for as many slides as are asked for together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from aframe_assets.inference.blocks import BlockEngine, Row, require_steps, through
from aframe_assets.inference.scoring import Change, Layout, NetworkScorer, Runs
from aframe_assets.model.lag_slides import JOINED_AT_ONCE, DetectorMap, SlideHead

Stretches = tuple[np.ndarray, np.ndarray]
"""First frame of each stretch of a detector's map and the one after its last."""


class MapEncoder:
    """Maps of stretches of every detector.

    Args:
        engine: of form 'maps'.
        streams: whitened, one array per detector.
    """

    def __init__(self, engine: BlockEngine, streams: Sequence[np.ndarray]) -> None:
        self.engine, self.streams = engine, streams
        self.device = next(engine.head.parameters()).device

    def encode(self, stretches: Sequence[Stretches]) -> list[DetectorMap]:
        """For each detector its stretches' frames, one after the other. First frames are multiples of total_stride / stride."""
        engine, head, step = self.engine, self.engine.head, self.engine.stride
        rows = [
            Row(s, first * step, (stop - first) * step, engine.context, engine.total_stride)
            for s, (first, stop) in zip(self.streams, stretches, strict=True)
        ]
        hidden = head.single[0].out_channels
        maps = []
        for first, stop in stretches:
            frames = int((stop - first).sum())
            new = [torch.empty(shape, device=self.device) for shape in ((head.channels, frames), (frames, hidden))]
            maps.append(DetectorMap(*new))
        done, frames = 0, engine.block // step
        for made in through(engine, rows):
            # (block, ifo, channels + hidden, frame + 2 reach) -> (ifo, channels + hidden, frame)
            inner = torch.from_numpy(made[..., head.reach : head.reach + frames]).to(self.device).permute(1, 2, 0, 3).flatten(2)
            for row, (first, stop), new, out in zip(rows, stretches, inner, maps, strict=True):
                _place(out, (row.at // step, stop - first), new, done, head.channels)
            done += inner.shape[2]
        return maps


def _place(out: DetectorMap, stretches: Stretches, new: torch.Tensor, done: int, channels: int) -> None:
    """Copy what belongs to stretches at frames `stretches[0]` of the row, `stretches[1]` long, from frames [done, ...) of the row."""
    at, size = stretches
    into = np.concatenate([[0], np.cumsum(size)])
    low = max(0, int(np.searchsorted(at, done, side="right")) - 1)
    for i in range(low, int(np.searchsorted(at, done + new.shape[1]))):
        a, b = max(done, int(at[i])), min(done + new.shape[1], int(at[i] + size[i]))
        if a < b:
            to, taken = slice(int(into[i]) + a - int(at[i]), int(into[i]) + b - int(at[i])), slice(a - done, b - done)
            out.query[:, to], out.single[to] = new[:channels, taken], new[channels:, taken].t()


class MapScorer(NetworkScorer):
    """A factorised network.

    Args:
        engine: of form 'maps'.
        streams: whitened, one array per detector.
        layout: of the windows; kernel, stride, context and ring are multiples of the network's total stride.
        memory: bytes that maps may take.
        joined: bytes of maps and similarities that are joined at once, on a GPU.
        touched: for each detector, the samples (n, 2) in which `streams` differ from those of `base`, ascending and disjoint.
        base: the scorer whose streams these were; frames that a change does not reach are its own.

    Raises:
        ValueError: sizes are not multiples of the total stride.
    """

    def __init__(
        self,
        engine: BlockEngine,
        streams: Sequence[np.ndarray],
        layout: Layout,
        memory: float,
        joined: int = JOINED_AT_ONCE,
        touched: Sequence[np.ndarray] | None = None,
        base: MapScorer | None = None,
    ) -> None:
        require_steps(engine, kernel=layout.kernel, stride=layout.stride, context=layout.context, ring=layout.ring)
        self.engine, self.layout, self.memory, self.touched, self.base = engine, layout, memory, touched, base
        self.encoder = MapEncoder(engine, streams)
        self.head = SlideHead(engine.head, layout.kernel // engine.stride, layout.stride // engine.stride, joined=joined)
        self.unit = engine.total_stride // engine.stride
        self.frames = layout.size // engine.total_stride * self.unit
        self._frame_bytes = 4 * (engine.head.channels + self.head.hidden)
        self._held: list[DetectorMap] | None = None

    def scores(self, offsets: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """See `SlideScorer.scores`."""
        offsets = np.asarray(offsets, np.int64)
        require_steps(self.engine, offsets=offsets)
        out = np.full(wanted.shape, np.nan)
        whole = self._bytes([(0, self.frames)] * offsets.shape[1]) <= self.memory
        if self.base is None and self._held is None and whole and wanted.any():
            everything = np.array([0]), np.array([self.frames])
            self._held = self.encoder.encode([everything] * offsets.shape[1])
        for runs, stretches in self._parts(Runs.of(self.layout, offsets, wanted, self.layout.kernel // self.layout.stride)):
            maps, at = self._maps(stretches), (runs.start // self.engine.stride).T
            starts = np.stack([_within(s, own) for s, own in zip(stretches, at, strict=True)], axis=1)
            made = self.head(maps, starts, runs.count).double().cpu().numpy()
            done = np.concatenate([[0], np.cumsum(runs.count)])
            for slide, first, count, where in zip(runs.slide, runs.first, runs.count, done[:-1], strict=True):
                out[slide, first : first + count] = made[where : where + count]
        out[~wanted] = np.nan
        self.evaluated += int(wanted.sum())
        return out

    def changed(self, change: Change) -> MapScorer:
        """See `NetworkScorer.changed`."""
        return MapScorer(self.engine, change.streams, self.layout, self.memory / 4, self.head.most, change.touched, self)

    def _bytes(self, stretches: Sequence[Stretches]) -> int:
        return sum(int(np.sum(stop) - np.sum(first)) for first, stop in stretches) * self._frame_bytes

    def _parts(self, runs: Runs) -> Iterator[tuple[Runs, list[Stretches]]]:
        """`runs`, as they are or cut into parts whose maps fit, with the stretches of every detector's map that they read."""
        if not len(runs.slide):
            return
        if self._held is not None:
            yield runs, [(np.array([0]), np.array([self.frames]))] * runs.start.shape[1]
            return
        stretches = self._needed(runs)
        if self._bytes(stretches) <= self.memory or runs.count.sum() == 1:
            yield runs, stretches
            return
        # in time, until a part is no longer than the slides are apart; then the slides
        span = np.ptp(runs.start - (runs.first * self.layout.stride)[:, None], axis=0).max()
        low, high = int(runs.first.min()), int((runs.first + runs.count).max())
        if len(np.unique(runs.slide)) == 1 or (high - low > 1 and (high - low) * self.layout.stride > span):
            halves = [runs.between(low, (low + high) // 2, self.layout), runs.between((low + high) // 2, high, self.layout)]
        else:
            middle = np.unique(runs.slide)[len(np.unique(runs.slide)) // 2]
            halves = [runs.of_slides(runs.slide < middle), runs.of_slides(runs.slide >= middle)]
        for half in halves:
            yield from self._parts(half)

    def _needed(self, runs: Runs) -> list[Stretches]:
        """Stretches of every detector's map that `runs` read, their beginnings on the grid of the total stride."""
        reach, step = self.engine.head.reach, self.engine.stride
        used = ((runs.count - 1) * self.layout.stride + self.layout.kernel) // step
        out = []
        for own in (runs.start // step).T:
            out.append(_merged((own - reach) // self.unit * self.unit, own + used + reach))
        return out

    def _maps(self, stretches: Sequence[Stretches]) -> list[DetectorMap]:
        """Frames of `stretches`, one after the other."""
        if self._held is not None:
            return self._held
        if self.base is None or self.base._held is None:
            return self.encoder.encode(stretches)
        context, step = self.engine.context, self.engine.stride
        maps, again = [], []
        for held, touched, (first, stop) in zip(self.base._held, self.touched, stretches, strict=True):
            cuts = list(zip(first.tolist(), stop.tolist(), strict=True))
            maps.append(DetectorMap(torch.cat([held.query[:, a:b] for a, b in cuts], 1), torch.cat([held.single[a:b] for a, b in cuts])))
            reached = _merged((touched[:, 0] - context) // step // self.unit * self.unit, -(-(touched[:, 1] + context) // step))
            again.append(_overlaps(reached, (first, stop)))
        for new, out, part, within in zip(self.encoder.encode(again), maps, again, stretches, strict=True):
            done = 0
            for to, size in zip(_within(within, part[0]).tolist(), (part[1] - part[0]).tolist(), strict=True):
                out.query[:, to : to + size] = new.query[:, done : done + size]
                out.single[to : to + size] = new.single[done : done + size]
                done += size
        return maps


def _merged(first: np.ndarray, stop: np.ndarray) -> Stretches:
    """Disjoint, ascending stretches that cover the same."""
    if not len(first):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    order = np.argsort(first, kind="stable")
    first, stop = first[order], np.maximum.accumulate(stop[order])
    new = np.append(True, first[1:] > stop[:-1])
    return first[new], stop[np.append(np.flatnonzero(new)[1:] - 1, len(stop) - 1)]


def _overlaps(a: Stretches, b: Stretches) -> Stretches:
    """Where both are; each of them is ascending and disjoint."""
    found = [
        (max(first, f), min(stop, s))
        for first, stop in zip(*(x.tolist() for x in a), strict=True)
        for f, s in zip(*(x[np.searchsorted(b[1], first, side="right") : np.searchsorted(b[0], stop)].tolist() for x in b), strict=True)
    ]
    table = np.array(found, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _within(stretches: Stretches, frame: np.ndarray) -> np.ndarray:
    """Where frames of a map are in its stretches, one after the other."""
    first, stop = stretches
    i = np.searchsorted(first, frame, side="right") - 1
    return np.append(0, np.cumsum(stop - first))[i] + frame - first[i]
