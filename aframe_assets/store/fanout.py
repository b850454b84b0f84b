"""Assets that are made in parallel steps of one run: by segment, or in shards."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dagster as dg

from aframe_assets import lineage
from aframe_assets.config import Config
from aframe_assets.partitions import SEGMENTS
from aframe_assets.store.bodies import (
    GLUE,
    Make,
    check_result,
    described,
    failure_kept,
    metadata_of,
    produce,
    refused,
    tell_user,
    wanted_or_refuse,
)
from aframe_assets.store.handle import Handle, KeyParts
from aframe_assets.store.job import Declared, Job, Product
from aframe_assets.store.plots import kept
from aframe_assets.store.work import makes, shard_parts
from aframe_assets.store.workspace import MissingArtifact, Wanted
from aframe_assets.tags import resources

SHOWN = 500
"""Partitions of one run whose plots are written to Dagster's database; those of more are in the store alone."""


def graph_asset(name: str, config: Config, compose: Callable[..., Any], make: Make, *, kinds: set[str], partitioned: bool) -> Any:
    """The asset `name` of the lineage table, made by the ops that `compose` wires; its upstreams are only waited for.

    `make` describes it (`bodies.described`).
    """
    node = lineage.graph(config)[name]
    upstream = lineage.deps(node)
    compose.__signature__ = inspect.Signature([inspect.Parameter(d, inspect.Parameter.KEYWORD_ONLY) for d in upstream])
    return dg.graph_asset(
        name=name,
        description=described(make, node),
        ins={d: dg.AssetIn(dagster_type=dg.Nothing) for d in upstream},
        group_name=node.group,
        code_version=node.code_version,
        kinds=kinds,
        owners=config.execution.owners,
        partitions_def=SEGMENTS if partitioned else None,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )(compose)


def _fan_out(name, config, make, plan_keys, make_one, collect_all, tags, services=(), merged=None, **furniture):
    """plan -> one step for each list of keys, a batch job of its own -> collect, whose tags are those of `merged` too."""
    upstream = lineage.deps(lineage.graph(config)[name])
    glue = resources(**GLUE)

    @dg.op(
        name=f"plan_{name}",
        ins={d: dg.In(dg.Nothing) for d in upstream},
        out=dg.DynamicOut(list),
        tags=glue,
        required_resource_keys={"experiment"},
    )
    def plan(context):
        for step, keys in plan_keys(context).items():
            yield dg.DynamicOutput(keys, mapping_key=step)

    @dg.op(
        name=f"make_{name}",
        ins={"keys": dg.In(list)},
        out=dg.Out(list),
        tags=dict(tags),
        required_resource_keys={"experiment", *services},
        retry_policy=dg.RetryPolicy(max_retries=config.execution.max_retries, delay=1),
    )
    def one(context, keys):
        return make_one(context, keys)

    @dg.op(name=f"collect_{name}", ins={"made": dg.In(list)}, tags={**glue, **(merged or {})}, required_resource_keys={"experiment"})
    def collect(context: dg.AssetExecutionContext, made):
        return collect_all(context, made)

    def compose(**upstream):
        return collect(plan(**upstream).map(one).collect())

    return graph_asset(name, config, compose, make, **furniture)


