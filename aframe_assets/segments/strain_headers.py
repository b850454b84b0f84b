"""Which strain a file holds and when it is science data, from headers and quality masks; samples are not read.

Layouts: GWOSC HDF5 (LOSC_4_V1/V2, GWOSC_4KHZ/16KHZ_R1), the HDF5 of gwpy (datasets with x0 and dx: also the background
files of reference 2.2), PyCBC datasets with start_time and delta_t (MLGWSC-1: /{ifo}/{gps}), and GWF frames.
It lies in this room because segments can be asked of files; `aframe_assets.strain.files` reads the samples.
"""

from __future__ import annotations

import glob
import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf")
FRAME_SUFFIXES = (".gwf",)

_TIMES_IN_NAME = re.compile(r"(?:^|[-_])(\d{9,10}(?:\.\d+)?)-(\d+(?:\.\d+)?)$")
_RATE_IN_NAME = re.compile(r"(?:_LOSC_|_GWOSC_)(4|16)(?:KHZ)?_")
_IFO = re.compile(r"^([A-Z][0-9])(?::|$)")
_ASSIGNED = re.compile(r"^([A-Z][0-9])=(.+)$")


class StrainError(ValueError):
    """Strain that cannot be used; the message names the file or service, the detector and the GPS time."""


class NoStrain(StrainError):
    """A readable file that holds no strain in a layout that is known."""


@dataclass(frozen=True)
class FileInfo:
    """One detector's strain in one file.

    Attributes:
        path: the file.
        ifo: detector, as "H1"; "" where the file does not say.
        gps_start: GPS seconds of the first sample.
        duration: seconds.
        sample_rate: hertz, a whole number.
        kind: "gwosc_hdf5", "aframe_background", "gwpy_hdf5", "mlgwsc", "pycbc_hdf5" or "gwf".
        dataset: HDF5 dataset or frame channel with the strain.
        quality: whether the file has a data-quality mask.
    """

    path: Path
    ifo: str
    gps_start: float
    duration: float
    sample_rate: float
    kind: str
    dataset: str
    quality: bool = False

    @property
    def gps_stop(self) -> float:
        """GPS seconds just after the last sample."""
        return self.gps_start + self.duration

    def __str__(self) -> str:
        return f"{self.path} ({self.ifo or 'detector unknown'}, GPS {self.gps_start:.14g} to {self.gps_stop:.14g})"


def times_from_name(path: str | Path) -> tuple[float, float] | None:
    """GPS (start, stop) that a name '...-START-DURATION.suffix' declares, or None; both may have a fraction."""
    name = Path(path).name
    for suffix in (*HDF5_SUFFIXES, *FRAME_SUFFIXES):
        if name.endswith(suffix):
            name = name[: -len(suffix)]
    match = _TIMES_IN_NAME.search(name)
    if not match:
        return None
    start, duration = map(float, match.groups())
    return start, start + duration


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """The strain files that files, folders (not their subfolders) and globs name, sorted and each once.

    A path may be written ``H1=PATH`` where the file does not say which detector it is of.

    Raises:
        StrainError: nothing is there; names the path.
    """
    return sorted({path for path, _, _ in _found(paths)})


def _found(paths: Iterable[str | Path]) -> list[tuple[Path, str | None, bool]]:
    # (file, assigned detector, named by the user rather than found in a folder or by a glob)
    out: dict[tuple[Path, str | None], bool] = {}
    for given in paths:
        match = _ASSIGNED.match(str(given))
        ifo, text = match.groups() if match else (None, str(given))
        path = Path(os.path.expanduser(text))
        named = path.is_file()
        if named:
            hits = [path]
        elif path.is_dir():
            hits = [p for p in path.iterdir() if p.is_file()]
        else:
            hits = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
        if not named:
            hits = [p for p in hits if p.suffix in (*HDF5_SUFFIXES, *FRAME_SUFFIXES)]
        if not hits:
            what = "a folder without strain files" if path.is_dir() else "no such file, folder or glob"
            raise StrainError(f"strain.files: {text}: {what}; expected files that end in {', '.join((*HDF5_SUFFIXES, *FRAME_SUFFIXES))}")
        for hit in hits:
            out[hit, ifo] = out.get((hit, ifo), False) or named
    return [(p, ifo, named) for (p, ifo), named in sorted(out.items(), key=lambda x: (x[0][0], x[0][1] or ""))]


