"""The shell lines of a job on a node with a disk of its own: every word arrives as it was, and nothing is expanded."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from aframe_ops.containers import node_install, staging
from aframe_ops.executor.base import Request
from aframe_ops.executor.commands import require_wheelhouse
from aframe_ops.executor.htcondor import starter
from aframe_ops.executor.scheduler import BatchJob, Refused
from aframe_ops.executor.slurm import array_script, script
from aframe_ops.sites.htcondor import HTCondorSite
from aframe_ops.sites.slurm import SlurmSite

WORDS = ["$(touch marker)", "`touch marker`", "; touch marker", "$HOME ${TMPDIR}", 'it\'s "so"', "a\nb", "*", "~", "\\", "-x", "", "é"]
STUB = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('AFRAME_NODE_DISK')]))"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A wheelhouse whose installer only shows what it is told."""
    path = tmp_path / "wheels of 'ours'; touch marker"
    path.mkdir()
    (path / "node_install.py").write_text(STUB)
    return path


def job(tmp_path: Path, *words: str) -> BatchJob:
    log = tmp_path / "log"
    place = {"spec": tmp_path / "spec.json", "log": log, "folder": tmp_path}
    return BatchJob(name="j", request=Request(), number=0, argv=("/submitting/python", "-m", "module", *words), **place)


def run(text: str, tmp_path: Path, **env: str) -> list:
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, env={"PATH": "/usr/local/bin:/usr/bin:/bin", **env})
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("marker"))
    return json.loads(done.stdout or (tmp_path / "log.out").read_text())


@pytest.mark.parametrize("how", ["slurm", "array", "htcondor"])
def test_every_word_arrives_as_it_was(tmp_path, folder, how):
    keys = {"wheelhouse": str(folder), "node_disk": "$TMPDIR/sub", "setup": "cd ."}
    if how == "htcondor":
        text = starter(job(tmp_path, *WORDS), HTCondorSite(**keys))
    elif how == "slurm":
        text = script(job(tmp_path, *WORDS), SlurmSite(**keys))
    else:
        text = array_script([job(tmp_path, "other"), job(tmp_path, *WORDS)], SlurmSite(**keys))
    told, disk = run(text, tmp_path, TMPDIR="/expanded", SLURM_ARRAY_TASK_ID="1")
    assert told == ["--wheelhouse", str(folder), "--node-disk", "$TMPDIR/sub", "--", "-m", "module", *WORDS]
    assert disk == "$TMPDIR/sub"


def test_a_named_interpreter_is_used_and_passed_on(tmp_path, folder):
    python = tmp_path / "py $(touch marker)"
    python.write_text('#!/bin/sh\nexec python3 "$@"\n')
    python.chmod(0o755)
    told, disk = run(
        script(job(tmp_path, "x"), SlurmSite(wheelhouse=str(folder), node_disk="/", stage=False, python=str(python))), tmp_path
    )
    assert told[:6] == ["--wheelhouse", str(folder), "--node-disk", "/", "--python", str(python)] and disk is None


def test_without_any_python_the_message_says_what_to_do(tmp_path, folder):
    (tmp_path / "bin").mkdir()
    text = script(job(tmp_path), SlurmSite(wheelhouse=str(folder), node_disk="/"))
    done = subprocess.run(["/bin/bash", "-c", text], capture_output=True, text=True, env={"PATH": str(tmp_path / "bin")})
    assert done.returncode == 1 and "aframe: there is no Python on" in done.stderr


def test_a_wheelhouse_that_is_not_there_is_refused_but_not_one_that_only_the_login_node_sees(tmp_path):
    node = SlurmSite(wheelhouse=str(tmp_path / "none"), node_disk="$TMPDIR")
    with pytest.raises(Refused, match=r"slurm\.wheelhouse = .*none: .* cannot be read on .*; make it with `aframe wheelhouse"):
        require_wheelhouse(node, [], "slurm.wheelhouse")
    require_wheelhouse(node, ["ssh", "login"], "slurm.wheelhouse")


def settled(monkeypatch, disk: str | None, env: dict[str, str], **environ: str) -> dict[str, str]:
    for name, value in {staging.VARIABLE: disk, **environ}.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    staging.settle(env)
    return env


def test_the_store_is_told_where_the_nodes_disk_is(tmp_path, monkeypatch, capfd):
    stale = {"AFRAME_NODE_DIR": "/of/another/job", staging.VARIABLE: "$TMPDIR"}
    found = settled(monkeypatch, "$LSCRATCH", dict(stale), LSCRATCH=str(tmp_path))
    assert found == {"AFRAME_NODE_DIR": str(node_install.own_folder(tmp_path))}
    assert settled(monkeypatch, None, dict(stale)) == {} and capfd.readouterr().err == ""
    assert settled(monkeypatch, "$SCRATCH", {}, SCRATCH=str(tmp_path / "none")) == {}
    assert "aframe: the node's disk is not used, and inputs are read in place: node_disk = '$SCRATCH'" in capfd.readouterr().err
    monkeypatch.setattr(staging, "LEAST_BYTES", 10**18)
    assert settled(monkeypatch, "$LSCRATCH", {}, LSCRATCH=str(tmp_path)) == {}
    assert "GB free, less than" in capfd.readouterr().err


def test_an_installed_step_does_not_import_the_checkout(tmp_path, monkeypatch):
    (tmp_path / "aframe_ops").mkdir()
    env = settled(monkeypatch, None, {"PYTHONPATH": f"{tmp_path}:/mine"}, **{node_install.ENVIRONMENT: "/env"})
    assert env == {"PYTHONPATH": "/mine"}
    assert settled(monkeypatch, None, {"PYTHONPATH": str(tmp_path)}, **{node_install.ENVIRONMENT: None}) == {"PYTHONPATH": str(tmp_path)}
