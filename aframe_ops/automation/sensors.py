"""New data as Dagster sees it: two sensors, what they report, and what follows by itself. All are off until they are switched on."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from aframe_assets.partitions import SEGMENTS
from aframe_ops.automation.looking_up import SERVERS, look_up_job, look_up_sensor
from aframe_ops.site import SiteConfig

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_ops.automation.ledger import Entry
    from aframe_ops.automation.new_segments import Decision, Memory, Wish

INCOMING = "incoming_strain"
"""The asset on whose page bad files are reported, and the sensor that looks for files."""

TAG = "aframe/new-data"
"""Run tag of what these sensors start: 'segments' or 'search'."""

DOWNSTREAM = ("events", "sensitive_volume", "candidates", "report")
"""What follows when new segments have been searched, once that is switched on. Never a training, nor what one reads."""

_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_GOING = [s for s in dg.DagsterRunStatus if s not in _ENDED]
_READING = [s for s in _GOING if s not in (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.MANAGED)]
"""A run that was made and never started, as by a command that was killed, is so for ever."""
_REMEMBERED = 2000
"""Observations looked through for a file that was reported before its evaluation was cut short."""


def _status(site: SiteConfig) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if site.automation.on else dg.DefaultSensorStatus.STOPPED


def incoming_asset() -> dg.AssetSpec:
    """Files that were dropped and cannot be searched are observations of it."""
    return dg.AssetSpec(
        INCOMING,
        group_name="strain",
        kinds={"file"},
        description="Strain files dropped in the watched places. Each that cannot be searched is reported here, once, with the reason.",
    )


def incoming_sensor(config: Config, site: SiteConfig) -> dg.SensorDefinition:
    """Looks for new files, checks them and puts the good ones into the experiment."""

    @dg.sensor(
        name=INCOMING,
        minimum_interval_seconds=site.automation.poll_seconds,
        default_status=_status(site),
        description="Checks files in the watched places, and puts the good ones into the experiment, many at a time.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from filelock import Timeout

        from aframe_ops.automation.incoming import Incoming
        from aframe_ops.automation.inspector import Inspector

        incoming = Incoming(config, site)
        try:
            with Inspector(config) as reader:
                look = incoming.look(reader, waits=reads_files(context.instance, site) or "")
        except Timeout:
            return dg.SkipReason("another process looks at the watched places")
        entries = incoming.ledger.read()
        for entry in look.new:
            context.log.log(30 if entry.verdict == "bad" else 20, f"{entry.verdict}: {entry.shown} {entry.why}")
        told = int(context.cursor or 0)
        bad = [e for e in entries[told if told <= len(entries) else 0 :] if e.verdict == "bad"]
        return dg.SensorResult(
            asset_events=_unreported(context.instance, bad), cursor=str(len(entries)), skip_reason=dg.SkipReason(str(look))
        )

    return sensor


def _name(entry: Entry) -> str:
    return "|".join([entry.shown, *map(str, entry.identity[1:])])


def _unreported(instance: dg.DagsterInstance, bad: list[Entry]) -> list[dg.AssetObservation]:
    """Reports of files, but of those that were reported when the daemon died before it could keep the cursor."""
    if not bad:
        return []
    records = instance.fetch_observations(dg.AssetKey(INCOMING), limit=_REMEMBERED).records
    known = {r.asset_observation.metadata["identity"].value for r in records if "identity" in r.asset_observation.metadata}
    out = []
    for entry in bad:
        if _name(entry) not in known:
            spans = ", ".join(f"{i} GPS {a:.14g} to {b:.14g}" for i, a, b in entry.spans)
            metadata: dict[str, Any] = {"file": entry.shown, "why": entry.why, "strain": spans or "unknown", "bytes": entry.size}
            out.append(
                dg.AssetObservation(INCOMING, description=entry.why, metadata={**metadata, "found": entry.time, "identity": _name(entry)})
            )
    return out


def segments_sensor(config: Config, site: SiteConfig) -> dg.SensorDefinition:
    """Starts a run for new segments: of the table when there is more data, then of what searches them."""
    from aframe_ops.automation.new_segments import CHAIN

    options = site.automation

    @dg.sensor(
        name="new_segments",
        target=dg.AssetSelection.assets("segments", *(a for a in CHAIN if a != "vetoes" or config.vetoes.asked)),
        minimum_interval_seconds=options.poll_seconds,
        default_status=_status(site),
        description="Searches segments that have never been searched, a run at a time. Nothing is trained.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        from aframe_ops.automation.new_segments import Memory, decide
        from aframe_ops.run_directory import RunDirectory

        instance, run = context.instance, RunDirectory(site.directory)
        busy = _busy(instance, site)
        if busy:
            return dg.SkipReason(busy)
        memory = Memory.of(context.cursor)
        registered = instance.get_dynamic_partitions(SEGMENTS.name)
        decision = decide(
            run.workspace(config, site),
            memory,
            registered,
            until=options.until,
            attempts=options.attempts,
            wait_s=60 * options.retry_minutes,
            now=time.time(),
            ended=_ended(instance, memory),
        )
        context.log.info(decision.why)
        for name, why in decision.given_up.items():
            context.log.warning(f"{name} is given up: {why}")
        return _result(decision, memory, registered)

    return sensor


def _result(decision: Decision, memory: Memory, registered: list[str]) -> dg.SensorResult:
    events = []
    for name, why in decision.given_up.items():
        asset = "segments" if name.startswith("segments:") else "background"
        events.append(dg.AssetObservation(asset, description=f"{name} is given up: {why}", metadata={"why": why}))
    add = [SEGMENTS.build_add_request(list(decision.register))] if decision.register else []
    wish = decision.wish
    return dg.SensorResult(
        run_requests=[_request(wish, decision, registered)] if wish else None,
        skip_reason=None if wish else dg.SkipReason(decision.why),
        cursor=memory.cursor,
        asset_events=events,
        dynamic_partitions_requests=add,
    )


def _request(wish: Wish, decision: Decision, registered: list[str]) -> dg.RunRequest:
    tags = {TAG: "search" if wish.segments else "segments"}
    if wish.segments:
        wanted = set(wish.segments)
        stored = [k for k in [*registered, *decision.register] if k in wanted]
        tags |= {ASSET_PARTITION_RANGE_START_TAG: stored[0], ASSET_PARTITION_RANGE_END_TAG: stored[-1]}
    return dg.RunRequest(run_key=wish.key, asset_selection=[dg.AssetKey(a) for a in wish.assets], tags=tags)


def _ended(instance: dg.DagsterInstance, memory: Memory) -> bool:
    """Whether the run that was asked for last is over; so is one that was never made, or has been deleted."""
    key = memory.asked.get("key")
    return key is None or not instance.get_runs_count(dg.RunsFilter(tags={"dagster/run_key": key}, statuses=_GOING))


def reads_files(instance: dg.DagsterInstance, site: SiteConfig) -> str | None:
    """What reads the experiment's files, in words, if anything does: files that were added would put its segments table out of date."""
    from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus

    if words := _goes_on(instance, site, dg.RunsFilter(statuses=_READING)) or _searches(instance, site):
        return words
    going = instance.get_backfills(filters=BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED]), limit=1)
    return f"backfill {going[0].backfill_id} is going on" if going else None


