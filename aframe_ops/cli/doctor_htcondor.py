"""Whether HTCondor takes the jobs of an experiment, and has slots and GPUs for them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aframe_ops.cli.doctor_findings import Finding
from aframe_ops.cli.doctor_steps import Need, rehearsal, shown
from aframe_ops.executor.base import Request, write_private
from aframe_ops.executor.htcondor import HTCondor
from aframe_ops.executor.scheduler import Unreachable
from aframe_ops.sites.htcondor import HTCondorSite


def check_htcondor(site: HTCondorSite, needs: Sequence[Need], folder: Path) -> Iterator[Finding]:
    """Has condor_submit read a description of each kind (``-dry-run``), and asks the schedd and the collector.

    Args:
        folder: an empty one for the descriptions, where the access point sees it.
    """
    pool = HTCondor(site)

    def show(need: Need) -> None:
        job = rehearsal(need, pool.python, folder)
        write_private(job.spec, "{}")
        pool.rehearse(job)

    yield from shown("htcondor", needs, show, _where(site))
    yield from _accounting(site)
    try:
        pool.find("aframe-doctor-nobody")
        yield Finding("ok", "htcondor: the schedd answers condor_q")
    except Unreachable as e:
        yield Finding("error", f"htcondor: the schedd does not answer condor_q: {e}; {_where(site)}")
        return
    try:
        slots = pool.slots()
    except Unreachable as e:
        yield Finding("warning", f"htcondor: condor_status says nothing, so slots and GPUs were not looked at: {e}")
        return
    if not slots:
        yield Finding("warning", "htcondor: condor_status shows no slot now; a pool that makes slots on demand may do so")
        return
    for need in needs:
        yield _fit(need, slots)


def runs_here(site: HTCondorSite) -> bool | None:
    """Whether every slot of the pool is on this machine; None when it does not say."""
    try:
        machines = {str(slot.get("Machine", "")).split(".")[0] for slot in HTCondor(site).slots()}
    except Unreachable:
        return None
    return machines == {socket.gethostname().split(".")[0]} if machines else None


def _where(site: HTCondorSite) -> str:
    if site.command:
        return f"it was asked through htcondor.command = {site.command}; try `{' '.join(site.command)} condor_q` by hand"
    return "try `condor_q` by hand, or name an access point in htcondor.command"


def _accounting(site: HTCondorSite) -> Iterator[Finding]:
    group = site.accounting_group or os.environ.get("LIGO_GROUP")
    user = site.accounting_group_user or os.environ.get("LIGO_USERNAME")
    if group or user:
        yield Finding(
            "ok",
            f"htcondor: jobs are accounted to {group or 'no group'}, user {user or 'not set'}; the schedd alone knows whether they exist",
        )
    else:
        yield Finding(
            "ok", "htcondor: no accounting group; a LIGO pool wants one: set htcondor.accounting_group, or LIGO_GROUP and LIGO_USERNAME"
        )


def _fit(need: Need, slots: Sequence[Mapping[str, Any]]) -> Finding:
    request = need.request
    large = [s for s in slots if _number(s, "TotalCpus") >= request.cpus and _number(s, "TotalMemory") * 2**20 >= request.memory_gb * 1e9]
    if not large:
        return Finding(
            "error", f"htcondor: no machine of the pool is large enough for {need}, which would wait for ever: lower executor.max_memory_gb"
        )
    if not request.gpus:
        return Finding("ok", f"htcondor: {len({s.get('Machine') for s in large})} machines are large enough for {need}")
    having = [s for s in large if _number(s, "TotalGPUs") >= request.gpus]
    fitting = [s for s in having if _enough(s, request)]
    seen = sorted({f"{s.get('GPUs_DeviceName', 'GPU')} ({_number(s, 'GPUs_GlobalMemoryMb') * 2**20 / 1e9:.3g} GB)" for s in having})
    if not fitting:
        return Finding(
            "error",
            f"htcondor: no machine has the GPUs of {need}; there are {', '.join(seen) or 'none'}: ask another pool, or less of the step",
        )
    return Finding("ok", f"htcondor: {', '.join(seen)} for {need}")


def _enough(slot: Mapping[str, Any], request: Request) -> bool:
    """Whether its GPUs have the memory, or do not say."""
    memory = _number(slot, "GPUs_GlobalMemoryMb")
    return not memory or memory * 2**20 >= request.gpu_memory_gb * 1e9


def _number(slot: Mapping[str, Any], name: str) -> float:
    value = slot.get(name, 0)
    return float(value) if isinstance(value, int | float) else 0.0
