"""The files of the challenge: strain that comes in segments, events that go out.

Strain, HDF5 (its ``generate_data.py``): one group per detector, in it one dataset per segment, named by its GPS second, with
the attributes ``start_time`` (GPS seconds) and ``delta_t`` (seconds). All detectors have the same segments.

Events, HDF5 (its ``evaluate.py``): datasets ``time`` (GPS seconds), ``stat`` (larger is louder) and ``var`` (seconds; an
injection is found by an event if they are no further apart), of equal length.
"""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from aframe_assets.strain.resample import margin, resample

LAYOUT = "expected the challenge's layout: /DETECTOR/GPS datasets with attributes start_time and delta_t"
WHOLE = "expected a whole file that you may read: copy it again if it was cut off"
WRITABLE = "expected a file name in a folder that you may write to, with space left"


class ChallengeError(ValueError):
    """Input or output of the challenge that cannot be used; names the file, the dataset and what was expected."""


@contextmanager
def _told(path: Path, done: str, expected: str) -> Iterator[None]:
    """Turns what the system, or HDF5, says about a file into one line that names it."""
    try:
        yield
    except (OSError, RuntimeError) as e:
        # HDF5's own messages may have several lines
        said = getattr(e, "strerror", None) or " ".join(str(e).split())
        raise ChallengeError(f"{path}: cannot be {done}: {said}; {expected}") from None


@dataclass(frozen=True)
class ChallengeSegment:
    """Strain of all detectors without a gap.

    Attributes:
        path: file it is in.
        key: name of its dataset in each detector's group.
        gps_start: GPS seconds of the first sample.
        size: samples in the file.
        sample_rate: Hz, of the file.
    """

    path: Path
    key: str
    gps_start: float
    size: int
    sample_rate: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.size / self.sample_rate

    @property
    def gps_stop(self) -> float:
        """GPS seconds after the last sample."""
        return self.gps_start + self.duration

    def __str__(self) -> str:
        return f"{self.path}: segment {self.key}, GPS {self.gps_start:.10g} to {self.gps_stop:.10g}"


def list_segments(files: Sequence[str | Path], ifos: Sequence[str], sample_rate: float) -> list[ChallengeSegment]:
    """Segments of all `files`, by time; only headers are read.

    Args:
        files: strain files of the challenge.
        ifos: detectors that every segment must have; others are left alone.
        sample_rate: Hz that the strain will be resampled to.

    Raises:
        ChallengeError: a file that is none or is damaged, a detector, segment or attribute that is missing, detectors that disagree,
            a name that is not the GPS second of `start_time`, a rate below `sample_rate` or not whole, or segments that overlap.
    """
    found: list[ChallengeSegment] = []
    for file in files:
        found += _segments_of(Path(file), list(ifos), sample_rate)
    if not found:
        raise ChallengeError(f"{', '.join(map(str, files)) or 'no files'}: no strain; {LAYOUT}")
    found.sort(key=lambda s: s.gps_start)
    for a, b in pairwise(found):
        # half a sample: start times are rounded
        if b.gps_start < a.gps_stop - 0.5 / a.sample_rate:
            raise ChallengeError(
                f"{a} and {b} overlap; expected the parts of one data set: foreground and background go into events files of their own"
            )
    return found


def _segments_of(path: Path, ifos: list[str], sample_rate: float) -> list[ChallengeSegment]:
    if path.is_dir():
        raise ChallengeError(f"{path}: is a folder; name the files in it that belong to one data set; {LAYOUT}")
    if not path.is_file():
        raise ChallengeError(f"{path}: no such file; {LAYOUT}")
    with _told(path, "read", WHOLE):
        # h5py does not tell a file that it may not open from one of another kind
        path.open("rb").close()
        if not h5py.is_hdf5(path):
            raise ChallengeError(f"{path}: not an HDF5 file; {LAYOUT}")
    with _told(path, "read", WHOLE), h5py.File(path) as f:
        groups = {ifo: f[ifo] for ifo in ifos if isinstance(f.get(ifo), h5py.Group)}
        missing = [ifo for ifo in ifos if ifo not in groups]
        if missing:
            raise ChallengeError(f"{path}: no detector {', '.join(missing)} (it holds {', '.join(f) or 'nothing'}); {LAYOUT}")
        keys = {ifo: set(g) for ifo, g in groups.items()}
        for ifo in ifos[1:]:
            odd = sorted(keys[ifos[0]] ^ keys[ifo])
            if odd:
                has, lacks = (ifos[0], ifo) if odd[0] in keys[ifos[0]] else (ifo, ifos[0])
                raise ChallengeError(f"{path}: segment {odd[0]} of {has} is missing in {lacks}; expected every segment of every detector")
        return [_segment(path, key, groups, sample_rate) for key in sorted(keys[ifos[0]])]


