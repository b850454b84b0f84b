"""Candidates as files for databases of candidates: JSON in the shape of GraceDB's events, and LIGO_LW tables.

Both hold what the search knows and leave out what it does not: masses, SNRs and phases are absent (null), never made up. `far` is in Hz;
of a candidate louder than all background it is the limit 1/Tb, and that is said beside it in the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GRACEDB, LIGOLW = "candidates-gracedb.json", "candidates.xml.gz"
"""Names of the files."""

PIPELINE, GROUP, SEARCH = "aframe", "CBC", "AllSky"
"""As GraceDB calls them."""


def gracedb_events(candidates: Sequence[Mapping[str, Any]], ifos: Sequence[str], mergers: Mapping[int, float]) -> list[dict[str, Any]]:
    """Events in the shape in which GraceDB's API gives them.

    Args:
        candidates: rows of candidates.json.
        ifos: detectors of the search; the network looks at all of them.
        mergers: rank -> merger time, GPS seconds, where it is known; else the detection time is an event's time.
    """
    instruments, out = ",".join(sorted(ifos)), []
    for c in candidates:
        time = mergers.get(c["rank"], c["detection_time"])
        seconds, nanoseconds = _gps(time)
        inspiral = dict.fromkeys(("mass", "mchirp", "minimum_duration", "snr"))
        coinc = {"ifos": instruments, "end_time": seconds, "end_time_ns": nanoseconds, **inspiral, "combined_far": c["far"]}
        single = [{"ifo": i, "end_time": seconds, "end_time_ns": nanoseconds, "snr": None} for i in sorted(ifos)]
        own = {
            "detection_statistic": c["detection_statistic"],
            "detection_time": c["detection_time"],
            "time_is": "merger" if c["rank"] in mergers else "detection",
            "far_is_limit": c["far_is_limit"],
            "num_louder": c["num_louder"],
            "false_alarm_probability": c["false_alarm_probability"],
            "p_astro": c["p_astro"],
            "p_astro_low": c["p_astro_low"],
            "p_astro_high": c["p_astro_high"],
            "p_astro_is_limit": c["p_astro_is_limit"],
            "flags": list(c["flags"]),
            "catalog_matches": [m["name"] for m in c["matches"]],
        }
        out.append(
            {
                "group": GROUP,
                "pipeline": PIPELINE,
                "search": SEARCH,
                "offline": True,
                "gpstime": time,
                "instruments": instruments,
                "nevents": len(ifos),
                "far": c["far"],
                "likelihood": c["detection_statistic"],
                "extra_attributes": {"CoincInspiral": coinc, "SingleInspiral": single, "Aframe": own},
            }
        )
    return out


def write_gracedb(path: Path, events: Sequence[Mapping[str, Any]]) -> Path:
    """A list of events as JSON."""
    path.write_text(json.dumps(list(events), indent=1, allow_nan=False) + "\n")
    return path


def write_ligolw(path: Path, events: Sequence[Mapping[str, Any]], program: Mapping[str, Any]) -> Path:
    """Events as LIGO_LW tables (LIGO-T990023): coinc_inspiral with its coinc_event, and a sngl_inspiral row for each detector.

    A coinc_event's likelihood is the detection statistic; combined_far is the FAR in Hz, of the loudest its limit.

    Args:
        path: .xml or .xml.gz.
        events: of `gracedb_events`.
        program: settings to record, as text: name -> value; ``version`` is the program's.
    """
    from igwn_ligolw import ligolw, lsctables, utils

    document = ligolw.Document()
    top = document.appendChild(ligolw.LIGO_LW())
    ifos = sorted({i for e in events for i in e["instruments"].split(",")})
    settings, version = {k: str(v) for k, v in program.items() if k != "version"}, program.get("version")
    process = document.register_process(PIPELINE, settings, version=version, instruments=ifos)
    slides, definers, coincs, maps, inspirals, singles = (
        top.appendChild(kind.new(columns=columns))
        for kind, columns in (
            (lsctables.TimeSlideTable, None),
            (lsctables.CoincDefTable, None),
            (lsctables.CoincTable, None),
            (lsctables.CoincMapTable, None),
            (lsctables.CoincInspiralTable, None),
            (lsctables.SnglInspiralTable, ("process:process_id", "event_id", "ifo", "end_time", "end_time_ns", "snr")),
        )
    )
    slides.sync_next_id()
    slide = slides.get_time_slide_id(dict.fromkeys(ifos, 0.0), create_new=process) if ifos else None
    # search and type of coincidences of single-detector inspirals, as all compact-binary searches write them
    definer = definers.get_coinc_def_id("inspiral", 0, description="sngl_inspiral<-->sngl_inspiral coincidences")
    for number, event in enumerate(events):
        about = event["extra_attributes"]
        inspiral = about["CoincInspiral"]
        names = event["instruments"].split(",")
        coincs.append(
            coincs.RowType(
                process_id=process.process_id,
                coinc_def_id=definer,
                coinc_event_id=number,
                time_slide_id=slide,
                insts=names,
                nevents=len(names),
                likelihood=event["likelihood"],
            )
        )
        row = inspirals.RowType(coinc_event_id=number, ifos=inspiral["ifos"])
        row.end_time, row.end_time_ns = inspiral["end_time"], inspiral["end_time_ns"]
        row.mass = row.mchirp = row.minimum_duration = row.snr = row.false_alarm_rate = None
        row.combined_far = inspiral["combined_far"]
        inspirals.append(row)
        for single in about["SingleInspiral"]:
            found = singles.RowType(process_id=process.process_id, event_id=len(singles), ifo=single["ifo"])
            found.end_time, found.end_time_ns, found.snr = single["end_time"], single["end_time_ns"], None
            singles.append(found)
            maps.append(maps.RowType(coinc_event_id=number, table_name="sngl_inspiral", event_id=found.event_id))
    process.set_end_time_now()
    utils.write_filename(document, str(path), trap_signals=None)
    return path


def _gps(time: float) -> tuple[int, int]:
    """Whole seconds and nanoseconds of a GPS time; floats hold about 0.2 microseconds."""
    seconds, nanoseconds = divmod(round(time * 1e6) * 1000, 1_000_000_000)
    return int(seconds), int(nanoseconds)
