"""Entry point of the `aframe` command. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from aframe_assets.config_load import ConfigError, preset_names

OK, FAILED, USAGE = 0, 1, 2

app = typer.Typer(
    name="aframe",
    help="A gravitational-wave search as an asset graph: make it, see what is complete and why, look at data.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
segments_app = typer.Typer(help="The segments: chunks of coincident science time.", no_args_is_help=True)
config_app = typer.Typer(help="The experiment's settings.", no_args_is_help=True)
app.add_typer(segments_app, name="segments")
app.add_typer(config_app, name="config")
mlgwsc1_app = typer.Typer(help="The mock data challenge MLGWSC-1 (arXiv:2209.11146).", no_args_is_help=True)
app.add_typer(mlgwsc1_app, name="mlgwsc1")

Preset = StrEnum("Preset", {name: name for name in preset_names()})
Device = StrEnum("Device", {name: name for name in ("auto", "cpu", "cuda")})
Directory = Annotated[Path | None, typer.Argument(help="Run directory; default: the current one.", show_default=False)]

Segments = Annotated[
    list[str] | None,
    typer.Option(
        help="Only these: a segment, GPS times as 1240600000..1240700000, a role, missing, failed, or @FILE; several with commas. "
        "Given again: those that fit both.",
        show_default=False,
    ),
]


def console(stderr: bool = False) -> Console:
    """A console that does not break lines of a file or pipe; on stderr it stays there while a run sends its own stderr to a file."""
    where = sys.stderr if stderr else None
    made = Console(file=where, highlight=False)
    return made if made.is_terminal else Console(file=where, highlight=False, width=200)


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns the errors that a user can mend into one line each and an exit code."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except Exception as e:
            # Errors of our own classes are written for users; anything else is a defect and keeps its trace.
            if not type(e).__module__.startswith(("aframe_assets", "aframe_ops")):
                raise
            for line in str(e).splitlines():
                typer.echo(f"aframe: {line}", err=True)
            raise typer.Exit(USAGE if isinstance(e, ConfigError) else FAILED) from None

    return guarded


@app.command(
    epilog="Example: aframe init runs/demo --preset demo\n\n"
    "Example: aframe init runs/real --preset events --strain data/strain --weights pretrained\n\n"
    "Example: aframe init runs/shared --preset demo --store s3://bucket/demo --database env:AFRAME_DATABASE --profile slurm"
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
    "Example: aframe run runs/demo --segments 1240610000.. --segments failed --until inference_results"
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


@app.command(epilog="Example: aframe plan runs/demo --until psd")
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


@app.command(epilog="Example: aframe status runs/demo --why\n\nExample: aframe status runs/demo --asset background")
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


@app.command(epilog="Example: aframe report runs/demo")
@command
def report(directory: Directory = None) -> None:
    """Prints what a finished run has found, and where its report is."""
    from aframe_ops.cli.exporting import show_report
    from aframe_ops.run_directory import RunDirectory

    show_report(RunDirectory.find(directory).workspace(), console())


@app.command(epilog="Example: aframe export runs/demo --to results --format report --format ligolw")
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


@app.command(epilog="Example: aframe crate runs/demo --to demo.zip --author 'A. Person <0000-0002-1825-0097>'")
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


@app.command(epilog="Example: aframe reap runs/demo --dry-run")
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


@app.command(epilog="Example: aframe verify runs/demo\n\nExit code: 0 every file is as recorded, 1 some are not")
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


@app.command(epilog="Example: aframe prune runs/demo\n\nExample: aframe prune runs/demo --runs 30 --yes")
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


@app.command(epilog="Example: aframe incoming runs/live --only bad")
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
    "Example: aframe adopt training_waveforms old/train_waveforms.hdf5 --to runs/mine"
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
    "Exit code: 0 the target has all of it, 1 something is damaged, differs or could not be copied, 2 the command cannot be understood"
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


@app.command(epilog="Example: aframe retry runs/demo\n\nExample: aframe retry runs/demo --asset background --segment 1240610000-64 --again")
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


@app.command(epilog="Example: aframe detect --model pretrained H-H1_LOSC_4_V2-1126259446-32.hdf5 L-L1_LOSC_4_V2-1126259446-32.hdf5")
@command
def detect(
    files: Annotated[list[Path], typer.Argument(help="Strain files, at least one per detector.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(help="Run directory, model bundle, exported network, engine, or 'pretrained'.", show_default="pretrained"),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Run directory whose engine is used, instead of --model.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Looks for the loudest candidates in a few strain files."""
    from aframe_ops.cli.detecting import show_detection

    show_detection(run, model, files, console(), as_json=as_json)