def _searches(instance: dg.DagsterInstance, site: SiteConfig) -> str | None:
    """A run that these sensors have started, in words; batch jobs of a dead one are the next run's."""
    for kind in ("segments", "search"):
        if words := _goes_on(instance, site, dg.RunsFilter(tags={TAG: kind}, statuses=_GOING), but_left=True):
            return words
    return None


def _goes_on(instance: dg.DagsterInstance, site: SiteConfig, wanted: dg.RunsFilter, but_left: bool = False) -> str | None:
    """One of the runs `wanted`, in words, but for those whose worker has died with the machine or with `dagster dev`.

    Args:
        but_left: nor those of which nothing but batch jobs goes on.
    """
    from aframe_ops.leases_reaping import GoingOn
    from aframe_ops.runs import reap

    if not instance.get_runs_count(wanted):
        return None
    left = reap(instance, site, patience=0, leave=GoingOn(site)).left
    for run in instance.get_runs(wanted):
        if not (but_left and run.run_id in left):
            kind = f" of new data ({run.tags[TAG]})" if TAG in run.tags else ""
            return f"run {run.run_id[:8]}{kind} is {run.status.value.lower()}"
    return None


def _busy(instance: dg.DagsterInstance, site: SiteConfig) -> str | None:
    """What keeps new runs waiting, if anything does."""
    from filelock import FileLock, Timeout

    from aframe_ops.automation.incoming import FOLDER, landing
    from aframe_ops.run_directory import RUN_LOCK

    try:
        (site.directory / FOLDER).mkdir(parents=True, exist_ok=True)
        FileLock(site.directory / FOLDER / ".lock").acquire(timeout=0).lock.release()
    except Timeout:
        return "new files are being looked at"
    try:
        FileLock(site.directory / RUN_LOCK).acquire(timeout=0).lock.release()
    except Timeout:
        return "`aframe run` is running in this directory"
    if landing(site.directory / os.path.expanduser(site.automation.land)):
        return "new files are being put into the experiment"
    return _searches(instance, site)


def downstream_condition() -> dg.AutomationCondition:
    """Some result that it is made from has changed, and nothing of it is being made: then once, even if that fails.

    (A search makes index and PSDs first, which the report reads too: of these alone a report would say that the events are out of date.)
    """
    results = dg.AssetSelection.assets("inference_results", *DOWNSTREAM)
    changed = dg.AutomationCondition.any_deps_updated().allow(results).since_last_handled()
    return changed & ~dg.AutomationCondition.any_deps_in_progress() & ~dg.AutomationCondition.in_progress()


def downstream_sensor(site: SiteConfig, graph: list[str]) -> dg.AutomationConditionSensorDefinition:
    """Keeps `DOWNSTREAM` up to date."""
    return dg.AutomationConditionSensorDefinition(
        "follow_new_results",
        target=dg.AssetSelection.assets(*(a for a in DOWNSTREAM if a in graph)),
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=max(30, site.automation.poll_seconds),
        run_tags={TAG: "follow"},
        description="Makes events, sensitive volume, candidates and report anew when new segments have been searched. Nothing is trained.",
    )


def with_automation(defs: dg.Definitions, config: Config, site: SiteConfig) -> dg.Definitions:
    """`defs` with the sensors of new data."""
    from aframe_assets import lineage

    graph = list(lineage.graph(config))
    keys = [dg.AssetKey(a) for a in DOWNSTREAM]
    followed = defs.map_asset_specs(
        func=lambda s: s.replace_attributes(automation_condition=downstream_condition()) if s.key in keys else s
    )
    sensors = [segments_sensor(config, site), downstream_sensor(site, graph)]
    assets, jobs = [], []
    if site.automation.watch:
        assets.append(incoming_asset())
        sensors.append(incoming_sensor(config, site))
    if config.segments.source in SERVERS:
        jobs.append(look_up_job(config, site, {TAG: "segments"}))
        sensors.append(look_up_sensor(jobs[0], site, _status(site), _busy))
    return dg.Definitions.merge(followed, dg.Definitions(assets=assets, jobs=jobs, sensors=sensors))
