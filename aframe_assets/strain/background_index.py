"""Which background there is: every registered chunk by role, and how a reader of the index opens the files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aframe_assets.strain.background_file import StrainFile, background_name, parse_background_name

if TYPE_CHECKING:
    from aframe_assets.store.handle import Handle
    from aframe_assets.store.job import Job

INDEX_FILE = "background_index.json"


@dataclass(frozen=True)
class Chunk:
    """One chunk of background.

    Attributes:
        partition: its key.
        role: 'train', 'validation' or 'test'.
        gps_start, duration: seconds.
        key, sha256: identity of its artifact.
        ranges: ifo -> inspiral range, Mpc (`aframe_assets.strain.psd.inspiral_range`).
    """

    partition: str
    role: str
    gps_start: float
    duration: float
    key: str
    sha256: str
    ranges: Mapping[str, float]

    @property
    def file_name(self) -> str:
        return background_name(self.gps_start, self.duration)


@dataclass(frozen=True)
class BackgroundIndex:
    """Chunks that are there, by time; partitions that are registered and missing, by role."""

    chunks: tuple[Chunk, ...]
    missing: Mapping[str, list[str]]

    def of(self, *roles: str) -> list[Chunk]:
        """The chunks of `roles`, of all roles by default."""
        return [c for c in self.chunks if not roles or c.role in roles]

    def write(self, path: Path) -> None:
        text = {"chunks": [asdict(c) for c in self.chunks], "missing": dict(self.missing)}
        path.write_text(json.dumps(text, indent=1))

    @classmethod
    def read(cls, path: Path) -> BackgroundIndex:
        """The inverse of `write`."""
        data = json.loads(path.read_text())
        return cls(tuple(Chunk(**c) for c in data["chunks"]), data["missing"])


def require_chunk(job: Job, chunk: Chunk) -> Handle:
    """A chunk's artifact.

    Raises:
        RuntimeError: the chunk was made anew since the index was; names it.
    """
    manifest = job.store.manifest("background", chunk.partition)
    if manifest is None or manifest.handle is None or manifest.handle.sha256 != chunk.sha256:
        raise RuntimeError(
            f"background of segment {chunk.partition} is not the one that background_index lists; run `aframe "
            "run --until background_index` again"
        )
    return manifest.handle


def open_chunk(job: Job, chunk: Chunk) -> Path:
    """Local path of a chunk's file. Raises as `require_chunk`."""
    return job.store.open_local(require_chunk(job, chunk), chunk.file_name)


def strain_at(job: Job, time: float) -> StrainFile:
    """Background of the chunk that holds GPS `time`, whatever the job's inputs are; a remote store sends only what is read of it.

    Raises:
        LookupError: no current chunk holds it.
        StrainError: a damaged file.
    """
    for manifest in job.store.manifests("background").values():
        handle = manifest.handle
        if handle is None:
            continue
        name = handle.files[0].name
        start, stop = parse_background_name(name)
        if start <= time < stop:
            return StrainFile.open(job.store.open_ranges(handle, name), job.config.ifos)
    raise LookupError(f"no background in {job.store.url} holds GPS {time:.3f}")
