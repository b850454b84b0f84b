"""Parts of stored files, without the whole file: ranges straight from the store, and a bounded copy of them on the node.

A remote file is fetched in pieces of `PIECE_BYTES`, neighbours in one request, and the pieces are kept on the node's disk, so that
what several processes of the node want is fetched once and what is wanted again need not be fetched again. Pieces share the size cap
of the cache of whole files (`store.cache_gb` of the site); those that were used last stay.

A range cannot be checked against the sha256 of its file, which is that of the whole. So a request that gives an object of another
size or ETag than the manifest says is refused, and a piece on the node's disk carries a checksum of its own.
"""

from __future__ import annotations

import io
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from aframe_assets.store.files import remove_dead, stamp

if TYPE_CHECKING:
    from collections.abc import Iterator

    import h5py

    from aframe_assets.store.base import ArtifactStore
    from aframe_assets.store.cache import Cache
    from aframe_assets.store.handle import FileEntry, Handle

PIECE_BYTES = 1 << 20
"""What is fetched and kept as one; HDF5 strain files (`aframe_assets.strain.background_file`) are written in chunks of as much."""
REQUEST_PIECES = 8
"""Largest request, in pieces; requests begin and end at multiples of it, so that processes that want the same wait for one another."""
_LOCKS = 64
_LOCK_S = 120.0
_CHECKSUM = 4
_SHARE = 32
"""The folder of pieces is counted after each 1/32 of its cap that a process has added, and then kept 1/8 below it: with up to four
processes, the cap holds at all times."""

Fetch = Callable[[int, int], bytes]
"""(first byte, number of bytes) -> bytes."""


class Pieces:
    """Pieces of remote files on the node's disk.

    Layout: ``{root}/pieces/{sha256[:2]}/{sha256}-{number}``, the piece and its CRC-32; ``{root}/pieces/locks``.

    Args:
        cache: the cache of whole files, whose root and cap they share.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache, self.root = cache, cache.root / "pieces"
        # the first thing a process does is to count what others have left
        self._added = cache.max_bytes

    def __getstate__(self) -> dict[str, Any]:
        return {"cache": self.cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["cache"])

    def read(self, entry: FileEntry, first: int, size: int, fetch: Fetch) -> bytearray:
        """Bytes `first` to `first + size` of the file of `entry`, fetched where they are not here."""
        out, last = bytearray(size), first + size
        step = PIECE_BYTES * REQUEST_PIECES
        for start in range(first // step * step, last, step):
            low, high = max(first, start), min(last, start + step)
            self._group(entry, low, high, fetch, memoryview(out)[low - first : high - first])
        return out

    def _group(self, entry: FileEntry, low: int, high: int, fetch: Fetch, out: memoryview) -> None:
        """As `read`, within one request."""
        numbers = range(low // PIECE_BYTES, (high - 1) // PIECE_BYTES + 1)

        def put(number: int, data: memoryview | bytes) -> None:
            start = number * PIECE_BYTES
            a, b = max(low, start), min(high, start + len(data))
            out[a - low : b - low] = data[a - start : b - start]

        def held(wanted: list[int]) -> list[int]:
            """Puts what is here; the numbers of the others."""
            missing = []
            for number in wanted:
                data = self._get(entry, number)
                missing.append(number) if data is None else put(number, data)
            return missing

        missing = held(list(numbers))
        if not missing:
            return
        with self._lock(entry, numbers[0] // REQUEST_PIECES):
            # another process may have fetched them meanwhile
            missing = held(missing)
            if missing:
                start = missing[0] * PIECE_BYTES
                data = memoryview(fetch(start, min((missing[-1] + 1) * PIECE_BYTES, entry.nbytes) - start))
                for number in range(missing[0], missing[-1] + 1):
                    piece = data[number * PIECE_BYTES - start : (number + 1) * PIECE_BYTES - start]
                    put(number, piece)
                    if number in missing:
                        self._keep(entry, number, piece)

    @contextmanager
    def _lock(self, entry: FileEntry, group: int) -> Iterator[None]:
        """Held by one process of the node; without it, as on a read-only disk or after a process was stopped, more is fetched, no worse."""
        folder, lock = self.root / "locks", None
        with suppress(OSError, Timeout):
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{(int(entry.sha256[:8], 16) + group) % _LOCKS:02d}.lock", mode=0o666)
            lock.acquire(timeout=_LOCK_S, poll_interval=0.005)
        try:
            yield
        finally:
            if lock is not None:
                lock.release()

    def _path(self, entry: FileEntry, number: int) -> Path:
        return self.root / entry.sha256[:2] / f"{entry.sha256}-{number}"

    def _get(self, entry: FileEntry, number: int) -> memoryview | None:
        path = self._path(entry, number)
        try:
            data = memoryview(path.read_bytes())
        except OSError:
            return None
        piece = data[:-_CHECKSUM]
        if len(piece) != min(PIECE_BYTES, entry.nbytes - number * PIECE_BYTES) or _checksum(piece) != data[-_CHECKSUM:]:
            return None
        with suppress(OSError):  # the time of last use; access times of files are often switched off
            os.utime(path)
        return piece

    def _keep(self, entry: FileEntry, number: int, piece: memoryview) -> None:
        """A full or read-only disk costs further requests, no more."""
        self._added += len(piece)
        if self._added * _SHARE >= self.cache.max_bytes:
            self.trim()
        if len(piece) * _SHARE > self.cache.max_bytes:
            return
        path = self._path(entry, number)
        arriving = self.root / "arriving"
        temporary = arriving / stamp()
        try:
            arriving.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as stream:
                stream.write(piece)
                stream.write(_checksum(piece))
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def trim(self) -> None:
        """Remove what was used longest ago, pieces and whole files, until 7/8 of the cap are held."""
        self._added = 0
        remove_dead(self.root / "arriving")
        with suppress(Timeout, OSError), FileLock(self.root / "locks" / "trim.lock", timeout=0, mode=0o666):
            self.cache.trim(to=self.cache.max_bytes * (_SHARE - 4) // _SHARE)


def _checksum(data: memoryview) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECKSUM, "little")


@dataclass(frozen=True, eq=False)
class StoredFile:
    """A file of an artifact, read in parts; it can be sent to another process.

    Attributes:
        store: where it is.
        handle: its artifact.
        name: its name in there.
    """

    store: ArtifactStore
    handle: Handle
    name: str

    def __str__(self) -> str:
        return f"{self.handle.uri}/{self.name}"

    def __hash__(self) -> int:
        return hash(str(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredFile) and str(self) == str(other)

    @property
    def nbytes(self) -> int:
        return self.handle.file(self.name).nbytes

    def read(self, first: int, size: int) -> bytes | bytearray:
        """`size` bytes from byte `first` on.

        Raises:
            ArtifactGone: it is not there, or is another file by now.
            StoreError: the store cannot be reached.
            ValueError: no such bytes.
        """
        if first < 0 or size < 0 or first + size > self.nbytes:
            raise ValueError(f"{self}: asked for bytes {first} to {first + size}, has {self.nbytes}")
        return self.store.read_range(self.handle, self.name, first, size) if size else b""


class _LocalFile:
    """The same of a file on this machine's disks."""

    def __init__(self, path: Path) -> None:
        self.path, self.nbytes = path, path.stat().st_size

    def read(self, first: int, size: int) -> bytes:
        with self.path.open("rb", buffering=0) as stream:
            return os.pread(stream.fileno(), size, first)