def _segment(path: Path, key: str, groups: Mapping[str, h5py.Group], sample_rate: float) -> ChallengeSegment:
    headers = {ifo: _header(path, f"{ifo}/{key}", group.get(key)) for ifo, group in groups.items()}
    first, *others = headers
    for ifo in others:
        for name, a, b in zip(("start_time", "delta_t", "length"), headers[first], headers[ifo], strict=True):
            if a != b:
                raise ChallengeError(f"{path}: segment {key}: {name} is {a!r} in {first} and {b!r} in {ifo}; expected the same strain span")
    start, delta_t, size = headers[first]
    if key.isdecimal() and abs(int(key) - start) >= 1:
        raise ChallengeError(f"{path}: {first}/{key}: start_time = {start!r}; expected the GPS second of its name, {key}")
    rate = 1 / delta_t
    if abs(rate - round(rate)) > 1e-6 * rate:
        raise ChallengeError(f"{path}: {first}/{key}: delta_t = {delta_t!r} s is {rate:.6f} samples a second; expected a whole number")
    if round(rate) < sample_rate:
        raise ChallengeError(
            f"{path}: {first}/{key}: delta_t = {delta_t!r} s is {rate:g} Hz, the model looks at {sample_rate:g} Hz; what lies above "
            f"{rate / 2:g} Hz is not in the data: expected delta_t <= {1 / sample_rate!r} s, or a model for {rate:g} Hz"
        )
    return ChallengeSegment(path, key, start, size, round(rate))


def _header(path: Path, name: str, data: Any) -> tuple[float, float, int]:
    if not isinstance(data, h5py.Dataset) or data.ndim != 1 or data.dtype.kind != "f":
        what = "a link to nothing" if data is None else f"{data.dtype} {data.shape}" if isinstance(data, h5py.Dataset) else "a group"
        raise ChallengeError(f"{path}: {name} is {what}; expected strain, one row of floating-point numbers")
    values = []
    for attribute in ("start_time", "delta_t"):
        try:
            value = float(data.attrs[attribute])
        except KeyError:
            raise ChallengeError(f"{path}: {name} has no attribute {attribute}; {LAYOUT}") from None
        except (TypeError, ValueError):
            raise ChallengeError(f"{path}: {name}: {attribute} = {data.attrs[attribute]!r}; expected a number of seconds") from None
        if not math.isfinite(value) or (attribute == "delta_t" and value <= 0):
            raise ChallengeError(f"{path}: {name}: {attribute} = {value!r}; expected seconds")
        values.append(value)
    return values[0], values[1], len(data)


