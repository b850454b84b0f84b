"""Whether Kubernetes takes the Jobs of an experiment, and has the GPUs, claims and Secrets for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aframe_assets.config_load import ConfigError
from aframe_ops.cli.doctor_findings import Finding
from aframe_ops.cli.doctor_steps import Need, rehearsal, shown
from aframe_ops.executor.base import Request, write_private
from aframe_ops.executor.kubernetes import Kubernetes
from aframe_ops.executor.kubernetes_code import project_folder, resolve_ref, snapshot
from aframe_ops.executor.scheduler import Refused, Unreachable
from aframe_ops.sites.kubernetes import KubernetesSite


def check_kubernetes(site: KubernetesSite, needs: Sequence[Need], folder: Path) -> Iterator[Finding]:
    """Has the server check a Job of each kind (``dryRun=All``) and the rights that steps need, and looks at nodes.

    Args:
        folder: an empty one for files of the Jobs.
    """
    if site.own_code and not site.pinned:
        try:
            pinned = resolve_ref(site.git) if site.git else hashlib.sha256(snapshot(project_folder())).hexdigest()
        except ConfigError as e:
            yield Finding("error", str(e))
            return
        what = f"{site.git.ref} of {site.git.repository} is commit" if site.git else "pods would run the snapshot"
        yield Finding("ok", f"kubernetes: {what} {pinned}")
        site = site.model_copy(update={"pinned": pinned})
    cluster = Kubernetes(site, "doctor")
    try:
        where = f"in namespace {cluster.namespace}"
    except Refused as e:
        yield Finding("error", f"kubernetes: {e}")
        return

    def show(need: Need) -> str:
        job = rehearsal(need, site.python, folder)
        write_private(job.spec, json.dumps({"env": {}}))
        try:
            cluster.rehearse(job)
        except Refused as e:
            raise Refused(f"{e}{_rights(str(e))}") from None
        return where

    yield from shown("kubernetes", needs, show, "try `kubectl get jobs`, or see kubernetes.kubeconfig and kubernetes.context")
    yield Finding("ok", f"kubernetes: whether nodes can pull {', '.join(_images(site, needs))} cannot be asked; a pod that cannot says so")
    yield from _objects(cluster, site)
    yield from _places(cluster, site, needs)


def _rights(said: str) -> str:
    return "; docs/kubernetes.md lists the rights that steps need" if "forbidden" in said.lower() else ""


def _images(site: KubernetesSite, needs: Sequence[Need]) -> list[str]:
    wanted = (site.images.get(n.request.container) or (n.request.gpus and site.gpu.image) or site.image for n in needs)
    return sorted({str(image) for image in wanted if image})


def _objects(cluster: Kubernetes, site: KubernetesSite) -> Iterator[Finding]:
    wanted = [("secrets", name, "kubernetes.secrets") for name in site.secrets]
    wanted += [("secrets", name, "kubernetes.pull_secrets") for name in site.pull_secrets]
    wanted += [("persistent_volume_claims", v.claim, "kubernetes.volumes") for v in site.volumes if v.claim]
    wanted += [("secrets", v.secret, "kubernetes.volumes") for v in site.volumes if v.secret]
    wanted += [("secrets", site.git.secret, "kubernetes.git.secret")] if site.git and site.git.secret else []
    for kind, name, key in wanted:
        what = f"{'Secret' if kind == 'secrets' else 'PersistentVolumeClaim'} {name}"
        known = cluster.knows(kind, name)
        if known is None:
            yield Finding("ok", f"kubernetes: this account may not ask for {what} ({key}); a pod that misses it says so")
        elif known:
            yield Finding("ok", f"kubernetes: {what} is there ({key})")
        else:
            yield Finding("error", f"kubernetes: no {what} in namespace {cluster.namespace}: make it, or change {key}")


def _places(cluster: Kubernetes, site: KubernetesSite, needs: Sequence[Need]) -> Iterator[Finding]:
    try:
        nodes = cluster.nodes()
    except (Refused, Unreachable) as e:
        yield Finding("warning", f"kubernetes: this account may not list nodes, so whether they fit was not looked at: {e}")
        return
    for need in needs:
        wanted = {**site.node_selector, **(site.gpu.node_selector if need.request.gpus else {})}
        selected = [n for n in nodes if wanted.items() <= _labels(n).items()]
        if not selected:
            labels = ", ".join(f"{k}={v}" for k, v in wanted.items())
            yield Finding("error", f"kubernetes: no node has the labels {labels} for {need}: change kubernetes.node_selector")
            return
        fitting = [n for n in selected if _fits(n, need.request)]
        if not fitting:
            yield Finding(
                "error",
                f"kubernetes: none of {len(selected)} nodes is large enough for {need}: {_largest(selected, site)}; "
                "change executor.max_memory_gb or kubernetes.node_selector",
            )
        elif need.request.gpus:
            yield _gpus(fitting, selected, site, need)


def _labels(node: Mapping[str, Any]) -> dict[str, str]:
    return node["metadata"].get("labels") or {}


def _allocatable(node: Mapping[str, Any], name: str) -> float:
    from kubernetes.utils.quantity import parse_quantity

    return float(parse_quantity(node["status"].get("allocatable", {}).get(name, "0")))


def _fits(node: Mapping[str, Any], request: Request) -> bool:
    return _allocatable(node, "cpu") >= request.cpus and _allocatable(node, "memory") >= request.memory_gb * 1e9


def _largest(nodes: Sequence[Mapping[str, Any]], site: KubernetesSite) -> str:
    most = {name: max(_allocatable(n, name) for n in nodes) for name in ("cpu", "memory", site.gpu.resource)}
    return f"at most {most['cpu']:g} cores, {most['memory'] / 1e9:.3g} GB, {most[site.gpu.resource]:g} of {site.gpu.resource}"


def _gpus(fitting: Sequence[Mapping[str, Any]], selected: Sequence[Mapping[str, Any]], site: KubernetesSite, need: Need) -> Finding:
    gpu, request = site.gpu, need.request
    having = [n for n in fitting if _allocatable(n, gpu.resource) >= request.gpus]
    if not having:
        return Finding(
            "error",
            f"kubernetes: no node has the GPUs of {need}: {_largest(selected, site)}; change kubernetes.gpu.resource or"
            " kubernetes.gpu.node_selector",
        )
    if not request.gpu_memory_gb:
        return Finding("ok", f"kubernetes: {len(having)} nodes have the GPUs of {need}")
    if gpu.products:
        large = {name for name, memory_gb in gpu.products.items() if memory_gb >= request.gpu_memory_gb}
        good = [n for n in having if _labels(n).get(gpu.product_label) in large]
        label, key = gpu.product_label, "kubernetes.gpu.products"
    else:
        good = [n for n in having if float(_labels(n).get(gpu.memory_label, 0)) * 2**20 >= request.gpu_memory_gb * 1e9 - 2**20]
        label, key = gpu.memory_label, "kubernetes.gpu.memory_label, or set kubernetes.gpu.products"
    seen = sorted({_labels(n).get(label, "no label") for n in having})
    if not good:
        return Finding(
            "error",
            f"kubernetes: no node's GPUs have the {request.gpu_memory_gb:g} GB of {need}; {label} is {', '.join(seen)}: change {key}",
        )
    return Finding("ok", f"kubernetes: {len(good)} node{'s' * (len(good) > 1)} with the GPUs of {need}; {label} is {', '.join(seen)}")
