"""Injections of one chunk: the slides that hold some, scored again where a signal reaches, and what was recovered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.inference.events import recover, recovered
from aframe_assets.inference.merger_time import EDGES
from aframe_assets.inference.scoring import Change
from aframe_assets.inference.whitened import support
from aframe_assets.waveforms.ledger import EventSet, InterferometerResponseSet, RecoveredInjectionSet

if TYPE_CHECKING:
    from aframe_assets.inference.slides import Pass, Shift


@dataclass(frozen=True)
class _Slide:
    """Injections of a slide: their parameters, loudest event near each, and livetime; found are those that have one."""

    parameters: dict[str, np.ndarray]
    statistic: np.ndarray
    time: np.ndarray
    found: np.ndarray
    livetime: float


class Foreground:
    """Collects the injections of a pass, slide by slide in any order.

    Args:
        run: the pass.
        signals: ledger file of an `InterferometerResponseSet`, or None.
    """

    def __init__(self, run: Pass, signals: Path | None) -> None:
        self.run, self.signals = run, signals
        self.shifts = InterferometerResponseSet.shifts_of(signals) if signals else []
        self._slides: dict[Shift, _Slide] = {}

    def add(self, shifts: Sequence[Shift], scores: np.ndarray, valid: np.ndarray) -> None:
        """Those of `shifts` that hold signals, with their `scores` and `valid` (slide, output) without them."""
        for shift, before, good in zip(shifts, scores, valid, strict=True):
            if shift in self.shifts:
                self._slides[shift] = self._slide(shift, before, good)

    def statistics(self, shifts: Sequence[Shift]) -> np.ndarray:
        """Statistic of every injection of those of `shifts` that were added, slide by slide."""
        return np.concatenate([np.empty(0), *(self._slides[s].statistic for s in shifts if s in self._slides)])

    def finish(self, background: EventSet, num_calibrate: int) -> tuple[RecoveredInjectionSet, np.ndarray]:
        """All injections in the order of the file, and raw merger-time residuals (n, len(EDGES)) of a sample, seconds.

        Args:
            background: events; an injection is in the sample only if it is louder than 99 % of them.
            num_calibrate: at most so many injections, spread over the slides, and within a slide over its loud injections.
        """
        if self.signals is None:
            return RecoveredInjectionSet(), np.empty((0, len(EDGES)))
        for shift in self.shifts:
            if shift not in self._slides:
                self.add([shift], *self.run.scores(self.run.geometry, [shift], "background"))
        loud = np.quantile(background.detection_statistic, 0.99) if len(background) else -np.inf
        residuals: list[np.ndarray] = []
        for n, shift in enumerate(self.shifts):
            slide = self._slides[shift]
            share = (n + 1) * num_calibrate // len(self.shifts) - n * num_calibrate // len(self.shifts)
            chosen = _spread(np.flatnonzero(slide.found & (slide.statistic > loud)), share)
            if len(chosen):
                streams = self._inject(InterferometerResponseSet.read_times(self.signals, shift=shift), shift)[0]
                rescorer, times = self.run.rescorer(self.run.slid(streams, shift)), slide.parameters["injection_time"]
                residuals += [rescorer.raw(slide.time[i]) - times[i] for i in chosen]
        return self._joined(), np.array(residuals, float).reshape(-1, len(EDGES))

    def _slide(self, shift: Shift, before: np.ndarray, valid: np.ndarray) -> _Slide:
        run, responses = self.run, InterferometerResponseSet.read_times(self.signals, shift=shift)
        streams, touched = self._inject(responses, shift)
        frame = np.arange(len(valid)) * run.layout.stride
        own, at = run.layout.own(frame, run.offsets([shift])[0]), run.layout
        reached = np.zeros(len(valid), bool)
        for start, stretches in zip(own, touched, strict=True):
            reached |= overlapping(start - at.context, at.kernel + 2 * at.context, stretches)
        after = run.rescored(before, valid, shift, Change(streams, touched, reached))
        events = run.events(run.geometry, [shift], after[None], valid[None])
        args = responses.injection_time, events.detection_time, events.detection_statistic, run.inference.recovery_window
        statistic, times = recovered(*args)
        parameters = {n: getattr(responses, n) for n in InterferometerResponseSet.PARAMETERS}
        return _Slide(parameters, statistic, times, recover(*args) >= 0, events.Tb)

    def _inject(self, responses: InterferometerResponseSet, shift: Shift) -> tuple[tuple[np.ndarray, ...], list[np.ndarray]]:
        """Streams with the signals of one slide, and what they can touch of each: (n, 2) whitened samples, ascending and disjoint."""
        run, waveforms, chunk = self.run, responses.strain(), self.run.chunk
        # one start for all detectors, then whole-sample shifts: delays between detectors are those inside the waveforms
        starts = chunk.starts(responses.injection_time, responses.coalescence)[:, None] + run.offsets([shift])
        if run.layout.ring:
            merger = starts + responses.coalescence - chunk.settle - chunk.crop
            starts = starts + merger % run.layout.ring - merger
        first, last = support(waveforms)
        touched = []
        for start in starts.T:
            # strain sample i reaches whitened samples i - settle - 2 crop ... i - settle
            low, high = start + first - chunk.settle - 2 * chunk.crop, start + last - chunk.settle
            touched.append(joined_stretches(low[last > first], high[last > first], run.layout.size))
        return chunk.with_signals(starts, waveforms), touched

    def _joined(self) -> RecoveredInjectionSet:
        """One set of all slides; metadata are those of the signals' file, once."""
        head = InterferometerResponseSet.read_metadata(self.signals)
        head.pop("length")
        parts = [self._slides[shift] for shift in self.shifts]
        if not parts:
            # draws that were all rejected still count
            return RecoveredInjectionSet(**head)
        return RecoveredInjectionSet(
            **{n: np.concatenate([p.parameters[n] for p in parts]) for n in InterferometerResponseSet.PARAMETERS},
            detection_statistic=np.concatenate([p.statistic for p in parts]),
            detection_time=np.concatenate([p.time for p in parts]),
            **head,
            Tb=sum(p.livetime for p in parts),
        )


def joined_stretches(low: np.ndarray, high: np.ndarray, size: int) -> np.ndarray:
    """What [low, high) cover of [0, size): (n, 2), ascending and disjoint."""
    out: list[list[int]] = []
    for a, b in sorted(zip(np.maximum(low, 0).tolist(), np.minimum(high, size).tolist(), strict=True)):
        if out and a <= out[-1][1]:
            out[-1][1] = max(out[-1][1], b)
        elif a < b:
            out.append([a, b])
    return np.array(out, np.int64).reshape(-1, 2)


def overlapping(start: np.ndarray, length: int, stretches: np.ndarray) -> np.ndarray:
    """Which windows of `length` samples from `start` (n,) hold a sample of `stretches`, ascending and disjoint."""
    # the first stretch that ends after the window begins
    i = np.searchsorted(stretches[:, 1], start, side="right")
    return np.append(stretches[:, 0], np.iinfo(np.int64).max)[i] < start + length


def _spread(indices: np.ndarray, num: int) -> np.ndarray:
    """At most `num` of `indices`, evenly spread."""
    return indices if len(indices) <= num else indices[np.linspace(0, len(indices) - 1, num).astype(int)] if num else indices[:0]
