"""A store in a folder, on a local or shared filesystem."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from aframe_assets.store.base import ArtifactStore
from aframe_assets.store.cache import CacheError
from aframe_assets.store.errors import StoreError
from aframe_assets.store.files import FULL, copy_file, file_sha256, remove_dead, stamp, sync_folder
from aframe_assets.store.handle import FileEntry, Handle
from aframe_assets.store.layout import Listed, Lying, Marked, Stat
from aframe_assets.store.node import NodeDisk
from aframe_assets.store.ranges import Source, StoredFile, ranges_of

_STAGING = ".staging-"
_LOCK_S = 120.0


class LocalStore(ArtifactStore):
    """Artifacts below the folder `root`; every step must see that folder."""

    def __init__(self, root: str | Path, node: NodeDisk | None = None):
        self.node = node
        self.root = Path(os.path.abspath(os.path.expanduser(str(root))))
        self.url = "file://" + quote(self.root.as_posix())

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    @property
    def local(self) -> Path:
        return self.root / ".local"

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        """Disk errors as a user understands them."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                raise StoreError(
                    f"no space left for {what} in {self.root}; nothing was published. Free space (or raise the quota) there, "
                    "or choose another store, then run the same command again"
                ) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise StoreError(
                    f"may not write {what} in {self.root} ({error.strerror}); nothing was published. Check its owner and mount"
                ) from error
            raise

    def _read(self, path: str) -> bytes | None:
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _write(self, path: str, data: bytes) -> None:
        target = self.root / path
        with self._writing(path), self._beside(target, data) as temporary:
            os.replace(temporary, target)
            sync_folder(target.parent)

    @contextmanager
    def _beside(self, target: Path, data: bytes) -> Iterator[Path]:
        """A file with `data`, flushed, in the folder of `target`; removed unless it was renamed."""
        target.parent.mkdir(parents=True, exist_ok=True)
        # hidden, so that no listing takes the unfinished file for a manifest
        temporary = target.parent / f".{target.name}~{stamp()}"
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _marked(self, path: str) -> Marked:
        data = self._read(path)
        return Marked(data, None if data is None else hashlib.sha256(data).hexdigest())

    def _exchange(self, path: str, data: bytes, mark: str | None) -> bool:
        target = self.root / path
        with self._writing(path), self._beside(target, data) as temporary, self._locked(target.parent):
            if self._marked(path).mark != mark:
                return False
            try:
                if mark is None:
                    os.link(temporary, target)  # exclusive even on a shared disk whose locks do not reach other hosts
                else:
                    os.replace(temporary, target)
            except FileExistsError:
                return False
            except OSError as error:
                if mark is not None or error.errno in FULL:
                    raise
                os.replace(temporary, target)  # no hard links on this filesystem
            sync_folder(target.parent)
        return True

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Keeps other processes from exchanging files of `folder`; a killed one gives the lock back at once."""
        lock = folder / ".lock"
        try:
            with FileLock(lock, mode=0o666).acquire(timeout=_LOCK_S, poll_interval=0.01):
                yield
        except Timeout:
            raise StoreError(f"{lock} has been held for {_LOCK_S:g} s; is a job of this store stopped or its disk hanging?") from None

    def _list(self, folder: str) -> list[Listed]:
        out = []
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        if not entry.name.startswith(".") and entry.is_file():
                            found = entry.stat()
                            out.append(Listed(entry.name, f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}"))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return out

    def _folders(self) -> list[str]:
        try:
            return [p.name for p in self.root.iterdir() if p.is_dir()]
        except FileNotFoundError:
            return []

    def _stat(self, path: str) -> Stat | None:
        try:
            return Stat((self.root / path).stat().st_size)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _stats(self, folder: str) -> dict[str, Stat]:
        out, todo = {}, [folder]
        while todo:
            inside = todo.pop()
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(f"{self.root}/{inside}") as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(f"{inside}/{entry.name}")
                    else:
                        with suppress(FileNotFoundError):
                            out[f"{inside}/{entry.name}"] = Stat(entry.stat().st_size)
        return out

    def _place(self, folder: str, files: Mapping[str, Path], entries: Sequence[FileEntry]) -> list[FileEntry]:
        target = self.root / folder
        with self._writing(folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            staging = target.parent / f"{_STAGING}{stamp()}"
            staging.mkdir()
            try:
                for entry in entries:
                    self._take(files[entry.name], staging / entry.name)
                for base, _, _ in os.walk(staging, topdown=False):
                    sync_folder(Path(base))
                try:
                    os.rename(staging, target)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    # the folder is named after its content, so these files replace equal ones (or damaged ones)
                    for entry in entries:
                        (target / entry.name).parent.mkdir(parents=True, exist_ok=True)
                        os.replace(staging / entry.name, target / entry.name)
                    for base, _, _ in os.walk(target, topdown=False):
                        sync_folder(Path(base))
                sync_folder(target.parent)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return list(entries)

    def _take(self, source: Path, target: Path) -> None:
        """A file of this store's own scratch or work folder is linked, not copied; anything else is copied."""
        target.parent.mkdir(parents=True, exist_ok=True)
        own = source.resolve()
        if own.is_relative_to(self.local.resolve()):
            try:
                os.link(own, target)
            except OSError as error:
                if error.errno in FULL:
                    raise
                copy_file(own, target)  # no hard links on this filesystem
        else:
            copy_file(own, target)
        with suppress(OSError):
            target.chmod(0o444)  # a published file is never written to again

    def _versions(self, folder: str) -> dict[str, float]:
        base, now = self.root / folder, time.time()
        if base.is_dir():
            remove_dead(base, _STAGING)
            remove_dead(base.parent, f".{base.name}.json~")
        try:
            return {p.name: now - p.stat().st_mtime for p in base.iterdir() if p.is_dir() and not p.name.startswith(".")}
        except FileNotFoundError:
            return {}

    def _everything(self, say: Callable[[str], object]) -> Iterator[Lying]:
        now = time.time()
        for base, folders, names in os.walk(self.root):
            inside = os.path.relpath(base, self.root)
            if inside == ".":
                folders[:] = [f for f in folders if f != self.local.name]
            if not folders and not names and inside != ".":
                with suppress(FileNotFoundError):
                    yield Lying(f"{inside}/", 0, now - os.stat(base).st_mtime)
            for name in names:
                with suppress(FileNotFoundError):
                    found = os.stat(os.path.join(base, name), follow_symlinks=False)
                    yield Lying(os.path.normpath(f"{inside}/{name}"), found.st_size, now - found.st_ctime)

    def _remove(self, path: str) -> None:
        target = self.root / path
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)

    def _sha256(self, path: str) -> str:
        return file_sha256(self.root / path)

    def hashed(self, handle: Handle, name: str, spare: Path) -> tuple[Path, str]:
        path = self.root / self._folder(handle) / name
        try:
            return path, file_sha256(path)
        except FileNotFoundError:
            raise self.missing(handle, [f"{self.uri(self._folder(handle))}/{name} is missing"]) from None

    def open_ranges(self, handle: Handle, name: str) -> Source:
        path = self.open_local(handle, name)
        # a copy on the node's disk may have to make room while a long step reads it
        return path if self.node is None or path.is_relative_to(self.root) else StoredFile(self, handle, name)

    def read_range(self, handle: Handle, name: str, first: int, size: int) -> bytes | bytearray:
        copy = self.node and self.node.cache.copy(handle, name)
        if copy:
            with suppress(OSError):
                return ranges_of(copy).read(first, size)
        try:
            return ranges_of(self.root / self._folder(handle) / name).read(first, size)
        except FileNotFoundError:
            raise self.missing(handle, [f"{self.uri(self._folder(handle))}/{name} is missing"]) from None

    def open_local(self, handle: Handle, name: str | None = None) -> Path:
        wanted = handle if name is None else handle.model_copy(update={"files": (handle.file(name),)})
        bad = self._damage(wanted)
        if bad:
            raise self.missing(handle, bad)
        folder = self.root / self._folder(handle)
        if self.node is not None:
            try:
                names = [f.name for f in wanted.files]
                folder = self.node.open(handle, names, lambda entry, target: copy_file(folder / entry.name, target)) or folder
            except CacheError as error:
                raise StoreError(f"{handle.label} from {handle.uri}: {error}") from error
        return folder if name is None else folder / name
