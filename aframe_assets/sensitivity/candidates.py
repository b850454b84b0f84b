"""Zero-lag events with their false-alarm rate, p_astro, and the catalogue events they agree with."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from aframe_assets.sensitivity.far import Background, ifar_years, per_hour, per_year
from aframe_assets.sensitivity.p_astro import PAstro

MATCH_WINDOW = 1.0
"""Seconds between detection and catalogue time within which they are the same event (reference 2.13 vetoes the same interval)."""

MAX_CANDIDATES = 1000
"""Loudest events listed; every one that matches the catalogue is listed besides."""


@dataclass(frozen=True)
class Candidate:
    """One zero-lag event.

    Attributes:
        rank: 1 is the loudest.
        detection_time: GPS seconds.
        far, far_per_year, far_per_hour: Hz, 1/yr, 1/h; an upper limit (nb + 1) / Tb where `far_is_limit`.
        num_louder: background events as loud or louder, nb.
        ifar_years: 1 / FAR; a lower limit where `far_is_limit`.
        false_alarm_probability: of one or more noise events as loud in the zero-lag livetime.
        p_astro: None without a model.
        catalog_name, catalog_offset: matched catalogue event, and detection - catalogue time in seconds.
    """

    rank: int
    detection_statistic: float
    detection_time: float
    far: float
    far_per_year: float
    far_per_hour: float
    far_is_limit: bool
    num_louder: int
    ifar_years: float
    false_alarm_probability: float
    p_astro: float | None
    catalog_name: str | None
    catalog_offset: float | None


def match(times: np.ndarray, catalog: Sequence[tuple[str, float]], window: float = MATCH_WINDOW) -> dict[int, tuple[str, float]]:
    """Index of event -> (catalogue name, offset): each catalogue event claims the nearest event within `window` seconds.

    Args:
        times: GPS seconds of events, loudest first; of two equally near the louder is taken.
        catalog: (name, GPS seconds).
    """
    order = np.argsort(times, kind="stable")
    ascending = times[order]
    out: dict[int, tuple[str, float]] = {}
    for name, gps in catalog:
        low, high = np.searchsorted(ascending, [gps - window, gps + window])
        near = np.sort(order[low:high])
        if len(near):
            best = int(near[np.argmin(np.abs(times[near] - gps))])
            offset = float(times[best] - gps)
            if best not in out or abs(offset) < abs(out[best][1]):
                out[best] = (name, offset)
    return out


def find_candidates(
    statistics: np.ndarray,
    times: np.ndarray,
    livetime: float,
    background: Background,
    p_astro: PAstro | None,
    catalog: Sequence[tuple[str, float]] = (),
    max_candidates: int = MAX_CANDIDATES,
) -> list[Candidate]:
    """The candidates, loudest first.

    Args:
        statistics, times: zero-lag events; times GPS seconds.
        livetime: zero-lag livetime, seconds.
        catalog: (name, GPS seconds) of known events.
        max_candidates: most rows, besides those in the catalogue.
    """
    order = np.lexsort((times, -statistics))
    statistics, times = np.asarray(statistics, float)[order], np.asarray(times, float)[order]
    known = match(times, catalog)
    rows = sorted(set(range(min(len(times), max_candidates))) | set(known))
    out = []
    for i in rows:
        x = float(statistics[i])
        far, limit = background.far(x)
        name, offset = known.get(i, (None, None))
        out.append(
            Candidate(
                i + 1,
                x,
                float(times[i]),
                far,
                per_year(far),
                per_hour(far),
                limit,
                background.count(x),
                ifar_years(far),
                float(background.significance(x, livetime)),
                None if p_astro is None else p_astro(x),
                name,
                offset,
            )
        )
    return out


def analysed_catalog(catalog: Sequence[tuple[str, float]], stretches: Sequence[tuple[float, float]]) -> list[tuple[str, float]]:
    """The catalogue events inside any of the [start, stop) stretches."""
    return [(name, gps) for name, gps in catalog if any(a <= gps < b for a, b in stretches)]


def write_csv(path: Path, candidates: Sequence[Candidate]) -> Path:
    """One row per candidate; an absent value is an empty field."""
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=list(Candidate.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(c) for c in candidates)
    return path
