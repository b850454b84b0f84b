"""Cores and memory of this machine, and who has them."""

from __future__ import annotations

import os
from pathlib import Path

from aframe_ops.executor.base import Attempt, Request


def machine_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_memory_gb() -> float:
    """Memory that this process may use, GB (1e9 bytes): of the machine, or of its control group if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return total / 1e9


class Budget:
    """Hands out cores and memory to the steps of a run. A step that asks for more than there is runs alone."""

    def __init__(self, cores: int, memory_gb: float):
        self.cores, self.memory_gb = cores, memory_gb
        self._held: dict[Attempt, Request] = {}

    def share(self, request: Request) -> Request:
        """What a step with `request` really gets."""
        return request._replace(cpus=min(request.cpus, self.cores), memory_gb=min(request.memory_gb, self.memory_gb))

    def take(self, attempt: Attempt, request: Request) -> bool:
        """Gives `attempt` its share if it is free now."""
        share = self.share(request)
        cores = sum(r.cpus for r in self._held.values()) + share.cpus
        memory = sum(r.memory_gb for r in self._held.values()) + share.memory_gb
        if cores > self.cores or memory > self.memory_gb + 1e-9:
            return False
        self._held[attempt] = share
        return True

    def give_back(self, attempt: Attempt) -> None:
        self._held.pop(attempt, None)
