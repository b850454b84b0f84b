"""Where an experiment runs and keeps its results: ``site.yaml`` of a run directory.

Science is in ``aframe.yaml``; nothing here changes a result. Paths are relative to the directory of the file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from aframe_assets.config_load import ConfigError

Backend = Literal["local", "slurm", "kubernetes"]
"""Names of the places where steps can run."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreSite(_Part):
    """Where artifacts are."""

    root: str = Field(default="store", description="folder, file:// URL or s3://bucket/prefix")
    cache_dir: str | None = Field(default=None, description="local cache of a remote store; None lets the store choose")
    cache_gb: float = Field(default=20.0, gt=0, description="size cap of that cache")


class ExecutorSite(_Part):
    """Where steps run."""

    backend: Backend = Field(default="local", description="where a step runs that no tag and no route sends elsewhere")
    routes: dict[str, Backend] = Field(
        default={},
        description="backend by asset or op name (* and ? allowed), or by the word gpus for steps that ask for a GPU; the first that fits",
    )
    max_concurrent: int | None = Field(default=None, ge=1, description="steps at once; None: as many as fit")
    cores: int | None = Field(default=None, ge=1, description="cores for all local steps together; None: all of them")
    memory_gb: float | None = Field(default=None, gt=0, description="memory for all local steps together; None: all of it")
    fork: bool = Field(default=True, description="start local steps from one process that has the definitions loaded")
    poll_seconds: float = Field(default=10, ge=0.2, description="how often a batch system is asked about all jobs of a run")
    grace_seconds: float = Field(default=15, ge=0, description="from 'its job has ended' to 'the step failed', for results on their way")
    max_memory_gb: float | None = Field(default=None, gt=0, description="most that a batch job asks for, however often it is tried again")
    max_time_min: int | None = Field(default=None, ge=1, description="longest time limit of a batch job")
    env: list[Annotated[str, Field(pattern=r"^[A-Za-z_*?][A-Za-z0-9_*?]*$")]] = Field(
        default=[],
        description="variables (* and ? allowed) that batch jobs get besides AFRAME_*, AWS_*, LIGO_*, DAGSTER_HOME, PYTHONPATH",
    )

    @property
    def backends(self) -> tuple[str, ...]:
        """The default and all that routes lead to."""
        return tuple(dict.fromkeys([self.backend, *self.routes.values()]))


_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,@:+-]*$")]

OWN_DIRECTIVES = {
    "partition": "slurm.partition",
    "account": "slurm.account",
    "qos": "slurm.qos",
    "time": "the step's resources and executor.max_time_min",
    "cpus-per-task": "the step's resources",
    "mem": "the step's resources and executor.max_memory_gb",
    "mem-per-cpu": "the step's resources and executor.max_memory_gb",
    "mem-per-gpu": "the step's resources and executor.max_memory_gb",
    "gres": "the step's resources and slurm.gpu.types",
    "gpus": "the step's resources and slurm.gpu.types",
    "signal": "slurm.signal_seconds",
    "export": "executor.env",
    "export-file": "executor.env",
} | dict.fromkeys(
    "array chdir error input job-name no-requeue nodes ntasks open-mode output parsable requeue test-only wait wrap".split(),
    "the executor alone",
)
"""Options of sbatch that are not for `directives`, and what sets them."""


def _directive(text: str) -> str:
    found = re.fullmatch(r'--([a-z][a-z0-9-]*)(=[^\x00-\x1f\x7f"\\]+)?', text)
    if not found:
        raise ValueError('expected --option or --option=value, without quotes, backslashes and line ends, as in "--constraint=avx2"')
    for option, owner in OWN_DIRECTIVES.items():
        if option.startswith(found[1]):  # sbatch takes the beginning of a name for the name
            raise ValueError(f"--{option} is set by {owner}")
    return text


class SlurmQueue(_Part):
    """Where in SLURM a job goes. None leaves it to the cluster."""

    partition: _Word | None = None
    account: _Word | None = None
    qos: _Word | None = None
    directives: list[Annotated[str, AfterValidator(_directive)]] = Field(default=[], description="further #SBATCH lines: --option=value")


class SlurmGpuQueue(SlurmQueue):
    """What is different for steps that ask for a GPU; None and [] say: nothing."""

    types: dict[_Word, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="gres types in order of preference, with their memory in GB; each attempt takes the next one that is large enough",
    )


