"""`aframe run`: everything that is not there yet, in one run; the same again continues."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from rich.console import Console

from aframe_assets.config_load import ConfigError, config_hash
from aframe_ops.cli.devices import with_devices
from aframe_ops.run_directory import RunDirectory, require_readable
from aframe_ops.survey import AssetState, ancestors, survey

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.workspace import Workspace
    from aframe_ops.site import SiteConfig


class _Printed:
    """A stream whose lines appear above what the console is drawing."""

    def __init__(self, console: Console):
        self._console = console

    def write(self, text: str) -> int:
        self._console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        pass


class RunFailed(RuntimeError):
    """A run that did not succeed; what went wrong has been shown.

    Args:
        failed: steps that failed, with the reasons; empty of a run that was interrupted or broke off.
    """

    def __init__(self, failed: Mapping[str, str]):
        super().__init__(", ".join(failed) or "interrupted")
        self.failed = dict(failed)


@contextlib.contextmanager
def only_one(run: RunDirectory) -> Iterator[None]:
    """Holds the run directory's lock.

    Raises:
        ConfigError: another `aframe run` has it.
    """
    lock = FileLock(run.path / ".run.lock")
    try:
        # A killed predecessor gives it up at once; this wait covers one that is just ending.
        lock.acquire(timeout=5)
    except Timeout:
        raise ConfigError(f"{run.path}: another `aframe run` is running here; wait for it, or stop it with Ctrl-C there") from None
    try:
        yield
    finally:
        lock.release()


def run_all(
    run: RunDirectory,
    console: Console,
    *,
    until: str | None = None,
    verbose: bool = False,
    config: Config | None = None,
    again: str | None = None,
    devices: str | None = None,
) -> Workspace:
    """Makes what is missing; returns the workspace as it is afterwards. The experiment and site are read once, at the start.

    Args:
        until: an asset; only it and what it needs are made.
        verbose: Dagster's own log is shown.
        config: an experiment in place of that of `run`.
        again: the command that continues a run that failed; `aframe run` by default.
        devices: for this run, see `with_devices`.

    Raises:
        ConfigError: an impossible experiment or site, a bad file that it names, or no such asset.
        RunFailed: a step failed or the run was interrupted.
    """
    run.activate()
    site = None
    if devices is not None:
        config, site = with_devices(config or run.config(), run.site(), devices)
    with run.pinned(config, site) as (config, site):
        require_readable(config)
        return _run_missing(run, config, site, console, until, verbose, again)


def require_trainable(workspace: Workspace, site: SiteConfig, chosen: Iterable[str]) -> None:
    """Looks for what trainings that are still to be made need of this machine. Where jobs run is not known here, so those are left out.

    Raises:
        ConfigError: something is not there, which a step would say only when all training data are made.
    """
    from aframe_assets.model.training_needs import lacking_for_compilation, lacking_for_loggers
    from aframe_ops.executor.base import Request
    from aframe_ops.executor.routing import routed

    model, training, executor = workspace.config.model, workspace.config.execution.training, site.executor
    for name, weights in {"tuned_model": model.weights, "model": model.weights, "filter_model": model.filter_weights}.items():
        if name not in chosen or weights or workspace.complete(name) is not None:
            continue
        here = routed(name, Request(gpus=training.gpus), executor.backend, executor.routes)[0] == "local"
        if here and (lacking := lacking_for_compilation(training) or lacking_for_loggers(training.tracking)):
            raise ConfigError(lacking)


def _run_missing(
    run: RunDirectory, config: Config, site: SiteConfig, console: Console, until: str | None, verbose: bool, again: str | None
) -> Workspace:
    workspace = run.workspace(config, site)
    if until is not None and until not in workspace.graph:
        raise ConfigError(f"--until {until}: no such asset; expected one of {', '.join(workspace.graph)}")
    chosen = ancestors(workspace, until) if until else set(workspace.graph)
    require_trainable(workspace, site, chosen)
    if config.inference.mode == "triton" and "inference_results" in chosen:
        from aframe_ops.serving.provider import require_server

        require_server(site.triton)
    with only_one(run), open_instance(run) as instance, contextlib.ExitStack() as afterwards:
        from aframe_ops.executor.routing import unknown_routes
        from aframe_ops.leases_reaping import GoingOn
        from aframe_ops.runs import reap, sync_partitions

        going_on = GoingOn(site)
        found = reap(instance, site, locked=True, leave=going_on)
        for run_id in found.dead:
            console.print(f"run {run_id[:8]} of this directory had died; marked failed", style="yellow")
        for run_id in found.left:
            jobs = ", ".join(going_on(run_id))
            console.print(f"run {run_id[:8]} of this directory had died; its jobs go on: {jobs}", style="yellow", soft_wrap=True)
            afterwards.callback(reap, instance, site, locked=True, leave=GoingOn(site))
        for run_id in found.alive:
            console.print(f"run {run_id[:8]} is executing in this directory as well", style="yellow")
        started = time.monotonic()
        worked = False
        console.print(f"experiment {config.name} ({config.preset}, {config_hash(config)}) in {run.path}")
        for key in unknown_routes(site.executor.routes, workspace.graph):
            fits = f"executor.routes.{key} of site.yaml fits no asset of this experiment: {', '.join(workspace.graph)}"
            console.print(fits, style="yellow", soft_wrap=True, markup=False, highlight=False)
        if site.kubernetes.pinned:
            from aframe_ops.executor.kubernetes_code import described

            console.print(f"pods run {described(site)}", soft_wrap=True, highlight=False)
        if workspace.complete("segments") is None:
            worked = True
            _one_run(run, workspace, instance, console, {"segments": survey(workspace)["segments"]}, verbose, again)
            workspace = run.workspace(config, site)
        sync_partitions(instance, workspace.partitions())
        if until == "segments":
            return workspace
        states = {name: s for name, s in survey(workspace).items() if name in chosen and not s.done}
        if states:
            _one_run(run, workspace, instance, console, states, verbose, again)
            console.print(f"done in {_clock(time.monotonic() - started)}")
        elif not worked:
            console.print("nothing to do: everything is complete")
    return run.workspace(config, site)


def _clock(seconds: float) -> str:
    from aframe_ops.cli.progress import duration

    return duration(seconds)


@contextlib.contextmanager
def open_instance(run: RunDirectory) -> Iterator:
    """Dagster's instance of the run directory."""
    import warnings

    warnings.filterwarnings("ignore", module="dagster")
    from dagster import DagsterInstance

    from aframe_ops.cli.doctor_database import read_database, unset
    from aframe_ops.cli.doctor_findings import blotted, one_line, secrets_of

    file = run.dagster_home / "dagster.yaml"
    try:
        if words := unset(read_database(run.dagster_home), file):
            raise ConfigError(words)
        instance = DagsterInstance.from_config(str(run.dagster_home))
    except ConfigError:
        raise
    except Exception as e:  # of a driver, or of Dagster's own reading of the file
        said = blotted(one_line(e), secrets_of(os.environ))
        raise ConfigError(f"{file}: Dagster's database cannot be used: {said}; `aframe doctor` looks closer") from None
    with instance:
        yield instance


