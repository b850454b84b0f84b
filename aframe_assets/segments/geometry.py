"""Where the outputs of a slid chunk lie, which of them count, and where signals may be placed.

One class answers for injections, inference and the livetime check, so that the three cannot disagree.
Reference 2.5 and 2.11; the differences are: only outputs with a full integration window behind them count,
and outputs that touch a catalogue merger or vetoed strain in any detector's own time do not.

Frame: times are those of a detector whose shift is 0; a detector with shift s reads its data s seconds later.
Whitened data of a chunk [gps_start, gps_stop) exist on [whitened_start, whitened_stop): the PSD length (when the
PSD comes from the preceding data) and half of fduration are spent at the start, half of fduration at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from aframe_assets.config import Config

_EPS = 1e-6


@dataclass(frozen=True)
class SlideGeometry:
    """Outputs of one chunk at any shift.

    Attributes:
        gps_start: first sample of the chunk, GPS seconds.
        duration: seconds.
        settle: seconds spent on the first PSD (psd_length, or 0 with one PSD per chunk).
        fduration: length of the whitening filter, seconds.
        kernel_length: seconds of whitened data per window.
        inference_rate: windows per second.
        integration_window_length: seconds; the boxcar has int(rate * length) + 1 samples (reference 2.11).
        ring: slide in a ring inside the chunk instead of cutting the overlap.
        mergers: GPS times that outputs may not touch (geocentric times; `exclude_pad` covers the delay).
        exclude_pad: seconds on each side of a merger.
        vetoes: for each detector, in the order of shifts, the GPS [start, stop) of its strain that is vetoed, ascending and
            disjoint; () where there are none at all. Unlike `mergers` they also hold for zero lag.
        context: seconds of whitened data on each side of the kernel that the network sees too.
    """

    gps_start: float
    duration: float
    settle: float
    fduration: float
    kernel_length: float
    inference_rate: float
    integration_window_length: float
    ring: bool = False
    mergers: tuple[float, ...] = ()
    exclude_pad: float = 0.5
    vetoes: tuple[tuple[tuple[float, float], ...], ...] = ()
    context: float = 0.0

    @classmethod
    def of(
        cls,
        config: Config,
        gps_start: float,
        gps_stop: float,
        mergers: Sequence[float] = (),
        vetoes: Mapping[str, np.ndarray] | None = None,
    ) -> SlideGeometry:
        """The geometry of chunk [gps_start, gps_stop) under `config`.

        Args:
            mergers: GPS times of known mergers; used only if config excludes a catalogue.
            vetoes: {ifo: (n, 2)} of the whole search, see `aframe_assets.segments.vetoes.vetoed_times`.
        """
        c, i = config.conditioning, config.inference
        near = tuple(m for m in mergers if gps_start - 10 <= m <= gps_stop + 10) if i.exclude_catalog else ()
        settle = c.psd_length if i.psd_source == "preceding" else 0.0
        return cls(
            gps_start,
            gps_stop - gps_start,
            settle,
            c.fduration,
            c.kernel_length,
            i.inference_rate,
            i.integration_window_length,
            i.slide_mode == "ring",
            near,
            i.exclude_pad,
            tuple(_within(vetoes.get(ifo), gps_start, gps_stop) for ifo in config.ifos) if vetoes else (),
            config.model.architecture.context,
        )

    @property
    def boxcar(self) -> int:
        """Samples of the integration window."""
        return int(self.inference_rate * self.integration_window_length) + 1

    @property
    def whitened_start(self) -> float:
        return self.gps_start + self.settle + self.fduration / 2

    @property
    def whitened_duration(self) -> float:
        """Seconds of whitened data; in a ring a whole number of inference steps. May be <= 0."""
        span = self.duration - self.settle - self.fduration
        return math.floor(span * self.inference_rate + _EPS) / self.inference_rate if self.ring else span

    def num_windows(self, shift: Sequence[float]) -> int:
        """Windows of the slid chunk, valid or not."""
        if self.ring:
            return max(0, round(self.whitened_duration * self.inference_rate)) if self.whitened_duration >= self.kernel_length else 0
        return max(0, math.floor((self.whitened_duration - max(shift) - self.kernel_length) * self.inference_rate + _EPS) + 1)

    def right_edges(self, shift: Sequence[float]) -> np.ndarray:
        """GPS time of the right edge of every window's whitened kernel, shape (num_windows,)."""
        return self.whitened_start + self.kernel_length + np.arange(self.num_windows(shift)) / self.inference_rate

    def valid(self, shift: Sequence[float]) -> np.ndarray:
        """Which integrated outputs count, shape (num_windows,), bool.

        An output's footprint in a detector is the kernel, the integration before it and the context on both sides. It counts
        when the footprint lies inside the data of every detector (no edge, no ring seam) and touches no merger in that detector's
        own time.
        Nor may any strain that whitening mixes into the footprint, fduration / 2 more on each side, be vetoed: the same that is
        lost at the edges of a chunk. Footprints and vetoes that only meet do not touch.
        In a ring a shift of a full lap or more repeats an earlier slide, or none at all: nothing of it counts.
        """
        n = self.num_windows(shift)
        back = (self.boxcar - 1) / self.inference_rate
        start = np.arange(n) / self.inference_rate - back
        length = self.kernel_length + back + 2 * self.context
        good = start >= -_EPS
        if self.ring and max(shift) >= self.whitened_duration - _EPS:
            good[:] = False
        for c, s in enumerate(shift):
            own = start + s - self.context
            if self.ring:
                own = np.mod(own + _EPS, self.whitened_duration) - _EPS
            good &= (own >= -_EPS) & (own + length <= self.whitened_duration + _EPS)
            for m in self.mergers:
                offset = m - self.whitened_start
                good &= (own - self.exclude_pad > offset) | (own + length + self.exclude_pad < offset)
            if self.vetoes and len(self.vetoes[c]):
                starts, stops = self._vetoes[c]
                # the first veto that ends after the strain begins; being disjoint, no other can touch it earlier
                first = np.searchsorted(stops, own - self.fduration / 2 + _EPS, side="right")
                good &= starts[first] >= own + length + self.fduration / 2 - _EPS
        return good

    @cached_property
    def _vetoes(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Starts and stops of each detector's vetoes in seconds from whitened_start; one start at infinity is last."""
        tables = [np.array(v, np.float64).reshape(-1, 2) - self.whitened_start for v in self.vetoes]
        return [(np.append(t[:, 0], np.inf), t[:, 1]) for t in tables]

    def livetime(self, shift: Sequence[float]) -> float:
        """Seconds of valid output, exactly num_valid / inference_rate; 0 when nothing is analysable."""
        return float(self.valid(shift).sum()) / self.inference_rate

    def injection_times(self, shift: Sequence[float], *, step: float, buffer: float, jitter: float, rng: np.random.Generator) -> np.ndarray:
        """GPS merger times on a jittered grid, each with every output it can be seen in valid.

        Args:
            shift: shift vector, seconds.
            step: seconds between grid points (waveform duration + spacing, reference 2.5).
            buffer: seconds kept free at both ends of the whitened data.
            jitter: each time is moved by U(-jitter, jitter).
            rng: source of the jitter; drawn for every grid point, so that dropping one moves no other.
        """
        edges = self.right_edges(shift)
        if not len(edges):
            return np.empty(0)
        first = edges[0] + buffer
        last = edges[-1] - self.kernel_length - self.integration_window_length - buffer
        grid = np.arange(first, last + _EPS, step)
        grid = grid + rng.uniform(-jitter, jitter, len(grid))
        return grid[self.sees(shift, grid)]

    def sees(self, shift: Sequence[float], times: np.ndarray) -> np.ndarray:
        """Which mergers at GPS `times` (n,) have every output that they can be seen in, and all of these valid: (n,), bool."""
        edges, good = self.right_edges(shift), self.valid(shift)
        if not len(edges):
            return np.zeros(len(times), bool)
        reach = self.kernel_length + self.integration_window_length
        bad = np.concatenate([[0], np.cumsum(~good)])
        # seen in the context first, in the kernels, and last in the context
        seen, gone = times - self.context, times + reach + self.context
        low = np.searchsorted(edges, seen - _EPS)
        high = np.searchsorted(edges, gone + _EPS)
        # The outputs that see a signal must exist: none before the first or after the last.
        inside = (seen > edges[0] - 1 / self.inference_rate) & (gone < edges[-1] + 1 / self.inference_rate)
        return inside & (bad[high] - bad[low] == 0)

    def detection_times(self, shift: Sequence[float], convention: str = "right_edge") -> np.ndarray:
        """The time given to an event at each output: right edge less the integration window (upstream V2).

        'upstream_v1' is one inference sample earlier (reference 2.11, step 4).
        """
        times = self.right_edges(shift) - self.integration_window_length
        return times - 1 / self.inference_rate if convention == "upstream_v1" else times


def _within(vetoes: np.ndarray | None, start: float, stop: float) -> tuple[tuple[float, float], ...]:
    if vetoes is None:
        return ()
    first, last = np.searchsorted(vetoes[:, 1], start, side="right"), np.searchsorted(vetoes[:, 0], stop, side="left")
    return tuple(map(tuple, vetoes[first:last].tolist()))


def shift_vectors(num_slides: int, shifts: Sequence[float]) -> list[tuple[float, ...]]:
    """Shift vectors of slides 1..num_slides: slide i is i times `shifts`."""
    return [tuple(i * s for s in shifts) for i in range(1, num_slides + 1)]


def num_slides(config: Config, geometries: Sequence[SlideGeometry]) -> int:
    """Slides needed for ``inference.Tb`` seconds of background, or ``inference.num_slides`` if set.

    Raises:
        ValueError: the chunks cannot give Tb at any number of slides; says what they give.
    """
    if config.inference.num_slides is not None:
        return config.inference.num_slides
    live, n = 0.0, 0
    while live < config.inference.Tb:
        n += 1
        gained = sum(g.livetime(v) for g in geometries for v in shift_vectors(n, config.inference.shifts)[-1:])
        if gained == 0:
            raise ValueError(
                f"inference.Tb = {config.inference.Tb:g} s: {len(geometries)} test chunks give at most {live:g} s in {n - 1} slides"
                f"{' after vetoes' if config.vetoes.asked else ''}; lower inference.Tb, add test data or use smaller inference.shifts"
            )
        live += gained
    return n
