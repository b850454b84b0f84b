"""The search of a challenge file: strain of any length through whitening, network, clustering and merger times, in pieces.

Strain is read PIECE seconds at a time; a few such pieces, the last few seconds of whitened strain and one batch of windows
are all that is in memory, however long a segment is, besides the events themselves (24 bytes each).

Everything is as in the zero lag of a search with the same settings, but for the start of a segment: the challenge counts
all of a segment's time, so the psd_length seconds that a search spends on its first PSD are searched as well, whitened with
the PSD of those same seconds. Their last sample joins the first block, which has the same PSD.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aframe_assets.config import Conditioning, Inference
from aframe_assets.engine.engine import Engine
from aframe_assets.inference.clustering import integrate
from aframe_assets.inference.frame_stream import FrameStream
from aframe_assets.inference.merger_time import EDGES, REACH, Calibration, Rescorer, raw_times
from aframe_assets.inference.mlgwsc1.files import ChallengeError, ChallengeSegment, Events, SegmentReader, list_segments
from aframe_assets.inference.streaming import StreamingWhitener
from aframe_assets.inference.windows import SlidWindows
from aframe_assets.strain.conditioning import Whitener

PIECE = 256
"""Seconds of strain read at a time. Per detector at 2048 Hz that is 4 MiB; the whole search stays within some tens of them."""

NOMINAL_VAR = 0.3
"""Seconds, `var` of a time that no injections have calibrated. The end of a network's plateau is where the merger is within
left_pad (0.25 s) of the kernel's edge, half of which is taken off, so 0.125 s, and some tenth of a second of scatter.
Accidental matches stay rare: 0.6 s in the 24 s or more between the challenge's injections."""

SMALLEST_VAR = 0.1
"""Seconds. Calibration cannot promise more: waveform families disagree on where the merger is by some hundredths of a second,
and a detector is up to 21 ms of light travel from the centre of the Earth, where injection times are given."""

ENOUGH = 30
"""Injections behind a calibration whose width may make `var` smaller than NOMINAL_VAR: the ends of a 90 % interval lie beyond the
second of 30, so fewer say little about them."""


@dataclass(frozen=True)
class Settings:
    """How a challenge file is searched.

    Attributes:
        inference: rates and windows; those of the search that `calibration` comes from. `psd_source` must be 'preceding': one
            PSD of a whole segment would need all of it before its first output.
        calibration: of merger times; with `num` 0 it is nominal.
        threshold: events with a smaller statistic are left out.
        refine_above: events with a larger statistic are scored again at `inference.merger_time_rate` for their time, for the
            price of twelve times the search of a cluster window; others take it from the scores there are. The default is
            a log odds of 0: a signal as likely as not.
        cover_start: search the first psd_length seconds of a segment too.
        var: seconds, for every event; None derives it from the calibration.
    """

    inference: Inference
    calibration: Calibration
    threshold: float = -np.inf
    refine_above: float = 0.0
    cover_start: bool = True
    var: float | None = None

    @property
    def fine_var(self) -> float:
        """Seconds within which the merger lies of an event that was scored again.

        A calibration's 90 % interval is 3.3 standard deviations long. Taking all of it on each side leaves one normal
        residual in a thousand outside.
        """
        if self.var is not None:
            return self.var
        if not self.calibration.num:
            return NOMINAL_VAR
        return max(self.calibration.width90, SMALLEST_VAR if self.calibration.num >= ENOUGH else NOMINAL_VAR)

    @property
    def coarse_var(self) -> float:
        """The same of other events: each end of a plateau is known to a step of the search."""
        return self.var if self.var is not None else self.fine_var + 1 / self.inference.inference_rate


@dataclass(frozen=True)
class Analysis:
    """What a search of challenge files gives.

    Attributes:
        events: by time.
        segments: searched ones.
        skipped: segments that are too short.
        shortest: seconds that a segment must have.
        livetime: seconds of output.
    """

    events: Events
    segments: tuple[ChallengeSegment, ...]
    skipped: tuple[ChallengeSegment, ...]
    shortest: float
    livetime: float

    @property
    def duration(self) -> float:
        """Seconds of the segments that were searched."""
        return sum(s.duration for s in self.segments)


def shortest(conditioning: Conditioning, settings: Settings, context: float = 0.0) -> float:
    """Seconds of strain that a segment must have: psd_length, and what gives one output of a network with so much context."""
    output = conditioning.kernel_length + conditioning.fduration + settings.inference.integration_window_length
    output += math.ceil(context * settings.inference.inference_rate - 1e-6) / settings.inference.inference_rate + context
    return max(conditioning.psd_length, output) if settings.cover_start else conditioning.psd_length + output


