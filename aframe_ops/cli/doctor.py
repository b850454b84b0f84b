"""`aframe doctor`: what of this machine, a run directory and the batch systems that it uses would get in the way."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rich.console import Console
from rich.text import Text

from aframe_assets.config_load import ConfigError
from aframe_ops.cli.doctor_database import LOOPBACK, check_database
from aframe_ops.cli.doctor_findings import LIMIT_S, Finding, blotted, secrets_of, within
from aframe_ops.executor.budget import machine_cores, machine_memory_gb
from aframe_ops.run_directory import RunDirectory
from aframe_ops.site import SiteConfig

if TYPE_CHECKING:
    from aframe_ops.cli.doctor_steps import Need

NEEDED = ("dagster", "dagster-webserver", "torch", "lightning", "ml4gw", "gwpy", "bilby", "h5py", "onnxruntime", "pydantic")
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


def examine(directory: Path | None, console: Console, *, as_json: bool = False, limit_s: float = LIMIT_S) -> bool:
    """Prints every finding; whether none is an error.

    Args:
        limit_s: longest time of one check, seconds.

    Raises:
        ConfigError: there is no run directory at `directory`, or its experiment or site cannot be read.
    """
    found = []
    hidden = secrets_of(os.environ)
    for level, text, check in findings(directory, limit_s):
        found.append(Finding(level, blotted(text, hidden), check))
        if not as_json:
            mark, style = _MARKS[level]
            console.print(Text.assemble((mark, style), " ", found[-1].text), soft_wrap=True)
    good = all(f.level != "error" for f in found)
    if as_json:
        console.file.write(json.dumps({"ok": good, "findings": [f._asdict() for f in found]}, indent=1) + "\n")
    return good


def findings(directory: Path | None, limit_s: float = LIMIT_S) -> Iterator[Finding]:
    """What is found, of the machine and then of the run directory. Raises what `examine` does."""
    yield from _python()
    yield from _machine()
    try:
        run = RunDirectory.find(directory)
    except ConfigError as e:
        if directory is not None:
            raise
        yield Finding("warning", str(e), "run directory")
        return
    yield from _run(run, limit_s)


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Finding("ok" if good else "error", f"Python {version}" + ("" if good else "; expected 3.11, 3.12 or 3.13"), "python")
    found, missing = [], []
    for name in NEEDED:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("ok", ", ".join(found), "packages")
    if missing:
        yield Finding("error", f"not installed: {', '.join(missing)}; install this project again", "packages")


def _machine() -> Iterator[Finding]:
    memory = machine_memory_gb()
    yield Finding("ok" if memory >= 4 else "warning", f"{machine_cores()} cores, {memory:.1f} GB of memory", "machine")
    gpus = _own_gpus()
    if gpus:
        yield Finding("ok", f"{len(gpus)} NVIDIA GPU{'s' * (len(gpus) > 1)}: {', '.join(gpus)}", "machine")
    else:
        yield Finding("ok", "no NVIDIA GPU: networks train and run on the cores", "machine")


def _own_gpus() -> list[str]:
    return sorted(p.name for p in Path("/proc/driver/nvidia/gpus").glob("*")) if Path("/proc/driver/nvidia/gpus").exists() else []


def _run(run: RunDirectory, limit_s: float) -> Iterator[Finding]:
    config, site = run.config(), run.site()
    yield Finding("ok", f"experiment {config.name} (preset {config.preset}) in {run.path}", "experiment")
    free = shutil.disk_usage(run.path).free / 1e9
    yield Finding("ok" if free > 10 else "warning" if free > 1 else "error", f"{free:.1f} GB free at {run.path}", "disk")
    from aframe_ops.cli.doctor_steps import needs

    wanted = needs(config, site)
    remote = _remote(site, limit_s)
    yield from within(limit_s, "database", lambda: _database(run, site, remote))
    yield from within(limit_s, "store", lambda: _store(site, remote))
    yield from _local(site, wanted.get("local", []))
    for backend in dict.fromkeys([*site.executor.backends, *wanted]):
        if backend in _BACKENDS:
            site.logs.mkdir(exist_ok=True)
            # here, and not in the check, which may be killed
            with tempfile.TemporaryDirectory(prefix="doctor-", dir=site.logs) as folder:
                yield from within(limit_s, backend, lambda b=backend, f=folder: _backend(b, site, wanted.get(b, []), Path(f)))
    if config.inference.mode == "triton":
        yield from within(limit_s, "triton", lambda: [_server(site)])


def _database(run: RunDirectory, site: SiteConfig, remote: Sequence[str]) -> Iterator[Finding]:
    os.environ.update(run.variables)  # of the check's own process
    yield from check_database(run, site, remote)


def _remote(site: SiteConfig, limit_s: float) -> tuple[str, ...]:
    """Backends whose jobs run on other machines, as far as is known."""
    out = []
    for name in site.executor.backends:
        if name != "local":
            answer = [f.text for f in within(limit_s, name, lambda n=name: [Finding("ok", str(_runs_here(n, site)))])]
            if answer != ["True"]:
                out.append(name)
    return tuple(out)


def _runs_here(backend: str, site: SiteConfig) -> bool | None:
    if backend == "slurm":
        from aframe_ops.cli.doctor_slurm import runs_here

        return runs_here(site.slurm)
    if backend == "htcondor":
        from aframe_ops.cli.doctor_htcondor import runs_here as condor_runs_here

        return condor_runs_here(site.htcondor)
    return False  # a pod has another network and another disk, wherever it is


def _local(site: SiteConfig, wanted: Sequence[Need]) -> Iterator[Finding]:
    cores = site.executor.cores or machine_cores()
    if cores > machine_cores():
        yield Finding("warning", f"site.yaml: executor.cores = {cores}, but this process may use {machine_cores()}", "local")
    memory = site.executor.memory_gb or machine_memory_gb()
    for need in wanted:
        if need.request.gpus > len(_own_gpus()):
            yield Finding(
                "warning",
                f"local: {need}, and this machine has {len(_own_gpus())}: it runs on the cores, or route it with executor.routes",
                "local",
            )
        if need.request.memory_gb > memory:
            yield Finding("warning", f"local: {need} is more than the {memory:.3g} GB here; it runs alone, and may not fit", "local")


def _slurm(site: SiteConfig, wanted: Sequence[Need], folder: Path) -> Iterable[Finding]:
    from aframe_ops.cli.doctor_slurm import check_slurm

    return check_slurm(site.slurm, wanted, folder)


def _htcondor(site: SiteConfig, wanted: Sequence[Need], folder: Path) -> Iterable[Finding]:
    from aframe_ops.cli.doctor_htcondor import check_htcondor

    return check_htcondor(site.htcondor, wanted, folder)


def _kubernetes(site: SiteConfig, wanted: Sequence[Need], folder: Path) -> Iterable[Finding]:
    from aframe_ops.cli.doctor_kubernetes import check_kubernetes

    return check_kubernetes(site.kubernetes, wanted, folder)


_BACKENDS: dict[str, Callable[[SiteConfig, Sequence[Need], Path], Iterable[Finding]]] = {
    "slurm": _slurm,
    "htcondor": _htcondor,
    "kubernetes": _kubernetes,
}


def _backend(name: str, site: SiteConfig, wanted: Sequence[Need], folder: Path) -> Iterator[Finding]:
    from aframe_ops.cli.doctor_steps import StopChecking

    if not wanted:
        yield Finding("warning", f"{name}: no step of this experiment goes there; see executor.routes")
        return
    with contextlib.suppress(StopChecking):
        yield from _BACKENDS[name](site, wanted, folder)


def _store(site: SiteConfig, remote: Sequence[str]) -> Iterator[Finding]:
    from aframe_assets.store.errors import StoreError
    from aframe_assets.store.opening import open_store, require_writable

    try:
        require_writable(open_store(site.store_url, cache_dir=site.cache_dir))
    except StoreError as e:
        yield Finding("error", str(e))
        return
    yield Finding("ok", f"store {site.store_url}: written and read back")
    if remote:
        yield from _store_of_jobs(site, remote)


def _store_of_jobs(site: SiteConfig, remote: Sequence[str]) -> Iterator[Finding]:
    """What jobs need to reach the store; whether they do, only a job can tell."""
    jobs = f"jobs on {', '.join(remote)}"
    if "://" in site.store_url:
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        if urlsplit(endpoint).hostname in LOOPBACK:
            yield Finding(
                "error", f"store: AWS_ENDPOINT_URL = {endpoint} is on each node the node itself; {jobs} need an address that they reach"
            )
            return
        credentials = "AWS_ACCESS_KEY_ID" in os.environ or bool(site.kubernetes.secrets)
        profile = "" if credentials else "; no AWS_ACCESS_KEY_ID is set here, so they need a profile or role of their own"
        yield Finding("ok", f"store: {jobs} need a route to {endpoint or 'S3'} and get the AWS_* variables of this environment{profile}")
        return
    seen = [v.path for v in site.kubernetes.volumes if v.claim and Path(site.store_url).is_relative_to(v.path)]
    if "kubernetes" in remote and not seen:
        yield Finding(
            "error", f"store: pods do not see {site.store_url}: mount it with kubernetes.volumes, or set store.root to s3://bucket/prefix"
        )
    others = [name for name in remote if name != "kubernetes"]
    if others:
        yield Finding("ok", f"store: nodes of {', '.join(others)} must see {site.store_url} under this very path, and may write there")


def _server(site: SiteConfig) -> Finding:
    from aframe_ops.serving.errors import ServingError
    from aframe_ops.serving.provider import require_server

    try:
        return Finding("ok", require_server(site.triton))
    except ServingError as e:
        return Finding("error", str(e))
