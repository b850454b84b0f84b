"""Files that are there already become artifacts of a run directory, once they are found to be what it would make."""

from __future__ import annotations

import getpass
import importlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from aframe_assets.config_load import ConfigError
from aframe_assets.store.files import file_sha256
from aframe_assets.store.handle import Handle
from aframe_assets.store.job import Job, Product
from aframe_assets.store.workspace import MissingArtifact, Workspace

ADOPTERS = {
    "background": ("aframe_assets.strain.adopting", "adopt_background"),
    "training_waveforms": ("aframe_assets.waveforms.adopting", "adopt_training"),
    "validation_waveforms": ("aframe_assets.waveforms.adopting", "adopt_validation"),
}
"""Asset -> module and function (job, path) -> product. Models are taken over with ``model.weights``."""

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


class AdoptError(RuntimeError):
    """A file that cannot be adopted; the message says why."""


def adopt(workspace: Workspace, asset: str, files: Sequence[Path], sums: Path | None = None) -> dict[Path, Handle]:
    """Makes each file the artifact of `asset` that the experiment asks for now. All are looked at before the first is taken.

    Args:
        files: of a partitioned asset one for each segment, told by the times in its name.
        sums: their sha256, as sha256sum writes them.

    Raises:
        ConfigError: an asset that is not adopted, or files that fit no segment.
        AdoptError: a file whose content is not that of `sums`, or whose check fails.
        MissingArtifact: an input of the asset is not there.
        RuntimeError: a file of another layout (StrainError, LayoutError).
    """
    if asset not in workspace.graph or asset not in ADOPTERS:
        there = [a for a in ADOPTERS if a in workspace.graph]
        raise ConfigError(f"'{asset}' is not adopted; expected one of {', '.join(there)} (a model: `aframe init --weights`)")
    if absent := [p for p in files if not p.is_file()]:
        raise ConfigError(f"{absent[0]}: no such file")
    where = _partitions(workspace, files) if workspace.graph[asset].partitioned else {_one(asset, files): None}
    if sums is not None:
        _require_sums(files, _read_sums(sums))
    for path, partition in where.items():
        _product(workspace, asset, partition, path)
    return {path: _publish(workspace, asset, partition, path) for path, partition in where.items()}


def _one(asset: str, files: Sequence[Path]) -> Path:
    if len(files) != 1:
        raise ConfigError(f"{asset}: expected one file, got {len(files)}")
    return files[0]


def _partitions(workspace: Workspace, files: Sequence[Path]) -> dict[Path, str]:
    from aframe_assets.strain.background_file import parse_background_name

    try:
        rows = workspace.rows()
    except MissingArtifact as e:
        raise ConfigError(str(e)) from None
    times = {(float(r["gps_start"]), float(r["gps_stop"])): p for p, r in rows.items()}
    out: dict[Path, str] = {}
    for path in files:
        try:
            start, stop = parse_background_name(path)
        except ValueError as e:
            raise ConfigError(str(e)) from None
        if (start, stop) not in times:
            near = min(times, key=lambda t: abs(t[0] - start) + abs(t[1] - stop), default=None)
            other = f"; nearest is {near[0]:.10g} to {near[1]:.10g}" if near else ""
            raise ConfigError(f"{path}: no segment is GPS {start:.14g} to {stop:.14g}{other}; see `aframe segments list`")
        if times[start, stop] in out.values():
            raise ConfigError(f"{path}: another of these files is of the same segment {times[start, stop]}")
        out[path] = times[start, stop]
    return out


def _read_sums(path: Path) -> dict[str, str]:
    """sha256 by name of a file."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"--sums {path}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
    out = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            found = _LINE.fullmatch(line)
            if found is None:
                raise ConfigError(f"{path}, line {number}: expected 'SHA256  NAME' as sha256sum writes it, got {line[:80]!r}")
            out[Path(found[2]).name] = found[1].lower()
    return out


def _require_sums(files: Sequence[Path], sums: Mapping[str, str]) -> None:
    for path in files:
        if path.name not in sums:
            raise AdoptError(f"{path}: is not among the sha256 sums that were given")
        if (found := file_sha256(path)) != sums[path.name]:
            raise AdoptError(f"{path}: its sha256 is {found[:12]}..., expected {sums[path.name][:12]}...: it was changed or cut short")


def _product(workspace: Workspace, asset: str, partition: str | None, path: Path, job: Job | None = None) -> Product:
    """What the file becomes. Raises as `adopt`."""
    module, name = ADOPTERS[asset]
    if job is None:
        wanted = workspace.wanted(asset, partition)
        with workspace.store.scratch() as scratch:
            what = workspace.config, asset, partition, wanted.inputs, wanted.row, workspace.store
            return _product(workspace, asset, partition, path, Job(*what, scratch, scratch, logging.getLogger(__name__)))
    product = getattr(importlib.import_module(module), name)(job, path)
    if failed := [c for c in product.checks if not c.passed and c.severity == "error"]:
        raise AdoptError(f"{path}: check {failed[0].name} fails: {failed[0].description}")
    return replace(product, meta={**product.meta, "adopted_from": str(path.absolute())})


def _publish(workspace: Workspace, asset: str, partition: str | None, path: Path) -> Handle:
    from aframe_assets.store.bodies import produce

    wanted = workspace.wanted(asset, partition)
    if (there := workspace.store.complete(wanted.parts)) is not None:
        return there
    who, log = f"adopted by {getpass.getuser()}", logging.getLogger(__name__)
    return produce(workspace, wanted, lambda job: _product(workspace, asset, partition, path, job), {}, who, log)[0]
