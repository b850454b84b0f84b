"""Jobs without a route to Dagster's database: what they report is what a job that has one would report."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from pathlib import Path

import dagster as dg
import pytest
from event_logs import E, instance_of, made_by, messages, of_type, records_of, reported, results
from toy_run import Toy

SITE = "executor: {cores: 2, memory_gb: 4}\n"
POOLS = "concurrency:\n  pools:\n    default_limit: 1\n"


def make(folder: Path, transport: str) -> Toy:
    folder.mkdir(parents=True, exist_ok=True)
    variables = {"PLAY_TRANSPORT": transport, "PLAY_STORE": str(folder / "store")}
    variables["PYTHONHASHSEED"] = "0"  # else sets of partitions differ in order
    toy = Toy(folder, Path(__file__).with_name("detached_toy.py"), SITE, variables)
    home = toy.path / "dagster_home" / "dagster.yaml"
    home.write_text(home.read_text().replace("concurrency:\n", POOLS, 1))
    return toy


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The same assets made by both kinds of jobs; transport -> (run directory, all records)."""
    found = {}
    toys = []
    for transport in ("direct", "detached"):
        toy = make(tmp_path_factory.mktemp(transport), transport)
        toys.append(toy)
        code, output = toy.run("first")
        assert code == 0, output
        code, output = toy.run("many", "parts", "left", "right", "fanned", options=["--partition-range", "b...c"], timeout=300)
        assert code == 0, output
        found[transport] = toy, records_of(toy)
    yield found
    for toy in toys:
        toy.close()


def test_events_are_those_of_a_job_that_reaches_the_database(ran):
    kinds = {transport: reported(records) for transport, (_, records) in ran.items()}
    assert kinds["detached"] == kinds["direct"]
    assert kinds["detached"]["many"].count("STEP_UP_FOR_RETRY") == 1
    for _, records in ran.values():
        assert messages(records, "first") == ["a message of first"]


def test_versions_metadata_partitions_and_checks_are_the_same(ran):
    detached = results(ran["detached"][0])
    assert detached == results(ran["direct"][0])
    assert {d["partition"] for d in detached if d.get("asset") == "parts"} == {"a", "b", "c"}
    assert {d["asset"]: d["metadata"] for d in detached if d.get("asset") in ("first", "fanned")} == {
        "first": {"n": dg.IntMetadataValue(3), "plot": dg.MarkdownMetadataValue("# plot")},
        "fanned": {"sum": dg.IntMetadataValue(5)},
    }
    (left,) = [d for d in detached if d.get("asset") == "left"]
    assert len(left["tags"]["dagster/input_data_version/parts"]) == 64 and left["tags"]["dagster/input_event_pointer/parts"] is not None
    (right,) = [d for d in detached if d.get("asset") == "right"]
    assert right["tags"]["dagster/input_data_version/left"] == "left-1" and right["tags"]["dagster/input_data_version/many"] == "many-1"
    assert right["tags"]["dagster/input_event_pointer/left"] == (str(E.ASSET_MATERIALIZATION), "left", None)
    (warned,) = [d for d in detached if d.get("check") == "left:warns"]
    assert not warned["passed"] and warned["severity"] is dg.AssetCheckSeverity.WARN and warned["target"][1] == "left"


def test_keys_added_in_a_job_are_registered_in_their_order(ran):
    for toy, _ in ran.values():
        with instance_of(toy) as instance:
            assert list(instance.get_dynamic_partitions("keys")) == ["b", "a", "c"]
        assert [n["keys"] for n in toy.notes("parts")] == [["b", "a", "c"]]


def test_a_retry_keeps_its_number_and_delay(ran):
    _, records = ran["detached"]
    (retry,) = of_type(records, E.STEP_UP_FOR_RETRY)
    assert retry.step_retry_data.seconds_to_wait == 0.4
    (made,) = [e for e in of_type(records, E.ASSET_MATERIALIZATION) if e.asset_key.path == ["many"]]
    assert made_by(made).metadata["attempt"].value == 1


def test_a_pool_of_one_is_kept_without_a_database_in_the_job(ran):
    _, records = ran["detached"]
    times = []
    for step in (f"fanned.square[p{i}]" for i in range(3)):
        begins, ends = (
            [r.timestamp for r in records if r.event_log_entry.step_key == step and r.event_log_entry.dagster_event_type is kind]
            for kind in (E.STEP_START, E.STEP_SUCCESS)
        )
        times.append((begins[0], ends[0]))
    times.sort()
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(times))


