"""Commands on models: to look with one, to compare and to serve them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aframe_ops.cli.app import FAILED, MODELS, Device, app, command, console, mlgwsc1_app


@app.command(
    epilog="Example: aframe detect --model pretrained H-H1_LOSC_4_V2-1126259446-32.hdf5 L-L1_LOSC_4_V2-1126259446-32.hdf5",
    rich_help_panel=MODELS,
)
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
    "Example: aframe compare 'runs/seed-*' --on runs/demo --soft --json > comparison.json",
    rich_help_panel=MODELS,
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


@app.command(epilog="Example: aframe serve --install\n\nExample: aframe serve runs/demo", rich_help_panel=MODELS)
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
