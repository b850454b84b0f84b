"""What a pod's status, or the lack of a pod, says about the job of a step, in words."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from typing import Any

from aframe_ops.executor.base import Request
from aframe_ops.executor.kubernetes_init import INIT_CONTAINER
from aframe_ops.executor.kubernetes_manifest import CONTAINER

BROKEN = {
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImageInspectError",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
}
"""Reasons of a waiting container that seldom go away by themselves."""

_NEVER_RAN = BROKEN | {"ContainerCannotRun", "StartError"}
_DISRUPTED = {
    "DeletionByPodGC": "its node is gone",
    "DeletionByTaintManager": "its node was taken out of service",
    "EvictionByEvictionAPI": "its node was drained",
    "PreemptionByScheduler": "it had to make room for a pod with a higher priority",
    "TerminationByKubelet": "its node was short of something, or shut down",
}


def phase(pod: Mapping[str, Any]) -> str:
    """``Pending``, ``Running``, ``Succeeded`` or ``Failed``; a pod whose node is gone has failed."""
    status = pod.get("status", {})
    gone = pod["metadata"].get("deletionTimestamp") and status.get("reason") == "NodeLost"
    return "Failed" if gone else status.get("phase", "Pending")


def waiting(pod: Mapping[str, Any]) -> tuple[str, str]:
    """Why a pending pod has not started: Kubernetes' one word for it, and its sentence; empty for nothing in particular."""
    status = pod.get("status", {})
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        wait = container.get("state", {}).get("waiting")
        if wait and wait.get("reason"):
            return wait["reason"], _sentence(wait["reason"], wait.get("message"))
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            reason = condition.get("reason", "Unschedulable")
            return reason, _sentence(reason, condition.get("message"))
    return "", ""


def ending(pod: Mapping[str, Any], request: Request) -> str:
    """What became of a pod that is over, as `JobState.words`."""
    status = pod.get("status", {})
    reason, message = status.get("reason", ""), status.get("message", "")
    if reason == "DeadlineExceeded":
        return f"was killed at its time limit of {request.time_min} min (DeadlineExceeded)"
    if reason == "NodeLost":
        return "was lost with its node (NodeLost)"
    disrupted = next((c for c in status.get("conditions") or () if c["type"] == "DisruptionTarget" and c["status"] == "True"), None)
    if reason == "Evicted":
        return f"was evicted from its node ({_sentence(reason, message)})"
    if (code := _terminated(status.get("initContainerStatuses"), INIT_CONTAINER)).get("exitCode"):
        said = " ".join((code.get("message") or "").split())[-1000:]
        return f"could not get the code of this run ({said or 'exit code {}'.format(code['exitCode'])})"
    ended = _terminated(status.get("containerStatuses"), CONTAINER)
    if ended.get("reason") == "OOMKilled":
        had = f"; it had {request.memory_gb:.3g} GB" if request.memory_gb else ""
        return f"was killed because memory ran out (OOMKilled){had}"
    if disrupted:
        why = disrupted.get("reason", "")
        return f"was stopped because {_DISRUPTED.get(why) or _sentence(why, disrupted.get('message'))}"
    if "exitCode" in ended:
        return _exit(ended["exitCode"], ended.get("message") if ended.get("reason") in _NEVER_RAN else None)
    if reason:
        return f"failed ({_sentence(reason, message)})"
    return "ended with exit code 0 without reporting a result" if status.get("phase") == "Succeeded" else "failed for a reason unknown"


def failed(job: Mapping[str, Any], request: Request) -> str | None:
    """Why the Job itself is over, as `JobState.words`; None while it is not."""
    for condition in job.get("status", {}).get("conditions") or ():
        if condition["status"] != "True":
            continue
        if condition["type"] == "Complete":
            return "ended with exit code 0 without reporting a result"
        if condition["type"] == "Failed":
            if condition.get("reason") == "DeadlineExceeded":
                return f"was killed at its time limit of {request.time_min} min (DeadlineExceeded)"
            if condition.get("reason") == "BackoffLimitExceeded":
                return "failed, and its pod was deleted before anyone could look at it"
            return f"failed ({_sentence(condition.get('reason'), condition.get('message'))})"
    return None


def _terminated(containers: Iterable[Mapping[str, Any]] | None, name: str) -> Mapping[str, Any]:
    found = (container for container in containers or () if container["name"] == name)
    return next((container.get("state", {}).get("terminated") or {} for container in found), {})


def _exit(code: int, message: str | None) -> str:
    number = code - 128
    if message:
        return f"could not start (exit code {code}: {message})"
    if number in signal.valid_signals() and number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGTERM):
        by_hand = " (by hand, or because memory ran out)" if number == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(number).name}{by_hand}"
    return f"ended with exit code {code} without reporting a result"


def _sentence(reason: str | None, message: str | None) -> str:
    return ": ".join(filter(None, (reason, (message or "").strip()[:500])))
