"""Zero lag, all slides and all injections of one chunk in one pass.

Each detector is whitened once (`WhitenedChunk`); a slide only chooses where its windows start. Only windows that some
valid output looks back on are scored, for a block of slides at a time. Injections are scored only where a signal can reach;
elsewhere the score of the same slide without injections stands, so that there foreground and background are equal bit for bit.
Livetime is counted from the outputs that were really scored.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from aframe_assets.config import Inference
from aframe_assets.inference.audit import Audit, search_again
from aframe_assets.inference.clustering import cluster_slides, detection_statistic
from aframe_assets.inference.injected import Foreground
from aframe_assets.inference.memory import SCORES, memory_for_slides
from aframe_assets.inference.merger_time import Rescorer
from aframe_assets.inference.scorers import slide_scorer
from aframe_assets.inference.scoring import NOT_KEPT, CascadeScorer, Change, Chooser, Layout, SlideScorer
from aframe_assets.inference.streaming import Scorer
from aframe_assets.inference.whitened import WhitenedChunk
from aframe_assets.inference.windows import SlidWindows, needed
from aframe_assets.segments.geometry import SlideGeometry
from aframe_assets.segments.vetoes import runs
from aframe_assets.waveforms.ledger import EventSet, RecoveredInjectionSet

CELL = 48
"""Bytes of an output of the slides that are handled together."""

Shift = tuple[float, ...]


@dataclass(frozen=True)
class SlideResults:
    """What one chunk gives.

    Attributes:
        background, zero_lag: events; their `Tb` is the livetime of the outputs that were scored.
        foreground: every injection with the loudest event near it (statistic -inf without one).
        merger_residuals: raw merger times - true one of a sample of loud recovered injections, seconds (n, len(EDGES)).
        expected: livetime that the geometry says 'background' and 'zero_lag' should have, seconds.
        vetoed: livetime that vetoes took from both, seconds.
        windows: number of windows scored for 'background', 'zero_lag', 'foreground' and 'audit'; those of a cascade's second network.
        seconds: wall time spent in the 'network' and in everything 'other'; of the latter, in integration and clustering ('events').
        outputs: of a cascade, how many its filter 'kept' and how many were 'asked' of it in zero lag and background; else none.
        audit: slides searched with and without the filter.
    """

    background: EventSet
    zero_lag: EventSet
    foreground: RecoveredInjectionSet
    merger_residuals: np.ndarray
    expected: dict[str, float]
    vetoed: dict[str, float]
    windows: dict[str, int]
    seconds: dict[str, float]
    outputs: dict[str, int]
    audit: Audit


@dataclass
class Pass:
    """One pass over a chunk.

    Attributes:
        chunk, geometry, engine, inference: see `run_slides`.
        scorer: of the chunk's slides.
        windows, seconds: as in `SlideResults`.

    Raises:
        ValueError: chunk, geometry and engine disagree.
    """

    chunk: WhitenedChunk
    geometry: SlideGeometry
    engine: Scorer
    inference: Inference
    chooser: Chooser | None = None
    windows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("background", "zero_lag", "foreground", "audit"), 0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("network", "events"), 0.0))
    scorer: SlideScorer = field(init=False)

    def __post_init__(self) -> None:
        g, fs = self.geometry, self.chunk.sample_rate
        size = len(self.chunk.streams[0])
        expected = round((g.duration - g.settle - g.fduration) * fs)
        if size != max(0, expected) or abs(self.chunk.whitened_start - g.whitened_start) > 0.5 / fs:
            raise ValueError(
                f"whitened strain at GPS {self.chunk.gps_start:g} has {size} samples from "
                f"{self.chunk.whitened_start:.6f}; the geometry of the slides expects {expected} from {g.whitened_start:.6f}: "
                "conditioning and inference settings must be those the injections were placed with"
            )
        kernel, context = round(g.kernel_length * fs), round(g.context * fs)
        own = getattr(self.engine, "kernel", kernel), getattr(self.engine, "context", context)
        if own != (kernel, context):
            raise ValueError(
                f"the engine sees kernels of {own[0]} samples and {own[1]} on each side, the geometry of the slides has {kernel} and "
                f"{context}: set conditioning.kernel_length and model.architecture.context to the model's"
            )
        ring = round(g.whitened_duration * fs) if g.ring else 0
        self.layout = Layout(kernel, context, round(fs / self.inference.inference_rate), size, max(0, ring))
        self.scorer = slide_scorer(self.engine, self.chunk.streams, self.layout, self.inference, self.chooser)

    def offsets(self, shifts: Sequence[Shift]) -> np.ndarray:
        """Samples (slide, ifo)."""
        return np.round(np.array(shifts, float).reshape(len(shifts), len(self.chunk.streams)) * self.chunk.sample_rate).astype(np.int64)

    def slid(self, streams: Sequence[np.ndarray], shift: Shift) -> SlidWindows:
        """Windows of a slide of `streams`."""
        at = self.layout
        return SlidWindows(streams, tuple(self.offsets([shift])[0].tolist()), at.kernel, at.ring, at.context)

    @contextmanager
    def spent(self, what: str) -> Iterator[None]:
        """Adds the wall time inside to `seconds`."""
        start = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - start

    def scores(self, geometry: SlideGeometry, shifts: Sequence[Shift], kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Scores (NaN where no valid output looks) and validity (slide, output) of every output of some slides."""
        rows = [geometry.valid(shift) for shift in shifts]
        valid = np.zeros((len(rows), max(map(len, rows), default=0)), bool)
        for row, good in zip(valid, rows, strict=True):
            row[: len(good)] = good
        before = self.scorer.evaluated
        with self.spent("network"):
            out = self.scorer.scores(self.offsets(shifts), needed(valid, geometry.boxcar))
        self.windows[kind] += self.scorer.evaluated - before
        return out, valid

    def rescored(self, scores: np.ndarray, valid: np.ndarray, shift: Shift, change: Change) -> np.ndarray:
        """Scores (output,) of one slide after a change."""
        before = self.scorer.evaluated
        with self.spent("network"):
            out = self.scorer.rescored(scores, self.offsets([shift])[0], needed(valid, self.geometry.boxcar), change)
        self.windows["foreground"] += self.scorer.evaluated - before
        return out

    def rescorer(self, slid: SlidWindows) -> Rescorer:
        """For events of the slide `slid`."""
        g, i = self.geometry, self.inference
        early = 1 / g.inference_rate if i.event_time_convention == "upstream_v1" else 0.0
        return Rescorer(
            slid,
            self.engine,
            g.whitened_start,
            self.chunk.sample_rate,
            g.kernel_length,
            g.integration_window_length,
            i.merger_time_rate,
            i.batch_size,
            early,
        )

    def events(self, geometry: SlideGeometry, shifts: Sequence[Shift], scores: np.ndarray, valid: np.ndarray) -> EventSet:
        """Events of several slides; `Tb` counts their outputs."""
        rate, boxcar = self.inference.inference_rate, geometry.boxcar
        with self.spent("events"):
            table, unknown = detection_statistic(scores, valid, boxcar), None
            live = int((table > -np.inf).sum())
            dropped = scores == NOT_KEPT
            if dropped.any():
                # a cascade looked at them and found them too quiet: livetime, but no events
                unknown = (detection_statistic(np.where(dropped, 0.0, scores), valid, boxcar) > -np.inf) & (table == -np.inf)
                live += int(unknown.sum())
            slide, sample = cluster_slides(table, rate, self.inference.cluster_window_length, unknown)
            times = detection_times(geometry, table.shape[1], self.inference)
        rows = np.array(shifts, float).reshape(len(shifts), len(self.chunk.streams))
        return EventSet(table[slide, sample], times[sample], rows[slide], live / rate)


