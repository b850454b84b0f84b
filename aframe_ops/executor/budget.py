"""Cores, memory and GPUs of this machine, and who has them."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
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


def machine_gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; what that variable says, else what nvidia-smi lists."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split()


class Budget:
    """Hands out cores, memory and GPUs to the steps of a run. A step that asks for more than there is runs alone.

    Args:
        cores, memory_gb: what all running steps together may use.
        gpus: names of the GPUs, or what finds them, which may take long: it is asked once, when a step wants one.
        steps_per_gpu: so many steps may have the same one.
    """

    def __init__(self, cores: int, memory_gb: float, gpus: Sequence[str] | Callable[[], Sequence[str]] = (), steps_per_gpu: int = 1):
        self.cores, self.memory_gb = cores, memory_gb
        self._gpus, self._steps_per_gpu = gpus, steps_per_gpu
        self._held: dict[Attempt, tuple[Request, tuple[str, ...]]] = {}

    @cached_property
    def gpus(self) -> list[str]:
        return list(self._gpus() if callable(self._gpus) else self._gpus)

    def share(self, request: Request) -> Request:
        """What a step with `request` really gets."""
        return request._replace(
            cpus=min(request.cpus, self.cores),
            memory_gb=min(request.memory_gb, self.memory_gb),
            gpus=min(request.gpus, len(self.gpus)) if request.gpus else 0,
        )

    def take(self, attempt: Attempt, request: Request) -> tuple[str, ...] | None:
        """Gives `attempt` its share if it is free now: the names of its GPUs, the least used ones, in order; None if it is not."""
        share = self.share(request)
        cores = sum(r.cpus for r, _ in self._held.values()) + share.cpus
        memory = sum(r.memory_gb for r, _ in self._held.values()) + share.memory_gb
        used = Counter(name for _, names in self._held.values() for name in names)
        free = sorted((g for g in self.gpus if used[g] < self._steps_per_gpu), key=lambda g: used[g]) if share.gpus else []
        if cores > self.cores or memory > self.memory_gb + 1e-9 or share.gpus > len(free):
            return None
        # in the machine's order: which GPU is a step's first must not depend on what else runs
        names = tuple(sorted(free[: share.gpus], key=lambda g: self.gpus.index(g)))
        self._held[attempt] = share, names
        return names

    def give_back(self, attempt: Attempt) -> None:
        self._held.pop(attempt, None)
