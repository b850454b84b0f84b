"""`aframe retry` makes what failed and nothing else."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from aframe_assets.store.handle import Manifest
from aframe_ops.cli import running
from aframe_ops.cli.initialise import initialise
from aframe_ops.cli.main import app
from benchmarks import planner


def aframe(*args) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    done = CliRunner().invoke(app, [str(a) for a in args])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def asked(monkeypatch) -> list:
    """What was to be made: (asset, segments)."""
    calls = []
    monkeypatch.setattr(running, "run_all", lambda run, out, *, until, alone, segments, verbose: calls.append((until, segments)))
    return calls


def test_what_failed_and_nothing_else(tmp_path, asked):
    run, _ = initialise(tmp_path / "run", "demo", overrides={}, store=None, profile="local", database=None)
    workspace = run.workspace()
    planner.fill(workspace, 6)
    keys, store = workspace.partitions(), workspace.store
    assert "nothing has failed" in aframe("retry", run.path)[1] and asked == []

    parts = workspace.wanted("background", keys[1]).parts
    store._remove(f"background/{keys[1]}.json")
    store.record_failure(parts, "ValueError: no strain of L1")
    store._remove(f"background/{keys[2]}.json")
    assert aframe("retry", run.path)[0] == 0
    assert asked == [("background", [keys[1]])], "neither one that is missing nor what waits for it"

    asked.clear()
    run, _ = initialise(tmp_path / "other", "demo", overrides={}, store=None, profile="local", database=None)
    planner.fill(run.workspace(), 6)
    store = run.workspace().store
    for key in keys[3:5]:
        manifest = store.manifest("injections", key)
        failing = [{**manifest.checks[0], "passed": False}]
        store._write(f"injections/{key}.json", Manifest(**{**dict(manifest), "checks": failing}).dumps().encode())
    next((store.root / "psd" / "_").rglob("data.json")).unlink()
    assert aframe("retry", run.path)[0] == 0
    assert asked == [("psd", []), ("injections", [",".join(keys[3:5])])]

    asked.clear()
    assert aframe("retry", run.path, "--segment", keys[4])[0] == 0 and asked == [("injections", [keys[4]])]
    for words, message in (
        (["--asset", "nothing"], "no such asset"),
        (["--segment", "1-2"], "no such segment"),
        (["--again"], "--again needs --asset"),
    ):
        code, _, err = aframe("retry", run.path, *words)
        assert code == 2 and message in err


def test_what_failed_behind_a_failure_is_made_too(tmp_path, monkeypatch):
    run, _ = initialise(tmp_path / "run", "demo", overrides={}, store=None, profile="local", database=None)
    planner.fill(run.workspace(), 6)
    store, asked = run.workspace().store, []
    whole = {asset: store._read(f"{asset}/_.json") for asset in ("segments", "psd")}
    for asset in whole:
        store._remove(f"{asset}/_.json")
        store.record_failure(Manifest.loads(whole[asset]).parts, "killed: out of memory")

    def made(run, out, *, until, alone, segments, verbose) -> None:
        asked.append(until)
        store._write(f"{until}/_.json", whole[until])

    monkeypatch.setattr(running, "run_all", made)
    assert aframe("retry", run.path)[0] == 0 and asked == ["segments", "psd"], "psd waited for segments"


def test_what_others_still_miss_is_not_made_with_it(tmp_path, monkeypatch):
    calls = []

    def one_run(run, workspace, instance, console, names, keys, **_) -> None:
        calls.append((names, keys))

    monkeypatch.setattr(running, "_one_run", one_run)
    monkeypatch.setenv("DAGSTER_HOME", "")
    enough = {"execution": {"min_segment_fraction": 0.5}}
    run, _ = initialise(tmp_path / "run", "demo", overrides=enough, store=None, profile="local", database=None)
    workspace = run.workspace()
    planner.fill(workspace, 6)
    store = workspace.store
    store._remove(f"background/{workspace.partitions()[-1]}.json")
    parts = run.workspace().wanted("background_index").parts
    store._remove("background_index/_.json")
    store.record_failure(parts, "killed: out of memory")
    code, _, err = aframe("retry", run.path)
    assert code == 0, err
    assert calls == [(["background_index"], None)], "not the strain of a segment that may be missing"


def test_again_takes_what_is_complete_out_of_use(tmp_path, asked):
    run, _ = initialise(tmp_path / "run", "demo", overrides={}, store=None, profile="local", database=None)
    workspace = run.workspace()
    planner.fill(workspace, 6)
    key = workspace.partitions()[2]
    assert aframe("retry", run.path, "--asset", "background", "--segment", key, "--again")[0] == 0
    assert asked == [("background", [key])]
    rows = json.loads(aframe("status", run.path, "--asset", "background", "--json")[1])["partitions"]
    assert [r["partition"] for r in rows if r["state"] != "complete"] == [key]
    assert "as asked for by `aframe retry --again`" in next(r["why"] for r in rows if r["partition"] == key)
    assert not list((workspace.store.root / "background" / key).iterdir())


@pytest.mark.slow
def test_a_segment_that_failed_is_made_and_its_readers_stay(tiny, new_run):
    run = new_run().init()
    run.write(yaml.safe_load(json.dumps(tiny)))
    run.run("--until", "background_index")
    before, made = run.contents(), run.made_at()
    workspace = run.workspace()
    first, second = workspace.partitions()[:2]
    store = workspace.store
    store._remove(f"background/{first}.json")
    store.record_failure(workspace.wanted("background", first).parts, "ValueError: no strain of L1")
    store._remove(f"background/{second}.json")
    out = run.aframe("retry", str(run.path)).stdout
    assert "background: 1 segments" in out
    after = run.contents()
    assert after[f"background/{first}"] == before[f"background/{first}"] and after[f"background/{second}"] is None
    run.run("--until", "background_index")
    assert run.contents() == before
    assert run.made_at()["background_index/None"] == made["background_index/None"], "nothing after it was made again"
