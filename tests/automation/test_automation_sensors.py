"""The sensors of new data, asked one evaluation after another: what they start, how often, and what they report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dropped_files import EXPERIMENT, Here, begin, config_of, experiment, nan, truncate, write
from filelock import FileLock
from gwosc.api.v2 import JSON_CACHE

from aframe_assets import lineage
from aframe_assets.config_load import build_config
from aframe_assets.store.opening import open_store
from aframe_assets.store.workspace import Workspace
from aframe_ops.automation import sensors
from aframe_ops.automation.looking_up import SERVERS
from aframe_ops.automation.new_segments import CHAIN, TRAINED, Memory
from aframe_ops.definitions import build_defs
from aframe_ops.site import SiteConfig


def key(number: int) -> str:
    return f"{begin(number)}-16"


class Play:
    """A run directory whose sensors are evaluated, and whose runs are executed, in this process."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, overrides: dict | None = None, **automation):
        options = {"watch": ["inbox"], "settle_seconds": 0, "quiet_seconds": 0, "until": "background", "retry_minutes": 0}
        self.folder, self.instance = folder, instance
        for name in ("inbox", "strain"):
            (folder / name).mkdir(exist_ok=True)
        self.site = experiment(folder, options | automation, overrides)
        self.config = config_of(folder)
        self.defs = build_defs(self.config, self.site)
        self.cursors: dict[str, str | None] = {}
        self.requests: list[dg.RunRequest] = []

    def evaluate(self, name: str) -> dg.SensorResult | dg.SkipReason:
        """One evaluation, with what Dagster's daemon does of its result but for runs."""
        with dg.build_sensor_context(instance=self.instance, cursor=self.cursors.get(name), definitions=self.defs) as context:
            result = self.defs.get_sensor_def(name)(context)
        if isinstance(result, dg.SkipReason):
            return result
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        for request in result.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        self.cursors[name] = result.cursor
        return result

    def tick(self) -> dg.RunRequest | None:
        """Both sensors; executes and returns the run that was asked for."""
        self.evaluate("incoming_strain")
        return self.search()

    def search(self) -> dg.RunRequest | None:
        """The sensor of new segments; executes and returns the run that was asked for."""
        result = self.evaluate("new_segments")
        (request,) = getattr(result, "run_requests", None) or (None,)
        if request is not None:
            self.requests.append(request)
            self.execute(request)
        return request

    def execute(self, request: dg.RunRequest) -> None:
        job = self.defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=set(request.asset_selection))
        tags = {**request.tags, "dagster/run_key": request.run_key}
        job.execute_in_process(instance=self.instance, tags=tags, raise_on_error=False)

    def said(self, name: str = "new_segments") -> str:
        result = self.evaluate(name)
        return str((result if isinstance(result, dg.SkipReason) else result.skip_reason).skip_message)

    def workspace(self) -> Workspace:
        return Workspace(self.config, open_store(self.site.store_url))

    def made(self) -> dict[str, int]:
        """How often each segment's background was made."""
        out: dict[str, int] = {}
        for record in self.instance.fetch_materializations(dg.AssetKey("background"), limit=1000).records:
            if "make_background" in record.event_log_entry.step_key:
                out[record.partition_key] = out.get(record.partition_key, 0) + 1
        return out

    def reports(self, asset: str = "incoming_strain") -> list[str]:
        records = self.instance.fetch_observations(dg.AssetKey(asset), limit=1000).records
        return [r.asset_observation.description for r in records]


