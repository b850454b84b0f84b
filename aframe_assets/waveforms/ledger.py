"""Record sets of signals and events (reference 2.12).

Units: masses in solar masses in the detector frame, times GPS seconds, angles radians, strain dimensionless.
The HDF5 layout is that of `aframe_assets.waveforms.records.Ledger`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import h5py
import numpy as np

from aframe_assets.waveforms.frames import DetectorFrame
from aframe_assets.waveforms.parameters import SIGNAL
from aframe_assets.waveforms.records import Ledger

EVENT = ("detection_statistic", "detection_time", "shift")


def _empty() -> np.ndarray:
    return np.empty(0)


def same_shift(shifts: np.ndarray, shift: Sequence[float] | float) -> np.ndarray:
    """Mask of the rows of `shifts` (rows x ifos, or rows) equal to `shift` in every component.

    Raises:
        ValueError: `shift` has another number of components.
    """
    shifts, shift = np.asarray(shifts), np.asarray(shift)
    if not len(shifts):
        return np.zeros(0, bool)
    columns = shifts.reshape(len(shifts), -1)
    if shift.ndim > 1 or shift.size != columns.shape[1]:
        raise ValueError(f"shift {shift.tolist()} has shape {shift.shape}; the set has {columns.shape[1]} detectors")
    return (columns == shift.reshape(-1)).all(axis=1)


@dataclass
class InjectionSet(Ledger):
    """Base of signals: the parameters of each and how its waveform lies in its window."""

    PARAMETERS: ClassVar[tuple[str, ...]] = SIGNAL
    METADATA: ClassVar[tuple[str, ...]] = ("sample_rate", "duration", "right_pad", "num_injections")

    mass_1: np.ndarray = field(default_factory=_empty)
    mass_2: np.ndarray = field(default_factory=_empty)
    a_1: np.ndarray = field(default_factory=_empty)
    a_2: np.ndarray = field(default_factory=_empty)
    tilt_1: np.ndarray = field(default_factory=_empty)
    tilt_2: np.ndarray = field(default_factory=_empty)
    phi_12: np.ndarray = field(default_factory=_empty)
    phi_jl: np.ndarray = field(default_factory=_empty)
    ra: np.ndarray = field(default_factory=_empty)
    dec: np.ndarray = field(default_factory=_empty)
    redshift: np.ndarray = field(default_factory=_empty)
    psi: np.ndarray = field(default_factory=_empty)
    theta_jn: np.ndarray = field(default_factory=_empty)
    phase: np.ndarray = field(default_factory=_empty)
    sample_rate: float | None = None
    duration: float | None = None
    right_pad: float | None = None
    num_injections: int | None = None

    @classmethod
    def of(cls, values: DetectorFrame, **rest: Any) -> Self:
        """A set of drawn signals: `values` has the parameters of each, `rest` whatever else the set has.

        Raises:
            TypeError: `values` are not in the detector frame.
        """
        DetectorFrame.require(values)
        return cls(**{k: values[k] for k in cls.PARAMETERS if k in values}, **rest)

    def signals(self) -> DetectorFrame:
        """The parameters of the signals themselves (`SIGNAL`), by name."""
        return DetectorFrame({name: getattr(self, name) for name in SIGNAL})

    @property
    def coalescence(self) -> int:
        """Sample of the merger in each waveform: int((duration - right_pad) * sample_rate)."""
        return int((self.duration - self.right_pad) * self.sample_rate)


@dataclass
class WaveformPolarizationSet(InjectionSet):
    """Training signals: waveforms `cross` and `plus`, rows x samples, no cut."""


@dataclass
class InjectionParameterSet(InjectionSet):
    """Parameters and SNRs of draws without waveforms: the rejected ones."""

    PARAMETERS: ClassVar[tuple[str, ...]] = (*SIGNAL, "snr", "ifo_snrs")
    METADATA: ClassVar[tuple[str, ...]] = (*InjectionSet.METADATA, "ifos")

    snr: np.ndarray = field(default_factory=_empty)
    ifo_snrs: np.ndarray = field(default_factory=_empty)
    ifos: list[str] | None = None


@dataclass
class WaveformSet(InjectionParameterSet):
    """Validation signals: one waveform per detector, named in lower case."""

    def strain(self) -> np.ndarray:
        """Waveforms in the order of `ifos`, rows x ifos x samples."""
        return np.stack([self.waveforms[ifo.lower()] for ifo in self.ifos], axis=1)


@dataclass
class InterferometerResponseSet(WaveformSet):
    """Signals placed in slides.

    `injection_time` is the merger's GPS time in the frame of shift 0: in detector c the coalescence sample lies at
    injection_time + shift_c of that detector's own data.
    """

    PARAMETERS: ClassVar[tuple[str, ...]] = (*WaveformSet.PARAMETERS, "injection_time", "shift")

    injection_time: np.ndarray = field(default_factory=_empty)
    shift: np.ndarray = field(default_factory=_empty)

    def _touching(self, start: float | None, end: float | None, shift: Any) -> np.ndarray:
        left = self.duration - self.right_pad if len(self) else 0
        right = max(left, self.right_pad) if len(self) else 0
        keep = np.ones(len(self), bool)
        if start is not None:
            keep &= self.injection_time + right >= start
        if end is not None:
            keep &= self.injection_time - left <= end
        return keep if shift is None else keep & same_shift(self.shift, shift)

    @classmethod
    def read_times(
        cls, path: Path | str, start: float | None = None, end: float | None = None, shift: Sequence[float] | None = None
    ) -> InterferometerResponseSet:
        """The signals of slide `shift` that may reach into [start, end] (reference 2.12: merger within duration - right_pad of it).

        Raises:
            ValueError: `shift` does not have one number per detector.
        """
        return cls._read_where(path, lambda s: s._touching(start, end, shift))

    @classmethod
    def shifts_of(cls, path: Path | str) -> list[tuple[float, ...]]:
        """The slides of a file that carry signals, in the order of the file."""
        with h5py.File(path) as f:
            rows = f["parameters/shift"][:] if f.attrs["length"] else np.empty((0, 0))
        return list(dict.fromkeys(tuple(map(float, r)) for r in rows))


@dataclass
class EventSet(Ledger):
    """Events: detection statistic, GPS time (frame of shift 0), shift vector; `Tb` seconds of livetime behind them."""

    PARAMETERS: ClassVar[tuple[str, ...]] = EVENT
    METADATA: ClassVar[tuple[str, ...]] = ("Tb",)

    detection_statistic: np.ndarray = field(default_factory=_empty)
    detection_time: np.ndarray = field(default_factory=_empty)
    shift: np.ndarray = field(default_factory=_empty)
    Tb: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.Tb = float(self.Tb or 0.0)

    def select_shift(self, shift: Sequence[float]) -> EventSet:
        """The events of one slide; `Tb` unchanged."""
        return self[same_shift(self.shift, shift)]

    def get_times(self, start: float | None = None, end: float | None = None) -> EventSet:
        """The events in [start, end); `Tb` unchanged."""
        low = -np.inf if start is None else start
        high = np.inf if end is None else end
        return self[(self.detection_time >= low) & (self.detection_time < high)]


@dataclass
class RecoveredInjectionSet(InjectionParameterSet):
    """Injections, each with the event that recovered it."""

    PARAMETERS: ClassVar[tuple[str, ...]] = (*InjectionParameterSet.PARAMETERS, "injection_time", *EVENT)
    METADATA: ClassVar[tuple[str, ...]] = (*InjectionParameterSet.METADATA, "Tb")

    injection_time: np.ndarray = field(default_factory=_empty)
    detection_statistic: np.ndarray = field(default_factory=_empty)
    detection_time: np.ndarray = field(default_factory=_empty)
    shift: np.ndarray = field(default_factory=_empty)
    Tb: float = 0.0