class SegmentReader:
    """Strain of one segment, a piece at a time, at a sample rate of your choice.

    Attributes:
        size: samples at `sample_rate`.

    Args:
        segment: from `list_segments`.
        sample_rate: Hz, at most that of the file.
    """

    def __init__(self, segment: ChallengeSegment, sample_rate: float) -> None:
        self.segment, self.sample_rate = segment, sample_rate
        self._ratio = Fraction(int(sample_rate), segment.sample_rate)
        self.size = segment.size // self._ratio.denominator * self._ratio.numerator

    def __enter__(self) -> SegmentReader:
        with _told(self.segment.path, "read", WHOLE):
            self._file = h5py.File(self.segment.path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def read(self, ifo: str, first: int, stop: int) -> np.ndarray:
        """Samples [first, stop) of `ifo`, float64; resampled pieces are those of the resampled whole.

        Raises:
            ChallengeError: a sample is not finite, the detector is dead (all samples are equal), or the file is damaged there; names
                dataset and GPS time.
        """
        segment = self.segment
        up, down = self._ratio.numerator, self._ratio.denominator
        # `down` samples of the file are `up` of ours
        around = math.ceil(2 * margin(segment.sample_rate, self.sample_rate) / down)
        low, high = max(0, first // up - around), min(segment.size // down, math.ceil(stop / up) + around)
        where = f"{segment.path}: {ifo}/{segment.key}"
        with _told(segment.path, f"read, {ifo}/{segment.key} from GPS {segment.gps_start + low * down / segment.sample_rate:.10g}", WHOLE):
            values = np.asarray(self._file[f"{ifo}/{segment.key}"][low * down : high * down], np.float64)
        bad = ~np.isfinite(values)
        if bad.any():
            at = segment.gps_start + (low * down + int(bad.argmax())) / segment.sample_rate
            raise ChallengeError(f"{where}: strain at GPS {at:.6f} is {values[bad.argmax()]}; expected numbers: cut the segment there")
        if len(values) and values.min() == values.max():
            a, b = (segment.gps_start + i * down / segment.sample_rate for i in (low, high))
            raise ChallengeError(f"{where}: every sample of GPS {a:.10g} to {b:.10g} is {values[0]:g}; expected a detector that runs")
        if down == 1 and up == 1:
            return values
        return resample(values, segment.sample_rate, self.sample_rate)[first - low * up : stop - low * up]


@dataclass(frozen=True)
class Events:
    """Events of the challenge, ascending in time.

    Attributes:
        time: GPS seconds of the merger.
        stat: larger is louder.
        var: seconds; the merger lies within `time` +- `var`.
    """

    time: np.ndarray
    stat: np.ndarray
    var: np.ndarray

    def __len__(self) -> int:
        return len(self.time)


def refuse_output(path: Path, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Asked before hours of work whether events can be written to `path`.

    Args:
        path: of the file of events.
        overwrite: take the place of a file of events; any other file is refused even so.
        inputs: strain files; `path` must be none of them, by whatever name.

    Raises:
        ChallengeError: events cannot, or must not, be written there.
    """
    with _told(path, "written", WRITABLE):
        for file in inputs:
            if path.resolve() == file.resolve() or (path.exists() and file.exists() and path.samefile(file)):
                raise ChallengeError(f"{path}: is the strain file {file}; choose another name for the events")
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ChallengeError(f"{path}: expected a file name in a folder that exists")
        if path.exists() and not overwrite:
            raise ChallengeError(f"{path}: exists already; choose another name, or ask for it to be overwritten (--overwrite)")
        if path.exists() and not _holds_events(path):
            raise ChallengeError(
                f"{path}: is no file of events (datasets time, stat and var), so it is not overwritten; "
                "choose another name, or remove it yourself"
            )
        _temporary(path).unlink()


def _holds_events(path: Path) -> bool:
    # a pipe would be waited for
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    try:
        with h5py.File(path) as f:
            return all(isinstance(f.get(name), h5py.Dataset) for name in ("time", "stat", "var"))
    except (OSError, RuntimeError):
        return False


def _temporary(path: Path) -> Path:
    handle, name = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    os.close(handle)
    return Path(name)


def write_events(path: str | Path, events: Events, attributes: Mapping[str, Any] | None = None) -> None:
    """Write an events file; it appears whole or not at all, and takes the place of one that is there.

    Args:
        path: in a folder that exists.
        events: of equal lengths.
        attributes: of the file; the challenge reads none.

    Raises:
        ChallengeError: datasets of unequal length, values that are not finite, or a file that cannot be written (a full disk).
    """
    path = Path(path)
    columns = {"time": events.time, "stat": events.stat, "var": events.var}
    sizes = {k: len(v) for k, v in columns.items()}
    if len(set(sizes.values())) != 1 or not all(np.isfinite(v).all() for v in columns.values()):
        raise ChallengeError(f"{path}: events of lengths {sizes}; expected equal lengths and finite numbers")
    # in memory first: HDF5 cannot close a file whose disk is full
    content = io.BytesIO()
    with h5py.File(content, "w") as f:
        for key, values in columns.items():
            f.create_dataset(key, data=np.asarray(values, np.float64))
        f.attrs.update(attributes or {})
    with _told(path, "written", WRITABLE):
        made = _temporary(path)
        try:
            with made.open("wb") as f:
                f.write(content.getbuffer())
                f.flush()
                # some file systems tell only then that they are full
                os.fsync(f.fileno())
            # mkstemp's files are private
            umask = os.umask(0)
            os.umask(umask)
            made.chmod(0o666 & ~umask)
            made.replace(path)
        except BaseException:
            made.unlink(missing_ok=True)
            raise
