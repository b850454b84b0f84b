"""Vetoed time: stretches of test data that are not searched, each with the flag that says so.

GWOSC's categories are cumulative: a second that passes CBC_CAT2 also passes CBC_CAT1, and DATA. Their bits, and those of
hardware injections (NO_CBC_HW_INJ, ...), are set where a second may be used, so a veto is where the bit is not set. Flags of
DQSegDB, segment lists, gates and catalogue times are of the other kind: what they name is vetoed.

What a veto does to outputs, livetime and injections is in `aframe_assets.segments.geometry`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aframe_assets.config_rules import mask_source
from aframe_assets.segments.catalog import catalog
from aframe_assets.segments.query import SegmentError, query_flag, read_segments
from aframe_assets.segments.strain_headers import FileInfo, StrainError, describe_all, quality_bits

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.job import Job

VETOES = "vetoes.csv"
"""The file of the asset `vetoes`."""

GATE_MARGIN = 0.375
"""Seconds vetoed on each side of a gate beyond its taper (reference 2.13)."""

FILES, GATES, CATALOG = "FILES", "GATES", "CATALOG"

_OF_ONE = re.compile(r"^([A-Z][0-9])[_:](.+)$")

Stretch = tuple[float, float]


class Veto(NamedTuple):
    """A stretch [start, stop) of one detector's time, GPS seconds; the flag that vetoes it, and where that is written."""

    ifo: str
    start: float
    stop: float
    category: str
    source: str


def find_vetoes(
    config: Config, stretches: Sequence[Stretch], infos: Sequence[FileInfo] | None = None, unanswered: list[str] | None = None
) -> list[Veto]:
    """Everything that ``config.vetoes`` takes out of `stretches`, by detector and time.

    Args:
        stretches: GPS [start, stop) that would be searched; vetoes are cut to them, and only there must their source answer.
        infos: strain files whose masks answer for categories and hardware injections; None: as the experiment says, the
            files of ``strain.files`` or GWOSC's timelines.
        unanswered: where given, time that no mask covers is noted here, a line each, and is no error.

    Raises:
        SegmentError: a list or gate file that cannot be read, or a server that does not answer; names it, flag and times.
        StrainError: a strain file without a mask, or whose mask has no such bit (names those it has); no file at some time.
    """
    from igwn_segments import segment, segmentlist

    wanted = segmentlist(segment(a, b) for a, b in stretches if b > a).coalesce()
    if not wanted:
        return []
    v, out = config.vetoes, []
    span = math.floor(wanted[0][0]), math.ceil(wanted[-1][1])

    def add(ifo: str, category: str, source: str, found: Any) -> None:
        out.extend(Veto(ifo, float(a), float(b), category, source) for a, b in found.coalesce() & wanted)

    if v.bits and infos is None and mask_source(config) == "strain_files":
        infos = describe_all(config.strain.files)
    for ifo in config.ifos:
        bits = [own for own in (_own(b, ifo) for b in v.bits) if own]
        if bits and infos is not None:
            for bit, source, found in _unset(infos, ifo, bits, wanted, unanswered):
                add(ifo, bit, source, found)
        elif bits:
            for bit in bits:
                passed = query_flag(config, f"{ifo}_{bit}", *span)
                add(ifo, bit, f"GWOSC {ifo}_{bit}", wanted - passed)
        for flag in [own for own in (_own(f, ifo) for f in v.flags) if own]:
            add(ifo, flag, f"DQSegDB {ifo}:{flag}", query_flag(config, f"{ifo}:{flag}", *span))
        for path in v.files.get(ifo, []):
            add(ifo, FILES, Path(path).name, read_segments(path, "vetoes.files"))
        if ifo in v.gates:
            add(ifo, GATES, Path(v.gates[ifo]).name, read_gates(v.gates[ifo]))
        for m in catalog(v.catalog):
            reach = v.catalog_pad + m.accuracy
            add(ifo, CATALOG, f"{m.name} of {m.catalog}", segmentlist([segment(m.gps - reach, m.gps + reach)]))
    return sorted(out, key=lambda x: (config.ifos.index(x.ifo), x.start, x.stop, x.category, x.source))


