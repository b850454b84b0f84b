"""What a store holds that no manifest needs: of writers that were killed, of what was replaced, of work that is finished.

Nothing that a manifest names is ever among it, whatever its key: results of earlier settings are results.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aframe_assets.store.files import is_abandoned
from aframe_assets.store.layout import Lying, folder_of
from aframe_assets.store.verifying import unreadable

if TYPE_CHECKING:
    from aframe_assets.store.base import ArtifactStore
    from aframe_assets.store.handle import Manifest

log = logging.getLogger(__name__)

YOUNG_S = 3600.0
"""What was written so recently may belong to a writer at work."""
RUN_S = 7 * 86400.0
"""Values and messages of the steps of a run are kept for so long."""
_STAGING = ".staging-"
_VERSION = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}|\.staging-.+")
"""What is in a folder of an artifact; anything else there is not the store's."""
_UNFINISHED = "_unfinished"


@dataclass(frozen=True)
class Leftover:
    """Something that can go.

    Attributes:
        why: what it is, in words.
        address: where it is.
        nbytes: its size.
        age_s: seconds since any of it was written.
        remove: takes it away, unless it is needed by now.
    """

    why: str
    address: str
    nbytes: int
    age_s: float
    remove: Callable[[], None]


def find_leftovers(store: ArtifactStore, young_s: float = YOUNG_S, say: Callable[[str], object] = log.warning) -> list[Leftover]:
    """Everything in `store`, and in this machine's folder of work in progress for it, that no manifest needs.

    Args:
        young_s: what was written more recently is left out, but for what a process of this host has left that is gone.
        say: is told what the user has no right to look at.

    Raises:
        StoreError: the store cannot be read.
    """
    groups, files = _grouped(store._everything(say))
    manifests = {asset: store.manifests(asset) for asset in sorted({where.split("/")[0] for where, _ in groups} | _assets(files))}
    # of a later version of this project, or damaged: what it names may be needed
    unread = {folder_of(asset, p) for asset, records in manifests.items() for p in unreadable(store, asset, records)}
    groups = {place: lying for place, lying in groups.items() if place[0] not in unread}
    found = [*_versions(store, groups, manifests, young_s), *_files(store, files, young_s), *_finished(store, groups, manifests, young_s)]
    return sorted([*found, *_work(store, manifests, young_s)], key=lambda x: x.address)


def _assets(files: Iterable[Lying]) -> set[str]:
    return {f.path.split("/")[0] for f in files if f.path.count("/") == 1 and f.path.endswith(".json") and f.path[0] not in "._"}


def _grouped(lying: Iterable[Lying]) -> tuple[dict[tuple[str, str], list[Lying]], list[Lying]]:
    """Files of artifacts by (asset/partition, version), and the others."""
    groups: dict[tuple[str, str], list[Lying]] = defaultdict(list)
    files = []
    for one in lying:
        parts = one.path.split("/")
        if len(parts) > 3 and parts[0][0] not in "._" and _VERSION.fullmatch(parts[2]):
            groups[f"{parts[0]}/{parts[1]}", parts[2]].append(one)
        else:
            files.append(one)
    return groups, files


def _versions(store: ArtifactStore, groups: dict, manifests: dict, young_s: float) -> Iterator[Leftover]:
    for (where, version), lying in groups.items():
        uploads = [one for one in lying if one.abort]
        for one in uploads:
            if one.age_s >= young_s:
                yield Leftover("an upload that was cut off", store.uri(one.path), one.nbytes, one.age_s, one.abort)
        # an upload that goes on is that of a writer, who needs what he has put there before
        age = min(one.age_s for one in lying)
        lying = [one for one in lying if not one.abort]
        if not lying:
            continue
        nbytes, path = sum(one.nbytes for one in lying), f"{where}/{version}"
        if version.startswith(_STAGING):
            if is_abandoned(version.removeprefix(_STAGING), age):
                yield Leftover("a publish that was killed", store.uri(path), nbytes, age, partial(store._remove, path))
        elif version != _named(manifests, where) and age >= young_s:
            why = "a version that no manifest names: replaced, or its publish was killed"
            yield Leftover(why, store.uri(path), nbytes, age, partial(_remove_version, store, where, version))


