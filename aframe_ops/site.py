"""Where an experiment runs and keeps its results: ``site.yaml`` of a run directory.

Science is in ``aframe.yaml``; nothing here changes a result. Paths are relative to the directory of the file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from aframe_assets.config_load import ConfigError

Backend = Literal["local", "slurm", "htcondor"]
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


ACCOUNT = r"[A-Za-z0-9_][A-Za-z0-9_.@-]*"
"""Pattern of an accounting group and of its user."""

OWN_COMMANDS = {
    "accounting_group": "htcondor.accounting_group",
    "accounting_group_user": "htcondor.accounting_group_user",
    "request_cpus": "the step's resources",
    "request_memory": "the step's resources and executor.max_memory_gb",
    "request_disk": "the step's resources and htcondor.disk_gb",
    "request_gpus": "the step's resources",
    "gpus_minimum_memory": "the step's resources",
    "gpus_minimum_capability": "htcondor.gpu.minimum_capability",
    "require_gpus": "htcondor.gpu.require",
    "container_image": "htcondor.container_image",
    "docker_image": "htcondor.container_image",
    "requirements": "htcondor.requirements",
    "use_oauth_services": "htcondor.oauth_services",
    "environment": "executor.env",
    "env": "executor.env",
    "getenv": "executor.env",
    "allowed_job_duration": "the step's resources and executor.max_time_min",
    "allowed_execute_duration": "the step's resources and executor.max_time_min",
} | dict.fromkeys(
    "args arguments batch_name cmd dollar else elif endif err error executable if in include initialdir input iwd kill_sig "
    "kill_sig_timeout log log_xml max_materialize max_retries num_job_starts on_exit_hold on_exit_remove out output "
    "periodic_release periodic_remove queue retry_until should_transfer_files stream_error stream_output transfer_executable "
    "transfer_input_files transfer_output_files transfer_output_remaps universe use user_log when_to_transfer_output".split(),
    "the executor alone",
)
"""Submit commands that are not for `HTCondorSite.commands`, and what sets them."""


def _command(name: str) -> str:
    bare = name.lower().removeprefix("+").removeprefix("my.")
    for own, owner in OWN_COMMANDS.items():
        if bare.replace("_", "") == own.replace("_", ""):  # request_cpus is the attribute RequestCpus
            raise ValueError(f"{own} is set by {owner}")
    return name


def _expression(text: str) -> str:
    depth = 0
    for mark in re.findall(r'"[^"]*"|[()"]', text):
        depth += {"(": 1, ")": -1}.get(mark, 0)
        if depth < 0 or mark == '"':
            break
    else:
        if depth == 0:
            return text
    raise ValueError("expected a ClassAd expression whose brackets and quotes are closed")


_Value = Annotated[str, Field(pattern=r"^[^\x00-\x20\x7f$\\]([^\x00-\x1f\x7f$\\]*[^\x00-\x20\x7f$\\])?$")]
"""One line without $ (which starts a macro of HTCondor) and backslashes."""

_Expression = Annotated[_Value, AfterValidator(_expression)]
_Command = Annotated[str, Field(pattern=r"^(\+|[Mm][Yy]\.)?[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_command)]
_Account = Annotated[str, Field(pattern=f"^{ACCOUNT}$")]


class HTCondorGpu(_Part):
    """What GPUs have to be, besides having the memory that the step asks for."""

    minimum_capability: float | None = Field(default=None, gt=0, description="CUDA compute capability, such as 7.0")
    require: _Expression | None = Field(default=None, description='ClassAd expression, such as DeviceName == "NVIDIA A100-SXM4-40GB"')


class HTCondorSite(_Part):
    """How to use HTCondor. Values are written into submit descriptions as they are."""

    accounting_group: _Account | None = Field(default=None, description="None: $LIGO_GROUP")
    accounting_group_user: _Account | None = Field(default=None, description="None: $LIGO_USERNAME")
    container_image: _Value | None = Field(default=None, description="a .sif file, docker://... or osdf://... with this project in it")
    requirements: _Expression | None = Field(default=None, description="ClassAd expression that nodes must fulfil")
    disk_gb: float = Field(default=2.0, gt=0, description="disk for steps that do not say what they need")
    gpu: HTCondorGpu = HTCondorGpu()
    oauth_services: list[_Word] = Field(default=[], description="tokens that jobs get, as in [scitokens]")
    commands: dict[_Command, _Value] = Field(default={}, description="further submit commands, such as +WantIGWN: 'true'")
    shared_disk: bool = Field(
        default=True,
        description="nodes see the run directory; false: the step's files are transferred, and the store has to be on S3",
    )
    command: list[str] = Field(default=[], description="words in front of condor_submit, condor_q, ...: [ssh, login]")
    python: str | None = Field(default=None, description="interpreter on the nodes or in the container; None: the one that submits")
    setup: str = Field(default="", description="shell lines that every job runs before Python; one that fails ends it")
    signal_seconds: int = Field(default=120, ge=0, description="how long before its time limit a step is interrupted; 0: not")


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
    htcondor: HTCondorSite = HTCondorSite()
    triton: TritonSite = TritonSite()

    @model_validator(mode="after")
    def _reaches_store(self) -> SiteConfig:
        if "htcondor" in self.executor.backends and not self.htcondor.shared_disk and "://" not in self.store.root:
            raise ValueError(
                f"htcondor.shared_disk: false, but nodes then do not see store.root = {self.store.root!r}: expected s3://bucket/prefix"
            )
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
        lines = (f"{file}: {'.'.join(map(str, x['loc']))} = {x['input']!r}: {x['msg']}" for x in e.errors())
        raise ConfigError("\n".join(lines)) from None


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
