"""The executor of every run: resolves the experiment once, sends each step to its handler, leaves nothing behind."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
from dagster._core.execution.retries import RetryMode, get_retries_config
from dagster._core.execution.tags import get_tag_concurrency_limits_config
from dagster._core.executor.step_delegating import StepDelegatingExecutor
from dagster._serdes import serialize_value

from aframe_ops.executor.base import Handler, Request, RunFiles, RunSetup
from aframe_ops.executor.batch import BatchHandler
from aframe_ops.executor.batch_options import BatchOptions
from aframe_ops.executor.budget import machine_cores, machine_gpus, machine_memory_gb
from aframe_ops.executor.local import LocalHandler
from aframe_ops.executor.routing import RoutingHandler
from aframe_ops.executor.schedulers import SCHEDULERS
from aframe_ops.leases import Claims
from aframe_ops.site import SiteConfig, write_site

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_ops.executor.scheduler import Scheduler
    from aframe_ops.executor.transport import Detached

MANY = 3
"""Steps of a run that ask for more than 1 GB (the others plan, collect and check) from which on science is preloaded."""

HandlerMaker = Callable[[RunSetup, SiteConfig], Handler]


def _local(setup: RunSetup, site: SiteConfig) -> Handler:
    executor = site.executor
    return LocalHandler(
        setup,
        cores=executor.cores or machine_cores(),
        memory_gb=executor.memory_gb or machine_memory_gb(),
        gpus=machine_gpus if executor.gpus is None else executor.gpus,
        steps_per_gpu=executor.steps_per_gpu,
        fork=executor.fork,
    )


def _kubernetes(setup: RunSetup, site: SiteConfig) -> Handler:
    from aframe_ops.executor.kubernetes_code import pin_code

    return _batch("kubernetes", setup, pin_code(site))  # where only a tag sends steps here, nobody has done so before


def _batch(backend: str, setup: RunSetup, site: SiteConfig) -> Handler:
    scheduler, executor = SCHEDULERS[backend](site, setup.files.folder.name), site.executor
    options = BatchOptions(
        poll_s=executor.poll_seconds,
        grace_s=executor.grace_seconds,
        max_memory_gb=executor.max_memory_gb,
        max_time_min=executor.max_time_min,
        env=executor.env,
    )
    return BatchHandler(setup, scheduler, options, _detached(setup, site, scheduler))


def _detached(setup: RunSetup, site: SiteConfig, scheduler: Scheduler) -> Detached | None:
    if site.executor.transport_of(scheduler.name) == "direct":
        return None
    from aframe_ops.executor.mailbox import Mailbox
    from aframe_ops.executor.transport import Detached

    # Pods may see the run directory or not; they find out themselves.
    seen = scheduler.shared_disk and scheduler.name != "kubernetes"
    return Detached(setup.files, None if seen else Mailbox(site.store_url, setup.files.folder.name, site.cache_dir))


HANDLERS: dict[str, HandlerMaker] = {
    "local": _local,
    **{backend: partial(_batch, backend) for backend in SCHEDULERS},
    "kubernetes": _kubernetes,
}
"""Every place where steps can run, by the name that a site or a tag gives it."""


def run_folder(site: SiteConfig, run_id: str) -> Path:
    """Where the files of a run's steps are."""
    return site.logs / run_id


