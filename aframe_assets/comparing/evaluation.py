"""One model's search of test data that others search too: its engine, every segment, its events.

Each part is an artifact of its own, so that a killed step goes on with the segment that it was at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from aframe_assets import lineage
from aframe_assets.comparing.models import ComparisonError
from aframe_assets.segments.catalog import catalog_times
from aframe_assets.segments.frozen import plan_identity, planned_rows
from aframe_assets.segments.geometry import SlideGeometry, num_slides
from aframe_assets.segments.vetoes import vetoes_of
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.job import Job, Product

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.handle import Handle
    from aframe_assets.waveforms.ledger import RecoveredInjectionSet

Row = Mapping[str, Any]


def part(
    job: Job,
    config: Config,
    asset: str,
    make: Callable[[Job], Product],
    inputs: Mapping[str, Any],
    model: str,
    segment: str | None = None,
    row: Row | None = None,
) -> Handle:
    """What `asset` of a search with `config` would be, made of `inputs` unless it is there already.

    Args:
        job: of the comparison; gives store, workdir and log.
        make: body of the asset.
        inputs: artifacts that it reads.
        model: short name of the bundle, part of the artifact's.
        segment, row: of a partitioned asset.

    Raises:
        ComparisonError: a check failed that would hold the asset back.
    """
    node = lineage.graph(config)[asset]
    read = {a: lineage.combined({p: h.identity for p, h in x.items()}) if isinstance(x, Mapping) else x.identity for a, x in inputs.items()}
    if "segments" in inputs:
        # other roles and later data are no matter of this search
        read["segments"] = plan_identity(inputs["segments"].meta)
    parts = KeyParts(
        asset=f"compared_{asset}",
        code_version=node.code_version,
        partition=f"{model}-{segment}" if segment else model,
        config=config.select(node.config, node.free) | ({"row": dict(row)} if row else {}),
        inputs=read,
    )
    found = job.store.complete(parts)
    if found is not None:
        return found
    with job.store.scratch() as scratch:
        place = job.store, scratch, job.store.workdir(parts)
        product = make(Job(config, asset, segment, inputs, row, *place, job.log, job.services))
        require(product, f"{asset} of segment {segment}" if segment else asset)
        return job.store.publish(parts, product.files, dict(product.meta))


def require(product: Product, what: str) -> None:
    """Raises ComparisonError if a check of `product` failed that is more than a warning."""
    failed = [c for c in product.checks if not c.passed and c.severity == "error"]
    if failed:
        raise ComparisonError(f"{what}: {failed[0].name}: {failed[0].description}")


def require_comparable(num_background: int, whole: np.ndarray) -> None:
    """Refuse, in its own step, a model that all others would be held up by.

    Args:
        num_background: events of its slides.
        whole: of `seen`.

    Raises:
        ComparisonError: there is no background, or not one injection that it saw whole.
    """
    short = "test segments are too short for its conditioning and context; compare it on a run with longer ones"
    if not num_background:
        raise ComparisonError(f"its search has no background event: {short}")
    if len(whole) and not whole.any():
        raise ComparisonError(f"it sees none of {len(whole)} injections whole: {short}")


def searched_rows(job: Job) -> dict[str, Row]:
    """Rows of the test segments whose background and injections are both there, by segment, in order of time.

    Raises:
        ComparisonError: there are none.
    """
    there = set(job.inputs["background"]) & set(job.inputs["injections"])
    rows = {p: r for p, r in sorted(job.handle("segments").meta["rows"].items()) if r["role"] == "test" and p in there}
    if not rows:
        raise ComparisonError("there are no test segments with background and injections to compare models on")
    return rows


def same_slides(job: Job, config: Config) -> Config:
    """`config`, of one model, with the number of slides of the search that all models share."""
    rows = list(planned_rows(job.handle("segments").meta).values())
    count = num_slides(job.config, geometries(job, job.config, rows))
    return config.model_copy(update={"inference": config.inference.model_copy(update={"num_slides": count})})


def geometries(job: Job, config: Config, rows: Sequence[Row]) -> list[SlideGeometry]:
    """Of each of `rows`, under `config`."""
    mergers, vetoes = catalog_times(config.inference.exclude_catalog), vetoes_of(job)
    return [SlideGeometry.of(config, r["gps_start"], r["gps_stop"], mergers, vetoes) for r in rows]


def seen(job: Job, config: Config, rows: Sequence[Row], foreground: RecoveredInjectionSet) -> np.ndarray:
    """Which injections every output of this model's search saw that can see them (n,), bool.

    A model with a longer PSD, kernel or context loses more at the edges of data than the one that injections were placed for.
    """
    out = np.zeros(len(foreground), bool)
    shifts = np.reshape(foreground.shift, (len(foreground), -1))
    for row, geometry in zip(rows, geometries(job, config, rows), strict=True):
        inside = (foreground.injection_time >= row["gps_start"]) & (foreground.injection_time < row["gps_stop"])
        for shift in np.unique(shifts[inside], axis=0):
            own = inside & (shifts == shift).all(axis=1)
            out[own] = geometry.sees(shift.tolist(), foreground.injection_time[own])
    return out


def alone(job: Job, config: Config, inputs: Mapping[str, Any]) -> Job:
    """`job` with other settings and inputs."""
    return replace(job, config=config, inputs=inputs)
