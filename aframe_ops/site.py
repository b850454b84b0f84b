"""Where an experiment runs and keeps its results: ``site.yaml`` of a run directory.

Science is in ``aframe.yaml``; nothing here changes a result. Paths are relative to the directory of the file.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from aframe_assets.config_load import ConfigError
from aframe_assets.store.split import MARK
from aframe_ops.sites.automation import AutomationSite
from aframe_ops.sites.htcondor import HTCondorSite
from aframe_ops.sites.kubernetes import KubernetesSite
from aframe_ops.sites.part import Part
from aframe_ops.sites.slurm import SlurmSite

Backend = Literal["local", "slurm", "htcondor", "kubernetes"]
"""Names of the places where steps can run."""

Transport = Literal["direct", "detached"]
"""How a batch job reports: to Dagster's database itself, or by a file that the run worker reads."""


class StoreSite(Part):
    """Where artifacts are."""

    root: str = Field(default="store", min_length=1, description="folder, file:// URL or s3://bucket/prefix")
    training: str | None = Field(
        default=None,
        min_length=1,
        description="s3://bucket/prefix (or folder) of the networks and all that they are made from; None: in root",
    )
    cache_dir: str | None = Field(default=None, description="local cache of a remote store; None lets the store choose")
    cache_gb: float = Field(default=20.0, gt=0, description="size cap of that cache")

    @model_validator(mode="after")
    def _without_keys(self) -> StoreSite:
        if any("://" in place and "@" in place for place in (self.root, self.training or "")):
            raise ValueError("expected an address without user and keys: S3's are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or a profile")
        return self


class ExecutorSite(Part):
    """Where steps run."""

    backend: Backend = Field(default="local", description="where a step runs that no tag and no route sends elsewhere")
    routes: dict[str, Backend] = Field(
        default={},
        description="backend by asset or op name (* and ? allowed), or by the word gpus for steps that ask for a GPU; the first that fits",
    )
    max_concurrent: int | None = Field(default=None, ge=1, description="steps at once; None: as many as fit")
    cores: int | None = Field(default=None, ge=1, description="cores for all local steps together; None: all of them")
    memory_gb: float | None = Field(default=None, gt=0, description="memory for all local steps together; None: all of it")
    gpus: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9._:/-]+$", coerce_numbers_to_str=True)]] | None = Field(
        default=None, description="GPUs for local steps, as CUDA_VISIBLE_DEVICES names them; None: all of this machine, [] none"
    )
    steps_per_gpu: int = Field(default=1, ge=1, description="so many local steps may have the same GPU")
    fork: bool = Field(default=True, description="start local steps from one process that has the definitions loaded")
    poll_seconds: float = Field(default=10, ge=0.2, description="how often a batch system is asked about all jobs of a run")
    grace_seconds: float = Field(default=15, ge=0, description="from 'its job has ended' to 'the step failed', for results on their way")
    max_memory_gb: float | None = Field(default=None, gt=0, description="most that a batch job asks for, however often it is tried again")
    max_time_min: int | None = Field(default=None, ge=1, description="longest time limit of a batch job")
    env: list[Annotated[str, Field(pattern=r"^[A-Za-z_*?][A-Za-z0-9_*?]*$")]] = Field(
        default=[],
        description="variables (* and ? allowed) that batch jobs get besides AFRAME_*, AWS_*, LIGO_*, PYTHONPATH and two of Dagster's",
    )

    transport: Transport = Field(
        default="direct",
        description="direct: batch jobs reach Dagster's database; detached: they need no route to it, and report by a file",
    )
    transports: dict[Literal["slurm", "htcondor", "kubernetes"], Transport] = Field(
        default={}, description="the same by backend, before `transport`"
    )

    def transport_of(self, backend: str) -> Transport:
        """How jobs of `backend` report."""
        return next((found for name, found in self.transports.items() if name == backend), self.transport)

    @property
    def backends(self) -> tuple[str, ...]:
        """The default and all that routes lead to."""
        return tuple(dict.fromkeys([self.backend, *self.routes.values()]))


class TritonSite(Part):
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