def _named(manifests: dict[str, dict[str | None, Manifest]], where: str) -> str | None:
    """The version that the manifest of a partition's folder names."""
    asset, partition = where.split("/")
    found = manifests[asset].get(None if partition == "_" else partition)
    return found.handle.uri.rsplit("/", 1)[-1] if found and found.handle else None


def _remove_version(store: ArtifactStore, where: str, version: str) -> None:
    """A writer may have published into it since it was looked at."""
    now = store._manifest(where)
    named = now.handle.uri.rsplit("/", 1)[-1] if now and now.handle else None
    if named != version and (now or store._read(f"{where}.json") is None):
        store._remove(f"{where}/{version}")


def _files(store: ArtifactStore, files: Iterable[Lying], young_s: float) -> Iterator[Leftover]:
    for one in files:
        folder, _, name = one.path.rpartition("/")
        if name.startswith(".") and "~" in name:
            if is_abandoned(name.split("~", 1)[-1], one.age_s):
                yield Leftover(
                    "a small file that was cut off", store.uri(one.path), one.nbytes, one.age_s, partial(store._remove, one.path)
                )
        elif folder.split("/")[0] in ("_values", "_messages") and one.age_s >= max(young_s, RUN_S):
            why = "a value between the steps of a run, or a message, of long ago"
            yield Leftover(why, store.uri(one.path), one.nbytes, one.age_s, partial(store._remove, one.path))


def _finished(store: ArtifactStore, groups: dict, manifests: dict, young_s: float) -> Iterator[Leftover]:
    """Work in progress kept in the store of artifacts that are there by now."""
    for asset, records in manifests.items():
        of = asset.removesuffix(_UNFINISHED)
        for partition, record in records.items() if of != asset else ():
            done = manifests.get(of, {}).get(partition)
            if done is None or done.handle is None or record.parts.model_copy(update={"asset": of}).key != done.handle.key:
                continue
            where = f"{asset}/{partition or '_'}"
            lying = [one for (place, _), all_of in groups.items() if place == where for one in all_of]
            age = min((one.age_s for one in lying), default=young_s)
            if age >= young_s:
                nbytes = sum(one.nbytes for one in lying)
                remove = partial(_remove_place, store, where, record.parts.key)
                yield Leftover("work in progress of what is finished", store.uri(where), nbytes, age, remove)


def _remove_place(store: ArtifactStore, where: str, key: str) -> None:
    """Work with other settings may have begun there since it was looked at."""
    now = store._manifest(where)
    if now is not None and now.parts.key == key:
        store._remove(f"{where}.json")
        store._remove(where)


def _work(store: ArtifactStore, manifests: dict, young_s: float) -> Iterator[Leftover]:
    """On this machine: scratch of dead processes, and checkpoints of what is finished."""
    now = time.time()
    for path in (store.local / "scratch").glob("*~*~*"):
        nbytes, written = _size(path)
        if is_abandoned(path.name, now - written):
            yield Leftover("scratch of a process that is gone", str(path), nbytes, now - written, partial(_remove_folder, path))
    for path in (store.local / "work").glob("*/*/*"):
        asset, partition, key = path.relative_to(store.local / "work").parts
        done = manifests.get(asset, {}).get(None if partition == "_" else partition)
        nbytes, written = _size(path)
        if done and done.handle and done.handle.key.startswith(key) and now - written >= young_s:
            yield Leftover("checkpoints of what is finished", str(path), nbytes, now - written, partial(_remove_folder, path))


def _remove_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _size(folder: Path) -> tuple[int, float]:
    """Bytes in a folder, and when any of it was last written."""
    nbytes, written = 0, folder.stat().st_mtime
    for base, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                found = os.stat(os.path.join(base, name), follow_symlinks=False)
                nbytes, written = nbytes + found.st_size, max(written, found.st_mtime)
    return nbytes, written
