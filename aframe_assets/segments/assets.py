"""The asset ``segments``: the table of chunks, whose keys become the partitions of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aframe_assets.segments.checks import CHECKS, segment_checks
from aframe_assets.store.bodies import plain_asset
from aframe_assets.store.job import Job, Product
from aframe_assets.tags import resources

if TYPE_CHECKING:
    from aframe_assets.config import Config


def make_segments(job: Job) -> Product:
    """Query, cut, give roles. ``meta["rows"]`` holds the partition keys."""
    from aframe_assets.segments.chunks import make_chunks, windows
    from aframe_assets.segments.query import science_segments
    from aframe_assets.segments.table import make_roles, make_rows, write_csv, write_segwizard

    config = job.config
    science = science_segments(config, list(windows(config).values()))
    chunks, report = make_chunks(config, science)
    rows = make_rows(config, chunks)
    roles = make_roles(rows)
    write_csv(rows, job.scratch / "segments.csv")
    write_segwizard(rows, job.scratch / "segments.txt")
    meta = {
        "rows": rows,
        "roles": roles,
        "source": config.segments.source,
        "science_seconds": {ifo: float(abs(segs)) for ifo, segs in science.items()},
        "num_segments": len(rows),
    }
    for role, r in roles.items():
        meta[f"{role}_livetime"] = r["livetime"]
        job.log.info("%s: %d chunks, %.2f h", role, len(r["partitions"]), r["livetime"] / 3600)
    files = {name: job.scratch / name for name in ("segments.csv", "segments.txt")}
    return Product(files, meta, segment_checks(config, rows, roles, science, report))


def assets(config: Config) -> list[Any]:
    """Definitions of this room."""
    return [
        plain_asset(
            "segments",
            make_segments,
            config,
            description="Coincident science time in chunks, each with its role; registers the partition keys.",
            tags=resources(cpus=1, memory_gb=2, time_min=60),
            kinds={"table"},
            checks=CHECKS,
        )
    ]
