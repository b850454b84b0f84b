"""`aframe doctor`: what of this machine or run directory would get in the way."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console

from aframe_assets.config_load import ConfigError
from aframe_ops.executor.budget import machine_cores, machine_memory_gb
from aframe_ops.run_directory import RunDirectory
from aframe_ops.site import SiteConfig

NEEDED = ("dagster", "dagster-webserver", "torch", "lightning", "ml4gw", "gwpy", "bilby", "h5py", "onnxruntime", "pydantic")
_NETWORK = {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "fuse.sshfs", "afs", "9p"}
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


class Finding(NamedTuple):
    level: Literal["ok", "warning", "error"]
    text: str


def examine(directory: Path | None, console: Console) -> bool:
    """Prints every finding; whether none is an error."""
    good = True
    for finding in findings(directory):
        mark, style = _MARKS[finding.level]
        console.print(f"[{style}]{mark}[/{style}] {finding.text}", soft_wrap=True)
        good &= finding.level != "error"
    return good


def findings(directory: Path | None) -> Iterator[Finding]:
    """What is found, of the machine and then of the run directory."""
    yield from _python()
    yield from _machine()
    try:
        run = RunDirectory.find(directory)
    except ConfigError as e:
        yield Finding("error" if directory else "warning", str(e))
        return
    yield from _run(run)


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield Finding("ok" if good else "error", f"Python {version}" + ("" if good else "; expected 3.11, 3.12 or 3.13"))
    found, missing = [], []
    for name in NEEDED:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("ok", ", ".join(found))
    if missing:
        yield Finding("error", f"not installed: {', '.join(missing)}; install this project again")


def _machine() -> Iterator[Finding]:
    memory = machine_memory_gb()
    yield Finding("ok" if memory >= 4 else "warning", f"{machine_cores()} cores, {memory:.1f} GB of memory")
    gpus = sorted(p.name for p in Path("/proc/driver/nvidia/gpus").glob("*")) if Path("/proc/driver/nvidia/gpus").exists() else []
    if gpus:
        yield Finding("ok", f"{len(gpus)} NVIDIA GPU{'s' * (len(gpus) > 1)}: {', '.join(gpus)}")
    else:
        yield Finding("ok", "no NVIDIA GPU: networks train and run on the cores")


def _run(run: RunDirectory) -> Iterator[Finding]:
    try:
        config, site = run.config(), run.site()
    except ConfigError as e:
        for line in str(e).splitlines():
            yield Finding("error", line)
        return
    yield Finding("ok", f"experiment {config.name} (preset {config.preset}) in {run.path}")
    yield from _database(run, site)
    free = shutil.disk_usage(run.path).free / 1e9
    yield Finding("ok" if free > 10 else "warning" if free > 1 else "error", f"{free:.1f} GB free at {run.path}")
    yield from _store(site)
    if config.inference.mode == "triton":
        yield _server(site)
    cores = site.executor.cores or machine_cores()
    if cores > machine_cores():
        yield Finding("warning", f"site.yaml: executor.cores = {cores}, but this process may use {machine_cores()}")


def _database(run: RunDirectory, site: SiteConfig) -> Iterator[Finding]:
    home = run.dagster_home if run.dagster_home.exists() else run.path
    kind = filesystem(home)
    if kind in _NETWORK:
        remote = site.executor.backends != ("local",)
        text = f"DAGSTER_HOME {home} is on {kind}, where SQLite may lose or lock its database"
        yield Finding(
            "error" if remote else "warning",
            text + ("; steps on other machines need PostgreSQL" if remote else "; use a local disk if you can"),
        )
    else:
        yield Finding("ok", f"DAGSTER_HOME {home} on {kind or 'a local disk'}")


def _store(site: SiteConfig) -> Iterator[Finding]:
    from aframe_assets.store.opening import open_store

    name = f"doctor-{os.getpid()}"
    try:
        store = open_store(site.store_url, cache_dir=site.cache_dir)
        store.put_value(name, {"pid": os.getpid()})
        good = store.get_value(name) == {"pid": os.getpid()}
        store.drop_values(f"{name}.json")
    except Exception as e:  # whatever is wrong with a store is what the user wants to know
        yield Finding("error", f"store {site.store_url}: cannot be written: {e}")
        return
    yield Finding(
        "ok" if good else "error",
        f"store {site.store_url}: " + ("written and read back" if good else "what was written is not what was read"),
    )


def _server(site: SiteConfig) -> Finding:
    from aframe_ops.serving.errors import ServingError
    from aframe_ops.serving.provider import require_server

    try:
        return Finding("ok", require_server(site.triton))
    except ServingError as e:
        return Finding("error", str(e))


def filesystem(path: Path) -> str:
    """Type of the file system that holds `path`; empty when it cannot be told."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    best, kind = "", ""
    resolved = str(path.resolve())
    for _, point, fs, *_ in mounts:
        point = point.replace("\\040", " ")
        if (resolved == point or resolved.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, fs
    return kind