def analyze(
    files: Sequence[str | Path], engine: Engine, settings: Settings, *, progress: Callable[[float, float], None] | None = None
) -> Analysis:
    """Search strain files of the challenge; the events of all of them, by time.

    Outputs look at whole kernels with their context and integration windows, so a merger within fduration / 2 of an end of its
    segment is not seen, and one within about kernel_length + integration_window_length + context of it may lose loudness.

    Args:
        files: see `aframe_assets.inference.mlgwsc1.files`.
        engine: the network; detectors, sample rate and conditioning are its own.
        settings: of the search.
        progress: called with seconds done and seconds in all.

    Raises:
        ChallengeError: what is wrong with the files, a rate that does not divide the sample rate, or another `psd_source`.
    """
    if settings.inference.psd_source != "preceding":
        raise ChallengeError(
            f"inference.psd_source = {settings.inference.psd_source}: challenge files are whitened with the psd_length before each block, "
            "so the run's calibration of merger times does not hold; expected a run with inference.psd_source: preceding. The folder of "
            "the run's exported network or engine, as model, is searched with the defaults and without calibration"
        )
    conditioning = Conditioning.model_validate(engine.conditioning)
    stride = engine.sample_rate / settings.inference.inference_rate
    if abs(stride - round(stride)) > 1e-9:
        raise ChallengeError(
            f"inference_rate = {settings.inference.inference_rate:g} Hz: expected a rate that divides the model's {engine.sample_rate:g} Hz"
        )
    found = list_segments(files, engine.ifos, engine.sample_rate)
    need = shortest(conditioning, settings, getattr(engine, "context", 0) / engine.sample_rate)
    # at the model's rate, as they are searched
    lengths = [SegmentReader(s, engine.sample_rate).size / engine.sample_rate for s in found]
    segments = tuple(s for s, seconds in zip(found, lengths, strict=True) if seconds >= need)
    skipped = tuple(s for s, seconds in zip(found, lengths, strict=True) if seconds < need)
    if not segments:
        longest = max(skipped, key=lambda s: s.duration)
        raise ChallengeError(f"{longest}: the longest of {len(skipped)} segments has {longest.duration:g} s; expected at least {need:g} s")
    total, done, live = sum(s.duration for s in segments), 0.0, 0
    parts: list[np.ndarray] = []
    for segment in segments:
        with SegmentReader(segment, engine.sample_rate) as reader:
            search = None
            for seconds, streams in _whitened(reader, engine, conditioning, settings):
                if search is None:
                    search = StreamingSearch(engine, _first_whitened(segment, conditioning, settings), settings)
                parts.append(search.update(streams) if streams is not None else search.finish())
                if progress:
                    progress(done + min(seconds, segment.duration), total)
            live += search.outputs if search else 0
        done += segment.duration
    table = np.concatenate(parts)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return Analysis(Events(*table.T), segments, skipped, need, live / settings.inference.inference_rate)


def _first_whitened(segment: ChallengeSegment, c: Conditioning, settings: Settings) -> float:
    return segment.gps_start + c.fduration / 2 + (0.0 if settings.cover_start else c.psd_length)


def _whitened(
    reader: SegmentReader, engine: Engine, conditioning: Conditioning, settings: Settings
) -> Iterator[tuple[float, list[np.ndarray] | None]]:
    """Seconds read so far and what they add to each detector's whitened strain; None instead of streams ends the segment."""
    whitener = Whitener(conditioning, engine.sample_rate)
    block = round(settings.inference.batch_size / settings.inference.inference_rate * engine.sample_rate)
    machines = [SegmentWhitener(whitener, block, settings.cover_start) for _ in engine.ifos]
    step = round(PIECE * engine.sample_rate)
    for first in range(0, reader.size, step):
        stop = min(first + step, reader.size)
        yield stop / engine.sample_rate, [m.update(reader.read(i, first, stop)) for m, i in zip(machines, engine.ifos, strict=True)]
    yield reader.size / engine.sample_rate, [m.finish() for m in machines]
    yield reader.size / engine.sample_rate, None


