"""What a kind of storage, as a folder or a bucket, provides for the store of artifacts (`aframe_assets.store.base`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from aframe_assets.store.handle import FileEntry, Handle
from aframe_assets.store.layout import Listed, Lying, Marked, Stat
from aframe_assets.store.node import NodeDisk
from aframe_assets.store.ranges import Source, ranges_of


class Storage(ABC):
    """Files and folders at `url`; all paths are relative to it. Nothing here knows what an artifact's manifest says."""

    url: str
    node: NodeDisk | None = None
    _flushes = True
    """Whether the files of a publish have to be on this machine's disk before they count."""

    @property
    @abstractmethod
    def local(self) -> Path:
        """A local folder of this store's own for scratch and work in progress."""

    @abstractmethod
    def _read(self, path: str) -> bytes | None:
        """A small file, or None."""

    @abstractmethod
    def _write(self, path: str, data: bytes) -> None:
        """Write a small file; readers see the old one or the new one."""

    @abstractmethod
    def _marked(self, path: str) -> Marked:
        """A small file with the mark that `_exchange` wants."""

    @abstractmethod
    def _exchange(self, path: str, data: bytes, mark: str | None) -> bool:
        """Write a small file unless it has changed since it was read with `mark`; whether it was written."""

    @abstractmethod
    def _list(self, folder: str) -> list[Listed]:
        """The files directly in `folder`."""

    @abstractmethod
    def _folders(self) -> list[str]:
        """The folders directly below the root."""

    @abstractmethod
    def _stat(self, path: str) -> Stat | None: ...

    @abstractmethod
    def _stats(self, folder: str) -> dict[str, Stat]:
        """Every file below `folder`, by path relative to the root."""

    @abstractmethod
    def _place(self, folder: str, files: Mapping[str, Path], entries: Sequence[FileEntry]) -> list[FileEntry]:
        """Put `files` into the version folder; their entries, as stored."""

    @abstractmethod
    def _versions(self, folder: str) -> dict[str, float]:
        """Version folders in `folder` and their age in seconds."""

    @abstractmethod
    def _everything(self, say: Callable[[str], object]) -> Iterator[Lying]:
        """All that lies in the store, hidden and unfinished things too; folders with nothing in them, as ``NAME/``.

        What the user has no right to look at is left out, and named to `say`.
        """

    @abstractmethod
    def _remove(self, path: str) -> None:
        """Remove a file or folder, if it is there."""

    @abstractmethod
    def _sha256(self, path: str) -> str:
        """sha256 of a stored file, streamed."""

    @abstractmethod
    def open_local(self, handle: Handle, name: str | None = None) -> Path:
        """A local path of the file `name`, or of the folder of all files.

        Treat it as read-only. On S3 the bytes come through the cache and are verified against the handle.

        Raises:
            ArtifactGone: the bytes are not there, or not of the recorded size.
            KeyError: the artifact has no such file.
        """

    def open_ranges(self, handle: Handle, name: str) -> Source:
        """The file `name` for a reader that wants parts of it: a local path, or a file from which ranges are fetched.

        Raises:
            ArtifactGone: as `open_local`; of a remote file, when it is first read.
            KeyError: the artifact has no such file.
        """
        return self.open_local(handle, name)

    @abstractmethod
    def hashed(self, handle: Handle, name: str, spare: Path) -> tuple[Path, str]:
        """A local path of the file `name`, and the sha256 of what is there now; `spare` is a free path that may become it.

        Raises:
            ArtifactGone: the bytes are not there.
        """

    def read_range(self, handle: Handle, name: str, first: int, size: int) -> bytes | bytearray:
        """`size` bytes from byte `first` of the file `name` on; see `ranges.StoredFile`."""
        return ranges_of(self.open_local(handle, name)).read(first, size)

    def _secrets(self) -> list[str]:
        return []

    def uri(self, path: str) -> str:
        """The address of `path`."""
        return f"{self.url}/{path}"
