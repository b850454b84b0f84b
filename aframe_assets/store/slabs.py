"""Rows of an HDF5 dataset by the bytes where they lie, so that threads read at once and in large requests.

h5py itself reads one chunk after the other, under one lock for all files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.store.ranges import Source, open_hdf5, ranges_of

if TYPE_CHECKING:
    import h5py

GAP_BYTES = 1 << 16
"""Bytes between two wanted ranges that are read with them rather than asked for separately."""


@dataclass(frozen=True)
class Slabs:
    """Where the rows of a dataset lie.

    Attributes:
        source: its file.
        name: its name in the file, as "H1" or "waveforms/plus".
        shape, dtype: of the dataset; at least one axis.
        rows: rows of a chunk, the last of which may reach beyond the dataset.
        offsets: (chunk,), first byte of each chunk; None where bytes are not values (filters, as compression): h5py reads those.
    """

    source: Source
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    rows: int
    offsets: np.ndarray | None

    @classmethod
    def of(cls, source: Source, dataset: h5py.Dataset) -> Slabs:
        """Of an open dataset; `source` is its file."""
        rows, offsets = _plain_chunks(dataset)
        return cls(source, dataset.name.lstrip("/"), dataset.shape, dataset.dtype, rows, offsets)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def _row_bytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape[1:]))

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows `first` to `last`, in the dataset's own type.

        Raises:
            OSError: the file is cut short.
            ValueError: no such rows.
        """
        if not 0 <= first <= last <= len(self):
            raise ValueError(f"{self.source}: asked for rows {first} to {last} of {self.name}, which has {len(self)}")
        if self.offsets is None:
            with open_hdf5(self.source) as f:
                return f[self.name][first:last]
        out = np.empty((last - first, *self.shape[1:]), self.dtype)
        flat = out.reshape(-1).view(np.uint8)
        file = ranges_of(self.source)
        for start, size, places in self._requests(first, last):
            data = file.read(start, size)
            if len(data) != size:
                raise OSError(
                    f"{self.source}: ends at byte {start + len(data)}, expected {self.name} up to {start + size}; it is truncated"
                )
            bytes_ = np.frombuffer(data, np.uint8)
            for offset, count, target in places:
                flat[target : target + count] = bytes_[offset - start : offset - start + count]
        return out

    def _requests(self, first: int, last: int) -> list[tuple[int, int, list[tuple[int, int, int]]]]:
        """(first byte, bytes, [(first byte, bytes, where in the result)]) of each contiguous read."""
        row, wanted = self._row_bytes, []
        for chunk in range(first // self.rows, -(-last // self.rows)):
            low, high = max(first, chunk * self.rows), min(last, (chunk + 1) * self.rows)
            wanted.append((int(self.offsets[chunk]) + (low - chunk * self.rows) * row, (high - low) * row, (low - first) * row))
        out: list[tuple[int, int, list[tuple[int, int, int]]]] = []
        for offset, count, target in sorted(wanted):
            if out and 0 <= offset - (out[-1][0] + out[-1][1]) <= GAP_BYTES:
                start, _, places = out[-1]
                out[-1] = start, offset + count - start, [*places, (offset, count, target)]
            else:
                out.append((offset, count, [(offset, count, target)]))
        return out


def _plain_chunks(dataset: h5py.Dataset) -> tuple[int, np.ndarray | None]:
    """Rows of a chunk and where the chunks begin; None where the bytes of rows do not lie one after the other as values."""
    size, no = dataset.shape[0], (1, None)
    if dataset.dtype.hasobject or not dataset.size or dataset.file.userblock_size:
        return no
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        return no if offset is None else (size, np.array([offset]))
    if dataset.chunks[1:] != dataset.shape[1:]:
        return no
    rows, found = dataset.chunks[0], {}
    whole = rows * dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))

    def note(info: h5py.h5d.StoreInfo) -> None:
        if info.size == whole and not info.filter_mask:
            found[info.chunk_offset[0] // rows] = info.byte_offset

    if dataset.id.get_create_plist().get_nfilters():
        return no
    dataset.id.chunk_iter(note)
    count = -(-size // rows)
    # a chunk that was never written has no place
    return (rows, np.array([found[i] for i in range(count)])) if len(found) == count else no