@dataclass(frozen=True)
class ZeroLag:
    """Events of unslid data, first and last detection time of each stretch that counts (GPS seconds), and what finds merger times."""

    events: EventSet
    spans: tuple[tuple[float, float], ...]
    rescorer: Rescorer


def score_zero_lag(
    chunk: WhitenedChunk, geometry: SlideGeometry, engine: Scorer, inference: Inference, chooser: Chooser | None = None
) -> ZeroLag:
    """The zero lag alone, as in `run_slides`."""
    run, zero, plain = Pass(chunk, geometry, engine, inference, chooser), tuple(0.0 for _ in chunk.streams), replace(geometry, mergers=())
    scores, valid = run.scores(plain, [zero], "zero_lag")
    events = run.events(plain, [zero], scores, valid)
    times = detection_times(plain, valid.shape[1], inference)
    spans = tuple((float(times[a]), float(times[b - 1])) for a, b in runs(valid[0]))
    return ZeroLag(events, spans, run.rescorer(run.slid(chunk.streams, zero)))


def run_slides(
    chunk: WhitenedChunk,
    geometry: SlideGeometry,
    engine: Scorer,
    inference: Inference,
    shifts: Iterable[Shift],
    signals: Path | None = None,
    num_calibrate: int = 8,
    chooser: Chooser | None = None,
    audit: Sequence[Shift] = (),
) -> SlideResults:
    """All of one chunk: zero lag (unless switched off), background of `shifts`, foreground of the slides that `signals` holds.

    Args:
        chunk: whitened once.
        geometry: of the same chunk; catalogue mergers in it are kept out of slides, never out of zero lag, vetoes out of both.
        engine: the network, see `aframe_assets.inference.scorers.slide_scorer`.
        inference: rates, windows, batch size, memory.
        shifts: shift vectors, seconds, whole samples; (0, 0, ...) is not one of them.
        signals: ledger file of an `InterferometerResponseSet`, or None.
        num_calibrate: how many loud recovered injections are re-scored for the merger time.
        chooser: of a cascade: what its filter network keeps.
        audit: those of `shifts` that a cascade also searches without its filter.

    Raises:
        ValueError: chunk, geometry and engine disagree.
    """
    start = time.perf_counter()
    run = Pass(chunk, geometry, engine, inference, chooser)
    shifts = [tuple(map(float, s)) for s in shifts]
    zero, plain = tuple(0.0 for _ in chunk.streams), replace(geometry, mergers=())
    unslid = [zero] if inference.zero_lag else []
    zero_lag = run.events(plain, unslid, *run.scores(plain, unslid, "zero_lag"))
    foreground, parts = Foreground(run, signals), []
    for block in _blocks(geometry, shifts, SCORES * memory_for_slides(inference, chunk.streams)):
        scores, valid = run.scores(geometry, block, "background")
        parts.append(run.events(geometry, block, scores, valid))
        foreground.add(block, scores, valid)
    background = EventSet.concatenate(parts) if parts else run.events(geometry, [], *run.scores(geometry, [], "background"))
    found, residuals = foreground.finish(background, num_calibrate)
    cascade = run.scorer if isinstance(run.scorer, CascadeScorer) else None
    outputs = {"kept": cascade.kept, "asked": cascade.asked} if cascade else {"kept": 0, "asked": 0}
    audited = search_again(run, audit, signals, background, foreground) if cascade else Audit.concatenate([])
    total = time.perf_counter() - start
    expected = _livetimes(geometry, shifts, unslid)
    whole = _livetimes(replace(geometry, vetoes=()), shifts, unslid) if geometry.vetoes else expected
    return SlideResults(
        background,
        zero_lag,
        found,
        residuals,
        expected,
        {kind: whole[kind] - seconds for kind, seconds in expected.items()},
        run.windows,
        run.seconds | {"other": total - run.seconds["network"]},
        outputs,
        audited,
    )


def _blocks(geometry: SlideGeometry, shifts: Sequence[Shift], memory: float) -> Iterator[Sequence[Shift]]:
    """Slides to handle together: as many as have their outputs in so many bytes."""
    most = max(1, int(memory / CELL // max(1, max(map(geometry.num_windows, shifts), default=1))))
    for i in range(0, len(shifts), most):
        yield shifts[i : i + most]


def _livetimes(geometry: SlideGeometry, shifts: Sequence[Shift], unslid: Sequence[Shift]) -> dict[str, float]:
    plain = replace(geometry, mergers=())
    return {"background": sum(map(geometry.livetime, shifts), 0.0), "zero_lag": sum(map(plain.livetime, unslid), 0.0)}


def detection_times(geometry: SlideGeometry, length: int, inference: Inference) -> np.ndarray:
    """GPS times of events at the first `length` outputs: those of the unshifted frame, the same for every slide."""
    edges = geometry.whitened_start + geometry.kernel_length + np.arange(length) / geometry.inference_rate
    times = edges - geometry.integration_window_length
    return times - 1 / geometry.inference_rate if inference.event_time_convention == "upstream_v1" else times
