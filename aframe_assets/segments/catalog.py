"""Known mergers, from the packaged table or files: to keep slides off them, and to name candidates.

A table is read by what is in it, not by its name: the GWOSC event tables (one event or every version of one per line), tables whose
header is a comment and whose columns are set apart by blanks (3-OGC, 4-OGC), tables of parameter estimates with several lines for
an event, and any CSV file with a GPS column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

PACKAGED = "packaged"
TABLE = Path(__file__).with_name("gwtc.csv")
NAME_ACCURACY = 0.5
"""Seconds that a time taken from an event's name may be off: names give the whole second in which the signal arrived."""

_COLUMNS: dict[str, tuple[str, ...]] = {
    "gps": ("gps", "gpstime", "gps_time", "tc"),
    "name": ("name", "commonname", "event"),
    "catalog": ("catalog", "catalog.shortname"),
    "version": ("version",),
    "url": ("jsonurl",),
    "far": ("far",),
    "ifar": ("ifar",),
    "p_astro": ("p_astro", "pastro"),
    "snr": ("snr", "network_matched_filter_snr"),
}
_NAMED_TIME = re.compile(r"^[A-Za-z]*(\d{6})_(\d{6})")


class Merger(NamedTuple):
    """A catalogued merger.

    Attributes:
        name: as the catalogue calls it.
        gps: geocentric GPS time, seconds.
        catalog: the catalogue it is in.
        accuracy: seconds that `gps` may be off where it is the middle of the second in the event's name, else 0.
        far_per_year, p_astro, snr: as published there, None where the table has none.
    """

    name: str
    gps: float
    catalog: str
    accuracy: float = 0.0
    far_per_year: float | None = None
    p_astro: float | None = None
    snr: float | None = None


class _Line(NamedTuple):
    number: int
    cells: list[str]


def catalog_path(name_or_path: str) -> Path:
    """The file that a catalogue is read from; whether it exists is not asked."""
    return TABLE if name_or_path == PACKAGED else Path(name_or_path)


@lru_cache
def catalog(name_or_path: str | None) -> tuple[Merger, ...]:
    """Mergers in order of time: of the packaged table (`packaged`), of a file, or none (None).

    The packaged table has the 90 confident events of GWTC-1, 2.1 and 3, to 0.1 s. Of several versions of an event the newest is taken;
    of several lines without a version the first, with the median of their SNRs. A table without a GPS column takes the time from names
    as GWyymmdd_hhmmss (UTC), see `NAME_ACCURACY`. FARs are per year, as those tables have them; an IFAR is in years.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no GPS column and no times in names, or a cell that is not a number; names file and line.
    """
    if name_or_path is None:
        return ()
    path = catalog_path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(f"event catalogue {path} does not exist; give a table with GPS times, or '{PACKAGED}'")
    columns, lines = _table(path)
    at = {what: next((columns.index(c) for c in names if c in columns), None) for what, names in _COLUMNS.items()}
    if at["gps"] is None and (at["name"] is None or not lines or not _NAMED_TIME.match(lines[0].cells[at["name"]])):
        raise ValueError(
            f"event catalogue {path} has no GPS column; its columns are {', '.join(columns)}, "
            f"expected one of {', '.join(_COLUMNS['gps'])}, or names as GWyymmdd_hhmmss"
        )
    detectors = [i for i, c in enumerate(columns) if re.fullmatch(r"snr_[hlvkg]1?", c)]
    known: dict[str, list[tuple[int, Merger]]] = {}
    for line in lines:
        merger = _merger(path, line, at, detectors)
        known.setdefault(merger.name, []).append((_version(path, line, at["version"]), merger))
    return tuple(sorted((_one(versions) for versions in known.values()), key=lambda m: m.gps))


def catalogs(names: str | Sequence[str] | None) -> tuple[Merger, ...]:
    """Mergers of one or several catalogues together, in order of time; an event that is in two is there twice. Raises as `catalog`."""
    wanted = [names] if isinstance(names, str) else list(names or ())
    return tuple(sorted((m for name in dict.fromkeys(wanted) for m in catalog(name)), key=lambda m: m.gps))


def catalog_times(name_or_path: str | None) -> tuple[float, ...]:
    """GPS times of `catalog(name_or_path)`; both ends of the second where only the second is known, so that a margin covers all of it."""
    times = (t for m in catalog(name_or_path) for t in ({m.gps - m.accuracy, m.gps + m.accuracy} if m.accuracy else {m.gps}))
    return tuple(sorted(times))


