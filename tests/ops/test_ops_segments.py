"""Segments worked on by choice, late ones, and ones that are taken out, as a user does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dagster import AssetKey, DagsterInstance, DagsterRunStatus
from dagster import job as dagster_job
from typer.testing import CliRunner

from aframe_assets.partitions import SEGMENTS
from aframe_ops.cli.main import app
from aframe_ops.run_directory import RunDirectory
from aframe_ops.runs import DRIVER_TAG

FIXED = [[1240600000, 1240600064], [1240600100, 1240600164], [1240610000, 1240610064], [1240610100, 1240610164]]
LATE = [1240610200, 1240610264]
TRAIN, OTHER, TEST, SECOND = (f"{a}-{b - a}" for a, b in FIXED)
NEW = "1240610200-64"


def experiment(path: Path, fixed, **more) -> None:
    segments = {"fixed": fixed, "train_min_duration": 32, "test_min_duration": 32, "min_valid_duration": 32} | more
    (path / "aframe.yaml").write_text(
        yaml.safe_dump({"preset": "demo", "segments": segments, "execution": {"segments_per_step": 2, "max_retries": 0}})
    )


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "run dir"
    assert CliRunner().invoke(app, ["init", str(path), "--preset", "demo"]).exit_code == 0
    experiment(path, FIXED)
    for name in ("DAGSTER_HOME", "DAGSTER_MODULE_NAME", "AFRAME_CONFIG"):
        # set by commands that run in this process
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)
    return path


def look(*words) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["segments", *map(str, words)])
    return result.exit_code, result.output


def listed(run: Path, *words) -> list[str]:
    code, output = look("list", run, *words)
    assert code == 0, output
    return [line.split("\t")[0] for line in output.splitlines()]


def partitions(run: Path) -> list[str]:
    with DagsterInstance.from_config(str(run / "dagster_home")) as instance:
        return list(instance.get_dynamic_partitions(SEGMENTS.name))


def backgrounds(run: Path) -> dict[str, str]:
    workspace = RunDirectory(run).workspace()
    found = {p: workspace.complete("background", p) for p in workspace.partitions()}
    return {p: workspace.store.manifest("background", p).provenance["run_id"] for p, handle in found.items() if handle}


def test_sync_adds_what_is_late_and_lets_nothing_go_unasked(run):
    code, output = look("sync", run, "--dry-run")
    assert code == 0 and "would be added:" in output and TEST in output and look("list", run)[0] == 2
    assert look("sync", run)[0] == 0 and listed(run) == partitions(run) == [TRAIN, OTHER, TEST, SECOND]
    with DagsterInstance.from_config(str(run / "dagster_home")) as instance:
        page = instance.get_latest_materialization_event(AssetKey("segments")).asset_materialization
    assert page.metadata["num_segments"].value == 4
    assert "segments are as the source says" in look("sync", run)[1]

    experiment(run, [*FIXED, LATE])
    code, output = look("sync", run)
    assert code == 0 and f"added:\n  {NEW}  test" in output and "--recut` plans anew" in output
    assert partitions(run) == [TRAIN, OTHER, TEST, SECOND, NEW]

    experiment(run, [*FIXED[:3], LATE])
    code, output = look("sync", run)
    assert code == 1 and "1 of 5 would leave the table" in output and SECOND in output and "--remove" in output
    assert SECOND in partitions(run)
    assert look("sync", run, "--remove")[0] == 0 and listed(run, "--role", "test") == [TEST, NEW] and SECOND not in partitions(run)

    experiment(run, FIXED[:2])
    code, output = look("sync", run, "--remove")
    assert code == 1 and "segments stay as they are: has_segments would fail" in output and NEW in partitions(run)

    experiment(run, [*FIXED, LATE])
    assert "--recut" not in look("sync", run, "--recut")[1]
    meta = RunDirectory(run).workspace().store.manifest("segments").handle.meta
    assert "plan" not in meta and len(meta["rows"]) == 5


def test_retired_segments_stay_out_until_they_are_restored(run):
    assert look("retire", run, "--segments", TEST, "--reason", "x")[0] == 2
    assert look("sync", run)[0] == 0
    before = RunDirectory(run).workspace().store.manifest("segments").handle.meta
    code, output = look("retire", run, "--segments", "test", "--reason", "x")
    assert code == 1 and "no segment would be left for test" in output
    assert look("retire", run, "--segments", TEST)[0] == look("retire", run)[0] == 2
    code, output = look("retire", run, "--segments", "failed", "--reason", "x")
    assert code == 2 and "--segments failed: there is none now" in output
    code, output = look("retire", run, "--segments", "test", "--reason", "x", "--dry-run")
    assert code == 1 and "no segment would be left for test" in output
    assert look("retire", run, "--segments", "..1240610050", "--segments", "test", "--reason", "scattered\n light")[0] == 0
    assert listed(run) == partitions(run) == [TRAIN, OTHER, SECOND]
    line = look("list", run, "--retired")[1]
    assert line.startswith(f"{TEST}\t1240610000\t1240610064\ttest\t20") and line.endswith("\tscattered light\n")
    # neither the source nor late data bring it back
    experiment(run, [*FIXED, LATE])
    assert look("sync", run)[0] == 0 and listed(run) == [TRAIN, OTHER, SECOND, NEW]
    experiment(run, FIXED)
    assert look("sync", run, "--remove")[0] == 0
    code, output = look("retire", run, "--restore", "--segments", OTHER)
    assert code == 2 and f"there is no segment {OTHER}; see `aframe segments list --retired`" in output
    assert "1 would be restored" in look("retire", run, "--restore", "--segments", "test", "--dry-run")[1] and TEST not in listed(run)
    assert look("retire", run, "--restore", "--segments", "1240610000..1240610010")[0] == 0
    assert RunDirectory(run).workspace().store.manifest("segments").handle.meta == before
    assert sorted(partitions(run)) == [TRAIN, OTHER, TEST, SECOND]


def test_who_takes_training_data_away_or_brings_more_is_told_what_it_costs(run):
    from aframe_assets.store.handle import KeyParts

    experiment(run, [*FIXED, [1240600200, 1240600264]], min_valid_duration=16)
    assert look("sync", run)[0] == 0
    words = "model will be trained anew"
    assert words not in look("retire", run, "--segments", TRAIN, "--reason", "x", "--dry-run")[1], "there is none yet"
    store = RunDirectory(run).workspace().store
    (run / "x").write_text("x")
    store.publish(KeyParts(asset="model", code_version="4"), {"x": run / "x"}, {})
    assert f"training data change ({TRAIN}): {words}" in look("retire", run, "--segments", TRAIN, "--reason", "x", "--dry-run")[1]
    assert TRAIN in listed(run)
    plan = CliRunner().invoke(app, ["plan", str(run)]).output
    assert plan.endswith("made before, and kept unless what they wait for comes out otherwise: model\n")
    assert words not in look("retire", run, "--segments", TEST, "--reason", "x")[1]
    experiment(run, [*FIXED, [1240600200, 1240600264], [1240600300, 1240600364]], min_valid_duration=16)
    assert f"training data change (1240600300-64): {words}" in look("sync", run, "--dry-run")[1]


def test_psds_are_chosen_anew_when_asked_for(run):
    from aframe_assets.store.handle import KeyParts

    assert look("sync", run)[0] == 0
    store = RunDirectory(run).workspace().store
    (run / "x").write_text("x")
    choice = {"test": {"partition": TEST, "most_sensitive": {"H1": {"partition": SECOND}}}}
    store.publish(KeyParts(asset="psd", code_version="4"), {"x": run / "x"}, {"roles": choice})
    output = look("retire", run, "--segments", SECOND, "--reason", "x")[1]
    assert f"the reference PSD of test came from {SECOND}: it will be chosen anew" in output
    assert store.manifest("psd") is not None
    assert "chooses anew" in look("sync", run, "--rechoose-psd")[1] and store.manifest("psd") is None
    assert "none was chosen yet" in look("sync", run, "--rechoose-psd")[1]


def test_the_table_does_not_change_under_a_run_that_goes_on(run):
    """As one of Dagster's daemon, which holds no lock of the directory; a killed `aframe run` is none."""

    @dagster_job
    def search():
        pass

    assert look("sync", run)[0] == 0
    assert look("retire", run, "--segments", SECOND, "--reason", "x")[0] == 0
    before = listed(run)
    with DagsterInstance.from_config(str(run / "dagster_home")) as instance:
        going = instance.create_run_for_job(search, status=DagsterRunStatus.STARTED)
        instance.create_run_for_job(search, status=DagsterRunStatus.STARTED, tags={DRIVER_TAG: "run"})
        retire, restore = ("retire", run, "--segments", TEST, "--reason", "x"), ("retire", run, "--restore", "--segments", SECOND)
        for words in (("sync", run), ("sync", run, "--rechoose-psd"), retire, restore):
            code, output = look(*words)
            assert code == 1 and f"run {going.run_id[:8]} is started; wait for its end" in output, output
        assert "Traceback" not in output and listed(run) == partitions(run) == before
        assert look("sync", run, "--dry-run")[0] == look(*restore, "--dry-run")[0] == 0
        instance.report_run_canceled(going)
    experiment(run, [*FIXED, LATE])
    assert look("sync", run)[0] == look(*restore)[0] == 0
    assert sorted(listed(run)) == sorted([*before, SECOND, NEW])


