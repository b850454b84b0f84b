"""The events of all chunks together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aframe_assets.waveforms.ledger import EventSet, InjectionParameterSet, RecoveredInjectionSet

BACKGROUND, ZERO_LAG, FOREGROUND, REJECTED = "background.hdf5", "0lag.hdf5", "foreground.hdf5", "rejected-parameters.hdf5"


def aggregate_events(paths: Sequence[Path], output: Path, rate: float) -> EventSet:
    """Join event files into `output`, in ascending order of the statistic; `Tb` of every file counts, also of one without events.

    Args:
        paths: event files of the chunks.
        output: file to write.
        rate: outputs per second; livetimes are whole numbers of outputs, so that the sum of many is exact.

    Returns:
        The joined set.
    """
    joined = EventSet.concatenate([EventSet.read(p) for p in paths]) if paths else EventSet()
    joined = joined.sort_by("detection_statistic")
    joined.Tb = round(joined.Tb * rate) / rate
    joined.write(output)
    return joined


def aggregate_foreground(paths: Sequence[Path], output: Path) -> RecoveredInjectionSet:
    """Join the injections of all chunks into `output`, in order of time.

    Returns:
        The joined set.
    """
    sets = [RecoveredInjectionSet.read(p) for p in paths]
    joined = RecoveredInjectionSet.concatenate(sets) if sets else RecoveredInjectionSet()
    joined = joined.sort_by("injection_time")
    joined.write(output)
    return joined


def aggregate_rejected(paths: Sequence[Path], output: Path) -> int:
    """Join the rejected draws of all chunks into `output`; returns how many."""
    InjectionParameterSet.aggregate(list(paths), output)
    return int(InjectionParameterSet.read_metadata(output)["length"])
