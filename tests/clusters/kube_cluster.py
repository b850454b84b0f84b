"""The executing stand-in for Kubernetes: `kube_double.py` of ``../shared/services/kubernetes``.

No API server can be had here. The stand-in speaks the REST interface, checks what it is sent against Kubernetes' own
schemas where kubernetes-validate is installed, and runs pods as local processes; init containers are added by `kube_init`. It has no
node affinity, pulls no images, knows no RBAC, and does not end pods at their own deadline; what depends on those is tested on
recorded objects.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes.client
import kubernetes.config
from kube_init import with_init_containers

DOUBLE = Path(__file__).resolve().parents[3] / "shared" / "services" / "kubernetes" / "kube_double.py"
"""The stand-in, in the `shared` folder beside the repository."""


def missing() -> str | None:
    """What keeps the stand-in from being started here, in words; None if nothing does."""
    if not DOUBLE.exists():
        return f"no Kubernetes to test with: {DOUBLE} is not there"
    if os.geteuid() != 0:
        return "the stand-in for Kubernetes mounts volumes, which needs root"
    if absent := [name for name in ("openssl", "unshare") if not shutil.which(name)]:
        return f"the stand-in for Kubernetes needs {', '.join(absent)}"
    return None


class KubeCluster:
    """One node with `cpus` cores, 16 GiB of memory and `gpus` made-up GPUs. Pods see this machine's disk.

    Args:
        images: names that can be pulled; None for all.
    """

    name = "kubernetes"
    site = f"""\
executor:
  backend: kubernetes
  poll_seconds: 0.5
  grace_seconds: 2
  env: [TOY, TOY_*, PLANTED]
kubernetes:
  image: registry.example/aframe:1
  python: {sys.executable}
  grace_seconds: 10
"""
    held_words = "job {0} will not start by itself: Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."
    memory_words = "was killed because memory ran out (OOMKilled); it had 0.7 GB"
    memory = ("668Mi", "1002Mi")
    impossible = "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."
    impatient = "  start_minutes: 0.02\n"

    def __init__(self, *, cpus: int = 8, gpus: int = 2, images: set[str] | None = None):
        spec = importlib.util.spec_from_file_location("kube_double", DOUBLE)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.PodRunner = with_init_containers(module.PodRunner)
        self.schemas = module.kubernetes_validate is not None
        self._cpus = cpus
        self._double = module.KubeDouble(cpu=cpus, gpus=gpus, images=images)
        self.cluster = self._double.cluster
        self.cgroups = self.cluster.cgroup

    def start(self) -> KubeCluster:
        self._double.__enter__()
        return self

    def close(self) -> None:
        self._double.__exit__()

    @property
    def kubeconfig(self) -> str:
        return self._double.kubeconfig

    @property
    def env(self) -> dict[str, str]:
        """What a client of this cluster needs in its environment."""
        return {"KUBECONFIG": self.kubeconfig}

    @property
    def others(self) -> tuple[kubernetes.client.BatchV1Api, kubernetes.client.CoreV1Api]:
        """Jobs and the rest, in the hands of somebody else."""
        api = kubernetes.config.new_client_from_config(self.kubeconfig)
        return kubernetes.client.BatchV1Api(api), kubernetes.client.CoreV1Api(api)

    def objects(self, kind: str) -> list[dict[str, Any]]:
        with self.cluster.s.lock:
            return list(self.cluster.s.list(kind))

    def ended_well(self, id: str) -> bool:
        return any(o["metadata"]["name"] == id and o["status"].get("succeeded") for o in self.objects("jobs"))

    def active(self) -> set[str]:
        """Jobs whose pods are there and not over."""
        pods = self.objects("pods")
        return {p["metadata"]["labels"]["job-name"] for p in pods if p["status"]["phase"] in ("Pending", "Running")}

    def ran(self, note: dict, record: dict) -> bool:
        """Whether what a step noted shows that it ran as the job of `record`."""
        return note["HOSTNAME"].startswith(record["id"] + "-")

    def ran_on_gpu(self, note: dict) -> bool:
        return note["CUDA_VISIBLE_DEVICES"] in ("0", "1")

    def waits(self, id: str) -> bool:
        return id in self.active() and not self.ended_well(id)

    def memory_of(self, id: str, description: Path) -> str:
        """The memory that this job may use."""
        (job,) = [o for o in self.objects("jobs") if o["metadata"]["name"] == id]
        return job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]

    @contextlib.contextmanager
    def one_at_a_time(self) -> Iterator[str]:
        """A site whose jobs run one after the other."""
        with self._cores("1"):
            yield self.site

    @contextlib.contextmanager
    def hold(self) -> Iterator[str]:
        """A site whose jobs wait until they are released."""
        with self._cores("0"):
            yield self.site + self.impatient

    def release(self, id: str) -> None:
        self.cluster.node["status"]["allocatable"]["cpu"] = str(self._cpus)

    @contextlib.contextmanager
    def _cores(self, cpus: str) -> Iterator[None]:
        free = self.cluster.node["status"]["allocatable"]
        free["cpu"] = cpus
        try:
            yield
        finally:
            free["cpu"] = str(self._cpus)

    def stop_controller(self) -> None:
        """Drops every connection from now on; jobs go on."""
        for method in ("GET", "POST", "DELETE", "PATCH"):
            self.cluster.faults.append({"n": 10**9, "method": method, "path": ".", "code": 0})

    def start_controller(self) -> None:
        self.cluster.faults.clear()

    def fault(self, method: str, path: str, code: int, *, n: int = 1, **more: str) -> None:
        """Answers the next `n` such requests with `code`."""
        self.cluster.faults.append({"n": n, "method": method, "path": path, "code": code, **more})
