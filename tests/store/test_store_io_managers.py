"""The IO managers under Dagster itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from aframe_assets.store import Handle, KeyParts, StoreError
from aframe_assets.store.io_managers import (
    LocalArtifactIOManager,
    S3ArtifactIOManager,
    decode,
    encode,
    io_manager_for,
)

REPO = Path(__file__).resolve().parents[2]
PARTS = dg.DynamicPartitionsDefinition(name="segments")
SINGLE = dg.BackfillPolicy.single_run()


@pytest.fixture
def manager(store):
    return io_manager_for(store.url, cache_dir=str(getattr(store, "_folder_cache", "")) or None)


def publish(store, asset, partition=None, text="x", **kwargs):
    with store.scratch() as folder:
        (folder / "a.txt").write_text(text)
        return store.publish(KeyParts(asset=asset, code_version="1", partition=partition), folder, **kwargs)


def run(assets, manager, keys=(), instance=None, **kwargs):
    instance = instance or dg.DagsterInstance.ephemeral()
    if keys:
        instance.add_dynamic_partitions("segments", list(keys))
        tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
        kwargs = {"tags": tags, **kwargs}
    return dg.materialize(assets, resources={"io_manager": manager}, instance=instance, **kwargs)


def failures(result):
    return [e.step_failure_data for e in result.all_events if e.is_step_failure]


def text_of(result) -> str:
    (data,) = failures(result)
    return data.user_failure_data.description


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_fan_out_with_a_process_for_each_step(kind, request, tmp_path):
    """Mapped steps, dynamic outputs and fan-in between processes that share only the store."""
    if kind == "local":
        url = (tmp_path / "store").as_uri()
    else:
        url = f"s3://{request.getfixturevalue('bucket')[1]}/x"
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    env = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "STORE_URL": url,
        "STORE_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(REPO),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-f", str(Path(__file__).parent / "fanout_defs.py")]
    command += ["--select", "*total", "--partition-range", "0-4...8-4" if kind == "local" else "0-4...4-4"]
    # total reads every partition: with one of them missing the command must fail and say what to run
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    if kind == "s3":
        assert done.returncode == 1
        assert "strain is not ready" in done.stderr and "8-4 was never made" in done.stderr
        assert "`dagster asset materialize --select strain --partition-range FIRST...LAST`" in done.stderr
        assert "`aframe run --until strain`" in done.stderr
    else:
        assert done.returncode == 0, done.stderr[-4000:]
    store = io_manager_for(url, cache_dir=str(tmp_path / "cache")).store
    made = store.manifests("strain")
    assert list(made) == ["0-4", "4-4", "8-4"][: len(made)] and len(made) == (3 if kind == "local" else 2)
    if kind == "local":
        assert store.open_local(store.manifest("total").handle, "a.txt").read_text() == "strain 0-4|strain 4-4|strain 8-4"
        with dg.DagsterInstance.from_config(str(home)) as instance:
            event = instance.get_latest_materialization_event(dg.AssetKey("strain"))
            shown = event.asset_materialization.metadata
            handle = made[event.asset_materialization.partition].handle
            assert shown["uri"].value == handle.uri and shown["sha256"].value == handle.sha256
            assert shown["nbytes"].value == handle.nbytes and shown["key"].value == handle.key
            assert shown["std"].value == 1.0 and shown["partitions"].value == 3
    # values between the steps are JSON in the store; Dagster's own storage holds logs and database only
    values = list(store._stats("_values/runs"))
    assert len(values) >= 4 and all(v.endswith(".json") for v in values)
    storage = [p.relative_to(home).as_posix() for p in (home / "storage").rglob("*") if p.is_file() and "compute_logs" not in p.parts]
    assert [p for p in storage if not p.endswith((".out", ".err", ".complete")) and ".db" not in p] == []


def test_handle_metadata_on_the_assets_page(store, manager):
    @dg.asset
    def model():
        return publish(store, "model")

    result = run([model], manager)
    (event,) = result.asset_materializations_for_node("model")
    handle = store.manifest("model").handle
    assert {k: event.metadata[k].value for k in ("uri", "sha256", "nbytes", "key")} == {
        "uri": handle.uri,
        "sha256": handle.sha256,
        "nbytes": 1,
        "key": handle.key,
    }


@pytest.mark.parametrize("keys", [["0-4"], ["0-4", "4-4", "8-4"]])
def test_fan_in_is_always_a_dict(store, manager, keys):
    seen = {}

    @dg.asset(partitions_def=PARTS, backfill_policy=SINGLE)
    def strain(context):
        return {k: publish(store, "strain", k, text=k) for k in context.partition_keys}

    @dg.asset(partitions_def=PARTS, backfill_policy=SINGLE)
    def triggers(context, strain):
        seen["same"] = strain
        return {k: publish(store, "triggers", k) for k in context.partition_keys}

    @dg.asset(backfill_policy=SINGLE)
    def events(strain):
        seen["all"] = strain
        return publish(store, "events")

    result = run([strain, triggers, events], manager, keys)
    assert result.success
    for found in seen.values():
        assert list(found) == keys
        assert all(isinstance(h, Handle) and store.open_local(h, "a.txt").read_text() == k for k, h in found.items())
    materializations = {m.partition: m.metadata for m in result.asset_materializations_for_node("strain")}
    assert {p: m["sha256"].value for p, m in materializations.items()} == {p: m.handle.sha256 for p, m in store.manifests("strain").items()}
    assert result.output_for_node("events").asset == "events"


def test_no_partitions_is_an_empty_dict(store, manager):
    seen = []

    @dg.asset(partitions_def=PARTS, backfill_policy=SINGLE)
    def strain():
        return {}

    @dg.asset
    def events(strain):
        seen.append(strain)
        return publish(store, "events")

    assert run([strain, events], manager, selection="events").success
    assert seen == [{}]


def test_single_partition_handle(store, manager):
    @dg.asset(partitions_def=PARTS)
    def strain(context):
        return publish(store, "strain", context.partition_key)

    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("segments", ["0-4"])
    result = dg.materialize([strain], resources={"io_manager": manager}, instance=instance, partition_key="0-4")
    (event,) = result.asset_materializations_for_node("strain")
    assert event.partition == "0-4" and event.metadata["sha256"].value == store.manifest("strain", "0-4").handle.sha256


def test_fan_in_of_many_partitions_uses_the_index(store, manager, monkeypatch):
    keys = [f"{i}-1" for i in range(40)]
    for k in keys[:-1]:
        publish(store, "strain", k)
    seen = []

    @dg.asset(partitions_def=PARTS, backfill_policy=SINGLE)
    def strain():
        return None

    @dg.asset
    def events(strain):
        seen.append(strain)
        return publish(store, "events")

    instance = dg.DagsterInstance.ephemeral()
    instance.add_dynamic_partitions("segments", keys)
    failed = run([strain, events], manager, instance=instance, selection="events", raise_on_error=False)
    assert not failed.success and "39-1 was never made" in text_of(failed)
    publish(store, "strain", keys[-1])
    assert run([strain, events], manager, instance=instance, selection="events").success
    assert list(seen[0]) == sorted(keys)


@pytest.mark.parametrize("state", ["absent", "failed", "damaged", "blocked"])
def test_missing_input_says_what_to_run_and_is_not_retried(store, manager, damage, state):
    @dg.asset
    def model():
        return publish(store, "model")

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=3))
    def engine(model):
        raise AssertionError("the body must not run")

    parts = KeyParts(asset="model", code_version="1")
    expected = {
        "absent": "was never made",
        "failed": "CUDA out of memory",
        "damaged": "is damaged",
        "blocked": "held back by its check parity",
    }
    if state == "failed":
        store.record_failure(parts, "CUDA out of memory")
    elif state == "damaged":
        damage(store, publish(store, "model"), "a.txt", None)
    elif state == "blocked":
        publish(store, "model", checks=[{"name": "parity", "passed": False, "severity": "error", "blocking": True}])
    result = run([model, engine], manager, selection="engine", raise_on_error=False)
    assert not result.success
    assert expected[state] in text_of(result)
    assert "model is not ready" in text_of(result)
    assert "`dagster asset materialize --select model`" in text_of(result) and "`aframe run --until model`" in text_of(result)
    assert not [e for e in result.all_events if e.is_step_up_for_retry], "trying again would not help"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("unpublished", "not in .*was never made"),
        ("other asset", "returned a handle of engine"),
        ("no partition", "without partition"),
        ("swapped", "under the wrong partitions"),
        ("other key", "with key .* by another run"),
    ],
)
def test_handles_that_are_not_in_the_store(store, manager, wrong, message):
    @dg.asset(partitions_def=PARTS, backfill_policy=SINGLE, retry_policy=dg.RetryPolicy(max_retries=2))
    def strain():
        handle = publish(store, "strain", "0-4")
        if wrong == "unpublished":
            return {"4-4": handle.model_copy(update={"partition": "4-4"})}
        if wrong == "other asset":
            return {"0-4": handle.model_copy(update={"asset": "engine"})}
        if wrong == "no partition":
            return publish(store, "strain")
        if wrong == "swapped":
            return {"4-4": handle}
        return {"0-4": handle.model_copy(update={"key": "f" * 64})}

    result = run([strain], manager, ["0-4", "4-4"], raise_on_error=False)

    assert not result.success and re.search(message, text_of(result)), text_of(result)
    assert not [e for e in result.all_events if e.is_step_up_for_retry]


def test_plain_values_of_users_assets(store, manager):
    seen = {}

    @dg.asset
    def threshold():
        return {"far": 1.5, "names": ["a"]}

    @dg.asset
    def user(threshold):
        seen["value"] = threshold

    assert run([threshold, user], manager).success
    assert seen["value"] == {"far": 1.5, "names": ["a"]}
    seen.clear()
    assert run([threshold, user], manager, selection="user").success, "another run reads it from the store"
    assert seen["value"] == {"far": 1.5, "names": ["a"]}


def test_values_that_are_not_json(store, manager):
    @dg.op(retry_policy=dg.RetryPolicy(max_retries=2))
    def bad():
        return {"model": object()}

    @dg.op
    def use(x):
        return x

    @dg.graph_asset
    def model():
        return use(bad())

    result = run([model], manager, raise_on_error=False)
    assert "bad.result.model: a object cannot be written as JSON" in text_of(result) and "handles" in text_of(result)
    assert not [e for e in result.all_events if e.is_step_up_for_retry]


def test_encoding():
    handle = Handle(asset="a", key="k", uri="file:///x/v", files=(), sha256="s", meta={"x": float("inf"), "t": (1, 2)})
    value = {"h": [handle, {"p": handle}], "n": None, "f": 1.5, "t": (1, 2)}
    back = decode(encode(value))
    assert back["h"][0].meta == {"x": float("inf"), "t": [1, 2]} and back["h"][1]["p"].identity == handle.identity
    assert back["n"] is None and back["t"] == [1, 2]
    with pytest.raises(TypeError, match=r"value\.a: the key 1 is a int"):
        encode({"a": {1: 2}})


def test_choice_of_manager(tmp_path):
    assert isinstance(io_manager_for(str(tmp_path)), LocalArtifactIOManager)
    assert isinstance(io_manager_for("s3://b/p"), S3ArtifactIOManager)
    with pytest.raises(StoreError, match="use S3ArtifactIOManager"):
        _ = LocalArtifactIOManager(root="s3://b/p").store
    with pytest.raises(StoreError, match="expected s3://bucket/prefix"):
        _ = S3ArtifactIOManager(url="/x").store
