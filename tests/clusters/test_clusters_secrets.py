"""Credentials of a job are in one file, which only its owner can read, and which goes when the job starts."""

from __future__ import annotations

import json
import stat

import pytest
from conftest import wait_until
from hostile import holding

# Kubernetes keeps them in a Secret: test_clusters_kubernetes_jobs.py
pytestmark = pytest.mark.parametrize("cluster", ["slurm", "htcondor"], indirect=True)


def test_a_secret_is_only_in_a_file_that_its_owner_can_read_and_that_goes_when_the_job_starts(cluster, new_toy):
    secret = "planted-secret-6f1d"
    with cluster.hold() as site:
        toy = new_toy(cluster, site, PLANTED=secret, AWS_SECRET_ACCESS_KEY=secret)
        process = toy.start("waiting")
        wait_until(lambda: list((toy.path / "logs").glob("*/waiting.0.job")), 300, "the job submitted")
        job = json.loads(toy.log("waiting.0.job").read_text())["id"]
        spec = toy.log("waiting.0.json")
        assert secret in spec.read_text()
        for file in (spec, spec.with_suffix(cluster.description)):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert holding(secret, toy.path, cluster.folder) == [spec]
        cluster.release(job)
        (note,) = toy.wait_for("waiting", timeout=300)
    assert note["PLANTED"] == secret
    for words in (*cluster.questions(job), ["ps", "axww"]):
        assert secret not in cluster.client(*words).stdout
    (toy.notes_dir / "go").touch()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and secret not in output
    # the note is the test's own
    assert holding(secret, toy.path, cluster.folder) == []


def test_a_cancelled_job_leaves_no_secret(cluster, new_toy):
    with cluster.hold() as site:
        toy = new_toy(cluster, site, PLANTED="planted-secret-77ab")
        process = toy.start("fine")
        wait_until(lambda: list((toy.path / "logs").glob("*/fine.0.job")), 300, "the job submitted")
        process.terminate()
        process.communicate(timeout=300)
    assert holding("planted-secret-77ab", toy.path) == []
