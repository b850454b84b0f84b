"""Zero-lag events with their false-alarm rate, p_astro, vetoes near them, and the catalogue events they agree with."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from aframe_assets.segments.catalog import Merger
from aframe_assets.segments.vetoes import Veto
from aframe_assets.sensitivity.far import Background, ifar_years, per_hour, per_year
from aframe_assets.sensitivity.p_astro import PAstro

MATCH_WINDOW = 1.0
"""Seconds between detection and catalogue time within which they are the same event (reference 2.13 vetoes the same interval)."""

FLAG_WINDOW = 8.0
"""Seconds about a candidate in which vetoes are named. Vetoed time itself has no candidates, but one may stand at its edge."""

MAX_CANDIDATES = 1000
"""Loudest events listed; every one that matches a catalogue is listed besides."""


@dataclass(frozen=True)
class CatalogMatch:
    """A catalogued merger at the time of a candidate.

    Attributes:
        name, catalog: the event, and the catalogue that calls it so.
        offset: detection - catalogue time, seconds.
        accuracy: seconds that the catalogue's time may be off.
        far_per_year, p_astro, snr: as the catalogue has them, None where it has not.
    """

    name: str
    catalog: str
    offset: float
    accuracy: float
    far_per_year: float | None
    p_astro: float | None
    snr: float | None


@dataclass(frozen=True)
class Candidate:
    """One zero-lag event.

    Attributes:
        rank: 1 is the loudest.
        detection_time: GPS seconds.
        ifo_times: detection time in each detector's own time, by detector.
        far, far_per_year, far_per_hour: Hz, 1/yr, 1/h; an upper limit (nb + 1) / Tb where `far_is_limit`.
        num_louder: background events as loud or louder, nb.
        ifar_years: 1 / FAR; a lower limit where `far_is_limit`.
        false_alarm_probability: of one or more noise events as loud in the zero-lag livetime.
        p_astro, p_astro_low, p_astro_high: value and 90 % interval; None without a model. Where `p_astro_is_limit`, the event is louder
            than all background, `p_astro` continues the background's tail and `p_astro_low` is the bound that does without it.
        flags: vetoes within FLAG_WINDOW, as 'L1:CBC_CAT2'.
        matches: catalogue events, the best known time first, then the nearest.
    """

    rank: int
    detection_statistic: float
    detection_time: float
    ifo_times: dict[str, float]
    far: float
    far_per_year: float
    far_per_hour: float
    far_is_limit: bool
    num_louder: int
    ifar_years: float
    false_alarm_probability: float
    p_astro: float | None
    p_astro_low: float | None
    p_astro_high: float | None
    p_astro_is_limit: bool
    flags: tuple[str, ...]
    matches: tuple[CatalogMatch, ...]


def match(times: np.ndarray, mergers: Sequence[Merger], window: float = MATCH_WINDOW) -> dict[int, list[CatalogMatch]]:
    """Index of event -> catalogue events, the best known time first, then the nearest.

    Each catalogue event claims the nearest event within `window` seconds.

    Where the catalogue's time is known to a second only, the window reaches as much farther, and all times in that second are
    equally near.

    Args:
        times: GPS seconds of events, loudest first; of two equally near the louder is taken.
        mergers: of any number of catalogues.
    """
    order = np.argsort(times, kind="stable")
    ascending = times[order]
    out: dict[int, list[CatalogMatch]] = {}
    for m in mergers:
        reach = window + m.accuracy
        low, high = np.searchsorted(ascending, m.gps - reach, side="left"), np.searchsorted(ascending, m.gps + reach, side="right")
        near = np.sort(order[low:high])
        if len(near):
            best = int(near[np.argmin(np.maximum(np.abs(times[near] - m.gps) - m.accuracy, 0))])
            offset = float(times[best] - m.gps)
            out.setdefault(best, []).append(CatalogMatch(m.name, m.catalog, offset, m.accuracy, m.far_per_year, m.p_astro, m.snr))
    for found in out.values():
        found.sort(key=lambda c: (c.accuracy, abs(c.offset)))
    return out


def find_candidates(
    statistics: np.ndarray,
    times: np.ndarray,
    livetime: float,
    background: Background,
    p_astro: PAstro | None,
    mergers: Sequence[Merger] = (),
    max_candidates: int = MAX_CANDIDATES,
    *,
    ifos: Sequence[str] = (),
    vetoes: Sequence[Veto] = (),
    match_window: float = MATCH_WINDOW,
) -> list[Candidate]:
    """The candidates, loudest first.

    Args:
        statistics, times: zero-lag events; times GPS seconds.
        livetime: zero-lag livetime, seconds.
        mergers: known events, of any number of catalogues.
        max_candidates: most rows, besides those in a catalogue.
        ifos: detectors.
        vetoes: vetoed time of the search.
        match_window: seconds.
    """
    order = np.lexsort((times, -statistics))
    statistics, times = np.asarray(statistics, float)[order], np.asarray(times, float)[order]
    known = match(times, mergers, match_window)
    rows = sorted(set(range(min(len(times), max_candidates))) | set(known))
    starts, stops = np.array([v.start for v in vetoes], float), np.array([v.stop for v in vetoes], float)
    out = []
    for i in rows:
        x, t = float(statistics[i]), float(times[i])
        far, limit = background.far(x)
        p, p_low, p_high, p_limit = (None, None, None, False) if p_astro is None else p_astro.probability(x)
        near = np.flatnonzero((starts <= t + FLAG_WINDOW) & (stops >= t - FLAG_WINDOW))
        out.append(
            Candidate(
                i + 1,
                x,
                t,
                # zero lag is slide 0: no detector is shifted
                dict.fromkeys(ifos, t),
                far,
                per_year(far),
                per_hour(far),
                limit,
                background.count(x),
                ifar_years(far),
                float(background.significance(x, livetime)),
                p,
                p_low,
                p_high,
                p_limit,
                tuple(dict.fromkeys(f"{vetoes[k].ifo}:{vetoes[k].category}" for k in near)),
                tuple(known.get(i, ())),
            )
        )
    return out


def analysed(mergers: Sequence[Merger], stretches: Sequence[tuple[float, float]]) -> list[Merger]:
    """The catalogue events inside any of the [start, stop) stretches."""
    return [m for m in mergers if any(a <= m.gps < b for a, b in stretches)]


def write_csv(path: Path, candidates: Sequence[Candidate], ifos: Sequence[str] = ()) -> Path:
    """One row per candidate; an absent value is an empty field.

    Detector times are columns ``detection_time_{ifo}``; flags and matches are texts set apart by ';', a match as
    'GW150914 (GWTC-1-confident) +0.02 s'.
    """
    plain = [name for name in Candidate.__dataclass_fields__ if name not in ("ifo_times", "flags", "matches")]
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=[*plain, *(f"detection_time_{i}" for i in ifos), "flags", "matches"])
        writer.writeheader()
        for c in candidates:
            values = asdict(c)
            row = {name: values[name] for name in plain} | {f"detection_time_{i}": c.ifo_times[i] for i in ifos}
            row["flags"] = "; ".join(c.flags)
            row["matches"] = "; ".join(f"{m.name} ({m.catalog}) {m.offset:+.2f} s" for m in c.matches)
            writer.writerow(row)
    return path
