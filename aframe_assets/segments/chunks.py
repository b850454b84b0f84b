"""Coincident science time cut into chunks, each with a role (reference 2.1, 2.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from aframe_assets.segments.query import coincident

if TYPE_CHECKING:
    from aframe_assets.config import Config

Role = Literal["train", "validation", "test"]


@dataclass(frozen=True, order=True)
class Chunk:
    """A chunk of coincident science time, GPS [gps_start, gps_stop) in whole seconds."""

    gps_start: int
    gps_stop: int
    role: Role

    @property
    def duration(self) -> int:
        """Seconds."""
        return self.gps_stop - self.gps_start

    @property
    def key(self) -> str:
        """Partition key."""
        return f"{self.gps_start}-{self.duration}"


@dataclass
class Cut:
    """What cutting left out or joined.

    Attributes:
        short: coincident stretches below the role's minimum, not used.
        short_seconds: their livetime.
        longest_short: the longest of them, seconds.
        merged: remainders too short to stand alone, joined to the chunk before them.
        split: chunks cut in two so that both training and validation have data.
    """

    short: int = 0
    short_seconds: float = 0.0
    longest_short: float = 0.0
    merged: int = 0
    split: int = 0


def windows(config: Config) -> dict[str, tuple[float, float]]:
    """GPS [start, stop) of the roles 'train' (training and validation) and 'test', by ``config.segments``.

    Where all weights are given nothing is trained, so there is no 'train'. With source ``strain_files`` a missing bound is open.

    Raises:
        ValueError: no training times, though a model is to be trained.
    """
    s = config.segments
    out = {}
    if config.model.trains:
        if s.train_start is None or s.train_stop is None:
            raise ValueError(
                "segments.train_start, segments.train_stop = None: expected GPS times, since a model is trained (model.weights is not set)"
            )
        out["train"] = (s.train_start, s.train_stop)
    test_start = s.test_start if s.test_start is not None else s.train_stop
    out["test"] = (-math.inf if test_start is None else test_start, math.inf if s.test_stop is None else s.test_stop)
    return {role: w for role, w in out.items() if w[1] > w[0]}


def cut(segments: Any, min_duration: float, max_duration: float, report: Cut | None = None) -> list[tuple[int, int]]:
    """Cut science segments in pieces.

    Bounds are moved inwards to whole seconds. Segments of at least `min_duration` (inclusive) are cut in steps of
    `max_duration` from their start; a last piece shorter than min(min_duration, max_duration) is joined to the one before
    it (upstream keeps it, however short: reference 2.2), so a piece may be longer than `max_duration` by less than that.

    Args:
        segments: (start, stop) pairs, GPS seconds.
        min_duration, max_duration: seconds; max_duration -1 never cuts.

    Returns:
        (start, stop) in whole GPS seconds, by time.
    """
    report = Cut() if report is None else report
    out = []
    for a, b in sorted((float(a), float(b)) for a, b in segments):
        start, stop = math.ceil(a), math.floor(b)
        length = stop - start
        if length < min_duration or length <= 0:
            report.short += 1
            report.short_seconds += b - a
            report.longest_short = max(report.longest_short, b - a)
            continue
        step = length if max_duration == -1 else max(1, int(max_duration))
        edges = [*range(start, stop, step), stop]
        if len(edges) > 2 and edges[-1] - edges[-2] < min(min_duration, step):
            del edges[-2]
            report.merged += 1
        out += list(pairwise(edges))
    return out


def make_chunks(
    config: Config, science: dict[str, Any], before: Iterable[Chunk] = (), retired: Iterable[tuple[int, int]] = ()
) -> tuple[list[Chunk], Cut]:
    """Chunks of all roles.

    Test and training times are cut apart at their windows' bounds. Of the training chunks, the latest are for validation
    until they sum to ``segments.min_valid_duration``, but never all; a single one is cut in two.

    Args:
        science: science segments of each detector, `aframe_assets.segments.query.science_segments`.
        before: chunks that there were. They stay as they are, role and all, where they lie in coincident time and their window.
        retired: GPS [start, stop) of which there shall be no chunk.

    Returns:
        Chunks by time, and what was left out.

    Raises:
        ValueError: a single training chunk, too short to be cut in two.
    """
    from igwn_segments import segment, segmentlist

    both, report, chunks = coincident(science), Cut(), []
    both = both - segmentlist(segment(a, b) for a, b in retired).coalesce()
    for window, (start, stop) in windows(config).items():
        within = both & segmentlist([segment(start, stop)])
        own = (c for c in before if (c.role == "test") == (window == "test"))
        stay = [c for c in own if segment(c.gps_start, c.gps_stop) in within]
        minimum = config.segments.train_min_duration if window == "train" else config.segments.test_min_duration
        left = within - segmentlist(segment(c.gps_start, c.gps_stop) for c in stay).coalesce()
        pieces = cut(left, minimum, config.segments.max_duration, report)
        if window == "test":
            chunks += [*stay, *(Chunk(a, b, "test") for a, b in pieces)]
        else:
            chunks += _training_chunks(config, stay, pieces, report)
    return sorted(chunks), report


def _training_chunks(config: Config, stay: Sequence[Chunk], pieces: list[tuple[int, int]], report: Cut) -> list[Chunk]:
    """`stay` with the roles that they have, and `pieces` with new ones; all anew where one of both roles has lost its last chunk."""
    wanted = config.segments.min_valid_duration
    if {c.role for c in stay} == {"train", "validation"}:
        have = sum(c.duration for c in stay if c.role == "validation")
        # (0, 0) stands for the training chunks that there are: all of the new ones may validate
        roles = training_roles([(0, 0), *pieces], wanted - have)[1:] if have < wanted else ["train"] * len(pieces)
        return [*stay, *(Chunk(a, b, r) for (a, b), r in zip(pieces, roles, strict=True))]
    pieces = _two_at_least(config, sorted([*((c.gps_start, c.gps_stop) for c in stay), *pieces]), report)
    return [Chunk(a, b, r) for (a, b), r in zip(pieces, training_roles(pieces, wanted), strict=True)]


def training_roles(pieces: list[tuple[int, int]], min_valid_duration: float) -> list[Role]:
    """'train' or 'validation' for each training piece, by time: the latest validate until `min_valid_duration`, never all."""
    roles: list[Role] = ["train"] * len(pieces)
    livetime = 0.0
    for i in range(len(pieces) - 1, 0, -1):
        if livetime >= min_valid_duration and livetime > 0:
            break
        roles[i] = "validation"
        livetime += pieces[i][1] - pieces[i][0]
    return roles


def _two_at_least(config: Config, pieces: list[tuple[int, int]], report: Cut) -> list[tuple[int, int]]:
    if len(pieces) != 1:
        return pieces
    (start, stop), minimum = pieces[0], config.segments.train_min_duration
    validation = math.ceil(max(config.segments.min_valid_duration, minimum))
    if stop - start - validation < minimum:
        raise ValueError(
            f"segments: the training time has one stretch, GPS {start} to {stop}, {stop - start} s; expected at least "
            f"train_min_duration {minimum:g} s for training and {validation} s for validation (min_valid_duration); "
            "widen train_start..train_stop or lower these"
        )
    report.split += 1
    return [(start, stop - validation), (stop - validation, stop)]
