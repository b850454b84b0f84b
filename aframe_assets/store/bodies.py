"""Bodies of assets: skip what is complete, make what is not, publish, record, report.

Rooms give a function ``make(job) -> Product`` and say what it needs; everything that Dagster wants is done here, once.
"""

import base64
import inspect
import resource
import socket
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from aframe_assets import lineage
from aframe_assets.config import Config
from aframe_assets.partitions import SEGMENTS
from aframe_assets.store import open_store
from aframe_assets.store.handle import Handle
from aframe_assets.store.job import Check, Job, Product
from aframe_assets.store.workspace import MissingArtifact, Wanted, Workspace

# backfill_policy and blocking checks are marked beta; saying so once per asset and process buries what matters.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

Make = Callable[[Job], Product]

GLUE = {"cpus": 1, "memory_gb": 1, "time_min": 30}
"""What planning and collecting steps need."""


class Experiment(dg.ConfigurableResource):
    """The experiment and its store, made anew in every step's process from plain data."""

    config_json: str
    store_url: str
    cache_dir: str | None = None
    cache_gb: float = 20.0

    def config(self) -> Config:
        return Config.model_validate_json(self.config_json)

    def workspace(self) -> Workspace:
        store = open_store(self.store_url, cache_dir=self.cache_dir, cache_bytes=int(self.cache_gb * 1e9))
        return Workspace(self.config(), store)


def _refuse(error: MissingArtifact) -> dg.Failure:
    # The one line a user reads; the scheduler's own report of the failure follows it and never starts with this word.
    print(f"aframe: {error}", file=sys.stderr, flush=True)
    return dg.Failure(description=str(error), allow_retries=False)


def _wanted(workspace: Workspace, asset: str, partition: str | None = None) -> Wanted:
    try:
        return workspace.wanted(asset, partition)
    except MissingArtifact as e:
        raise _refuse(e) from None


def _make(workspace: Workspace, wanted: Wanted, make: Make, blocking: Mapping[str, bool], run_id: str, log: Any) -> tuple[Handle, Product]:
    store, parts = workspace.store, wanted.parts
    start, cpu = time.time(), time.process_time()
    with store.scratch() as scratch:
        job = Job(workspace.config, parts.asset, parts.partition, wanted.inputs, wanted.row, store, scratch, store.workdir(parts), log)
        product = make(job)
        handle = store.publish(
            parts,
            product.files,
            dict(product.meta),
            checks=[_check_record(c, blocking) for c in product.checks],
            provenance={
                "run_id": run_id,
                "host": socket.gethostname(),
                "wall_s": round(time.time() - start, 3),
                "cpu_s": round(time.process_time() - cpu, 3),
                "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            },
        )
    return handle, product


def _check_record(check: Check, blocking: Mapping[str, bool]) -> dict[str, Any]:
    return {
        "name": check.name,
        "passed": bool(check.passed),
        "severity": check.severity,
        "description": check.description,
        "metadata": dict(check.metadata),
        "blocking": blocking.get(check.name, False),
    }


def _check_result(record: Mapping[str, Any]) -> dg.AssetCheckResult:
    severity = dg.AssetCheckSeverity.ERROR if record["severity"] == "error" else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        check_name=record["name"],
        passed=record["passed"],
        severity=severity,
        description=record["description"] or None,
        metadata=record["metadata"],
    )


def _metadata(handle: Handle, product: Product | None) -> dict[str, Any]:
    out: dict[str, Any] = {
        "uri": dg.MetadataValue.text(handle.uri),
        "nbytes": sum(f.nbytes for f in handle.files),
        "made": product is not None,
    }
    for key, value in handle.meta.items():
        if isinstance(value, bool | int | float | str):
            out[key] = value
    if product:
        out |= {k: dg.MetadataValue.md(v) for k, v in product.markdown.items()}
    return out


def plot_markdown(title: str, png: bytes) -> str:
    """A PNG as markdown for an asset's page. Raises ValueError above 200 kB, which the event database would carry."""
    if len(png) > 150_000:
        raise ValueError(f"plot '{title}' has {len(png)} bytes; expected at most 150000, lower its resolution")
    return f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"


def _register(context: Any, handle: Handle) -> None:
    context.instance.add_dynamic_partitions(SEGMENTS.name, sorted(handle.meta["rows"]))


