"""What of an experiment is there and what is not, read from manifests alone; no database."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aframe_assets.lineage import Node, deps
from aframe_assets.store.handle import KeyParts, Manifest
from aframe_assets.store.verifying import DAMAGED
from aframe_assets.store.workspace import MissingArtifact, Workspace


@dataclass
class AssetState:
    """One asset of the graph.

    Attributes:
        partitions: partitions that should be there; ``[None]`` of an unpartitioned asset, empty while the segments are unknown.
        complete: of those, the ones that are.
        why: for each of the others, the reason.
        nbytes: size of what is complete.
        wall_s: seconds that making it took.
    """

    name: str
    group: str
    partitioned: bool
    partitions: list[str | None]
    complete: list[str | None] = field(default_factory=list)
    why: dict[str | None, str] = field(default_factory=dict)
    nbytes: int = 0
    wall_s: float = 0.0

    @property
    def done(self) -> bool:
        return bool(self.partitions) and not self.why

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "asset": self.name,
            "group": self.group,
            "partitioned": self.partitioned,
            "complete": len(self.complete),
            "expected": len(self.partitions),
            "done": self.done,
            "states": dict(Counter(state_of(self.why.get(p)) for p in self.partitions)),
            "nbytes": self.nbytes,
            "wall_s": round(self.wall_s, 3),
            "why": {str(p) if p else "": text for p, text in self.why.items()},
        }


def survey(workspace: Workspace) -> dict[str, AssetState]:
    """The state of every asset, upstream first."""
    try:
        keys: list[str | None] = list(workspace.partitions())
    except MissingArtifact:
        keys = []
    with no_collection():
        return {node.name: _state(workspace, node, keys if node.partitioned else [None]) for node in workspace.graph.values()}


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's cycle collector would go through all manifests, which have no cycles, again and again: half the time of 10,000 segments."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _state(workspace: Workspace, node: Node, partitions: list[str | None]) -> AssetState:
    state = AssetState(node.name, node.group, node.partitioned, partitions)
    wanted: dict[str | None, KeyParts] = {}
    for partition in partitions:
        try:
            wanted[partition] = workspace.wanted(node.name, partition).parts
        except MissingArtifact as e:
            state.why[partition] = f"waits for {e.asset}"
    manifests = {p: m for p in wanted if (m := workspace.manifest(node.name, p)) is not None}
    there = workspace.store.complete_many(wanted.values(), manifests) if manifests else {}
    for partition, parts in wanted.items():
        manifest = manifests.get(partition)
        if partition in there:
            state.complete.append(partition)
            state.nbytes += there[partition].nbytes
            state.wall_s += float(manifest.provenance.get("wall_s", 0.0)) if manifest else 0.0
        else:
            state.why[partition] = why_incomplete(manifest, parts)
    return state


def why_incomplete(manifest: Manifest | None, wanted: KeyParts) -> str:
    """Why the artifact that a manifest records is not the wanted one, naming the first part of its key that differs."""
    if manifest is None:
        return "never made"
    if (manifest.handle or manifest.parts).key != wanted.key:
        return first_difference(manifest.parts, wanted)
    if manifest.status != "ok":
        return f"failed: {(manifest.error or 'no reason recorded').strip().splitlines()[0]}"
    if manifest.blocked:
        return f"held back by its check {', '.join(manifest.blocked)}"
    return "its files are gone or have another size"


_STATES = {
    f"failed: {DAMAGED}": "damaged",
    "failed": "failed",
    "held back": "held back",
    "its files are gone": "damaged",
    "never made": "missing",
    "waits for": "waiting",
}
"""How a reason of `why_incomplete` begins -> the state; any other tells what differs, so the artifact is out of date."""


def state_of(why: str | None) -> str:
    """One of complete (no reason), failed, held back, damaged, missing, waiting and out of date."""
    if why is None:
        return "complete"
    return next((state for begin, state in _STATES.items() if why.startswith(begin)), "out of date")


def first_difference(old: KeyParts, new: KeyParts) -> str:
    """The first part of two keys that differs, in words."""
    if old.code_version != new.code_version:
        return f"code version {old.code_version} -> {new.code_version}"
    for name, before, after in _differences(old.config, new.config):
        return f"config {name}: {_short(before)} -> {_short(after)}"
    for name in sorted(set(old.inputs) | set(new.inputs)):
        before, after = old.inputs.get(name), new.inputs.get(name)
        if before is None or after is None:
            return f"input {name} is {'new' if before is None else 'no longer read'}"
        if before != after:
            part = "was made another way" if before["key"] != after["key"] else "has other content"
            return f"input {name} {part} ({str(before['sha256'])[:8]} -> {str(after['sha256'])[:8]})"
    return f"key {old.key[:8]} -> {new.key[:8]}"


_ABSENT = object()


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*new, *old]):
            yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{name}.{key}" if name else str(key))
    elif old != new:
        yield name, old, new


def _short(value: Any) -> str:
    text = "(not set)" if value is _ABSENT else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def ancestors(workspace: Workspace, asset: str) -> set[str]:
    """`asset` and everything that it is made from."""
    out: set[str] = set()
    todo = [asset]
    while todo:
        name = todo.pop()
        if name not in out:
            out.add(name)
            todo += deps(workspace.graph[name])
    return out
