"""Commands on what the store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aframe_ops.cli.app import FAILED, WHAT_IS_KEPT, Directory, app, command, console


@app.command(epilog="Example: aframe export runs/demo --to results --format report --format ligolw", rich_help_panel=WHAT_IS_KEPT)
@command
def export(
    to: Annotated[Path, typer.Option(help="Folder to put the files in.", show_default=False)],
    directory: Directory = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="report, csv, gracedb, ligolw or volume; may be repeated.", show_default="all"),
    ] = None,
) -> None:
    """Copies results out of a run: the report, candidates as CSV, GraceDB's JSON and LIGO_LW, volumes as HDF5."""
    from aframe_ops.cli.exporting import export_files
    from aframe_ops.run_directory import RunDirectory

    export_files(RunDirectory.find(directory).workspace(), to, formats or [], console())


@app.command(
    epilog="Example: aframe crate runs/demo --to demo.zip --author 'A. Person <0000-0002-1825-0097>'", rich_help_panel=WHAT_IS_KEPT
)
@command
def crate(
    to: Annotated[Path, typer.Option(help="Folder or .zip to make.", show_default=False)],
    directory: Directory = None,
    author: Annotated[list[str] | None, typer.Option(help="Name, or 'Name <ORCID>'; may be repeated.", show_default=False)] = None,
    licence: Annotated[str | None, typer.Option("--license", help="Address of its licence.", show_default="CC BY 4.0")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Copy large artifacts too, instead of naming where they are.")] = False,
) -> None:
    """Packs a run as an RO-Crate: results, how each was made from what, whom they owe; for an archive or a paper."""
    from aframe_ops.cli.exporting import export_crate
    from aframe_ops.run_directory import RunDirectory

    export_crate(RunDirectory.find(directory).workspace(), to, author or [], licence, everything=everything, console=console())


@app.command(
    epilog="Example: aframe verify runs/demo\n\nExit code: 0 every file is as recorded, 1 some are not", rich_help_panel=WHAT_IS_KEPT
)
@command
def verify(
    directory: Directory = None,
    asset: Annotated[list[str] | None, typer.Option(help="Only this asset; may be repeated.", show_default=False)] = None,
    segment: Annotated[list[str] | None, typer.Option(help="Only this segment; may be repeated.", show_default=False)] = None,
    look: Annotated[bool, typer.Option("--look", help="Only say what is damaged; leave it in use.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Reads every file of every artifact and compares its sha256; takes what is damaged out of use, so that `aframe run` makes it again."""
    from aframe_ops.cli.keeping import verify_all
    from aframe_ops.run_directory import RunDirectory

    if not verify_all(RunDirectory.find(directory), console(), asset or [], segment or [], mark=not look, as_json=as_json):
        raise typer.Exit(FAILED)


@app.command(epilog="Example: aframe prune runs/demo\n\nExample: aframe prune runs/demo --runs 30 --yes", rich_help_panel=WHAT_IS_KEPT)
@command
def prune(
    directory: Directory = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is shown.")] = False,
    older_than: Annotated[float, typer.Option(min=0, help="Minutes; what was written more recently stays.")] = 60.0,
    runs: Annotated[
        float | None,
        typer.Option(min=0, help="Records and logs of runs that ended so many days ago, too; no results.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Shows what killed jobs and replaced artifacts have left in the store; removes it with --yes. No result is among it."""
    from aframe_ops.cli.keeping import prune as prune_store
    from aframe_ops.run_directory import RunDirectory

    found = RunDirectory.find(directory)
    prune_store(found, console(), yes=yes, older_than=older_than * 60, runs_days=runs, as_json=as_json)


@app.command(epilog="Example: aframe incoming runs/live --only bad", rich_help_panel=WHAT_IS_KEPT)
@command
def incoming(
    directory: Directory = None,
    look: Annotated[bool, typer.Option("--look", help="First look for new files, as the sensor does; for use without Dagster.")] = False,
    only: Annotated[
        str | None, typer.Option(help="Only searched, waiting, gone, duplicate, unused or bad ones.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Says what became of strain files that were dropped in the watched places, and why."""
    from aframe_ops.cli.incoming import show_incoming
    from aframe_ops.run_directory import RunDirectory

    if not show_incoming(RunDirectory.find(directory), console(stderr=as_json), look=look, verdict=only, as_json=as_json):
        raise typer.Exit(FAILED)


@app.command(
    epilog="Example: aframe adopt background old/background-*.hdf5 --to runs/mine --sums old/SHA256SUMS\n\n"
    "Example: aframe adopt training_waveforms old/train_waveforms.hdf5 --to runs/mine",
    rich_help_panel=WHAT_IS_KEPT,
)
@command
def adopt(
    asset: Annotated[str, typer.Argument(help="background, training_waveforms or validation_waveforms.", show_default=False)],
    files: Annotated[list[Path], typer.Argument(help="Files; of background one for each segment.", show_default=False)],
    to: Annotated[Path | None, typer.Option(help="Run directory.", show_default="the current one")] = None,
    sums: Annotated[Path | None, typer.Option(help="Their sha256, as sha256sum writes them; compared first.", show_default=False)] = None,
) -> None:
    """Takes files that are there already, of Aframe or another run, instead of making them; layout, times and content are checked."""
    from aframe_ops.cli.keeping import adopt_files
    from aframe_ops.run_directory import RunDirectory

    adopt_files(RunDirectory.find(to), console(), asset, files, sums)


@app.command(
    epilog="Example: aframe sync runs/demo s3://my-bucket/searches/demo --switch\n\n"
    "Example: aframe sync s3://my-bucket/searches/demo runs/copy --asset 'model*' --asset events\n\n"
    "Exit code: 0 the target has all of it, 1 something is damaged, differs or could not be copied, 2 the command cannot be understood",
    rich_help_panel=WHAT_IS_KEPT,
)
@command
def sync(
    source: Annotated[str, typer.Argument(help="Run directory, or address of a store.", show_default=False)],
    target: Annotated[
        str, typer.Argument(help="Run directory, or address of a store: a folder or s3://bucket/prefix.", show_default=False)
    ],
    asset: Annotated[list[str] | None, typer.Option(help="Only this asset (* and ? allowed); may be repeated.", show_default="all")] = None,
    move: Annotated[
        bool, typer.Option("--move", help="Remove from SOURCE what TARGET has, once its bytes have been read back and compared.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read back and compare what TARGET has, also of earlier calls.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take SOURCE's version where TARGET has another one.")] = False,
    switch: Annotated[
        bool, typer.Option("--switch", help="When TARGET has all of it, make it the store of the run directory SOURCE (site.yaml).")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Copies or moves artifacts between stores, checking their hashes. The same command again goes on where it was ended."""
    from aframe_assets.store.syncing import Options
    from aframe_ops.cli.syncing import sync_stores

    options = Options(asset or ("*",), replace=replace, move=move, verify=verify, dry_run=dry_run)
    if not sync_stores(source, target, options, console(stderr=as_json), switch=switch, as_json=as_json):
        raise typer.Exit(FAILED)
