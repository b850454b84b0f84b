"""Entry point of the `aframe` command. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from aframe_assets.config_load import ConfigError
from aframe_ops.cli.app import FAILED, THE_SEARCH, Directory, Preset, Segments, app, command, config_app, console, segments_app


@app.command(
    epilog="Example: aframe init runs/demo --preset demo\n\n"
    "Example: aframe init runs/real --preset events --strain data/strain --weights pretrained\n\n"
    "Example: aframe init runs/shared --preset demo --store s3://bucket/demo --database env:AFRAME_DATABASE --profile slurm",
    rich_help_panel=THE_SEARCH,
)
@command
def init(
    directory: Annotated[Path, typer.Argument(help="Directory to make.", show_default=False)],
    preset: Annotated[Preset, typer.Option(help="The experiment to start from.", show_default=False)],
    strain: Annotated[str | None, typer.Option(help="File or folder of strain files to analyse.", show_default=False)] = None,
    store: Annotated[
        str | None, typer.Option(help="Where results are kept: a folder or s3://bucket/prefix.", show_default="DIRECTORY/store")
    ] = None,
    training_store: Annotated[
        str | None,
        typer.Option(help="Where the networks and what they are made from are kept: s3://bucket/prefix.", show_default="the store"),
    ] = None,
    profile: Annotated[str, typer.Option(help="Where steps run.")] = "local",
    database: Annotated[
        str | None,
        typer.Option(
            help="PostgreSQL of Dagster's records: env:NAME, a variable with its address, or an address without a password.",
            show_default="SQLite in the directory",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Model to use instead of training: a bundle, a run directory, a file of weights, or 'pretrained'.", show_default=False
        ),
    ] = None,
) -> None:
    """Makes a run directory; one that holds the same experiment is left as it is."""
    from aframe_ops.cli.initialise import initialise, overrides_of

    overrides = overrides_of(strain, weights, preset.value)
    run, new = initialise(
        directory, preset.value, overrides=overrides, store=store, training_store=training_store, profile=profile, database=database
    )
    out = console()
    out.print(f"{run.path}: {'new run directory' if new else 'is this experiment already'} (preset {preset.value})", soft_wrap=True)
    out.print(f"next: aframe run {shlex.quote(str(directory))}", soft_wrap=True)


@app.command(
    epilog="Example: aframe run runs/demo --until psd\n\n"
    "Example: aframe run runs/demo --segments 1240610000.. --segments failed --until inference_results",
    rich_help_panel=THE_SEARCH,
)
@command
def run(
    directory: Directory = None,
    until: Annotated[str | None, typer.Option(help="Make this asset and what it needs, no more.", show_default=False)] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show Dagster's own log as well.")] = False,
    devices: Annotated[
        str | None, typer.Option(help="GPUs for this run, as 0,1: a training uses all of them. Or cpu,cpu.", show_default=False)
    ] = None,
    segments: Segments = None,
) -> None:
    """Makes everything that is not complete. The same command again continues."""
    from aframe_ops.cli.results import show_results
    from aframe_ops.cli.running import RunFailed, run_all
    from aframe_ops.run_directory import RunDirectory

    place, out = RunDirectory.find(directory), console()
    try:
        workspace = run_all(place, out, until=until, verbose=verbose, devices=devices, segments=segments or ())
    except RunFailed:
        raise typer.Exit(FAILED) from None
    if until is None and not segments:
        show_results(workspace, out)


@app.command(epilog="Example: aframe plan runs/demo --until psd", rich_help_panel=THE_SEARCH)
@command
def plan(
    directory: Directory = None,
    until: Annotated[str | None, typer.Option(help="Only this asset and what it needs.", show_default=False)] = None,
    segments: Segments = None,
) -> None:
    """Says what `aframe run` would make, and why, without making it."""
    from aframe_ops.cli.reporting import show_plan
    from aframe_ops.run_directory import RunDirectory, require_readable

    workspace = RunDirectory.find(directory).workspace()
    require_readable(workspace.config)
    show_plan(workspace, console(), until, segments or ())


@app.command(
    epilog="Example: aframe status runs/demo --why\n\nExample: aframe status runs/demo --asset background", rich_help_panel=THE_SEARCH
)
@command
def status(
    directory: Directory = None,
    why: Annotated[bool, typer.Option("--why", help="For what is not complete: the first thing that differs.")] = False,
    asset: Annotated[str | None, typer.Option(help="Every segment of this asset.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Says what is complete, from the store's manifests alone."""
    from aframe_ops.cli.looking import show_asset
    from aframe_ops.cli.reporting import show_status
    from aframe_ops.run_directory import RunDirectory

    workspace = RunDirectory.find(directory).workspace()
    if asset is not None:
        show_asset(workspace, console(), asset, as_json=as_json)
    else:
        show_status(workspace, console(), why=why, as_json=as_json)


@app.command(epilog="Example: aframe report runs/demo", rich_help_panel=THE_SEARCH)
@command
def report(directory: Directory = None) -> None:
    """Prints what a finished run has found, and where its report is."""
    from aframe_ops.cli.exporting import show_report
    from aframe_ops.run_directory import RunDirectory

    show_report(RunDirectory.find(directory).workspace(), console())