class SiteConfig(Part):
    """A site. `directory` is the run directory that relative paths are relative to."""

    directory: Path
    store: StoreSite = StoreSite()
    executor: ExecutorSite = ExecutorSite()
    slurm: SlurmSite = SlurmSite()
    htcondor: HTCondorSite = HTCondorSite()
    kubernetes: KubernetesSite = KubernetesSite()
    triton: TritonSite = TritonSite()
    automation: AutomationSite = AutomationSite()

    @model_validator(mode="after")
    def _has_image(self) -> SiteConfig:
        if "kubernetes" in self.executor.backends and not (self.kubernetes.image or self.kubernetes.images):
            raise ValueError("executor sends steps to kubernetes, and kubernetes.image is not set: name an image with this project in it")
        return self

    @model_validator(mode="after")
    def _reaches_store(self) -> SiteConfig:
        if "htcondor" in self.executor.backends and not self.htcondor.shared_disk and "://" not in (self.store.training or self.store.root):
            raise ValueError(
                f"htcondor.shared_disk: false, but nodes then do not see store.root = {self.store.root!r}: expected s3://bucket/prefix"
            )
        return self

    @property
    def store_url(self) -> str:
        """The store's address, absolute."""
        root = self.store.root
        places = [root] if self.store.training is None else [root, self.store.training]
        return MARK.join(place if "://" in place else str((self.directory / place).resolve()) for place in places)

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
    except (OSError, UnicodeDecodeError) as e:
        why = getattr(e, "strerror", None) or e
        raise ConfigError(f"{file}: cannot be read ({why}); expected a site file, as written by `aframe init`") from None
    try:
        data = SiteConfig.model_validate_json(text) if file.suffix == ".json" else yaml.load(text, SiteLoader) or {}
        if isinstance(data, SiteConfig):
            return data
        if not isinstance(data, dict):
            raise ConfigError(f"{file}: expected a mapping of keys to values, found {type(data).__name__}")
        if "directory" in data:
            raise ConfigError(f"{file}: directory: is the folder of this file and cannot be set")
        # a section whose lines are all comments is none
        data = {key: value for key, value in data.items() if value is not None}
        return SiteConfig.model_validate({**data, "directory": file.resolve().parent})
    except yaml.YAMLError as e:
        raise ConfigError(f"{file}: is not YAML: {e}") from None
    except ValidationError as e:
        lines = (f"{file}: {'.'.join(map(str, x['loc']))} = {_shown(x['input'])}: {_meaning(x)}" for x in e.errors())
        # the password of an address is nobody else's business
        raise ConfigError(re.sub(r"://\S*@", "://***@", "\n".join(lines))) from None


class SiteLoader(yaml.SafeLoader):
    """YAML in which a key may not stand twice, as the last one would count and the first be a riddle, and `on` as a key is a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:bool":
                key.tag = "tag:yaml.org,2002:str"
        keys = [key.value for key, _ in node.value]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)}: stands there more than once", node.start_mark)
        return super().construct_mapping(node, deep)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}..."


def _meaning(error: Mapping[str, Any]) -> str:
    """What is wrong and what was expected, of one error of pydantic."""
    kind, loc = error["type"], error["loc"]
    if kind == "extra_forbidden":
        keys = _keys(loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), keys, n=1)
        return "unknown key; " + (f"did you mean {near[0]}?" if near else f"expected one of {', '.join(keys)}" if keys else "take it out")
    if kind in ("model_type", "dict_type"):
        return "expected keys with values below it"
    if kind == "list_type":
        return "expected a list, as in [a, b]"
    if kind == "string_type":
        return "expected text; put it in quotes"
    if kind == "string_pattern_mismatch":
        return f"expected text of the form {error['ctx']['pattern']}"
    return str(error["msg"]).removeprefix("Value error, ")


def _keys(loc: Sequence[Any]) -> list[str]:
    """The keys that there are in the section at `loc`; none where that is no section."""
    found: Any = SiteConfig
    for name in loc:
        field = found.model_fields.get(name) if isinstance(found, type) and issubclass(found, Part) else None
        found = None if field is None else field.annotation
    return [k for k in found.model_fields if k != "directory"] if isinstance(found, type) and issubclass(found, Part) else []


def write_site(site: SiteConfig, folder: Path) -> Path:
    """Writes `site` to ``folder/site-{hash}.json`` (atomically; once) and returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = site.model_dump_json(indent=1)
    path = (folder / f"site-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json").resolve()
    if not path.exists():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        # its lines of shell may hold what others are not to read
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
            f.write(text)
        os.replace(temporary, path)
    return path