def describe_all(paths: Iterable[str | Path], start: float = -np.inf, stop: float = np.inf) -> list[FileInfo]:
    """Descriptions of all strain in `paths` that may overlap [start, stop), sorted by detector and time.

    Files whose names declare other times are not opened. A file without strain is skipped with a warning when it was
    found in a folder, and refused when it was named.

    Raises:
        StrainError: as `find_files` and `describe`.
    """
    out = []
    for path, ifo, named in _found(paths):
        declared = times_from_name(path)
        if declared and (declared[1] <= start or declared[0] >= stop):
            continue
        try:
            infos = describe(path)
        except NoStrain as e:
            if named:
                raise
            log.warning("%s; skipped", e)
            continue
        if ifo:
            infos = [replace(i, ifo=ifo) for i in infos if i.ifo in ("", ifo)]
            if not infos:
                raise StrainError(f"strain.files: {ifo}={path}: the file holds other detectors only")
        out += [i for i in infos if i.gps_start < stop and i.gps_stop > start]
    return sorted(out, key=lambda i: (i.ifo, i.gps_start, str(i.path), i.dataset))


def describe(path: str | Path) -> list[FileInfo]:
    """What a strain file holds, one entry for each detector and stretch, read from headers only.

    Raises:
        NoStrain: no strain in a known layout.
        StrainError: unreadable or truncated file, or a header that contradicts itself or the file's name.
    """
    path = Path(path)
    if path.suffix in FRAME_SUFFIXES:
        from aframe_assets.segments.frame_headers import describe_frames

        infos = describe_frames(path)
    else:
        with open_hdf5(path) as file:
            infos = _gwosc(file, path) if "strain/Strain" in file else _plain(file, path)
    if not infos:
        raise NoStrain(
            f"{path}: no strain in a known layout; expected GWOSC HDF5, datasets with x0 and dx or start_time and delta_t, or GWF"
        )
    for info in infos:
        if not (math.isfinite(info.gps_start) and math.isfinite(info.gps_stop)):
            raise StrainError(f"{info}: expected finite GPS times in its header")
    declared = times_from_name(path)
    first, last = min(i.gps_start for i in infos), max(i.gps_stop for i in infos)
    # Frame names are in whole seconds that contain the data; a background file's name is exact.
    if declared and (abs(declared[0] - first) >= 1 or abs(declared[1] - last) >= 1):
        raise StrainError(f"{path}: its name says GPS {declared[0]:.14g} to {declared[1]:.14g}, its header GPS {first:.14g} to {last:.14g}")
    return infos


def open_hdf5(path: Path):
    """An open h5py.File. Raises StrainError, with the GPS time that the name gives, if HDF5 cannot open it (truncated, no HDF5)."""
    import h5py

    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise StrainError(f"{path}: no such file") from None
    except OSError as e:
        raise StrainError(
            f"{path}{_named_time(path)}: HDF5 cannot open it ({e}); it is truncated or no HDF5 file, fetch it again"
        ) from None


def _named_time(path: Path) -> str:
    declared = times_from_name(path)
    return f" (GPS {declared[0]:.14g} to {declared[1]:.14g})" if declared else ""


def whole_rate(spacing: float, what: str) -> float:
    """Samples per second of a spacing in seconds. Raises StrainError unless it is a whole number."""
    rate = 1 / spacing if spacing > 0 else 0.0
    if rate < 1 or math.isinf(rate) or abs(rate - round(rate)) > 1e-6 * rate:
        raise StrainError(f"{what}: a spacing of {spacing!r} s is {rate:g} Hz; expected a whole number of samples per second")
    return float(round(rate))


def _scalar(value: Any) -> Any:
    value = np.asarray(value).reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else value


