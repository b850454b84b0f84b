"""`aframe doctor` asks batch systems what would become of the experiment's jobs, and leaves nothing in their queues."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from condor_pool import CondorPool
from conftest import SITE
from kube_cluster import KubeCluster
from slurm_cluster import SlurmCluster

# a training may take two days, and the partitions allow one
DAY = SITE.replace("backend: slurm\n", "backend: slurm\n  max_time_min: 1440\n")


class Doctor:
    """A run directory of the demo, and `aframe doctor` on it with the environment of a cluster."""

    def __init__(self, path: Path, cluster: SlurmCluster | CondorPool | KubeCluster):
        self.path, self._env = path, {**os.environ, **cluster.env}
        self._aframe("init", str(path), "--preset", "demo")

    def __call__(self, site: str, *more: str) -> tuple[int, list[dict[str, str]]]:
        """Exit code and findings with this site file."""
        (self.path / "site.yaml").write_text(site)
        done = self._aframe("doctor", str(self.path), "--json", *more)
        assert done.returncode in (0, 1), done.stderr
        return done.returncode, json.loads(done.stdout)["findings"]

    def _aframe(self, *words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "aframe_ops.cli.main", *words], env=self._env, capture_output=True, text=True, timeout=300
        )


def texts(found: list[dict[str, str]], level: str, check: str) -> list[str]:
    return [f["text"] for f in found if f["level"] == level and f["check"] == check]


def names(cluster: KubeCluster) -> set[str]:
    """Of the cluster's Jobs and Secrets; tests before this one may have left some."""
    return {o["metadata"]["name"] for kind in ("jobs", "secrets") for o in cluster.objects(kind)}


@pytest.fixture
def doctor(cluster, tmp_path) -> Doctor:
    return Doctor(tmp_path / "run dir", cluster)


@pytest.mark.parametrize("cluster", ["slurm"], indirect=True)
def test_slurm_takes_the_jobs_of_the_demo(cluster, doctor):
    before = cluster.jobs()
    code, found = doctor(DAY)
    assert code == 0, [f for f in found if f["level"] != "ok"]
    (taken,) = texts(found, "ok", "slurm")
    assert taken.startswith("slurm takes 13 kinds of jobs, the largest: 4 cores, 8 GB, 1440 min (model): to start at")
    assert f"on nodes {cluster.host} in partition cpu" in taken
    # its one node is this machine, so the database of this machine will do
    assert any("SQLite" in text for text in texts(found, "ok", "database"))
    assert cluster.jobs() == before and not list((doctor.path / "logs").iterdir())


@pytest.mark.parametrize("cluster", ["slurm"], indirect=True)
@pytest.mark.parametrize(
    ("site", "said"),
    [
        (SITE, "would wait for ever: the default partition allows 1440 min; set executor.max_time_min: 1440"),
        (DAY + "  partition: nowhere\n", "Invalid partition name specified (change slurm.partition or slurm.gpu.partition)"),
        (DAY + "  directives: [--constraint=moon]\n", "slurm refuses 4 cores"),
        ("executor: {backend: slurm}\nslurm: {command: [/no/ssh, login]}\n", "/no/ssh: No such file or directory; slurm.command = "),
    ],
)
def test_what_slurm_refuses(doctor, site, said):
    code, found = doctor(site)
    assert code == 1 and [said in text for text in texts(found, "error", "slurm")] == [True], found


@pytest.mark.parametrize("cluster", ["slurm"], indirect=True)
@pytest.mark.parametrize(
    ("queue", "level", "said"),
    [
        ("{partition: gpu, types: {h200: 141}}", "ok", "partition gpu has h200 (2 a node); h200 for"),
        (
            "{partition: gpu, types: {a100: 40}}",
            "error",
            "partition gpu has no GPU of type a100, but h200 (2 a node): change slurm.gpu.types",
        ),
    ],
)
def test_gpus_of_slurm(cluster, doctor, queue, level, said, monkeypatch):
    from aframe_ops.cli.doctor_slurm import check_slurm
    from aframe_ops.cli.doctor_steps import Need
    from aframe_ops.executor.base import Request
    from aframe_ops.site import load_site

    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    path = doctor.path / "site.yaml"
    path.write_text(f"slurm:\n  gpu: {queue}\n")
    found = list(check_slurm(load_site(path).slurm, [Need(Request(gpus=2, gpu_memory_gb=40, memory_gb=1), ("model",))], doctor.path))
    assert any(f.level == level and said in f.text for f in found), found


@pytest.mark.parametrize("cluster", ["slurm"], indirect=True)
def test_a_controller_that_is_away(cluster, doctor):
    cluster.stop_controller()
    try:
        code, found = doctor(SITE, "--timeout", "60")
    finally:
        cluster.start_controller()
    assert code == 1 and any("slurm does not answer" in text for text in texts(found, "error", "slurm")), found
    # nobody says that its nodes are this machine
    assert any("SQLite" in text and "steps run on slurm" in text for text in texts(found, "error", "database"))


@pytest.mark.parametrize("cluster", ["htcondor"], indirect=True)
def test_htcondor(cluster, doctor):
    before = cluster.active()
    code, found = doctor(CondorPool.site)
    assert any(t.startswith("htcondor takes 13 kinds of jobs, the largest: 4 cores") for t in texts(found, "ok", "htcondor")), found
    assert any("1 machines are large enough for 4 cores" in t for t in texts(found, "ok", "htcondor"))
    assert code == 1 and any("steps run on htcondor" in t for t in texts(found, "error", "database"))
    _, found = doctor(CondorPool.site + "  requirements: Memory >\n")
    assert any("(change htcondor.requirements)" in t for t in texts(found, "error", "htcondor")), found
    cluster.slot(Memory=4000)
    try:
        _, found = doctor(CondorPool.site)
    finally:
        cluster.slot()
    assert any("no machine of the pool is large enough for 4 cores, 8 GB" in t for t in texts(found, "error", "htcondor")), found
    assert cluster.active() <= before


@pytest.mark.parametrize("cluster", ["kubernetes"], indirect=True)
def test_kubernetes(cluster, doctor):
    before = names(cluster)
    code, found = doctor(KubeCluster.site)
    assert any(t.startswith("kubernetes takes 13 kinds of jobs, the largest: 4 cores") for t in texts(found, "ok", "kubernetes")), found
    assert not texts(found, "error", "kubernetes")
    assert code == 1 and any("pods do not see" in t for t in texts(found, "error", "store"))
    _, found = doctor(KubeCluster.site + "  namespace: moon\n")
    assert any('namespaces "moon" not found (change kubernetes.namespace)' in t for t in texts(found, "error", "kubernetes")), found
    _, found = doctor(KubeCluster.site + "  secrets: [absent]\n  volumes: [{claim: nothing, path: /data}]\n")
    said = " ".join(texts(found, "error", "kubernetes"))
    assert "no Secret absent in namespace default" in said and "no PersistentVolumeClaim nothing in namespace" in said
    _, found = doctor(KubeCluster.site + "  node_selector: {zone: mars}\n")
    assert any("no node has the labels zone=mars" in t for t in texts(found, "error", "kubernetes")), found
    for status, said in ((403, "docs/kubernetes.md lists the rights"), (503, "does not answer")):
        cluster.fault("POST", "/jobs", status, n=99, message=f"jobs.batch is forbidden: {status}")
        try:
            code, found = doctor(KubeCluster.site)
        finally:
            cluster.cluster.faults.clear()
        assert code == 1 and any(said in t for t in texts(found, "error", "kubernetes")), found
    assert names(cluster) <= before