class SlurmSite(SlurmQueue):
    """How to use SLURM. The run directory, the store and the Python environment are on a disk that the nodes see."""

    gpu: SlurmGpuQueue = SlurmGpuQueue()
    command: list[str] = Field(default=[], description="words in front of sbatch, squeue, ...: [ssh, login] for a login node elsewhere")
    python: str | None = Field(default=None, description="interpreter on the nodes; None: the one that submits")
    setup: str = Field(
        default="", description="shell lines that every job runs before Python, such as module loads; one that fails ends it"
    )
    signal_seconds: int = Field(default=120, ge=0, le=65535, description="how long before its time limit a step is interrupted; 0: not")


_KubeName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
_KubeKey = Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$")]
_KubeValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")]
_Image = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+((\.|_{1,2}|-+|[:/@])[A-Za-z0-9]+)*$", max_length=500)]
_PodPath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f:]*$")]
_Program = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-][^\x00-\x1f\x7f]*$")]

OWN_PATHS = ("/dev/shm", "/run/aframe")
"""Where the executor itself mounts something in every pod."""


class KubernetesToleration(_Part):
    """A taint that pods put up with, in Kubernetes' words."""

    key: _KubeKey | None = Field(default=None, description="None with operator Exists: every taint")
    operator: Literal["Exists", "Equal"] = "Exists"
    value: _KubeValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(default=None, description="None: every effect")

    @model_validator(mode="after")
    def _consistent(self) -> KubernetesToleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("a value needs operator: Equal")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("operator: Equal needs a key")
        return self


class KubernetesVolume(_Part):
    """Something that pods see at `path`: a PersistentVolumeClaim, a Secret or an empty folder of their own."""

    path: _PodPath
    claim: _KubeName | None = Field(default=None, description="PersistentVolumeClaim")
    secret: _KubeName | None = Field(default=None, description="Secret whose keys are files there")
    empty_gb: float | None = Field(default=None, gt=0, description="empty folder on the node's disk with at most so much in it, GB")
    sub_path: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$", description="folder of the claim")
    read_only: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> KubernetesVolume:
        if sum(x is not None for x in (self.claim, self.secret, self.empty_gb)) != 1:
            raise ValueError("expected exactly one of claim, secret, empty_gb")
        if ".." in (self.sub_path or "").split("/") or ".." in self.path.split("/"):
            raise ValueError("'..' is not allowed in a path")
        if os.path.normpath(self.path) in OWN_PATHS:
            raise ValueError(f"{self.path} is mounted by the executor itself")
        return self


class KubernetesPool(_Part):
    """Where in the cluster a pod goes."""

    node_selector: dict[_KubeKey, _KubeValue] = Field(default={}, description="labels that its node has")
    tolerations: list[KubernetesToleration] = []
    priority_class: _KubeName | None = None
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


class KubernetesSite(KubernetesPool):
    """How to use Kubernetes, from any machine that reaches its API. See docs/kubernetes.md."""

    gpu: KubernetesGpuPool = KubernetesGpuPool()
    kubeconfig: str | None = Field(default=None, description="None: $KUBECONFIG, ~/.kube/config, or the pod that this runs in")
    context: str | None = Field(default=None, description="context of the kubeconfig; None: its current one")
    namespace: _KubeName | None = Field(default=None, description="None: that of the context")
    images: dict[str, _Image] = Field(default={}, description="image by the step's `container`: cpu, gpu, triton; before `image`")
    pull_secrets: list[_KubeName] = []
    pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    python: _Program = Field(default="python", description="interpreter in the image")
    service_account: _KubeName | None = Field(default=None, description="its token is mounted; None: none is")
    user: int | None = Field(default=None, ge=1, description="uid and gid of the step's process; None: the image's")
    secrets: list[_KubeName] = Field(default=[], description="Secrets whose keys are variables of the step, such as S3 credentials")
    volumes: list[KubernetesVolume] = []
    shm_gb: float | None = Field(default=None, gt=0, description="size of /dev/shm, GB, out of the step's memory; None: up to all of it")
    labels: dict[_KubeKey, _KubeValue] = Field(default={}, description="labels of Jobs and pods, such as a queue's")
    limit_cpus: bool = Field(default=True, description="whether the cores that a step asks for are also its limit")
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


