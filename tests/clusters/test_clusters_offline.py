"""Jobs on nodes without a network: installed from a real wheelhouse, inputs and scratch on the node's own disk."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from condor_pool import CondorPool
from conftest import job_of, started, wait_until
from hostile import hostile, job_for
from pydantic import ValidationError
from slurm_cluster import SlurmCluster
from toy_run import Toy

from aframe_assets.store import open_store
from aframe_ops.containers import node_install
from aframe_ops.executor.slurm import script
from aframe_ops.sites.slurm import SlurmSite

NEEDED = ("dagster", "pydantic", "pyyaml", "filelock", "packaging", "numpy")
"""What these steps need of the project's requirements."""

NO_WAY_OUT = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "PIP_INDEX_URL": "http://127.0.0.1:9/"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """A cluster whose jobs have a disk of their own, as $SLURM_TMPDIR, for as long as they run."""
    yield from started(local_disk=True)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """A wheelhouse from the index that pip is configured with; pip's cache makes a second time shorter."""
    folder = tmp_path_factory.mktemp("shared") / "wheels"
    words = [sys.executable, "-m", "aframe_ops.cli.main", "wheelhouse", str(folder)]
    done = subprocess.run([*words, *(w for name in NEEDED for w in ("--only", name))], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wheels, " in done.stdout and "installed on a node: " in done.stdout
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An interpreter for the nodes that sees no network."""
    path = tmp_path_factory.mktemp("bin") / "python3"
    base = shlex.quote(sys._base_executable)
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0:
        text = f'exec unshare -n {base} "$@"'
    else:
        print("`unshare -n` is not permitted here: pip is kept from the network by --no-index and a proxy that refuses")
        text = "\n".join([*(f"export {k}={v}" for k, v in NO_WAY_OUT.items()), f'exec {base} "$@"'])
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def listener() -> Iterator[str]:
    """A server of this machine that a job with a network would reach."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def toy_for(cluster: SlurmCluster | CondorPool, path: Path, listener: str, **keys: str) -> Toy:
    lines = "".join(f"  {name}: {value}\n" for name, value in keys.items())
    site = cluster.site.replace(f"{cluster.name}:\n", f"{cluster.name}:\n{lines}").replace("TOY, ", "TOY, TOY_LISTENER, ")
    return Toy(path, Path(__file__).with_name("offline_definitions.py"), site, {**cluster.env, "TOY_LISTENER": listener})


def made_on_the_node(toy: Toy) -> dict:
    """What the step ``made`` has noted, when it and all that it read and wrote were on the node's disk."""
    try:
        code, output = toy.run("given", "made", timeout=1200)
    finally:
        toy.close()
    assert code == 0, output + toy.log("made.0.err").read_text()
    (ran,) = toy.notes("made")
    for name in ("python", "project", "dagster", "input", "scratch"):
        assert Path(ran[name]).is_relative_to(Path(ran["disk"]) / f"aframe-{os.getuid()}"), (name, ran)
    return ran


@pytest.mark.timeout(3000)
def test_a_job_installs_stages_and_publishes_without_a_network(cluster, tmp_path, wheels, python, listener):
    toy = toy_for(cluster, tmp_path, listener, wheelhouse=str(wheels), node_disk="$SLURM_TMPDIR", python=str(python))
    ran = made_on_the_node(toy)
    assert ran["job"] == job_of(toy, "made.0")["id"]
    wait_until(lambda: cluster.ended_well(ran["job"]), 60, "the job completed")
    disk = Path(ran["disk"])
    assert disk == cluster.folder / "local" / ran["job"]
    assert ran["network"] is False or "unshare" not in python.read_text()
    manifest, _ = node_install.read_manifest(wheels)
    said = toy.log("made.0.err").read_text()
    assert f"aframe: installing {len(manifest['wheels'])} packages from {wheels}" in said and "aframe: installed " in said
    # the result is in the store, whole, and nothing is left on the node
    store = open_store(toy.path / "store")
    handle = store.manifest("made").handle
    assert store.verify(handle) == [] and store.open_local(handle, "made.txt").read_text() == "GIVEN " * 1000
    wait_until(lambda: not disk.exists(), 60, "the job's disk removed")
    assert not list((toy.path / "store" / ".local" / "scratch").iterdir())


@pytest.mark.timeout(3000)
def test_a_job_of_htcondor_does_so_in_its_scratch_folder(htcondor, tmp_path, wheels, python, listener):
    toy = toy_for(htcondor, tmp_path, listener, wheelhouse=str(wheels), node_disk="$_CONDOR_SCRATCH_DIR", python=str(python))
    made_on_the_node(toy)
    store = open_store(toy.path / "store")
    assert store.verify(store.manifest("made").handle) == []


@pytest.mark.timeout(3000)
def test_steps_on_one_node_install_once_where_its_disk_outlives_jobs(cluster, tmp_path, wheels, python, listener):
    shared = cluster.folder / "scratch"
    shared.mkdir()
    said = []
    for name in ("first", "second"):
        site = {"wheelhouse": str(wheels), "node_disk": str(shared), "python": str(python)}
        (tmp_path / name).mkdir()
        toy = toy_for(cluster, tmp_path / name, listener, **site)
        try:
            code, output = toy.run("given", "made", timeout=1200)
        finally:
            toy.close()
        assert code == 0, output + toy.log("made.0.err").read_text()
        (ran,) = toy.notes("made")
        assert Path(ran["python"]).is_relative_to(shared) and Path(ran["input"]).is_relative_to(shared)
        said.append(toy.log("made.0.err").read_text())
    assert ["installing" in text for text in said] == [True, False]


def test_200_hostile_strings_as_disk_and_wheelhouse(tmp_path):
    """Refused when the site is read, or passed to the installer as they are."""
    marker, refused = tmp_path / "marker", 0
    stub = tmp_path / "stub.py"
    stub.write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    for number, text in enumerate(hostile(marker)):
        for disk in (text, f"/{text}", f"$TMPDIR/{text}", f"$TMPDIR{text}"):
            if not re.fullmatch(r"(\$TMPDIR)?/[\w.@=+/-]*", disk, re.ASCII):
                with pytest.raises(ValidationError, match="node_disk"):
                    SlurmSite(node_disk=disk)
        name = text.replace("/", "_").replace("\x00", "")
        folder = tmp_path / f"w{number}" / f"_{name}"
        try:
            site = SlurmSite(wheelhouse=str(folder), node_disk="$TMPDIR", python=sys._base_executable)
        except ValidationError:
            refused += 1
            continue
        folder.mkdir(parents=True)
        (folder / "node_install.py").symlink_to(stub)
        done = subprocess.run(["bash", "-c", script(job_for(tmp_path, number, ("python", text)), site)], capture_output=True, text=True)
        told = ["--wheelhouse", str(folder), "--node-disk", "$TMPDIR", "--python", sys._base_executable, "--", text]
        assert done.returncode == 0 and json.loads(done.stdout) == told, (text, done.stderr)
    assert not marker.exists() and 20 < refused < 120


def test_a_disk_that_the_job_has_not_is_said(cluster, tmp_path, wheels, listener):
    toy = toy_for(cluster, tmp_path, listener, wheelhouse=str(wheels), node_disk="$LSCRATCH", python=sys._base_executable)
    try:
        code, output = toy.run("given", "made", timeout=600)
    finally:
        toy.close()
    assert code == 1, output
    assert "this job has no folder $LSCRATCH; it has $SLURM_TMPDIR" in toy.log("made.0.err").read_text()
    assert not toy.notes("made")


def test_without_a_wheelhouse_the_step_is_refused_before_it_waits_in_a_queue(cluster, tmp_path, listener):
    toy = toy_for(cluster, tmp_path, listener, wheelhouse=str(tmp_path / "none"), node_disk="$SLURM_TMPDIR")
    try:
        code, output = toy.run("given", "made", timeout=600)
    finally:
        toy.close()
    assert code == 1
    assert f"slurm refused the job of step made: slurm.wheelhouse = {tmp_path / 'none'}" in output
    assert "make it with `aframe wheelhouse" in output and not list((toy.path / "logs").glob("*/made.*.job"))


def test_inputs_are_staged_without_a_wheelhouse_too(cluster, tmp_path, listener):
    toy = toy_for(cluster, tmp_path, listener, node_disk="$SLURM_TMPDIR")
    try:
        code, output = toy.run("given", "made", timeout=600)
    finally:
        toy.close()
    assert code == 0, output
    (ran,) = toy.notes("made")
    assert ran["python"] == sys.executable and ran["network"]
    assert all(Path(ran[name]).is_relative_to(ran["disk"]) for name in ("input", "scratch"))
