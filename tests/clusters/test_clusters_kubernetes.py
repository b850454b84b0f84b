"""Steps on Kubernetes: the contract of all batch systems, and what only Kubernetes has.

Against the executing stand-in, not a real cluster: see `kube_cluster` for what it lacks.
"""

from __future__ import annotations

import pytest
from contract import Contract
from kube_cluster import KubeCluster


@pytest.fixture
def cluster(kubernetes) -> KubeCluster:
    return kubernetes


class TestKubernetes(Contract):
    out_of_memory = "was killed because memory ran out (OOMKilled); it had 0.7 GB"
    impossible = "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."
    impatient = "  start_minutes: 0.02\n"

    def check_requests(self, toy, cluster, ids):
        specs = {job["metadata"]["name"]: job["spec"]["template"]["spec"] for job in cluster.objects("jobs")}
        limits = [specs[id]["containers"][0]["resources"]["limits"]["memory"] for id in ids]
        assert limits == ["668Mi", "1002Mi"]