class RoutingExecutor(StepDelegatingExecutor):
    """Dagster's step-delegating loop between a set-up and a clean end.

    Args:
        site: where to run.
        config: the experiment that the definitions were built from; None for definitions without one.
    """

    def __init__(self, site: SiteConfig, config: Config | None, **options):
        self._site, self._config = site, config
        # Handlers are asked at every turn of the loop and decide themselves how often they ask a scheduler.
        super().__init__(step_handler=None, check_step_health_interval_seconds=0, should_verify_step=True, **options)

    def execute(self, plan_context, execution_plan) -> Iterator[dg.DagsterEvent]:
        if "kubernetes" in self._site.executor.backends:
            from aframe_ops.executor.kubernetes_code import pin_code

            self._site = pin_code(self._site)
        run = plan_context.dagster_run
        folder = run_folder(self._site, run.run_id)
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold_lock(folder)
        computing = sum(Request.of(step.tags).memory_gb > 1 for step in execution_plan.step_dict.values())
        setup = RunSetup(RunFiles(folder), self._environment(), serialize_value(run), lock, computing >= MANY, self._claims(run))
        makers = {name: lambda make=make: make(setup, self._site) for name, make in HANDLERS.items()}
        # a sign of life for hosts that do not see the lock
        self._step_handler = RoutingHandler(makers, self._site.executor.backend, self._site.executor.routes, partial(os.utime, lock))
        try:
            for event in super().execute(plan_context, execution_plan):
                if event.is_step_failure:
                    _tell(event, setup.files)
                yield event
        finally:
            try:
                self._step_handler.close()
            finally:
                _executed.append(lock)

    def _claims(self, run: dg.DagsterRun) -> Claims | None:
        return None if self._config is None else Claims(self._site, self._config, run.run_id)

    def _environment(self) -> dict[str, str]:
        """Points every step to the experiment and site as they are now, whatever happens to the files meanwhile."""
        env = {"AFRAME_SITE": str(write_site(self._site, self._site.resolved))}
        if self._config is not None:
            from aframe_assets.config_load import write_resolved

            env["AFRAME_CONFIG"] = str(write_resolved(self._config, self._site.resolved).resolve())
        return env


def failure_reason(event: dg.DagsterEvent) -> str:
    """The innermost error of a failed step, in one line."""
    error = event.step_failure_data.error
    if error is None:
        return "no error was reported"
    while error.cause is not None:
        error = error.cause
    data = event.step_failure_data.user_failure_data
    if data is not None and data.description:
        return data.description.strip().splitlines()[0]
    return error.message.strip().splitlines()[-1] if error.message.strip() else "no error was reported"


def _tell(event: dg.DagsterEvent, files: RunFiles) -> None:
    # The step's own report went to its log; whoever started the run from a terminal should not have to look for it.
    sys.stderr.write(f"step {event.step_key} failed: {failure_reason(event)}; logs: {files.folder}\n")
    sys.stderr.flush()


LOCK_NAME = "alive.lock"

_executed: list[int] = []
"""Locks of runs that this process has executed. Their last events are written when the executor has returned, and whoever found the
lock free before would take the run for dead; so they are held until the process ends, or executes another run."""


def hold_lock(folder: Path) -> int:
    """Locks ``folder/alive.lock`` for as long as this process, or any that inherits the descriptor, lives."""
    while _executed:
        os.close(_executed.pop())
    fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise RuntimeError(f"{folder / LOCK_NAME} is held: another process is executing this run") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    return fd


def lock_holder(folder: Path) -> dict | None:
    """Pid and host of the run worker of the run in `folder`, while any process of the run lives; else None."""
    try:
        fd = os.open(folder / LOCK_NAME, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(fd, 4096, 0)
        return json.loads(text) if text else {"pid": None, "host": None}
    finally:
        os.close(fd)
    return None


def make_executor(site: SiteConfig, config: Config | None = None) -> dg.ExecutorDefinition:
    """The executor definition for ``Definitions(executor=...)``.

    Args:
        site: where to run.
        config: the experiment; its resolved form is what every step reads, so that editing ``aframe.yaml`` during a run
            changes nothing in flight.
    """

    @dg.executor(
        name="aframe",
        config_schema={
            "retries": get_retries_config(),
            "max_concurrent": dg.Field(dg.Noneable(dg.IntSource), default_value=site.executor.max_concurrent),
            "tag_concurrency_limits": get_tag_concurrency_limits_config(),
            "sleep_seconds": dg.Field(dg.Float, default_value=0.2),
        },
        requirements=dg.multiple_process_executor_requirements(),
    )
    def aframe(init_context: dg.InitExecutorContext) -> RoutingExecutor:
        options: Mapping = init_context.executor_config
        return RoutingExecutor(
            site,
            config,
            retries=RetryMode.from_config(options["retries"]),
            max_concurrent=options["max_concurrent"],
            tag_concurrency_limits=options.get("tag_concurrency_limits"),
            sleep_seconds=options["sleep_seconds"],
        )

    return aframe
