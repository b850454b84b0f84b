"""`aframe run` and what looks at a run, on the first assets of the real graph with minutes of data."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from aframe_ops.cli.main import app

TINY = {
    "preset": "demo",
    "segments": {
        "fixed": [[1240600000, 1240600064], [1240600100, 1240600164], [1240610000, 1240610064], [1240610100, 1240610164]],
        "train_min_duration": 32,
        "test_min_duration": 32,
        "min_valid_duration": 32,
    },
    "execution": {"segments_per_step": 2},
}


def aframe(*args, cwd: Path | None = None, timeout: float = 500) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "aframe_ops.cli.main", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout)


def look(*args) -> subprocess.CompletedProcess:
    """A command that only looks, in this process."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    return subprocess.CompletedProcess(args, result.exit_code, result.stdout, result.stderr)


def in_directory(run: Path, command: str) -> subprocess.CompletedProcess:
    """A shell in the run directory after ``. ./env.sh``."""
    return subprocess.run(["bash", "-c", f". ./env.sh && {command}"], capture_output=True, text=True, cwd=run, timeout=120)


def make(path: Path) -> Path:
    assert CliRunner().invoke(app, ["init", str(path), "--preset", "demo"]).exit_code == 0
    (path / "aframe.yaml").write_text(yaml.safe_dump(TINY))
    return path


def ours(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("aframe:")]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    run = make(tmp_path_factory.mktemp("run") / "run dir")
    return run, aframe("run", run, "--until", "background_index")


def test_run_makes_what_is_missing(done):
    _, result = done
    assert result.returncode == 0, result.stdout + result.stderr
    assert "$ dagster asset materialize --select segments\n" in result.stdout
    line = "$ dagster asset materialize --select background,background_index --partition-range 1240600000-64...1240610100-64"
    assert line in result.stdout
    for words in ("✓ segments", "✓ background (make 2)", "✓ background_index", "4 segments"):
        assert words in result.stdout
    assert ours(result.stderr) == []


def test_the_same_again_does_nothing_and_is_quick(done):
    run, _ = done
    before = sorted((run / "dagster_home").rglob("*.db"))
    start = time.monotonic()
    result = aframe("run", run, "--until", "background_index")
    assert result.returncode == 0 and "nothing to do" in result.stdout
    assert time.monotonic() - start < 20
    assert sorted((run / "dagster_home").rglob("*.db")) == before


def test_status_plan_and_segments(done):
    run, _ = done
    status = json.loads(look("status", run, "--json").stdout)
    assets = {a["asset"]: a for a in status["assets"]}
    assert assets["background"]["complete"] == assets["background"]["expected"] == 4
    assert assets["background_index"]["done"] and not assets["model"]["done"]
    assert assets["psd"]["why"] == {"": "never made"} and assets["validation_waveforms"]["why"] == {"": "waits for psd"}
    keys = [line.split()[0] for line in look("segments", "list", run).stdout.splitlines()]
    assert keys == ["1240600000-64", "1240600100-64", "1240610000-64", "1240610100-64"]
    assert len(look("segments", "list", run, "--role", "test").stdout.splitlines()) == 2
    assert "nothing to do" in look("plan", run, "--until", "background_index").stdout
    assert "model" in look("plan", run).stdout


def test_status_names_the_first_thing_that_differs(done, monkeypatch):
    run, _ = done
    monkeypatch.setenv("AFRAME__STRAIN__SIMULATED__GLITCH_RATE", "31")
    why = {a["asset"]: a["why"] for a in json.loads(look("status", run, "--json").stdout)["assets"]}
    assert set(why["background"].values()) == {"config strain.simulated.glitch_rate: 30.0 -> 31.0"}
    assert why["background_index"] == why["psd"] == {"": "waits for background"}


