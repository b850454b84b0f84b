"""Headers and quality masks of GWF frames, by lalframe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from aframe_assets.segments.strain_headers import FileInfo, StrainError, times_from_name, whole_rate

_MASK = re.compile(r":(GW|L)OSC-.*(DQ|INJ)MASK$")
_STRAIN = re.compile(r"STRAIN|:h_|:Hrec_hoft", re.IGNORECASE)
_FRVECT_FLOAT = (2, 3)  # FR_VECT_8R, FR_VECT_4R of the frame format (LIGO-T970130): float64, float32


def describe_frames(path: Path) -> list[FileInfo]:
    """One entry for each strain channel and each contiguous run of frames of a GWF file.

    A channel counts as strain if its name says so (STRAIN, h_..., Hrec_hoft) and it is of floats; where no name does, every
    float channel counts.

    Raises:
        StrainError: lalframe cannot read the file.
    """
    import lalframe
    from gwpy.io.gwf import get_channel_names

    _require_whole(path)
    try:
        file = lalframe.FrameUFrFileOpen(str(path), "r")
        toc = lalframe.FrameUFrTOCRead(file)
        names = get_channel_names(str(path), backend="lalframe")
        frames = [
            (sum(lalframe.FrameUFrTOCQueryGTimeModf(toc, i)), lalframe.FrameUFrTOCQueryDt(toc, i))
            for i in range(lalframe.FrameUFrTOCQueryNFrame(toc))
        ]
        wanted = [n for n in names if _STRAIN.search(n) and not _MASK.search(n)] or [n for n in names if not _MASK.search(n)]
        out = [info for n in wanted for info in _channel(lalframe, file, frames, path, n, names)]
    except RuntimeError as e:
        declared = times_from_name(path)
        when = f" (GPS {declared[0]:.14g} to {declared[1]:.14g})" if declared else ""
        raise StrainError(f"{path}{when}: not a readable GWF file ({e}); it is truncated or damaged, fetch it again") from None
    return out


def _require_whole(path: Path) -> None:
    # lalframe crashes the process on a truncated file, so look first at what ends every frame file: the FrEndOfFile
    # structure (LIGO-T970130), which holds the file's length in its last 46 bytes or fewer.
    declared = times_from_name(path)
    when = f" (GPS {declared[0]:.14g} to {declared[1]:.14g})" if declared else ""
    try:
        with open(path, "rb") as file:
            magic = file.read(5)
            size = file.seek(0, 2)
            file.seek(max(0, size - 46))
            tail = file.read()
    except OSError as e:
        raise StrainError(f"{path}{when}: cannot be read: {e}") from None
    if magic != b"IGWD\0":
        raise StrainError(f"{path}{when}: not a GWF file; expected it to begin with IGWD")
    if size.to_bytes(8, "little") not in tail and size.to_bytes(8, "big") not in tail:
        raise StrainError(f"{path}{when}: truncated GWF file: its {size} bytes do not end with an end-of-file record; fetch it again")


def _channel(lalframe: Any, file: Any, frames: list, path: Path, name: str, names: list[str]) -> list[FileInfo]:
    ifo = name.split(":")[0] if ":" in name else ""
    quality = any(n.startswith(f"{ifo}:") and n.endswith("DQMASK") for n in names)
    out: list[FileInfo] = []
    for i, (start, duration) in enumerate(frames):
        try:
            channel = lalframe.FrameUFrChanRead(file, name, i)
        except RuntimeError as e:
            if "Wrong name" in str(e):  # this frame has no such channel
                continue
            raise
        if lalframe.FrameUFrChanVectorQueryType(channel) not in _FRVECT_FLOAT:
            return []
        where = f"{path}: {name} (GPS {start:.14g})"
        rate = whole_rate(lalframe.FrameUFrChanVectorQueryDx(channel, 0), where)
        samples = lalframe.FrameUFrChanVectorQueryNData(channel)
        if samples != round(duration * rate):
            raise StrainError(
                f"{where}: wrong sample rate: {samples} samples in a frame of {duration:g} s are {samples / duration:g} Hz, "
                f"but the channel declares a spacing of 1/{rate:g} s"
            )
        if out and out[-1].gps_stop == start and out[-1].sample_rate == rate:
            last = out.pop()
            start, duration = last.gps_start, last.duration + duration
        out.append(FileInfo(path, ifo, start, duration, rate, "gwf", name, quality))
    return out


def frame_masks(info: FileInfo) -> list[tuple[np.ndarray, dict[int, str]]]:
    """Per-second bit masks of a GWOSC frame: values, shape (duration,), and the names of their bits, which its unit holds."""
    import lalframe
    from gwpy.io.gwf import get_channel_names
    from gwpy.timeseries import TimeSeries

    out = []
    for name in get_channel_names(str(info.path), backend="lalframe"):
        if not (name.startswith(f"{info.ifo}:") and _MASK.search(name)):
            continue
        file = lalframe.FrameUFrFileOpen(str(info.path), "r")
        unit = lalframe.FrameUFrChanVectorQueryUnitY(lalframe.FrameUFrChanRead(file, name, 0))
        series = TimeSeries.read(str(info.path), name, start=info.gps_start, end=info.gps_stop, format="gwf")
        if series.sample_rate.value != 1.0:
            raise StrainError(f"{info}: {name} does not give one value a second")
        bits = {int(bit): word for bit, _, word in (w.partition(":") for w in unit.split())}
        out.append((series.value.astype(np.int64), bits))
    return out
