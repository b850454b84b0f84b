"""`aframe run`: everything that is not there yet, in one run; the same again continues."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from aframe_assets.config_load import ConfigError, config_hash
from aframe_ops.cli.devices import with_devices
from aframe_ops.run_directory import RUN_LOCK, RunDirectory, require_readable
from aframe_ops.survey import ancestors, survey

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from aframe_assets.config import Config
    from aframe_assets.store.workspace import Workspace
    from aframe_ops.site import SiteConfig


class _Printed:
    """A stream whose lines appear above what the console is drawing."""

    def __init__(self, console: Console):
        self._console = console

    def write(self, text: str) -> int:
        self._console.print(text, end="", soft_wrap=True)
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
        ConfigError: another command, as `aframe run` or `aframe segments sync`, has it.
    """
    lock = FileLock(run.path / RUN_LOCK)
    try:
        # A killed predecessor gives it up at once; this wait covers one that is just ending.
        lock.acquire(timeout=5)
    except Timeout:
        words = "`aframe run`, or a command like it, is at work here; wait for it, or stop it with Ctrl-C there"
        raise ConfigError(f"{run.path}: {words}") from None
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
    segments: Sequence[str] = (),
    alone: bool = False,
) -> Workspace:
    """Makes what is missing; returns the workspace as it is afterwards. The experiment and site are read once, at the start.

    Args:
        until: an asset; only it and what it needs are made.
        alone: of that asset nothing that it needs is made.
        segments: only these are worked on, see `aframe_ops.selecting.select`.
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
        return _run_missing(run, config, site, console, until, verbose, again, segments, alone)


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
    run: RunDirectory,
    config: Config,
    site: SiteConfig,
    console: Console,
    until: str | None,
    verbose: bool,
    again: str | None,
    segments: Sequence[str],
    alone: bool,
) -> Workspace:
    workspace = run.workspace(config, site)
    if until is not None and until not in workspace.graph:
        raise ConfigError(f"--until {until}: no such asset; expected one of {', '.join(workspace.graph)}")
    chosen = {until} if until and alone else ancestors(workspace, until) if until else set(workspace.graph)
    require_trainable(workspace, site, chosen)
    if config.inference.mode == "triton" and "inference_results" in chosen:
        from aframe_ops.serving.provider import require_server

        require_server(site.triton)
    with only_one(run), open_instance(run) as instance, contextlib.ExitStack() as afterwards:
        from aframe_assets.partitions import register
        from aframe_ops.executor.routing import unknown_routes
        from aframe_ops.leases_reaping import GoingOn
        from aframe_ops.runs import reap

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
            console.print(fits, style="yellow", soft_wrap=True)
        if site.kubernetes.pinned:
            from aframe_ops.executor.kubernetes_code import described

            console.print(f"pods run {described(site)}", soft_wrap=True)
        if workspace.complete("segments") is None:
            worked = True
            _one_run(run, workspace, instance, console, ["segments"], None, verbose, again)
            workspace = run.workspace(config, site)
        register(instance, workspace.partitions())
        if until == "segments":
            return workspace
        making = partial(_one_run, run, workspace, instance, console, verbose=verbose, again=again)
        if segments:
            worked = _run_selected(lambda: run.workspace(config, site), instance, console, chosen, segments, making) or worked
        else:
            worked = _make_rest(workspace, instance, chosen, making) or worked
        if worked:
            console.print(f"done in {_clock(time.monotonic() - started)}")
        else:
            console.print("nothing to do: everything is complete" if not segments else "nothing to do for these segments")
    return run.workspace(config, site)


def _make_rest(workspace: Workspace, instance: DagsterInstance, chosen: Collection[str], making: Callable[..., None]) -> bool:
    """One run of all that is incomplete; whether there was anything."""
    from aframe_ops.runs import covering_ranges

    states = {name: s for name, s in survey(workspace).items() if name in chosen and not s.done}
    incomplete = {p for s in states.values() if s.partitioned for p in s.why if p is not None}
    # An asset that waits for its upstream may turn out complete; its body says so then.
    ranges = covering_ranges(instance, incomplete)
    names = [n for n, s in states.items() if ranges or not s.partitioned]
    if names:
        making(names, ranges[0] if ranges else None)
    return bool(names)


def _run_selected(
    look: Callable[[], Workspace],
    instance: DagsterInstance,
    console: Console,
    chosen: Collection[str],
    segments: Sequence[str],
    making: Callable[..., None],
) -> bool:
    """Makes of some segments what is incomplete, and of the whole search what does not wait for others; whether there was anything.

    Raises:
        ConfigError: no such segments.
        RunFailed: a step of some range failed; the other ranges were made.
    """
    from aframe_ops.runs import covering_ranges
    from aframe_ops.selecting import doable, next_runs, select

    selected, before, failed = None, None, {}
    while True:
        # what waits for an upstream may turn out complete once that is made, and then others can be made: looked at anew each time
        workspace = look()
        states = {name: s for name, s in survey(workspace).items() if name in chosen and name != "segments"}
        if selected is None:
            selected = set(select(workspace.rows(), segments, list(states.values())))
            console.print(f"{len(selected)} of {len(workspace.rows())} segments")
        work = doable(workspace, states, selected)
        if not work or work == before or failed:
            break
        before = work
        incomplete = {p for s in states.values() if s.partitioned for p in s.why if p is not None}
        for names, keys in next_runs(work, workspace.graph, incomplete, partial(covering_ranges, instance)):
            try:
                making(names, keys)
            except RunFailed as e:
                if not e.failed:
                    raise
                failed |= e.failed
    if failed:
        raise RunFailed(failed)
    if left := [n for n, s in states.items() if not s.done and not s.partitioned]:
        console.print(f"not made, since they need other segments: {', '.join(left)}", style="dim", soft_wrap=True)
    return before is not None


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
    names: Sequence[str],
    keys: tuple[str, str] | None,
    verbose: bool,
    again: str | None,
) -> None:
    from dagster import DagsterEventType
    from dagster._core.errors import DagsterExecutionInterruptedError
    from dagster._utils.interrupts import capture_interrupts

    from aframe_assets.store.opening import require_writable
    from aframe_ops.cli.progress import Progress
    from aframe_ops.executor.base import relay_to
    from aframe_ops.runs import dagster_line, execute

    require_writable(workspace.store)
    console.print(Text.assemble((f"{len(names)} to make", "bold"), f": {', '.join(names)}"), soft_wrap=True)
    console.print(f"$ {dagster_line(names, keys)}", style="dim", soft_wrap=True)
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
        console.print(f"the run broke off: {broken}; output of every step: {logs}", style="red")
    elif progress.failed:
        console.print(f"{len(progress.failed)} step{'s' * (len(progress.failed) > 1)} failed; output of every step: {logs}", style="red")
    else:
        console.print(f"interrupted; output of every step: {logs}", style="yellow")
    here = "" if Path.cwd() == run.path else f" {shlex.quote(os.path.relpath(run.path))}"
    if again:
        console.print(f"`{again}` continues from here", soft_wrap=True)
    else:
        console.print(f"`aframe run{here}` continues from here; `aframe status{here} --why` says what is missing")