@pytest.fixture
def play(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # the process that reads files is tested beside it; here it would only take time
    monkeypatch.setattr("aframe_ops.automation.inspector.Inspector", Here)
    with dg.instance_for_test() as instance:
        yield lambda **options: Play(tmp_path, instance, **options)


def test_new_files_are_searched_once_and_bad_ones_reported_once(play):
    p = play()
    assert p.tick() is None and "no segments yet" in p.said()
    for i in (4, 5):
        write(p.folder / "inbox", i)
    truncate(write(p.folder / "inbox", 6))
    first = p.tick()
    assert first.asset_selection == [dg.AssetKey("segments")] and first.tags == {sensors.TAG: "segments"}
    second = p.tick()
    assert second.asset_selection == [dg.AssetKey("background")]
    assert (second.tags["dagster/asset_partition_range_start"], second.tags["dagster/asset_partition_range_end"]) == (key(4), key(5))
    assert p.made() == {key(4): 1, key(5): 1}
    assert p.tick() is None and p.tick() is None
    # late, double, bad, and one more
    write(p.folder / "inbox", 1)
    write(p.folder / "inbox", 4, name="again")
    write(p.folder / "inbox", 7, spoil=nan)
    write(p.folder / "inbox", 8)
    assert [p.tick().tags[sensors.TAG] for _ in range(2)] == ["segments", "search"]
    assert p.tick() is None
    assert p.made() == {key(i): 1 for i in (1, 4, 5, 8)}
    assert len(p.reports()) == 2 and any(f"{begin(6)}" in r for r in p.reports()) and any("NaN" in r for r in p.reports())
    # the daemon died before it could keep the cursor; or all of its records are lost
    p.cursors.clear()
    assert p.tick() is None and len(p.reports()) == 2
    assert len({r.run_key for r in p.requests}) == len(p.requests) == 4


def test_failures_are_counted_told_and_do_not_stop_other_segments(play, monkeypatch):
    p = play(attempts=3, watch=["inbox"])
    from aframe_assets.strain import fetch

    real, calls = fetch.fetch_background, []

    def gone(config, start, stop):
        calls.append(start)
        if start == begin(1):
            raise fetch.StrainError(f"no strain of H1 at GPS {start}")
        return real(config, start, stop)

    monkeypatch.setattr(fetch, "fetch_background", gone)
    for i in (1, 2):
        write(p.folder / "inbox", i)
    for _ in range(12):
        p.tick()
    assert calls.count(begin(1)) == 3 and calls.count(begin(2)) == 1
    assert len(p.requests) == 4, "one for the table, three tries"
    (told,) = p.reports("background")
    assert told == f"{key(1)} is given up: background: StrainError: no strain of H1 at GPS {begin(1)}"
    assert f"1 given up after 3 tries: {key(1)}" in p.said()
    # more data: the lost one is not tried again
    write(p.folder / "inbox", 3)
    for _ in range(5):
        p.tick()
    assert p.made() == {key(2): 1, key(3): 1} and calls.count(begin(1)) == 3 and len(p.requests) == 6
    assert len(p.reports("background")) == 1


def test_waiting_between_tries_doubles(play, monkeypatch):
    memory = Memory()
    memory.count(["a"], 100.0, 60)
    memory.count(["a", "b"], 200.0, 60)
    assert memory.tried == {"a": (2, 320.0), "b": (1, 260.0)}
    assert Memory.of(memory.cursor) == memory and Memory.of(None) == Memory()


def test_runs_of_others_are_waited_for(play):
    p = play()
    with FileLock(p.folder / ".run.lock"):
        assert "`aframe run` is running" in p.said()
    with FileLock(p.folder / "automation" / ".lock"):
        assert "new files are being looked at" in p.said()
    (p.folder / "strain" / ".ready").mkdir()
    (p.folder / "strain" / ".ready" / ".landing").touch()
    assert "new files are being put into the experiment" in p.said()
    write(p.folder / "inbox", 1)
    p.evaluate("incoming_strain")
    run = p.instance.create_run_for_job(p.defs.resolve_implicit_global_asset_job_def(), tags={sensors.TAG: "segments"})
    assert "(segments) is not_started" in p.said()
    write(p.folder / "inbox", 2)
    p.evaluate("incoming_strain")
    assert len(list((p.folder / "strain").glob("*.hdf5"))) == 1, "nothing is added while the table is made"
    p.instance.report_run_failed(run)
    assert p.tick() is not None


def test_nothing_is_added_while_any_run_reads_what_is_there(play):
    p = play()
    job = p.defs.resolve_implicit_global_asset_job_def()
    write(p.folder / "inbox", 1)
    p.tick()
    write(p.folder / "inbox", 2)
    # a search, and a run that somebody started on the page
    for tags in ({sensors.TAG: "search"}, {}):
        run = p.instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED)
        assert f"1 good ones wait since run {run.run_id[:8]}" in p.said("incoming_strain")
        p.instance.report_run_failed(run)
    backfill = PartitionBackfill("some", BulkActionStatus.REQUESTED, from_failure=False, tags={}, backfill_timestamp=0.0)
    p.instance.add_backfill(backfill)
    assert "1 good ones wait since backfill some is going on" in p.said("incoming_strain")
    p.instance.update_backfill(backfill.with_status(BulkActionStatus.CANCELED))
    # one that was made and never started, by a command that was killed, is so for ever
    p.instance.create_run_for_job(job)
    assert "1 put into the experiment" in p.said("incoming_strain")