@app.command(
    epilog="Example: aframe compare runs/wide 'bundles/*' pretrained --on runs/demo\n\n"
    "Example: aframe compare 'runs/seed-*' --on runs/demo --soft --json > comparison.json"
)
@command
def compare(
    models: Annotated[
        list[str], typer.Argument(help="Model bundles, run directories, globs of them, or 'pretrained'.", show_default=False)
    ],
    on: Annotated[
        Path | None, typer.Option(help="Run directory whose test data and injections all are searched on.", show_default="the current one")
    ] = None,
    soft: Annotated[bool, typer.Option("--soft", help="Go on without models that are missing or broken.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show Dagster's own log as well.")] = False,
) -> None:
    """Searches the same strain and injections with many models, and says how they differ and how sure that is."""
    from aframe_ops.cli.comparing import compare_models
    from aframe_ops.run_directory import RunDirectory

    if not compare_models(RunDirectory.find(on), models, console(stderr=as_json), soft=soft, as_json=as_json, verbose=verbose):
        raise typer.Exit(FAILED)


@mlgwsc1_app.command("train-config", epilog="Example: aframe mlgwsc1 train-config runs/ds1 --dataset 1")
@command
def mlgwsc1_train_config(
    dataset: Annotated[int, typer.Option(help="Data set of the challenge: 1, 2 or 3.", show_default=False)],
    directory: Annotated[Path | None, typer.Argument(help="Directory to make.", show_default="mlgwsc1-DATASET")] = None,
    asd: Annotated[
        list[str] | None,
        typer.Option(help="IFO=CURVE: noise curve of a detector, a file of frequency and ASD or one of bilby's.", show_default=False),
    ] = None,
) -> None:
    """Makes a run directory whose model is for a data set: `aframe run` trains it."""
    from aframe_ops.cli.mlgwsc1 import train_config

    train_config(directory or Path(f"mlgwsc1-{dataset}"), dataset, asd or [], console())


@mlgwsc1_app.command(
    "analyze",
    epilog="Example: aframe mlgwsc1 analyze --model runs/ds1 background.hdf -o background-events.hdf\n\n"
    "Example: aframe mlgwsc1 analyze --model runs/ds1 foreground-0.hdf foreground-1.hdf -o foreground-events.hdf",
)
@command
def mlgwsc1_analyze(
    files: Annotated[list[Path], typer.Argument(help="Strain files of the challenge: parts of one data set.", show_default=False)],
    model: Annotated[str, typer.Option(help="Run directory, model bundle, exported network, engine, or 'pretrained'.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="File of events to write.", show_default=False)],
    threshold: Annotated[
        float | None, typer.Option(help="Leave fainter events out.", show_default="the loudest of each cluster window is kept")
    ] = None,
    var: Annotated[
        float | None, typer.Option(min=1e-3, help="Seconds within which the merger lies.", show_default="by calibration")
    ] = None,
    refine_above: Annotated[
        float | None, typer.Option(help="Statistic above which an event is scored again, finely, for its time.", show_default="0")
    ] = None,
    cover_start: Annotated[
        bool, typer.Option(help="Search the first seconds of a segment too, which otherwise only give its first PSD.")
    ] = True,
    device: Annotated[Device, typer.Option(help="Where the network runs.")] = Device.auto,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of events if there is one.")] = False,
) -> None:
    """Searches strain of any length and writes its events (time, stat, var) as the challenge's evaluation reads them."""
    from aframe_ops.cli.mlgwsc1 import analyze

    analyze(
        files,
        model,
        output,
        console(),
        threshold=threshold,
        var=var,
        refine_above=refine_above,
        cover_start=cover_start,
        device=device.value,
        overwrite=overwrite,
    )


@app.command(epilog="Example: aframe serve --install\n\nExample: aframe serve runs/demo")
@command
def serve(
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="Run directory or model repository to serve; with --install, where the server is put.", show_default="the current one"
        ),
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="Install the server, in an environment of its own, and stop.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="With --install: the ONNX Runtime that uses NVIDIA devices.")] = False,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Beyond loopback, everyone who reaches it may use the server.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1024, max=65533, help="Port of gRPC; HTTP and metrics take the next two.", show_default="free ones")
    ] = None,
) -> None:
    """Keeps a Triton server up on the models of a finished run, until Ctrl-C."""
    from aframe_ops.cli.serving import install_server, serve_models

    if install:
        install_server(directory, console(), gpu=gpu)
    else:
        serve_models(directory, console(), host=host, port=port)


@app.command(epilog="Example: aframe wheelhouse /shared/wheels --python 3.11 --platform manylinux_2_28_x86_64")
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
    "2 there is no run directory or its files cannot be read"
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


def main() -> None:
    """Console script."""
    try:
        app()
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
