"""The segments table: one row for each chunk, and what other rooms' keys take from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aframe_assets.segments.chunks import Chunk

if TYPE_CHECKING:
    from aframe_assets.config import Config

Row = dict[str, Any]


def make_rows(config: Config, chunks: Sequence[Chunk]) -> dict[str, Row]:
    """{partition key: {gps_start, gps_stop, role, fingerprint}}, by time.

    `fingerprint` identifies the strain files that hold the chunk (source ``files``, or ``frames`` with files), so that
    changed files make their chunks anew; '' for sources that cannot be looked at beforehand.
    """
    from_files = config.strain.source == "files" or (config.strain.source == "frames" and bool(config.strain.files))
    return {
        c.key: {
            "gps_start": c.gps_start,
            "gps_stop": c.gps_stop,
            "role": c.role,
            "fingerprint": fingerprint(config, c.gps_start, c.gps_stop) if from_files else "",
        }
        for c in sorted(chunks)
    }


def fingerprint(config: Config, start: float, stop: float) -> str:
    """sha256 over the name, detector and content sha256 of every strain file that overlaps [start, stop)."""
    from aframe_assets.segments.strain_headers import describe_all

    infos = [i for i in describe_all(config.strain.files, start, stop) if i.ifo in config.ifos]
    parts = sorted({(i.path.name, i.ifo, _content(str(i.path), i.path.stat().st_size, i.path.stat().st_mtime_ns)) for i in infos})
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@lru_cache(maxsize=4096)
def _content(path: str, size: int, mtime_ns: int) -> str:
    # Size and time only say whether this process may use what it read before; they do not enter the hash.
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_roles(rows: Mapping[str, Row]) -> dict[str, dict[str, Any]]:
    """Per role {key, sha256, livetime, partitions}: the identity covers that role's rows only."""
    out = {}
    for role in ("train", "validation", "test"):
        own = {k: r for k, r in sorted(rows.items()) if r["role"] == role}
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
        out[role] = {
            "key": digest,
            "sha256": digest,
            "livetime": float(sum(r["gps_stop"] - r["gps_start"] for r in own.values())),
            "partitions": list(own),
        }
    return out


def write_csv(rows: Mapping[str, Row], path: Path) -> None:
    """key, gps_start, gps_stop, duration, role, fingerprint; a line for each chunk."""
    import csv

    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "gps_start", "gps_stop", "duration", "role", "fingerprint"])
        for key, r in rows.items():
            writer.writerow([key, r["gps_start"], r["gps_stop"], r["gps_stop"] - r["gps_start"], r["role"], r["fingerprint"]])


def write_segwizard(rows: Mapping[str, Row], path: Path) -> None:
    """The field's plain text: index, start, stop, duration; the role as a comment line before each block of it."""
    with open(path, "w") as file:
        file.write("# seg\tstart    \tstop     \tduration\n")
        role = None
        for i, r in enumerate(rows.values()):
            if r["role"] != role:
                role = r["role"]
                file.write(f"# {role}\n")
            file.write(f"{i}\t{r['gps_start']}\t{r['gps_stop']}\t{r['gps_stop'] - r['gps_start']}\n")