def _gwosc(file: Any, path: Path) -> list[FileInfo]:
    data, meta = file["strain/Strain"], file["meta"]
    ifo, start, duration = str(_scalar(meta["Detector"][()])), float(_scalar(meta["GPSstart"][()])), float(_scalar(meta["Duration"][()]))
    where = f"{path} ({ifo}, GPS {start:.14g})"
    rate = whole_rate(float(_scalar(data.attrs["Xspacing"])), where)
    begins = float(_scalar(data.attrs.get("Xstart", start)))
    if begins != start:
        raise StrainError(f"{where}: the strain starts at GPS {begins:.14g}; expected meta/GPSstart")
    if len(data) != round(duration * rate):
        raise StrainError(
            f"{where}: wrong sample rate: {len(data)} samples in meta/Duration {duration:g} s are {len(data) / duration:g} Hz, "
            f"but strain/Strain declares a spacing of 1/{rate:g} s"
        )
    named = _RATE_IN_NAME.search(path.name)
    if named and rate != 1024 * int(named.group(1)):
        raise StrainError(f"{where}: wrong sample rate: {rate:g} Hz in a file named {named.group(1)} kHz")
    return [FileInfo(path, ifo, start, duration, rate, "gwosc_hdf5", "strain/Strain", "quality/simple/DQmask" in file)]


def _plain(file: Any, path: Path) -> list[FileInfo]:
    import h5py

    out = []

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.ndim != 1 or item.dtype.kind != "f":
            return
        gwpy = {"x0", "dx"} <= set(item.attrs)
        if not gwpy and not {"start_time", "delta_t"} <= set(item.attrs):
            return
        start, spacing = (float(_scalar(item.attrs[k])) for k in (("x0", "dx") if gwpy else ("start_time", "delta_t")))
        rate = whole_rate(spacing, f"{path}: {name} (GPS {start:.14g})")
        found = [m.group(1) for m in map(_IFO.match, name.split("/")) if m]
        if not found and "channel" in item.attrs:
            found = [m.group(1) for m in [_IFO.match(str(_scalar(item.attrs["channel"])))] if m]
        ifo = found[0] if found else ""
        if gwpy:
            kind = "aframe_background" if name == ifo and times_from_name(path) else "gwpy_hdf5"
        else:
            kind = "mlgwsc" if ifo and "/" in name else "pycbc_hdf5"
        group = name.split("/")[-1]
        if kind == "mlgwsc" and group.isdigit() and int(group) != int(start):
            raise StrainError(f"{path}: {name}: start_time is GPS {start:.14g}; expected the GPS time it is named after")
        out.append(FileInfo(path, ifo, start, len(item) / rate, rate, kind, name))

    file.visititems(visit)
    declared = times_from_name(path)
    for info in out:
        if info.kind == "aframe_background" and (abs(info.gps_start - declared[0]) > 1e-6 or abs(info.gps_stop - declared[1]) > 1e-6):
            raise StrainError(
                f"{info}: wrong sample rate or name: {round(info.duration * info.sample_rate)} samples at {info.sample_rate:g} Hz from x0; "
                f"expected GPS {declared[0]:.14g} to {declared[1]:.14g} by its name"
            )
    return out


def quality_words(min_dq: str) -> list[str]:
    """The bits that must be set together: those of `min_dq` (comma separated) and DATA, which every category implies."""
    return list(dict.fromkeys(["DATA", *(w.strip() for w in min_dq.split(",") if w.strip())]))


def quality_mask(info: FileInfo, min_dq: str = "DATA") -> np.ndarray:
    """Science time of a file with a quality mask.

    Args:
        min_dq: data-quality or injection bits (comma separated) that must be set, by their short names
            (DATA, CBC_CAT1, ..., NO_CBC_HW_INJ, ...).

    Returns:
        bool, shape (duration,): one for each second from gps_start.

    Raises:
        StrainError: no such bit, or a mask of another length than the strain.
    """
    return np.logical_and.reduce(list(quality_bits(info, quality_words(min_dq), "strain.min_dq").values()))


