"""The store as Dagster's IO manager: assets hand on handles, steps hand on small JSON; nothing is ever pickled.

What travels:

- An asset's output is a `Handle`, or ``{partition: Handle}`` for many partitions made in one run. The bytes are in the
  store already; here their manifests are looked up and shown on the asset's page.
- An asset's input is a `Handle`, and always a ``{partition: Handle}`` when the upstream asset is partitioned, even with
  a single partition. It is read from the manifests, so it does not matter which run made it.
- Values between the ops of a graph (mapped ones too) are JSON in the store, so steps on different machines share nothing else.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote
from urllib.request import url2pathname

import dagster as dg

from aframe_assets.store.base import ArtifactStore
from aframe_assets.store.errors import ArtifactGone, StoreError
from aframe_assets.store.handle import Handle, plain
from aframe_assets.store.opening import open_store
from aframe_assets.store.split import MARK

MAX_VALUE_BYTES = 32_000_000
_HANDLE = "__handle__"
_PER_PARTITION = 500
"""Above this many partitions only sums are shown: Dagster's own bookkeeping grows with the square."""


def encode(value: Any, where: str = "value") -> Any:
    """`value` as JSON, handles in it marked as such.

    Raises:
        TypeError: something that is neither; with its place.
    """
    if isinstance(value, Handle):
        return {_HANDLE: plain(value.model_dump(mode="python"))}
    if isinstance(value, Mapping):
        odd = next((k for k in value if not isinstance(k, str)), None)
        if odd is not None:
            raise TypeError(f"{where}: the key {odd!r} is a {type(odd).__name__}; JSON has strings only")
        return {k: encode(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(v, f"{where}[{i}]") for i, v in enumerate(value)]
    return plain(value, where)


def decode(value: Any) -> Any:
    """The inverse of `encode` (tuples come back as lists)."""
    if isinstance(value, dict):
        return Handle.model_validate(value[_HANDLE]) if set(value) == {_HANDLE} else {k: decode(v) for k, v in value.items()}
    return [decode(v) for v in value] if isinstance(value, list) else value


def refusal(text: str, metadata: Mapping[str, Any] | None = None) -> dg.Failure:
    """A failure that trying again does not mend."""
    return dg.Failure(description=text, metadata=dict(metadata or {}), allow_retries=False)


def asset_name(key: dg.AssetKey) -> str:
    """The name in the store of the asset `key`."""
    return ".".join(key.path)


class ArtifactIOManager(dg.ConfigurableIOManager):
    """What the managers for local disk and S3 share."""

    @cached_property
    def store(self) -> ArtifactStore:
        """The store that this manager reads and writes."""
        return self._open()

    def _open(self) -> ArtifactStore:
        raise TypeError(f"{type(self).__name__} has no store; use LocalArtifactIOManager or S3ArtifactIOManager")

    # -- outputs -------------------------------------------------------------------------------------------------------

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Check and show an asset's handles, or keep a step's value.

        Raises:
            dagster.Failure: not retried; a handle whose artifact is not in the store, or a value that is not JSON.
        """
        if context.has_asset_key and isinstance(obj, Handle):
            self._record(context, {obj.partition: obj})
        elif context.has_asset_key and isinstance(obj, Mapping) and obj and all(isinstance(h, Handle) for h in obj.values()):
            wrong = [f"{p!r} -> {h.label}" for p, h in obj.items() if h.partition != p]
            if wrong:
                raise refusal(f"{asset_name(context.asset_key)} returned handles under the wrong partitions: {', '.join(wrong[:5])}")
            self._record(context, dict(obj))
        elif context.has_asset_key and (obj is None or obj == {}):
            return  # nothing was handed on; readers find what the body published, or are told that it is missing
        else:
            self._keep(context, obj)

    def _record(self, context: dg.OutputContext, handles: dict[str | None, Handle]) -> None:
        name = asset_name(context.asset_key)
        stray = sorted({h.asset for h in handles.values()} - {name})
        if stray:
            raise refusal(f"{name} returned a handle of {', '.join(stray)}; expected one of {name}")
        if None in handles and context.has_asset_partitions:
            raise refusal(f"{name} is partitioned but returned a handle without partition; publish it with KeyParts(partition=...)")
        found, problems = self.store.survey(name, list(handles))
        for partition, handle in handles.items():
            there = found.get(partition)
            # a racing worker may have published other bytes for the same key: either is right
            if there is not None and there.key != handle.key:
                problems[partition] = f"was published with key {there.key[:12]}, not {handle.key[:12]}, by another run"
            elif there is None and problems[partition].startswith("is held back"):
                del problems[partition]  # the check's own event says so, and Dagster stops the readers
        if problems:
            raise refusal(
                f"{name} returned handles that are not in {self.store.url}: {_listed(problems)}. Return what store.publish() gave"
            )
        if None in handles:
            context.add_output_metadata(_shown(handles[None]))
            return
        context.add_output_metadata({"store": self.store.uri(name), "partitions": len(handles)})
        if len(handles) <= _PER_PARTITION:
            for partition, handle in handles.items():
                self._show(context, partition, handle)

    @staticmethod
    def _show(context: dg.OutputContext, partition: str | None, handle: Handle) -> None:
        try:
            context.step_context.add_asset_metadata(_shown(handle), asset_key=context.asset_key, partition_key=partition)
        except dg.DagsterInvariantViolationError as error:
            context.log.debug(f"no metadata for {handle.label}: {error}")  # a partition outside of this run's range

    def _keep(self, context: dg.OutputContext, obj: Any) -> None:
        what = asset_name(context.asset_key) if context.has_asset_key else f"{context.step_key}.{context.name}"
        try:
            value = encode(obj, what)
        except TypeError as error:
            raise refusal(f"{error}. Large or binary results are published to the store and handed on as handles") from None
        size = len(json.dumps(value))
        if size > MAX_VALUE_BYTES:
            raise refusal(f"{what} is {size / 1e6:.0f} MB of JSON, above {MAX_VALUE_BYTES / 1e6:.0f} MB: publish it and hand on its handle")
        for name in _value_names(context):
            self.store.put_value(name, value)

    # -- inputs --------------------------------------------------------------------------------------------------------

    def load_input(self, context: dg.InputContext) -> Any:
        """The upstream's handle(s), or the value of the step before.

        Raises:
            dagster.Failure: not retried; what is missing and the commands that make it.
        """
        if not context.has_asset_key:
            return self._value(_step_value(context.upstream_output), f"the step {context.upstream_output.step_key}")
        name = asset_name(context.asset_key)
        # Dagster's order differs from process to process, and science must not depend on it
        partitions: list[str | None] = sorted(context.asset_partition_keys) if context.has_asset_partitions else [None]
        found, problems = self.store.survey(name, partitions)
        # assets of users may hand on plain JSON; it is looked for only where no artifact is
        for partition in [p for p, why in problems.items() if why == "was never made"]:
            try:
                found[partition] = decode(self.store.get_value(_asset_value(name, partition)))
                del problems[partition]
            except ArtifactGone:
                continue
        if problems:
            raise self._missing(name, problems, context.has_asset_partitions)
        return {p: found[p] for p in partitions} if context.has_asset_partitions else found[None]

    def _value(self, name: str, source: str) -> Any:
        try:
            return decode(self.store.get_value(name))
        except ArtifactGone:
            raise refusal(
                f"the value of {source} is not in {self.store.url}: it ran with another store, or its run was cleaned up; start a new run"
            ) from None

    def _missing(self, name: str, problems: Mapping[str | None, str], partitioned: bool) -> dg.Failure:
        where = " --partition-range FIRST...LAST" if partitioned else ""
        return refusal(
            f"{name} is not ready in {self.store.url}: {_listed(problems)}. Make it first: "
            f"`dagster asset materialize --select {name}{where}` or `aframe run --until {name}`",
            {"asset": name, "missing": len(problems)},
        )


def _shown(handle: Handle) -> dict[str, Any]:
    return {**address(handle), "sha256": handle.sha256, "nbytes": handle.nbytes, "key": handle.key}


def address(handle: Handle) -> dict[str, Any]:
    """Where `handle` is, as Dagster's page links it; of a local store also the folder, as a path to copy."""
    # not "dagster/uri": Dagster leaves that out of the table on an asset's page
    out: dict[str, Any] = {"uri": dg.MetadataValue.url(handle.uri)}
    if handle.uri.startswith("file://"):
        out["folder"] = dg.MetadataValue.path(url2pathname(handle.uri.removeprefix("file://")))
    return out


def _listed(problems: Mapping[str | None, str]) -> str:
    lines = [why if partition is None else f"{partition} {why}" for partition, why in problems.items()]
    return "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")


