"""What a job of a step asks for, is called and takes along, on every batch system."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from aframe_ops.executor.base import Attempt, Request
from aframe_ops.executor.scheduler import BatchJob

MEMORY_PER_ATTEMPT = 1.5
"""Each attempt at a step may use this much more memory than the one before it."""

GROWTHS = 3
"""After so many attempts it stays: a training may be tried again many times because it had to make room."""

QUICK_GB = 2.0
"""Memory of a step that only looks up what is complete."""

PASSED = ("AFRAME_*", "AWS_*", "DAGSTER_EVENT_BATCH_SIZE", "DAGSTER_HOME", "LIGO_*", "PYTHONPATH")
"""Variables of the submitting environment that every job gets; batch jobs start with none of it."""


@dataclass(frozen=True)
class BatchOptions:
    """What a site says about all its batch systems; `env` are names or patterns, as in `PASSED`."""

    poll_s: float = 10.0
    grace_s: float = 15.0
    patience_s: float = 15.0
    max_memory_gb: float | None = None
    max_time_min: int | None = None
    env: Sequence[str] = ()


def scaled(request: Request, number: int, options: BatchOptions) -> Request:
    """What attempt `number` (from 0) asks for: memory grows from one to the next, and the site's caps hold."""
    memory = request.memory_gb * MEMORY_PER_ATTEMPT ** min(number, GROWTHS)
    minutes = request.time_min
    return request._replace(
        memory_gb=min(memory, options.max_memory_gb or memory),
        time_min=min(minutes, options.max_time_min or minutes),
    )


def small(job: BatchJob) -> BatchJob:
    """`job` with the request of a step that only reads what is complete, so that it need not queue for what it would have used."""
    memory = min(job.request.memory_gb, QUICK_GB * MEMORY_PER_ATTEMPT ** min(job.number, GROWTHS))
    return replace(job, request=job.request._replace(cpus=1, gpus=0, gpu_memory_gb=0.0, memory_gb=memory))


def job_name(attempt: Attempt) -> str:
    """A name for the user's eyes that no other attempt of any run has."""
    digest = hashlib.sha256(repr(tuple(attempt)).encode()).hexdigest()[:12]
    return f"{attempt.filename[:50].lstrip('.-')}-{digest}"


def passed_environment(patterns: Iterable[str]) -> dict[str, str]:
    """The variables of this process whose names match one of `patterns`."""
    patterns = tuple(patterns)
    return {k: v for k, v in os.environ.items() if any(fnmatch.fnmatchcase(k, p) for p in patterns)}
