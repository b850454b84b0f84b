"""The `aframe` command's application, and what its commands share."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from aframe_assets.config_load import ConfigError, preset_names

FAILED, USAGE = 1, 2
"""Exit codes."""

_OF_A_PLACE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
"""What the system says of files and folders that a user has named, and can mend."""

# groups of commands in `aframe --help`
THE_SEARCH = "The search"
WHAT_IS_KEPT = "What is kept"
MODELS = "Models"
MACHINES = "Machines"

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
app.add_typer(segments_app, name="segments", rich_help_panel=THE_SEARCH)
app.add_typer(config_app, name="config", rich_help_panel=THE_SEARCH)
mlgwsc1_app = typer.Typer(help="The mock data challenge MLGWSC-1 (arXiv:2209.11146).", no_args_is_help=True)
app.add_typer(mlgwsc1_app, name="mlgwsc1", rich_help_panel=MODELS)

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
    # names of folders and segments hold brackets, which rich's markup would take for styles
    made = Console(file=where, highlight=False, markup=False)
    return made if made.is_terminal else Console(file=where, highlight=False, markup=False, width=200)


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns the errors that a user can mend into one line each and an exit code."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except Exception as e:
            # Errors of our own classes are written for users; anything else is a defect and keeps its trace.
            text = str(e)
            if not type(e).__module__.startswith(("aframe_assets", "aframe_ops")):
                if not isinstance(e, OSError) or e.errno not in _OF_A_PLACE or e.filename is None:
                    raise
                text = f"{e.filename}: {e.strerror}; change that, or name another place, then run the same command again"
            for line in text.splitlines():
                typer.echo(f"aframe: {line}", err=True)
            raise typer.Exit(USAGE if isinstance(e, ConfigError) else FAILED) from None

    return guarded