class SegmentWhitener:
    """A `StreamingWhitener` ('preceding') that forgets its PSDs, and whitens the first psd_length seconds too, with their own PSD.

    With `cover_start` whitened sample 0 is that of strain sample `crop`, and strain must be at least psd_length long.
    """

    def __init__(self, whitener: Whitener, block: int, cover_start: bool = True) -> None:
        self._rest = StreamingWhitener(whitener, block)
        self._whitener, self._start = whitener, [np.empty(0)] if cover_start else []

    def update(self, strain: np.ndarray) -> np.ndarray:
        """Whitened samples that `strain` completes, float32."""
        rest = self._rest.update(strain)
        # kept there for signals to be whitened later; in a month that would be gigabytes
        self._rest.psds.clear()
        if not self._start:
            return rest
        self._start.append(np.asarray(strain, np.float64))
        if sum(map(len, self._start)) < self._rest.settle + 2 * self._rest.crop:
            return rest
        return np.concatenate([self._begin(), rest])

    def finish(self) -> np.ndarray:
        """The last, shorter block; the stream has ended."""
        rest = self._rest.finish()
        return np.concatenate([self._begin(), rest]) if self._start else rest

    def _begin(self) -> np.ndarray:
        data = torch.from_numpy(np.concatenate(self._start)[: self._rest.settle + 2 * self._rest.crop])
        self._start = []
        return self._whitener.whiten(data[None], self._whitener.psd(data[: self._rest.settle])[None])[0].numpy()


class StreamingPeaks:
    """Events of a time series that arrives in pieces: those of `clustering.cluster` of the whole, with their values.

    Args:
        half: samples of half a cluster window, >= 1.
    """

    def __init__(self, half: int) -> None:
        self.half = half
        self._values, self._first = np.empty(0), 0
        self._at: int | None = None

    def update(self, values: np.ndarray) -> list[tuple[int, float]]:
        """Events that `values` decide: sample (from the start of the series) and value."""
        values = np.asarray(values, np.float64)
        self._values = np.concatenate([self._values, np.where(np.isnan(values), -np.inf, values)])
        return self._walk(final=False)

    def finish(self) -> list[tuple[int, float]]:
        """The events of what is left; the series has ended."""
        return self._walk(final=True)

    def _walk(self, final: bool) -> list[tuple[int, float]]:
        out: list[tuple[int, float]] = []
        y, half = self._values, self.half
        if self._at is None:
            if not len(y) or (len(y) < half and not final):
                return out
            self._at = int(y[:half].argmax())
        at = self._at - self._first
        while at < len(y) and (final or at + half < len(y)):
            ahead = y[at + 1 : at + 1 + half]
            best = int(ahead.argmax()) if len(ahead) else 0
            if len(ahead) and ahead[best] > y[at]:
                at += best + 1
                continue
            if y[at] > -np.inf:
                out.append((self._first + at, float(y[at])))
            at += half + 1
        self._at = self._first + at
        drop = min(at, len(y))
        self._values, self._first = y[drop:].copy(), self._first + drop
        return out


