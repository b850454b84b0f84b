"""The batch systems by name; each is imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable

from aframe_ops.executor.scheduler import Scheduler
from aframe_ops.site import SiteConfig


def _slurm(site: SiteConfig, run_id: str) -> Scheduler:
    from aframe_ops.executor.slurm import Slurm

    return Slurm(site.slurm)


def _htcondor(site: SiteConfig, run_id: str) -> Scheduler:
    from aframe_ops.executor.htcondor import HTCondor

    return HTCondor(site.htcondor)


def _kubernetes(site: SiteConfig, run_id: str) -> Scheduler:
    from aframe_ops.executor.kubernetes import Kubernetes

    return Kubernetes(site.kubernetes, run_id, site.store_url)


SCHEDULERS: dict[str, Callable[[SiteConfig, str], Scheduler]] = {"slurm": _slurm, "htcondor": _htcondor, "kubernetes": _kubernetes}
"""Makes the batch system of that name, as `site` describes it, for the jobs of one run."""

BY_RUN = {"kubernetes"}
"""Those that know only jobs of the run that they were made for."""
