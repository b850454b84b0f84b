"""``kubernetes:`` of site.yaml."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from aframe_ops.sites.part import Part

_KubeName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
_KubeKey = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")]
_KubeValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
_Image = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+((\.|_{1,2}|-+|[:/@])[A-Za-z0-9]+)*$", max_length=500)]
_PodPath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f:]*$")]
_Program = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-][^\x00-\x1f\x7f]*$")]

OWN_PATHS = ("/dev/shm", "/run/aframe", "/run/aframe-code", "/run/aframe-git")
"""Where the executor itself mounts something in every pod."""


class KubernetesToleration(Part):
    """A taint that pods put up with, in Kubernetes' words."""

    key: _KubeKey | None = Field(default=None, description="None with operator Exists: every taint")
    operator: Literal["Exists", "Equal"] = Field(
        default="Exists", description="whether a taint of this key is enough, or its value must be equal"
    )
    value: _KubeValue | None = Field(default=None, description="value of the taint, with operator Equal")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(default=None, description="None: every effect")

    @model_validator(mode="after")
    def _consistent(self) -> KubernetesToleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("a value needs operator: Equal")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator: Equal needs a key")
        return self


class KubernetesVolume(Part):
    """Something that pods see at `path`: a PersistentVolumeClaim, a Secret or an empty folder of their own."""

    path: _PodPath = Field(description="where pods see it")
    claim: _KubeName | None = Field(default=None, description="PersistentVolumeClaim")
    secret: _KubeName | None = Field(default=None, description="Secret whose keys are files there")
    empty_gb: float | None = Field(default=None, gt=0, description="empty folder on the node's disk with at most so much in it, GB")
    sub_path: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$", description="folder of the claim")
    read_only: bool = Field(default=False, description="whether pods may not write to it")

    @model_validator(mode="after")
    def _one_source(self) -> KubernetesVolume:
        if sum(x is not None for x in (self.claim, self.secret, self.empty_gb)) != 1:
            raise ValueError("expected exactly one of claim, secret, empty_gb")
        if ".." in (self.sub_path or "").split("/") or ".." in self.path.split("/"):
            raise ValueError("'..' is not allowed in a path")
        if os.path.normpath(self.path) in OWN_PATHS:
            raise ValueError(f"{self.path} is mounted by the executor itself")
        return self


class KubernetesPool(Part):
    """Where in the cluster a pod goes."""

    node_selector: dict[_KubeKey, _KubeValue] = Field(default={}, description="labels that its node has")
    tolerations: list[KubernetesToleration] = Field(default=[], description="taints that pods put up with")
    priority_class: _KubeName | None = Field(default=None, description="PriorityClass of the pods")
    image: _Image | None = Field(default=None, description="image with this project in it")


class KubernetesGpuPool(KubernetesPool):
    """What is different for steps that ask for a GPU; the lists and labels add to the others."""

    resource: _KubeKey = Field(default="nvidia.com/gpu", description="name of the resource")
    memory_label: _KubeKey = Field(default="nvidia.com/gpu.memory", description="node label with the memory of one GPU in MiB")
    product_label: _KubeKey = Field(default="nvidia.com/gpu.product", description="node label with the name of the GPU")
    products: dict[_KubeValue, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="GPUs in order of preference, with their memory in GB; each attempt prefers the next one. {}: by memory_label",
    )


_SSH_PLACE = re.compile(
    r"(ssh://)?([A-Za-z0-9_][A-Za-z0-9_.-]*@)?([A-Za-z0-9][A-Za-z0-9.-]*)(?(1)(:[0-9]{1,5})?/|:(?!//|:))[^\x00-\x20\x7f]+"
)
_OPEN_PLACE = re.compile(r"(https://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?|file://)/[^\x00-\x20\x7f]+")


