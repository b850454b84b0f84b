"""Candidates in strain files: read, whiten, score, cluster, and find when each merged.

Everything is as in the zero lag of a search with the same settings, so that the search's background gives the FAR.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from aframe_assets.config import SECONDS_PER_YEAR, Conditioning, Config
from aframe_assets.engine.engine import Engine
from aframe_assets.inference.cascade import Thresholds, TriggerChooser, unfiltered
from aframe_assets.inference.merger_time import Calibration, merger_time
from aframe_assets.inference.slides import score_zero_lag
from aframe_assets.inference.whitened import WhitenedChunk
from aframe_assets.segments.geometry import SlideGeometry
from aframe_assets.segments.vetoes import Veto, find_vetoes, vetoed_times
from aframe_assets.strain.fetch import require_usable
from aframe_assets.strain.files import StrainError, describe_all, require_overlap, resampled_stretch

log = logging.getLogger(__name__)


class SlidEvents(Protocol):
    """Background: `detection_statistic` of slid events (n,), and their livetime `Tb`, seconds."""

    detection_statistic: np.ndarray
    Tb: float


@dataclass(frozen=True)
class Candidate:
    """One event of the zero lag.

    Attributes:
        detection_time: GPS seconds, right edge of the last kernel less the integration window.
        merger_time: GPS seconds, or None when no plateau was found.
        merger_time_width90: length of the interval that holds it at 90 %, seconds, from injections; the kernel's without any.
        detection_statistic: integrated logit.
        far: Hz; None without a background.
        far_is_limit: nothing in the background is as loud, the rate is below `far`.
    """

    detection_time: float
    merger_time: float | None
    merger_time_width90: float | None
    detection_statistic: float
    far: float | None
    far_is_limit: bool

    @property
    def far_per_year(self) -> float | None:
        return None if self.far is None else self.far * SECONDS_PER_YEAR


@dataclass(frozen=True)
class Detection:
    """What was found in some files.

    Attributes:
        candidates: loudest first.
        ifos: detectors.
        analysed: (first, last) detection time of each stretch whose outputs count, GPS seconds.
        livetime: seconds of output.
        skipped: stretches that were too short, (start, stop) GPS seconds.
        vetoed: stretches of the files that the run's vetoes leave out, each with detector, flag and where that is written.
        unanswered: vetoes that the files have no mask for, a line each; nothing is left out for them.
        background_livetime: seconds behind the FARs, 0 without a background.
        calibration: of the merger times; its `num` is 0 when it is nominal.
    """

    candidates: tuple[Candidate, ...]
    ifos: tuple[str, ...]
    analysed: tuple[tuple[float, float], ...]
    livetime: float
    skipped: tuple[tuple[float, float], ...]
    vetoed: tuple[Veto, ...]
    unanswered: tuple[str, ...]
    background_livetime: float
    calibration: Calibration

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        values = asdict(self)
        values["vetoed"] = [v._asdict() for v in self.vetoed]
        values["candidates"] = [asdict(c) | {"far_per_year": c.far_per_year} for c in self.candidates]
        return values


def shortest(conditioning: Conditioning, integration: float, around: float = 0.0) -> float:
    """Seconds of strain that give one output: PSD length + kernel + fduration + integration + what the context takes `around` them."""
    return conditioning.psd_length + conditioning.kernel_length + conditioning.fduration + integration + around


def _around(config: Config) -> float:
    """Seconds that the network's context takes: before the first output in whole inference steps, after it as it is."""
    context, rate = config.model.architecture.context, config.inference.inference_rate
    return math.ceil(context * rate - 1e-6) / rate + context


