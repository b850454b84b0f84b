"""`plan` and `status` of a large search: right, and no slower per segment than of a small one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from typer.testing import CliRunner

from aframe_assets.config_load import build_config
from aframe_assets.store import open_store
from aframe_assets.store.handle import KeyParts, canonical_json
from aframe_assets.store.workspace import Workspace
from aframe_ops.cli.initialise import initialise
from aframe_ops.cli.main import app
from aframe_ops.survey import state_of, survey
from benchmarks import planner


@pytest.fixture
def search(tmp_path):
    """Makes a finished search of so many segments."""

    def make(count: int) -> Workspace:
        store = open_store(tmp_path / f"store-{count}")
        config = build_config({"preset": "demo"})
        planner.fill(Workspace(config, store), count)
        return Workspace(config, store)

    return make


def test_a_finished_search_is_complete(search):
    states = survey(search(12))
    assert all(s.done for s in states.values()), {n: s.why for n, s in states.items() if not s.done}
    assert len(states["inference_results"].complete) == 12


@pytest.mark.parametrize("lost", [None, "psd", "background_index"])
def test_work_grows_with_the_number_of_segments_and_not_its_square(search, lost, monkeypatch):
    """Also where every segment waits for the same thing."""
    done = Counter()
    for owner, name in ((Workspace, "_resolve"), (Workspace, "_current"), (Workspace, "_named_files")):
        original = getattr(owner, name)

        def counted(self, *args, original=original, name=name):
            done[name] += 1
            return original(self, *args)

        monkeypatch.setattr(owner, name, counted)
    work = {}
    for count in (20, 80):
        workspace = search(count)
        if lost:
            (workspace.store.root / lost / "_.json").unlink()
        done.clear()
        survey(workspace)
        work[count] = dict(done)
    for name in ("_resolve", "_current"):
        assert work[80][name] < 4.1 * work[20][name], work
    assert work[80]["_named_files"] == work[20]["_named_files"]


def test_no_manifest_is_read_twice(search, monkeypatch):
    workspace = search(30)
    survey(workspace)
    reads = []
    original = type(workspace.store)._read
    monkeypatch.setattr(type(workspace.store), "_read", lambda self, path: reads.append(path) or original(self, path))
    assert survey(Workspace(workspace.config, workspace.store))["inference_results"].done
    assert max(Counter(reads).values()) == 1
    partitioned = [path for path in reads if path.split("/")[0] in ("background", "injections", "inference_results")]
    assert sorted(partitioned) == [f"{asset}/_index.json" for asset in ("background", "inference_results", "injections")]


@pytest.mark.parametrize(
    ("why", "state"),
    [
        (None, "complete"),
        ("failed: ValueError: GPS 12", "failed"),
        ("failed: damaged: x has another sha256", "damaged"),
        ("its files are gone or have another size", "damaged"),
        ("held back by its check finite", "held back"),
        ("never made", "missing"),
        ("waits for psd", "waiting"),
        ("code version 1 -> 2", "out of date"),
        ("config strain.min_dq: 'A' -> 'B'", "out of date"),
        ("input psd.test has other content (1 -> 2)", "out of date"),
    ],
)
def test_states(why, state):
    assert state_of(why) == state


def test_status_of_each_segment_without_any_database(tmp_path):
    """Of a search with a damaged, a failed and an out-of-date segment; in a process that may not even know Dagster."""
    run, _ = initialise(tmp_path / "run", "demo", overrides={}, store=None, profile="local", database=None)
    workspace = run.workspace()
    planner.fill(workspace, 6)
    keys = workspace.partitions()
    store = workspace.store
    next((store.root / "background" / keys[0]).rglob("*.hdf5")).unlink()
    wanted = workspace.wanted("background", keys[1]).parts
    store._remove(f"background/{keys[1]}.json")
    store.record_failure(wanted, "ValueError: no strain of L1")
    store._remove(f"background/{keys[2]}.json")
    store._remove(f"background/{keys[3]}.json")
    (tmp_path / "a").write_text("")
    store.publish(
        wanted.model_copy(update={"partition": keys[3], "inputs": {**wanted.inputs, "asd": {"key": "k", "sha256": "s"}}}),
        {"a": tmp_path / "a"},
    )
    shutil.rmtree(run.dagster_home)
    code = "import sys; sys.modules['dagster'] = None; from aframe_ops.cli.main import app; app()"
    words = [sys.executable, "-c", code, "status", str(run.path), "--asset", "background", "--json"]
    rows = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)["partitions"]
    states = ["damaged", "failed", "missing", "out of date", "complete", "complete"]
    assert [r["state"] for r in rows] == states and [r["partition"] for r in rows] == keys
    assert rows[1]["why"] == "failed: ValueError: no strain of L1" and rows[4]["nbytes"] == 31_469_016 and rows[4]["role"] == "test"
    assert rows[3]["why"].startswith("input asd was made another way")
    (whole,) = [s.plain() for s in survey(run.workspace()).values() if s.name == "background"]
    assert whole["states"] == {"damaged": 1, "failed": 1, "missing": 1, "out of date": 1, "complete": 2}
    shown = CliRunner().invoke(app, ["status", str(run.path), "--asset", "background"]).stdout
    assert all(word in shown for word in (*keys, *states, "no strain of L1"))
    refused = CliRunner().invoke(app, ["status", str(run.path), "--asset", "nothing"])
    assert refused.exit_code == 2 and "no such asset" in refused.stderr


def test_a_key_is_the_hash_of_its_parts_also_of_copies():
    import hashlib

    def expected(p: KeyParts) -> str:
        fields = {name: getattr(p, name) for name in ("asset", "code_version", "partition", "config", "inputs")}
        return hashlib.sha256(canonical_json(fields).encode()).hexdigest()

    first = KeyParts(asset="a", code_version="1", config={"x": [1, 2.5], "b": {"z": None}}, inputs={"i": {"key": "k", "sha256": "s"}})
    copies = [first]
    for update in ({"partition": "1-2"}, {"config": {"x": 3}}, {"inputs": {}}, {"code_version": "2"}):
        assert copies[-1].key  # kept, and so could be copied
        copies.append(copies[-1].model_copy(update=update))
    assert [c.key for c in copies] == [expected(c) for c in copies]
    assert len({c.key for c in copies}) == 5


def test_the_benchmark_on_a_small_search(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(planner, "COMMANDS", {"plan": planner.COMMANDS["plan"]})
    planner.main(["--json", "--segments", "6", "--folder", str(tmp_path)])
    result = json.loads(capsys.readouterr().out)
    assert result["seconds"].keys() == {"6"} and 0 < result["cpu_seconds"]["6"] < 60 and 0.02 < result["peak_gb"]["6"] < 1
    assert result["ratio"] == 1 and not list(tmp_path.iterdir())


def test_the_benchmark_refuses_figures_of_a_search_that_it_did_not_see():
    with pytest.raises(RuntimeError, match="plan of 6 segments does not show"):
        planner._expect("plan", 6, "would make  segments\nbackground 6")
