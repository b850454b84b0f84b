"""Which artifacts a step makes, so that whoever starts steps can tell two that do the same work apart from two that do not.

Dagster knows a step by its name and its run. The work is known by completeness keys, and only the bodies know which of
them a step is about; so each op that makes artifacts says it in a tag.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from aframe_assets.lineage import COMPARED
from aframe_assets.store.messages import Messages

if TYPE_CHECKING:
    from aframe_assets.store.base import ArtifactStore
    from aframe_assets.store.handle import KeyParts
    from aframe_assets.store.workspace import Workspace

WORK_TAG = "aframe/work"
"""Op tag of the steps that make artifacts: JSON of `makes`. Steps that plan, collect or check have none."""

How = Literal["whole", "partitions", "shards", "trial", "models"]


def makes(asset: str, how: How = "whole", count: int = 1) -> dict[str, str]:
    """The op tag of a step that makes `asset`.

    Args:
        asset: name of the asset.
        how: 'whole' all of it; 'partitions' those in the list that the step is given; 'shards' those, by index, of
            `count`; 'trial' the one of the record that it is given; 'models' those of a comparison, by sha256.
        count: number of shards.
    """
    return {WORK_TAG: json.dumps({"asset": asset, "how": how, "count": count})}


def shard_parts(parts: KeyParts, index: int, count: int) -> KeyParts:
    """Key parts of shard `index` (0 to ``count - 1``) of the artifact with `parts`."""
    return parts.model_copy(update={"asset": f"{parts.asset}_shard", "partition": f"{index:04d}-of-{count:04d}"})


_STUDY = "model.tune"
_FOUND = ("round", "index", "meta", "made")


def trial_partition(record: Mapping[str, Any]) -> str:
    """Partition of a trial, from its round and its index in that."""
    return f"{record['round']:02d}-{record['index']:03d}"


def trial_parts(parts: KeyParts, record: Mapping[str, Any]) -> KeyParts:
    """Key parts of one trial for the artifact with `parts`.

    How trials are chosen is no part of one, so a study that is made longer keeps those that it has.

    Args:
        record: its round, its index, and what was proposed.
    """
    said = {k: v for k, v in record.items() if k not in _FOUND}
    config = {k: v for k, v in parts.config.items() if k != _STUDY}
    return parts.model_copy(
        update={"asset": f"{parts.asset}_trial", "partition": trial_partition(record), "config": {**config, "trial": said}}
    )


def reported_trials(store: ArtifactStore, asset: str) -> Messages:
    """What trials that are being made have said, by partition: JSON of their record and what was `reported`."""
    return Messages(store, f"{asset}_trial")


def compared_parts(parts: KeyParts, sha256: str) -> KeyParts:
    """Key parts of one model's search for the comparison with `parts`; which others are compared does not enter.

    Args:
        parts: of `compared_models`.
        sha256: of the model's bundle.
    """
    own = {name: value for name, value in parts.config.items() if name != COMPARED}
    inputs = {**parts.inputs, "bundle": {"key": sha256, "sha256": sha256}}
    return parts.model_copy(update={"asset": "compared_model", "partition": sha256[:16], "config": own, "inputs": inputs})


def is_mapped(tag: str) -> bool:
    """Whether `work_of` needs the value that the step is given."""
    return json.loads(tag)["how"] != "whole"


def work_of(tag: str, workspace: Workspace, value: Any = None) -> list[KeyParts]:
    """Key parts of every artifact that a step is to make.

    Args:
        tag: the step's `WORK_TAG`.
        workspace: config and store.
        value: what a mapped step is given.

    Raises:
        MissingArtifact: an input of the asset is not there.
    """
    said = json.loads(tag)
    asset, how = said["asset"], said["how"]
    if how == "partitions":
        return [workspace.wanted(asset, key).parts for key in value]
    parts = workspace.wanted(asset).parts
    if how == "shards":
        return [shard_parts(parts, i, said["count"]) for i in value]
    if how == "models":
        return [compared_parts(parts, sha256) for sha256 in value]
    return [trial_parts(parts, value)] if how == "trial" else [parts]
