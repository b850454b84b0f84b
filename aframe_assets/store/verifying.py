"""Every byte of a store against its recorded sha256; what is damaged is taken out of use."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aframe_assets.store import index
from aframe_assets.store.errors import ArtifactGone, StoreError
from aframe_assets.store.handle import Manifest, content_sha256
from aframe_assets.store.layout import folder_of

if TYPE_CHECKING:
    from aframe_assets.store.base import ArtifactStore

_AT_ONCE = 4
DAMAGED = "damaged"
"""How the error of an artifact begins that was taken out of use."""


@dataclass(frozen=True)
class Verified:
    """One artifact that was read.

    Attributes:
        problems: what is wrong with it, in words; empty where all is well.
        nbytes: recorded size.
        condemned: whether it was taken out of use.
    """

    asset: str
    partition: str | None
    problems: tuple[str, ...]
    nbytes: int
    condemned: bool = False

    @property
    def label(self) -> str:
        return self.asset if self.partition is None else f"{self.asset}[{self.partition}]"


def verify_store(store: ArtifactStore, assets: Collection[str], partitions: Collection[str] = (), mark: bool = True) -> Iterator[Verified]:
    """Reads and hashes every file of every artifact of `assets`.

    Args:
        partitions: only these; all by default, and what has none.
        mark: damaged artifacts are taken out of use: see `condemn`.

    Raises:
        StoreError: the store cannot be read.
    """
    for asset in assets:
        # the records themselves: their index may be damaged, or tell of one as it was before it was
        records = store.manifests(asset, afresh=True)
        todo = [(p, m) for p, m in records.items() if m.handle is not None and (not partitions or p in partitions)]
        for partition in unreadable(store, asset, records):
            if not partitions or partition in partitions:
                words = f"{store.uri(folder_of(asset, partition))}.json cannot be read as a manifest, so it counts as never made"
                yield Verified(asset, partition, (words,), 0)
        pool = ThreadPoolExecutor(_AT_ONCE)
        try:
            found = pool.map(lambda one, asset=asset: _read(store, asset, *one), todo)
            for (partition, manifest), (problems, stays) in zip(todo, found, strict=True):
                condemned = bool(problems) and stays and mark and condemn(store, asset, partition, manifest, problems)
                yield Verified(asset, partition, tuple(problems), manifest.handle.nbytes, condemned)
        finally:
            # whoever stops it, or an error, does not wait for terabytes
            pool.shutdown(cancel_futures=True)


def _read(store: ArtifactStore, asset: str, partition: str | None, manifest: Manifest) -> tuple[list[str], bool]:
    """What is wrong with an artifact, and whether that is known to stay so: a disk or a mount may come back."""
    try:
        return problems_of(store, asset, partition, manifest), True
    except OSError as e:
        return [f"{store.uri(folder_of(asset, partition))}: cannot be read: {e}"], False


def unreadable(store: ArtifactStore, asset: str, records: Collection[str | None]) -> list[str | None]:
    """Partitions of `asset` whose record is there and is none that can be read; `records` are those of which one was."""
    stems = {e.name.removesuffix(".json") for e in store._list(asset) if e.name.endswith(".json") and e.name != index.NAME}
    left = sorted(stems - {p or "_" for p in records})
    # what was published or removed meanwhile is no damage
    read = {stem: store._read(f"{asset}/{stem}.json") for stem in left}
    return [None if s == "_" else s for s, data in read.items() if data is not None and store._parse(data, f"{asset}/{s}.json") is None]


def problems_of(store: ArtifactStore, asset: str, partition: str | None, manifest: Manifest) -> list[str]:
    """What is wrong with an artifact, in words: its record, or its bytes."""
    if manifest.handle is None:
        return []
    if wrong := _wrong_record(asset, partition, manifest):
        return [f"{store.uri(folder_of(asset, partition))}.json {wrong}"]
    try:
        return store.verify(manifest.handle)
    except (ArtifactGone, FileNotFoundError) as e:  # while it was being read
        return [str(e)]


def _wrong_record(asset: str, partition: str | None, manifest: Manifest) -> str | None:
    """What is wrong with the record of an artifact, in words."""
    handle, parts = manifest.handle, manifest.parts
    if {(parts.asset, parts.partition), (handle.asset, handle.partition)} != {(asset, partition)}:
        return f"is the manifest of {handle.label}: swapped"
    if handle.key != parts.key or handle.sha256 != content_sha256(handle.files):
        return "contradicts itself: damaged"
    return None


def condemn(store: ArtifactStore, asset: str, partition: str | None, manifest: Manifest, problems: Collection[str]) -> bool:
    """Takes a damaged artifact out of use, so that it counts as failed and is made again; its files are removed.

    (They could not stay: an artifact that is made again and comes out the same has the same address.)

    Returns:
        False where it was replaced meanwhile, and left alone.
    """
    return retire(store, asset, partition, f"{DAMAGED}: {'; '.join(problems)}; found by `aframe verify`", manifest)


def retire(store: ArtifactStore, asset: str, partition: str | None, error: str, only: Manifest | None = None) -> bool:
    """Puts a failure in the place of an artifact and removes its files. Its `meta` and checks stay, for what was decided in it.

    Args:
        error: what the failure says.
        only: the record that is to be replaced; that of another artifact is left alone.

    Returns:
        Whether there was an artifact, or that one.

    Raises:
        StoreError: the files could not be removed; the artifact is out of use all the same.
    """
    where = folder_of(asset, partition)
    now = store._marked(f"{where}.json")
    current = None if now.data is None else store._parse(now.data, f"{where}.json")
    if current is None or current.handle is None or (only and only.handle and only.handle.identity != current.handle.identity):
        return False
    parts = current.parts.model_copy(update={"asset": asset, "partition": partition})
    left = None if _wrong_record(asset, partition, current) else current.handle.meta
    failed = Manifest(parts=parts, status="failed", error=error, left=left, checks=current.checks, provenance=store._provenance(None))
    if not store._exchange(f"{where}.json", failed.dumps().encode(), now.mark):
        return False
    try:
        store._remove(f"{where}/{current.handle.uri.rsplit('/', 1)[-1]}")
    except (StoreError, OSError) as e:
        raise StoreError(f"{asset}: an artifact was taken out of use, but its files could not be removed: {e}") from e
    return True
