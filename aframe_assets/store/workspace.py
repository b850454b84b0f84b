"""A config and a store seen together: which artifact is wanted, whether it is there, and why not.

Bodies, `plan` and `status` all ask here, so they cannot disagree about what is complete (DESIGN, decision 1).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aframe_assets import lineage
from aframe_assets.config import Config
from aframe_assets.config_rules import mask_source
from aframe_assets.model import own_networks
from aframe_assets.segments.catalog import catalog_path
from aframe_assets.segments.frozen import plan_identity
from aframe_assets.store.base import ArtifactStore
from aframe_assets.store.handle import Handle, KeyParts, Manifest
from aframe_assets.waveforms.prior_files import path_of


class MissingArtifact(RuntimeError):
    """An upstream artifact that is absent or out of date; the message names it and the command that makes it."""

    def __init__(self, asset: str, partition: str | None, reason: str, wanted_by: str):
        self.asset, self.partition, self.reason, self.wanted_by = asset, partition, reason, wanted_by
        what = f"{asset} of segment {partition}" if partition else asset
        super().__init__(
            f"{wanted_by} needs {what}, which is {reason}; make it with `aframe run --until {asset}`"
            f" (or `dagster asset materialize --select '*{asset}'{' --partition-range FIRST...LAST' if asset != 'segments' else ''}`)"
        )

    def anew(self) -> MissingArtifact:
        """The same without a traceback, which would keep alive all that its frames hold."""
        return MissingArtifact(self.asset, self.partition, self.reason, self.wanted_by)


@dataclass(frozen=True)
class Wanted:
    """The artifact that config and inputs ask for."""

    parts: KeyParts
    inputs: Mapping[str, Handle | dict[str, Handle]]
    row: Mapping[str, Any] | None


def _digest(value: object) -> dict[str, str]:
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return {"key": digest, "sha256": digest}


@dataclass
class Workspace:
    """Reads every manifest at most once; make a new one to see what changed since."""

    config: Config
    store: ArtifactStore
    _manifests: dict[str, dict[str | None, Manifest | None]] = field(default_factory=dict, repr=False)
    _wanted: dict[tuple[str, str | None], Wanted | MissingArtifact] = field(default_factory=dict, repr=False)
    _common: dict[str, KeyParts] = field(default_factory=dict, repr=False)
    _rows: dict[str, Mapping[str, Any]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.graph = lineage.graph(self.config)

    def manifest(self, asset: str, partition: str | None = None) -> Manifest | None:
        """The stored manifest, whatever its key."""
        known = self._manifests.setdefault(asset, {})
        if partition is not None and None not in known and partition not in known:
            known.update(self.store.manifests(asset))
            known.setdefault(partition, None)
        if partition not in known:
            known[partition] = self.store.manifest(asset, partition)
        return known[partition]

    def rows(self) -> dict[str, Mapping[str, Any]]:
        """The segments table by partition, sorted by time. Raises MissingArtifact without one."""
        if self._rows is None:
            self._rows = dict(sorted(self._current("segments", None, "segments table").meta["rows"].items()))
        return self._rows

    def partitions(self, *roles: str) -> list[str]:
        """Partition keys of the wanted roles (all by default), sorted by time."""
        return [p for p, row in self.rows().items() if not roles or row["role"] in roles]

    def _current(self, asset: str, partition: str | None, wanted_by: str) -> Handle:
        if asset not in self.graph:
            raise MissingArtifact(asset, partition, "not in this experiment's graph", wanted_by)
        manifest = self.manifest(asset, partition)
        if manifest is None:
            raise MissingArtifact(asset, partition, "missing", wanted_by)
        if manifest.status != "ok" or manifest.handle is None:
            raise MissingArtifact(asset, partition, f"failed ({manifest.error})", wanted_by)
        if manifest.handle.key != self.wanted(asset, partition).parts.key:
            raise MissingArtifact(asset, partition, "out of date", wanted_by)
        if manifest.blocked:
            raise MissingArtifact(asset, partition, f"held back by its check {', '.join(manifest.blocked)}", wanted_by)
        return manifest.handle

    def wanted(self, asset: str, partition: str | None = None) -> Wanted:
        """Key parts and inputs of the artifact that `asset` should be now.

        Raises:
            MissingArtifact: an input is missing, failed or itself out of date.
        """
        memo = (asset, partition)
        if memo not in self._wanted:
            try:
                self._wanted[memo] = self._resolve(asset, partition)
            except MissingArtifact as e:
                self._wanted[memo] = e.anew()
        found = self._wanted[memo]
        if isinstance(found, MissingArtifact):
            raise found.anew()
        return found

    def _resolve(self, asset: str, partition: str | None) -> Wanted:
        node = self.graph[asset]
        inputs: dict[str, Handle | dict[str, Handle]] = {}
        identities: dict[str, dict[str, str]] = {}
        row = None
        for i in node.inputs:
            if i.how == "row":
                table = self.rows()
                if partition not in table:
                    raise MissingArtifact("segments", None, f"without a segment {partition}", asset)
                row = table[partition]  # type: ignore[index]
                # A chunk that changes its role from train to validation is the same data.
                identities["segments.row"] = _digest({k: v for k, v in row.items() if k != "role"} | {"searched": row["role"] == "test"})
                if asset == "background":
                    identities["segments.row"] = _digest({k: v for k, v in row.items() if k != "role"})
            elif i.how == "all":
                found = self._available(i, asset)
                inputs[i.asset] = found
                identities[i.asset] = lineage.combined({p: h.identity for p, h in found.items()})
            else:
                handle = self._current(i.asset, partition if i.how == "same" else None, asset)
                inputs[i.asset] = handle
                if i.how == "roles":
                    kept = {r: handle.meta["roles"][r] for r in i.roles if r in handle.meta["roles"]}
                    for r, value in kept.items():
                        identities[f"{i.asset}.{r}"] = {"key": value["key"], "sha256": value["sha256"]}
                elif i.how == "plan":
                    identities[f"{i.asset}.test"] = plan_identity(handle.meta)
                elif i.how == "within" and "identities" in handle.meta:
                    known = handle.meta["identities"]
                    identities[i.asset] = _digest([known["plan"], known["segments"].get(partition, "")])
                else:
                    identities[i.asset] = handle.identity
        common = self._same_for_all(asset)
        parts = common.model_copy(update={"partition": partition, "inputs": identities | common.inputs})
        return Wanted(parts, inputs, row)

    def _same_for_all(self, asset: str) -> KeyParts:
        """What the key parts of all partitions of `asset` share: its code, its settings, and things outside the store that it reads."""
        if asset not in self._common:
            node = self.graph[asset]
            outside = self._named_files(asset) | self._sources(asset)
            self._common[asset] = KeyParts(
                asset=asset, code_version=node.code_version, config=self.config.select(node.config, node.free), inputs=outside
            )
        return self._common[asset]

    def _named_files(self, asset: str) -> dict[str, dict[str, str]]:
        out: dict[str, dict[str, str]] = {}

        def note(key: str, value: Any) -> None:
            if isinstance(value, Mapping):
                for name, inner in value.items():
                    note(f"{key}.{name}", inner)
            elif isinstance(value, list):
                for i, inner in enumerate(value):
                    note(f"{key}.{i}", inner)
            elif isinstance(value, str):
                # named populations and catalogues are packaged files: whoever edits one must not be given what was made of the old one
                path = path_of(value) if key.endswith("prior") else catalog_path(value) if "catalog" in key else Path(value)
                if path and path.is_file():
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    out[key] = {"key": digest, "sha256": digest}

        for key, value in self.config.select(self.graph[asset].files).items():
            note(key, value)
        if asset == "sensitive_volume":
            from aframe_assets.sensitivity.population import ASTROPHYSICAL

            note("p_astro.prior", ASTROPHYSICAL)
        return out

    def _sources(self, asset: str) -> dict[str, dict[str, str]]:
        weights = {"model": self.config.model.weights, "filter_model": self.config.model.filter_weights}.get(asset)
        if weights:
            from aframe_assets.model.importing import require_scores, weights_identity

            if self.config.model.filter is not None:
                require_scores(weights, asset)
            return {"weights": weights_identity(weights, asset)}
        architecture = {"model": self.config.model.architecture, "filter_model": self.config.model.filter}.get(
            "model" if asset == "tuned_model" else asset
        )
        if architecture is not None and own_networks.is_registered(architecture.name):
            return {"network": _digest({"name": architecture.name, "version": own_networks.find(architecture.name).version})}
        if asset == "segments" and (self.config.segments.source in ("strain_files", "files") or self.config.strain.files):
            from aframe_assets.segments.source_identity import source_identity

            return {"files": source_identity(self.config)}
        if asset == "vetoes" and self.config.vetoes.bits and mask_source(self.config) == "strain_files":
            from aframe_assets.segments.source_identity import source_identity

            return {"masks": source_identity(self.config)}
        if asset == "background" and self.config.strain.source == "simulated":
            from aframe_assets.strain.simulated import curves_identity

            return {"asd": curves_identity(self.config)}
        if asset == "sensitive_volume" and self.config.sensitivity.comparators:
            from aframe_assets.sensitivity.comparators import identity

            return {"comparators": identity(self.config)}
        return {}

    def _available(self, wanted: lineage.Input, asset: str) -> dict[str, Handle]:
        found = {}
        first: MissingArtifact | None = None
        keys = self.partitions(*wanted.roles)
        for p in keys:
            try:
                found[p] = self._current(wanted.asset, p, asset)
            except MissingArtifact as e:
                first = first or e
        if first and len(found) < self.config.execution.min_segment_fraction * len(keys):
            raise first
        return found

    def complete(self, asset: str, partition: str | None = None) -> Handle | None:
        """The artifact, if it is the wanted one and its bytes are there; None also when an input is missing."""
        try:
            wanted = self.wanted(asset, partition)
        except MissingArtifact:
            return None
        return self.store.complete(wanted.parts)
