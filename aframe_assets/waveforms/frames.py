"""Parameters of signals whose type says in which frame their masses are.

In the detector frame a mass is (1 + redshift) times that in the source frame. Populations are given in either frame;
waveforms, and the sets that keep signals, are of the detector frame; sensitive volumes of the source frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

MASSES = ("mass_1", "mass_2", "chirp_mass", "total_mass")


class _InFrame(dict[str, np.ndarray]):
    """Arrays by name, all of the same length; `redshift` among them."""

    @classmethod
    def require(cls, values: Mapping[str, np.ndarray]) -> Self:
        """`values`, which must be of this frame.

        Raises:
            TypeError: another frame, or one that is not said.
        """
        if not isinstance(values, cls):
            raise TypeError(
                f"expected masses in the {cls.__name__}, got {type(values).__name__}: draws of a prior have .detector() and .source(), "
                f"a dict of arrays that are known to be of this frame is wrapped, {cls.__name__}(...)"
            )
        return values

    def __or__(self, other: Mapping[str, np.ndarray]) -> Self:
        if isinstance(other, _InFrame) and type(other) is not type(self):
            raise TypeError(f"{type(self).__name__} | {type(other).__name__}: expected one frame; convert with .detector() or .source()")
        return type(self)({**self, **other})

    def rows(self, index: Any) -> Self:
        """Some of the signals: a mask, indices or a slice."""
        return type(self)({k: v[index] for k, v in self.items()})


class SourceFrame(_InFrame):
    """Parameters of signals, masses in the source frame."""

    def source(self) -> SourceFrame:
        return self

    def detector(self) -> DetectorFrame:
        """Masses as the detector sees them, times 1 + redshift."""
        return DetectorFrame({k: v * (1 + self["redshift"]) if k in MASSES else v for k, v in self.items()})


class DetectorFrame(_InFrame):
    """Parameters of signals, masses in the detector frame."""

    def detector(self) -> DetectorFrame:
        return self

    def source(self) -> SourceFrame:
        """Masses at the source, divided by 1 + redshift."""
        return SourceFrame({k: v / (1 + self["redshift"]) if k in MASSES else v for k, v in self.items()})


FRAMES: dict[str, type[SourceFrame] | type[DetectorFrame]] = {"source": SourceFrame, "detector": DetectorFrame}
