"""Sensitive volumes that others published, to be drawn beside ours; values and sources are in comparators.csv.

Curves at a false-alarm rate of one per year for equal masses (reference 7) were read off a figure by a third party, to 5 to 10 %.
VT of GWTC-3 (reference 2.13) is turned into V with the 149.3747 d that its injections were drawn over: an average over a time in which
the detectors were not always on, at the catalogue's own threshold, which the numbers do not come with.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aframe_assets.config import SECONDS_PER_YEAR

if TYPE_CHECKING:
    from aframe_assets.config import Config

ALL = "all"
TABLE = Path(__file__).with_name("comparators.csv")
O3 = (1238166018.0, 1269363618.0)
"""GPS [start, stop) of the third observing run, which every published value is of."""

_DAY = 86_400.0


@dataclass(frozen=True)
class Published:
    """A published sensitive volume.

    Attributes:
        comparator: name in `sensitivity.comparators`.
        pipeline: the search.
        mass_1, mass_2: of the source, solar masses.
        far_per_year: false-alarm rate of the value, None where the catalogue's own threshold holds.
        volume, error: Gpc^3; the accuracy to which the number is known here, not that of the measurement.
        data: observing run.
        legend, source: short and full origin.
    """

    comparator: str
    pipeline: str
    mass_1: float
    mass_2: float
    far_per_year: float | None
    volume: float
    error: float
    data: str
    legend: str
    source: str

    @property
    def label(self) -> str:
        """As a legend says it."""
        return f"{self.pipeline}, {self.data} ({self.legend})"


@lru_cache
def _table() -> tuple[Published, ...]:
    text = TABLE.read_text()
    out = []
    for r in csv.DictReader(line for line in text.splitlines() if not line.startswith("#")):
        volume = float(r["published"]) / (float(r["days"]) * _DAY / SECONDS_PER_YEAR if r["days"] else 1)
        far = float(r["far_per_year"]) if r["far_per_year"] else None
        masses = float(r["mass_1"]), float(r["mass_2"])
        error = volume * float(r["relative_error"])
        out.append(Published(r["comparator"], r["pipeline"], *masses, far, volume, error, r["data"], r["legend"], r["source"]))
    return tuple(out)


def known() -> tuple[str, ...]:
    """Names that `sensitivity.comparators` may hold, besides 'all'."""
    return tuple(dict.fromkeys(p.comparator for p in _table()))


def published(names: Sequence[str]) -> tuple[Published, ...]:
    """The values of the comparators `names`; 'all' for every one.

    Raises:
        ValueError: a name that is not known.
    """
    unknown = sorted(set(names) - {*known(), ALL})
    if unknown:
        raise ValueError(f"comparators {', '.join(unknown)} are not known; expected some of {', '.join((*known(), ALL))}")
    return tuple(p for p in _table() if ALL in names or p.comparator in names)


def of_pairs(values: Iterable[Published], pairs: Iterable[tuple[float, float]]) -> list[Published]:
    """Those for one of the mass `pairs`."""
    wanted = {(float(a), float(b)) for a, b in pairs}
    return [p for p in values if (p.mass_1, p.mass_2) in wanted]


def data_note(config: Config) -> str:
    """How the data of this run differ from those of the published values."""
    s = config.segments
    start = s.test_start if s.test_start is not None else s.train_stop
    if config.strain.source == "simulated":
        own = "the strain of this run is simulated"
    elif start is None or s.test_stop is None:
        own = "this run has strain files of its own"
    elif not (O3[0] <= start and s.test_stop <= O3[1]):
        own = f"this run is of GPS {start:.10g} to {s.test_stop:.10g}"
    else:
        return "Published volumes: O3, but not only the stretches, and not with the injections, of this run."
    return f"Other data: published volumes are of O3, {own}."


def identity(config: Config) -> dict[str, str]:
    """Key and sha256 of what `as_meta` reads besides the names: the table, and what the note says of the run's data."""
    digest = hashlib.sha256(TABLE.read_bytes() + data_note(config).encode()).hexdigest()
    return {"key": digest, "sha256": digest}


def as_meta(config: Config) -> dict[str, Any]:
    """Plain data for ``sensitive_volume.json``: the note and the values for the run's mass pairs, empty without comparators."""
    rows = of_pairs(published(config.sensitivity.comparators), config.sensitivity.mass_combos)
    return {"note": data_note(config) if rows else "", "rows": [asdict(p) for p in rows]}
