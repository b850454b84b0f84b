"""All manifests of an asset in one file, so that 10,000 segments are one read; it can be rebuilt from them at any time.

``{"version": 2, "configs": [...], "records": {"NAME.json": {"stamp": ..., "manifest": {...}}}}``: the settings in the key of an artifact
are those of thousands of others, so they are written once, and a manifest's ``parts.config`` is the number of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

NAME = "_index.json"


class Entry(NamedTuple):
    """A manifest as plain data, None where its file holds none, and what changes when its file does."""

    stamp: str
    manifest: dict[str, Any] | None


def plain_manifest(data: bytes | None) -> dict[str, Any] | None:
    """What a manifest's file holds; None for no JSON object."""
    try:
        found = None if data is None else json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def dumps(entries: Mapping[str, Entry]) -> bytes:
    """The index with `entries` by name of their file."""
    configs: dict[str, int] = {}
    records = {}
    for name, (stamp, manifest) in entries.items():
        parts = (manifest or {}).get("parts")
        if isinstance(parts, dict) and isinstance(parts.get("config"), dict):
            number = configs.setdefault(json.dumps(parts["config"]), len(configs))
            manifest = {**(manifest or {}), "parts": {**parts, "config": number}}
        records[name] = {"stamp": stamp, "manifest": manifest}
    return json.dumps({"version": 2, "configs": [json.loads(text) for text in configs], "records": records}).encode()


def loads(data: bytes | None, address: str) -> dict[str, Entry]:
    """The inverse of `dumps`; equal settings are one object. Empty where there is no index, or one that cannot be used.

    Args:
        address: of the file, for the log.
    """
    if data is None:
        return {}
    try:
        found = json.loads(data)
        out = {}
        for name, record in found["records"].items():
            manifest = record["manifest"]
            if manifest is not None and isinstance(number := manifest["parts"]["config"], int):
                manifest["parts"]["config"] = found["configs"][number]
            out[name] = Entry(record["stamp"], manifest)
        return out
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        log.info("%s is damaged, or of an earlier version, and is rebuilt", address)
        return {}