def _own(flag: str, ifo: str) -> str | None:
    """`flag` without its detector, or None if it is another detector's."""
    match = _OF_ONE.match(flag)
    return flag if match is None else match.group(2) if match.group(1) == ifo else None


def _unset(
    infos: Sequence[FileInfo], ifo: str, bits: Sequence[str], wanted: Any, unanswered: list[str] | None
) -> list[tuple[str, str, Any]]:
    """(bit, file, when it is not set) of every file of a detector that holds some of `wanted`."""
    from igwn_segments import segment, segmentlist

    answered, out, without = segmentlist(), [], []
    for info in infos:
        own = segmentlist([segment(info.gps_start, info.gps_stop)])
        if info.ifo != ifo or not own & wanted:
            continue
        if not info.quality:
            without.append(info)
            continue
        answered |= own
        for bit, is_set in quality_bits(info, bits, "vetoes").items():
            out.append((bit, info.path.name, segmentlist(segment(info.gps_start + a, info.gps_start + b) for a, b in runs(~is_set))))
    unknown = wanted - answered
    if unknown:
        why = f"{without[0]} has no data-quality mask" if without else "no strain file is there"
        text = f"vetoes of {ifo}: nothing is known of {', '.join(bits)} at GPS {unknown[0][0]:.14g} to {unknown[0][1]:.14g}: {why}"
        if unanswered is None:
            raise StrainError(f"{text}; expected GWOSC files with masks, or vetoed time as a list in vetoes.files")
        unanswered.append(text)
    return out


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """[first, last + 1) of every run of True in a mask (n,)."""
    edges = np.diff(np.concatenate([[0], np.asarray(mask).astype(np.int8), [0]]))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def read_gates(path: str | Path) -> Any:
    """Vetoed time of a file of gates: lines 'centre half-width taper' in seconds, separated by blanks or commas; # begins a comment.

    A gate vetoes [c - w - (t + 0.375), c + w + (t + 0.375)] (reference 2.13).

    Returns:
        igwn_segments.segmentlist, coalesced.

    Raises:
        SegmentError: no such file, or a line that is not three numbers, widths >= 0; names file and line.
    """
    from igwn_segments import segment, segmentlist

    path, out = Path(path).expanduser(), segmentlist()
    if not path.is_file():
        raise SegmentError(f"{path}: no such file of gates (vetoes.gates)")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = line.partition("#")[0].replace(",", " ").split()
        if not text:
            continue
        try:
            centre, half, taper = map(float, text)
        except ValueError:
            centre, half, taper = 0.0, -1.0, -1.0
        if not (half >= 0 and taper >= 0 and np.isfinite([centre, half, taper]).all()):
            raise SegmentError(f"{path}, line {number}: '{line.strip()}'; expected 'centre half-width taper' in seconds, widths >= 0")
        reach = half + taper + GATE_MARGIN
        out.append(segment(centre - reach, centre + reach))
    return out.coalesce()


def vetoed_times(vetoes: Sequence[Veto], ifos: Sequence[str]) -> dict[str, np.ndarray]:
    """{ifo: (n, 2) float64}, [start, stop) GPS seconds, ascending and disjoint: what `SlideGeometry.of` takes."""
    from igwn_segments import segment, segmentlist

    out = {}
    for ifo in ifos:
        merged = segmentlist(segment(v.start, v.stop) for v in vetoes if v.ifo == ifo).coalesce()
        out[ifo] = np.array([tuple(s) for s in merged], np.float64).reshape(-1, 2)
    return out


def vetoes_at(vetoes: Sequence[Veto], start: float, stop: float) -> list[Veto]:
    """The vetoes that touch [start, stop], GPS seconds, of any detector."""
    return [v for v in vetoes if v.start <= stop and v.stop >= start]


