"""A run as an RO-Crate: its results with a record of how they were made, for an archive or a paper.

The crate follows RO-Crate 1.1 and its profile Process Run Crate 0.5: every asset is a `CreateAction` from the artifacts it read to what it
made, with this package as the instrument. Small artifacts are copied; of large ones the crate has the address in the store, the size and
the sha256, and the manifests of all.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aframe_assets import lineage
from aframe_assets.provenance.citations import CC_BY, SOFTWARE, Source, data_sources

if TYPE_CHECKING:
    from aframe_assets.store.handle import Manifest
    from aframe_assets.store.workspace import Workspace

VERSION = "1.1"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
TERMS = "https://w3id.org/ro/terms/workflow-run/context"
COPIED = 50_000_000
"""Bytes up to which an artifact is copied into the crate."""

PACKAGE = "aframe-dagster"
_TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".html": "text/html",
    ".png": "image/png",
    ".h5": "application/x-hdf5",
    ".hdf5": "application/x-hdf5",
    ".xml.gz": "application/gzip",
    ".yaml": "application/yaml",
}


class CrateError(ValueError):
    """A crate that cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class About:
    """What only its author knows of a crate.

    Attributes:
        authors: name -> ORCID as an address, or '' without one.
        licence: address of the licence under which the crate is given away; empty for CC BY 4.0, as that of open strain.
        copied: bytes up to which an artifact is copied; None for all of them.
    """

    authors: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""
    copied: int | None = COPIED


def current(workspace: Workspace) -> dict[str, dict[str | None, Manifest]]:
    """Manifests of the artifacts that the experiment asks for and that are there: asset -> partition -> manifest, upstream first."""
    from aframe_assets.store.workspace import MissingArtifact

    out: dict[str, dict[str | None, Manifest]] = {}
    for asset, node in workspace.graph.items():
        wanted = {}
        with suppress(MissingArtifact):
            keys: list[str | None] = [*workspace.partitions()] if node.partitioned else [None]
            for p in keys:
                with suppress(MissingArtifact):
                    wanted[p] = workspace.wanted(asset, p).parts
        known = {p: m for p in wanted if (m := workspace.manifest(asset, p)) is not None}
        # one listing instead of requests for each of thousands of segments
        if there := workspace.store.complete_many(wanted.values(), known):
            out[asset] = {p: known[p] for p in wanted if p in there}
    return out


def write_crate(workspace: Workspace, target: Path, about: About | None = None) -> Path:
    """Writes the crate of a run.

    Args:
        workspace: the experiment and its store.
        target: a folder that is made, or a file ``*.zip``.
        about: authors and licence.

    Returns:
        `target`.

    Raises:
        CrateError: `target` is there already, nothing of the run is complete, a file is not what its manifest says, or strain is not
            known to be public and no licence was named.
        ModuleNotFoundError: rocrate is not installed.
    """
    from rocrate.model.contextentity import ContextEntity
    from rocrate.rocrate import ROCrate

    about = about or About()
    if target.exists():
        raise CrateError(f"{target}: is there already; give a name that is not taken, or remove it first")
    manifests = current(workspace)
    if not manifests:
        raise CrateError("nothing of this run is complete; make it with `aframe run` first")
    config = workspace.config
    data = data_sources(config, [(r["gps_start"], r["gps_stop"]) for r in workspace.rows().values()])
    if not about.licence and any(s.kind == "data" and not s.licence for s in data):
        raise CrateError(
            "strain.source: frames: this strain is not known to be public, so the crate has no licence by itself; "
            "ask the collaborations whose data it is, then name the licence's address with --license"
        )
    licence = about.licence or CC_BY
    crate = ROCrate(version=VERSION)
    crate.metadata.extra_contexts.append(TERMS)

    def named(id: str, kind: str | list[str], **more: Any) -> Any:
        return crate.add(ContextEntity(crate, id, properties={"@type": kind, **more}))

    root = crate.root_dataset
    crate.name = f"{config.name}: a gravitational-wave search"
    crate.description = (
        f"Artifacts and provenance of a search for compact binary mergers in data of {', '.join(config.ifos)} "
        f"(preset {config.preset}, seed {config.seed}), made with {PACKAGE}."
    )
    crate.license = named(licence, "CreativeWork", name="Licence of this crate", url=licence)
    root["conformsTo"] = named(PROFILE, "CreativeWork", name="Process Run Crate", version=PROFILE.rsplit("/", 1)[1])
    authors = [named(orcid or f"#{name.replace(' ', '-')}", "Person", name=name) for name, orcid in about.authors.items()]
    if authors:
        root["author"] = _one(authors)
    root["datePublished"] = max(
        (m.provenance["created"] for x in manifests.values() for m in x.values() if m.provenance.get("created")), default=""
    ) or datetime.now().astimezone().isoformat(timespec="seconds")
    sources = {s.id: _add_source(named, s) for s in [*data, *SOFTWARE]}
    root["citation"] = [sources[s.id] for s in [*data, *SOFTWARE] if s.kind != "data"]
    strain = [sources[s.id] for s in data if s.kind == "data"]
    if strain:
        root["isBasedOn"] = _one(strain)
    software = named("#" + PACKAGE, "SoftwareApplication", name=PACKAGE, **_versions())
    experiment = crate.add_file(
        io.StringIO(json.dumps(config.model_dump(mode="json"), indent=1)),
        "experiment.json",
        properties={"name": "The experiment, every setting", "encodingFormat": "application/json"},
    )
    made: dict[str, Any] = {}
    for asset, records in manifests.items():
        made[asset] = _artifact(crate, workspace, asset, records, about.copied)
    actions = []
    for asset, records in manifests.items():
        inputs = [made[i] for i in lineage.deps(workspace.graph[asset]) if i in made]
        read = [*inputs, experiment, *(strain if asset == "background" else [])]
        actions.append(_action(named, asset, records, software, read, made[asset]))
    root["mentions"] = actions
    _write(crate, target)
    return target