class KubernetesGit(Part):
    """Code that pods fetch before they start: one commit of a git repository."""

    repository: str = Field(description="git@HOST:PATH, ssh://[USER@]HOST[:PORT]/PATH, https://HOST/PATH or file:///PATH of a volume")
    ref: str = Field(
        pattern=r"^[^\x00-\x20\x7f~^:?*\[\\-][^\x00-\x20\x7f~^:?*\[\\]*$",
        max_length=250,
        description="branch, tag or whole commit id; looked up once, as a run starts",
    )
    key_file: str | None = Field(default=None, description="private ssh key on this machine, without a passphrase")
    secret: _KubeName | None = Field(default=None, description="Secret of the cluster with the keys ssh and known_hosts, for key_file")
    known_hosts: str = Field(default="~/.ssh/known_hosts", description="file on this machine with the public key of the repository's host")
    image: _Image | None = Field(default=None, description="image with git, ssh and sh; None: that of the step")

    @property
    def host(self) -> str | None:
        """The ssh server as known_hosts names it; None for a repository that needs no key."""
        found = _SSH_PLACE.fullmatch(self.repository)
        if found is None or _OPEN_PLACE.fullmatch(self.repository):
            return None
        host, port = found[3], (found[4] or "").lstrip(":")
        return f"[{host}]:{port}" if port and port != "22" else host

    @model_validator(mode="after")
    def _consistent(self) -> KubernetesGit:
        if not (_OPEN_PLACE.fullmatch(self.repository) or _SSH_PLACE.fullmatch(self.repository)):
            raise ValueError("repository: expected git@HOST:PATH, ssh://..., https://HOST/PATH without a password, or file:///PATH")
        if ".." in self.ref or "@{" in self.ref or self.ref.endswith("/"):
            raise ValueError(f"ref {self.ref!r} is no name of a branch or tag")
        if self.host is None and (self.key_file or self.secret):
            raise ValueError("key_file and secret are ssh keys, and this repository is not reached by ssh")
        if self.host is not None and (self.key_file is None) == (self.secret is None):
            raise ValueError("a repository reached by ssh needs key_file or secret, and not both")
        return self


class KubernetesSite(KubernetesPool):
    """How to use Kubernetes, from any machine that reaches its API. See docs/kubernetes.md."""

    gpu: KubernetesGpuPool = KubernetesGpuPool()
    kubeconfig: str | None = Field(default=None, description="None: $KUBECONFIG, ~/.kube/config, or the pod that this runs in")
    context: str | None = Field(default=None, description="context of the kubeconfig; None: its current one")
    namespace: _KubeName | None = Field(default=None, description="None: that of the context")
    images: dict[str, _Image] = Field(default={}, description="image by the step's `container`: cpu, gpu, triton; before `image`")
    pull_secrets: list[_KubeName] = Field(default=[], description="Secrets with which images are pulled")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = Field(
        default=None, description="when images are pulled; None: as Kubernetes decides by their tag"
    )
    python: _Program = Field(default="python", description="interpreter in the image")
    service_account: _KubeName | None = Field(default=None, description="its token is mounted; None: none is")
    user: int | None = Field(default=None, ge=1, description="uid and gid of the step's process; None: the image's")
    secrets: list[_KubeName] = Field(default=[], description="Secrets whose keys are variables of the step, such as S3 credentials")
    volumes: list[KubernetesVolume] = Field(default=[], description="claims, Secrets and empty folders that pods see")
    shm_gb: float | None = Field(default=None, gt=0, description="size of /dev/shm, GB, out of the step's memory; None: up to all of it")
    labels: dict[_KubeKey, _KubeValue] = Field(default={}, description="labels of Jobs and pods, such as a queue's")
    limit_cpus: bool = Field(default=True, description="whether the cores that a step asks for are also its limit")
    code: Literal["image", "snapshot"] = Field(
        default="image", description="snapshot: pods run the tracked files of this project's working tree, which are sent through the store"
    )
    git: KubernetesGit | None = Field(default=None, description="pods run the code of a git repository and not that of their image")
    pinned: str | None = Field(
        default=None,
        pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$",
        description="commit of `git`, or sha256 of the snapshot; aframe sets it as a run starts",
    )
    start_minutes: float = Field(
        default=10, gt=0, description="after that, a job without a pod or image has failed, and one that does not fit is reported"
    )
    signal_seconds: int = Field(default=120, ge=0, description="how long before its time limit a step is interrupted; 0: not")
    grace_seconds: int = Field(default=30, ge=0, description="from the interrupt of a cancelled step to its end by force")
    keep_seconds: int = Field(default=3600, ge=0, description="for how long Jobs that ended can be looked at")

    @model_validator(mode="after")
    def _paths_differ(self) -> KubernetesSite:
        paths = [os.path.normpath(v.path) for v in self.volumes]
        if twice := {p for p in paths if paths.count(p) > 1}:
            raise ValueError(f"volumes: more than one at {', '.join(sorted(twice))}")
        return self

    @model_validator(mode="after")
    def _one_code(self) -> KubernetesSite:
        if self.git is not None and self.code == "snapshot":
            raise ValueError("git and code: snapshot exclude each other; choose one")
        if self.pinned and not self.own_code:
            raise ValueError("pinned says which version of git or of a snapshot, and neither is asked for; remove it")
        return self

    @property
    def own_code(self) -> bool:
        """Whether pods run other code than that of their image."""
        return self.git is not None or self.code == "snapshot"
