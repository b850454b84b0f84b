"""What the network saw of an event, and what each detector had to do with it.

The network looks at all detectors at once, so its statistic is no sum over detectors. What one of them contributes is measured as
slides measure noise: the same windows are scored again with that detector at the event and the others at some other moment of the same
stretch, where there is only noise. Data stay real and in the network's own domain, which zeros would not be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aframe_assets.config import Config
from aframe_assets.inference.merger_time import Calibration, Rescorer, merger_time
from aframe_assets.inference.windows import SlidWindows
from aframe_assets.sensitivity.surroundings import Surroundings

MOMENTS = 16
"""Moments of noise that a detector is moved to."""

FEWEST = 4
"""With fewer, nothing is said."""

APART = 4.0
"""Seconds between the event and noise that is put in its place, beyond all that one statistic looks at."""

SHOWN = 3.0
"""Seconds of output before and after an event."""


@dataclass(frozen=True)
class Share:
    """The statistic with some detectors at the event and the others at moments of noise.

    Attributes:
        ifos: detectors at the event; none for noise alone.
        median, low, high: of the statistic over the moments: 50, 5 and 95 %.
    """

    ifos: tuple[str, ...]
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Response:
    """What the network says about an event.

    Attributes:
        times: right edges of windows, GPS seconds (n,).
        outputs: their scores (n,).
        statistic: integrated output at the detection time.
        shares: of detectors; empty where there is too little strain about the event to put noise in the place of one.
        merger: merger time and the length of the interval that holds it at 90 %, seconds, or None.
    """

    times: np.ndarray
    outputs: np.ndarray
    statistic: float
    shares: tuple[Share, ...]
    merger: tuple[float, float] | None


class _Looker:
    """Scores of windows about one event."""

    def __init__(self, about: Surroundings, engine: Any, config: Config, time: float) -> None:
        i, c = config.inference, config.conditioning
        self.about, self.engine, self.config, self.time = about, engine, config, time
        self.fs = about.chunk.sample_rate
        self.kernel, self.context = round(c.kernel_length * self.fs), getattr(engine, "context", 0)
        self.early = 1 / i.inference_rate if i.event_time_convention == "upstream_v1" else 0.0
        self.right_edge = time + i.integration_window_length + self.early
        self.boxcar = int(i.inference_rate * i.integration_window_length) + 1

    @property
    def streams(self) -> tuple[np.ndarray, ...]:
        return self.about.chunk.streams

    def starts(self, steps: np.ndarray) -> np.ndarray:
        """Kernel starts, samples, of outputs `steps` after the one at the detection time."""
        edge = (self.right_edge - self.about.chunk.whitened_start) * self.fs
        return round(edge) - self.kernel + np.round(steps * self.fs / self.config.inference.inference_rate).astype(np.int64)

    def scores(self, frame: np.ndarray, offsets: Sequence[int]) -> np.ndarray:
        """Scores (n,) with detector c read `offsets[c]` samples later, of either sign; NaN where there is no strain."""
        size, window = len(self.streams[0]), self.kernel + 2 * self.context
        own = frame[None] + np.asarray(offsets, np.int64)[:, None] - self.context
        inside = ((own >= 0) & (own + window <= size)).all(axis=0)
        out = np.full(len(frame), np.nan)
        if inside.any():
            views = [np.lib.stride_tricks.sliding_window_view(s, window)[o[inside]] for s, o in zip(self.streams, own, strict=True)]
            out[inside] = self.engine.score_windows(np.stack(views, axis=1).astype(np.float32))
        return out

    def statistic(self, offsets: Sequence[int]) -> float:
        """Mean of the outputs that the event's statistic is the mean of, with detectors read later."""
        return float(self.scores(self.starts(np.arange(1 - self.boxcar, 1)), offsets).mean())

    def moments(self) -> list[int]:
        """Offsets in samples of noise, evenly over what strain there is, away from the event."""
        frame = self.starts(np.arange(1 - self.boxcar, 1))
        low, high = self.context - frame[0], len(self.streams[0]) - self.kernel - self.context - frame[-1]
        away = round((APART + self.config.conditioning.kernel_length + self.config.inference.integration_window_length) * self.fs)
        step = max(self.kernel // 2, 1)
        every = [o for o in range(-(-int(low) // step) * step, int(high) + 1, step) if abs(o) >= away]
        return [every[i] for i in np.unique(np.linspace(0, len(every) - 1, min(MOMENTS, len(every))).round().astype(int))] if every else []

    def share(self, present: Sequence[str], moments: Sequence[int]) -> Share:
        """The statistic with the detectors `present` at the event."""
        found = []
        for n in range(len(moments)):
            absent, offsets = 0, []
            for ifo in self.about.ifos:
                # those that are away are away from each other too
                offsets.append(0 if ifo in present else moments[(n + absent * (len(moments) // 2 + 1)) % len(moments)])
                absent += ifo not in present
            found.append(self.statistic(offsets))
        low, median, high = np.quantile(found, [0.05, 0.5, 0.95])
        return Share(tuple(present), float(median), float(low), float(high))


def respond(about: Surroundings, engine: Any, config: Config, time: float, calibration: Calibration | None = None) -> Response:
    """The network's answer about the event at `time`.

    Args:
        about: whitened strain, of at least the kernels that the event's statistic looks at.
        engine: the network of the search (`aframe_assets.engine.engine.Engine`).
        config: of the search.
        time: detection time, GPS seconds.
        calibration: of merger times; None leaves them out.

    Returns:
        the answer; with N detectors, shares of each alone, for N > 2 of all but each, and of noise alone.
    """
    look = _Looker(about, engine, config, time)
    steps = np.arange(-round(SHOWN * config.inference.inference_rate), round(SHOWN * config.inference.inference_rate) + 1)
    frame = look.starts(steps)
    outputs = look.scores(frame, [0] * len(about.ifos))
    times = about.chunk.whitened_start + (frame + look.kernel) / look.fs
    shares, moments = [], look.moments()
    if len(about.ifos) > 1 and len(moments) >= FEWEST:
        sets = [(i,) for i in about.ifos]
        if len(about.ifos) > 2:
            sets += [tuple(j for j in about.ifos if j != i) for i in about.ifos]
        shares = [look.share(s, moments) for s in [*sets, ()]]
    merger = None
    if calibration is not None and not np.isnan(outputs).all():
        merger = merger_time(_rescorer(look), time, calibration)
    kept = np.isfinite(outputs)
    return Response(times[kept], outputs[kept], look.statistic([0] * len(about.ifos)), tuple(shares), merger)


def _rescorer(look: _Looker) -> Rescorer:
    i, c = look.config.inference, look.config.conditioning
    return Rescorer(
        SlidWindows(look.streams, (0,) * len(look.streams), look.kernel, 0, look.context),
        look.engine,
        look.about.chunk.whitened_start,
        look.fs,
        c.kernel_length,
        i.integration_window_length,
        i.merger_time_rate,
        i.batch_size,
        look.early,
    )
