"""What a body of an asset gets and gives; no Dagster, so that a notebook can run one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.base import ArtifactStore
    from aframe_assets.store.handle import Handle
    from aframe_assets.store.ranges import Source
    from aframe_assets.store.unfinished import Unfinished


class MakeRoom(RuntimeError):
    """The step was told to end before its work was done, and has kept its state: it is to be tried again."""


def _unseen(numbers: Mapping[str, Any], markdown: Mapping[str, str]) -> None:
    """Nobody looks."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check; `severity` says whether a failure is an error or a warning."""

    name: str
    passed: bool
    severity: Literal["error", "warn"] = "error"
    description: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Declared(NamedTuple):
    """A check that an asset's body reports.

    `blocking`: a failure holds back what reads the asset. `says`: what holds where it passes, with threshold and unit.
    """

    name: str
    blocking: bool
    says: str = ""


@dataclass(frozen=True)
class Product:
    """What a body made: a folder, or files by the name they are published under.

    `logs` is a folder of what the making wrote about itself (times, process ids). It is published beside the artifact, as
    ``{asset}_logs`` with the same key, so that equal artifacts have equal content.
    `plots` and `markdown` are shown on the asset's page, by title (letters, digits, ``_ -``): functions that give a PNG, called once the
    artifact is safe, and text, as a table. See `aframe_assets.store.plots`.
    """

    files: Path | Mapping[str, Path]
    meta: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[Check] = ()
    plots: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    logs: Path | None = None
    markdown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One artifact to be made.

    Attributes:
        config: the resolved experiment.
        asset, partition: what is made.
        inputs: upstream artifacts by asset; ``{partition: handle}`` where many partitions are read.
        row: this partition's row of the segments table.
        scratch: private folder, gone afterwards.
        workdir: folder of this key that survives a kill; for checkpoints.
        services: what the asset asked for by name, as an inference server.
        observe: shows numbers, and markdown by title, on the asset's page while it is being made.
        unfinished: keeps work in progress in the store; dropped once the artifact is published. None outside of Dagster.
    """

    config: Config
    asset: str
    partition: str | None
    inputs: Mapping[str, Any]
    row: Mapping[str, Any] | None
    store: ArtifactStore
    scratch: Path
    workdir: Path
    log: logging.Logger
    services: Mapping[str, Any] = field(default_factory=dict)
    observe: Callable[[Mapping[str, Any], Mapping[str, str]], None] = _unseen
    unfinished: Unfinished | None = None

    def seed(self, *words: object) -> int:
        """A 63-bit seed: a function of (experiment seed, asset, partition, words) only."""
        text = "\x1f".join(map(str, (self.config.seed, self.asset, self.partition, *words)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def handle(self, asset: str, partition: str | None = None) -> Handle:
        """The upstream artifact `asset` (of `partition`, where many are read)."""
        found = self.inputs[asset]
        return found[partition] if isinstance(found, Mapping) else found

    def path(self, asset: str, name: str | None = None, partition: str | None = None) -> Path:
        """A local path of an upstream's file (or of its folder), fetched and verified if it is remote."""
        return self.store.open_local(self.handle(asset, partition), name)

    def ranges(self, asset: str, name: str) -> Source:
        """The same for a reader that wants parts of it: of a remote file, those are fetched when they are read."""
        return self.store.open_ranges(self.handle(asset), name)
