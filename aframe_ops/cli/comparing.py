"""`aframe compare`: many models on the strain and injections of one run."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from aframe_assets.comparing.models import Asked, ComparisonError, expand, keep_bundle, read_model, step_name
from aframe_assets.config import Comparison
from aframe_assets.config_load import ConfigError

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.base import ArtifactStore
    from aframe_assets.store.workspace import Workspace
    from aframe_ops.run_directory import RunDirectory


def compare_models(
    run: RunDirectory, names: Sequence[str], out: Console, *, soft: bool, as_json: bool = False, verbose: bool = False
) -> bool:
    """Compares models on `run` and prints the result; whether there is one.

    Args:
        names: paths, globs and 'pretrained'.
        out: where everything but JSON goes.
        soft: models that are missing or broken are left out and reported; otherwise nothing is searched with any of them there,
            and there is no result if one breaks later.
        as_json: the result goes to stdout as JSON.

    Raises:
        ConfigError: a run that models cannot be compared on.
        StoreError: its store cannot be written.
    """
    from aframe_ops.cli.running import RunFailed, run_all

    config = run.config()
    if not config.injections.num_signals:
        raise ConfigError(f"{run.path}: injections.num_signals = 0: models are compared by the injections that they find")
    store = run.workspace(config).store
    models, broken = _look(expand(names), config, store, out)
    here = [] if Path.cwd() == run.path else ["--on", os.path.relpath(run.path)]
    again = shlex.join(["aframe", "compare", *names, *here, *(["--soft"] if soft else [])])
    if broken and not soft:
        out.print("nothing was searched: mend or leave out what is broken, or go on without it: --soft", style="red")
        return False
    while models:
        chosen = config.model_copy(update={"comparison": Comparison(models=models, broken=broken)})
        try:
            workspace = run_all(run, out, until="comparison", verbose=verbose, config=chosen, again=again)
        except RunFailed as e:
            failed = {f"compared_models.make_compared_models[{step_name(*_first(models, sha256))}]": sha256 for _, sha256 in models}
            dead = {failed[key]: reason for key, reason in e.failed.items() if key in failed}
            if not soft or not dead:
                return False
            broken = broken | {name: dead[sha256] for name, sha256 in models if sha256 in dead}
            models = [(name, sha256) for name, sha256 in models if sha256 not in dead]
            out.print(f"going on without {', '.join(n for n in broken)}", style="yellow", soft_wrap=True)
            continue
        _show(run, workspace, out, as_json)
        return True
    out.print("none of the models can be compared", style="red")
    return False


def _first(models: Sequence[tuple[str, str]], sha256: str) -> tuple[str, str]:
    """The first of the models with this bundle, which its step is named after."""
    return next((n, s) for n, s in models if s == sha256)


def _look(asked: Sequence[Asked], config: Config, store: ArtifactStore, out: Console) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(name, sha256) of each good model, now in the store; and name -> what is wrong with each other one, which is printed."""
    good, broken = [], {}
    for model in asked:
        try:
            folder = read_model(model.weights, config)
        except ComparisonError as e:
            broken[model.name] = str(e)
            out.print(f"✗ {model.name}: {e}", style="red", soft_wrap=True)
            continue
        good.append((model.name, keep_bundle(store, folder)))
    return good, broken


def _show(run: RunDirectory, workspace: Workspace, out: Console, as_json: bool) -> None:
    """The result: a table for each rate, what must be said beside them, and where the page is."""
    from aframe_assets.comparing.assets import PAGE, RESULT
    from aframe_assets.comparing.summary import notes, rate_tables

    handle = workspace.complete("comparison")
    table: Mapping[str, Any] = json.loads(workspace.store.open_local(handle, RESULT).read_text())
    page = workspace.store.open_local(handle, PAGE)
    if as_json:
        typer.echo(json.dumps({"run": str(run.path), "store": workspace.store.url, "page": str(page), **table}, indent=1))
        return
    for found in rate_tables(table):
        shown = Table(title=found.title, title_justify="left", box=None, pad_edge=False)
        for name in found.columns:
            shown.add_column(name)
        for row in found.rows:
            shown.add_row(*row)
        out.print(shown)
    for line in notes(table):
        out.print(line, soft_wrap=True)
    out.print(f"page: {page}", soft_wrap=True)
