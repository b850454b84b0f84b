"""Jobs of a real SLURM that reach a real PostgreSQL themselves, and jobs with no network at all, which report the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from conftest import s3_of, wait_until
from event_logs import E, instance_of, messages, of_type, records_of, reported, results
from toy_run import Toy

from aframe_ops.cli.templates import shared_dagster_yaml
from benchmarks import postgres

GRAPH = Path(__file__).parents[1] / "ops" / "detached_toy.py"
MADE = ("many", "parts", "left", "right", "fanned")


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> Path:
    """A Python whose processes have a loopback that is down, and no other network."""
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"the network of a process cannot be cut here: {done.stderr.strip()}")
    path = tmp_path_factory.mktemp("cut") / "python"
    path.write_text(f'#!/bin/sh\nexec unshare --net {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def shared_toy(tmp_path, slurm, monkeypatch) -> Iterator[Callable[..., tuple[Toy, postgres.Postgres]]]:
    """Makes run directories on SLURM, each with a PostgreSQL of its own."""
    with postgres.postgres() as first, postgres.postgres() as second:
        servers, made = [first, second], []

        def make(name: str, *, executor: str = "", site: str = "") -> tuple[Toy, postgres.Postgres]:
            database = servers.pop()
            text = slurm.site.replace("  poll_seconds:", f"{executor}  poll_seconds:").replace("PLANTED]", "PLANTED, PLAY_*]")
            text += f"    export PYTHONHASHSEED=0  # else sets of partitions differ in order\n{site}"
            variables = {"PLAY_BACKEND": "slurm", "PLAY_TRANSPORT": "direct", "PLAY_PORT": str(database.port)}
            (tmp_path / name).mkdir()
            toy = Toy(tmp_path / name, GRAPH, text, {**variables, **slurm.env, "AFRAME_DATABASE": database.url})
            (toy.path / "dagster_home" / "dagster.yaml").write_text(shared_dagster_yaml({"env": "AFRAME_DATABASE"}, None))
            made.append(toy)
            return toy, database

        yield make
        for toy in made:
            toy.close()


def seen(toy: Toy, monkeypatch) -> list[dg.EventLogRecord]:
    monkeypatch.setenv("AFRAME_DATABASE", toy.variables["AFRAME_DATABASE"])
    return records_of(toy)


@pytest.mark.timeout(1800)
def test_jobs_with_no_network_report_what_jobs_report_that_reach_the_database(shared_toy, cut, monkeypatch):
    kinds, found = {}, {}
    for transport in ("direct", "detached"):
        detached = transport == "detached"
        toy, database = shared_toy(
            transport, executor="  transport: detached\n" if detached else "", site=f"  python: {cut}\n" if detached else ""
        )
        code, output = toy.run("first", timeout=400)
        assert code == 0, output
        code, output = toy.run(*MADE, options=["--partition-range", "b...c"], timeout=900)
        assert code == 0, output
        kinds[transport], found[transport] = reported(seen(toy, monkeypatch)), results(toy)
        notes = [n for name in ("first", "many", "parts") for n in toy.notes(name)]
        assert len(notes) == 4 and all(n["SLURM_JOB_ID"] for n in notes)
        if detached:
            assert {(n["route"], n["AFRAME_DATABASE"], n["DAGSTER_HOME"]) for n in notes} == {
                ("[Errno 101] Network is unreachable", None, None)
            }
        else:
            assert {n["route"] for n in notes} == {"connected"}
            assert {n["AFRAME_DATABASE"] for n in notes} == {database.url}
        # the password is in no file that was left, and in no script
        left = [p for p in (*toy.path.rglob("*"), *toy.notes_dir.rglob("*")) if p.is_file() and p.suffix not in (".jsonl",)]
        assert any(p.suffix == ".sbatch" for p in left)
        assert not [p for p in left if database.password.encode() in p.read_bytes()]
        assert database.password not in output
    assert kinds["detached"] == kinds["direct"] and len(kinds["direct"]) == 10
    assert found["detached"] == found["direct"] and len(found["direct"]) > 10


@pytest.mark.timeout(1200)
def test_a_job_with_no_network_that_is_killed_vanishes_or_fails(shared_toy, cut, monkeypatch):
    toy, _ = shared_toy("faults", executor="  transports: {slurm: detached}\n", site=f"  python: {cut}\n")
    process = toy.start("broken", "killed", "vanishing", "chatty")
    toy.wait_for("chatty", timeout=300)
    wait_until(lambda: "is heard at once" in messages(seen(toy, monkeypatch), "chatty"), 60, "what a running job says")
    assert not toy.notes("chatty_ends")
    (toy.notes_dir / "go").touch()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    records = seen(toy, monkeypatch)
    failures = {e.step_key: e.step_failure_data.error for e in of_type(records, E.STEP_FAILURE)}
    assert set(failures) == {"broken", "vanishing"}
    assert failures["broken"].cause.message == "ValueError: the user's own words\n"
    assert any("inner_failure" in line for line in failures["broken"].cause.stack)
    assert messages(records, "killed") == [f"before the end {i}" for i in range(50)]
    assert len(toy.notes("killed")) == 2 and messages(records, "vanishing") == ["last words"]
    assert "was killed by SIGKILL" in output and "ended with exit code 0 without reporting a result" in output
    with instance_of(toy) as instance:
        (run,) = instance.get_runs()
        (captured,) = [e for e in of_type(records, E.LOGS_CAPTURED) if e.logs_captured_data.step_keys == ["broken"]]
        monkeypatch.setenv("DAGSTER_HOME", str(toy.path / "dagster_home"))
        key = instance.compute_log_manager.build_log_key_for_run(run.run_id, captured.logs_captured_data.file_key)
        assert b"the user's own words" in instance.compute_log_manager.get_log_data(key).stderr
    wait_until(lambda: not list((toy.path / "logs").glob("*/*.json")), 10, "no start file left")


def sent(env: dict[str, str]) -> list[str]:
    listed = s3_of(env).list_objects_v2(Bucket="bucket", Prefix="prefix/_messages/").get("Contents", [])
    return [o["Key"] for o in listed]


def heard_through_s3(toy: Toy, s3: dict[str, str], other: str) -> list[dg.EventLogRecord]:
    """What a run of ``chatty`` and `other` has left, when it has been seen that events come while the job runs."""
    try:
        process = toy.start("chatty", other)
        toy.wait_for("chatty", timeout=300)
        wait_until(lambda: "is heard at once" in messages(records_of(toy), "chatty"), 60, "what a running job says")
        assert not toy.notes("chatty_ends") and any("/chatty.0@000000000000" in key for key in sent(s3))
        assert not list((toy.path / "logs").glob("*/chatty.0.events"))
        (toy.notes_dir / "go").touch()
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
    finally:
        toy.close()
    records = records_of(toy)
    assert {e.step_key for e in of_type(records, E.STEP_SUCCESS)} == {"chatty", other}
    assert messages(records, "chatty") == ["is heard at once"]
    assert not sent(s3), "messages are removed at the end"
    return records


@pytest.mark.timeout(900)
def test_a_job_without_a_shared_disk_is_heard_through_s3(htcondor, s3, tmp_path):
    setup = f"    export PYTHONPATH={os.environ.get('PYTHONPATH') or os.getcwd()}\n"
    executor = htcondor.site.replace("PLANTED]", "PLANTED, PLAY_*]").replace("  poll_seconds:", "  transport: detached\n  poll_seconds:")
    site = f"store: {{root: 's3://bucket/prefix', cache_dir: {tmp_path}/cache}}\n{executor}{setup}  shared_disk: false\n"
    variables = {"PLAY_BACKEND": "htcondor", "PLAY_TRANSPORT": "direct", "AFRAME_CACHE_DIR": str(tmp_path / "cache")}
    records = heard_through_s3(Toy(tmp_path, GRAPH, site, {**variables, **htcondor.env, **s3}), s3, "killed")
    # what a killed job had no time to send is brought with its files
    assert messages(records, "killed") == [f"before the end {i}" for i in range(50)]


@pytest.mark.timeout(900)
def test_a_pod_that_sees_neither_database_nor_run_directory_is_heard_through_s3(kubernetes, s3, tmp_path):
    executor = kubernetes.site.replace("PLANTED]", "PLANTED, PLAY_*]").replace("  poll_seconds:", "  transport: detached\n  poll_seconds:")
    site = f"store: {{root: 's3://bucket/prefix', cache_dir: {tmp_path}/cache}}\n{executor}"
    variables = {"PLAY_BACKEND": "kubernetes", "PLAY_TRANSPORT": "direct", "AFRAME_CACHE_DIR": str(tmp_path / "cache")}
    toy = Toy(tmp_path, GRAPH, site, {**variables, **kubernetes.env, **s3})
    hidden = "".join(f"    - {{empty_gb: 1, path: '{toy.path / name}'}}\n" for name in ("logs", "resolved", "dagster_home"))
    (toy.path / "site.yaml").write_text(f"{site}  volumes:\n{hidden}")
    records = heard_through_s3(toy, s3, "first")
    assert messages(records, "first") == ["a message of first"]
    assert "first says hello" in toy.log("first.0.err").read_text()