def test_everything_is_off_and_nothing_trains(tmp_path):
    training = {
        "model",
        "tuned_model",
        "filter_model",
        "training_waveforms",
        "validation_waveforms",
        "exported_model",
        "engine",
        "model_repository",
    }
    assert not training & set(CHAIN) and not training & set(sensors.DOWNSTREAM)
    for overrides in ({}, {"preset": "tune", "vetoes": {"catalog": "packaged"}, "inference": {"mode": "triton"}}):
        config = build_config({"preset": "demo", **overrides})
        site = SiteConfig(directory=tmp_path, automation={"watch": ["inbox"]})
        config = config.model_copy(update={"strain": config.strain.model_copy(update={"files": [str(tmp_path / "strain")]})})
        defs = build_defs(config, site)
        asked = {"look_up_segments"} if config.segments.source in SERVERS else set()
        assert {s.name for s in defs.sensors} == {"incoming_strain", "new_segments", "follow_new_results"} | asked
        assert all(s.default_status == dg.DefaultSensorStatus.STOPPED for s in defs.sensors)
        graph = defs.resolve_asset_graph()
        automatic = {k.to_user_string() for k in graph.get_all_asset_keys() if graph.get(k).automation_condition}
        assert automatic == set(sensors.DOWNSTREAM)
        reads = {i.asset for i in lineage.graph(config)["inference_results"].inputs}
        assert reads <= {*CHAIN, *TRAINED, "segments"}, "what a search reads is made by it, or must have been made"


def test_downstream_follows_once_and_only_when_it_is_switched_on(tmp_path):
    config = build_config({"preset": "demo"})
    defs = build_defs(config, SiteConfig(directory=tmp_path))
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("segments", ["1-2", "3-4"])
        graph = [k.to_user_string() for k in defs.resolve_asset_graph().get_all_asset_keys()]
        for asset in graph:
            for partition in ("1-2", "3-4") if asset in ("background", "injections", "inference_results") else (None,):
                instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition))
        result = dg.evaluate_automation_conditions(defs, instance)
        assert result.total_requested == 0
        for asset in ("background_index", "psd"):  # made at the beginning of a search, which goes on
            instance.report_runless_asset_event(dg.AssetMaterialization(asset))
        result = dg.evaluate_automation_conditions(defs, instance, cursor=result.cursor)
        assert result.total_requested == 0
        instance.report_runless_asset_event(dg.AssetMaterialization("inference_results", partition="3-4"))
        result = dg.evaluate_automation_conditions(defs, instance, cursor=result.cursor)
        asked = {a for a in graph if result.get_num_requested(dg.AssetKey(a))}
        assert asked == set(sensors.DOWNSTREAM)
        result = dg.evaluate_automation_conditions(defs, instance, cursor=result.cursor)
        assert result.total_requested == 0, "it is not asked for again, whatever became of it"


