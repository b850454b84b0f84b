"""Background strain files, interchangeable with Aframe's in both directions (reference 2.2).

One HDF5 file per chunk, ``background-{gps_start}-{duration}.hdf5``: at its root one float64 dataset per detector, without
compression, in pieces of at most 131072 samples, with the attributes that gwpy writes, so that
``gwpy.timeseries.TimeSeries.read(file, path="H1")`` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from aframe_assets.store.ranges import Source, open_hdf5
from aframe_assets.store.slabs import Slabs
from aframe_assets.strain.stretch import StrainError

_PIECE = 131_072
_NAME = re.compile(r"(?<!\d)(\d{10}(?:\.\d+)?)-(\d+(?:\.\d+)?)(?!\d)")


@dataclass(frozen=True)
class Background:
    """Simultaneous strain of several detectors.

    Attributes:
        gps_start: GPS seconds of the first sample.
        sample_rate: hertz.
        strain: ifo -> float64, shape (duration * sample_rate,), in the order asked for.
    """

    gps_start: float
    sample_rate: float
    strain: Mapping[str, np.ndarray]

    @property
    def ifos(self) -> list[str]:
        return list(self.strain)

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(next(iter(self.strain.values()))) / self.sample_rate

    @property
    def gps_stop(self) -> float:
        return self.gps_start + self.duration

    def stacked(self) -> np.ndarray:
        """Strain as one array, shape (ifo, time)."""
        return np.stack(list(self.strain.values()))


def _seconds(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def background_name(gps_start: float, duration: float) -> str:
    """Name of the file of the chunk that starts at `gps_start` and lasts `duration` seconds."""
    return f"background-{_seconds(gps_start)}-{_seconds(duration)}.hdf5"


def parse_background_name(path: str | Path) -> tuple[float, float]:
    """GPS start and stop that a file name tells: ten digits, a dash, a length, each with an optional fraction.

    Raises:
        ValueError: the name holds no such pair.
    """
    found = _NAME.search(Path(path).name)
    if not found:
        raise ValueError(
            f"file name '{Path(path).name}': expected a GPS start of ten digits, a dash and a duration, as background-1240600000-1024.hdf5"
        )
    start, duration = map(float, found.groups())
    return start, start + duration


def write_background(
    path: Path, strain: Mapping[str, np.ndarray], gps_start: float, sample_rate: float, channels: Mapping[str, str] | None = None
) -> None:
    """Write strain of one or more detectors.

    Args:
        path: the file to make; what is there is replaced.
        strain: ifo -> strain, shape (time,), all of one length.
        gps_start: GPS seconds of the first sample.
        sample_rate: hertz.
        channels: ifo -> channel name to record; the ifo itself where none is given.

    Raises:
        ValueError: detectors differ in length, or there is no strain.
    """
    lengths = {ifo: len(x) for ifo, x in strain.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"{path}: expected as many samples, at least one, from every detector at GPS {gps_start:.4f}, got {lengths}")
    with h5py.File(path, "w") as f:
        for ifo, x in strain.items():
            data = f.create_dataset(ifo, data=np.asarray(x, dtype=np.float64), chunks=(min(len(x), _PIECE),))
            data.attrs.update(
                {
                    "x0": float(gps_start),
                    "dx": 1.0 / sample_rate,
                    "xunit": "s",
                    "unit": "",
                    "name": ifo,
                    "channel": (channels or {}).get(ifo, ifo),
                }
            )


def read_background(path: Path, ifos: Sequence[str] | None = None, *, start: float | None = None, stop: float | None = None) -> Background:
    """Read a background file, or the part of it between two times.

    Args:
        path: file written by `write_background` or by Aframe.
        ifos: detectors wanted, in this order; all of the file by default.
        start, stop: GPS seconds; the whole file by default.

    Raises:
        StrainError: unreadable file, missing detector, detectors of different times or rates, [start, stop) not
            inside the file, strain that is NaN or infinite. The message names the file and the GPS time.
    """
    try:
        with h5py.File(path, "r") as f:
            wanted = list(ifos) if ifos is not None else [k for k in f if isinstance(f[k], h5py.Dataset)]
            missing = [i for i in wanted if i not in f]
            if missing or not wanted:
                raise StrainError(
                    f"{path}: no strain of {', '.join(missing) or 'any detector'}; the file holds {', '.join(f) or 'nothing'}"
                )
            grids = {i: (float(f[i].attrs["x0"]), float(f[i].attrs["dx"]), len(f[i])) for i in wanted}
            if len(set(grids.values())) != 1:
                raise StrainError(f"{path}: expected one start, step and length for all detectors, got (x0, dx, size) {grids}")
            x0, dx, size = next(iter(grids.values()))
            rate = 1 / dx
            first = 0 if start is None else round((start - x0) * rate)
            last = size if stop is None else round((stop - x0) * rate)
            if not 0 <= first < last <= size:
                raise StrainError(f"{path}: asked for GPS {start} to {stop}, holds {x0:.4f} to {x0 + size * dx:.4f}")
            strain = {i: f[i][first:last].astype(np.float64) for i in wanted}
    except (OSError, KeyError) as e:
        raise StrainError(f"{path}: not a readable background file ({e}); it may be truncated, make it again") from None
    for ifo, x in strain.items():
        _require_finite(path, ifo, x, x0 + first * dx, dx)
    return Background(x0 + first * dx, rate, strain)


def _require_finite(source: Source, ifo: str, strain: np.ndarray, gps_start: float, dx: float) -> None:
    finite = np.isfinite(strain)
    if not finite.all():
        raise StrainError(
            f"{source}: {ifo} strain is not finite at GPS {gps_start + int(np.argmin(finite)) * dx:.4f} ({int((~finite).sum())} samples)"
        )


@dataclass(frozen=True)
class StrainFile:
    """A background file from which stretches are read; any number of threads at once, and from a remote store no more than is wanted.

    Attributes:
        source: local path, or file in the store.
        gps_start: GPS seconds of the first sample.
        sample_rate: hertz.
        size: samples of each detector.
        strain: where the samples of each detector lie.
    """

    source: Source
    gps_start: float
    sample_rate: float
    size: int
    strain: Mapping[str, Slabs]

    @classmethod
    def open(cls, source: Source, ifos: Sequence[str]) -> StrainFile:
        """Reads where everything lies, no strain.

        Raises:
            StrainError: as `read_background`, but for samples that are not finite.
        """
        try:
            with open_hdf5(source) as f:
                missing = [i for i in ifos if i not in f]
                if missing:
                    raise StrainError(f"{source}: no strain of {', '.join(missing)}; the file holds {', '.join(f) or 'nothing'}")
                grids = {i: (float(f[i].attrs["x0"]), float(f[i].attrs["dx"]), len(f[i])) for i in ifos}
                if len(set(grids.values())) != 1:
                    raise StrainError(f"{source}: expected one start, step and length for all detectors, got (x0, dx, size) {grids}")
                gps_start, dx, size = next(iter(grids.values()))
                return cls(source, gps_start, 1 / dx, size, {i: Slabs.of(source, f[i]) for i in ifos})
        except (OSError, KeyError) as e:
            raise StrainError(f"{source}: not a readable background file ({e}); it may be truncated, make it again") from None

    def read(self, ifo: str, first: int, last: int) -> np.ndarray:
        """Samples `first` to `last` of a detector, float64.

        Raises:
            StrainError: a file cut short; strain that is NaN or infinite.
        """
        try:
            strain = self.strain[ifo].read(first, last).astype(np.float64, copy=False)
        except OSError as e:
            raise StrainError(f"{self.source}: not a readable background file ({e}); it may be truncated, make it again") from None
        _require_finite(self.source, ifo, strain, self.gps_start + first / self.sample_rate, 1 / self.sample_rate)
        return strain
