"""What is sent to Kubernetes for one attempt at one step: a Job, and the Secret with everything that the step is told.

Nothing of the step itself is in the Job, which many may read: its arguments and variables, paths of the run directory
among them, are in the Secret.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aframe_assets.config_load import ConfigError
from aframe_assets.tags import CODE_VARIABLE
from aframe_ops.executor.base import Request
from aframe_ops.executor.kubernetes_code import key_files
from aframe_ops.executor.kubernetes_init import CODE_PATH_KEY, add_code, literal, path_variable, python_path
from aframe_ops.executor.scheduler import BatchJob, Refused
from aframe_ops.sites.kubernetes import KubernetesSite

RUN_LABEL = "aframe/run"
JOB_LABEL = "aframe/job"
CONTAINER = "step"
SPEC_FOLDER = "/run/aframe"
SPEC_FILE = "spec.json"
PATH_KEY = "pythonpath"

SHIPPED = ("AFRAME_CONFIG", "AFRAME_SITE")
"""Variables that name small files of the run directory; the files go along, for pods that do not see it."""

SECRET_BYTES = 1_000_000
"""Kubernetes keeps no Secret that is larger (1 MiB, with its names)."""


def job_id(name: str) -> str:
    """Name of the Job and of the Secret for `BatchJob.name`: at most 63 of a-z, 0-9 and ``-``, one for one."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.rpartition("-")[0].lower()).strip("-")[:42].strip("-")
    return "-".join(filter(None, ("aframe", slug, hashlib.sha256(name.encode()).hexdigest()[:12])))


def job_manifest(job: BatchJob, site: KubernetesSite, run: str) -> dict[str, Any]:
    """The Job of `job`, as the API takes it.

    Args:
        run: id of the run; letters, digits, ``_``, ``.`` and ``-``.

    Raises:
        Refused: `site` has no image or no GPU for it.
    """
    id = job_id(job.name)
    code = {"annotations": {"aframe/code": site.pinned}} if site.pinned else {}
    labels = {**site.labels, "app.kubernetes.io/managed-by": "aframe", RUN_LABEL: run, JOB_LABEL: id}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": id, "labels": labels, **code},
        "spec": {
            "backoffLimit": 0,  # trying again is Dagster's business
            "ttlSecondsAfterFinished": site.keep_seconds,
            "template": {"metadata": {"labels": labels}, "spec": _pod(job, site, id)},
        },
    }


def secret_manifest(job: BatchJob, site: KubernetesSite, owner: str, store: str) -> dict[str, Any]:
    """The Secret that the pod of `job` reads; it goes at the latest with the Job whose uid is `owner`.

    Args:
        store: address of the store, from where the pod gets a snapshot of the code.

    Raises:
        Refused: it is larger than Kubernetes allows, or the ssh key of ``kubernetes.git`` cannot be read.
    """
    id = job_id(job.name)
    spec = json.loads(job.spec.read_text())
    spec["files"] = {name: Path(spec["env"][name]).read_text() for name in SHIPPED if name in spec["env"]}
    data = {PATH_KEY: job.python_path or ""}
    if site.pinned:
        data[CODE_PATH_KEY] = python_path(job.python_path)
        spec["env"] |= {"PYTHONPATH": data[CODE_PATH_KEY], CODE_VARIABLE: site.pinned}
        if site.git is None:
            spec["code"] = {"store": store, "sha256": site.pinned}
        else:
            try:
                data |= key_files(site.git)
            except ConfigError as e:
                raise Refused(str(e)) from None
    data[SPEC_FILE] = json.dumps(spec)
    encoded = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
    if sum(map(len, encoded.values())) > SECRET_BYTES:
        raise Refused("what the step is told is more than the 1 MiB that a Secret holds; shorten executor.env or the experiment")
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": id,
            "labels": {"app.kubernetes.io/managed-by": "aframe", JOB_LABEL: id},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": id, "uid": owner}],
        },
        "immutable": True,
        "data": encoded,
    }