def test_a_site_that_says_so_has_them_on(tmp_path):
    site = SiteConfig(directory=tmp_path, automation={"on": True})
    defs = build_defs(build_config({"preset": "demo"}), site)
    on = {s.name: s.default_status for s in defs.sensors}
    assert on == {"new_segments": dg.DefaultSensorStatus.RUNNING, "follow_new_results": dg.DefaultSensorStatus.STOPPED}
    assert json.loads(site.model_dump_json())["automation"]["watch"] == []


# --- servers -----------------------------------------------------------------------------------------


def test_a_server_is_asked_once_in_so_many_hours(tmp_path, monkeypatch):
    from aframe_ops.automation import looking_up

    config = build_config({"preset": "o3"})
    defs = build_defs(config, SiteConfig(directory=tmp_path, automation={"look_up_hours": 2}))
    sensor, asked = defs.get_sensor_def("look_up_segments"), []
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
    now = [7200.0 * 1000]
    monkeypatch.setattr(looking_up.time, "time", lambda: now[0])
    changes = SimpleNamespace(sync=lambda workspace, instance: asked.append(workspace) or SimpleNamespace(added={}))
    monkeypatch.setitem(sys.modules, "aframe_ops.segment_changes", changes)
    with dg.instance_for_test() as instance:

        def evaluate(cursor):
            with dg.build_sensor_context(instance=instance, cursor=cursor, definitions=defs) as context:
                return sensor(context)

        first = evaluate(None)
        assert [r.run_key for r in first.run_requests] == ["look_up_segments:1000"]
        now[0] += 7000
        assert isinstance(evaluate(first.cursor), dg.SkipReason)
        now[0] += 300
        with FileLock(tmp_path / ".run.lock"):
            assert "`aframe run` is running" in evaluate(first.cursor).skip_message
        assert [r.run_key for r in evaluate(first.cursor).run_requests] == ["look_up_segments:1001"]
        job = defs.resolve_job_def("look_up_segments")
        assert job.tags[sensors.TAG] == "segments", "nothing is searched or put into the experiment meanwhile"
        assert job.execute_in_process(instance=instance).success and len(asked) == 1
    assert not [
        s for s in build_defs(build_config({"preset": "demo"}), SiteConfig(directory=tmp_path)).sensors if s.name == "look_up_segments"
    ]


def test_time_that_gwosc_has_gained_is_searched_and_the_rest_is_not_again(play, flag_server):
    first, second = (begin(0), begin(0) + 16), (begin(3), begin(3) + 16)
    flag_server.flags = {"H1_DATA": [first, second], "L1_DATA": [first]}
    segments = EXPERIMENT["segments"] | {"source": "gwosc", "host": flag_server.url, "test_stop": begin(10)}
    curve = "aLIGO_O4_high_asd.txt"
    strain = {"source": "simulated", "simulated": {"asd": {"H1": curve, "L1": curve}}}
    p = play(watch=[], overrides={"segments": segments, "strain": strain})
    look_up = p.defs.resolve_job_def("look_up_segments")

    def asked_again() -> None:
        (request,) = p.evaluate("look_up_segments").run_requests
        JSON_CACHE.clear()  # of the library, in this process; a run has a process of its own
        assert look_up.execute_in_process(instance=p.instance, tags={"dagster/run_key": request.run_key}).success
        p.cursors.pop("look_up_segments")  # hours later

    assert [p.search().tags[sensors.TAG] for _ in range(2)] == ["segments", "search"]
    assert p.search() is None and p.made() == {key(0): 1}
    asked_again()
    assert p.search() is None, "H1 alone is no coincidence"
    flag_server.flags["L1_DATA"] = [first, second]
    asked_again()
    assert p.search().tags["dagster/asset_partition_range_start"] == key(3)
    assert p.search() is None and p.made() == {key(0): 1, key(3): 1}
    # the server is gone, for an hour or for ever
    flag_server.flags = {}
    JSON_CACHE.clear()
    assert p.evaluate("look_up_segments").run_requests
    assert not look_up.execute_in_process(instance=p.instance, raise_on_error=False).success
    assert p.search() is None and set(p.workspace().rows()) == {key(0), key(3)}
