"""What runs of a `toy_run.Toy` have left in Dagster's event log."""

from __future__ import annotations

import dagster as dg
from dagster._core.storage.dagster_run import RunsFilter
from toy_run import Toy

E = dg.DagsterEventType


def instance_of(toy: Toy) -> dg.DagsterInstance:
    return dg.DagsterInstance.from_config(str(toy.path / "dagster_home"))


def records_of(toy: Toy) -> list[dg.EventLogRecord]:
    """Every record of every run, in order."""
    with instance_of(toy) as instance:
        found = [r for run in instance.get_runs(RunsFilter()) for r in instance.get_records_for_run(run.run_id).records]
    return sorted(found, key=lambda r: r.storage_id)


def messages(records: list[dg.EventLogRecord], step: str) -> list[str]:
    """What the step has logged itself."""
    return [
        r.event_log_entry.user_message for r in records if r.event_log_entry.step_key == step and not r.event_log_entry.is_dagster_event
    ]


def of_type(records: list[dg.EventLogRecord], *kinds: dg.DagsterEventType) -> list[dg.DagsterEvent]:
    events = [r.event_log_entry.dagster_event for r in records]
    return [e for e in events if e is not None and e.event_type in kinds]


def asset_records(toy: Toy) -> dict[int, dg.EventLogRecord]:
    """Materializations and observations by the number under which others refer to them."""
    with instance_of(toy) as instance:
        keys = instance.all_asset_keys()
        found = [
            r for key in keys for fetch in (instance.fetch_materializations, instance.fetch_observations) for r in fetch(key, 100).records
        ]
    return {r.storage_id: r for r in found}


def made_by(event: dg.DagsterEvent) -> dg.AssetMaterialization | dg.AssetObservation:
    if event.event_type is E.ASSET_OBSERVATION:
        return event.asset_observation_data.asset_observation
    return event.step_materialization_data.materialization


def described(numbered: dict[int, dg.EventLogRecord], event: dg.DagsterEvent) -> dict:
    """A materialization, observation or check in words that do not depend on the run: numbers of events replaced by what they
    stand for."""

    def stands_for(number: str | int) -> object:
        if number == "NULL":
            return None
        named = numbered[int(number)].event_log_entry.dagster_event
        return str(named.event_type), named.asset_key.to_user_string(), named.partition

    if event.event_type is E.ASSET_CHECK_EVALUATION:
        data = event.asset_check_evaluation_data
        target = data.target_materialization_data
        assert numbered[target.storage_id].run_id == target.run_id and numbered[target.storage_id].timestamp == target.timestamp
        return {
            "check": data.asset_check_key.to_user_string(),
            "passed": data.passed,
            "severity": data.severity,
            "metadata": data.metadata,
            "description": data.description,
            "target": stands_for(target.storage_id),
        }
    made = made_by(event)
    runs = {r.run_id for r in numbered.values()}
    tags = {name: "the run" if value in runs else value for name, value in made.tags.items()}
    # without a version of its own, it is a hash of the run's id
    hashed = (
        "dagster/code_version" in tags and tags["dagster/code_version"] == "the run" and "dagster/data_version_is_user_provided" not in tags
    )
    tags |= {"dagster/data_version": "hash of the run"} if hashed else {}
    tags |= {name: stands_for(value) for name, value in tags.items() if name.startswith("dagster/input_event_pointer/")}
    return {"asset": made.asset_key.to_user_string(), "partition": made.partition, "tags": tags, "metadata": made.metadata}


def reported(records: list[dg.EventLogRecord]) -> dict[str, list[str]]:
    """Step -> what happened to it, in order; without what the run worker says, whose times depend on the machine."""
    kinds: dict[str, list[str]] = {}
    for record in records:
        entry = record.event_log_entry
        if entry.step_key and (event := entry.dagster_event) and event.event_type not in (E.ENGINE_EVENT, E.STEP_WORKER_STARTING):
            kinds.setdefault(entry.step_key, []).append(event.event_type.value)
    return kinds


def results(toy: Toy) -> list[dict]:
    """All materializations, observations and checks, `described` and sorted."""
    numbered = asset_records(toy)
    found = [
        described(numbered, e) for e in of_type(records_of(toy), E.ASSET_MATERIALIZATION, E.ASSET_OBSERVATION, E.ASSET_CHECK_EVALUATION)
    ]
    return sorted(found, key=lambda d: (d.get("asset") or d["check"], d.get("partition") or ""))
