"""Polarisations to detectors: antenna response and delay from the centre of the Earth; one function for all rooms.

In the frame that turns with the Earth a source lies at declination `dec` and longitude `ra` - GMST(gps), where the
right ascension `ra` and the sidereal time at Greenwich are those of lalsimulation, PyCBC and bilby. A detector sees

    h(t) = F_plus h_plus(t - delay) + F_cross h_cross(t - delay),   delay = -(n . vertex) / c,

with n the unit vector to the source (Anderson et al. 2001, Phys. Rev. D 63, 042003, appendix B).
The delay is a phase of the spectrum (shift theorem), so any part of a sample, and the transform is of a series
padded with zeros, so nothing leaves at one end to come back at the other. The Earth's turning while a signal lasts is
left out: response and delay are those at the merger (8 s earlier the phase at 20 Hz is off by at most 0.0016 radians).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ml4gw.constants import C
from ml4gw.gw import compute_antenna_responses
from scipy.fft import next_fast_len
from torch import Tensor

from aframe_assets.waveforms.detectors import Detector, get_detector

ROWS = 16
"""Signals projected at once: few, which stay in a core's cache."""
FINE = 128
GUARD = 64
"""Zeros behind the longest delay, in samples: what a shift by a part of a sample spreads around a sharp edge ends there."""


def sidereal_time(gps: np.ndarray | float) -> np.ndarray:
    """Greenwich mean sidereal time in [0, 2 pi), radians, of GPS times; of lal, with its table of leap seconds and no network.

    UTC stands for UT1, as in lalsimulation and PyCBC, and the mean for the apparent time: together within 1.5e-4 radians
    (|UT1 - UTC| < 0.9 s, equation of the equinoxes < 1.2 s), which moves a delay by less than 4 microseconds.

    Raises:
        ValueError: a time that is not a finite number.
    """
    from lal import GreenwichMeanSiderealTime, LIGOTimeGPS

    times = np.asarray(gps, np.float64)
    if not np.isfinite(times).all():
        raise ValueError(f"gps = {times[~np.isfinite(times)][0]}: expected a GPS time in seconds")
    hours = [GreenwichMeanSiderealTime(LIGOTimeGPS(float(t))) for t in times.ravel()]
    return np.mod(np.array(hours, np.float64).reshape(times.shape), 2 * np.pi)


def respond(
    cross: Tensor, plus: Tensor, longitude: Tensor, dec: Tensor, psi: Tensor, detectors: Sequence[Detector], sample_rate: float
) -> Tensor:
    """Strain of sources at fixed places over the Earth, on the device and in the precision of the waves.

    Args:
        cross, plus: (n, size).
        longitude, dec, psi: (n,) float64, radians; longitude from Greenwich, positive to the east.
        detectors: where they stand.
        sample_rate: Hz.

    Returns:
        (n, n_ifo, size); the time of a sample at the centre of the Earth is that of the same sample of the waves.
    """
    size, device = plus.shape[-1], plus.device
    tensors, vertices = (torch.as_tensor(np.stack([getattr(d, k) for d in detectors]), device=device) for k in ("tensor", "vertex"))
    longitude, dec, psi = (a.to(device, torch.float64) for a in (longitude, dec, psi))
    patterns = compute_antenna_responses(torch.pi / 2 - dec, psi, longitude, tensors, ["cross", "plus"]).to(plus)
    towards = torch.stack([dec.cos() * longitude.cos(), dec.cos() * longitude.sin(), dec.sin()], -1)
    delays = -(towards @ vertices.T) * (sample_rate / C)
    furthest = int(np.ceil(float(vertices.norm(dim=-1).max()) * sample_rate / C))
    length = 2 * next_fast_len((size + furthest + GUARD + 1) // 2, real=True)
    at_centre = torch.einsum("npi,pnt->nit", patterns, torch.stack([cross, plus]))
    spectrum = torch.fft.rfft(at_centre, n=length)
    return torch.fft.irfft(spectrum * _delaying(delays, length).to(spectrum.dtype), n=length)[..., :size]


def _delaying(delays: Tensor, length: int) -> Tensor:
    """exp(-2 pi i k delay / length) for k = 0 ... length / 2, complex128: (n, n_ifo) -> (n, n_ifo, length // 2 + 1)."""
    # the phase is linear in k = FINE a + b, so that few sines and cosines make all of them
    fine = torch.arange(FINE, device=delays.device, dtype=torch.float64)
    coarse = torch.arange(0, length // 2 + 1, FINE, device=delays.device, dtype=torch.float64)
    angle = (-2 * torch.pi / length) * delays[..., None]
    parts = [torch.polar(torch.ones_like(turn), turn) for turn in (angle * coarse, angle * fine)]
    return (parts[0][..., :, None] * parts[1][..., None, :]).flatten(-2)[..., : length // 2 + 1]


def longitudes(values: Mapping[str, np.ndarray], gps: np.ndarray | float | None) -> np.ndarray:
    """Longitude of sources in radians, `ra` - GMST; without times `ra` itself, as it is when that is zero."""
    ra = np.asarray(values["ra"], np.float64)
    return ra if gps is None else ra - sidereal_time(gps)


def antenna_patterns(
    values: Mapping[str, np.ndarray], ifos: Sequence[str | Detector], gps: np.ndarray | float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """F_plus and F_cross, each (n, n_ifo), of `ra`, `dec` and `psi` in radians; arguments as in `project`."""
    dec, psi = (torch.as_tensor(np.asarray(values[k], np.float64)) for k in ("dec", "psi"))
    longitude = torch.as_tensor(longitudes(values, gps))
    tensors = torch.as_tensor(np.stack([d.tensor for d in _known(ifos)]))
    patterns = compute_antenna_responses(torch.pi / 2 - dec, psi, longitude, tensors, ["plus", "cross"])
    return patterns[:, 0].numpy(), patterns[:, 1].numpy()


def project(
    polarizations: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    ifos: Sequence[str | Detector],
    sample_rate: float,
    gps: np.ndarray | float | None = None,
) -> np.ndarray:
    """Strain in each detector.

    Args:
        polarizations: 'cross' and 'plus', each (n, size).
        values: `ra`, `dec`, `psi` of the signals, radians, (n,).
        ifos: detectors, by name or as `get_detector` gives them.
        sample_rate: Hz.
        gps: time of each merger at the centre of the Earth, one for all or (n,). None: sidereal time zero, where `ra` is
            the longitude; the draws of an isotropic population are the same population at any time.

    Returns:
        (n, n_ifo, size) float64.

    Raises:
        ValueError: an unknown detector, or as many times as there are not signals.
    """
    detectors = _known(ifos)
    n, size = polarizations["plus"].shape
    if gps is not None and np.ndim(gps) and np.shape(gps) != (n,):
        raise ValueError(f"gps has shape {np.shape(gps)}; expected a time for each of {n} signals, or one for all")
    longitude = longitudes(values, gps)
    out = np.empty((n, len(detectors), size))
    for i in range(0, n, ROWS):
        part = slice(i, i + ROWS)
        cross, plus = (torch.as_tensor(np.asarray(polarizations[k][part], np.float64)) for k in ("cross", "plus"))
        sky = (torch.as_tensor(a[part]) for a in (longitude, values["dec"], values["psi"]))
        out[part] = respond(cross, plus, *sky, detectors, sample_rate).numpy()
    return out


def _known(ifos: Sequence[str | Detector]) -> tuple[Detector, ...]:
    if not ifos:
        raise ValueError("ifos: an empty list; expected at least one detector")
    return tuple(i if isinstance(i, Detector) else get_detector(i) for i in ifos)
