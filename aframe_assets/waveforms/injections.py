"""Where signals go in slid test data: a jittered grid in each slide, filled until the wanted number is reached.

The plan is a function of the table of test chunks and the configuration alone, so that the step of one chunk knows its
share without asking the others. Slide 1 of every chunk is filled first, in order of GPS time, then slide 2, and so on; the
last slide stops at the number wanted (reference 2.5, which only estimates how many slides that takes).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from aframe_assets.segments.geometry import SlideGeometry, num_slides, shift_vectors

if TYPE_CHECKING:
    from aframe_assets.config import Config


@dataclass(frozen=True)
class SlideTimes:
    """Signals of one slide of one chunk: shift vector, and GPS merger times in the frame of shift 0."""

    shift: tuple[float, ...]
    times: np.ndarray


def slide_times(config: Config, geometry: SlideGeometry, partition: str, slide: int, shift: Sequence[float]) -> np.ndarray:
    """Merger times of slide number `slide` of a chunk; jitter seeded by experiment, chunk and slide."""
    word = f"{config.seed}\x1finjections\x1f{partition}\x1f{slide}"
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big"))
    i = config.injections
    step = config.waveforms.duration + i.spacing
    return geometry.injection_times(shift, step=step, buffer=i.buffer, jitter=i.jitter, rng=rng)


def plan(
    config: Config,
    rows: Mapping[str, Mapping[str, Any]],
    mergers: Sequence[float] = (),
    vetoes: Mapping[str, np.ndarray] | None = None,
) -> dict[str, list[SlideTimes]]:
    """The slides with signals of every test chunk; they hold ``injections.num_signals`` signals together.

    Args:
        config: the experiment.
        rows: segments table, partition -> {"gps_start", "gps_stop", "role"}; chunks of other roles get none.
        mergers: GPS times of known mergers, which signals keep off.
        vetoes: {ifo: (n, 2)} vetoed GPS times, which signals keep off in each detector's own time.

    Raises:
        ValueError: the slides that are analysed have room for fewer; says for how many and what to change.
    """
    return _plan(config, rows, mergers, vetoes).slides


@dataclass(frozen=True)
class _Plan:
    """Slides with signals of each chunk, how many slides have any, and how many signals they had room for in all chunks together."""

    slides: dict[str, list[SlideTimes]]
    last: int
    room: int


def _plan(
    config: Config, rows: Mapping[str, Mapping[str, Any]], mergers: Sequence[float], vetoes: Mapping[str, np.ndarray] | None
) -> _Plan:
    order = sorted((p for p, r in rows.items() if r["role"] == "test"), key=lambda p: rows[p]["gps_start"])
    wanted = config.injections.num_signals
    out: dict[str, list[SlideTimes]] = {p: [] for p in rows}
    if not wanted:
        return _Plan(out, 0, 0)
    geometries = {p: SlideGeometry.of(config, rows[p]["gps_start"], rows[p]["gps_stop"], mergers, vetoes) for p in order}
    slides = num_slides(config, list(geometries.values()))
    placed = room = 0
    for slide, shift in enumerate(shift_vectors(slides, config.inference.shifts), 1):
        for partition in order:
            times = slide_times(config, geometries[partition], partition, slide, shift)
            room += len(times)
            times = times[: wanted - placed]
            if len(times):
                out[partition].append(SlideTimes(shift, times))
                placed += len(times)
        if placed == wanted:
            return _Plan(out, slide, room)
    raise ValueError(
        f"injections.num_signals = {wanted}: {len(order)} test chunks have room for {placed} signals in the {slides} slides that are "
        f"analysed; set injections.num_signals to at most {placed}, lower injections.spacing ({config.injections.spacing:g} s) or "
        "injections.buffer, raise inference.num_slides or inference.Tb, or add test data"
    )


@lru_cache(maxsize=4)
def _plan_of(config_json: str, rows_json: str, mergers: tuple[float, ...], vetoes_json: str) -> _Plan:
    from aframe_assets.config import Config

    vetoes = {ifo: np.array(v).reshape(-1, 2) for ifo, v in json.loads(vetoes_json).items()}
    return _plan(Config.model_validate_json(config_json), json.loads(rows_json), mergers, vetoes)


def share(
    config: Config,
    rows: Mapping[str, Mapping[str, Any]],
    partition: str,
    mergers: Sequence[float] = (),
    vetoes: Mapping[str, np.ndarray] | None = None,
    late: Mapping[str, Any] | None = None,
) -> list[SlideTimes]:
    """What `plan` gives to one chunk; the plan is made once for all chunks of a process, since a long search's takes a while.

    A chunk that is not in the plan is given signals beside it: as many for the room that it has as the chunks of the plan have for
    theirs, so that signals are spread alike over all data.

    Args:
        rows: chunks of the plan.
        late: row of `partition`, where it is none of `rows`.
    """
    vetoes_json = json.dumps({ifo: v.tolist() for ifo, v in (vetoes or {}).items()}, sort_keys=True)
    whole = _plan_of(config.model_dump_json(), json.dumps(rows, sort_keys=True), tuple(mergers), vetoes_json)
    if partition in rows:
        return whole.slides[partition]
    geometry = SlideGeometry.of(config, late["gps_start"], late["gps_stop"], mergers, vetoes)
    shifts = shift_vectors(whole.last, config.inference.shifts)
    times = [slide_times(config, geometry, partition, slide, shift) for slide, shift in enumerate(shifts, 1)]
    left = round(config.injections.num_signals * sum(map(len, times)) / whole.room) if whole.room else 0
    out = []
    for shift, own in zip(shifts, times, strict=True):
        if len(own[:left]):
            out.append(SlideTimes(shift, own[:left]))
        left -= len(own[:left])
    return out
