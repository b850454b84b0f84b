"""Names that documentation puts in backticks, looked up in what there is: settings, commands, files, variables."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel

from aframe_assets.config import Config
from aframe_assets.store.base import ArtifactStore
from aframe_ops.cli import main as cli
from aframe_ops.cli import upstream_init
from aframe_ops.site import SiteConfig

REPO = Path(__file__).resolve().parents[2]

FILE = re.compile(r"[\w.*-]+\.(hdf5|h5|json|csv|txt|html|png|yaml|yml|sh|onnx|pt|pt2|ckpt|safetensors|pbtxt|py|md|mako)")
AFRAMES = {"model.pt", "best.ckpt", "batch.hdf5", "timeseries.hdf5", "train.yaml", "tune.yaml"}
"""Files that a page names because Aframe has them."""

SHIPPED = {"CARD.md", "efficiency.svg", "search.json"}
"""Files that the shipped model has beside its bundle."""

OTHER_RUNS = {"audit.hdf5"}
"""Files that the demo does not make."""


def is_key(dotted: str, of: type[BaseModel] = Config) -> bool:
    """Whether `of` has the setting at this path."""
    model: type = of
    for part in dotted.split("."):
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            return False
        kinds = [k for k in (fields[part].annotation, *getattr(fields[part].annotation, "__args__", ())) if isinstance(k, type)]
        model = next((k for k in kinds if issubclass(k, BaseModel)), object)
    return True


def importable(dotted: str) -> bool:
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[n:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def subcommands(command: Any) -> dict[str, Any]:
    # typer's groups are not of the installed click's classes
    return getattr(command, "commands", {})


def is_command(words: list[str], command: Any) -> bool:
    """Whether `words` (after the program's name) are subcommands and options that exist."""
    while words and words[0] in subcommands(command):
        command = subcommands(command)[words.pop(0)]
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    unknown = subcommands(command) and words and not words[0].startswith("-")
    return not unknown and all(w.split("=")[0] in known for w in words if w.startswith("-"))


def problem(name: str, page: str, files: set[str], source: str) -> str | None:
    """What is wrong with a name in backticks, if it is of a kind that can be looked up."""
    words = name.split()
    if words[0] in ("aframe", "aframe-init", "dagster") and len(words) > 1:
        from dagster._cli import create_dagster_cli

        roots = {"aframe": lambda: typer.main.get_command(cli.app), "aframe-init": lambda: typer.main.get_command(upstream_init.app)}
        root = roots.get(words[0], create_dagster_cli)()
        return None if is_command(words[1:], root) else "no such command"
    if words[0] == "make" and len(words) == 2:
        return None if re.search(rf"^{words[1]}:", (REPO / "Makefile").read_text(), re.MULTILINE) else "no such target of make"
    if len(words) > 1:
        return None
    if name.startswith(("aframe_assets", "aframe_ops", "tests/")) and "/" in name:
        return None if list(REPO.glob(name)) else "no such file"
    if name.startswith(("aframe_assets.", "aframe_ops.")) and not FILE.fullmatch(name):
        return None if importable(name) else "cannot be imported"
    if name.startswith("AFRAME__"):
        return None if name == "AFRAME__" or is_key(name[8:].lower().replace("__", ".")) else "no such key"
    if page.startswith("from-") and name in AFRAMES:
        return None
    if re.fullmatch(r"(AFRAME|AWS|LIGO)_\w+", name):
        return None if name in source else "no such variable in the source"
    if re.fullmatch(r"(parameters|waveforms)/\w+", name) or FILE.fullmatch(name):
        own = {p.name for p in REPO.glob("*")} | {p.name for p in (REPO / "aframe_assets").rglob("*")}
        return None if name in files | own | OTHER_RUNS else "no such file or dataset in a finished run"
    root = name.split(".")[0]
    if re.fullmatch(r"\w+(\.\w+)+", name) and root in Config.model_fields:
        return None if is_key(name) else "no such setting"
    if re.fullmatch(r"\w+(\.\w+)+", name) and root in SiteConfig.model_fields:
        return None if is_key(name, SiteConfig) or hasattr(ArtifactStore, name.split(".")[1]) else "no such key of site.yaml"
    return None