def _pod(job: BatchJob, site: KubernetesSite, id: str) -> dict[str, Any]:
    request, gpu = job.request, site.gpu
    on_gpu = request.gpus > 0
    tolerations = site.tolerations + (gpu.tolerations if on_gpu else [])
    volumes, mounts = _volumes(request, site, id)
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        # Of the pod and not of the Job, whose clock also counts the time in the queue.
        "activeDeadlineSeconds": request.time_min * 60,
        "terminationGracePeriodSeconds": site.grace_seconds,
        "automountServiceAccountToken": site.service_account is not None,
        "containers": [
            {
                "name": CONTAINER,
                "image": _image(request, site),
                "command": [literal(word) for word in _command(job)],
                "env": path_variable(id, PATH_KEY) if job.python_path else [],
                "envFrom": [{"secretRef": {"name": name}} for name in site.secrets],
                "resources": _resources(request, site),
                "volumeMounts": mounts,
                "securityContext": {"allowPrivilegeEscalation": False},
            }
        ],
        "volumes": volumes,
        "nodeSelector": {**site.node_selector, **(gpu.node_selector if on_gpu else {})},
        "tolerations": [t.model_dump(exclude_none=True) for t in tolerations],
        "imagePullSecrets": [{"name": name} for name in site.pull_secrets],
    }
    if site.pull_policy:
        spec["containers"][0]["imagePullPolicy"] = site.pull_policy
    if site.service_account:
        spec["serviceAccountName"] = site.service_account
    if priority := (on_gpu and gpu.priority_class) or site.priority_class:
        spec["priorityClassName"] = priority
    if site.user is not None:
        user = {"runAsUser": site.user, "runAsGroup": site.user, "fsGroup": site.user}
        spec["securityContext"] = {**user, "runAsNonRoot": True, "fsGroupChangePolicy": "OnRootMismatch"}
    if on_gpu and request.gpu_memory_gb:
        spec["affinity"] = {"nodeAffinity": _affinity(request, job.number, site)}
    if site.pinned:
        add_code(spec, site, id, f"{SPEC_FOLDER}/{SPEC_FILE}")
    return spec


def _command(job: BatchJob) -> Iterator[str]:
    for word in job.argv:
        yield f"{SPEC_FOLDER}/{SPEC_FILE}" if word == str(job.spec) else word


def _image(request: Request, site: KubernetesSite) -> str:
    image = site.images.get(request.container) or (request.gpus and site.gpu.image) or site.image
    if not image:
        raise Refused(f"no image for it: set kubernetes.image, or kubernetes.images.{request.container}")
    return image


def _resources(request: Request, site: KubernetesSite) -> dict[str, dict[str, str]]:
    requests = {"cpu": str(request.cpus)}
    limits = {"cpu": str(request.cpus)} if site.limit_cpus else {}
    if request.memory_gb:
        requests["memory"] = limits["memory"] = _mebibytes(request.memory_gb)
    if request.disk_gb:
        requests["ephemeral-storage"] = _mebibytes(request.disk_gb)
    if request.gpus:
        requests[site.gpu.resource] = limits[site.gpu.resource] = str(request.gpus)
    return {"requests": requests, "limits": limits}


def _volumes(request: Request, site: KubernetesSite, id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    shm: dict[str, Any] = {"medium": "Memory"}
    if size := site.shm_gb or request.memory_gb:
        shm["sizeLimit"] = _mebibytes(size)
    # Without `user` the process's uid is unknown here; nobody else is in the container.
    mode = 0o440 if site.user is not None else 0o444
    items = [{"key": SPEC_FILE, "path": SPEC_FILE}]
    volumes = [
        {"name": "spec", "secret": {"secretName": id, "defaultMode": mode, "items": items}},
        {"name": "shm", "emptyDir": shm},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for volume in site.volumes:
        if volume.claim:
            source, name = {"persistentVolumeClaim": {"claimName": volume.claim}}, f"claim-{_short(volume.claim)}"
        elif volume.secret:
            source, name = {"secret": {"secretName": volume.secret}}, f"secret-{_short(volume.secret)}"
        else:
            source, name = {"emptyDir": {"sizeLimit": _mebibytes(volume.empty_gb or 0)}}, f"empty-{_short(volume.path)}"
        if name not in {v["name"] for v in volumes}:  # one claim may be mounted at several paths
            volumes.append({"name": name, **source})
        mount = {"name": name, "mountPath": volume.path}
        if volume.sub_path:
            mount["subPath"] = volume.sub_path
        if volume.read_only or volume.secret:
            mount["readOnly"] = True
        mounts.append(mount)
    return volumes, mounts


def _affinity(request: Request, number: int, site: KubernetesSite) -> dict[str, Any]:
    """Nodes whose GPUs have memory enough; of the site's list, each attempt prefers another one."""
    gpu = site.gpu
    if not gpu.products:
        # The label counts in MiB, and Gt is the only way to say "at least".
        least = math.floor(request.gpu_memory_gb * 1e9 / 2**20)
        rule = {"key": gpu.memory_label, "operator": "Gt", "values": [str(max(0, least - 1))]}
        return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}}
    large = [name for name, memory_gb in gpu.products.items() if memory_gb >= request.gpu_memory_gb]
    if not large:
        raise Refused(f"the step needs a GPU with {request.gpu_memory_gb:g} GB, and kubernetes.gpu.products has none: {gpu.products}")
    start = number % len(large)
    preferred = [
        {"weight": max(1, 100 - i), "preference": {"matchExpressions": [{"key": gpu.product_label, "operator": "In", "values": [name]}]}}
        for i, name in enumerate(large[start:] + large[:start])
    ]
    rule = {"key": gpu.product_label, "operator": "In", "values": large}
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [rule]}]},
        "preferredDuringSchedulingIgnoredDuringExecution": preferred,
    }


def _mebibytes(gigabytes: float) -> str:
    return f"{math.ceil(gigabytes * 1e9 / 2**20)}Mi"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
