"""Zero lag, all slides and all injections of one chunk in one pass.

Each detector is whitened once (`WhitenedChunk`); a slide only chooses where its windows start. Only windows that some
valid output looks back on are evaluated. Injections are evaluated only where a signal can reach; elsewhere the score of
the same slide without injections stands, so that there foreground and background are equal bit for bit.
Livetime is counted from the outputs that were really scored.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from aframe_assets.config import Inference
from aframe_assets.inference.clustering import cluster_slides, detection_statistic
from aframe_assets.inference.events import recover, recovered
from aframe_assets.inference.merger_time import EDGES, Rescorer
from aframe_assets.inference.streaming import Scorer
from aframe_assets.inference.whitened import WhitenedChunk, support
from aframe_assets.inference.windows import SlidWindows, needed
from aframe_assets.segments.geometry import SlideGeometry
from aframe_assets.segments.vetoes import runs
from aframe_assets.waveforms.ledger import EventSet, InterferometerResponseSet, RecoveredInjectionSet

SLIDES_TOGETHER = 32
"""Slides whose outputs are clustered together; bounds memory."""

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
        windows: number of windows evaluated for 'background', 'zero_lag' and 'foreground'.
        seconds: wall time spent in the network and in everything else.
    """

    background: EventSet
    zero_lag: EventSet
    foreground: RecoveredInjectionSet
    merger_residuals: np.ndarray
    expected: dict[str, float]
    vetoed: dict[str, float]
    windows: dict[str, int]
    seconds: dict[str, float]


