"""Names of the waveform models that `waveforms.approximant` may give, and what each needs; imports nothing heavy.

Three backends make them: our batches (`BATCHED`, see `phenom`), lalsimulation, and lalsimulation's Python interface
gwsignal for models that pyseobnr provides.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

BATCHED = ("IMRPhenomPv2", "IMRPhenomD", "TaylorF2")
"""Made many at once, on any torch device."""
LALSIMULATION = (
    *("IMRPhenomXPHM", "IMRPhenomXP", "IMRPhenomXAS", "IMRPhenomXHM", "IMRPhenomXO4a", "IMRPhenomXPNR"),
    *("IMRPhenomTPHM", "IMRPhenomTP", "IMRPhenomTHM", "IMRPhenomT"),
    *("IMRPhenomPv3HM", "IMRPhenomPv3", "IMRPhenomHM", "IMRPhenomC"),
    *("SEOBNRv4PHM", "SEOBNRv4P", "SEOBNRv4HM", "SEOBNRv4HM_PA", "SEOBNRv4", "SEOBNRv4_opt", "TEOBResumS"),
    *("SpinTaylorT4", "SpinTaylorT5", "TaylorT4"),
)
"""Made one at a time by lalsimulation as it comes."""
DATA = {
    "SEOBNRv4_ROM": "SEOBNRv4ROM_v*.hdf5",
    "SEOBNRv4HM_ROM": "SEOBNRv4HMROM*.hdf5",
    "SEOBNRv5_ROM": "SEOBNRv5ROM_v*.hdf5",
    "SEOBNRv5HM_ROM": "SEOBNRv5HMROM_v*.hdf5",
    "NRSur7dq4": "NRSur7dq4*.h5",
    "NRHybSur3dq8": "NRHybSur3dq8*.h5",
}
"""Made by lalsimulation with a data file that it looks for in the folders of LAL_DATA_PATH."""
PYSEOBNR = ("SEOBNRv5PHM", "SEOBNRv5HM")
"""Made by the package pyseobnr through gwsignal."""
KNOWN = (*BATCHED, *LALSIMULATION, *DATA, *PYSEOBNR)


def problem(name: str) -> str | None:
    """Why approximant `name` cannot be used here and what to do about it; None when it can."""
    if name not in KNOWN:
        return f"expected one of {', '.join(KNOWN)}"
    if name in PYSEOBNR and importlib.util.find_spec("pyseobnr") is None:
        return "the SEOBNRv5 family needs the package pyseobnr (and the GNU Scientific Library it is built on): pip install pyseobnr"
    if name in DATA and not _data_file(DATA[name]):
        folders = os.environ.get("LAL_DATA_PATH") or "not set"
        return (
            f"lalsimulation needs the data file {DATA[name]} for it in a folder of LAL_DATA_PATH ({folders}); "
            "get it from the LALSuite waveform data collection (Zenodo) and add its folder to LAL_DATA_PATH"
        )
    return None


def _data_file(pattern: str) -> Path | None:
    folders = [Path(p) for p in os.environ.get("LAL_DATA_PATH", "").split(os.pathsep) if p]
    return next((f for folder in folders if folder.is_dir() for f in folder.glob(pattern)), None)