def quality_bits(info: FileInfo, words: Sequence[str], key: str) -> dict[str, np.ndarray]:
    """Single data-quality and injection bits of a file with a quality mask.

    Args:
        words: short names of bits.
        key: configuration key that asks, for errors.

    Returns:
        name -> bool, shape (duration,): whether the bit is set in each second from gps_start.

    Raises:
        StrainError: no such bit, or a mask of another length than the strain.
    """
    if info.kind == "gwf":
        from aframe_assets.segments.frame_headers import frame_masks

        masks = frame_masks(info)
    else:
        masks = _gwosc_masks(info)
    bits = {name: (values >> bit) & 1 for values, names in masks for bit, name in names.items()}
    for word in words:
        if word not in bits:
            raise StrainError(f"{info}: no data-quality bit '{word}' ({key}); expected one of {', '.join(bits)}")
        if len(bits[word]) != round(info.duration):
            raise StrainError(f"{info}: the mask of {word} has {len(bits[word])} values; expected one for each of {info.duration:g} s")
    return {word: bits[word].astype(bool) for word in words}


def _gwosc_masks(info: FileInfo) -> list[tuple[np.ndarray, dict[int, str]]]:
    out = []
    with open_hdf5(info.path) as file:
        for mask, names in (
            ("quality/simple/DQmask", "quality/simple/DQShortnames"),
            ("quality/injections/Injmask", "quality/injections/InjShortnames"),
        ):
            if mask in file and names in file:
                data = file[mask]
                start = float(_scalar(data.attrs.get("Xstart", info.gps_start)))
                if start != info.gps_start or float(_scalar(data.attrs.get("Xspacing", 1.0))) != 1.0:
                    raise StrainError(f"{info}: {mask} does not give one value a second from the start of the strain")
                out.append((data[:].astype(np.int64), {i: bytes(n).decode().strip() for i, n in enumerate(file[names][:])}))
    return out


def science_segments(source: str | Path | Iterable[FileInfo], min_dq: str = "DATA") -> dict[str, Any]:
    """When each detector has science data in strain files.

    Args:
        source: a file, or descriptions of many.
        min_dq: see `quality_mask`. A file without a mask counts whole.

    Returns:
        {ifo: igwn_segments.segmentlist}, coalesced.
    """
    from igwn_segments import segment, segmentlist

    infos = describe(source) if isinstance(source, str | Path) else source
    out: dict[str, Any] = {}
    for info in infos:
        found = out.setdefault(info.ifo, segmentlist())
        if not info.quality:
            found.append(segment(info.gps_start, info.gps_stop))
            continue
        edges = np.diff(np.concatenate([[0], quality_mask(info, min_dq).astype(int), [0]]))
        for a, b in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
            found.append(segment(info.gps_start + int(a), info.gps_start + int(b)))
    return {ifo: segs.coalesce() for ifo, segs in out.items()}


def require_overlap(infos: Sequence[FileInfo], ifos: Sequence[str], min_dq: str = "DATA") -> dict[str, Any]:
    """`science_segments` of files that can give coincident data, or an error that says why they cannot.

    Raises:
        StrainError: a detector is missing, or the detectors' science time does not overlap.
    """
    science = science_segments([i for i in infos if i.ifo in ifos], min_dq)
    missing = [i for i in ifos if i not in science]
    if missing:
        have = "; ".join(map(str, infos)) or "no strain of any wanted detector"
        raise StrainError(f"no strain of {', '.join(missing)} (detectors wanted: {', '.join(ifos)}); the files hold {have}")
    common = science[ifos[0]]
    for ifo in ifos[1:]:
        common = common & science[ifo]
    if not common:
        spans = "; ".join(
            f"{ifo} GPS {', '.join(f'{s[0]:.14g} to {s[1]:.14g}' for s in science[ifo]) or 'no science time'}" for ifo in ifos
        )
        names = ", ".join(str(i.path) for i in infos)
        raise StrainError(f"the strain files of {', '.join(ifos)} do not overlap in time: {spans} ({names})")
    return science
