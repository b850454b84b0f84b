"""A store in two places: what training reads and makes in one that its nodes reach, all else in another.

Address: the one of the rest, ``#training=`` and that of the training part, as ``/data/demo/store#training=s3://bucket/demo``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from aframe_assets import lineage
from aframe_assets.store.base import ArtifactStore
from aframe_assets.store.errors import StoreError
from aframe_assets.store.handle import FileEntry, Handle, KeyParts
from aframe_assets.store.layout import Listed, Lying, Marked, Stat
from aframe_assets.store.local import LocalStore
from aframe_assets.store.ranges import Source

MARK = "#training="


class SplitStore(ArtifactStore):
    """Two stores that are one to their readers and writers.

    Small values, messages and leases, whose names begin with ``_``, are in the training part, since its jobs use them.

    Args:
        rest: where assets are that training has nothing to do with.
        training: where those are that the networks are made from, and the networks.
    """

    def __init__(self, rest: ArtifactStore, training: ArtifactStore) -> None:
        self.rest, self.training = rest, training
        self.url, self.node = f"{rest.url}{MARK}{training.url}", training.node

    def __repr__(self) -> str:
        return f"SplitStore({self.rest!r}, {self.training!r})"

    @property
    def parts(self) -> tuple[ArtifactStore, ArtifactStore]:
        return self.rest, self.training

    def part(self, path: str) -> ArtifactStore:
        """The store that holds `path`, which begins with the name of an asset.

        Raises:
            StoreError: it is a folder that this machine does not see.
        """
        if is_training(path.split("/", 1)[0].removesuffix(".json")):
            return self.training
        # on a node without it a new folder of that name would take what is then lost with the node
        if isinstance(self.rest, LocalStore) and not self.rest.root.parent.is_dir():
            raise StoreError(
                f"{path} is kept in {self.rest.root}, which is not here; only steps of the training can run on nodes that do not see "
                "it. Send the others elsewhere (executor.routes of site.yaml), or keep all on S3 (store.root)"
            )
        return self.rest

    @property
    def local(self) -> Path:
        here = isinstance(self.rest, LocalStore) and self.rest.root.parent.is_dir()
        return self.rest.local if here else self.training.local

    def _secrets(self) -> list[str]:
        return [secret for part in self.parts for secret in part._secrets()]

    def uri(self, path: str) -> str:
        return self.part(path).uri(path)

    def _read(self, path: str) -> bytes | None:
        return self.part(path)._read(path)

    def _write(self, path: str, data: bytes) -> None:
        self.part(path)._write(path, data)

    def _marked(self, path: str) -> Marked:
        return self.part(path)._marked(path)

    def _exchange(self, path: str, data: bytes, mark: str | None) -> bool:
        return self.part(path)._exchange(path, data, mark)

    def _list(self, folder: str) -> list[Listed]:
        return self.part(folder)._list(folder)

    def _folders(self) -> list[str]:
        return sorted({name for part in self.parts for name in part._folders() if self.part(name) is part})

    def _everything(self, say: Callable[[str], object]) -> Iterator[Lying]:
        for part in self.parts:
            yield from (found for found in part._everything(say) if self.part(found.path) is part)

    def _stat(self, path: str) -> Stat | None:
        return self.part(path)._stat(path)

    def _stats(self, folder: str) -> dict[str, Stat]:
        return self.part(folder)._stats(folder)

    def _place(self, folder: str, files: Mapping[str, Path], entries: Sequence[FileEntry]) -> list[FileEntry]:
        return self.part(folder)._place(folder, files, entries)

    def _versions(self, folder: str) -> dict[str, float]:
        return self.part(folder)._versions(folder)

    def _remove(self, path: str) -> None:
        self.part(path)._remove(path)

    def _sha256(self, path: str) -> str:
        return self.part(path)._sha256(path)

    def workdir(self, parts: KeyParts) -> Path:
        return self.part(parts.asset).workdir(parts)

    def _workdir(self, parts: KeyParts) -> Path:
        return self.part(parts.asset)._workdir(parts)

    def open_local(self, handle: Handle, name: str | None = None) -> Path:
        return self.part(handle.asset).open_local(handle, name)

    def open_ranges(self, handle: Handle, name: str) -> Source:
        return self.part(handle.asset).open_ranges(handle, name)

    def read_range(self, handle: Handle, name: str, first: int, size: int) -> bytes | bytearray:
        return self.part(handle.asset).read_range(handle, name, first, size)

    def hashed(self, handle: Handle, name: str, spare: Path) -> tuple[Path, str]:
        return self.part(handle.asset).hashed(handle, name, spare)


def is_training(name: str) -> bool:
    """Whether a folder of a store belongs to its training part: an asset, or what is kept beside one as ``model_plots``."""
    if name.startswith("_"):
        return True
    # the longest name counts: model_repository is an asset of its own
    owners = [asset for asset in lineage.names() if name == asset or name.startswith(f"{asset}_")]
    return bool(owners) and max(owners, key=len) in lineage.trained_from()
