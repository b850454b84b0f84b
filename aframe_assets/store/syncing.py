"""Artifacts from one store to another, each checked against its hashes, in the same order as a publish: files first, manifest last.

An artifact keeps its key, its content hash and how it was made, so what was made from it stays complete in the other store.
Nothing is kept about the copying itself: what is in the target already is found there, so the same call again goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

from aframe_assets.store.base import ArtifactStore
from aframe_assets.store.errors import ArtifactGone, StoreError
from aframe_assets.store.handle import Manifest
from aframe_assets.store.layout import folder_of
from aframe_assets.store.local import LocalStore

PARALLEL = 4
"""Artifacts at once; large files of a store on S3 are read in parallel by themselves."""

State = Literal["copied", "there", "differs", "damaged", "failed", "would copy"]


class Outcome(NamedTuple):
    """What became of one artifact.

    Attributes:
        asset, partition: which.
        nbytes: its size, bytes.
        state: 'copied'; 'there' already; 'differs': the target has another version, which was left as it is; 'damaged': the source's
            bytes are not those of its manifest; 'failed': it could not be copied; 'would copy'.
        why: in words, of the last four.
    """

    asset: str
    partition: str | None
    nbytes: int
    state: State
    why: str = ""


@dataclass(frozen=True)
class Options:
    """How to sync.

    Attributes:
        assets: names of assets to take, ``*`` and ``?`` allowed; all by default.
        replace: take the source's version where the target has another one.
        move: remove from the source what is in the target, after the target's bytes have been read back and their hashes compared.
        verify: read back and compare also without `move`.
        dry_run: change nothing.
    """

    assets: Sequence[str] = ("*",)
    replace: bool = False
    move: bool = False
    verify: bool = False
    dry_run: bool = False


def sync(source: ArtifactStore, target: ArtifactStore, options: Options = Options()) -> Iterator[Outcome]:
    """Copies or moves artifacts, a few at a time; yields what became of each, as it happens.

    Records of failures are left behind, as are small values of runs.

    Raises:
        StoreError: a store cannot be reached; source and target are the same; no asset of that name; no space for what is missing, or a
            file in its place.
    """
    if source.url == target.url:
        raise StoreError(f"{source.url}: is source and target at once")
    have = source.assets()
    wanted = [a for a in have if any(fnmatchcase(a, pattern) for pattern in options.assets)]
    if unknown := [p for p in options.assets if p != "*" and not any(fnmatchcase(a, p) for a in have)]:
        raise StoreError(f"{source.url}: has no asset {', '.join(unknown)}; it has: {', '.join(have) or 'none'}")
    plans = [plan for asset in wanted for plan in _plan(source, target, asset, options)]
    missing = sum(p.manifest.handle.nbytes for p in plans if p.state == "would copy")
    _require_space(target, missing)
    if options.dry_run:
        yield from (Outcome(p.asset, p.partition, p.manifest.handle.nbytes, p.state, p.why) for p in plans)
        return
    with ThreadPoolExecutor(PARALLEL) as pool:
        running: set[Future[Outcome]] = set()
        try:
            for plan in plans:
                running.add(pool.submit(_settle, source, target, plan, options))
                if len(running) >= 2 * PARALLEL:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (f.result() for f in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (f.result() for f in done)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for asset in wanted:
        target.manifests(asset)  # writes the index that readers of many partitions use


class _Plan(NamedTuple):
    asset: str
    partition: str | None
    manifest: Manifest
    state: State
    why: str = ""


def _plan(source: ArtifactStore, target: ArtifactStore, asset: str, options: Options) -> Iterator[_Plan]:
    """What is to be done for each artifact of `asset`; one listing of each store."""
    records = {p: m for p, m in source.manifests(asset).items() if m.status == "ok" and m.handle is not None}
    if not records:
        return
    there, sizes, kept = target.manifests(asset), source._stats(asset), target._stats(asset)
    for partition, manifest in records.items():
        other = there.get(partition)
        whole = other is not None and other.handle is not None and not target._damage(other.handle, kept)
        if damage := source._damage(manifest.handle, sizes):
            yield _Plan(asset, partition, manifest, "damaged", damage[0])
        elif whole and other.handle.identity == manifest.handle.identity:
            yield _Plan(asset, partition, manifest, "there")
        elif whole and not options.replace:
            yield _Plan(asset, partition, manifest, "differs", f"{target.url} has another version of it, made {_made(other)}")
        else:
            yield _Plan(asset, partition, manifest, "would copy")


def _made(manifest: Manifest) -> str:
    return str(manifest.provenance.get("created", "at an unknown time"))


def _require_space(target: ArtifactStore, nbytes: int) -> None:
    if not isinstance(target, LocalStore):
        return
    place = next(p for p in (target.root, *target.root.parents) if p.exists())
    if not place.is_dir():
        raise StoreError(f"{place}: is a file; expected a folder, or a name that is free")
    free = shutil.disk_usage(place).free
    if nbytes > free:
        raise StoreError(
            f"no space left for {nbytes / 1e9:.2f} GB in {target.root}, which has {free / 1e9:.2f} GB free; nothing was copied"
        )


def _settle(source: ArtifactStore, target: ArtifactStore, plan: _Plan, options: Options) -> Outcome:
    def outcome(state: State, why: str = "") -> Outcome:
        return Outcome(plan.asset, plan.partition, plan.manifest.handle.nbytes, state, why)

    if plan.state in ("damaged", "differs"):
        return outcome(plan.state, plan.why)
    try:
        if plan.state == "would copy":
            _copy(source, target, plan.manifest, options)
        if options.move or options.verify:
            found = target.manifest(plan.asset, plan.partition)
            if found is None or found.handle is None or found.handle.identity != plan.manifest.handle.identity:
                return outcome("failed", f"{target.url} has another version of it by now")
            if bad := target.verify(found.handle):
                return outcome("failed", f"what was written is not what is read: {bad[0]}")
        if options.move:
            _drop(source, plan.manifest)
    except ArtifactGone as error:
        return outcome("damaged", str(error))
    except (StoreError, OSError) as error:
        return outcome("failed", str(error))
    return outcome("copied" if plan.state == "would copy" else "there")


def _copy(source: ArtifactStore, target: ArtifactStore, manifest: Manifest, options: Options) -> None:
    handle = manifest.handle
    where = folder_of(handle.asset, handle.partition)
    before = target._manifest(where)
    folder = target._folder(handle)
    # an ETag is the server's own
    entries = [entry.model_copy(update={"etag": None}) for entry in handle.files]
    with target.scratch() as scratch:
        files = {}
        for i, entry in enumerate(handle.files):
            files[entry.name], found = source.hashed(handle, entry.name, scratch / str(i))
            if found != entry.sha256:
                address = f"{source.uri(folder)}/{entry.name}"
                raise ArtifactGone(f"{address} has another sha256 than recorded ({found[:12]}, expected {entry.sha256[:12]})")
        placed = target._place(folder, files, entries)
    copy = handle.model_copy(update={"uri": target.uri(folder), "files": tuple(placed)})
    provenance = {**manifest.provenance, "copied_from": source.url}
    now = manifest.model_copy(update={"handle": copy, "provenance": provenance})
    settled = target._settle(where, now, keep=not options.replace)
    if settled.handle is None or settled.handle.identity != handle.identity:
        raise StoreError(f"{target.url} was given another version of {handle.label} meanwhile; run the same command again")
    if bad := target._damage(settled.handle):
        raise StoreError(f"{bad[0]}, right after it was copied; run the same command again")
    if options.replace:
        with suppress(StoreError, OSError):  # leftovers cost space, not correctness
            target._prune(where, settled.handle, before)


def _drop(source: ArtifactStore, manifest: Manifest) -> None:
    """Removes an artifact unless another version has taken its place: first the manifest, without which its files are nothing."""
    handle = manifest.handle
    where = folder_of(handle.asset, handle.partition)
    now = source._manifest(where)
    if now is not None and now.handle is not None and now.handle.uri == handle.uri:
        source._remove(f"{where}.json")
        source._remove(source._folder(handle))
