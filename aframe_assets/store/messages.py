"""Short-lived byte strings beside the artifacts of a store, for processes that share nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aframe_assets.store.handle import check_name

if TYPE_CHECKING:
    from aframe_assets.store.base import ArtifactStore


class Messages:
    """The messages in one folder of `store`.

    Args:
        store: where they are.
        folder: name of the folder, which is this object's alone; may hold '/'.

    Raises (all methods):
        StoreError: the store does not answer.
    """

    def __init__(self, store: ArtifactStore, folder: str):
        self._store, self._folder = store, f"_messages/{check_name(folder)}"

    def put(self, name: str, data: bytes) -> None:
        """Writes one; readers see all of it or nothing."""
        self._store._write(f"{self._folder}/{check_name(name)}", data)

    def names(self) -> list[str]:
        """Names of all that are there, sorted."""
        return sorted(found.name for found in self._store._list(self._folder))

    def get(self, name: str) -> bytes | None:
        """One of them, or None."""
        return self._store._read(f"{self._folder}/{check_name(name)}")

    def remove(self, name: str) -> None:
        """Removes one, if it is there."""
        self._store._remove(f"{self._folder}/{check_name(name)}")

    def clear(self) -> None:
        """Removes all of them."""
        self._store._remove(self._folder)
