"""`aframe verify` and `prune` on a run directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from aframe_assets.store.local import LocalStore
from aframe_ops.cli import keeping
from aframe_ops.cli.main import app
from aframe_ops.cli.running import open_instance
from aframe_ops.run_directory import RunDirectory


def aframe(*args) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    done = CliRunner().invoke(app, [str(a) for a in args])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A run directory whose store holds segments, and waveforms that were made with other settings."""
    monkeypatch.setenv("DAGSTER_HOME", "")  # `--runs` sets it; given back afterwards
    path = tmp_path / "run"
    assert aframe("init", path, "--preset", "demo")[0] == 0
    workspace = RunDirectory.find(path).workspace()
    (tmp_path / "a").write_text("segments")
    workspace.store.publish(workspace.wanted("segments").parts, {"a": tmp_path / "a"}, {"rows": {}, "roles": {}})
    old = workspace.wanted("training_waveforms").parts.model_copy(update={"code_version": "0"})
    workspace.store.publish(old, {"a": tmp_path / "a"})
    return path


def test_verify_takes_damage_out_of_use(run):
    assert aframe("verify", run) == (0, "2 artifacts, 16 B: every file is as recorded\n", "")
    (file,) = (run / "store" / "segments" / "_").glob("*/a")
    file.unlink()
    file.write_text("Segments")
    code, out, _ = aframe("verify", run, "--look")
    assert code == 1 and "segments:" in out and "another sha256" in out and "1 damaged" in out and "aframe run" not in out
    assert RunDirectory.find(run).workspace().complete("segments") is not None
    code, out, _ = aframe("verify", run, "--asset", "segments", "--json")
    (damaged,) = json.loads(out)["damaged"]
    assert code == 1 and damaged["asset"] == "segments" and damaged["condemned"]
    assert RunDirectory.find(run).workspace().complete("segments") is None
    why = {a["asset"]: a["why"] for a in json.loads(aframe("status", run, "--json")[1])["assets"]}
    assert why["segments"][""].startswith("failed: damaged:") and why["training_waveforms"][""] == "code version 0 -> 3"
    assert aframe("verify", run)[0] == 0
    code, _, err = aframe("verify", run, "--asset", "nothing")
    assert code == 2 and "nothing of it is in" in err and "segments, training_waveforms" in err
    code, out, err = aframe("verify", run, "--segment", "1240600000-64")
    assert code == 2 and "--segment 1240600000-64: nothing of it is in" in err and "as recorded" not in out


def test_prune_shows_first_and_keeps_what_a_manifest_names(run):
    assert aframe("prune", run)[1] == "nothing is left over\n"
    orphan = run / "store" / "psd" / "_" / f"{'0' * 16}-{'1' * 8}"
    orphan.mkdir(parents=True)
    (orphan / "psd.hdf5").write_text("half")
    assert aframe("prune", run)[1] == "nothing is left over\n", "a writer may be at work"
    code, out, _ = aframe("prune", run, "--older-than", "0")
    assert code == 0 and "no manifest names" in out and str(orphan) in out and "nothing was removed" in out and orphan.exists()
    (one,) = json.loads(aframe("prune", run, "--older-than", "0", "--json")[1])
    assert one["nbytes"] == 4 and one["address"].endswith(str(orphan))
    with FileLock(run / ".run.lock"):
        code, _, err = aframe("prune", run, "--older-than", "0", "--yes")
    assert code == 2 and "`aframe run`, or a command like it, is at work here" in err and orphan.exists()
    assert aframe("prune", run, "--older-than", "0", "--yes")[0] == 0 and not orphan.exists()
    assert aframe("verify", run)[1].startswith("2 artifacts")


def test_prune_says_what_it_could_not_look_at(run, monkeypatch):
    everything = LocalStore._everything

    def without_uploads(self, say):
        yield from everything(self, say)
        say("no right to list uploads")

    monkeypatch.setattr(LocalStore, "_everything", without_uploads)
    assert aframe("prune", run) == (0, "no right to list uploads\nnothing is left over\n", "")
    assert aframe("prune", run, "--json") == (0, "[]\n", "no right to list uploads\n")


def test_records_of_old_runs_go_and_results_stay(run, monkeypatch):
    from dagster import DagsterInstance, DagsterRunStatus, job, op

    @op
    def nothing():
        pass

    @job
    def ended():
        nothing()

    with DagsterInstance.from_config(str(run / "dagster_home")) as instance:
        found = instance.create_run_for_job(ended, status=DagsterRunStatus.SUCCESS)
        going = instance.create_run_for_job(ended, status=DagsterRunStatus.STARTED)
    for record in (found, going):
        (run / "logs" / record.run_id).mkdir(parents=True)
        (run / "logs" / record.run_id / "step.err").write_text("said")
    for name in ("DAGSTER_MODULE_NAME", "AFRAME_CONFIG"):
        monkeypatch.setenv(name, "")
    assert "nothing is left over" in aframe("prune", run, "--runs", "1")[1]
    opened = []
    monkeypatch.setattr(keeping, "open_instance", lambda place: opened.append(place) or open_instance(place))
    code, out, _ = aframe("prune", run, "--runs", "0", "--yes")
    assert code == 0 and found.run_id in out and going.run_id not in out
    assert len(opened) == 1, "not for each of thousands of runs"
    with DagsterInstance.from_config(str(run / "dagster_home")) as instance:
        assert [r.run_id for r in instance.get_runs()] == [going.run_id]
    assert [p.name for p in (run / "logs").iterdir()] == [going.run_id]
    assert aframe("verify", run)[1].startswith("2 artifacts")