def partitioned_asset(
    name: str,
    make: Make,
    config: Config,
    *,
    tags: Mapping[str, str],
    kinds: set[str],
    checks: Sequence[Declared] = (),
    services: Sequence[str] = (),
) -> list[Any]:
    """A segment-partitioned asset whose segments are made in chunks, each chunk a step; and its checks.

    A segment that fails is recorded as failed and the others go on, and so do they without one whose own upstream is not there; the
    collecting step then fails, naming those, if they leave fewer than ``execution.min_segment_fraction`` of the search, and warns
    otherwise. Segments that the search no longer has are left out.

    Args:
        services: Dagster resources that `make` finds in its job.
    """
    blocking = {c.name: c.blocking for c in checks}

    def plan_keys(context):
        workspace = context.resources.experiment.workspace()
        wanted, _ = _wanted(workspace, name, context)
        complete = workspace.store.complete_many(wanted.values())
        pending = [key for key in wanted if key not in complete]
        size = workspace.config.execution.segments_per_step
        return {f"c{n:05d}": pending[i : i + size] for n, i in enumerate(range(0, len(pending), size))}

    def make_one(context, keys):
        workspace = context.resources.experiment.workspace()
        few, done = len(workspace.partitions()) <= SHOWN, []
        for key in keys:
            wanted = wanted_or_refuse(workspace, name, key)
            if workspace.store.complete(wanted.parts) is not None:
                continue
            try:
                given = {s: getattr(context.resources, s) for s in services}
                handle, shown = produce(workspace, wanted, make, blocking, context.run_id, context.log, given)
            except Exception as e:  # one bad segment must not sink the others
                context.log.error(f"{name} of segment {key} failed: {e}", exc_info=True)
                workspace.store.record_failure(wanted.parts, f"{type(e).__name__}: {e}")
                continue
            done.append(key)
            context.log_event(dg.AssetMaterialization(name, partition=key, metadata=metadata_of(handle, True, shown if few else {})))
        return done

    def collect_all(context, made):
        workspace = context.resources.experiment.workspace()
        wanted, waiting = _wanted(workspace, name, context)
        handles = workspace.store.complete_many(wanted.values())
        failed = {key: _why_incomplete(workspace.store.manifest(name, key)) for key in wanted if key not in handles} | waiting
        if failed:
            text = "; ".join(f"{k}: {v}" for k, v in failed.items())
            if not _tolerated(workspace, len(failed)):
                tell_user(f"{name} failed for {len(failed)} of {len(wanted) + len(waiting)} segments: {text}")
                raise dg.Failure(description=f"{name} failed for {len(failed)} segments: {text}", allow_retries=False)
            context.log.warning(f"{name} goes on without {len(failed)} segments: {text}")
        fresh = {k for chunk in made for k in chunk}
        first = sorted(handles, key=lambda k: k not in fresh)[:SHOWN]
        with ThreadPoolExecutor(8) as pool:
            shown = dict(zip(first, pool.map(lambda k: kept(workspace.store, handles[k]), first), strict=True))
        for key, handle in handles.items():
            context.add_asset_metadata(metadata_of(handle, key in fresh, shown.get(key, {})), asset_key=name, partition_key=key)
        return handles

    furniture = {"kinds": kinds, "partitioned": True}
    asset = _fan_out(name, config, make, plan_keys, make_one, collect_all, {**tags, **makes(name, "partitions")}, services, **furniture)
    return [asset, *[check_of_segments(name, c) for c in checks]]


def _wanted(workspace, name, context) -> tuple[dict[str, KeyParts], dict[str, str]]:
    """Of this run's segments: key parts, or what of their own they wait for. An upstream of all of them that is missing is refused."""
    known, wanted, waiting = set(workspace.partitions()), {}, {}
    for key in context.partition_keys:
        if key not in known:
            context.log.warning(f"{key} is no segment of the search any more; nothing is made of it")
            continue
        try:
            wanted[key] = workspace.wanted(name, key).parts
        except MissingArtifact as e:
            if e.partition is None:
                raise refused(e) from None
            waiting[key] = f"needs {e.asset}, which is {e.reason}"
    return wanted, waiting


def _tolerated(workspace, number: int) -> bool:
    """Whether the search may go on without so many of its segments."""
    every = max(1, len(workspace.partitions()))
    return (every - number) / every >= workspace.config.execution.min_segment_fraction


def _why_incomplete(manifest) -> str:
    if manifest is None:
        return "never made"
    if manifest.error:
        return manifest.error
    failed = [c for c in manifest.checks if c.get("blocking") and not c["passed"]]
    if failed:
        return "; ".join(f"check {c['name']} failed: {c['description']}" for c in failed)
    return "its step died; run again"


def check_of_segments(asset: str, declared: Declared) -> Any:
    """A check over what the bodies found for every partition."""
    name = declared.name

    @dg.asset_check(
        name=name,
        asset=asset,
        blocking=declared.blocking,
        required_resource_keys={"experiment"},
        op_tags=resources(**GLUE),
        description=f"Of every made segment: {declared.says}",
    )
    def check(context):
        workspace = context.resources.experiment.workspace()
        manifests, current = workspace.store.manifests(asset), set(workspace.partitions())
        records = {p: c for p, m in manifests.items() if p in current for c in m.checks if c["name"] == name}
        failed = {p: c for p, c in records.items() if not c["passed"]}
        # Segments that the collecting step was allowed to go on without do not stop the graph here either.
        tolerated = _tolerated(workspace, len(failed))
        warn = bool(failed) and (tolerated or all(c["severity"] == "warn" for c in failed.values()))
        return dg.AssetCheckResult(
            passed=not failed and bool(records),
            severity=dg.AssetCheckSeverity.WARN if warn else dg.AssetCheckSeverity.ERROR,
            description="; ".join(f"{p}: {c['description']}" for p, c in sorted(failed.items())[:5]) or None,
            metadata={"segments": len(records), "failed": len(failed)},
        )

    return check


