"""Polarisations to detectors (reference 2.4), by ml4gw.

Sky position: `ra` is used as the Earth-fixed longitude phi directly, without sidereal time, as upstream does. Since
`ra` is uniform this draws the same population as the true rotation would, and slides have no single GPS time to
rotate by; but an injection's `ra` is a longitude at its merger, not a right ascension.

The delay from the geocentre is a whole number of samples, truncated toward zero (at most 1/sample_rate early or late),
and shifts the window circularly; the waveform is faded in at the start and has died out at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ml4gw.gw import compute_antenna_responses, compute_observed_strain, get_ifo_geometry

from aframe_assets.waveforms.parameters import complete

DETECTORS = ("H1", "L1", "V1", "K1")
ROWS = 64
"""Signals projected at once; ml4gw gathers by an index array of the strain's size."""


def geometry(ifos: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Detector tensors (n_ifo, 3, 3) and vertices (n_ifo, 3) in metres, float64.

    Raises:
        ValueError: a detector whose geometry ml4gw does not have.
    """
    unknown = [i for i in ifos if i not in DETECTORS]
    if unknown or not ifos:
        raise ValueError(f"ifos {list(ifos)}: no geometry for {unknown or 'an empty list'}; known are {', '.join(DETECTORS)}")
    tensors, vertices = get_ifo_geometry(*ifos)
    return tensors.double(), vertices.double()


def antenna_patterns(values: Mapping[str, np.ndarray], ifos: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """F_plus and F_cross, each (n, n_ifo), for `ra` as Earth-fixed longitude, `dec` and `psi` in radians."""
    ra, dec, psi = (torch.as_tensor(np.asarray(values[k], np.float64)) for k in ("ra", "dec", "psi"))
    patterns = compute_antenna_responses(torch.pi / 2 - dec, psi, ra, geometry(ifos)[0], ["plus", "cross"])
    return patterns[:, 0].numpy(), patterns[:, 1].numpy()


def project(
    polarizations: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray], ifos: Sequence[str], sample_rate: float
) -> np.ndarray:
    """Strain in each detector.

    Args:
        polarizations: 'cross' and 'plus', each (n, size).
        values: `ra`, `dec`, `psi` of the signals, radians, (n,).
        ifos: detectors.
        sample_rate: Hz.

    Returns:
        (n, n_ifo, size) float64.
    """
    values = complete(values)
    tensors, vertices = geometry(ifos)
    n, size = polarizations["plus"].shape
    out = np.empty((n, len(ifos), size))
    for i in range(0, n, ROWS):
        part = slice(i, i + ROWS)
        sky = (torch.as_tensor(values[k][part]) for k in ("dec", "psi", "ra"))
        waves = {k: torch.as_tensor(np.asarray(polarizations[k][part], np.float64)) for k in ("cross", "plus")}
        out[part] = compute_observed_strain(*sky, tensors, vertices, sample_rate, **waves).numpy()
    return out
