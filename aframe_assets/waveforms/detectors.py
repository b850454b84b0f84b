"""Where detectors stand and how their arms point.

Positions are Cartesian in the frame that turns with the Earth: z to the north pole, x to longitude 0. They follow from
latitude, longitude and height on the WGS84 ellipsoid; arms are given by their azimuth and tilt in the horizon's frame
(LIGO-T980044, section 2). The built-in values are those of T980044-10 (H1, L1, V1) and KAGRA's (K1), as lal and bilby have them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from aframe_assets.waveforms.literals import literal, parse

_ANGLES = ("latitude", "longitude", "xarm_azimuth", "yarm_azimuth")
_NEEDED = (*_ANGLES, "elevation")
_TILTS = ("xarm_tilt", "yarm_tilt")
_UNUSED = ("name", "power_spectral_density", "minimum_frequency", "maximum_frequency", "length")
"""Keys of bilby's files that say nothing of position and direction."""
_SEMI_MAJOR, _SEMI_MINOR = 6378137.0, 6356752.314
"""Axes of WGS84, metres."""

_SITES: dict[str, dict[str, float]] = {
    "H1": {
        "latitude": 46 + 27 / 60 + 18.528 / 3600,
        "longitude": -(119 + 24 / 60 + 27.5657 / 3600),
        "elevation": 142.554,
        "xarm_azimuth": 125.9994,
        "yarm_azimuth": 215.9994,
        "xarm_tilt": -6.195e-4,
        "yarm_tilt": 1.25e-5,
    },
    "L1": {
        "latitude": 30 + 33 / 60 + 46.4196 / 3600,
        "longitude": -(90 + 46 / 60 + 27.2654 / 3600),
        "elevation": -6.574,
        "xarm_azimuth": 197.7165,
        "yarm_azimuth": 287.7165,
        "xarm_tilt": -3.121e-4,
        "yarm_tilt": -6.107e-4,
    },
    "V1": {
        "latitude": 43 + 37 / 60 + 53.0921 / 3600,
        "longitude": 10 + 30 / 60 + 16.1878 / 3600,
        "elevation": 51.884,
        "xarm_azimuth": 70.5674,
        "yarm_azimuth": 160.5674,
    },
    "K1": {
        "latitude": 36 + 24 / 60 + 42.69722 / 3600,
        "longitude": 137 + 18 / 60 + 21.44171 / 3600,
        "elevation": 414.181,
        "xarm_azimuth": 90 - 60.39623489157727,
        "yarm_azimuth": 90 + 29.60357629670688,
        "xarm_tilt": 0.0031414,
        "yarm_tilt": -0.0036270,
    },
}
BUILT_IN = tuple(_SITES)
"""Detectors that need no file."""


@dataclass(frozen=True, eq=False)
class Detector:
    """One interferometer.

    Attributes:
        name: as in `ifos`.
        tensor: (3, 3) float64, (x x^T - y y^T) / 2 of unit vectors along the arms, so that h = tensor : wave.
        vertex: (3,) float64, metres from the centre of the Earth.
    """

    name: str
    tensor: np.ndarray
    vertex: np.ndarray


def get_detector(ifo: str, file: str | Path | None = None) -> Detector:
    """A detector by name, or by the file of its geometry.

    Args:
        ifo: name; one of `BUILT_IN` unless `file` is given.
        file: geometry in bilby's format, as its own `.interferometer` files: lines ``key = number`` of latitude and longitude
            (degrees), elevation (metres), xarm_azimuth and yarm_azimuth (degrees, from east to north), and
            optionally xarm_tilt and yarm_tilt (radians, above the horizon).

    Raises:
        ValueError: no such detector, or a file that lacks something or has anything else than numbers; with the line.
        FileNotFoundError: no such file.
    """
    if file is not None:
        return _detector(ifo, read_site(file))
    if ifo not in _SITES:
        raise ValueError(
            f"ifos: no geometry of {ifo}; known are {', '.join(BUILT_IN)}, or give a file in bilby's format: detectors: {{{ifo}: PATH}}"
        )
    return _built_in(ifo)


