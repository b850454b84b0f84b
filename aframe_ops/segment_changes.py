"""The segments table changed on purpose: looked up again, segments taken out, and brought back.

Nothing that is made of a segment is touched: what has left the table is not looked at, and counts again when it comes back. Who calls
these holds the run directory's lock, so that no run works on a table that changes under it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aframe_assets.segments.frozen import Table, window_of

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from aframe_assets.segments.table import Row
    from aframe_assets.store.handle import Manifest
    from aframe_assets.store.job import Job, Product
    from aframe_assets.store.workspace import Wanted, Workspace

log = logging.getLogger(__name__)


class SegmentsRefused(RuntimeError):
    """A change of the segments table that was not made; says why, and what to do."""


class _Looked(Exception):
    """Ends a body before anything is published."""


@dataclass(frozen=True)
class Change:
    """What differs between two tables, rows by partition.

    Attributes:
        added, removed: segments of one of them.
        changed: segments of both whose role or strain files differ, as they are now.
        late: whether slides stay planned for other test segments than there are now.
    """

    added: Mapping[str, Row]
    removed: Mapping[str, Row]
    changed: Mapping[str, Row]
    late: bool = False

    @classmethod
    def of(cls, before: Mapping[str, Row], now: Mapping[str, Row], late: bool = False) -> Change:
        added, removed = ({p: r for p, r in a.items() if p not in b} for a, b in ((now, before), (before, now)))
        return cls(added, removed, {p: r for p, r in now.items() if p in before and r != before[p]}, late)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def sync(
    workspace: Workspace, instance: DagsterInstance | None = None, *, recut: bool = False, remove: bool = False, dry_run: bool = False
) -> Change:
    """Asks the source again, and makes what it says now the table; chunks and roles that there were stay.

    Args:
        instance: whose partitions follow the table, if any.
        recut: nothing stays: the table is that of a new run directory, but for what is retired.
        remove: segments may leave the table because they are no longer science time or in their window.
        dry_run: only looks.

    Raises:
        SegmentsRefused: a check failed that would block the table, or segments would leave it without `remove`.
        aframe_assets.segments.query.SegmentError: the source cannot be read.
    """
    from aframe_assets.segments.assets import make_segments

    manifest = workspace.store.manifest("segments")
    before = Table.of(manifest)
    start = Table({}, retired=before.retired) if recut else before
    found: Change | None = None

    def looked(job: Job) -> Product:
        nonlocal found
        product = make_segments(job, start)
        if failed := [c for c in product.checks if not c.passed and c.severity == "error"]:
            raise SegmentsRefused(f"segments stay as they are: {failed[0].name} would fail: {failed[0].description}")
        found = Change.of(before.rows, product.meta["rows"], "plan" in product.meta)
        if found.removed and not (remove or recut or dry_run):
            gone = ", ".join(list(found.removed)[:5]) + (", ..." if len(found.removed) > 5 else "")
            raise SegmentsRefused(
                f"segments stay as they are: {len(found.removed)} of {len(before.rows)} would leave the table, since they are no longer "
                f"science time of every detector, or are outside of their window: {gone}. If the source is right: "
                "`aframe segments sync --remove`"
            )
        planned = manifest is not None and manifest.handle is not None and manifest.handle.meta.get("plan") != product.meta.get("plan")
        if dry_run or not (found or planned or workspace.complete("segments") is None):
            raise _Looked
        return product

    try:
        _publish(workspace, instance, workspace.wanted("segments"), looked)
    except _Looked:
        if instance is not None and not dry_run and found is not None:
            from aframe_assets.partitions import register

            register(instance, before.rows)
    return found


def retire(
    workspace: Workspace, instance: DagsterInstance | None, partitions: Sequence[str], reason: str, *, dry_run: bool = False
) -> list[str]:
    """Takes segments out of the search for good; says what else that changes.

    Args:
        dry_run: only looks.

    Raises:
        SegmentsRefused: a role would be left without segments.
    """
    table = _table(workspace)
    today = datetime.now(UTC).date().isoformat()
    after = table.without(workspace.config, partitions, reason, today)
    for role in {r["role"] for r in table.rows.values()} - {r["role"] for r in after.rows.values()}:
        raise SegmentsRefused(f"no segment would be left for {role}; at least one must stay")
    if not dry_run:
        _put(workspace, instance, after)
    return [*_chosen_for_psd(workspace, partitions), *trains_again(workspace, {p: table.rows[p] for p in partitions})]


def restore(workspace: Workspace, instance: DagsterInstance | None, partitions: Sequence[str], *, dry_run: bool = False) -> list[str]:
    """Brings retired segments back, as they were; says what else that changes.

    Args:
        dry_run: only looks.

    Raises:
        KeyError: one is not retired.
        SegmentsRefused: the time of one is another segment's by now.
    """
    table = _table(workspace)
    try:
        after = table.restored(workspace.config, partitions)
    except ValueError as e:
        raise SegmentsRefused(str(e)) from None
    if not dry_run:
        _put(workspace, instance, after)
    return trains_again(workspace, {p: table.retired[p] for p in partitions})


def trains_again(workspace: Workspace, rows: Mapping[str, Row]) -> list[str]:
    """A warning, if segments of these `rows` that come or go change what a network that is there was trained on."""
    own = [p for p, r in rows.items() if window_of(r["role"]) == "train"]
    trained = [a for a in ("model", "filter_model") if a in workspace.graph and workspace.store.manifest(a) is not None]
    if not own or not trained or not workspace.config.model.trains:
        return []
    return [f"training data change ({', '.join(own[:5])}{', ...' if len(own) > 5 else ''}): {' and '.join(trained)} will be trained anew"]


def rechoose_psd(workspace: Workspace) -> bool:
    """Forgets which chunks the reference PSDs came from, so that the next run chooses among all; whether there was a choice."""
    there = workspace.store.manifest("psd") is not None
    workspace.store.forget("psd")
    return there


def _current(workspace: Workspace) -> Manifest:
    manifest = workspace.store.manifest("segments")
    if manifest is None or manifest.handle is None or manifest.blocked:
        raise SegmentsRefused("there is no segments table yet; make it with `aframe run --until segments`")
    return manifest


def _table(workspace: Workspace) -> Table:
    return Table.of(_current(workspace))


def _chosen_for_psd(workspace: Workspace, partitions: Sequence[str]) -> list[str]:
    psd = workspace.store.manifest("psd")
    if psd is None or psd.handle is None:
        return []
    used = {
        role: {chosen["partition"], *(c["partition"] for c in chosen.get("most_sensitive", {}).values())}
        for role, chosen in psd.handle.meta["roles"].items()
    }
    lost = {role: ", ".join(sorted(own & set(partitions))) for role, own in used.items()}
    again = "it will be chosen anew, and all that reads it made again"
    return [f"the reference PSD of {role} came from {gone}: {again}" for role, gone in lost.items() if gone]


def _put(workspace: Workspace, instance: DagsterInstance | None, table: Table) -> None:
    """Publishes `table` under the key of the stored one, with the outcomes of its checks."""
    from aframe_assets.store.job import Check, Product
    from aframe_assets.store.workspace import Wanted

    manifest = _current(workspace)
    kept = {k: v for k, v in manifest.handle.meta.items() if k not in ("plan", "retired", "kept")}
    checks = [Check(c["name"], c["passed"], c["severity"], c["description"], c["metadata"]) for c in manifest.checks]
    _publish(
        workspace, instance, Wanted(manifest.parts, {}, None), lambda job: Product(table.write(job.scratch), kept | table.meta(), checks)
    )


def _publish(workspace: Workspace, instance: DagsterInstance | None, wanted: Wanted, make: Callable[[Job], Any]) -> None:
    from dagster import AssetMaterialization
    from dagster._core.definitions.data_version import DATA_VERSION_TAG

    from aframe_assets.partitions import register
    from aframe_assets.segments.checks import CHECKS
    from aframe_assets.store.bodies import metadata_of, produce

    handle, shown = produce(workspace, wanted, make, {c.name: c.blocking for c in CHECKS}, "", log, keep=False)
    if instance is not None:
        register(instance, handle.meta["rows"])
        tags = {DATA_VERSION_TAG: handle.key}
        instance.report_runless_asset_event(AssetMaterialization("segments", metadata=metadata_of(handle, True, shown), tags=tags))
