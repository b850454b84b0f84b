"""Bodies of assets: skip what is complete, make what is not, publish, record, report.

Rooms give a function ``make(job) -> Product`` and say what it needs; everything that Dagster wants is done here, once.
"""

import inspect
import os
import re
import resource
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import dagster as dg

from aframe_assets import lineage
from aframe_assets.config import Config
from aframe_assets.partitions import register
from aframe_assets.store import open_store, plots
from aframe_assets.store.alone import alone
from aframe_assets.store.base import ArtifactStore
from aframe_assets.store.errors import StoreError
from aframe_assets.store.handle import Handle, KeyParts
from aframe_assets.store.io_managers import address
from aframe_assets.store.job import Check, Declared, Job, MakeRoom, Product
from aframe_assets.store.unfinished import Unfinished
from aframe_assets.store.work import makes
from aframe_assets.store.workspace import MissingArtifact, Wanted, Workspace
from aframe_assets.tags import CODE_VARIABLE

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


def tell_user(line: str) -> None:
    """The one line a user reads; Dagster's own report of a failure follows it and never starts with this word."""
    print(f"aframe: {' '.join(line.split())}", file=sys.stderr, flush=True)


def refused(error: MissingArtifact) -> dg.Failure:
    """One line for the user, and a failure that is not retried."""
    tell_user(str(error))
    return dg.Failure(description=str(error), allow_retries=False)


def wanted_or_refuse(workspace: Workspace, asset: str, partition: str | None = None) -> Wanted:
    """What `asset` should be now; a missing input becomes one line for the user and a failure that is not retried."""
    try:
        return workspace.wanted(asset, partition)
    except MissingArtifact as e:
        raise refused(e) from None


@contextmanager
def making_room(config: Config) -> Iterator[None]:
    """A step that had to make room is tried again, whatever its retry policy says of failures."""
    try:
        yield
    except MakeRoom as e:
        tell_user(str(e))
        raise dg.RetryRequested(max_retries=config.execution.training.max_restarts, seconds_to_wait=1) from e


@contextmanager
def failure_kept(store: ArtifactStore, parts: KeyParts) -> Iterator[None]:
    """Keeps the reason of a failure, for `aframe status` and `retry`, unless an artifact of earlier settings would lose its record."""
    try:
        yield
    except MakeRoom:
        raise
    except Exception as e:
        with suppress(StoreError, OSError):  # the store may be what fails
            before = store.manifest(parts.asset, parts.partition)
            if before is None or before.handle is None:
                store.record_failure(parts, f"{type(e).__name__}: {e}")
        raise


def observer(context: Any, asset: str) -> Callable[[Mapping[str, Any], Mapping[str, str]], None]:
    """A function that reports numbers and markdown as an observation of `asset`, at once."""

    def observe(numbers: Mapping[str, Any], markdown: Mapping[str, str]) -> None:
        metadata = {**numbers, **{k: dg.MetadataValue.md(v) for k, v in markdown.items()}}
        context.log_event(dg.AssetObservation(asset_key=asset, metadata=metadata))

    return observe


def produce(
    workspace: Workspace,
    wanted: Wanted,
    make: Make,
    blocking: Mapping[str, bool],
    run_id: str,
    log: Any,
    services: Mapping[str, Any] | None = None,
    observe: Callable[[Mapping[str, Any], Mapping[str, str]], None] | None = None,
    keep: bool = True,
) -> tuple[Handle, dict[str, str]]:
    """Makes, publishes and draws what is `wanted`; its handle and what its page shows, as markdown by title.

    Where another run on this machine is doing so, that is waited for: both would keep their work in one folder, and the first to
    publish removes it.

    Args:
        keep: as of `ArtifactStore.publish`; False makes it also where another run has just done so.
    """
    store, parts = workspace.store, wanted.parts

    def told() -> None:
        log.info(f"{parts.asset} is being made by another run on this machine; waiting for it")

    with alone(store.workdir(parts), told) as waited:
        if keep and waited and (made := store.complete(parts)) is not None:
            return made, plots.kept(store, made)
        start, cpu = time.time(), time.process_time()
        unfinished = Unfinished(store, parts)
        seen = {"observe": observe} if observe else {}
        with store.scratch() as scratch:
            place = store, scratch, store.workdir(parts)
            what = workspace.config, parts.asset, parts.partition, wanted.inputs, wanted.row
            job = Job(*what, *place, log, services or {}, unfinished=unfinished, **seen)
            product = make(job)
            if product.logs is not None:
                store.publish(parts.model_copy(update={"asset": f"{parts.asset}_logs"}), product.logs, {}, keep=False)
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
                    **({"code": code} if (code := os.environ.get(CODE_VARIABLE)) else {}),
                },
                keep=keep,
            )
            shown = plots.rendered(product, log)
            plots.keep(store, parts, shown, scratch / "page")
        with suppress(StoreError, OSError):  # what is left takes space and harms nobody
            unfinished.drop()
        return handle, shown


