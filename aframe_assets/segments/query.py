"""Science-mode segments of each detector, from whatever keeps them (reference 2.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aframe_assets.config import Config

O3A_STOP = 1253977218
"""GPS end of O3a."""
O3B_START = 1256655618
"""GPS start of O3b; nothing of the commissioning break between the two is used."""

_OPEN_FLAG = re.compile(r"^([A-Z][0-9])_(.+)$")
_CLOSED_FLAG = re.compile(r"^([A-Z][0-9]):(.+)$")

Window = tuple[float, float]


class SegmentError(ValueError):
    """Science segments that cannot be had; the message names the source, the detector and the GPS times."""


def science_segments(config: Config, windows: Sequence[Window]) -> dict[str, Any]:
    """When each detector of ``config.ifos`` is in science mode.

    Args:
        windows: GPS [start, stop) that are wanted; may be infinite, except for queries of a server.

    Returns:
        {ifo: igwn_segments.segmentlist}, coalesced, within `windows`. Lists and servers give nothing of the break
        between O3a and O3b; ``fixed`` segments and strain files are taken as they are.

    Raises:
        SegmentError: a list that cannot be read, or a server that does not answer.
        aframe_assets.segments.strain_headers.StrainError: strain files that cannot be used (source ``strain_files``).
    """
    from igwn_segments import segment, segmentlist

    wanted = segmentlist(segment(a, b) for a, b in windows).coalesce()
    source = config.segments.source
    if source == "fixed":
        fixed = segmentlist(segment(a, b) for a, b in config.segments.fixed).coalesce()
        return dict.fromkeys(config.ifos, fixed & wanted)
    if source == "strain_files":
        return {ifo: segs & wanted for ifo, segs in _from_strain_files(config).items()}
    wanted = wanted - segmentlist([segment(O3A_STOP, O3B_START)])
    if source == "files":
        return {ifo: read_segments(config.segments.files[ifo]) & wanted for ifo in config.ifos}
    out = {}
    for ifo, flags in flags_of(config).items():
        active = wanted
        for flag in flags:
            active = active & segmentlist(s for a, b in wanted for s in query_flag(config, flag, a, b)).coalesce()
        out[ifo] = active
    return out


def coincident(science: dict[str, Any]) -> Any:
    """When all detectors are in science mode: the intersection, an igwn_segments.segmentlist."""
    lists = list(science.values())
    out = lists[0]
    for other in lists[1:]:
        out = out & other
    return out


def flags_of(config: Config) -> dict[str, list[str]]:
    """Flags to query for each detector.

    ``segments.flags`` may hold a detector's flags ("H1_DATA", "H1:DMT-ANALYSIS_READY:1") and names for all detectors
    ("DATA" open, any other from DQSegDB). Default: "{ifo}_DATA".

    Raises:
        SegmentError: a detector without a flag, or a flag that the source cannot answer.
    """
    out: dict[str, list[str]] = {ifo: [] for ifo in config.ifos}
    for flag in config.segments.flags or ["DATA"]:
        match = _OPEN_FLAG.match(flag) or _CLOSED_FLAG.match(flag)
        for ifo in config.ifos:
            if match is None:
                out[ifo].append(f"{ifo}_DATA" if flag == "DATA" else f"{ifo}:{flag}")
            elif match.group(1) == ifo:
                out[ifo].append(flag)
    for ifo, flags in out.items():
        if not flags:
            raise SegmentError(
                f"segments.flags = {config.segments.flags}: no flag of {ifo}; expected at least one for each of ifos {config.ifos}"
            )
        closed = [f for f in flags if _CLOSED_FLAG.match(f)]
        if closed and config.segments.source == "gwosc":
            raise SegmentError(
                f"segments.flags: {closed[0]} is not an open flag; expected '{ifo}_DATA' or the like, or segments.source dqsegdb"
            )
    return out


def read_segments(path: str | Path, key: str = "segments.files") -> Any:
    """A segment list: columns 'start stop', 'start stop duration' or 'index start stop duration' (segwizard, GWOSC), or a
    CSV with columns start and end (or gps_start and gps_stop), or any other format of gwpy (XML, HDF5).

    Args:
        key: configuration key that names the file, for errors.

    Returns:
        igwn_segments.segmentlist, coalesced.

    Raises:
        SegmentError: unreadable; names file and line.
    """
    from igwn_segments import segment, segmentlist
    from igwn_segments.utils import fromsegwizard

    path = Path(path).expanduser()
    if not path.is_file():
        raise SegmentError(f"{path}: no such segment list ({key})")
    try:
        if path.suffix == ".csv":
            import pandas as pd

            table = pd.read_csv(path, comment="#")
            names = next(
                (n for n in (("gps_start", "gps_stop"), ("start", "end"), ("start", "stop")) if set(n) <= set(table.columns)), None
            )
            if names is None:
                raise ValueError(f"columns {list(table.columns)}; expected start and end, or gps_start and gps_stop")
            found = segmentlist(segment(float(a), float(b)) for a, b in table[list(names)].itertuples(index=False))
        elif path.suffix in (".txt", ".dat", ""):
            lines = path.read_text().splitlines()
            content = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and line.strip()[0] not in "#;"]
            found = fromsegwizard(lines, coltype=float)
            if len(found) != len(content):  # the library stops silently at the first line that it cannot read
                number, line = content[len(found)]
                raise ValueError(f"line {number}: '{line.strip()}'; expected 'start stop [duration]'")
        else:
            from gwpy.segments import SegmentList

            found = segmentlist(SegmentList.read(str(path)))
    except (ValueError, OSError, KeyError) as e:
        raise SegmentError(f"{path}: not a segment list: {e}") from e
    return found.coalesce()


def query_flag(config: Config, flag: str, start: float, stop: float) -> Any:
    """When a flag is active within [start, stop), GPS seconds: an igwn_segments.segmentlist.

    Args:
        flag: "{ifo}_NAME" of GWOSC's timelines (server ``segments.host``) or "{ifo}:NAME:VERSION" of DQSegDB.

    Raises:
        SegmentError: the server does not answer, or knows no such flag.
    """
    from igwn_segments import segment, segmentlist

    start, stop = int(start), int(stop)
    if _CLOSED_FLAG.match(flag):
        where = config.segments.segment_server
    else:
        from gwosc.api import DEFAULT_URL

        where = config.segments.host or DEFAULT_URL
    try:
        if _CLOSED_FLAG.match(flag):
            from dqsegdb2.query import query_segments

            return query_segments(flag, start, stop, host=where)["active"]
        from gwosc.timeline import get_segments

        found = segmentlist(segment(float(a), float(b)) for a, b in get_segments(flag, start, stop, host=where))
        return found.coalesce() & segmentlist([segment(start, stop)])
    except Exception as e:  # the libraries raise requests', tenacity's, token and JSON errors
        hint = "; if it asks for authorisation, get a token: htgettoken -a vault.ligo.org -i igwn" if _CLOSED_FLAG.match(flag) else ""
        raise SegmentError(
            f"{where}: flag {flag} from GPS {start} to {stop}: {type(e).__name__}: {e}; check the flag and the network{hint}"
        ) from e


def _from_strain_files(config: Config) -> dict[str, Any]:
    from aframe_assets.segments import strain_headers

    infos = [i for i in strain_headers.describe_all(config.strain.files) if i.ifo in config.ifos]
    science = strain_headers.require_overlap(infos, config.ifos, config.strain.min_dq)
    return {ifo: science[ifo] for ifo in config.ifos}
