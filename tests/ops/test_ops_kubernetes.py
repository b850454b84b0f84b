"""What is decided about Kubernetes without a cluster: manifests, names, and the words for recorded states of pods and Jobs."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest

from aframe_ops.executor.base import Attempt, Request
from aframe_ops.executor.batch_options import job_name
from aframe_ops.executor.kubernetes import _Gone, _meaning, _There
from aframe_ops.executor.kubernetes_manifest import SECRET_BYTES, job_id, job_manifest, secret_manifest
from aframe_ops.executor.kubernetes_states import ending, failed, phase, waiting
from aframe_ops.executor.scheduler import BatchJob, Refused, Unreachable
from aframe_ops.sites.kubernetes import KubernetesSite

JOB = BatchJob(
    "step.0-abc",
    Request(cpus=2, memory_gb=4, time_min=30),
    0,
    ("python", "-m", "x", "/r/s.json"),
    Path("/r/s.json"),
    Path("/r/l"),
    Path("/r"),
)
REQUEST = Request(memory_gb=4, time_min=30)


def pod_of(site: KubernetesSite, **request) -> dict:
    job = replace(JOB, request=JOB.request._replace(**request))
    manifest = job_manifest(job, site, "run")
    kubernetes_validate.validate(manifest, "1.34", strict=True)
    return manifest["spec"]["template"]["spec"]


def test_a_step_asks_for_what_its_tag_says():
    spec = pod_of(KubernetesSite(image="i"), gpus=1, disk_gb=3)
    resources = spec["containers"][0]["resources"]
    assert resources["limits"] == {"cpu": "2", "memory": "3815Mi", "nvidia.com/gpu": "1"}
    assert resources["requests"] == {**resources["limits"], "ephemeral-storage": "2862Mi"}
    assert "cpu" not in pod_of(KubernetesSite(image="i", limit_cpus=False))["containers"][0]["resources"]["limits"]
    assert spec["activeDeadlineSeconds"] == 1800 and spec["restartPolicy"] == "Never" and not spec["automountServiceAccountToken"]
    assert {v["name"]: v for v in spec["volumes"]}["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "3815Mi"}
    assert job_manifest(JOB, KubernetesSite(image="i"), "run")["spec"]["backoffLimit"] == 0


def test_what_the_site_says_is_in_the_pod():
    site = KubernetesSite(
        image="i",
        images={"triton": "t"},
        gpu={"image": "g", "tolerations": [{"key": "nvidia.com/gpu"}], "node_selector": {"pool": "gpu"}, "priority_class": "high"},
        priority_class="low",
        service_account="steps",
        tolerations=[{"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"}],
        volumes=[{"claim": "data", "path": "/d"}, {"claim": "data", "path": "/e", "sub_path": "x"}, {"empty_gb": 1, "path": "/s"}],
        secrets=["s3"],
        pull_secrets=["pull"],
        user=1000,
        labels={"kueue.x-k8s.io/queue-name": "q"},
    )
    cpu, gpu = pod_of(site), pod_of(site, gpus=1)
    assert [p["containers"][0]["image"] for p in (cpu, gpu, pod_of(site, container="triton"))] == ["i", "g", "t"]
    assert (cpu["priorityClassName"], gpu["priorityClassName"]) == ("low", "high")
    assert (len(cpu["tolerations"]), len(gpu["tolerations"])) == (1, 2) and gpu["nodeSelector"] == {"pool": "gpu"}
    assert cpu["serviceAccountName"] == "steps" and cpu["imagePullSecrets"] == [{"name": "pull"}]
    assert cpu["securityContext"]["runAsUser"] == cpu["securityContext"]["fsGroup"] == 1000
    assert cpu["containers"][0]["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert [m["mountPath"] for m in cpu["containers"][0]["volumeMounts"]] == ["/run/aframe", "/dev/shm", "/d", "/e", "/s"]
    assert len({v["name"] for v in cpu["volumes"]}) == len(cpu["volumes"]) == 4
    assert job_manifest(JOB, site, "run")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"


def test_gpus_by_memory_or_by_name():
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    affinity = pod_of(KubernetesSite(image="i"), gpus=1, gpu_memory_gb=40)["affinity"]["nodeAffinity"]
    (rule,) = affinity[required]["nodeSelectorTerms"][0]["matchExpressions"]
    # 40 GB are 38146.97 MiB
    assert rule == {"key": "nvidia.com/gpu.memory", "operator": "Gt", "values": ["38145"]}
    site = KubernetesSite(image="i", gpu={"products": {"t4": 16, "a100": 40, "h100": 80}})
    jobs = [replace(JOB, number=n, request=Request(gpus=1, gpu_memory_gb=30)) for n in range(3)]
    affinities = [job_manifest(j, site, "run")["spec"]["template"]["spec"]["affinity"]["nodeAffinity"] for j in jobs]
    assert affinities[0][required]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] == ["a100", "h100"]
    first = [a["preferredDuringSchedulingIgnoredDuringExecution"][0]["preference"]["matchExpressions"][0]["values"] for a in affinities]
    assert first == [["a100"], ["h100"], ["a100"]]
    with pytest.raises(Refused, match="needs a GPU with 90 GB"):
        pod_of(site, gpus=1, gpu_memory_gb=90)
    assert "affinity" not in pod_of(site, gpus=1)


def test_names_are_names_of_kubernetes_and_different():
    steps = ["a", "A", "a[b]", "a_b_", "x" * 200, "$(touch y)", "--wrap", "…", "-", "a.b", "a-b"]
    names = {job_id(job_name(Attempt(run, step, n))) for run in ("r1", "r2") for step in steps for n in (0, 1)}
    assert len(names) == 4 * len(steps)
    assert all(len(n) <= 63 and n.replace("-", "").isalnum() and n == n.lower() and n.isascii() and n.startswith("aframe-") for n in names)


def test_the_secret_holds_the_step_and_the_files_that_it_names(tmp_path):
    spec, site_file = tmp_path / "s.json", tmp_path / "site.json"
    site_file.write_text("{}")
    spec.write_text(json.dumps({"env": {"AFRAME_SITE": str(site_file), "PASSWORD": "p"}, "cwd": "/", "cpus": 1, "time_min": 2}))
    secret = secret_manifest(replace(JOB, spec=spec, request=Request(time_min=2)), KubernetesSite(image="i"), "uid", "")
    kubernetes_validate.validate(secret, "1.34", strict=True)
    read = json.loads(base64.b64decode(secret["data"]["spec.json"]))
    assert read["files"] == {"AFRAME_SITE": "{}"} and read["env"]["PASSWORD"] == "p"
    assert secret["metadata"]["ownerReferences"][0]["uid"] == "uid"
    site_file.write_text("x" * SECRET_BYTES)
    with pytest.raises(Refused, match="more than the 1 MiB"):
        secret_manifest(replace(JOB, spec=spec), KubernetesSite(image="i"), "uid", "")


def ended(reason: str = "Error", code: int = 1, **status) -> dict:
    terminated = {"reason": reason, "exitCode": code}
    return {
        "metadata": {},
        "status": {"phase": "Failed", "containerStatuses": [{"name": "step", "state": {"terminated": terminated}}], **status},
    }


@pytest.mark.parametrize(
    ("pod", "said"),
    [
        (ended(code=3), "ended with exit code 3 without reporting a result"),
        (ended(code=137), "was killed by SIGKILL (by hand, or because memory ran out)"),
        (ended("OOMKilled", 137), "was killed because memory ran out (OOMKilled); it had 4 GB"),
        (
            {"metadata": {}, "status": {"phase": "Failed", "reason": "DeadlineExceeded"}},
            "was killed at its time limit of 30 min (DeadlineExceeded)",
        ),
        (
            {"metadata": {}, "status": {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}},
            "was evicted from its node (Evicted: The node was low on resource: memory.)",
        ),
        (
            ended(code=137, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]),
            "was stopped because it had to make room for a pod with a higher priority",
        ),
        (
            {"metadata": {"deletionTimestamp": "t"}, "status": {"phase": "Running", "reason": "NodeLost"}},
            "was lost with its node (NodeLost)",
        ),
        (
            {"metadata": {}, "status": {"phase": "Failed", "reason": "OutOfcpu", "message": "Pod was rejected"}},
            "failed (OutOfcpu: Pod was rejected)",
        ),
        ({"metadata": {}, "status": {"phase": "Succeeded"}}, "ended with exit code 0 without reporting a result"),
    ],
)
def test_endings_in_words(pod, said):
    assert phase(pod) in ("Failed", "Succeeded")
    assert ending(pod, REQUEST) == said


def test_what_a_pod_waits_for():
    image = {"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}
    assert waiting({"status": {"containerStatuses": [image]}}) == ("ErrImagePull", "ErrImagePull: not found")
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    assert waiting({"status": {"conditions": [condition]}}) == ("Unschedulable", "Unschedulable: 0/3 nodes")
    assert waiting({"status": {}}) == ("", "")


def test_what_a_job_without_a_pod_says():
    def job(**condition):
        return {"status": {"conditions": [{"status": "True", **condition}]}}

    assert failed({"status": {}}, REQUEST) is None and failed(job(type="Suspended"), REQUEST) is None
    assert failed(job(type="Failed", reason="DeadlineExceeded"), REQUEST) == "was killed at its time limit of 30 min (DeadlineExceeded)"
    assert "pod was deleted" in failed(job(type="Failed", reason="BackoffLimitExceeded"), REQUEST)


@pytest.mark.parametrize(
    ("status", "reason", "message", "kind"),
    [
        (404, "NotFound", 'jobs.batch "a" not found', _Gone),
        (404, "NotFound", 'namespaces "a" not found', Refused),
        (409, "AlreadyExists", "there", _There),
        (409, "Conflict", "modified", Unreachable),
        (401, "Unauthorized", "Unauthorized", Unreachable),
        (403, "Forbidden", "exceeded quota: jobs", Unreachable),
        (403, "Forbidden", "cannot create resource jobs", Refused),
        (422, "Invalid", "spec.image: Invalid", Refused),
        (429, "TooManyRequests", "later", Unreachable),
        (503, "ServiceUnavailable", "later", Unreachable),
        (0, "SSLError", "", Unreachable),
    ],
)
def test_answers_of_the_server(status, reason, message, kind):
    body = json.dumps({"reason": reason, "message": message}) if message else None
    assert type(_meaning(status, reason, body)) is kind