def test_output_is_shown_as_that_of_other_steps(ran, monkeypatch):
    for toy, records in ran.values():
        monkeypatch.setenv("DAGSTER_HOME", str(toy.path / "dagster_home"))
        (captured,) = [e for e in of_type(records, E.LOGS_CAPTURED) if e.logs_captured_data.step_keys == ["first"]]
        run_id = next(r.run_id for r in records if r.event_log_entry.step_key == "first")
        with instance_of(toy) as instance:
            key = instance.compute_log_manager.build_log_key_for_run(run_id, captured.logs_captured_data.file_key)
            assert instance.compute_log_manager.is_capture_complete(key)
            data = instance.compute_log_manager.get_log_data(key)
        assert data.stdout == b"first says hello\n" and b"aframe: first speaks to the user" in data.stderr


def test_a_detached_job_is_not_told_where_the_database_is(ran):
    toy, _ = ran["detached"]
    specs = sorted(toy.notes_dir.glob("*.spec"))
    assert len(specs) > 5
    for path in specs:
        text = path.read_text()
        assert str(toy.path / "dagster_home") not in text and "DAGSTER_HOME" not in json.loads(text)["env"]
    assert {n["DAGSTER_HOME"] for name in ("first", "many", "parts") for n in toy.notes(name)} == {None}
    assert ran["direct"][0].notes("first")[0]["DAGSTER_HOME"] is not None
    assert not list((toy.path / "logs").glob("*/*.json"))


@pytest.fixture
def toy(tmp_path):
    made = make(tmp_path, "detached")
    yield made
    made.close()


def test_failures_kills_and_vanishing_jobs(toy):
    code, output = toy.run("broken", "killed", "vanishing", "late", timeout=300)
    assert code == 1
    records = records_of(toy)
    failures = {e.step_key: e.step_failure_data for e in of_type(records, E.STEP_FAILURE)}
    assert set(failures) == {"broken", "vanishing"}
    cause = failures["broken"].error.cause
    assert cause.message == "ValueError: the user's own words\n" and any("inner_failure" in line for line in cause.stack)
    # every event that was written before the kill is in the log, once, and before the step was called dead
    assert messages(records, "killed") == [f"before the end {i}" for i in range(50)]
    kinds = [
        (r.event_log_entry.dagster_event_type, r.event_log_entry.user_message) for r in records if r.event_log_entry.step_key == "killed"
    ]
    (dead,) = [i for i, (kind, _) in enumerate(kinds) if kind is E.STEP_UP_FOR_RETRY]
    (last,) = [i for i, (_, message) in enumerate(kinds) if message == "before the end 49"]
    assert last < dead
    assert messages(records, "vanishing") == ["last words"]
    assert [e.step_key for e in of_type(records, E.STEP_SUCCESS)].count("late") == 1, "its last event came after its job had ended"
    assert "its play job vanishing.0-" in str(failures["vanishing"].error) or "ended with 0" in output


@pytest.mark.parametrize("transport", ["detached", "away"])
def test_events_are_there_as_soon_as_they_happen(tmp_path, transport):
    """``away``: the job sees neither the run directory nor the database, and sends through the store."""
    toy = make(tmp_path, transport)
    try:
        process = toy.start("chatty")
        toy.wait_for("chatty", timeout=120)
        deadline = time.monotonic() + 60
        while "is heard at once" not in messages(records_of(toy), "chatty"):
            assert time.monotonic() < deadline, "not heard while the job runs"
            time.sleep(0.2)
        assert not toy.notes("chatty_ends")
        if transport == "away":
            assert list((tmp_path / "store" / "_messages" / "events").glob("*/chatty.0@*"))
            assert not list((toy.path / "logs").glob("*/*.events"))
        (toy.notes_dir / "go").touch()
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert messages(records_of(toy), "chatty") == ["is heard at once"]
        assert len(of_type(records_of(toy), E.STEP_SUCCESS)) == 1
        assert not list((tmp_path / "store").glob("_messages/events/*/*"))
    finally:
        toy.close()


def test_an_interrupted_run_interrupts_its_detached_jobs_and_hears_them(toy):
    process = toy.start("waiting")
    toy.wait_for("waiting", timeout=120)
    time.sleep(1.5)  # until it is known to run; what still waits is cancelled at once
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    (failure,) = of_type(records_of(toy), E.STEP_FAILURE)
    assert failure.step_failure_data.error.cls_name == "DagsterExecutionInterruptedError", failure
