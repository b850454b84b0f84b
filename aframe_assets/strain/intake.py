"""Whether a new strain file may be searched: its header, its quality mask, and every sample of its science time.

What passes here can be made a chunk of; what does not would fail in the middle of a search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.segments.chunks import windows
from aframe_assets.segments.strain_headers import FileInfo, StrainError, describe, science_segments
from aframe_assets.strain.checks import STRAIN_STD
from aframe_assets.strain.fetch import first_fault
from aframe_assets.strain.files import read_stretch

if TYPE_CHECKING:
    from aframe_assets.config import Config

_BLOCK = 256
"""Seconds that are read at a time."""

_MOST_HZ = 131072.0
"""A header may claim any rate, and a block of so many samples is held in memory; strain comes at 20 kHz at most."""

Span = tuple[str, float, float]
"""Detector, GPS start and stop."""


@dataclass(frozen=True)
class Finding:
    """What a file is worth to an experiment.

    Attributes:
        verdict: 'good'; 'unused', strain that this experiment does not search; 'bad', which cannot be used.
        why: the reason, unless it is good.
        spans: detector and GPS times of the strain that it holds.
        science: seconds of them that are science time, of all detectors together.
    """

    verdict: str
    why: str = ""
    spans: tuple[Span, ...] = ()
    science: float = 0.0


def inspect(path: str | Path, config: Config) -> Finding:
    """Reads a strain file as the search will, and says whether it can be used.

    A file is bad if it cannot be opened, contradicts its name, has samples at a rate below ``sample_rate`` or above 131072 Hz, or if its
    science time has NaN, a gap of 0.25 s or more, or a standard deviation that is none of strain. It is unused if it holds no detector of
    the experiment, no science time, or time that is not searched: what lies in training time is never taken by itself.
    """
    try:
        infos = describe(path)
        own = [i for i in infos if i.ifo in config.ifos and config.strain.channels.get(i.ifo) in (None, i.dataset, i.ifo)]
        spans = tuple((i.ifo, i.gps_start, i.gps_stop) for i in own)
        if not own:
            if any(not i.ifo for i in infos):
                return Finding("bad", f"{path}: does not say which detector it is of; expected a name or a channel that does")
            found = ", ".join(sorted({f"{i.ifo} {i.dataset}" for i in infos}))
            return Finding("unused", f"holds {found}; the experiment has {', '.join(config.ifos)}")
        outside = _not_searched(config, own)
        if outside:
            return Finding("unused", outside, spans)
        science = 0.0
        for info in own:
            if info.sample_rate < config.sample_rate:
                raise StrainError(f"{info}: {info.sample_rate:g} Hz; expected at least sample_rate {config.sample_rate:g} Hz")
            if info.sample_rate > _MOST_HZ:
                raise StrainError(f"{info}: {info.sample_rate:g} Hz; expected at most {_MOST_HZ:.0f} Hz")
            for start, stop in science_segments([info], config.strain.min_dq)[info.ifo]:
                _require_strain(info, float(start), float(stop), config.strain.min_dq)
                science += float(stop) - float(start)
    except StrainError as e:
        return Finding("bad", str(e))
    except Exception as e:  # a damaged or made-up header raises whatever it likes
        return Finding("bad", f"{path}: {type(e).__name__}: {e}")
    if science == 0:
        return Finding("unused", f"no science time: {config.strain.min_dq} is never set", spans)
    return Finding("good", "", spans, science)


def overlap(spans: Sequence[Span], held: Sequence[tuple[Span, str]]) -> str | None:
    """Which of the files held already has some of the same detector's time, in words; None if none has.

    Args:
        spans: of the new file.
        held: span and name of the files that there are.
    """
    for ifo, start, stop in spans:
        for (other, a, b), name in held:
            if other == ifo and a < stop and b > start:
                return f"{ifo} GPS {max(a, start):.14g} to {min(b, stop):.14g} is in {name} already; take one of the two away"
    return None


def _not_searched(config: Config, infos: Sequence[FileInfo]) -> str:
    wanted = windows(config)
    first, last = min(i.gps_start for i in infos), max(i.gps_stop for i in infos)
    train = wanted.get("train")
    if train and first < train[1] and last > train[0]:
        return (
            f"GPS {first:.14g} to {last:.14g} is training time; put it into strain.files by hand and train anew, if that is what you want"
        )
    test = wanted.get("test", (np.inf, np.inf))
    if first >= test[1] or last <= test[0]:
        return f"GPS {first:.14g} to {last:.14g} is outside of the test time (segments.test_start, segments.test_stop)"
    return ""


def _blocks(start: float, stop: float) -> Iterator[tuple[float, float]]:
    while start < stop:
        # a rest too short to be judged alone goes with the block before it
        end = start + _BLOCK if stop - start > 1.5 * _BLOCK else stop
        yield start, end
        start = end


def _require_strain(info: FileInfo, start: float, stop: float, min_dq: str) -> None:
    for a, b in _blocks(start, stop):
        strain = read_stretch([info], info.ifo, a, b, min_dq=min_dq).strain
        fault = first_fault(strain, info.sample_rate)
        if fault:
            raise StrainError(f"{info}: {fault[1]} at GPS {a + fault[0] / info.sample_rate:.4f}, in science time")
        std = float(np.std(strain))
        if not STRAIN_STD[0] <= std <= STRAIN_STD[1]:
            raise StrainError(
                f"{info}: standard deviation {std:.3g} from GPS {a:.14g}; expected {STRAIN_STD[0]:g} to {STRAIN_STD[1]:g}, as strain has"
            )
