"""A deployment that several machines share: a real PostgreSQL with a password, output of steps on S3 (moto)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import s3_of
from toy_run import Toy

from aframe_ops.cli import templates
from benchmarks import postgres

LOCAL = "executor: {cores: 2, memory_gb: 4}\n"


@pytest.fixture(scope="module")
def database() -> Iterator[postgres.Postgres]:
    if reason := postgres.missing():
        pytest.fail(reason)
    with postgres.postgres() as server:
        yield server


@pytest.fixture
def toy(tmp_path, database, s3) -> Iterator[Toy]:
    graph = Path(__file__).with_name("batch_definitions.py")
    made = Toy(tmp_path, graph, LOCAL, {"AFRAME_DATABASE": database.url, "DAGSTER_EVENT_BATCH_SIZE": "500", **s3})
    text = templates.shared_dagster_yaml({"env": "AFRAME_DATABASE"}, "s3://bucket/runs/toy")
    (made.path / "dagster_home" / "dagster.yaml").write_text(text)
    yield made
    made.close()


def outputs(s3: dict[str, str]) -> dict[str, bytes]:
    """Key -> content of what is in the bucket."""
    s3_client = s3_of(s3)
    listed = s3_client.list_objects_v2(Bucket="bucket", Prefix="runs/toy/_logs/").get("Contents", [])
    return {o["Key"]: s3_client.get_object(Bucket="bucket", Key=o["Key"])["Body"].read() for o in listed}


def check_run(toy: Toy, database: postgres.Postgres, s3: dict[str, str], output: str) -> None:
    assert database.statement("select status from runs order by id desc limit 1").strip() == "SUCCESS"
    steps = database.statement("select distinct step_key from event_logs where dagster_event_type = 'STEP_SUCCESS'").split()
    assert {"fine", "flaky"} <= set(steps)
    found = outputs(s3)
    assert b"fine says hello\n" in found.values(), sorted(found)
    assert any(b"first time unlucky" in text for text in found.values())
    assert not (toy.path / "dagster_home" / "storage").exists() or not list((toy.path / "dagster_home" / "storage").rglob("*.db"))
    # no credential is in a file that stays, or in what was shown
    for secret in (database.password, "planted-s3-secret"):
        assert secret not in output
        assert not [p for p in toy.path.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]


def test_a_run_of_local_steps(toy, database, s3):
    code, output = toy.run("fine", "flaky", timeout=400)
    assert code == 0, output
    assert len(toy.notes("fine")) == 1 and len(toy.notes("flaky")) == 2 and not list((toy.path / "logs").glob("*/*.job"))
    check_run(toy, database, s3, output)


def test_a_run_of_jobs(slurm, toy, database, s3):
    """Jobs reach the database themselves; its address comes to them by a file that they alone read."""
    (toy.path / "site.yaml").write_text(slurm.site)
    toy.variables |= slurm.env
    code, output = toy.run("fine", "flaky", timeout=400)
    assert code == 0, output
    check_run(toy, database, s3, output)
    assert json.loads(toy.log("fine.0.job").read_text())["backend"] == "slurm"


def test_output_is_read_by_a_machine_that_has_no_files_of_the_run(toy, database, s3, monkeypatch, tmp_path):
    code, output = toy.run("fine", timeout=400)
    assert code == 0, output
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "dagster.yaml").write_text((toy.path / "dagster_home" / "dagster.yaml").read_text())
    code = f"""
import dagster as dg
from dagster._core.storage.compute_log_manager import ComputeIOType
with dg.DagsterInstance.from_config({str(elsewhere)!r}) as instance:
    run = instance.get_runs(limit=1)[0]
    events = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.LOGS_CAPTURED).records
    key = [run.run_id, "compute_logs", events[0].event_log_entry.dagster_event.logs_captured_data.file_key]
    print(instance.compute_log_manager.get_log_data_for_type(key, ComputeIOType.STDOUT, 0, None)[0].decode(), end="")
"""
    env = {**toy.env, "DAGSTER_HOME": str(elsewhere)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "fine says hello\n", done.stderr


def test_doctor_and_plan_of_a_shared_run_directory(database, s3, tmp_path):
    env = {**os.environ, "AFRAME_DATABASE": database.url, **s3, "AFRAME_CACHE_DIR": str(tmp_path / "cache")}

    def aframe(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "aframe_ops.cli.main", *words], env=env, capture_output=True, text=True, timeout=300)

    run = str(tmp_path / "run")
    made = aframe("init", run, "--preset", "demo", "--store", "s3://bucket/demo", "--database", "env:AFRAME_DATABASE")
    assert made.returncode == 0, made.stderr
    done = aframe("doctor", run, "--json")
    found = json.loads(done.stdout)["findings"]
    assert done.returncode == 0, found
    assert any("(PostgreSQL) answers" in f["text"] for f in found) and any("written and read back" in f["text"] for f in found)
    env["AFRAME_DATABASE"] = database.url.replace(database.password, "wrong-planted")
    done = aframe("doctor", run)
    assert done.returncode == 1 and "password authentication failed" in done.stdout
    assert "wrong-planted" not in done.stdout + done.stderr and "planted-s3-secret" not in done.stdout
    del env["AFRAME_DATABASE"]
    done = aframe("doctor", run)
    assert done.returncode == 1 and "takes Dagster's database from $AFRAME_DATABASE, which is not set" in done.stdout
    done = aframe("run", run)
    assert done.returncode == 2 and done.stderr.startswith("aframe: ") and "AFRAME_DATABASE" in done.stderr