class TritonSite(_Part):
    """The Triton server of ``inference.mode: triton`` and of `aframe serve`."""

    url: str | None = Field(default=None, description="host:port (gRPC) of a server that already runs; None starts one for each step")
    environment: str | None = Field(
        default=None, description="folder of the installed server; None: $AFRAME_TRITON_ENV, else aframe/triton in the user's cache"
    )
    command: list[str] | None = Field(
        default=None,
        description="words that start tritonserver elsewhere, as in a container; {repository} stands for the folder of the models",
    )
    devices: list[int] | None = Field(default=None, description="GPUs; None: all that the server can use")
    per_device: int = Field(default=1, ge=1, description="instances of the network on each GPU")
    streams: int | None = Field(
        default=None,
        ge=1,
        description="sequences served at once; None: 1 in a search, which has none, else as many as the repository says, or cores on a CPU",
    )
    ready_seconds: float = Field(default=180, gt=0, description="seconds that a server has until all its models are ready")


class SiteConfig(_Part):
    """A site. `directory` is the run directory that relative paths are relative to."""

    directory: Path
    store: StoreSite = StoreSite()
    executor: ExecutorSite = ExecutorSite()
    slurm: SlurmSite = SlurmSite()
    kubernetes: KubernetesSite = KubernetesSite()
    triton: TritonSite = TritonSite()

    @model_validator(mode="after")
    def _has_image(self) -> SiteConfig:
        if "kubernetes" in self.executor.backends and not (self.kubernetes.image or self.kubernetes.images):
            raise ValueError("executor sends steps to kubernetes, and kubernetes.image is not set: name an image with this project in it")
        return self

    @property
    def store_url(self) -> str:
        """The store's address, absolute."""
        root = self.store.root
        return root if "://" in root else str((self.directory / root).resolve())

    @property
    def cache_dir(self) -> str | None:
        return None if self.store.cache_dir is None else str((self.directory / os.path.expanduser(self.store.cache_dir)).resolve())

    @property
    def logs(self) -> Path:
        """Output of every step: ``logs/{run id}/{step}.{attempt}.{out,err}``."""
        return self.directory / "logs"

    @property
    def resolved(self) -> Path:
        """Experiments and sites as runs have read them, by hash."""
        return self.directory / "resolved"


def run_directory(env: Mapping[str, str] | None = None) -> Path:
    """The run directory of ``$AFRAME_CONFIG``; the current directory without one."""
    config = (os.environ if env is None else env).get("AFRAME_CONFIG")
    if not config:
        return Path.cwd()
    folder = Path(config).resolve().parent
    return folder.parent if folder.name == "resolved" and config.endswith(".json") else folder


def load_site(path: str | os.PathLike[str] | None = None, *, env: Mapping[str, str] | None = None) -> SiteConfig:
    """The site in `path`: by default ``$AFRAME_SITE``, else ``site.yaml`` of the run directory, else the defaults.

    Raises:
        ConfigError: the file cannot be read, or a key or value in it is not known; all of them at once.
    """
    env = os.environ if env is None else env
    named = path or env.get("AFRAME_SITE")
    directory = run_directory(env)
    file = Path(named) if named else directory / "site.yaml"
    if not named and not file.exists():
        return SiteConfig(directory=directory)
    try:
        text = file.read_text()
    except OSError as e:
        raise ConfigError(f"{file}: cannot be read ({e.strerror}); expected a site file, as written by `aframe init`") from None
    try:
        data = SiteConfig.model_validate_json(text) if file.suffix == ".json" else yaml.safe_load(text) or {}
        if isinstance(data, SiteConfig):
            return data
        if not isinstance(data, dict):
            raise ConfigError(f"{file}: expected a mapping of keys to values, found {type(data).__name__}")
        return SiteConfig.model_validate({**data, "directory": file.resolve().parent})
    except yaml.YAMLError as e:
        raise ConfigError(f"{file}: is not YAML: {e}") from None
    except ValidationError as e:
        raise ConfigError("\n".join(f"{file}: {_mistake(x)}" for x in e.errors())) from None


def _mistake(error: Mapping[str, Any]) -> str:
    where = ".".join(map(str, error["loc"]))
    if isinstance(error["input"], Mapping):  # the message says which of its keys do not go together
        return f"{where}: {error['msg']}" if where else error["msg"]
    return f"{where} = {error['input']!r}: {error['msg']}"


def write_site(site: SiteConfig, folder: Path) -> Path:
    """Writes `site` to ``folder/site-{hash}.json`` (atomically; once) and returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = site.model_dump_json(indent=1)
    path = (folder / f"site-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json").resolve()
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text)
        os.replace(temporary, path)
    return path
