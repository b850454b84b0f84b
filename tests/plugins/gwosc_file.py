"""Strain files in GWOSC's HDF5 layout, with masks as a test wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

DQ = ("DATA", "CBC_CAT1", "CBC_CAT2", "CBC_CAT3", "BURST_CAT1", "BURST_CAT2", "BURST_CAT3")
INJECTIONS = ("NO_CBC_HW_INJ", "NO_BURST_HW_INJ", "NO_DETCHAR_HW_INJ", "NO_CW_HW_INJ", "NO_STOCH_HW_INJ")


def write_gwosc(
    path: Path, ifo: str, gps_start: int, strain: np.ndarray, sample_rate: int, unset: Mapping[str, Sequence[int]] | None = None
) -> Path:
    """A file whose bits are all set but those of `unset`: bit -> seconds from gps_start."""
    seconds = len(strain) // sample_rate
    bits = {name: np.ones(seconds, bool) for name in (*DQ, *INJECTIONS)}
    for name, off in (unset or {}).items():
        bits[name][list(off)] = False
    with h5py.File(path, "w") as file:
        data = file.create_dataset("strain/Strain", data=strain)
        data.attrs.update(Npoints=len(strain), Xspacing=1 / sample_rate, Xstart=gps_start, Xunits="second")
        file["meta/Detector"], file["meta/GPSstart"], file["meta/Duration"] = ifo, gps_start, seconds
        for folder, mask, names, short in (
            ("quality/simple", "DQmask", DQ, "DQShortnames"),
            ("quality/injections", "Injmask", INJECTIONS, "InjShortnames"),
        ):
            values = sum(bits[n].astype(np.uint32) << i for i, n in enumerate(names))
            file.create_dataset(f"{folder}/{mask}", data=values).attrs.update(Xstart=gps_start, Xspacing=1.0)
            file[f"{folder}/{short}"] = np.array(names, "S")
    return path
