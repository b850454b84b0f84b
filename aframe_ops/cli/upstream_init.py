"""`aframe-init`, as users of Aframe know it, whether by law (`offline`) or by Snakemake (`snakemake`).

Of Aframe's variables those that say where things are keep their meaning: ``AFRAME_TRAIN_BACKGROUND_DIR`` and
``AFRAME_TEST_BACKGROUND_DIR`` (strain to read), ``AFRAME_RESULTS_DIR`` (where results are kept); ``LIGO_USERNAME`` and
``LIGO_GROUP`` are kept in ``env.sh`` for the batch systems that account by them.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from aframe_assets.config_load import ConfigError, merge
from aframe_ops.cli.main import command, console

MODES = {"sandbox": "o3", "tune": "tune", "review": "review"}
"""Aframe's modes and the presets that hold their values."""

Mode = StrEnum("Mode", {name: name for name in MODES})
Preset = StrEnum("Preset", {name: name for name in ("o3", "review", "small")})

app = typer.Typer(
    name="aframe-init",
    help="Makes a run directory, in Aframe's spelling. The same as `aframe init`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def group() -> None:
    """Makes a run directory, in Aframe's spelling. The same as `aframe init`."""


@app.command(epilog="Example: aframe-init offline --mode sandbox -d runs/o3 --s3-bucket s3://my-bucket/o3")
@command
def offline(
    directory: Annotated[Path, typer.Option("-d", "--directory", help="Directory to make.", show_default=False)],
    mode: Annotated[Mode, typer.Option(help="Which analysis.")] = Mode.sandbox,  # type: ignore[attr-defined]
    s3_bucket: Annotated[
        str | None, typer.Option(help="Where training data and networks are kept; begins with s3://.", show_default=False)
    ] = None,
    weights_dir: Annotated[Path | None, typer.Option(help="Trained model to use instead of training.", show_default=False)] = None,
) -> None:
    """An analysis of recorded data."""
    if s3_bucket is not None and not s3_bucket.startswith("s3://"):
        raise ConfigError(f"--s3-bucket {s3_bucket}: expected an address that begins with s3://")
    _make(directory, MODES[mode.value], s3_bucket, str(weights_dir) if weights_dir else None)


@app.command(epilog="Example: aframe-init snakemake -d runs/small --preset small")
@command
def snakemake(
    directory: Annotated[Path, typer.Option("-d", "--directory", help="Directory to make.", show_default=False)],
    preset: Annotated[Preset, typer.Option(help="Which analysis.")] = Preset.o3,  # type: ignore[attr-defined]
) -> None:
    """An analysis of recorded data, as Aframe's Snakemake pipeline names it."""
    _make(directory, preset.value, None, None)


@app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@command
def online() -> None:
    """Refused: there is no online search."""
    raise ConfigError(
        "online: there is no online search here; `aframe detect` searches files, `aframe-init offline` makes an analysis of recorded data"
    )


def _make(directory: Path, preset: str, bucket: str | None, weights: str | None) -> None:
    """Makes the run directory that Aframe's command and variables ask for, and says what comes next."""
    from aframe_ops.cli.initialise import initialise, overrides_of

    overrides = merge(overrides_of(None, weights, preset), strain_of(os.environ))
    store = os.environ.get("AFRAME_RESULTS_DIR") or None
    run, new = initialise(directory, preset, overrides=overrides, store=store, training_store=bucket)
    if new:
        keep_identity(run.path / "env.sh", os.environ)
    out = console()
    out.print(f"{run.path}: {'new run directory' if new else 'is this experiment already'} (preset {preset})", soft_wrap=True)
    out.print(f"next: {shlex.quote(str(run.path / 'run.sh'))}", soft_wrap=True)


def strain_of(env: Mapping[str, str]) -> dict[str, Any]:
    """Overrides that Aframe's background directories stand for; none if they are not set."""
    folders = [env[k] for k in ("AFRAME_TRAIN_BACKGROUND_DIR", "AFRAME_TEST_BACKGROUND_DIR") if env.get(k)]
    if not folders:
        return {}
    for folder in folders:
        if "://" not in folder and not Path(folder).exists():
            raise ConfigError(f"AFRAME_*_BACKGROUND_DIR = {folder}: no such folder; expected strain files, or leave the variable unset")
    files = list(dict.fromkeys(f if "://" in f else str(Path(f).resolve()) for f in folders))
    return {"segments": {"source": "strain_files"}, "strain": {"source": "files", "files": files}}


def keep_identity(path: Path, env: Mapping[str, str]) -> None:
    """Adds ``LIGO_USERNAME`` and ``LIGO_GROUP`` to `env.sh`, for cron jobs and other shells."""
    lines = [f"export {name}={shlex.quote(env[name])}\n" for name in ("LIGO_USERNAME", "LIGO_GROUP") if env.get(name)]
    with path.open("a") as f:
        f.writelines(lines)


def main() -> None:
    """Console script."""
    app()


if __name__ == "__main__":
    main()
