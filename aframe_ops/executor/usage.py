"""What a job used, beside what it asked for, in words and numbers for the user."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import dagster as dg

from aframe_ops.executor.base import Request
from aframe_ops.executor.scheduler import Usage


def described(request: Request) -> str:
    """What a job asks for, in words."""
    gpus = f"{request.gpus} GPU{'s' * (request.gpus > 1)}, " if request.gpus else ""
    return f"{request.cpus} core{'s' * (request.cpus > 1)}, {gpus}{request.memory_gb:.3g} GB, {request.time_min} min"


def written_usage(path: Path) -> Usage | None:
    """What a job has written about itself; None if it has not."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Usage(**json.loads(path.read_text()))
    return None


def describe_usage(request: Request, usage: Usage) -> tuple[str, dict[str, dg.MetadataValue]]:
    """`usage` beside what was asked for: in words, and as metadata (efficiencies from 0 to 1, GB, seconds); empty for nothing known."""
    words: list[str] = []
    metadata: dict[str, dg.MetadataValue] = {}
    if usage.cpu_s is not None and usage.elapsed_s:
        efficiency = usage.cpu_s / (usage.elapsed_s * request.cpus)
        words.append(f"{efficiency:.0%} of {request.cpus} core{'s' * (request.cpus > 1)} for {usage.elapsed_s:.0f} s")
        metadata["cpu efficiency"] = dg.MetadataValue.float(round(float(efficiency), 4))
        metadata["elapsed (s)"] = dg.MetadataValue.float(round(float(usage.elapsed_s), 1))
    if usage.max_memory_gb is not None:
        words.append(f"{usage.max_memory_gb:.3g} of {request.memory_gb:.3g} GB")
        metadata["max memory (GB)"] = dg.MetadataValue.float(round(float(usage.max_memory_gb), 4))
    if usage.host and words:
        metadata["host"] = dg.MetadataValue.text(usage.host)
    return ", ".join(words), metadata