@app.command(
    epilog="Example: aframe retry runs/demo\n\nExample: aframe retry runs/demo --asset background --segment 1240610000-64 --again",
    rich_help_panel=THE_SEARCH,
)
@command
def retry(
    directory: Directory = None,
    asset: Annotated[list[str] | None, typer.Option(help="Only this asset; may be repeated.", show_default=False)] = None,
    segment: Annotated[list[str] | None, typer.Option(help="Only this segment; may be repeated.", show_default=False)] = None,
    again: Annotated[bool, typer.Option("--again", help="With --asset: what is complete, too.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show Dagster's own log as well.")] = False,
) -> None:
    """Makes what failed, is held back by a check or is damaged, and nothing else."""
    from aframe_ops.cli.retrying import retry as retry_failed
    from aframe_ops.cli.running import RunFailed
    from aframe_ops.run_directory import RunDirectory

    try:
        retry_failed(RunDirectory.find(directory), console(), asset or [], segment or [], again=again, verbose=verbose)
    except RunFailed:
        raise typer.Exit(FAILED) from None


@segments_app.command("list", epilog="Example: aframe segments list runs/demo --role test")
@command
def segments_list(
    directory: Directory = None,
    role: Annotated[str | None, typer.Option(help="Only train, validation or test.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    segments: Segments = None,
    retired: Annotated[bool, typer.Option("--retired", help="Those that were taken out, with date and reason.")] = False,
) -> None:
    """Prints the partition keys in order of time, with start, stop and role."""
    from aframe_ops.cli.segments import show_segments
    from aframe_ops.run_directory import RunDirectory

    show_segments(RunDirectory.find(directory).workspace(), role=role, as_json=as_json, segments=segments or (), retired=retired)


@segments_app.command("sync", epilog="Example: aframe segments sync runs/demo --dry-run")
@command
def segments_sync(
    directory: Directory = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Let go of segments that are no longer science time.")] = False,
    recut: Annotated[
        bool, typer.Option("--recut", help="Cut all time, give all roles and plan all slides anew: nothing of the old table stays.")
    ] = False,
    rechoose_psd: Annotated[
        bool, typer.Option("--rechoose-psd", help="Let the next run choose reference PSDs among all segments there are by then.")
    ] = False,
) -> None:
    """Asks the source of segments again and adds what is new. Segments that there are keep their bounds and roles."""
    from aframe_ops.cli.segments import sync_segments
    from aframe_ops.run_directory import RunDirectory

    place = RunDirectory.find(directory)
    sync_segments(place, console(), recut=recut, remove=remove, rechoose_psd=rechoose_psd, dry_run=dry_run)


@segments_app.command("retire", epilog="Example: aframe segments retire runs/demo --segments 1240610000-660 --reason 'loud scattering'")
@command
def segments_retire(
    directory: Directory = None,
    segments: Segments = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the table.", show_default=False)] = "",
    restore: Annotated[bool, typer.Option("--restore", help="Bring retired segments back.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which.")] = False,
) -> None:
    """Takes segments out of the search for good, or brings them back. What was made of them stays in the store."""
    from aframe_ops.cli.segments import retire_segments
    from aframe_ops.run_directory import RunDirectory

    if not segments:
        raise ConfigError("--segments: expected which segments; see `aframe segments list`")
    if not reason and not restore:
        raise ConfigError("--reason: expected why these segments are taken out")
    retire_segments(RunDirectory.find(directory), console(), segments, reason=reason, restore=restore, dry_run=dry_run)


@config_app.command("show", epilog="Example: aframe config show runs/demo --resolved")
@command
def config_show(
    directory: Directory = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="As every step reads it: canonical JSON, with its hash.")] = False,
) -> None:
    """Prints every setting: preset, aframe.yaml and environment merged and checked."""
    from aframe_ops.cli.reporting import show_config
    from aframe_ops.run_directory import RunDirectory

    show_config(RunDirectory.find(directory).config(), resolved=resolved)


@config_app.command("prior", epilog="Example: aframe config prior end_o3_ratesandpops > mine.prior")
@command
def config_prior(
    name: Annotated[str | None, typer.Argument(help="A population; default: the names of all.", show_default=False)] = None,
) -> None:
    """Prints the file of a named population, to be edited and named in the experiment."""
    from aframe_assets.waveforms.prior_files import packaged

    files = packaged()
    if name is not None and name not in files:
        raise ConfigError(f"'{name}' is not one of {', '.join(files)}")
    typer.echo("\n".join(files) if name is None else files[name].read_text(), nl=name is None)


@config_app.command("keys", epilog="Example: aframe config keys conditioning\n\nExample: aframe config keys memory --site")
@command
def config_keys(
    part: Annotated[str | None, typer.Argument(help="A section or a piece of a key; default: all.", show_default=False)] = None,
    site: Annotated[bool, typer.Option("--site", help="Those of site.yaml, not of aframe.yaml.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As tables.")] = False,
) -> None:
    """Says of every setting what it may be, its default without a preset, and what it decides."""
    from aframe_ops.cli.settings import show_keys

    show_keys(part, site=site, markdown=markdown)


# after the commands above, so that `aframe --help` begins with them
from aframe_ops.cli import artifact_commands, model_commands, site_commands  # noqa: E402, F401


def main() -> None:
    """Console script."""
    try:
        app()
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