def plain_asset(
    name: str,
    make: Make,
    config: Config,
    *,
    description: str,
    tags: Mapping[str, str],
    kinds: set[str],
    checks: Sequence[tuple[str, bool]] = (),
) -> dg.AssetsDefinition:
    """An asset without partitions, made by ``make(job)`` in one step.

    Args:
        checks: (name, blocking) of each check that `make` reports in its Product.
    """
    node = lineage.graph(config)[name]
    blocking = dict(checks)

    @dg.asset(
        name=name,
        deps=[dg.AssetKey(d) for d in lineage.deps(node)],
        group_name=node.group,
        code_version=node.code_version,
        description=description,
        kinds=kinds,
        op_tags=dict(tags),
        backfill_policy=dg.BackfillPolicy.single_run(),
        required_resource_keys={"experiment"},
        check_specs=[dg.AssetCheckSpec(c, asset=name, blocking=b) for c, b in checks],
        retry_policy=dg.RetryPolicy(max_retries=config.execution.max_retries, delay=1),
    )
    def body(context):
        workspace = context.resources.experiment.workspace()
        wanted = _wanted(workspace, name)
        handle, product = workspace.store.complete(wanted.parts), None
        if handle is None:
            handle, product = _make(workspace, wanted, make, blocking, context.run_id, context.log)
        else:
            context.log.info(f"{name} is complete (key {handle.key[:16]}); nothing to do")
        if name == "segments":
            _register(context, handle)
        manifest = workspace.store.manifest(name)
        return dg.MaterializeResult(
            value=handle,
            metadata=_metadata(handle, product),
            data_version=dg.DataVersion(handle.key),
            check_results=[_check_result(c) for c in manifest.checks if c["name"] in blocking],
        )

    return body


def _graph_asset(name, config, description, kinds, ins, compose, partitioned):
    node = lineage.graph(config)[name]
    upstream = lineage.deps(node)
    compose.__signature__ = inspect.Signature([inspect.Parameter(d, inspect.Parameter.KEYWORD_ONLY) for d in upstream])
    return dg.graph_asset(
        name=name,
        description=description,
        ins={d: dg.AssetIn(dagster_type=dg.Nothing) for d in upstream},
        group_name=node.group,
        code_version=node.code_version,
        kinds=kinds,
        partitions_def=SEGMENTS if partitioned else None,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )(compose)


def _ops(name, config, tags, plan_keys, make_one, collect_all):
    """The three ops of a fan-out. Each mapped step is a batch job of its own."""
    from aframe_assets.tags import resources

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
        for i, keys in enumerate(plan_keys(context)):
            yield dg.DynamicOutput(keys, mapping_key=f"c{i:05d}")

    @dg.op(
        name=f"make_{name}",
        ins={"keys": dg.In(list)},
        out=dg.Out(list),
        tags=dict(tags),
        required_resource_keys={"experiment"},
        retry_policy=dg.RetryPolicy(max_retries=config.execution.max_retries, delay=1),
    )
    def one(context, keys):
        return make_one(context, keys)

    @dg.op(name=f"collect_{name}", ins={"made": dg.In(list)}, tags=glue, required_resource_keys={"experiment"})
    def collect(context: dg.AssetExecutionContext, made):
        return collect_all(context, made)

    return plan, one, collect


def partitioned_asset(
    name: str,
    make: Make,
    config: Config,
    *,
    description: str,
    tags: Mapping[str, str],
    kinds: set[str],
    checks: Sequence[tuple[str, bool]] = (),
) -> list[Any]:
    """A segment-partitioned asset whose segments are made in chunks, each chunk a step; and its checks.

    A segment that fails is recorded as failed and the others go on; the collecting step then fails, naming the failed ones,
    if fewer than ``execution.min_segment_fraction`` are complete, and warns otherwise.
    """
    blocking = dict(checks)

    def plan_keys(context):
        workspace = context.resources.experiment.workspace()
        complete = workspace.store.complete_many(_wanted(workspace, name, key).parts for key in context.partition_keys)
        pending = [key for key in context.partition_keys if key not in complete]
        size = workspace.config.execution.segments_per_step
        return [pending[i : i + size] for i in range(0, len(pending), size)]

    def make_one(context, keys):
        workspace = context.resources.experiment.workspace()
        done = []
        for key in keys:
            wanted = _wanted(workspace, name, key)
            if workspace.store.complete(wanted.parts) is not None:
                continue
            try:
                handle, product = _make(workspace, wanted, make, blocking, context.run_id, context.log)
            except Exception as e:  # one bad segment must not sink the others
                context.log.error(f"{name} of segment {key} failed: {e}", exc_info=True)
                workspace.store.record_failure(wanted.parts, f"{type(e).__name__}: {e}")
                continue
            done.append(key)
            context.log_event(dg.AssetMaterialization(name, partition=key, metadata=_metadata(handle, product)))
        return done

    def collect_all(context, made):
        workspace = context.resources.experiment.workspace()
        handles = workspace.store.complete_many(_wanted(workspace, name, key).parts for key in context.partition_keys)
        failed = {key: _why_incomplete(workspace.store.manifest(name, key)) for key in context.partition_keys if key not in handles}
        if failed:
            text = "; ".join(f"{k}: {v}" for k, v in failed.items())
            fraction = len(handles) / len(context.partition_keys)
            if fraction < workspace.config.execution.min_segment_fraction:
                print(
                    f"aframe: {name} failed for {len(failed)} of {len(context.partition_keys)} segments: {text}",
                    file=sys.stderr,
                    flush=True,
                )
                raise dg.Failure(description=f"{name} failed for {len(failed)} segments: {text}", allow_retries=False)
            context.log.warning(f"{name} goes on without {len(failed)} segments: {text}")
        fresh = {k for chunk in made for k in chunk}
        for key, handle in handles.items():
            context.add_asset_metadata(_metadata(handle, None) | {"made": key in fresh}, asset_key=name, partition_key=key)
        return handles

    plan, one, collect = _ops(name, config, tags, plan_keys, make_one, collect_all)

    def compose(**upstream):
        return collect(plan(**upstream).map(one).collect())

    asset = _graph_asset(name, config, description, kinds, None, compose, partitioned=True)
    return [asset, *[_manifest_check(name, c, b) for c, b in checks]]