def _name(parts: Sequence[str]) -> str:
    return "/".join(quote(part, safe="[]=+") for part in parts)


def step_value(identifier: Sequence[str]) -> str:
    """Name of the value of a step's output, identified by run id, step key, output and, of a mapped one, mapping key."""
    return _name(["runs", *identifier])


def _step_value(context: dg.OutputContext) -> str:
    """Where a step's output is; a re-run that skips the step finds it under the run that executed it."""
    return step_value(context.get_identifier())


def _asset_value(name: str, partition: str | None) -> str:
    return _name(["assets", name, partition or "_"])


def _value_names(context: dg.OutputContext) -> list[str]:
    if not context.has_asset_key:
        return [_step_value(context)]
    keys = context.asset_partition_keys if context.has_asset_partitions else [None]
    return [_asset_value(asset_name(context.asset_key), key) for key in keys]


class LocalArtifactIOManager(ArtifactIOManager):
    """Artifacts in a folder that every step sees.

    Attributes:
        root: the folder, or its ``file://`` address.
    """

    root: str

    def _open(self) -> ArtifactStore:
        if "://" in self.root and not self.root.startswith("file://"):
            raise StoreError(f"LocalArtifactIOManager: {self.root.split('://')[0]}:// is not a folder; use S3ArtifactIOManager for s3://")
        return open_store(self.root)


class S3ArtifactIOManager(ArtifactIOManager):
    """Artifacts in a bucket. Endpoint and credentials come from the environment only, never from here.

    Attributes:
        url: ``s3://bucket/prefix``, or an address of which this is a part, see `split`.
        cache_dir: local cache of the files that are read.
        cache_bytes: cap of the cache.
    """

    url: str
    cache_dir: str | None = None
    cache_bytes: int | None = None

    def _open(self) -> ArtifactStore:
        if "s3://" not in self.url:
            raise StoreError(f"S3ArtifactIOManager: expected s3://bucket/prefix, got {self.url!r}")
        return open_store(self.url, cache_dir=self.cache_dir, cache_bytes=self.cache_bytes)


def io_manager_for(url: str, cache_dir: str | None = None, cache_bytes: int | None = None) -> ArtifactIOManager:
    """The manager for the store at `url`."""
    if str(url).startswith("s3://") or MARK in str(url):
        return S3ArtifactIOManager(url=str(url), cache_dir=cache_dir, cache_bytes=cache_bytes)
    return LocalArtifactIOManager(root=str(url))
