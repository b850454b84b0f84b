"""Commands on machines: checks, software, and what runs have left on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aframe_ops.cli.app import FAILED, MACHINES, Directory, app, command, console


@app.command(epilog="Example: aframe reap runs/demo --dry-run", rich_help_panel=MACHINES)
@command
def reap(
    directory: Directory = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Marks runs of this directory whose processes are gone as failed, and cancels batch jobs that no live run has or waits for."""
    from aframe_ops.cli.reaping import reap_directory
    from aframe_ops.run_directory import RunDirectory

    if not reap_directory(RunDirectory.find(directory), console(), dry_run=dry_run):
        raise typer.Exit(FAILED)


@app.command(epilog="Example: aframe wheelhouse /shared/wheels --python 3.11 --platform manylinux_2_28_x86_64", rich_help_panel=MACHINES)
@command
def wheelhouse(
    folder: Annotated[Path, typer.Argument(help="Folder to fill, on a disk that the nodes see.", show_default=False)],
    python: Annotated[str | None, typer.Option(help="Python of the nodes, such as 3.11.", show_default="this one")] = None,
    platform: Annotated[
        str | None, typer.Option(help="glibc and processor of the nodes.", show_default="manylinux_2_28 on this processor")
    ] = None,
    extra: Annotated[list[str] | None, typer.Option(help="An extra of the project; may be repeated.", show_default=False)] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Of the project's requirements, only this one and what it needs; may be repeated.", show_default=False),
    ] = None,
    torch: Annotated[str, typer.Option(help="Build of torch: gpu or cpu.")] = "gpu",
) -> None:
    """Fills a folder with our wheel and all that it needs, for nodes without a network. The same command again adds what is new."""
    from aframe_ops.cli.wheelhouse import make_wheelhouse

    make_wheelhouse(folder, console(), python=python, platform=platform, extras=extra or [], only=only or [], torch=torch)


@app.command(
    "build-images",
    epilog="Example: aframe build-images cpu --engine podman --tag 1.2 --push registry.example.org/group\n\n"
    "Example: aframe build-images --check",
    rich_help_panel=MACHINES,
)
@command
def build_images(
    names: Annotated[list[str] | None, typer.Argument(help="Images: cpu, gpu, triton; default: all.", show_default=False)] = None,
    engine: Annotated[
        str | None, typer.Option(help="podman, docker or apptainer.", show_default="the first of these that is installed")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Tag of the images.", show_default="latest; with --dev: dev")] = None,
    base: Annotated[str | None, typer.Option(help="Image to start from.", show_default="the one in each recipe")] = None,
    build_arg: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE of a build argument, such as EXTRAS=s3,postgres.", show_default=False)
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Builds at a time.", show_default="all")] = None,
    push: Annotated[str | None, typer.Option(help="Registry, with a path in it, to push the images to.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", help="Build what is up to date, too, and nothing from a cache.")] = False,
    dev: Annotated[bool, typer.Option("--dev", help="Images without this project's code, for runs that bind the working tree.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Build nothing; say which images are stale, and why.")] = False,
    tree: Annotated[Path | None, typer.Option(help="Checkout to build from.", show_default="that of the running code")] = None,
    output: Annotated[Path, typer.Option(help="Folder of Apptainer's images.", show_default="the current one")] = Path(),
    engine_option: Annotated[
        list[str] | None, typer.Option(help="One more word for the engine's build, such as --network=host.", show_default=False)
    ] = None,
) -> None:
    """Builds container images of this project, at the same time and only where something has changed."""
    from aframe_ops.cli.images import Options, build_images, check_images

    options = Options(names or (), engine, tag, base, build_arg or (), engine_option or (), jobs, push, force, dev, tree, output)
    if not (check_images if check else build_images)(options, console()):
        raise typer.Exit(FAILED)


@app.command(
    epilog="Example: aframe doctor runs/demo\n\nExit code: 0 nothing is wrong (there may be warnings), 1 something is, "
    "2 there is no run directory or its files cannot be read",
    rich_help_panel=MACHINES,
)
@command
def doctor(
    directory: Directory = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which a check that does not answer is ended.")] = 90.0,
) -> None:
    """Checks this machine, the run directory if there is one, its database and store, and the batch systems that it uses."""
    from aframe_ops.cli.doctor import examine

    if not examine(directory, console(), as_json=as_json, limit_s=timeout):
        raise typer.Exit(FAILED)