def _one(values: list[Any]) -> Any:
    """A value that is alone stands without a list, as RO-Crate asks."""
    return values[0] if len(values) == 1 else values


def _write(crate: Any, target: Path) -> None:
    """A crate that is there is whole: it gets its name last."""
    partial = target.with_name(f".{os.getpid()}-{target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        (crate.write_zip if target.suffix == ".zip" else crate.write)(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)


def _kind(source: Source) -> str:
    # a data set that is no part of the crate is no `Dataset` of it
    return {"data": "CreativeWork", "paper": "ScholarlyArticle", "software": "SoftwareApplication"}[source.kind]


def _add_source(named: Any, source: Source) -> Any:
    more = {"license": {"@id": source.licence}} if source.licence else {}
    return named(source.id, _kind(source), name=source.name, description=source.cite, url=source.id, **more)


def _versions() -> dict[str, str]:
    try:
        return {"softwareVersion": metadata.version(PACKAGE)}
    except metadata.PackageNotFoundError:
        return {}


def _artifact(crate: Any, workspace: Workspace, asset: str, records: Mapping[str | None, Manifest], limit: int | None) -> Any:
    """An asset's artifacts as a data set, with its files where they are small, and its manifests."""
    handles = [m.handle for m in records.values()]
    size = sum(h.nbytes for h in handles)
    copied = limit is None or size <= limit
    properties = {
        "name": asset,
        "description": f"{len(handles):,} artifacts, one for each stretch of data" if None not in records else f"The artifact {asset}",
        "contentSize": str(size),
        "identifier": handles[0].key if None in records else "",
    }
    if not copied:
        properties["description"] += f"; too large for the crate, in the store at {_common(h.uri for h in handles)}"
        properties["contentUrl"] = _common(h.uri for h in handles)
    folder = crate.add_dataset(dest_path=f"{asset}/", properties={k: v for k, v in properties.items() if v})
    parts = []
    if copied:
        for partition, manifest in records.items():
            damage = workspace.store.verify(manifest.handle)
            if damage:
                raise CrateError(f"{manifest.handle.label} is damaged: {'; '.join(damage)}; make it again with `aframe run`")
            for entry in manifest.handle.files:
                where = f"{asset}/{entry.name}" if partition is None else f"{asset}/{partition}/{entry.name}"
                path = workspace.store.open_local(manifest.handle, entry.name)
                more = {"sha256": entry.sha256, "contentSize": str(entry.nbytes), "encodingFormat": _format(entry.name)}
                parts.append(crate.add_file(path, where, properties={"name": entry.name, **more}))
    text = json.dumps({p or "": json.loads(m.dumps()) for p, m in records.items()}, indent=1)
    about = {"name": f"Manifests of {asset}", "encodingFormat": "application/json"}
    about["description"] = "Key and its parts, sha256 of every file, checks, when, where and at what cost"
    parts.append(crate.add_file(io.StringIO(text), f"manifests/{asset}.json", properties=about))
    folder["hasPart"] = _one(parts)
    return folder


def _format(name: str) -> str:
    return next((kind for suffix, kind in _TYPES.items() if name.endswith(suffix)), "application/octet-stream")


def _common(uris: Iterable[str]) -> str:
    """The folder that holds all of some addresses."""
    parts = [u.split("/") for u in uris]
    return "/".join(p[0] for p in takewhile(lambda p: len(set(p)) == 1, zip(*parts, strict=False)))


def _action(named: Any, asset: str, records: Mapping[str | None, Manifest], software: Any, read: list[Any], made: Any) -> Any:
    """The making of an asset: from when to when, from what, at what cost."""
    known = [m.provenance for m in records.values()]
    stops = [datetime.fromisoformat(p["created"]) for p in known if p.get("created")]
    starts = [datetime.fromisoformat(p["created"]) - timedelta(seconds=float(p.get("wall_s", 0))) for p in known if p.get("created")]
    # to the second, as the profile has them
    times = {"startTime": min(starts).isoformat(timespec="seconds"), "endTime": max(stops).isoformat(timespec="seconds")} if stops else {}
    cost = {
        "wall_time": (sum(p.get("wall_s", 0) for p in known), "SEC"),
        "cpu_time": (sum(p.get("cpu_s", 0) for p in known), "SEC"),
        "peak_memory": (max((p.get("max_rss_mb", 0) for p in known), default=0), "4L"),
    }
    usage = [
        named(f"#{asset}-{name}", "PropertyValue", propertyID=name, name=name.replace("_", " "), value=f"{value:g}", unitCode=unit)
        for name, (value, unit) in cost.items()
        if value
    ]
    return named(
        f"#make-{asset}",
        "CreateAction",
        name=f"Making of {asset}",
        description=f"The steps that made the asset {asset}, of all its stretches of data together",
        instrument=software,
        object=_one(read),
        result=made,
        actionStatus="http://schema.org/CompletedActionStatus",
        **({"resourceUsage": usage} if usage else {}),
        **times,
    )