def test_dagster_commands_in_the_directory(done):
    run, _ = done
    shown = in_directory(run, "dagster definitions validate")
    assert shown.returncode == 0, shown.stderr
    again = in_directory(run, "dagster asset materialize --select '*background_index' --partition-range 1240600000-64...1240610100-64")
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_dagster_dev_shows_the_graph_and_backfills_two_stretches_and_what_reads_them(done):
    run, _ = done
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]

    def ask(query: str, **variables):
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    command = f". ./env.sh && exec dagster dev -p {port}"
    log = (run / "dev.log").open("w")
    dev = subprocess.Popen(["bash", "-c", command], cwd=run, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        nodes = []
        while not nodes:
            assert dev.poll() is None and time.monotonic() < deadline, (run / "dev.log").read_text()
            time.sleep(1)
            with contextlib.suppress(OSError):
                nodes = [n["assetKey"]["path"][0] for n in ask("{assetNodes{assetKey{path}}}")["assetNodes"]]
        assert {"segments", "background", "model", "sensitive_volume", "report"} <= set(nodes)
        started = ask(
            "mutation($p: LaunchBackfillParams!){launchPartitionBackfill(backfillParams: $p){... on LaunchBackfillSuccess{backfillId}}}",
            # another segment lies between them, and the index is one for all
            p={
                "assetSelection": [{"path": ["background"]}, {"path": ["background_index"]}],
                "partitionNames": ["1240600000-64", "1240610000-64"],
            },
        )
        query = "query($b: String!){partitionBackfillOrError(backfillId: $b){... on PartitionBackfill{status}}}"
        status, deadline = "", time.monotonic() + 1500
        while not status.startswith("COMPLETED"):
            assert time.monotonic() < deadline and status not in ("FAILED", "CANCELED"), status
            time.sleep(2)
            status = ask(query, b=started["launchPartitionBackfill"]["backfillId"])["partitionBackfillOrError"]["status"]
        assert status == "COMPLETED_SUCCESS"
        runs = ask("{runsOrError{... on Runs{results{status assetSelection{path} tags{key value}}}}}")["runsOrError"]["results"]
        made = []
        for each in runs:
            tags = {t["key"]: t["value"] for t in each["tags"]}
            if tags.get("dagster/backfill") == started["launchPartitionBackfill"]["backfillId"]:
                assert each["status"] == "SUCCESS"
                partition = tags.get("dagster/partition") or tags.get("dagster/asset_partition_range_start")
                made.append(([a["path"][0] for a in each["assetSelection"]], partition))
        assert sorted(made, key=str) == [
            (["background"], "1240600000-64"),
            (["background"], "1240610000-64"),
            (["background_index"], None),
        ]
    finally:
        os.killpg(dev.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            dev.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(dev.pid, signal.SIGKILL)


def test_a_missing_upstream_is_one_line_that_names_it_and_the_command(done):
    run, _ = done
    result = in_directory(run, "dagster asset materialize --select sensitive_volume")
    assert result.returncode == 1
    (line,) = ours(result.stdout + result.stderr)
    assert "sensitive_volume needs events" in line and "aframe run --until events" in line


def test_a_changed_experiment_keeps_no_old_segments(tmp_path):
    from dagster import DagsterInstance

    run = make(tmp_path / "run")
    assert aframe("run", run, "--until", "segments").returncode == 0
    data = yaml.safe_load((run / "aframe.yaml").read_text())
    data["segments"]["fixed"][2] = [1240610000, 1240610048]
    (run / "aframe.yaml").write_text(yaml.safe_dump(data))
    assert aframe("run", run, "--until", "segments").returncode == 0
    with DagsterInstance.from_config(str(run / "dagster_home")) as instance:
        keys = instance.get_dynamic_partitions("segments")
    assert sorted(keys) == ["1240600000-64", "1240600100-64", "1240610000-48", "1240610100-64"]


def test_kill_of_the_whole_command_then_the_same_again(tmp_path):
    run = make(tmp_path / "run")
    command = [sys.executable, "-m", "aframe_ops.cli.main", "run", str(run), "--until", "background_index"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list((run / "logs").glob("*/*make_background*.err")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    result = aframe("run", run, "--until", "background_index")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "of this directory had died; marked failed" in result.stdout
    listed = in_directory(run, "dagster run list").stdout
    assert "STARTED" not in listed


def test_two_at_once_are_refused(tmp_path):
    from filelock import FileLock

    run = make(tmp_path / "run")
    with FileLock(run / ".run.lock"):
        result = aframe("run", run, "--until", "segments")
    assert result.returncode == 2 and "`aframe run`, or a command like it, is at work here" in result.stderr


def test_a_store_that_cannot_be_written_is_told_before_anything_runs(tmp_path):
    run = tmp_path / "run"
    assert aframe("init", run, "--preset", "demo", "--store", "/proc/store").returncode == 0
    result = aframe("run", run)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert (
        "store file:///proc/store: cannot be written:" in result.stderr
        and "see store.root (or store.training) of site.yaml" in result.stderr
    )
    assert "dagster asset materialize" not in result.stdout and not list((run / "logs").glob("*/*.err"))


def test_config_show(tmp_path):
    run = make(tmp_path / "run")
    shown = yaml.safe_load(look("config", "show", run).stdout)
    assert shown["segments"]["train_min_duration"] == 32 and shown["preset"] == "demo"
    resolved = look("config", "show", run, "--resolved")
    assert json.loads(resolved.stdout)["preset"] == "demo" and resolved.stderr.startswith("hash ")


def test_refused_experiments_exit_2_with_every_reason(tmp_path):
    run = make(tmp_path / "run")
    (run / "aframe.yaml").write_text("preset: demo\ncolour: blue\nseed: -1\n")
    for words in (["run"], ["status"], ["plan"]):
        result = look(*words, run)
        assert result.returncode == 2 and len(ours(result.stderr)) == 2, result.stderr
    (run / "aframe.yaml").write_text("preset: demo\n")
    (run / "site.yaml").write_text("executor: {backend: moon}\n")
    result = look("status", run)
    assert result.returncode == 2 and "executor.backend = 'moon'" in result.stderr
    assert look("run", make(tmp_path / "other"), "--until", "nothing").returncode == 2


def test_doctor(tmp_path):
    run = make(tmp_path / "run")
    result = look("doctor", run)
    assert result.returncode == 0, result.stdout
    assert "written and read back" in result.stdout and "dagster 1." in result.stdout
    (run / "site.yaml").write_text("store: {root: /proc/nothing}\n")
    result = look("doctor", run)
    assert result.returncode == 1 and "cannot be written" in result.stdout


def test_imports_are_light():
    code = (
        "import sys, time; t = time.process_time(); import aframe_ops.definitions; s = time.process_time() - t;"
        "bad = {'torch', 'lightning', 'gwpy', 'boto3', 'kubernetes'} & set(sys.modules); print(s, bad or '')"
    )
    seconds, _, bad = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip().partition(" ")
    assert float(seconds) < 3 and not bad
