"""Base of the record sets: their shape, joining, and HDF5 layout (reference 2.12), readable both ways with Aframe.

A file holds attributes (`length` and the metadata), a group `parameters` with one row per record, and a group
`waveforms` with one row of samples per record. A set is a dataclass: parameters are fields of `PARAMETERS`,
metadata fields of `METADATA`, time series the dictionary `waveforms` (`cross`, `plus`, or detector names in lower case).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import h5py
import numpy as np

from aframe_assets.store.ranges import Source, open_hdf5

ROWS_PER_CHUNK = 64
"""Rows of a waveform dataset's HDF5 chunk."""

L = TypeVar("L", bound="Ledger")


@dataclass
class Ledger:
    """Base of the record sets.

    Raises:
        ValueError: fields of unequal length, a waveform that is not duration * sample_rate long, fewer
            `num_injections` than rows, detector columns that do not fit `ifos`.
    """

    PARAMETERS: ClassVar[tuple[str, ...]] = ()
    METADATA: ClassVar[tuple[str, ...]] = ()
    SUMMED: ClassVar[tuple[str, ...]] = ("Tb", "num_injections")
    """Metadata that add when sets are joined; the others must agree."""

    waveforms: dict[str, np.ndarray] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        for name in self.PARAMETERS:
            setattr(self, name, np.asarray(getattr(self, name)))
        self.waveforms = {k.lower(): np.asarray(v) for k, v in self.waveforms.items()}
        self.validate()

    # --- shape ------------------------------------------------------------------------------------

    def columns(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every parameter and waveform with one row per record."""
        for name in self.PARAMETERS:
            yield name, getattr(self, name)
        yield from self.waveforms.items()

    def __len__(self) -> int:
        return max((len(a) for _, a in self.columns()), default=0)

    def validate(self) -> None:
        """Raise ValueError when the set contradicts itself."""
        n, kind = len(self), type(self).__name__
        uneven = {name: len(a) for name, a in self.columns() if len(a) != n}
        if uneven:
            raise ValueError(f"{kind}: fields of unequal length: {n} rows, but {uneven}")
        duration, rate = getattr(self, "duration", None), getattr(self, "sample_rate", None)
        if duration is not None and rate is not None:
            size = int(duration * rate)
            for name, a in self.waveforms.items():
                if len(a) and a.shape[-1] != size:
                    raise ValueError(
                        f"{kind}: waveform '{name}' has {a.shape[-1]} samples; duration {duration:g} s x {rate:g} Hz is {size}"
                    )
        draws = getattr(self, "num_injections", None)
        if draws is not None and draws < n:
            raise ValueError(f"{kind}: num_injections = {draws} is less than its {n} rows")
        ifos = getattr(self, "ifos", None)
        for name in ("shift", "ifo_snrs"):
            a = getattr(self, name, None)
            if ifos and a is not None and len(a) and a.shape[1:] != (len(ifos),):
                raise ValueError(f"{kind}: '{name}' has shape {a.shape}; expected one column for each of {list(ifos)}")

    def __getitem__(self: L, rows: Any) -> L:
        """The chosen rows (index, slice or mask), with the metadata unchanged."""
        if isinstance(rows, (int, np.integer)):
            rows = [rows]
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            rows = rows if rows.dtype == bool else rows.astype(int)
        return type(self)(
            **{name: getattr(self, name)[rows] for name in self.PARAMETERS},
            **self.metadata(),
            waveforms={k: v[rows] for k, v in self.waveforms.items()},
        )

    def metadata(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.METADATA}

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in self.PARAMETERS}

    def sort_by(self: L, name: str) -> L:
        """The records in ascending order of parameter `name`."""
        return self[np.argsort(getattr(self, name), kind="stable")]

    # --- joining ----------------------------------------------------------------------------------

    @classmethod
    def _joined_metadata(cls, sets: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name in cls.METADATA:
            values = [v for s in sets if (v := s.get(name)) is not None]
            if name in cls.SUMMED:
                out[name] = sum(values) if values else (0 if name == "Tb" else None)
                continue
            if any(_plain(v) != _plain(values[0]) for v in values[1:]):
                raise ValueError(f"cannot join {cls.__name__} sets: '{name}' differs: {sorted({str(_plain(v)) for v in values})}")
            out[name] = values[0] if values else None
        return out

    def append(self, other: Ledger) -> None:
        """Add the records of `other`: `Tb` and `num_injections` add, other metadata must agree or be None.

        Raises:
            TypeError: `other` is of another class.
            ValueError: metadata differ.
        """
        if type(other) is not type(self):
            raise TypeError(f"cannot append {type(other).__name__} to {type(self).__name__}")
        merged = self._joined_metadata([self.metadata(), other.metadata()])
        for name in self.PARAMETERS:
            setattr(self, name, _joined(getattr(self, name), getattr(other, name)))
        if len(other):
            mine = self.waveforms or {k: v[:0] for k, v in other.waveforms.items()}
            self.waveforms = {k: _joined(mine[k], other.waveforms[k]) for k in mine}
        for name, value in merged.items():
            setattr(self, name, value)
        self.validate()

    @classmethod
    def concatenate(cls: type[L], sets: Sequence[L]) -> L:
        """One set of all records, in order; metadata as in `append`."""
        full = [s for s in sets if len(s)]
        names = list(full[0].waveforms) if full else []
        return cls(
            **{n: np.concatenate([getattr(s, n) for s in full]) if full else np.empty(0) for n in cls.PARAMETERS},
            **cls._joined_metadata([s.metadata() for s in sets]),
            waveforms={n: np.concatenate([s.waveforms[n] for s in full]) for n in names},
        )

    @classmethod
    def aggregate(cls, paths: Sequence[Path | str], output: Path | str) -> Path:
        """Join files into one, file by file, so that only one is in memory.

        Files without records still add their `Tb` and `num_injections` (reference 5.3 number 5).
        """
        output = Path(output)
        heads = [cls.read_metadata(p) for p in paths]
        total = sum(h["length"] for h in heads)
        template = next((p for p, h in zip(paths, heads, strict=True) if h["length"]), None)
        with h5py.File(output, "w") as out:
            _write_attributes(out, cls._joined_metadata(heads) | {"length": total})
            out.create_group("parameters"), out.create_group("waveforms")
            if template is not None:
                with h5py.File(template) as f:
                    for group in ("parameters", "waveforms"):
                        for name, d in f.get(group, {}).items():
                            _create(out[group], name, (total, *d.shape[1:]), d.dtype)
            else:
                for name in cls.PARAMETERS:
                    out["parameters"].create_dataset(name, data=np.empty(0))
            row = 0
            for path, head in zip(paths, heads, strict=True):
                n = head["length"]
                if not n:
                    continue
                with h5py.File(path) as f:
                    for group in ("parameters", "waveforms"):
                        for name, d in out[group].items():
                            if name not in f[group]:
                                raise ValueError(f"{path}: no {group}/{name}, which {template} has; the files do not belong together")
                            for i in range(0, n, 1024):
                                d[row + i : row + min(i + 1024, n)] = f[group][name][i : i + 1024]
                row += n
        return output

    # --- files ------------------------------------------------------------------------------------

    def write(self, path: Path | str) -> Path:
        """Write the set to `path` (replaced if present)."""
        self.validate()
        with h5py.File(path, "w") as f:
            _write_attributes(f, self.metadata() | {"length": len(self)})
            group = f.create_group("parameters")
            for name in self.PARAMETERS:
                group.create_dataset(name, data=getattr(self, name))
            group = f.create_group("waveforms")
            for name, a in self.waveforms.items():
                _create(group, name, a.shape, a.dtype)[...] = a
        return Path(path)

    @classmethod
    def read_metadata(cls, path: Source | str) -> dict[str, Any]:
        """The metadata and `length` of a file, without its records."""
        with open_hdf5(path) as f:
            out = {name: _plain(f.attrs[name]) if name in f.attrs else None for name in cls.METADATA}
            out["length"] = int(f.attrs["length"])
        return out

    @classmethod
    def read(cls: type[L], path: Source | str, rows: np.ndarray | None = None, *, waveforms: bool = True) -> L:
        """Read a file, or the given `rows` of it in their order, repeats included.

        Args:
            path: HDF5 file of this layout, local or in the store.
            rows: indices or a mask; None is all.
            waveforms: False leaves the time series out.

        Raises:
            ValueError: a parameter of this class is missing in the file.
        """
        head = cls.read_metadata(path)
        n = head.pop("length")
        if rows is not None:
            rows = np.asarray(rows)
            rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(int)
        with open_hdf5(path) as f:
            missing = [p for p in cls.PARAMETERS if n and p not in f.get("parameters", {})]
            if missing:
                raise ValueError(
                    f"{path}: not a {cls.__name__} file: parameters {missing} are missing, it has {list(f.get('parameters', {}))}"
                )
            values = {p: _rows(f["parameters"][p], rows) if n else np.empty(0) for p in cls.PARAMETERS}
            series = {k: _rows(d, rows) for k, d in f.get("waveforms", {}).items()} if waveforms and n else {}
        return cls(**values, **head, waveforms=series)

    @classmethod
    def _read_where(cls: type[L], path: Path | str, keep: Callable[[L], np.ndarray], waveforms: bool = True) -> L:
        """Read the rows that `keep` (a mask from the parameters) chooses; other waveform rows are never read."""
        return cls.read(path, np.flatnonzero(keep(cls.read(path, waveforms=False))), waveforms=waveforms)


def _joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.copy() if not len(b) else b.copy() if not len(a) else np.concatenate([a, b])


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (list, tuple)):
        return [v.decode() if isinstance(v, bytes) else v for v in value]
    return value


def _write_attributes(f: h5py.File, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value is not None:
            f.attrs[name] = list(value) if isinstance(value, (list, tuple)) else value


def _create(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    waveform = group.name.endswith("waveforms") and shape[0] > 0
    chunks = (min(ROWS_PER_CHUNK, shape[0]), *shape[1:]) if waveform else None
    return group.create_dataset(name, shape=shape, dtype=dtype, chunks=chunks)


def _rows(dataset: h5py.Dataset, rows: np.ndarray | None) -> np.ndarray:
    # h5py wants sorted, unique indices
    if rows is None:
        return dataset[:]
    if not len(rows):
        return np.empty((0, *dataset.shape[1:]), dataset.dtype)
    unique, inverse = np.unique(rows, return_inverse=True)
    return dataset[unique][inverse]
