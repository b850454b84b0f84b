"""A background file that is there already, of Aframe or of another run, in the place of one that would be fetched."""

from __future__ import annotations

from pathlib import Path

from aframe_assets.store.job import Job, Product
from aframe_assets.strain.background_file import read_background
from aframe_assets.strain.fetch import require_usable
from aframe_assets.strain.stretch import Stretch


def adopt_background(job: Job, path: Path) -> Product:
    """The artifact of the job's chunk from the file at `path`, which keeps its bytes.

    Raises:
        StrainError: not a background file of the experiment's detectors, rate and exactly this chunk's times, or its strain has
            NaN, infinities or gaps.
    """
    from aframe_assets.strain.assets import background_product

    config, start, stop = job.config, job.row["gps_start"], job.row["gps_stop"]
    found = read_background(path, config.ifos)
    for ifo, strain in found.strain.items():
        require_usable(Stretch(ifo, found.gps_start, found.sample_rate, strain, None, str(path)), start, stop, config.sample_rate)
    return background_product(job, found.strain, path)