def detect(
    files: Sequence[str | Path],
    engine: Engine,
    config: Config,
    calibration: Calibration | None = None,
    background: SlidEvents | None = None,
    *,
    max_candidates: int = 10,
    thresholds: Thresholds | None = None,
) -> Detection:
    """Search strain files of all detectors of `engine`.

    Args:
        files: strain files, folders or globs, in any layout that `aframe_assets.strain.files` reads.
        engine: the network; detectors, sample rate and conditioning are its own.
        config: rates, windows, data quality and vetoes of the search that `background` comes from, and the context of its network;
            masks are those of `files`.
        calibration: of merger times, from that search.
        background: its slid events and their livetime.
        max_candidates: how many, loudest first, are kept and re-scored.
        thresholds: of the cascade in that search, where it was one: FARs hold for candidates that the filter keeps too.
            Without it a filter is not used.

    Raises:
        StrainError: unreadable file, missing detector, no common time, or strain that is too short; names files and numbers.
    """
    conditioning = Conditioning.model_validate(engine.conditioning)
    infos = describe_all(files)
    science = require_overlap(infos, engine.ifos, config.strain.min_dq)
    common = science[engine.ifos[0]]
    for ifo in engine.ifos[1:]:
        common = common & science[ifo]
    stretches = [(float(a), float(b)) for a, b in common]
    need = shortest(conditioning, config.inference.integration_window_length, _around(config))
    long_enough = [s for s in stretches if s[1] - s[0] >= need]
    if not long_enough:
        raise StrainError(_too_short(infos, stretches, need, conditioning, config))
    skipped = tuple(s for s in stretches if s not in long_enough)
    for a, b in skipped:
        log.warning("GPS %.10g to %.10g: %g s of common strain, shorter than the %g s needed; skipped", a, b, b - a, need)
    if calibration is None or not calibration.num:
        calibration = Calibration.nominal(engine.bundle, conditioning.kernel_length)
    settled = config.model_copy(update={"conditioning": conditioning, "ifos": list(engine.ifos)})
    unanswered: list[str] = []
    vetoed = find_vetoes(settled, long_enough, infos, unanswered)
    for line in unanswered:
        log.warning("%s; not vetoed", line)
    times = vetoed_times(vetoed, engine.ifos)
    chooser = TriggerChooser.of(thresholds, config.inference) if thresholds else None
    engine = engine if thresholds else unfiltered(engine)
    found, analysed, livetime = [], [], 0.0
    for start, stop in long_enough:
        strain = (_usable(infos, ifo, start, stop, engine.sample_rate, config.strain.min_dq) for ifo in engine.ifos)
        chunk = WhitenedChunk.of(
            strain, start, engine.sample_rate, conditioning, block=config.psd_block, psd_source=config.inference.psd_source
        )
        scored = score_zero_lag(chunk, SlideGeometry.of(settled, start, stop, vetoes=times), engine, config.inference, chooser)
        livetime += scored.events.Tb
        analysed += scored.spans
        found += [(s, t, scored) for s, t in zip(scored.events.detection_statistic, scored.events.detection_time, strict=True)]
    found.sort(key=lambda f: -f[0])
    candidates = tuple(
        _candidate(s, t, merger_time(scored.rescorer, t, calibration), background) for s, t, scored in found[:max_candidates]
    )
    return Detection(
        candidates,
        tuple(engine.ifos),
        tuple(analysed),
        livetime,
        skipped,
        tuple(vetoed),
        tuple(unanswered),
        background.Tb if background is not None else 0.0,
        calibration,
    )


def _usable(infos: Sequence[Any], ifo: str, start: float, stop: float, sample_rate: float, min_dq: str) -> np.ndarray:
    stretch = resampled_stretch(infos, ifo, start, stop, sample_rate, min_dq=min_dq)
    require_usable(stretch, start, stop, sample_rate)
    return stretch.strain


def _candidate(statistic: float, detection_time: float, merger: tuple[float, float] | None, background: SlidEvents | None) -> Candidate:
    far, limit = None, False
    if background is not None and background.Tb > 0:
        louder = int((background.detection_statistic >= statistic).sum())
        far, limit = max(louder, 1) / background.Tb, louder == 0
    time, width = merger or (None, None)
    return Candidate(float(detection_time), time, width, float(statistic), far, limit)


def _too_short(infos: Sequence[Any], stretches: Sequence[tuple[float, float]], need: float, c: Conditioning, config: Config) -> str:
    longest = max(stretches, key=lambda s: s[1] - s[0])
    integration, around = config.inference.integration_window_length, _around(config)
    return (
        f"{'; '.join(map(str, infos))}: the longest common stretch, GPS {longest[0]:.10g} to {longest[1]:.10g}, "
        f"has {longest[1] - longest[0]:g} s; expected at least {need:g} s = psd_length {c.psd_length:g} "
        f"+ kernel_length {c.kernel_length:g} + fduration {c.fduration:g} + integration_window_length {integration:g}"
        f"{f' + {around:g} for its context' if around else ''}; "
        "give longer files, or neighbouring ones together"
    )
