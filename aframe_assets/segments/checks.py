"""What must hold of a segments table, and of vetoes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from aframe_assets.segments.chunks import Cut, windows
from aframe_assets.store.job import Check, Declared

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.segments.vetoes import Veto

CHECKS = [
    Declared("has_segments", True, "Every role that the configuration asks for has at least one chunk."),
    Declared("livetime", False, "Validation has at least `segments.min_valid_duration` seconds."),
    Declared("coincident", True, "Every chunk lies in science time of all detectors, and no two overlap."),
]
"""Of `segments`."""

VETO_CHECKS = [
    Declared("vetoes_leave_time", False, "At least half of the coincident test time is left."),
    Declared("categories_cumulative", False, "What passes a category passes all lower ones: 0 stretches contradict it."),
]
"""Of `vetoes`."""


def segment_checks(
    config: Config, rows: Mapping[str, Any], roles: Mapping[str, Any], science: Mapping[str, Any], report: Cut
) -> list[Check]:
    """The checks of a segments table, in the order of CHECKS."""
    return [_has_segments(config, roles, science, report), _livetime(config, roles, report), _coincident(rows, science)]


def _has_segments(config: Config, roles: Mapping[str, Any], science: Mapping[str, Any], report: Cut) -> Check:
    wanted = windows(config)
    empty = [role for role in ("train", "test") if role in wanted and not roles[role]["partitions"]]
    text = ""
    if empty:
        s = config.segments
        minima = {"train": s.train_min_duration, "test": s.test_min_duration}
        hours = ", ".join(f"{ifo} {abs(segs) / 3600:.2f} h" for ifo, segs in science.items())
        asked = " and ".join(f"{r} (GPS {wanted[r][0]:.14g} to {wanted[r][1]:.14g}, at least {minima[r]:g} s)" for r in empty)
        text = f"0 segments for {asked}; science time: {hours}"
        if report.short:
            text += f"; {report.short} coincident stretches are too short, the longest {report.longest_short:g} s"
    number = sum(len(r["partitions"]) for r in roles.values())
    return Check("has_segments", not empty, "error", text, {"segments": number})


def _livetime(config: Config, roles: Mapping[str, Any], report: Cut) -> Check:
    short = "train" in windows(config) and roles["validation"]["livetime"] < config.segments.min_valid_duration
    text = f"validation has {roles['validation']['livetime']:g} s of the {config.segments.min_valid_duration:g} s wanted" if short else ""
    metadata = {f"{role}_livetime_s": r["livetime"] for role, r in roles.items()}
    metadata |= {
        "short_stretches": report.short,
        "short_seconds": float(report.short_seconds),
        "merged": report.merged,
        "split": report.split,
    }
    return Check("livetime", not short, "warn", text, metadata)


def _coincident(rows: Mapping[str, Any], science: Mapping[str, Any]) -> Check:
    from igwn_segments import segment

    outside = [k for k, r in rows.items() for segs in science.values() if segment(r["gps_start"], r["gps_stop"]) not in segs]
    ordered = sorted((r["gps_start"], r["gps_stop"], k) for k, r in rows.items())
    overlapping = [b[2] for a, b in pairwise(ordered) if b[0] < a[1]]
    text = ""
    if outside:
        text = f"{len(set(outside))} chunks are not in science time of every detector, first {outside[0]}"
    elif overlapping:
        text = f"{len(overlapping)} chunks overlap the one before, first {overlapping[0]}"
    return Check("coincident", not outside and not overlapping, "error", text, {"segments": len(rows)})


def veto_checks(whole: float, left: float, contradictions: Sequence[Veto]) -> list[Check]:
    """The checks of `vetoes`, in the order of VETO_CHECKS.

    Args:
        whole, left: seconds of coincident test time before and after vetoes.
        contradictions: `aframe_assets.segments.vetoes.not_cumulative`.
    """
    text = ""
    if left < whole / 2:
        text = f"{left:g} s of {whole:g} s of coincident test time are left; is a flag's meaning the other way round?"
    metadata = {"test_seconds": whole, "coincident_seconds_left": left}
    wrong = ""
    if contradictions:
        v = contradictions[0]
        wrong = (
            f"{len(contradictions)} stretches fail a category and pass a higher one, the first {v.ifo} {v.category} at GPS {v.start:.14g} "
            f"to {v.stop:.14g}, which passes {v.source}; the masks are not those of GWOSC"
        )
    return [
        Check("vetoes_leave_time", left >= whole / 2, "warn", text, metadata),
        Check("categories_cumulative", not contradictions, "warn", wrong, {"contradictions": len(contradictions)}),
    ]