def _one_run(
    run: RunDirectory,
    workspace: Workspace,
    instance,
    console: Console,
    states: dict[str, AssetState],
    verbose: bool,
    again: str | None,
) -> None:
    from dagster import DagsterEventType
    from dagster._core.errors import DagsterExecutionInterruptedError
    from dagster._utils.interrupts import capture_interrupts

    from aframe_assets.store.opening import require_writable
    from aframe_ops.cli.progress import Progress
    from aframe_ops.executor.base import relay_to
    from aframe_ops.runs import covering_range, dagster_line, execute

    require_writable(workspace.store)
    incomplete = {p for s in states.values() if s.partitioned for p in s.why if p is not None}
    # An asset that waits for its upstream may turn out complete; its body says so then.
    keys = covering_range(instance, incomplete) if any(s.partitioned for s in states.values()) else None
    names = [n for n, s in states.items() if keys or not s.partitioned]
    console.print(f"[bold]{len(names)} to make[/bold]: {', '.join(names)}", soft_wrap=True)
    console.print(f"$ {dagster_line(names, keys)}", style="dim", soft_wrap=True, highlight=False)
    logs = run.path / "logs"
    logs.mkdir(exist_ok=True)
    success, interrupted, broken = False, False, ""
    progress = Progress(console)

    def started(run_id: str) -> None:
        nonlocal logs
        logs = logs / run_id

    stderr = sys.stderr
    with contextlib.ExitStack() as stack:
        stack.enter_context(progress)
        if not verbose:
            quiet = stack.enter_context((logs / "run.log").open("a"))
            stack.enter_context(contextlib.redirect_stderr(quiet))
        relay_to(_Printed(console) if console.is_terminal else stderr)
        stack.callback(relay_to, None)
        stack.enter_context(capture_interrupts())
        try:
            for event in execute(instance, names, keys, started=started):
                progress.handle(event)
                if event.event_type == DagsterEventType.RUN_FAILURE and event.job_failure_data.error:
                    broken = event.job_failure_data.error.message.strip()
                success = success or event.event_type == DagsterEventType.RUN_SUCCESS
        except (KeyboardInterrupt, DagsterExecutionInterruptedError):
            interrupted = True
    if not success:
        interrupted = interrupted or "Interrupted" in broken
        _report_failure(console, progress, logs, run, "" if interrupted else broken, again)
        raise RunFailed({} if interrupted else progress.failed)


def _report_failure(console: Console, progress, logs: Path, run: RunDirectory, broken: str, again: str | None) -> None:
    if broken and not progress.failed:
        console.print(f"the run broke off: {broken}; output of every step: {logs}", style="red", markup=False)
    elif progress.failed:
        console.print(f"{len(progress.failed)} step{'s' * (len(progress.failed) > 1)} failed; output of every step: {logs}", style="red")
    else:
        console.print(f"interrupted; output of every step: {logs}", style="yellow")
    here = "" if Path.cwd() == run.path else f" {shlex.quote(os.path.relpath(run.path))}"
    if again:
        console.print(f"`{again}` continues from here", soft_wrap=True)
    else:
        console.print(f"`aframe run{here}` continues from here; `aframe status{here} --why` says what is missing")
