"""Strain of a chunk from whichever source the experiment names, checked before anything is made of it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import numpy as np

from aframe_assets.strain.stretch import StrainError, Stretch

if TYPE_CHECKING:
    from aframe_assets.config import Config

SOURCES = {
    "simulated": ("aframe_assets.strain.simulated", "fetch_simulated"),
    "files": ("aframe_assets.strain.files", "fetch_files"),
    "gwosc": ("aframe_assets.strain.remote", "fetch_gwosc"),
    "frames": ("aframe_assets.strain.remote", "fetch_frames"),
}
"""``strain.source`` -> module and function; each is called as f(config, ifo, gps_start, gps_stop) and gives a `Stretch`."""

GAP = 0.25
"""Seconds of one repeated value that count as a gap: some frames hold zeros, not NaN, where there are no data."""


def fetch_background(config: Config, gps_start: float, gps_stop: float) -> dict[str, np.ndarray]:
    """Strain of every detector over [gps_start, gps_stop), at the experiment's sample rate.

    Returns:
        ifo -> float64, shape (duration * sample_rate,), in the order of ``config.ifos``.

    Raises:
        StrainError: a detector is missing, has other times, length or rate, is NaN or infinite, has a gap, or has
            seconds that are no science time. The message names the file or service and the GPS time.
    """
    module, name = SOURCES[config.strain.source]
    fetch = getattr(importlib.import_module(module), name)
    out = {}
    for ifo in config.ifos:
        stretch = fetch(config, ifo, gps_start, gps_stop)
        require_usable(stretch, gps_start, gps_stop, config.sample_rate)
        out[ifo] = np.ascontiguousarray(stretch.strain, dtype=np.float64)
    return out


def require_usable(stretch: Stretch, gps_start: float, gps_stop: float, sample_rate: float) -> None:
    """Refuse strain that is not finite, whole, gapless science data of [gps_start, gps_stop) at `sample_rate`.

    Raises:
        StrainError: with the source, the detector and the GPS time of the first fault.
    """
    where = f"{stretch.source}: {stretch.ifo} strain of GPS {gps_start:.14g} to {gps_stop:.14g}"
    if stretch.sample_rate != sample_rate:
        raise StrainError(f"{where}: sampled at {stretch.sample_rate:g} Hz, expected {sample_rate:g} Hz")
    size = round((gps_stop - gps_start) * sample_rate)
    if abs(stretch.gps_start - gps_start) > 0.5 / sample_rate or len(stretch.strain) != size:
        raise StrainError(
            f"{where}: got {len(stretch.strain)} samples from GPS {stretch.gps_start:.4f}, expected {size} "
            f"from {gps_start:.4f}; the chunk is not all there"
        )
    fault = first_fault(stretch.strain, sample_rate)
    if fault:
        index, what = fault
        raise StrainError(f"{where}: {what} at GPS {gps_start + index / sample_rate:.4f}; leave that time out of the segments")
    if stretch.mask is not None and not np.all(stretch.mask):
        second = gps_start + int(np.argmin(stretch.mask))
        raise StrainError(
            f"{where}: no science data at GPS {second:.0f} ({int((~stretch.mask).sum())} s in all, "
            "strain.min_dq); leave that time out of the segments"
        )


def first_fault(strain: np.ndarray, sample_rate: float) -> tuple[int, str] | None:
    """Index and name of the first NaN, infinity or gap, or None.

    Args:
        strain: shape (time,).
        sample_rate: hertz.
    """
    finite = np.isfinite(strain)
    if not finite.all():
        index = int(np.argmin(finite))
        return index, f"{int((~finite).sum())} samples that are NaN or infinite, the first"
    run = max(2, round(GAP * sample_rate))
    same = strain[1:] == strain[:-1]
    if np.count_nonzero(same) < run - 1:
        return None
    edges = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(strain)]])
    lengths = np.diff(edges)
    gaps = np.flatnonzero(lengths >= run)
    if not len(gaps):
        return None
    return int(edges[gaps[0]]), f"a gap of {lengths[gaps[0]] / sample_rate:.3f} s (one value repeated)"
