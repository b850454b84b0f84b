"""Work in progress in the store, for a try on another node to go on with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aframe_assets.store.files import stamp
from aframe_assets.store.layout import folder_of

if TYPE_CHECKING:
    from aframe_assets.store.base import ArtifactStore
    from aframe_assets.store.handle import Handle, KeyParts


class Unfinished:
    """What has been made so far of the artifact with `parts`: an artifact ``{asset}_unfinished`` with the same key.

    Raises (all methods):
        StoreError: the store does not answer, or is full.
    """

    def __init__(self, store: ArtifactStore, parts: KeyParts):
        self.key = parts.key
        self._store, self._parts = store, parts.model_copy(update={"asset": f"{parts.asset}_unfinished"})
        self._kept = False

    def keep(self, files: Mapping[str, Path], meta: Mapping[str, Any]) -> None:
        """Replaces what is there by `files`; a reader finds the old ones or the new ones, whole.

        A local store shares their bytes where it can: do not write to them afterwards.
        """
        where = folder_of(self._parts.asset, self._parts.partition)
        before = self.find()
        handle = self._store.publish(self._parts, files, meta, keep=False)
        self._kept = True
        # a reader may be at the one before; those before that are of no use to anybody
        old = set(self._store._versions(where))
        # nor is what a try on another node, lost but alive, has just put in its place
        used = {h.uri.rsplit("/", 1)[-1] for h in (before, handle, self.find()) if h is not None}
        for version in old - used:
            self._store._remove(f"{where}/{version}")

    def find(self) -> Handle | None:
        """What is there; its `meta` is that given to `keep`."""
        found = self._store.complete(self._parts)
        self._kept |= found is not None
        return found

    def fetch(self, folder: Path) -> Mapping[str, Any] | None:
        """Puts the files that are there into `folder`, each whole or not at all, and returns their `meta`; None without any.

        Raises:
            ArtifactGone: it was replaced or dropped meanwhile.
        """
        handle = self.find()
        if handle is None:
            return None
        source = self._store.open_local(handle)
        folder.mkdir(parents=True, exist_ok=True)
        for entry in handle.files:
            # copied: whoever goes on with them removes them
            temporary = folder / f".{stamp()}"
            shutil.copyfile(source / entry.name, temporary)
            temporary.replace(folder / entry.name)
        return handle.meta

    def kept_by_others(self) -> None:
        """Another process of this step may have called `keep`."""
        self._kept = True

    def drop(self) -> None:
        """Removes what `keep` has put there, or `find` has found."""
        if self._kept:
            where = folder_of(self._parts.asset, self._parts.partition)
            self._store._remove(f"{where}.json")
            self._store._remove(where)
