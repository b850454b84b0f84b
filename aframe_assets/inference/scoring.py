"""Scores of slides of one chunk: what is asked of a network, whatever its form, and where a slide's outputs lie.

Output i of a slide belongs to the window whose kernel starts i steps after the first whitened sample of the unshifted frame; a
detector with offset o is read o samples later. A scorer answers for a block of slides at a time and only where it is asked to.

A cascade is two scorers and a `Chooser`: the first, cheap one scores everything, the chooser says what is worth more, and the
second scores that. Outputs that were not chosen get `NOT_KEPT`: they count as looked at (livetime), and never become events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

NOT_KEPT = -np.inf
"""Score of an output that a cascade's filter found not worth the second network."""


@dataclass(frozen=True)
class Layout:
    """Where windows lie in the streams, samples.

    Attributes:
        kernel: of a window.
        context: on each side of the kernel.
        stride: between windows.
        size: whitened samples of a detector.
        ring: length of the ring of own time, or 0 when the overlap of a slide is cut.
    """

    kernel: int
    context: int
    stride: int
    size: int
    ring: int = 0

    def own(self, frame: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Own time (..., n) of samples `frame` (n,) of the unshifted frame, in detectors that are read `offsets` (...) later."""
        own = np.asarray(frame, np.int64) + np.asarray(offsets, np.int64)[..., None]
        return own % self.ring if self.ring else own


@dataclass(frozen=True)
class Runs:
    """Stretches of wanted outputs next to each other or nearly so, contiguous in every detector's own time (no ring seam inside).

    Attributes:
        slide, first, count: (run,) row of the block, first output, number of outputs.
        start: (run, ifo) own time at which the kernel of the first output starts, samples.
    """

    slide: np.ndarray
    first: np.ndarray
    count: np.ndarray
    start: np.ndarray

    @classmethod
    def of(cls, layout: Layout, offsets: np.ndarray, wanted: np.ndarray, gap: int = 0) -> Runs:
        """Runs of a block of slides, in order of slide and output.

        Args:
            layout: of the chunk.
            offsets: (slide, ifo), samples.
            wanted: (slide, output), bool.
            gap: so many outputs in a row may be in a run though they are not wanted.
        """
        slides, starts, stops = [], [], []
        for row, chosen in enumerate(wanted):
            output = np.flatnonzero(chosen)
            if not len(output):
                continue
            own = layout.own(output * layout.stride, np.asarray(offsets)[row])
            step = np.diff(output)
            new = np.flatnonzero((step > gap + 1) | (np.diff(own, axis=1) != step * layout.stride).any(axis=0)) + 1
            starts.append(output[np.append(0, new)])
            stops.append(output[np.append(new, len(output)) - 1] + 1)
            slides.append(np.full(len(new) + 1, row))
        slide, first, stop = (np.concatenate([np.empty(0, np.int64), *x]).astype(np.int64) for x in (slides, starts, stops))
        own = (first * layout.stride)[:, None] + np.asarray(offsets, np.int64)[slide]
        return cls(slide, first, stop - first, own % layout.ring if layout.ring else own)

    def of_slides(self, chosen: np.ndarray) -> Runs:
        """Those of `chosen` (run,), bool."""
        return Runs(self.slide[chosen], self.first[chosen], self.count[chosen], self.start[chosen])

    def between(self, low: int, high: int, layout: Layout) -> Runs:
        """What they have of outputs [low, high)."""
        first, stop = np.maximum(self.first, low), np.minimum(self.first + self.count, high)
        start = self.start + ((first - self.first) * layout.stride)[:, None]
        return Runs(self.slide, first, stop - first, start).of_slides(first < stop)


@dataclass(frozen=True)
class Change:
    """A slide's streams with signals in them.

    Attributes:
        streams: one array per detector.
        touched: for each detector (n, 2), stretches [first, stop) of samples of its own time outside which nothing changed;
            ascending and disjoint.
        reached: (output,) outputs whose window, with its context, holds something that changed.
    """

    streams: Sequence[np.ndarray]
    touched: Sequence[np.ndarray]
    reached: np.ndarray


class SlideScorer(Protocol):
    """Scores of one chunk's slides.

    Attributes:
        layout: of the chunk's windows.
        evaluated: windows that were scored so far; for a cascade those of its second network.
    """

    layout: Layout
    evaluated: int

    def scores(self, offsets: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """float64 (slide, output), NaN where not wanted.

        Args:
            offsets: (slide, ifo), samples by which each detector is read later, >= 0.
            wanted: (slide, output), bool; windows that lie inside the data of every detector, context included.
        """
        ...

    def rescored(self, before: np.ndarray, offsets: np.ndarray, wanted: np.ndarray, change: Change) -> np.ndarray:
        """Scores (output,) of one slide after a change; where it does not reach they are `before`, to the bit.

        Args:
            before: (output,), of the same slide unchanged.
            offsets, wanted: (ifo,) and (output,), as in `scores`.
            change: the streams with signals.
        """
        ...


class NetworkScorer(ABC):
    """A `SlideScorer` of one network."""

    layout: Layout
    evaluated: int = 0

    @abstractmethod
    def scores(self, offsets: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """See `SlideScorer.scores`."""

    @abstractmethod
    def changed(self, change: Change) -> NetworkScorer:
        """The same over changed streams; made for few outputs, mostly those that `change` reaches."""

    def rescored(self, before: np.ndarray, offsets: np.ndarray, wanted: np.ndarray, change: Change) -> np.ndarray:
        """See `SlideScorer.rescored`."""
        return self.replaced(before, offsets, wanted & change.reached, change)

    def replaced(self, before: np.ndarray, offsets: np.ndarray, chosen: np.ndarray, change: Change) -> np.ndarray:
        """`before` with the outputs that are `chosen` (output,) scored on the changed streams."""
        after, scorer = before.copy(), self.changed(change)
        after[chosen] = scorer.scores(np.asarray(offsets)[None], chosen[None])[0, chosen]
        self.evaluated += scorer.evaluated
        return after


class Chooser(Protocol):
    """Which outputs are worth a cascade's second network.

    Attributes:
        span: a changed score changes what is said of a trigger, and what is looked at for it, at most so many outputs away.
    """

    span: int

    def look(self, scores: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Outputs (slide, output), bool, that the second network scores to judge what the first found.

        A row must not depend on the others, so that a slide is treated alike in any block, with and without signals.

        Args:
            scores: (slide, output) float64 of the filter network, NaN where not wanted.
            wanted: (slide, output), bool: nothing outside it is scored, whatever is returned.
        """
        ...

    def keep(self, scores: np.ndarray, seen: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Chosen outputs (slide, output), bool, with all that integration and clustering need around them; as in `look`.

        Args:
            seen: (slide, output) float64 of the second network, NaN where `look` did not ask.
        """
        ...


class CascadeScorer:
    """A `SlideScorer` of two networks: the second scores what a chooser keeps of the first's scores.

    Attributes:
        first, second: scorers of the filter and of the network whose score is the statistic; ``second.scores(offsets, wanted)`` is
            the evaluation without filter.
        kept, asked: outputs that the second scored and outputs that it could have been asked for, of everything but signals.
    """

    def __init__(self, first: NetworkScorer, second: NetworkScorer, chooser: Chooser) -> None:
        if (first.layout.stride, first.layout.size, first.layout.ring) != (second.layout.stride, second.layout.size, second.layout.ring):
            raise ValueError(f"filter network with windows {first.layout}; expected those of the second network, {second.layout}")
        self.first, self.second, self.chooser, self.layout = first, second, chooser, second.layout
        self.kept = self.asked = 0

    @property
    def evaluated(self) -> int:
        """See `SlideScorer`."""
        return self.second.evaluated

    def scores(self, offsets: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """See `SlideScorer.scores`."""
        filtering = self.first.scores(offsets, wanted)
        look = self.chooser.look(filtering, wanted) & wanted
        seen = self.second.scores(offsets, look)
        keep = self.chooser.keep(filtering, seen, wanted) & wanted | _broken(filtering, wanted) | _broken(seen, look)
        self.kept, self.asked = self.kept + int((keep | look).sum()), self.asked + int(wanted.sum())
        out = np.where(look, seen, self.second.scores(offsets, keep & ~look))
        return np.where(wanted & ~keep, NOT_KEPT, out)

    def rescored(self, before: np.ndarray, offsets: np.ndarray, wanted: np.ndarray, change: Change) -> np.ndarray:
        """See `SlideScorer.rescored`. The filter chooses anew: a signal may make it keep what it did not reach, or drop it."""
        plain = self.first.scores(np.asarray(offsets)[None], wanted[None])[0]
        filtering = self.first.rescored(plain, offsets, wanted, change)
        look = (self.chooser.look(filtering[None], wanted[None]) & wanted)[0]
        unknown = change.reached | (before == NOT_KEPT)
        # a trigger further away is what it was: quiet, if anything behind it was not kept
        near = np.convolve(change.reached, np.ones(2 * self.chooser.span + 1))[self.chooser.span :][: len(wanted)] > 0.5
        judged = look & unknown & near
        after = self.second.replaced(before, offsets, judged, change)
        keep = (self.chooser.keep(filtering[None], np.where(look, after, np.nan)[None], wanted[None]) & wanted)[0]
        keep |= _broken(filtering, wanted) | _broken(after, look)
        after = self.second.replaced(after, offsets, keep & unknown & ~judged, change)
        return np.where(wanted & ~keep, NOT_KEPT, after)


def _broken(scores: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Outputs whose score is not a number though it was asked for: kept, so that the livetime tells of them."""
    return np.isnan(scores) & asked