def get_detectors(ifos: Sequence[str], files: Mapping[str, str] | None = None) -> tuple[Detector, ...]:
    """`get_detector` of each of `ifos`, with the files of some (config `detectors`)."""
    if not ifos:
        raise ValueError("ifos: an empty list; expected at least one detector")
    return tuple(get_detector(ifo, (files or {}).get(ifo)) for ifo in ifos)


def travel_time(first: Detector, second: Detector) -> float:
    """Seconds that light needs from one detector to the other, in a straight line."""
    from scipy.constants import speed_of_light

    return float(np.linalg.norm(first.vertex - second.vertex)) / speed_of_light


@lru_cache
def _built_in(ifo: str) -> Detector:
    return _detector(ifo, _SITES[ifo])


def _detector(name: str, site: Mapping[str, float]) -> Detector:
    latitude, longitude, first, second = (math.radians(site[k]) for k in _ANGLES)
    sin, cos = math.sin(latitude), math.cos(latitude)
    radius = _SEMI_MAJOR**2 / math.hypot(_SEMI_MAJOR * cos, _SEMI_MINOR * sin)
    flat = (radius + site["elevation"]) * cos
    polar = ((_SEMI_MINOR / _SEMI_MAJOR) ** 2 * radius + site["elevation"]) * sin
    east = np.array([-math.sin(longitude), math.cos(longitude), 0.0])
    north = np.array([-sin * math.cos(longitude), -sin * math.sin(longitude), cos])
    up = np.array([cos * math.cos(longitude), cos * math.sin(longitude), sin])

    def arm(azimuth: float, tilt: float) -> np.ndarray:
        return math.cos(tilt) * (math.cos(azimuth) * east + math.sin(azimuth) * north) + math.sin(tilt) * up

    x, y = arm(first, site.get("xarm_tilt", 0.0)), arm(second, site.get("yarm_tilt", 0.0))
    vertex = np.array([flat * math.cos(longitude), flat * math.sin(longitude), polar])
    return Detector(name, (np.outer(x, x) - np.outer(y, y)) / 2, vertex)


def read_site(file: str | Path) -> dict[str, float]:
    """Latitude, longitude, elevation, azimuths and tilts of a geometry file, as `get_detector` describes it."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such geometry file; `detectors` names files in bilby's .interferometer format")
    out: dict[str, float] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        key, equals, text = (s.strip() for s in line.partition("="))
        where = f"{path}, line {number}"
        if not equals:
            raise ValueError(f"{where}: '{line}' is not 'key = number'")
        if key == "shape":
            raise ValueError(f"{where}: shape = {text}: expected one detector with two arms; give each of a triangle's its own file")
        if key in _UNUSED:
            continue
        if key not in (*_NEEDED, *_TILTS):
            raise ValueError(f"{where}: unknown key '{key}'; expected {', '.join((*_NEEDED, *_TILTS))}")
        try:
            value = literal(parse(text))
        except ValueError as e:
            raise ValueError(f"{where}: {key}: {e}") from None
        if isinstance(value, str | bool | None) or not math.isfinite(value):
            raise ValueError(f"{where}: {key} = {text}: expected a finite number")
        if key in out:
            raise ValueError(f"{where}: {key} is given twice")
        out[key] = float(value)
    missing = [k for k in _NEEDED if k not in out]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; expected bilby's .interferometer keys, angles in degrees")
    limits = {"latitude": 90, "longitude": 360, **dict.fromkeys(_TILTS, math.pi / 2)}
    for key, most in limits.items():
        if abs(out.get(key, 0)) > most:
            raise ValueError(f"{path}: {key} = {out[key]:g} is beyond {most:.4g}; angles are in degrees, tilts in radians")
    if abs(math.sin(math.radians(out["xarm_azimuth"] - out["yarm_azimuth"]))) < 0.1:
        raise ValueError(f"{path}: xarm_azimuth and yarm_azimuth open no angle; expected azimuths of two arms in degrees")
    if abs(out["elevation"]) > 1e5:
        raise ValueError(f"{path}: elevation = {out['elevation']:g} m is not near the ground; expected metres")
    return out
