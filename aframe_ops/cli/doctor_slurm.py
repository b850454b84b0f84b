"""Whether SLURM takes the jobs of an experiment, and has the GPUs for them."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from aframe_ops.cli.doctor_findings import Finding
from aframe_ops.cli.doctor_steps import Need, rehearsal, shown
from aframe_ops.executor.base import Request
from aframe_ops.executor.scheduler import Unreachable
from aframe_ops.executor.slurm import Slurm
from aframe_ops.sites.slurm import SlurmSite

_GPU = re.compile(r"\bgpu:(?:([A-Za-z0-9_.-]+):)?(\d+)")


def check_slurm(site: SlurmSite, needs: Sequence[Need], folder: Path) -> Iterator[Finding]:
    """Asks sbatch about a job of each kind, without queueing any (``--test-only``), and sinfo about GPUs.

    Args:
        folder: an empty one for the scripts, where the login node sees it.
    """
    slurm = Slurm(site)

    def show(need: Need) -> str:
        return re.sub(r"^Job \d+ ", "", slurm.rehearse(rehearsal(need, slurm.python, folder)))

    yield from shown("slurm", needs, show, _where(site))
    with contextlib.suppress(Unreachable):  # sbatch has just been asked, and that it does not answer has been said
        yield from _times(site, needs, slurm.time_limits())
    wanting = [n for n in needs if n.request.gpus]
    if wanting:
        try:
            yield from _gpus(site, wanting, slurm.nodes())
        except Unreachable as e:
            yield Finding("warning", f"slurm: GPUs could not be looked at: {e}")


def runs_here(site: SlurmSite) -> bool | None:
    """Whether every node of the cluster is this machine; None when it does not say."""
    try:
        hosts = {host for _, host, _ in Slurm(site).nodes()}
    except Unreachable:
        return None
    return hosts == {socket.gethostname().split(".")[0]} if hosts else None


def _times(site: SlurmSite, needs: Sequence[Need], limits: Mapping[str, float]) -> Iterator[Finding]:
    """sbatch takes a job that is longer than its partition allows, unless the cluster is told otherwise; it then waits for ever."""
    for need in needs:
        partition = (need.request.gpus and site.gpu.partition) or site.partition or "*"
        allowed = [limits[name] for name in partition.split(",") if name in limits]
        if allowed and need.request.time_min > max(allowed):
            where = "the default partition" if partition == "*" else f"partition {partition}"
            yield Finding(
                "error",
                f"slurm: a job of {need} would wait for ever: {where} allows {max(allowed):g} min; "
                f"set executor.max_time_min: {max(allowed):g}, or change slurm.partition",
            )


def _where(site: SlurmSite) -> str:
    if site.command:
        return f"it was asked through slurm.command = {site.command}; try `{' '.join(site.command)} sinfo` by hand"
    return "try `sinfo` by hand, or name a login node in slurm.command"


def _gpus(site: SlurmSite, needs: Sequence[Need], nodes: Sequence[tuple[str, str, str]]) -> Iterator[Finding]:
    partition = site.gpu.partition or site.partition
    inside = [node for node in nodes if partition is None or node[0] in partition.split(",")]
    where = f"partition {partition}" if partition else "any partition"
    if not inside:
        known = ", ".join(sorted({p for p, _, _ in nodes})) or "none"
        yield Finding("error", f"slurm: no node in {where}; partitions are {known}: change slurm.gpu.partition")
        return
    seen: dict[str, int] = {}
    for _, _, gres in inside:
        for kind, count in _GPU.findall(gres):
            seen[kind] = max(seen.get(kind, 0), int(count))
    if not seen:
        yield Finding("error", f"slurm: no node of {where} has a GPU (`sinfo -N -o '%P %G'`): change slurm.gpu.partition")
        return
    have = ", ".join(f"{kind or 'gpu'} ({count} a node)" for kind, count in sorted(seen.items()))
    types = site.gpu.types
    if absent := sorted(set(types) - set(seen)):
        level = "error" if len(absent) == len(types) else "warning"
        yield Finding(level, f"slurm: {where} has no GPU of type {', '.join(absent)}, but {have}: change slurm.gpu.types")
    for need in needs:
        yield _fit(need.request, need, types, seen, f"{where} has {have}")


def _fit(request: Request, need: Need, types: dict[str, float], seen: dict[str, int], have: str) -> Finding:
    fitting = [kind for kind in types or seen if seen.get(kind, 0) >= request.gpus and (types.get(kind, 1e9) >= request.gpu_memory_gb)]
    if not fitting:
        fix = "add larger types to slurm.gpu.types" if types else "change slurm.gpu.partition"
        return Finding("error", f"slurm: no GPUs for {need}: {have}; {fix}")
    if request.gpu_memory_gb and not types:
        return Finding(
            "warning",
            f"slurm: {have}; their memory is not known to SLURM, and {need} needs {request.gpu_memory_gb:g} GB: set slurm.gpu.types",
        )
    return Finding("ok", f"slurm: {have}; {', '.join(kind or 'gpu' for kind in fitting)} for {need}")
