"""Known mergers, from the packaged table or a CSV file: to keep slides off them, and to name candidates."""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

PACKAGED = "packaged"
_GPS_COLUMNS = ("gps", "gpstime", "gps_time", "tc")
_NAME_COLUMNS = ("name", "commonname", "event")


class Merger(NamedTuple):
    """A catalogued merger: its name, geocentric GPS time in seconds, and the catalogue it is in."""

    name: str
    gps: float
    catalog: str


@lru_cache
def catalog(name_or_path: str | None) -> tuple[Merger, ...]:
    """Mergers in order of time: of the packaged table (`packaged`), of a CSV file with a GPS column, or none (None).

    The packaged table has the 90 confident events of GWTC-1, 2.1 and 3, to 0.1 s.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no GPS column, or a GPS time that is not a number; names file and line.
    """
    if name_or_path is None:
        return ()
    path = Path(__file__).with_name("gwtc.csv") if name_or_path == PACKAGED else Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(f"event catalogue {path} does not exist; give a CSV file with a GPS column, or '{PACKAGED}'")
    with path.open(newline="") as f:
        lines = [(i, line) for i, line in enumerate(f, 1) if line.strip() and not line.startswith("#")]
    if not lines:
        raise ValueError(f"event catalogue {path} is empty; expected a header line with a GPS column")
    rows = csv.DictReader([line for _, line in lines])
    columns = {c.strip().lower(): c for c in rows.fieldnames or []}
    gps = next((columns[c] for c in _GPS_COLUMNS if c in columns), None)
    if gps is None:
        held = ", ".join(columns)
        raise ValueError(f"event catalogue {path} has no GPS column; its columns are {held}, expected one of {', '.join(_GPS_COLUMNS)}")
    name = next((columns[c] for c in _NAME_COLUMNS if c in columns), None)
    source = next((columns[c] for c in ("catalog", "catalog.shortname") if c in columns), None)
    out = []
    for (number, _), row in zip(lines[1:], rows, strict=True):
        try:
            time = float(row[gps])
        except (TypeError, ValueError):
            raise ValueError(f"event catalogue {path}, line {number}: GPS time '{row[gps]}' is not a number") from None
        out.append(Merger(row[name] if name else f"GPS {time:.1f}", time, row[source] if source else path.stem))
    return tuple(sorted(out, key=lambda m: m.gps))


def catalog_times(name_or_path: str | None) -> tuple[float, ...]:
    """GPS times of `catalog(name_or_path)`."""
    return tuple(m.gps for m in catalog(name_or_path))