def write_vetoes(vetoes: Sequence[Veto], path: Path) -> Path:
    """A line for each veto: ifo, start, stop, category, source."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Veto._fields)
        writer.writerows((v.ifo, repr(v.start), repr(v.stop), v.category, v.source) for v in vetoes)
    return path


def read_vetoes(path: Path) -> list[Veto]:
    """What `write_vetoes` wrote."""
    with open(path, newline="") as file:
        return [Veto(r["ifo"], float(r["start"]), float(r["stop"]), r["category"], r["source"]) for r in csv.DictReader(file)]


def vetoes_of(job: Job) -> dict[str, np.ndarray] | None:
    """`vetoed_times` for a job that has the optional input `vetoes`; None without."""
    if "vetoes" not in job.inputs:
        return None
    return vetoed_times(read_vetoes(job.path("vetoes", VETOES)), job.config.ifos)


def identities(
    times: Mapping[str, np.ndarray], searched: Mapping[str, Mapping[str, Any]], planned: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What is vetoed, told so that a late chunk changes nothing for those before it.

    Args:
        times: `vetoed_times` of all of them.
        searched, planned: rows of the test chunks, and of those that slides were planned for, by partition.

    Returns:
        "segments": {partition: digest of what is vetoed of that chunk}, without those of which nothing is; "plan": digest for `planned`.
    """
    own = {p: _identity(times, r) for p, r in {**planned, **searched}.items()}
    plan = json.dumps({p: own[p] for p in sorted(planned)})
    return {"segments": {p: own[p] for p in searched if own[p]}, "plan": hashlib.sha256(plan.encode()).hexdigest()}


def _identity(times: Mapping[str, np.ndarray], row: Mapping[str, Any]) -> str:
    start, stop = row["gps_start"], row["gps_stop"]
    cut = {}
    for ifo, table in times.items():
        near = table[(table[:, 0] < stop) & (table[:, 1] > start)]
        if len(near):
            cut[ifo] = np.clip(near, start, stop).tolist()
    return hashlib.sha256(json.dumps(cut, sort_keys=True).encode()).hexdigest()[:32] if cut else ""


def vetoed_seconds(vetoes: Sequence[Veto]) -> dict[str, dict[str, float]]:
    """{ifo: {category: seconds}}, and under 'any' what all of them veto together; only detectors with vetoes."""
    from igwn_segments import segment, segmentlist

    lists: dict[str, dict[str, Any]] = {}
    for v in vetoes:
        own = lists.setdefault(v.ifo, {})
        for name in (v.category, "any"):
            own.setdefault(name, segmentlist()).append(segment(v.start, v.stop))
    return {ifo: {name: float(abs(found.coalesce())) for name, found in own.items()} for ifo, own in lists.items()}


def not_cumulative(vetoes: Sequence[Veto]) -> list[Veto]:
    """Vetoes of a category that a higher one of the same family and detector lets pass, which GWOSC's never do."""
    from igwn_segments import segment, segmentlist

    lists: dict[tuple[str, str, int], Any] = {}
    for v in vetoes:
        match = re.match(r"^(.+_CAT)(\d)$", v.category)
        if match:
            lists.setdefault((v.ifo, match.group(1), int(match.group(2))), segmentlist()).append(segment(v.start, v.stop))
    out = []
    for (ifo, family, level), found in lists.items():
        for (other, name, higher), above in lists.items():
            if (other, name) == (ifo, family) and higher > level:
                passed = found.coalesce() - above.coalesce()
                out += [Veto(ifo, float(a), float(b), f"{family}{level}", f"{family}{higher}") for a, b in passed]
    return out


def coincident_seconds(stretches: Sequence[Stretch], times: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Seconds of `stretches`, and of what is vetoed in no detector."""
    from igwn_segments import segment, segmentlist

    whole = segmentlist(segment(a, b) for a, b in stretches).coalesce()
    left = whole
    for vetoed in times.values():
        left = left - segmentlist(segment(a, b) for a, b in vetoed.tolist()).coalesce()
    return float(abs(whole)), float(abs(left))
