"""`aframe sync`: artifacts from one store to another."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter, defaultdict
from pathlib import Path

import typer
import yaml
from rich.console import Console
from rich.table import Table

from aframe_assets.config_load import ConfigError
from aframe_assets.store.base import ArtifactStore
from aframe_assets.store.opening import open_store
from aframe_assets.store.syncing import Options, Outcome, State, sync
from aframe_ops.cli.progress import size
from aframe_ops.run_directory import RunDirectory
from aframe_ops.site import load_site

STATES: tuple[State, ...] = ("copied", "would copy", "there", "differs", "damaged", "failed")
BAD: tuple[State, ...] = ("differs", "damaged", "failed")
TELL_S = 30.0
SHOWN = 10


def store_of(address: str) -> ArtifactStore:
    """The store that a run directory uses, or the one at an address.

    Raises:
        ConfigError: a run directory whose site cannot be read, or an address of another kind.
    """
    if "://" not in address and (Path(address) / "aframe.yaml").is_file():
        return RunDirectory.find(address).workspace().store
    try:
        return open_store(address)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def sync_stores(source: str, target: str, options: Options, console: Console, *, switch: bool, as_json: bool) -> bool:
    """Copies or moves what there is, tells it, and returns whether the target has all of it.

    Raises:
        ConfigError: an address that is none, or `switch` where it has no meaning.
        StoreError: a store that cannot be reached; no asset of that name; no space.
    """
    if "://" not in source and not Path(source).expanduser().is_dir():
        # a name that is misspelt would be a store with nothing in it
        raise ConfigError(f"{source}: no such folder; expected a run directory, or the address of a store")
    run = _switchable(source, target, options) if switch else None
    have, want = store_of(source), store_of(target)
    found: list[Outcome] = []
    told = time.monotonic()
    for outcome in sync(have, want, options):
        found.append(outcome)
        if time.monotonic() - told > TELL_S:
            told = time.monotonic()
            console.print(f"{len(found)} artifacts so far, {size(_copied(found))} copied", soft_wrap=True)
    bad = [o for o in found if o.state in BAD]
    if as_json:
        typer.echo(json.dumps({"source": have.url, "target": want.url, "artifacts": [o._asdict() for o in found]}, indent=1))
    else:
        _show(found, bad, console)
    if run is not None and not bad and not options.dry_run:
        _switch(run, want)
        console.print(f"{run.path / 'site.yaml'}: store.root is {_root(want)} now", soft_wrap=True)
    return not bad


def _copied(found: list[Outcome]) -> int:
    return sum(o.nbytes for o in found if o.state in ("copied", "would copy"))


def _show(found: list[Outcome], bad: list[Outcome], console: Console) -> None:
    if not found:
        console.print("nothing to copy: the source holds no finished artifact")
        return
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for o in found:
        counts[o.asset][o.state] += 1
    shown = [state for state in STATES if any(c[state] for c in counts.values())]
    table = Table(box=None, pad_edge=False)
    table.add_column("asset")
    for state in (*shown, "bytes copied"):
        table.add_column(state, justify="right")
    for asset, count in counts.items():
        moved = _copied([o for o in found if o.asset == asset])
        table.add_row(asset, *(str(count[state] or "") for state in shown), size(moved) if moved else "")
    console.print(table)
    for o in bad[:SHOWN]:
        name = o.asset if o.partition is None else f"{o.asset}[{o.partition}]"
        console.print(f"{name} {o.state}: {o.why}", soft_wrap=True)
    if len(bad) > SHOWN:
        console.print(f"and {len(bad) - SHOWN} more; --json names all")
    if any(o.state == "differs" for o in bad):
        console.print("--replace takes the source's version where the target has another one")


def _switchable(source: str, target: str, options: Options) -> RunDirectory:
    if "://" in source or not (Path(source) / "aframe.yaml").is_file():
        raise ConfigError(f"--switch: changes the site.yaml of a run directory, and {source} is none")
    if "://" not in target and (Path(target) / "aframe.yaml").is_file():
        raise ConfigError(f"--switch: {target} is a run directory; give the address of its store, which both would use then")
    if tuple(options.assets) != ("*",):
        raise ConfigError("--switch: the new store has to hold everything; leave --asset out")
    run = RunDirectory.find(source)
    if run.site().store.training:
        raise ConfigError(f"--switch: {run.path / 'site.yaml'} has two stores (store.training); set there what is to change")
    return run


def _root(store: ArtifactStore) -> str:
    return str(getattr(store, "root", store.url))


def _switch(run: RunDirectory, store: ArtifactStore) -> None:
    """Writes the new address into the line of site.yaml that has the old one; all else there stays as it is.

    Raises:
        ConfigError: there is no such line.
    """
    file = run.path / "site.yaml"
    text = file.read_text() if file.exists() else "store:\n  root: store\n"
    value = yaml.safe_dump(_root(store), default_flow_style=True, width=10**6).splitlines()[0]
    new, count = re.subn(r"(?m)^(store:[^\n]*\n(?:[ \t#][^\n]*\n|\n)*?[ \t]+root:[ \t]*)[^\s#]\S*", lambda m: m[1] + value, text, count=1)
    temporary = file.with_name(f".site~{os.getpid()}.yaml")
    try:
        temporary.write_text(new)
        if not count or open_store(load_site(temporary).store_url).url != store.url:
            raise ConfigError(f"{file}: has no line `root: ...` below `store:` that can be changed; set store.root to {_root(store)} there")
        if file.exists():
            # its lines of shell may hold what others are not to read
            shutil.copymode(file, temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
