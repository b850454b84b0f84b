"""Strain of one detector over one stretch of time: what every strain source gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aframe_assets.segments.strain_headers import StrainError

__all__ = ["StrainError", "Stretch"]


@dataclass(frozen=True)
class Stretch:
    """Evenly sampled strain without gaps.

    Attributes:
        ifo: detector, as "H1".
        gps_start: GPS seconds of the first sample.
        sample_rate: hertz.
        strain: dimensionless strain, float64, shape (duration * sample_rate,).
        mask: science time, one bool for each second from gps_start, or None where the source has no data quality.
        source: where it came from, for provenance and messages.
    """

    ifo: str
    gps_start: float
    sample_rate: float
    strain: np.ndarray
    mask: np.ndarray | None
    source: str

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.strain) / self.sample_rate

    @property
    def gps_stop(self) -> float:
        """GPS seconds just after the last sample."""
        return self.gps_start + self.duration