Source = Path | StoredFile
"""A file to read from: a local path, or one in the store."""


def ranges_of(source: Source) -> StoredFile | _LocalFile:
    """`source` with ``read(first, size)`` and ``nbytes``."""
    return source if isinstance(source, StoredFile) else _LocalFile(Path(source))


class _Stream(io.RawIOBase):
    """A file in blocks of 64 kB, the last few kept: what a library reads that jumps about in a file's head and indices."""

    BLOCK, KEPT = 1 << 16, 64

    def __init__(self, source: StoredFile) -> None:
        self._source, self._at = source, 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._guard = threading.Lock()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.nbytes}[whence]
        return self._at

    def _block(self, number: int) -> bytes:
        with self._guard:
            if number not in self._blocks:
                first = number * self.BLOCK
                self._blocks[number] = bytes(self._source.read(first, min(self.BLOCK, self._source.nbytes - first)))
                if len(self._blocks) > self.KEPT:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(number)
            return self._blocks[number]

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        size = max(0, min(len(view), self._source.nbytes - self._at))
        if size >= self.BLOCK:
            view[:size] = self._source.read(self._at, size)
        else:
            done = 0
            while done < size:
                number, offset = divmod(self._at + done, self.BLOCK)
                part = self._block(number)[offset : offset + size - done]
                view[done : done + len(part)] = part
                done += len(part)
        self._at += size
        return size


@contextmanager
def open_hdf5(source: Source) -> Iterator[h5py.File]:
    """`source` as an HDF5 file that is being read; of one in a remote store only what is asked for is fetched.

    Raises:
        OSError: it is not an HDF5 file, or cut short.
    """
    import h5py

    where = _Stream(source) if isinstance(source, StoredFile) else source
    try:
        file = h5py.File(where, "r")
    except Exception as error:
        # h5py's frames hold a property list of the stream: where a traceback keeps it to the end of the process, that ends in a crash
        raise error.with_traceback(None)  # noqa: B904
    with file as f:
        yield f
