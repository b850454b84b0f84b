"""Strain from files: the source ``files``, and what the remote sources use once a file is here.

Which layouts are read: see `aframe_assets.segments.strain_headers`, whose public names are given here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.segments.strain_headers import (
    FileInfo,
    StrainError,
    describe,
    describe_all,
    find_files,
    open_hdf5,
    quality_mask,
    require_overlap,
    science_segments,
    times_from_name,
)
from aframe_assets.strain.resample import resample_stream
from aframe_assets.strain.stretch import Stretch

if TYPE_CHECKING:
    from aframe_assets.config import Config

__all__ = [
    "FileInfo",
    "StrainError",
    "describe",
    "describe_all",
    "fetch_files",
    "find_files",
    "read_stretch",
    "require_overlap",
    "resampled_stretch",
    "science_segments",
    "times_from_name",
]

_AGREE = 1e-6
"""Overlapping files agree when they differ by less than this part of their standard deviation (float32 copies do)."""


def fetch_files(config: Config, ifo: str, start: float, stop: float) -> Stretch:
    """Strain of [start, stop) from ``config.strain.files`` at ``config.sample_rate``.

    Raises:
        StrainError: see `read_stretch`.
    """
    infos = describe_all(config.strain.files, start, stop)
    channel = config.strain.channels.get(ifo)
    chosen = [i for i in infos if i.ifo == ifo and channel in (None, i.dataset, ifo)]
    if not chosen:
        everything = describe_all(config.strain.files)
        there = sorted({i.ifo or "detector unknown" for i in everything})
        spans = ", ".join(f"GPS {i.gps_start:.14g} to {i.gps_stop:.14g}" for i in everything if i.ifo == ifo) or "nothing"
        hint = "" if "detector unknown" not in there else "; a file that does not name its detector is written H1=PATH in strain.files"
        what = f"no strain of {ifo}{f' channel {channel}' if channel else ''}"
        raise StrainError(
            f"strain.files: {what} at GPS {start:.14g} to {stop:.14g}; the files hold {', '.join(there)}, and of {ifo} {spans}{hint}"
        )
    return resampled_stretch(chosen, ifo, start, stop, config.sample_rate, min_dq=config.strain.min_dq)


def resampled_stretch(
    infos: Sequence[FileInfo], ifo: str, start: float, stop: float, sample_rate: float, *, min_dq: str = "DATA"
) -> Stretch:
    """`read_stretch`, block by block, at `sample_rate`.

    Only samples within [start, stop) enter, so that a chunk depends on nothing outside it.

    Raises:
        StrainError: see `read_stretch`; also data at a rate below `sample_rate`.
    """
    parts = _parts(infos, ifo, start, stop)
    rate = parts[0].sample_rate
    if rate < sample_rate:
        raise StrainError(f"{parts[0]}: {rate:g} Hz data cannot give sample_rate {sample_rate:g} Hz; use files of a higher rate")
    strain = resample_stream(lambda a, b: _samples(_overlapping(parts, a, b), ifo, a, b), start, stop, rate, sample_rate)
    return Stretch(ifo, start, sample_rate, strain, _mask(parts, start, stop, min_dq), _source(parts))


def read_stretch(infos: Iterable[FileInfo], ifo: str, start: float, stop: float, *, min_dq: str = "DATA") -> Stretch:
    """Strain of [start, stop) as the files have it, joined where they meet.

    Args:
        infos: descriptions of files; those of other detectors and times are ignored.
        ifo: detector; "" for files that do not name theirs.
        start, stop: GPS seconds on the files' sample grid.
        min_dq: bits of the mask, see `aframe_assets.segments.strain_headers.quality_mask`.

    Returns:
        Strain at the files' rate; with a mask where start and stop are whole seconds and each file has one.

    Raises:
        StrainError: naming file and GPS time: detector missing, no file at this time, a gap, NaN, overlapping files that
            disagree, files of unlike rates, samples off the grid, several channels of the detector.
    """
    parts = _parts(infos, ifo, start, stop)
    return Stretch(ifo, start, parts[0].sample_rate, _samples(parts, ifo, start, stop), _mask(parts, start, stop, min_dq), _source(parts))


def _overlapping(infos: Iterable[FileInfo], start: float, stop: float) -> list[FileInfo]:
    return [i for i in infos if i.gps_start < stop and i.gps_stop > start]


def _source(parts: Sequence[FileInfo]) -> str:
    return ", ".join(dict.fromkeys(str(i.path) for i in parts))


def _parts(infos: Iterable[FileInfo], ifo: str, start: float, stop: float) -> list[FileInfo]:
    infos = list(infos)
    if stop <= start:
        raise StrainError(f"strain of {ifo} asked for GPS {start:.14g} to {stop:.14g}; expected a stop after the start")
    own = [i for i in infos if i.ifo == ifo]
    if not own:
        raise StrainError(
            f"no strain of {ifo} at GPS {start:.14g} to {stop:.14g}; the files hold {'; '.join(map(str, infos)) or 'nothing'}"
        )
    parts = sorted(_overlapping(own, start, stop), key=lambda i: (i.gps_start, str(i.path)))
    if not parts:
        raise StrainError(f"no strain of {ifo} at GPS {start:.14g} to {stop:.14g}; the files hold {'; '.join(map(str, own))}")
    first = parts[0]
    for other in parts[1:]:
        if other.sample_rate != first.sample_rate:
            raise StrainError(
                f"{first} is at {first.sample_rate:g} Hz and {other} at {other.sample_rate:g} Hz; "
                f"expected one rate from GPS {start:.14g} to {stop:.14g}"
            )
        if other.path == first.path and other.dataset != first.dataset and other.gps_start < first.gps_stop and other.kind != "mlgwsc":
            raise StrainError(f"{first}: channels {first.dataset} and {other.dataset} both hold {ifo}; choose one with strain.channels")
    return parts


def _samples(parts: Sequence[FileInfo], ifo: str, start: float, stop: float) -> np.ndarray:
    rate = parts[0].sample_rate
    num = round((stop - start) * rate)
    out, have = np.empty(num), np.zeros(num, bool)
    owner: list[tuple[int, int, FileInfo]] = []
    for info in parts:
        offset = (info.gps_start - start) * rate
        if abs(offset - round(offset)) > 1e-3:
            raise StrainError(f"{info}: its samples lie between those of GPS {start:.14g} at {rate:g} Hz; expected the same grid")
        first = max(0, round(offset))
        last = min(num, round(offset) + round(info.duration * rate))
        if last <= first:
            continue
        values = _read(info, first - round(offset), last - round(offset))
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise StrainError(
                f"{info}: {len(bad)} samples of {ifo} are NaN or infinite, the first at GPS {start + (first + bad[0]) / rate:.14g}; "
                f"expected strain in all of GPS {start:.14g} to {stop:.14g}; correct the segments or the data-quality bit (strain.min_dq)"
            )
        both = have[first:last]
        if both.any():
            difference = np.abs(values - out[first:last])[both]
            differ = difference > _AGREE * values.std()
            at = first + np.flatnonzero(both)[np.argmax(differ)]  # the first that differs, or the first of the overlap
            before = next(i for a, b, i in owner if a <= at < b)
            how = "overlap and disagree" if differ.any() else "overlap with equal samples"
            raise StrainError(f"{before} and {info} {how} from GPS {start + at / rate:.14g}; keep one of them in strain.files")
        out[first:last] = values
        have[first:last] = True
        owner.append((first, last, info))
    if not have.all():
        at = int(np.argmin(have))
        until = at + int(np.argmax(have[at:])) if have[at:].any() else num
        raise StrainError(
            f"gap in the strain of {ifo} from GPS {start + at / rate:.14g} to {start + until / rate:.14g} ({_source(parts)}); "
            f"expected all of GPS {start:.14g} to {stop:.14g}"
        )
    return out


def _read(info: FileInfo, first: int, last: int) -> np.ndarray:
    if info.kind == "gwf":
        return _read_frames(info, first, last)
    with open_hdf5(info.path) as file:
        try:
            return file[info.dataset][first:last].astype(np.float64)
        except OSError as e:
            at = info.gps_start + first / info.sample_rate
            raise StrainError(f"{info}: samples from GPS {at:.14g} cannot be read ({e}); the file is damaged, fetch it again") from None


def _read_frames(info: FileInfo, first: int, last: int) -> np.ndarray:
    from gwpy.timeseries import TimeSeries

    start, stop = info.gps_start + first / info.sample_rate, info.gps_start + last / info.sample_rate
    try:
        series = TimeSeries.read(str(info.path), info.dataset, start=start, end=stop, format="gwf")
    except (RuntimeError, ValueError, OSError) as e:
        raise StrainError(f"{info}: {info.dataset} cannot be read from GPS {start:.14g} ({e})") from None
    if len(series) != last - first:
        raise StrainError(f"{info}: {info.dataset} has {len(series)} samples from GPS {start:.14g} to {stop:.14g}; expected {last - first}")
    return series.value.astype(np.float64)


@lru_cache(maxsize=256)
def _quality(info: FileInfo, min_dq: str) -> np.ndarray:
    return quality_mask(info, min_dq)


def _mask(parts: Sequence[FileInfo], start: float, stop: float, min_dq: str) -> np.ndarray | None:
    if not all(i.quality for i in parts) or start != int(start) or stop != int(stop):
        return None
    out = np.ones(round(stop - start), bool)
    for info in parts:
        mask, offset = _quality(info, min_dq), round(info.gps_start - start)
        first, last = max(0, offset), min(len(out), offset + len(mask))
        out[first:last] &= mask[first - offset : last - offset]
    return out