def _why_incomplete(manifest) -> str:
    if manifest is None:
        return "never made"
    if manifest.error:
        return manifest.error
    failed = [c for c in manifest.checks if c.get("blocking") and not c["passed"]]
    if failed:
        return "; ".join(f"check {c['name']} failed: {c['description']}" for c in failed)
    return "its step died; run again"


def _manifest_check(asset: str, name: str, blocking: bool) -> Any:
    """A check over what the bodies found for every partition."""
    from aframe_assets.tags import resources

    @dg.asset_check(
        name=name,
        asset=asset,
        blocking=blocking,
        required_resource_keys={"experiment"},
        op_tags=resources(**GLUE),
        description=f"'{name}' holds for every made segment of {asset}.",
    )
    def check(context):
        manifests = context.resources.experiment.workspace().store.manifests(asset)
        records = {p: c for p, m in manifests.items() for c in m.checks if c["name"] == name}
        failed = {p: c for p, c in records.items() if not c["passed"]}
        warn = bool(failed) and all(c["severity"] == "warn" for c in failed.values())
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
    description: str,
    tags: Mapping[str, str],
    kinds: set[str],
    checks: Sequence[tuple[str, bool]] = (),
) -> list[Any]:
    """An unpartitioned asset generated in `num_shards` parallel steps and merged.

    A shard is an artifact of its own (``{name}_shard``), so that a killed run repeats only what was in flight.
    """
    blocking = dict(checks)

    def shard_parts(wanted: Wanted, index: int):
        return wanted.parts.model_copy(update={"asset": f"{name}_shard", "partition": f"{index:04d}-of-{num_shards:04d}"})

    def plan_keys(context):
        workspace = context.resources.experiment.workspace()
        wanted = _wanted(workspace, name)
        if workspace.store.complete(wanted.parts) is not None:
            return []
        return [[i] for i in range(num_shards) if workspace.store.complete(shard_parts(wanted, i)) is None]

    def make_one(context, keys):
        workspace = context.resources.experiment.workspace()
        wanted = _wanted(workspace, name)
        for i in keys:
            part = Wanted(shard_parts(wanted, i), wanted.inputs, wanted.row)
            if workspace.store.complete(part.parts) is None:
                _make(workspace, part, lambda job, i=i: make_shard(job, i), blocking, context.run_id, context.log)
        return keys

    def collect_all(context, made):
        workspace = context.resources.experiment.workspace()
        wanted = _wanted(workspace, name)
        handle, product = workspace.store.complete(wanted.parts), None
        if handle is None:
            shards = [workspace.store.complete(shard_parts(wanted, i)) for i in range(num_shards)]
            if None in shards:
                raise dg.Failure(description=f"{name}: shard {shards.index(None)} of {num_shards} was not made; run again")
            handle, product = _make(workspace, wanted, lambda job: merge(job, shards), blocking, context.run_id, context.log)
        failed = [c for c in workspace.store.manifest(name).checks if c["blocking"] and not c["passed"]]
        if failed:
            raise dg.Failure(description=f"{name}: check {failed[0]['name']} failed: {failed[0]['description']}", allow_retries=False)
        context.add_asset_metadata(_metadata(handle, product), asset_key=name)
        return handle

    plan, one, collect = _ops(name, config, tags, plan_keys, make_one, collect_all)

    def compose(**upstream):
        return collect(plan(**upstream).map(one).collect())

    asset = _graph_asset(name, config, description, kinds, None, compose, partitioned=False)
    return [asset, *[_manifest_check_whole(name, c, b) for c, b in checks]]


def _manifest_check_whole(asset: str, name: str, blocking: bool) -> Any:
    from aframe_assets.tags import resources

    @dg.asset_check(
        name=name,
        asset=asset,
        blocking=blocking,
        required_resource_keys={"experiment"},
        op_tags=resources(**GLUE),
        description=f"'{name}' of {asset}.",
    )
    def check(context):
        manifest = context.resources.experiment.workspace().store.manifest(asset)
        record = next(c for c in manifest.checks if c["name"] == name)
        return _check_result(record)

    return check