def _check_record(check: Check, blocking: Mapping[str, bool]) -> dict[str, Any]:
    return {
        "name": check.name,
        "passed": bool(check.passed),
        "severity": check.severity,
        "description": check.description,
        "metadata": dict(check.metadata),
        "blocking": blocking.get(check.name, False),
    }


def check_result(record: Mapping[str, Any]) -> dg.AssetCheckResult:
    """A check's outcome as Dagster takes it, from its record in a manifest (`_check_record`)."""
    severity = dg.AssetCheckSeverity.ERROR if record["severity"] == "error" else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        check_name=record["name"],
        passed=record["passed"],
        severity=severity,
        description=record["description"] or None,
        metadata=record["metadata"],
    )


def metadata_of(handle: Handle, made: bool, shown: Mapping[str, str]) -> dict[str, Any]:
    """What an asset's page shows of `handle`: where it is, its small values, and `shown`, markdown by title."""
    # plots first: they are what is looked for
    out: dict[str, Any] = {k: dg.MetadataValue.md(v) for k, v in shown.items()}
    out |= {**address(handle), "nbytes": handle.nbytes, "made": made}
    for key, value in handle.meta.items():
        if isinstance(value, bool | int | float | str) and key not in out:
            out[key] = value
    return out


def described(make: Callable[..., Product], node: lineage.Node) -> str:
    """An asset's description: what `make` says of itself, up to sections as ``Raises:``, and the settings that enter the asset's key."""
    said = re.split(r"^(?:Args|Returns|Raises|Attributes):", inspect.getdoc(make) or "", maxsplit=1, flags=re.MULTILINE)[0].strip()
    settings = ", ".join(f"`{path}`" for path in node.config)
    return f"{said}\n\nMade anew when its inputs or these settings change: {settings}."


def plain_asset(
    name: str,
    make: Make,
    config: Config,
    *,
    tags: Mapping[str, str],
    kinds: set[str],
    checks: Sequence[Declared] = (),
) -> dg.AssetsDefinition:
    """An asset without partitions, made by ``make(job)`` in one step; what `make` says of itself is the asset's description.

    Args:
        checks: those that `make` reports in its Product.
    """
    node = lineage.graph(config)[name]
    blocking = {c.name: c.blocking for c in checks}

    @dg.asset(
        name=name,
        deps=[dg.AssetKey(d) for d in lineage.deps(node)],
        group_name=node.group,
        code_version=node.code_version,
        description=described(make, node),
        owners=config.execution.owners,
        kinds=kinds,
        op_tags={**tags, **makes(name)},
        backfill_policy=dg.BackfillPolicy.single_run(),
        required_resource_keys={"experiment"},
        check_specs=[dg.AssetCheckSpec(c.name, asset=name, blocking=c.blocking, description=c.says) for c in checks],
        retry_policy=dg.RetryPolicy(max_retries=config.execution.max_retries, delay=1),
    )
    def body(context):
        workspace = context.resources.experiment.workspace()
        wanted = wanted_or_refuse(workspace, name)
        handle = workspace.store.complete(wanted.parts)
        made = handle is None
        if made:
            with making_room(config), failure_kept(workspace.store, wanted.parts):
                handle, shown = produce(workspace, wanted, make, blocking, context.run_id, context.log, observe=observer(context, name))
        else:
            shown = plots.kept(workspace.store, handle)
            context.log.info(f"{name} is complete (key {handle.key[:16]}); nothing to do")
        if name == "segments":
            register(context.instance, handle.meta["rows"])
        manifest = workspace.store.manifest(name)
        return dg.MaterializeResult(
            value=handle,
            metadata=metadata_of(handle, made, shown),
            data_version=dg.DataVersion(handle.key),
            check_results=[check_result(c) for c in manifest.checks if c["name"] in blocking],
        )

    return body
