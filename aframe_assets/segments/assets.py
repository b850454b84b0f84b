"""The asset ``segments``: the table of chunks, whose keys become the partitions of the graph; and ``vetoes`` of test chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aframe_assets.segments.checks import CHECKS, VETO_CHECKS, segment_checks, veto_checks
from aframe_assets.store.bodies import plain_asset
from aframe_assets.store.job import Job, Product
from aframe_assets.tags import resources

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.segments.frozen import Table
    from aframe_assets.segments.vetoes import Veto


def make_segments(job: Job, before: Table | None = None) -> Product:
    """Coincident science time cut into chunks, each with its role: train, validation or test.

    The chunks are the partitions `{gps_start}-{duration}` of the graph, in seconds. `segments.csv` holds all that is known of them,
    `segments.txt` the same in segwizard's format. What a table that was made before has decided stays.

    Args:
        before: that table; None: the one in the store.
    """
    from aframe_assets.segments.chunks import make_chunks, windows
    from aframe_assets.segments.frozen import Table, stretches
    from aframe_assets.segments.query import science_segments
    from aframe_assets.segments.table import make_rows

    config = job.config
    before = Table.of(job.store.manifest("segments")) if before is None else before
    science = science_segments(config, list(windows(config).values()))
    chunks, report = make_chunks(config, science, before.chunks(config), stretches(before.retired.values()))
    table = before.extended(config, make_rows(config, chunks))
    meta = table.meta()
    meta |= {"source": config.segments.source, "science_seconds": {ifo: float(abs(segs)) for ifo, segs in science.items()}}
    for role, r in meta["roles"].items():
        job.log.info("%s: %d chunks, %.2f h", role, len(r["partitions"]), r["livetime"] / 3600)
    listed = ["| role | chunks | hours |", "|---|---|---|"]
    listed += [f"| {role} | {len(r['partitions'])} | {r['livetime'] / 3600:.2f} |" for role, r in meta["roles"].items()]
    checks = segment_checks(config, table.rows, meta["roles"], science, report)
    if before.rows and not all(c.passed for c in checks if c.severity == "error"):
        # a source that gives nothing, if only for now, must not be what later tables go by
        meta["kept"] = before.decided() | {"made_with": before.made_with}
    plots = {"timeline": lambda: _timeline(table.rows)}
    return Product(table.write(job.scratch), meta, checks, plots, markdown={"roles": "\n".join(listed)})


def _timeline(rows: Mapping[str, Any]) -> bytes:
    from aframe_assets.strain.plots import timeline_plot

    out: dict[str, dict[str, list[Any]]] = {}
    for r in rows.values():
        out.setdefault(r["role"], {}).setdefault(r["role"], []).append((r["gps_start"], r["gps_stop"]))
    return timeline_plot(out, "Chunks by role")


def make_vetoes(job: Job) -> Product:
    """Test time that is not searched though there is strain, with the flag that vetoes it, per detector.

    Only where the section `vetoes` asks for something.
    """
    from aframe_assets.segments.frozen import planned_rows, stretches
    from aframe_assets.segments.vetoes import (
        VETOES,
        coincident_seconds,
        find_vetoes,
        identities,
        not_cumulative,
        vetoed_seconds,
        vetoed_times,
        write_vetoes,
    )

    segments = job.handle("segments").meta
    searched, planned = {p: r for p, r in segments["rows"].items() if r["role"] == "test"}, planned_rows(segments)
    chunks = stretches(searched.values())
    found = find_vetoes(job.config, chunks)
    times = vetoed_times(found, job.config.ifos)
    seconds, (whole, left) = vetoed_seconds(found), coincident_seconds(chunks, times)
    # slides were planned with what was vetoed of chunks that are retired by now, whose files may be gone
    gone = find_vetoes(job.config, stretches(r for p, r in planned.items() if p not in searched), unanswered=[])
    found += [v for v in gone if v not in found]
    for ifo, by_category in seconds.items():
        job.log.info("%s: %s", ifo, ", ".join(f"{name} {value:g} s" for name, value in by_category.items()))
    meta = {"num_vetoes": len(found), "vetoed_seconds": seconds, "test_seconds": whole, "coincident_seconds_left": left}
    meta["identities"] = identities(vetoed_times(found, job.config.ifos), searched, planned)
    checks = veto_checks(whole, left, not_cumulative(found))
    plots = {"timeline": lambda: _veto_timeline(chunks, found)}
    return Product({VETOES: write_vetoes(found, job.scratch / VETOES)}, meta, checks, plots)


def _veto_timeline(chunks: list[tuple[float, float]], vetoes: list[Veto]) -> bytes:
    from aframe_assets.strain.plots import timeline_plot

    rows: dict[str, dict[str, list[Any]]] = {"test": {"chunks": chunks}}
    for v in vetoes:
        rows.setdefault(v.ifo, {}).setdefault(v.category, []).append((v.start, v.stop))
    return timeline_plot(rows, "Vetoed test time")


def assets(config: Config) -> list[Any]:
    """Definitions of this room; `vetoes` only where section ``vetoes`` asks for something."""
    out = [
        plain_asset(
            "segments",
            make_segments,
            config,
            tags=resources(cpus=1, memory_gb=2, time_min=60),
            kinds={"table"},
            checks=CHECKS,
        )
    ]
    if config.vetoes.asked:
        out.append(
            plain_asset(
                "vetoes",
                make_vetoes,
                config,
                tags=resources(cpus=1, memory_gb=2, time_min=60),
                kinds={"table"},
                checks=VETO_CHECKS,
            )
        )
    return out