class StreamingSearch:
    """Whitened strain of all detectors in, events out.

    Attributes:
        outputs: valid outputs so far.

    Args:
        engine: the network.
        gps_start: GPS seconds of whitened sample 0.
        settings: of the search.
    """

    def __init__(self, engine: Engine, gps_start: float, settings: Settings) -> None:
        inference = settings.inference
        self.engine, self.gps_start, self.settings = engine, gps_start, settings
        self.fs, self.kernel = engine.sample_rate, engine.kernel
        self.stride = round(self.fs / inference.inference_rate)
        self.boxcar = int(inference.inference_rate * inference.integration_window_length) + 1
        half = int(inference.inference_rate * inference.cluster_window_length) // 2
        if half < 1:
            raise ChallengeError(f"cluster_window_length = {inference.cluster_window_length:g} s: expected at least two outputs")
        self.outputs = 0
        self.context = getattr(engine, "context", 0)
        # the first output whose windows have their context
        self._lead = -(-self.context // self.stride)
        self._stream = None if getattr(engine, "form", "windows") == "windows" else FrameStream(engine, self.stride)
        self._peaks = StreamingPeaks(half)
        self._streams = [np.empty(0, np.float32) for _ in engine.ifos]
        self._first = 0
        self._reach = round(REACH * self.fs)
        # an event is decided `half` outputs late, waits for REACH, and looks REACH and a kernel back; scores come a block late
        self._keep = (half + self.boxcar + 2) * self.stride + 2 * self._reach + self.kernel + 4 * self.context
        self._keep += 0 if self._stream is None else engine.block
        self._scores, self._scores_first = np.empty(0), 0
        self._waiting: list[tuple[int, float]] = []

    @property
    def _end(self) -> int:
        return self._first + len(self._streams[0])

    def _windows(self) -> SlidWindows:
        return SlidWindows(self._streams, (0,) * len(self._streams), self.kernel, context=self.context)

    def update(self, streams: Sequence[np.ndarray]) -> np.ndarray:
        """Rows (time, stat, var) of the events that `streams` (one per detector, any equal length) complete."""
        self._streams = [np.concatenate([a, b]) for a, b in zip(self._streams, streams, strict=True)]
        if self._stream is None:
            new = np.arange(self._scores_first + len(self._scores), max(0, (self._end - self.kernel - self.context) // self.stride + 1))
            self._add(self._windows().score(self.engine, new * self.stride - self._first, self.settings.inference.batch_size))
        else:
            self._add(self._stream.update(np.stack(streams))[1])
        out = self._resolve(final=False)
        drop = max(0, len(self._streams[0]) - self._keep)
        self._streams, self._first = [s[drop:].copy() for s in self._streams], self._first + drop
        spare = max(0, len(self._scores) - self._keep // self.stride)
        self._scores, self._scores_first = self._scores[spare:], self._scores_first + spare
        return out

    def _add(self, scores: np.ndarray) -> None:
        """The next outputs."""
        first = self._scores_first + len(self._scores)
        if self._stream is not None and not first and len(scores):
            scores = np.concatenate([np.full(self._lead, np.nan), scores])
        new = np.arange(first, first + len(scores))
        self._scores = np.concatenate([self._scores, scores])
        statistic = integrate(self._scores[max(0, len(self._scores) - len(new) - self.boxcar + 1) :], self.boxcar)
        statistic = statistic[len(statistic) - len(new) :] if len(new) else np.empty(0)
        whole = new >= self._lead + self.boxcar - 1
        statistic[~whole] = -np.inf
        self.outputs += int(whole.sum())
        self._waiting += [e for e in self._peaks.update(statistic) if e[1] >= self.settings.threshold]

    def finish(self) -> np.ndarray:
        """The events that are left; the segment has ended."""
        if self._stream is not None:
            self._add(self._stream.finish()[1])
        self._waiting += [e for e in self._peaks.finish() if e[1] >= self.settings.threshold]
        return self._resolve(final=True)

    def _resolve(self, final: bool) -> np.ndarray:
        # both the data and the scores of all that an event's time is found from
        looked, known = self.kernel + self._reach + self.context, self._scores_first + len(self._scores)
        late = int(REACH * self.settings.inference.inference_rate)
        count = sum(final or (k * self.stride + looked <= self._end and k + late < known) for k, _ in self._waiting)
        ready, self._waiting = self._waiting[:count], self._waiting[count:]
        return np.array([self._event(k, value) for k, value in ready]).reshape(-1, 3)

    def _event(self, output: int, statistic: float) -> tuple[float, float, float]:
        """Time, statistic and var of the event at `output`."""
        inference, calibration = self.settings.inference, self.settings.calibration
        kernel_length, integration = self.kernel / self.fs, inference.integration_window_length
        right_edge = self.gps_start + (output * self.stride + self.kernel) / self.fs
        edge = EDGES.index(calibration.edge)
        if statistic >= self.settings.refine_above:
            rescorer = Rescorer(
                self._windows(),
                self.engine,
                self.gps_start + self._first / self.fs,
                self.fs,
                kernel_length,
                integration,
                inference.merger_time_rate,
                inference.batch_size,
            )
            raw, var = rescorer.raw(right_edge - integration)[edge], self.settings.fine_var
        else:
            raw, var = self._coarse(output, right_edge)[edge], self.settings.coarse_var
        if np.isnan(raw):
            # no plateau: about the middle of the kernels that were integrated, so the merger is somewhere in one
            return right_edge - integration, statistic, kernel_length if self.settings.var is None else self.settings.var
        return raw - calibration.offset, statistic, var

    def _coarse(self, output: int, right_edge: float) -> np.ndarray:
        """Raw times from the scores of the search itself."""
        inference = self.settings.inference
        reach = int(REACH * inference.inference_rate)
        low = max(self._scores_first, output - reach)
        scores = self._scores[low - self._scores_first : output + reach + 1 - self._scores_first]
        edges = right_edge + (np.arange(low, low + len(scores)) - output) / inference.inference_rate
        there = np.isfinite(scores)
        raw = raw_times(edges[there], scores[there], right_edge, self.kernel / self.fs, inference.integration_window_length)
        # a plateau begins up to a step before the first window on it and ends up to a step after the last; half of it on average,
        # of which the calibration's own, finer step has its share
        late = (1 / inference.inference_rate - 1 / inference.merger_time_rate) / 2
        return raw + np.array([-late, 0.0, late])
