"""What a step in a job without a route to Dagster's database is told about the world: see `detached`."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG, SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.definitions.partitions.utils import infer_partition_mapping
from dagster._core.event_api import EventLogRecord
from dagster._core.executor.step_delegating import StepHandlerContext
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG, PARTITION_NAME_TAG
from dagster._serdes import serialize_value

EVENTS = "events"
"""Suffix of the file in which a job reports."""

FIRST_ID = 2**52
"""A job numbers its own events from here, so that they are told from those of the database. Both are exact in JSON."""


def packed(value: Any) -> str:
    """`value` as JSON, compressed, in plain letters."""
    return base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()


def unpacked(text: str) -> Any:
    """What `packed` has packed."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


def known(context: StepHandlerContext, step: str) -> dict[str, Any]:
    """What `step` may ask its instance about.

    Returns:
        ``run``: the run. ``plan``: the snapshot of its plan, if that is needed to load the definitions. ``partitions``:
        keys of all dynamic partitions of the job, in order. ``records``: latest event of each asset that this step's
        assets and checks are made from, without its metadata. ``versions``: asset -> partition -> tags, for those with
        partitions.
    """
    instance, run = context.instance, context.dagster_run
    layer = context._plan_context.job.get_definition().asset_layer
    made = layer.get_assets_def_for_node(context.get_step_context(step).step.node_handle)
    records: list[EventLogRecord] = []
    versions: dict[str, dict[str, Mapping[str, str]]] = {}
    if made is not None:
        own = {*made.keys, *(spec.asset_key for spec in made.check_specs)}
        above = {parent for key in own if layer.has(key) for parent in layer.get(key).parent_keys} - own
        records += _latest(instance, own | above)
        for key in above:
            if asked := _versions(instance, layer, made, key, run.tags):
                versions[key.to_user_string()] = asked
        if partition := run.tags.get(PARTITION_NAME_TAG):
            records += _latest_of_partition(instance, own, partition)
    return {
        "run": serialize_value(run),
        "plan": serialize_value(instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id))
        if run.has_repository_load_data and run.execution_plan_snapshot_id
        else None,
        "partitions": {name: list(instance.get_dynamic_partitions(name)) for name in _dynamic(layer)},
        "records": [_bare(record) for record in {r.storage_id: r for r in records}.values()],
        "versions": versions,
    }


def database_variables(instance: dg.DagsterInstance) -> set[str]:
    """Variables of the environment that dagster.yaml reads, such as the database's password. A detached job needs none."""

    def named(value: Any) -> Iterator[str]:
        if isinstance(value, Mapping):
            if set(value) == {"env"} and isinstance(value["env"], str):
                yield value["env"]
            for inner in value.values():
                yield from named(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from named(inner)

    if not instance.is_persistent:
        return set()
    parts = instance.get_ref()._asdict()
    return {name for part in parts.values() if hasattr(part, "config_dict") for name in named(part.config_dict)}


def _latest(instance: dg.DagsterInstance, keys: Set[dg.AssetKey]) -> Iterator[EventLogRecord]:
    missing = set(keys)
    for found in instance.get_asset_records(list(keys)) if keys else ():
        if record := found.asset_entry.last_materialization_record:
            missing.discard(found.asset_entry.asset_key)
            yield record
    for key in missing:  # an asset that is only ever observed
        yield from instance.fetch_observations(key, limit=1).records


def _latest_of_partition(instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey], partition: str) -> Iterator[EventLogRecord]:
    for key in keys:
        yield from instance.fetch_materializations(dg.AssetRecordsFilter(key, asset_partitions=[partition]), limit=1).records


def _versions(
    instance: dg.DagsterInstance, layer: Any, made: Any, key: dg.AssetKey, tags: Mapping[str, str]
) -> dict[str, Mapping[str, str]]:
    """Data versions of the partitions of `key` that this run's partitions of `made` are made from; of none where they are so
    many that Dagster does not ask."""
    above, below = layer.get(key).partitions_def, made.partitions_def
    if above is None:
        return {}
    first = tags.get(PARTITION_NAME_TAG) or tags.get(ASSET_PARTITION_RANGE_START_TAG)
    last = tags.get(PARTITION_NAME_TAG) or tags.get(ASSET_PARTITION_RANGE_END_TAG)
    if below is not None and (first is None or last is None):
        return {}
    with partition_loading_context(dynamic_partitions_store=instance):
        subset = None if below is None else below.empty_subset().with_partition_key_range(below, dg.PartitionKeyRange(first, last))
        mapping = infer_partition_mapping(made.get_partition_mapping_for_dep(key), below, above)
        mapped = mapping.get_upstream_mapped_partitions_result_for_partitions(subset, below, above)
        wanted = list(mapped.partitions_subset.get_partition_keys())
    if not wanted or len(wanted) >= SKIP_PARTITION_DATA_VERSION_DEPENDENCY_THRESHOLD:
        return {}
    storage = instance.event_log_storage
    return dict(storage.get_latest_tags_by_partition(key, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG], wanted))


def _dynamic(layer: Any) -> set[str]:
    """Names of the sets of dynamic partitions in a job."""
    names = set()
    for key in layer.asset_graph.get_all_asset_keys():
        found = layer.asset_graph.get(key).partitions_def
        parts = [part.partitions_def for part in found.partitions_defs] if isinstance(found, dg.MultiPartitionsDefinition) else [found]
        names |= {part.name for part in parts if isinstance(part, dg.DynamicPartitionsDefinition) and part.name}
    return names


def _bare(record: EventLogRecord) -> str:
    """A record without its metadata, which may be large (plots), and which no step is to depend on."""
    event = json.loads(serialize_value(record))
    data = event["event_log_entry"]["dagster_event"]["event_specific_data"]
    for what in ("materialization", "asset_observation"):
        if what in data:
            data[what]["metadata_entries"] = []
    return json.dumps(event)