def _table(path: Path) -> tuple[list[str], list[_Line]]:
    """Lower-case column names and the lines below them."""
    header: list[str] | None = None
    comment: list[str] = []
    lines: list[_Line] = []
    with path.open() as f:
        for number, raw in enumerate(f, 1):
            text = raw.strip()
            if not text:
                continue
            if text.startswith("#"):
                comment = _cells(text.lstrip("# "))
                continue
            if header is None:
                header = [c.lower() for c in (comment if _is_header(comment) else _cells(text))]
                if not _is_header(comment):
                    continue
            cells = _cells(text)
            if len(cells) != len(header):
                raise ValueError(f"event catalogue {path}, line {number}: {len(cells)} columns, expected {len(header)} as in the header")
            lines.append(_Line(number, cells))
    if header is None:
        raise ValueError(f"event catalogue {path} is empty; expected a header line with a GPS column")
    return header, lines


def _cells(text: str) -> list[str]:
    if "," not in text:
        return text.split()
    import csv

    return [c.strip() for c in next(csv.reader([text]))]


def _is_header(cells: Sequence[str]) -> bool:
    """Whether a comment is the header: it names a time and an event. (A sentence about the table has no cell that is just 'gps'.)"""
    names = {c.lower() for c in cells}
    return bool(names & set(_COLUMNS["gps"])) and bool(names & set(_COLUMNS["name"]))


def _merger(path: Path, line: _Line, at: Mapping[str, int | None], detectors: Sequence[int]) -> Merger:
    def cell(what: str) -> str:
        i = at[what]
        return "" if i is None else line.cells[i]

    def number(what: str, text: str) -> float | None:
        if text.lower() in ("", "nan", "none", "-"):
            return None
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"event catalogue {path}, line {line.number}: {what} '{text}' is not a number") from None
        return value if math.isfinite(value) else None

    def published(what: str) -> float | None:
        value = number(what, cell(what))
        # these tables write -1 for a quantity that they do not have
        return None if value is None or value < 0 else value

    name, accuracy = cell("name"), 0.0
    if cell("gps"):
        gps = number("GPS time", cell("gps"))
        if gps is None:
            raise ValueError(f"event catalogue {path}, line {line.number}: GPS time '{cell('gps')}' is not a number")
    elif _NAMED_TIME.match(name):
        gps, accuracy = _named_time(path, line, name) + NAME_ACCURACY, NAME_ACCURACY
    else:
        raise ValueError(
            f"event catalogue {path}, line {line.number}: no GPS time, and the name '{name}' gives none; expected a name as GWyymmdd_hhmmss"
        )
    far, ifar, snr = published("far"), published("ifar"), published("snr")
    if far is None and ifar:
        far = 1 / ifar
    if snr is None and detectors:
        seen = [s for i in detectors if (s := number("SNR", line.cells[i])) is not None and s > 0]
        snr = math.sqrt(sum(s * s for s in seen)) if seen else None
    where = re.search(r"/eventapi/[^/]+/([^/]+)/", cell("url"))
    return Merger(
        name or f"GPS {gps:.1f}",
        gps,
        cell("catalog") or (where.group(1) if where else path.stem),
        accuracy,
        far,
        published("p_astro"),
        snr,
    )


def _version(path: Path, line: _Line, column: int | None) -> int:
    text = "" if column is None else line.cells[column]
    if text and not text.isdecimal():
        raise ValueError(f"event catalogue {path}, line {line.number}: version '{text}' is not a whole number")
    return int(text or 0)


def _named_time(path: Path, line: _Line, name: str) -> float:
    """GPS time of the second in an event's name; UTC -> GPS by the table of leap seconds."""
    from astropy.time import Time

    day, clock = _NAMED_TIME.match(name).groups()
    try:
        # a leap second is written :60, which datetime does not know
        when = datetime.strptime(day + clock[:4], "%y%m%d%H%M")
        if int(clock[4:]) > 60:
            raise ValueError
    except ValueError:
        raise ValueError(f"event catalogue {path}, line {line.number}: the name '{name}' holds no date and time of day") from None
    minute = Time(when.isoformat(), scale="utc")
    return float(round(minute.gps)) + int(clock[4:])


def _one(versions: Sequence[tuple[int, Merger]]) -> Merger:
    """One entry for all lines of an event: the newest version; of equal ones the first, with the median SNR."""
    newest = max(version for version, _ in versions)
    same = [m for version, m in versions if version == newest]
    snrs = [m.snr for m in same if m.snr is not None]
    return same[0]._replace(snr=median(snrs) if snrs else None)
