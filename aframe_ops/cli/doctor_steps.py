"""What the steps of an experiment ask for, and where each would run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aframe_ops.cli.doctor_findings import Finding
from aframe_ops.executor.base import Attempt, Request
from aframe_ops.executor.batch_options import BatchOptions, job_name, scaled
from aframe_ops.executor.routing import BACKEND_TAG, named_by, routed
from aframe_ops.executor.scheduler import BatchJob, Refused, Unreachable

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_ops.site import SiteConfig


class StopChecking(Exception):
    """There is nobody to ask; it has been reported."""


class Need(NamedTuple):
    """Steps that ask for the same.

    Attributes:
        request: as a first attempt makes it, with the site's caps.
        steps: names of assets and ops.
    """

    request: Request
    steps: tuple[str, ...]

    def __str__(self) -> str:
        r = self.request
        gpus = f", {r.gpus} GPU{'s' * (r.gpus > 1)}" + (f" of {r.gpu_memory_gb:g} GB" if r.gpu_memory_gb else "") if r.gpus else ""
        names = ", ".join(self.steps[:3]) + (f" and {len(self.steps) - 3} more" if len(self.steps) > 3 else "")
        return f"{r.cpus} core{'s' * (r.cpus > 1)}, {r.memory_gb:g} GB{gpus}, {r.time_min} min ({names})"


def needs(config: Config, site: SiteConfig) -> dict[str, list[Need]]:
    """Backend -> what its steps ask for, the largest first. Every node of the graph is looked at."""
    from aframe_ops.definitions import build_defs

    job = build_defs(config, site).resolve_implicit_global_asset_job_def()
    found: dict[str, dict[Request, list[str]]] = {}
    options = BatchOptions(max_memory_gb=site.executor.max_memory_gb, max_time_min=site.executor.max_time_min)
    for handle in _leaves(job.graph):
        node = job.graph.get_node(handle)
        request = scaled(Request.of(node.tags), 0, options)
        step = str(handle)
        backend = node.tags.get(BACKEND_TAG) or routed(named_by(step), request, site.executor.backend, site.executor.routes)[0]
        found.setdefault(backend, {}).setdefault(request, []).append(step)
    return {b: [Need(r, tuple(s)) for r, s in sorted(wants.items(), key=_size, reverse=True)] for b, wants in found.items()}


def _leaves(graph, parent=None) -> Iterable:
    import dagster as dg
    from dagster._core.definitions.dependency import NodeHandle

    for node in graph.nodes:
        handle = NodeHandle(node.name, parent)
        if isinstance(node.definition, dg.GraphDefinition):
            yield from _leaves(node.definition, handle)
        else:
            yield handle


def _size(item: tuple[Request, Sequence[str]]) -> tuple[float, ...]:
    request = item[0]
    return (request.gpus, request.gpu_memory_gb, request.memory_gb, request.cpus, request.time_min)


def shown(name: str, needs: Sequence[Need], show: Callable[[Need], str | None], advice: str) -> Iterator[Finding]:
    """What a batch system says when it is shown a job of each kind. Nothing comes after an error that `advice` ends.

    Args:
        show: returns the scheduler's words; raises Refused or Unreachable.
        advice: what to do when it does not answer.
    """
    refused: dict[str, list[Need]] = {}
    taken: list[tuple[Need, str]] = []
    for need in needs:
        try:
            taken.append((need, show(need) or ""))
        except Refused as e:
            refused.setdefault(str(e), []).append(need)
        except Unreachable as e:
            yield Finding("error", f"{name} does not answer: {e}; {advice}")
            raise StopChecking from None
    for words, those in refused.items():
        more = f" and {len(those) - 1} smaller kinds of jobs" if len(those) > 1 else ""
        yield Finding("error", f"{name} refuses {those[0]}{more}: {words}")
    if taken:
        need, said = taken[0]
        kinds = f"{len(taken)} kinds of jobs, the largest: " if len(taken) > 1 else ""
        yield Finding("ok", f"{name} takes {kinds}{need}" + (f": {said}" if said else ""))


def rehearsal(need: Need, python: str, folder: Path) -> BatchJob:
    """A job that asks for `need` and is only to be shown to a scheduler; its files go to `folder`."""
    attempt = Attempt("doctor", need.steps[0], 0)
    log = folder / attempt.filename
    return BatchJob(
        name=job_name(attempt),
        request=need.request,
        number=0,
        argv=(python, "-c", "pass"),
        spec=log.with_name(log.name + ".json"),
        log=log,
        folder=folder,
    )