@dataclass
class _Clock:
    """An engine that counts what is asked of it."""

    engine: Scorer
    seconds: float = 0.0

    def infer(self, windows: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        out = self.engine.infer(windows)
        self.seconds += time.perf_counter() - start
        return out


@dataclass
class _Pass:
    """The state of one pass over a chunk."""

    chunk: WhitenedChunk
    geometry: SlideGeometry
    engine: _Clock
    inference: Inference
    windows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("background", "zero_lag", "foreground"), 0))

    def __post_init__(self) -> None:
        rate, fs = self.inference.inference_rate, self.chunk.sample_rate
        self.stride, self.kernel = round(fs / rate), round(self.geometry.kernel_length * fs)
        size = len(self.chunk.streams[0])
        expected = round((self.geometry.duration - self.geometry.settle - self.geometry.fduration) * fs)
        if size != max(0, expected) or abs(self.chunk.whitened_start - self.geometry.whitened_start) > 0.5 / fs:
            raise ValueError(
                f"whitened strain at GPS {self.chunk.gps_start:g} has {size} samples from "
                f"{self.chunk.whitened_start:.6f}; the geometry of the slides expects {expected} from {self.geometry.whitened_start:.6f}: "
                "conditioning and inference settings must be those the injections were placed with"
            )

    def slid(self, streams: Sequence[np.ndarray], shift: Shift) -> SlidWindows:
        fs = self.chunk.sample_rate
        ring = round(self.geometry.whitened_duration * fs) if self.geometry.ring else 0
        return SlidWindows(streams, tuple(round(s * fs) for s in shift), self.kernel, ring)

    def scores(self, geometry: SlideGeometry, shift: Shift, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Scores (NaN where no valid output looks) and validity of every output of a slide."""
        valid = geometry.valid(shift)
        out = np.full(len(valid), np.nan)
        wanted = np.flatnonzero(needed(valid, geometry.boxcar))
        out[wanted] = self.slid(self.chunk.streams, shift).score(self.engine, wanted * self.stride, self.inference.batch_size)
        self.windows[kind] += len(wanted)
        return out, valid

    def statistic(self, scores: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Integrated output; -inf where it does not count or a score behind it is missing."""
        return detection_statistic(scores, valid, self.geometry.boxcar)

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

    def events(self, geometry: SlideGeometry, rows: list[tuple[Shift, np.ndarray]]) -> EventSet:
        """Events of several slides; `Tb` counts their outputs."""
        length = max((len(y) for _, y in rows), default=0)
        table = np.full((len(rows), length), -np.inf)
        for i, (_, y) in enumerate(rows):
            table[i, : len(y)] = y
        slide, sample = cluster_slides(table, self.inference.inference_rate, self.inference.cluster_window_length)
        shifts = np.array([s for s, _ in rows], float).reshape(len(rows), len(self.chunk.streams))
        times = _times(geometry, length, self.inference)
        live = float((table > -np.inf).sum()) / self.inference.inference_rate
        return EventSet(table[slide, sample], times[sample], shifts[slide], live)


@dataclass(frozen=True)
class ZeroLag:
    """Events of unslid data, first and last detection time of each stretch that counts (GPS seconds), and what finds merger times."""

    events: EventSet
    spans: tuple[tuple[float, float], ...]
    rescorer: Rescorer


def score_zero_lag(chunk: WhitenedChunk, geometry: SlideGeometry, engine: Scorer, inference: Inference) -> ZeroLag:
    """The zero lag alone, as in `run_slides`."""
    run, zero, plain = _Pass(chunk, geometry, _Clock(engine), inference), tuple(0.0 for _ in chunk.streams), replace(geometry, mergers=())
    scores, valid = run.scores(plain, zero, "zero_lag")
    events = run.events(plain, [(zero, run.statistic(scores, valid))])
    times = _times(plain, len(valid), inference)
    spans = tuple((float(times[a]), float(times[b - 1])) for a, b in runs(valid))
    return ZeroLag(events, spans, run.rescorer(run.slid(chunk.streams, zero)))


def run_slides(
    chunk: WhitenedChunk,
    geometry: SlideGeometry,
    engine: Scorer,
    inference: Inference,
    shifts: Iterable[Shift],
    signals: Path | None = None,
    num_calibrate: int = 8,
) -> SlideResults:
    """All of one chunk: zero lag (unless switched off), background of `shifts`, foreground of the slides that `signals` holds.

    Args:
        chunk: whitened once.
        geometry: of the same chunk; catalogue mergers in it are kept out of slides, never out of zero lag, vetoes out of both.
        engine: the network.
        inference: rates, windows, batch size.
        shifts: shift vectors, seconds, whole samples; (0, 0, ...) is not one of them.
        signals: ledger file of an `InterferometerResponseSet`, or None.
        num_calibrate: how many loud recovered injections are re-scored for the merger time.

    Raises:
        ValueError: chunk and geometry disagree.
    """
    start = time.perf_counter()
    run = _Pass(chunk, geometry, _Clock(engine), inference)
    shifts = [tuple(map(float, s)) for s in shifts]
    with_signals = InterferometerResponseSet.shifts_of(signals) if signals else []
    zero = tuple(0.0 for _ in chunk.streams)
    plain = replace(geometry, mergers=())
    kept: dict[Shift, tuple[np.ndarray, np.ndarray]] = {}

    lag_rows = []
    if inference.zero_lag:
        lag_rows = [(zero, run.statistic(*run.scores(plain, zero, "zero_lag")))]
    zero_lag = run.events(plain, lag_rows)

    parts, rows = [], []
    for shift in shifts:
        found = run.scores(geometry, shift, "background")
        if shift in with_signals:
            kept[shift] = found
        rows.append((shift, run.statistic(*found)))
        if len(rows) == SLIDES_TOGETHER:
            parts.append(run.events(geometry, rows))
            rows = []
    background = EventSet.concatenate([*parts, run.events(geometry, rows)])

    foreground, residuals = _foreground(run, with_signals, kept, signals, background, num_calibrate)
    total = time.perf_counter() - start
    unslid = [zero] if inference.zero_lag else []
    expected = _livetimes(geometry, shifts, unslid)
    whole = _livetimes(replace(geometry, vetoes=()), shifts, unslid) if geometry.vetoes else expected
    return SlideResults(
        background,
        zero_lag,
        foreground,
        residuals,
        expected,
        {kind: whole[kind] - seconds for kind, seconds in expected.items()},
        run.windows,
        {"network": run.engine.seconds, "other": total - run.engine.seconds},
    )


def _livetimes(geometry: SlideGeometry, shifts: Sequence[Shift], unslid: Sequence[Shift]) -> dict[str, float]:
    plain = replace(geometry, mergers=())
    return {"background": sum(map(geometry.livetime, shifts), 0.0), "zero_lag": sum(map(plain.livetime, unslid), 0.0)}


def _times(geometry: SlideGeometry, length: int, inference: Inference) -> np.ndarray:
    # detection times are those of the unshifted frame, the same for every slide
    edges = geometry.whitened_start + geometry.kernel_length + np.arange(length) / geometry.inference_rate
    times = edges - geometry.integration_window_length
    return times - 1 / geometry.inference_rate if inference.event_time_convention == "upstream_v1" else times


def _foreground(run: _Pass, shifts: list[Shift], kept, signals: Path | None, background: EventSet, num_calibrate: int):
    """Injections of every slide that has some, and raw merger-time residuals of a sample."""
    if signals is None:
        return RecoveredInjectionSet(), np.empty((0, len(EDGES)))
    loud = np.quantile(background.detection_statistic, 0.99) if len(background) else -np.inf
    parts, residuals, live = [], [], 0.0
    for n, shift in enumerate(shifts):
        responses = InterferometerResponseSet.read_times(signals, shift=shift)
        scores, valid = kept.pop(shift, None) or run.scores(run.geometry, shift, "background")
        streams, starts, waveforms = _inject(run, responses, shift)
        slid = run.slid(streams, shift)
        frame = np.arange(len(valid)) * run.stride
        reached = np.flatnonzero(_reached(run, slid, starts, waveforms, frame) & needed(valid, run.geometry.boxcar))
        scores = scores.copy()
        scores[reached] = slid.score(run.engine, frame[reached], run.inference.batch_size)
        run.windows["foreground"] += len(reached)
        events = run.events(run.geometry, [(shift, run.statistic(scores, valid))])
        live += events.Tb
        args = responses.injection_time, events.detection_time, events.detection_statistic, run.inference.recovery_window
        statistic, times = recovered(*args)
        parts.append((responses, statistic, times))
        # the sample is spread over the slides, and within a slide over its loud injections
        share = (n + 1) * num_calibrate // len(shifts) - n * num_calibrate // len(shifts)
        chosen = _spread(np.flatnonzero((recover(*args) >= 0) & (statistic > loud)), share)
        residuals += [run.rescorer(slid).raw(times[i]) - responses.injection_time[i] for i in chosen]
    return _joined(signals, parts, live), np.array(residuals, float).reshape(-1, len(EDGES))


def _inject(run: _Pass, responses: InterferometerResponseSet, shift: Shift) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """Streams with the signals of one slide, where each signal starts in each detector, and the signals."""
    waveforms, chunk = responses.strain(), run.chunk
    # one start for all detectors, then whole-sample shifts: delays between detectors are those inside the waveforms
    shifted = np.array([round(s * chunk.sample_rate) for s in shift])
    starts = chunk.starts(responses.injection_time, responses.coalescence)[:, None] + shifted
    if run.geometry.ring:
        first = chunk.settle + chunk.crop
        ring = round(run.geometry.whitened_duration * chunk.sample_rate)
        merger = starts + responses.coalescence - first
        starts = starts + merger % ring - merger
    return chunk.with_signals(starts, waveforms), starts, waveforms


def _reached(run: _Pass, slid: SlidWindows, starts: np.ndarray, waveforms: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Windows in which some detector holds a sample that a whitened signal can touch."""
    chunk = run.chunk
    first, last = support(waveforms)
    own = slid.starts(frame)
    out = np.zeros(len(frame), bool)
    for c in range(len(own)):
        # strain sample i reaches whitened samples i - settle - 2 crop ... i - settle
        low = starts[:, c] + first - chunk.settle - 2 * chunk.crop
        high = starts[:, c] + last - chunk.settle
        for a, b in zip(low[last > first], high[last > first], strict=True):
            out |= (own[c] < b) & (own[c] + run.kernel > a)
    return out


def _spread(indices: np.ndarray, num: int) -> np.ndarray:
    """At most `num` of `indices`, evenly spread."""
    return indices if len(indices) <= num else indices[np.linspace(0, len(indices) - 1, num).astype(int)] if num else indices[:0]


def _joined(signals: Path, parts: list, live: float) -> RecoveredInjectionSet:
    """One set of all slides; metadata are those of the signals' file, once."""
    head = InterferometerResponseSet.read_metadata(signals)
    head.pop("length")
    names = InterferometerResponseSet.PARAMETERS
    if not parts:
        # draws that were all rejected still count
        return RecoveredInjectionSet(**head)
    return RecoveredInjectionSet(
        **{n: np.concatenate([getattr(r, n) for r, _, _ in parts]) for n in names},
        detection_statistic=np.concatenate([s for _, s, _ in parts]),
        detection_time=np.concatenate([t for _, _, t in parts]),
        **head,
        Tb=live,
    )