def sharded_asset(
    name: str,
    make_shard: Callable[[Job, int], Product],
    merge: Callable[[Job, list[Handle]], Product],
    config: Config,
    *,
    num_shards: int,
    **furniture: Any,
) -> list[Any]:
    """An unpartitioned asset generated in `num_shards` parallel steps and merged; the rest as in `pieced_asset`.

    A shard is an artifact of its own (``{name}_shard``), so that a killed run repeats only what was in flight.
    """
    work = makes(name, "shards", num_shards)
    shards = {i: f"c{i:05d}" for i in range(num_shards)}
    return pieced_asset(name, make_shard, merge, config, shards, lambda parts, i: shard_parts(parts, i, num_shards), work, **furniture)


def pieced_asset(
    name: str,
    make_piece: Callable[[Job, Any], Product],
    merge: Callable[[Job, list[Handle]], Product],
    config: Config,
    pieces: Mapping[Any, str],
    parts_of: Callable[[KeyParts, Any], KeyParts],
    work: Mapping[str, str],
    *,
    tags: Mapping[str, str],
    kinds: set[str],
    checks: Sequence[Declared] = (),
) -> list[Any]:
    """An unpartitioned asset whose pieces are made in a step each and merged.

    Args:
        make_piece: (job, piece) -> product, an artifact of its own.
        merge: (job, artifacts of the pieces in their order) -> the asset's product.
        pieces: number or text of each piece -> what its step is called (letters, digits, _).
        parts_of: (key parts of the asset, piece) -> key parts of the piece.
        work: op tag that says which pieces a step makes.
        checks: those that `merge` reports.
    """
    blocking = {c.name: c.blocking for c in checks}

    def plan_keys(context):
        workspace = context.resources.experiment.workspace()
        wanted = wanted_or_refuse(workspace, name)
        if workspace.store.complete(wanted.parts) is not None:
            return {}
        return {step: [p] for p, step in pieces.items() if workspace.store.complete(parts_of(wanted.parts, p)) is None}

    def make_one(context, keys):
        workspace = context.resources.experiment.workspace()
        wanted = wanted_or_refuse(workspace, name)
        for p in keys:
            part = Wanted(parts_of(wanted.parts, p), wanted.inputs, wanted.row)
            if workspace.store.complete(part.parts) is None:
                with failure_kept(workspace.store, wanted.parts):
                    produce(workspace, part, lambda job, p=p: make_piece(job, p), blocking, context.run_id, context.log)
        return keys

    def collect_all(context, made):
        workspace = context.resources.experiment.workspace()
        wanted = wanted_or_refuse(workspace, name)
        handle = workspace.store.complete(wanted.parts)
        made_now = handle is None
        if made_now:
            found = [workspace.store.complete(parts_of(wanted.parts, p)) for p in pieces]
            if None in found:
                raise dg.Failure(description=f"{name}: piece {found.index(None) + 1} of {len(found)} was not made; run again")
            with failure_kept(workspace.store, wanted.parts):
                handle, shown = produce(workspace, wanted, lambda job: merge(job, found), blocking, context.run_id, context.log)
        else:
            shown = kept(workspace.store, handle)
        failed = [c for c in workspace.store.manifest(name).checks if c["blocking"] and not c["passed"]]
        if failed:
            raise dg.Failure(description=f"{name}: check {failed[0]['name']} failed: {failed[0]['description']}", allow_retries=False)
        context.add_asset_metadata(metadata_of(handle, made_now, shown), asset_key=name)
        return handle

    furniture = {"kinds": kinds, "partitioned": False}
    asset = _fan_out(name, config, merge, plan_keys, make_one, collect_all, {**tags, **work}, merged=makes(name), **furniture)
    return [asset, *[check_of_whole(name, c) for c in checks]]


def check_of_whole(asset: str, declared: Declared) -> Any:
    """A check that the body of an unpartitioned graph asset reported."""
    name = declared.name

    @dg.asset_check(
        name=name,
        asset=asset,
        blocking=declared.blocking,
        required_resource_keys={"experiment"},
        op_tags=resources(**GLUE),
        description=declared.says,
    )
    def check(context):
        manifest = context.resources.experiment.workspace().store.manifest(asset)
        record = next(c for c in manifest.checks if c["name"] == name)
        return check_result(record)

    return check
