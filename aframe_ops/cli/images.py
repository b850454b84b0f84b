"""`aframe build-images`: images of the project, built at the same time and only where something has changed."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aframe_assets.config_load import ConfigError
from aframe_ops.containers import images, pip_settings
from aframe_ops.containers.image_builds import GOOD, Build, Builds
from aframe_ops.containers.image_engines import BuildRequest, Engine, engine_named

ENGINES = ("podman", "docker", "apptainer")
_STYLES = {"built": "green", "pushed": "green", "up to date": "green", "failed": "red", "interrupted": "red", "building": "cyan"}


@dataclass(frozen=True)
class Options:
    """What the command line says; see `aframe build-images --help`."""

    names: Sequence[str] = ()
    engine: str | None = None
    tag: str | None = None
    base: str | None = None
    arguments: Sequence[str] = ()
    engine_options: Sequence[str] = ()
    jobs: int | None = None
    push: str | None = None
    force: bool = False
    dev: bool = False
    tree: Path | None = None
    output: Path = Path()

    def command_line(self, names: Sequence[str]) -> str:
        """The same for these images."""
        words = ["aframe", "build-images", *names]
        for option, value in (("--engine", self.engine), ("--tag", self.tag), ("--base", self.base)):
            words += [option, value] if value is not None else []
        for option, values in (("--build-arg", self.arguments), ("--engine-option", self.engine_options)):
            words += [f"{option}={value}" for value in values]
        words += ["--jobs", str(self.jobs)] if self.jobs else []
        words += ["--push", self.push] if self.push else []
        words += ["--force"] if self.force else []
        words += ["--dev"] if self.dev else []
        words += ["--tree", str(self.tree)] if self.tree else []
        words += ["--output", str(self.output)] if self.output != Path() else []
        return shlex.join(words)


def build_images(options: Options, console: Console) -> bool:
    """Builds what has changed, pushes what is asked for, and prints a summary; whether all went well.

    Raises:
        ConfigError: something on the command line is not what it has to be.
        ImageError: the engine is missing or does not work.
    """
    engine = _engine(options)
    tree, asked, names = _asked(options, engine)
    registry = None if options.push is None else images.require_registry(options.push)
    engine.require()
    with tempfile.TemporaryDirectory(prefix="aframe-images-") as private:
        context, secrets = Path(private) / "context", Path(private) / "pip"
        secrets.mkdir(mode=0o700)
        images.snapshot(tree, context)
        settings = pip_settings.write_settings(pip_settings.configured(), secrets, can_mount=engine.mounts, environment=os.environ)
        for folder in settings.unseen:
            console.print(f"{folder}: builds by {engine.name} cannot see this folder, which pip's configuration names", soft_wrap=True)
        requests = [_request(name, asked, engine, context, settings, images.revision(tree), options) for name in names]
        builds = _planned(requests, engine, context, asked, options.force)
        _show_progress(Builds(engine, builds, options.jobs or len(builds), registry, _teller(console)), builds, console)
    console.print(_summary(builds, engine))
    for build in builds:
        for note in build.notes():
            console.print(f"{build.request.name}: {note}", soft_wrap=True)
        if build.phase == "failed":
            console.print(f"{build.request.name}: {build.error}; {build.last_line()}", soft_wrap=True)
        if build.phase in GOOD and options.dev:
            console.print(f"run {build.request.name}: {shlex.join(engine.run(build.request.reference, tree))} aframe ...", soft_wrap=True)
    failed = [build.request.name for build in builds if build.phase not in GOOD]
    if failed:
        console.print(f"again: {options.command_line(failed)}", soft_wrap=True)
    return not failed


def check_images(options: Options, console: Console) -> bool:
    """Prints which images are of what is here now; whether all are. Raises as `build_images` does."""
    engine = _engine(options)
    tree, asked, names = _asked(options, engine)
    engine.require()
    stale = []
    with tempfile.TemporaryDirectory(prefix="aframe-images-") as private:
        context = images.snapshot(tree, Path(private) / "context")
        for name in names:
            reference = engine.reference(name, asked.tag)
            why = images.changed(engine.labels(reference), images.inputs(context, name, asked, engine.kind))
            console.print(f"{reference}: {why or 'up to date'}", soft_wrap=True)
            stale += [name] if why else []
    if stale:
        console.print(f"build: {options.command_line(stale)}", soft_wrap=True)
    return not stale


def _engine(options: Options) -> Engine:
    name = options.engine if options.engine is not None else next((e for e in ENGINES if shutil.which(e)), ENGINES[0])
    if name not in ENGINES:
        raise ConfigError(f"--engine {name!r}: expected one of {', '.join(ENGINES)}")
    return engine_named(name, options.output.resolve())


def _asked(options: Options, engine: Engine) -> tuple[Path, images.Wanted, list[str]]:
    asked = images.wanted(options.tag, options.base, options.arguments, options.dev)
    tree = images.find_tree(options.tree)
    names = images.chosen(tree, options.names, engine.kind)
    images.require_arguments(tree, names, asked, engine.kind)
    return tree, asked, names


def _request(
    name: str,
    asked: images.Wanted,
    engine: Engine,
    context: Path,
    settings: pip_settings.PipSettings,
    revision: str,
    options: Options,
) -> BuildRequest:
    recipe = images.recipe_of(context, name, engine.kind)
    content = images.inputs(context, name, asked, engine.kind)
    known = images.declared(recipe)
    # the time of the files is one that the engine has to know, too
    arguments = {"SOURCE_DATE_EPOCH": known["SOURCE_DATE_EPOCH"]} | {k: v for k, v in asked.build_arguments().items() if k in known}
    labels = {
        images.REVISION_LABEL: revision,
        images.HASH_LABEL: images.environment_hash(content),
        images.INPUTS_LABEL: images.inputs_text(content),
    }
    reference = engine.reference(name, asked.tag)
    return BuildRequest(name, reference, context, recipe, arguments, labels, settings, options.force, options.engine_options)


def _planned(requests: Sequence[BuildRequest], engine: Engine, context: Path, asked: images.Wanted, force: bool) -> list[Build]:
    """What has to be done for each image."""
    logs = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aframe" / "images"
    stamp = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    builds = []
    for request in requests:
        content = images.inputs(context, request.name, asked, engine.kind)
        why = "--force" if force else images.changed(engine.labels(request.reference), content)
        builds.append(Build(request, logs / f"{request.name}-{stamp}.log", why))
    return builds


def _teller(console: Console):
    def tell(build: Build) -> None:
        if not console.is_terminal:
            why = f" ({build.why})" if build.phase == "building" else ""
            console.print(f"{build.request.name}: {build.phase}{why}", soft_wrap=True)

    return tell


def _show_progress(work: Builds, builds: Sequence[Build], console: Console) -> None:
    shown = Live(get_renderable=lambda: _state(builds), console=console, refresh_per_second=2, transient=True)
    # what is told after an interrupt is what is needed to go on
    with suppress(KeyboardInterrupt), shown if console.is_terminal else nullcontext():
        work.run()


def _state(builds: Sequence[Build]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", style="dim")
    for build in builds:
        seconds = f"{build.seconds:.0f} s" if build.started else ""
        table.add_row(build.request.name, _phase(build.phase), seconds, Text(build.last_line()))
    return table


def _summary(builds: Sequence[Build], engine: Engine) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("image", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("size", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("log", overflow="fold")
    for build in builds:
        size = engine.size(build.request.reference) if build.phase in GOOD else None
        name = build.pushed or build.request.reference
        log = str(build.log) if build.log.exists() else ""
        table.add_row(Text(name), _phase(build.phase), f"{size / 1e9:.2f} GB" if size else "", f"{build.seconds:.0f}", Text(log))
    return table


def _phase(phase: str) -> Text:
    return Text(phase, style=_STYLES.get(phase, ""))