def test_only_the_chosen_segments_are_made_and_none_twice(run):
    def aframe(*words) -> str:
        command = [sys.executable, "-m", "aframe_ops.cli.main", "run", str(run), "--until", "background_index", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert look("sync", run)[0] == 0
    output = aframe("--segments", "test")
    assert "2 of 4 segments" in output and "not made, since they need other segments: background_index" in output
    first = backgrounds(run)
    assert list(first) == [TEST, SECOND]
    experiment(run, [*FIXED, LATE])
    assert look("sync", run)[0] == 0
    plan = CliRunner().invoke(app, ["plan", str(run), "--segments", f"{TRAIN},{NEW}", "--until", "background_index"]).output
    assert "background" in plan and " 2 " in plan and "background_index" not in plan
    # another that is not asked for lies between these
    output = aframe("--segments", f"{TRAIN},{NEW}")
    assert output.count("1 to make: background") == 2 and f"--partition-range {TRAIN}...{TRAIN}" in output
    now = backgrounds(run)
    assert list(now) == [TRAIN, TEST, SECOND, NEW] and {p: now[p] for p in first} == first
    states = json.loads(CliRunner().invoke(app, ["status", str(run), "--json"]).output)["assets"]
    assert {a["asset"]: a["complete"] for a in states}["background"] == 4
