"""Time-domain polarisations of many binaries at once from ml4gw's frequency-domain approximants (reference 2.4).

The spectrum is conditioned as lalsimulation conditions it: begun below the minimum frequency and faded in up to it,
high-passed there, and long enough that nothing wraps around. Two things differ from ml4gw's own
TimeDomainCBCWaveformGenerator, on which this is modelled. Signals of similar length share a spectrum, so that a light
binary does not make every other pay for its length; and what happens before the window opens is never computed.
The high-pass, forward and backward in lalsimulation, is applied to the spectrum as its squared magnitude.

Coalescence lies at sample int((duration - right_pad) * sample_rate) exactly. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from ml4gw import waveforms
from ml4gw.constants import MSUN, MTSUN_SI
from ml4gw.waveforms.cbc import utils as bounds

from aframe_assets.waveforms.parameters import chirp_mass, complete, lal_spins, luminosity_distance

if TYPE_CHECKING:
    from aframe_assets.config import Config

APPROXIMANTS = ("IMRPhenomPv2", "IMRPhenomD", "TaylorF2")
EXTRA_TIME = 0.1
"""Share of the chirp's length by which it is begun early, to fade in (lalsimulation)."""
EXTRA_CYCLES = 3.0
HIGHPASS_ORDER, HIGHPASS_GAIN = 8, 0.99
MF_CUT = 0.2
"""Highest G M f / c^3 of the IMRPhenomD family, as in lalsimulation."""
SPECTRUM_ELEMENTS = 150_000
"""Frequencies x signals computed at once: a few MB an array, which stay in a core's cache better than more."""
IN_PLANE = 1e-4
"""Smallest dimensionless spin in the orbital plane that is given to an approximant."""
MARGIN = 0.5
"""Seconds kept before the window opens, for the fade-in of a signal that began earlier."""


@dataclass(frozen=True)
class WaveformGenerator:
    """Makes polarisations.

    Attributes:
        approximant: one of `APPROXIMANTS`. Those without precession get the spins' components along the orbital
            angular momentum.
        sample_rate: Hz.
        duration: seconds of the window.
        minimum_frequency: Hz; where it exceeds 1899 / (m1 + m2) (detector-frame solar masses), that is used, and as
            reference frequency too.
        reference_frequency: Hz, at which spins and phase are given.
        right_pad: seconds from coalescence to the end of the window, in [0, duration].
    """

    approximant: str
    sample_rate: float
    duration: float
    minimum_frequency: float
    reference_frequency: float
    right_pad: float

    def __post_init__(self) -> None:
        if self.approximant not in APPROXIMANTS:
            raise ValueError(f"waveforms.approximant '{self.approximant}' is not one of {', '.join(APPROXIMANTS)}")
        if not 0 <= self.right_pad < self.duration:
            raise ValueError(f"waveforms.right_pad = {self.right_pad:g} s must lie in [0, waveforms.duration = {self.duration:g} s)")
        if not 0 < self.minimum_frequency < self.sample_rate / 2:
            raise ValueError(f"waveforms.minimum_frequency = {self.minimum_frequency:g} Hz must lie below {self.sample_rate / 2:g} Hz")

    @classmethod
    def of(cls, config: Config) -> WaveformGenerator:
        w = config.waveforms
        return cls(w.approximant, config.sample_rate, w.duration, w.minimum_frequency, w.reference_frequency, w.right_pad)

    @property
    def size(self) -> int:
        """Samples of a waveform."""
        return int(self.duration * self.sample_rate)

    @property
    def coalescence(self) -> int:
        """Sample of the merger."""
        return int((self.duration - self.right_pad) * self.sample_rate)

    @property
    def _fade(self) -> np.ndarray:
        # one period of the lowest frequency, as lalsimulation tapers the start
        length = round(self.sample_rate / self.minimum_frequency)
        return 0.5 - 0.5 * np.cos(np.pi * np.arange(length) / length)

    def __call__(self, values: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Generate signals.

        Args:
            values: parameters of the signals (`ledger.SIGNAL`), masses in the detector frame; each of shape (n,).

        Returns:
            {'cross', 'plus'}, each (n, size) float64 strain; and a mask (n,) of the signals that could be generated.
            The others are zero: parameters that are not finite, masses that are not positive, spins above 1, or an
            approximant that returns no finite number.
        """
        values = complete(values)
        n = len(values["mass_1"])
        out = {name: np.zeros((n, self.size)) for name in ("cross", "plus")}
        rows = np.flatnonzero(_physical(values))
        good = np.zeros(n, bool)
        if len(rows):
            source = self._source({k: v[rows] for k, v in values.items()})
            for seconds, batch in self._batches(source):
                cross, plus, merger = self._series({k: v[batch] for k, v in source.items()}, seconds)
                finite = torch.isfinite(cross).all(1) & torch.isfinite(plus).all(1) & (plus.abs() + cross.abs() > 0).any(1)
                where = rows[batch]
                good[where] = finite.numpy()
                for name, series in (("cross", cross), ("plus", plus)):
                    series[~finite] = 0
                    out[name][where] = placed(series, merger, self.coalescence, self.size).numpy()
            # what began before the window opens fades in with it
            for series in out.values():
                series[:, : min(len(self._fade), self.coalescence)] *= self._fade[: self.coalescence]
        return out, good

    def _source(self, values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """What approximants take, heavier body first, and the frequencies and lengths of the conditioning."""
        total = values["mass_1"] + values["mass_2"]
        conditional = 1899 / total
        low = np.minimum(self.minimum_frequency, conditional)
        reference = np.where(self.minimum_frequency > conditional, conditional, self.reference_frequency)
        spins = lal_spins(values, reference)
        swap = values["mass_2"] > values["mass_1"]
        heavy, light = np.maximum(values["mass_1"], values["mass_2"]), np.minimum(values["mass_1"], values["mass_2"])
        # equal masses make ml4gw take the root of a rounding error
        ratio = np.minimum(light / heavy, 1 - 1e-6)
        first = {c: np.where(swap, spins[f"s2{c}"], spins[f"s1{c}"]) for c in "xyz"}
        second = {c: np.where(swap, spins[f"s1{c}"], spins[f"s2{c}"]) for c in "xyz"}
        # aligned spins leave the azimuth of J undefined, where ml4gw has no limit: an in-plane spin too small to see defines it
        in_plane = np.hypot(first["x"], first["y"]) + np.hypot(second["x"], second["y"])
        first["x"] = np.where(in_plane < IN_PLANE, IN_PLANE, first["x"])
        arrays = {
            "chirp_mass": chirp_mass(heavy, heavy * ratio),
            "mass_ratio": ratio,
            "mass_1": heavy,
            "mass_2": heavy * ratio,
            **{f"s1{c}": v for c, v in first.items()},
            **{f"s2{c}": v for c, v in second.items()},
            "chi1": first["z"],
            "chi2": second["z"],
            "distance": luminosity_distance(values["redshift"]),
            "phic": values["phase"],
            "inclination": spins["inclination"],
            "f_ref": reference,
            "f_highpass": low,
        }
        s = {k: torch.as_tensor(np.ascontiguousarray(v, dtype=np.float64)) for k, v in arrays.items()}
        return s | self._lengths(s)

    def _lengths(self, s: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kg1, kg2, z1, z2 = s["mass_1"] * MSUN, s["mass_2"] * MSUN, s["s1z"], s["s2z"]
        # a chirp is at least this high in frequency when the window opens, less the margin
        opens = bounds.chirp_start_frequency_bound(torch.tensor(self.duration - self.right_pad + MARGIN).double(), kg1, kg2).double()
        low = torch.maximum(s["f_highpass"], opens)
        chirp = bounds.chirp_time_bound(low, kg1, kg2, z1, z2).double()
        merge = bounds.merge_time_bound(kg1, kg2).double() + bounds.ringdown_time_bound(
            kg1 + kg2, bounds.final_black_hole_spin_bound(z1, z2)
        )
        extra = EXTRA_CYCLES / low
        start = bounds.chirp_start_frequency_bound((1 + EXTRA_TIME) * chirp, kg1, kg2).double()
        chirp = bounds.chirp_time_bound(start, kg1, kg2, z1, z2).double()
        return {"f_low": low, "f_start": start, "tail": merge + extra, "length": chirp + merge + 2 * extra}

    def _batches(self, s: dict[str, torch.Tensor]) -> Iterator[tuple[float, np.ndarray]]:
        """(length of the spectrum in seconds, indices) of signals that are computed together."""
        length = s["length"].numpy()
        # lengths 0.5, 0.75, 1, 1.5, 2, 3, ... s
        octave = 2.0 ** np.floor(np.log2(np.maximum(length, 0.5)))
        factor = np.select([length <= octave, length <= 1.5 * octave], [1.0, 1.5], 2.0)
        seconds = octave * factor
        for span in np.unique(seconds):
            group = np.flatnonzero(seconds == span)
            group = group[np.argsort(-s["mass_1"].numpy()[group], kind="stable")]
            rows = max(1, int(SPECTRUM_ELEMENTS / (span * self.sample_rate / 2)))
            for i in range(0, len(group), rows):
                yield float(span), group[i : i + rows]

    def _series(self, s: dict[str, torch.Tensor], seconds: float) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Cross and plus of one batch, (rows, seconds * sample_rate), and the sample of their merger."""
        size = int(seconds * self.sample_rate) // 2 * 2
        df = self.sample_rate / size
        total = (s["mass_1"] + s["mass_2"]) * MTSUN_SI
        highest = self._highest_frequency(total)
        k0 = max(1, int(float(s["f_start"].min()) / df))
        k1 = min(size // 2, int(float(highest.max()) / df) + 1)
        frequencies = torch.arange(k0, k1, dtype=torch.float64) * df
        f_ref = s["f_ref"] if self.approximant == "IMRPhenomPv2" else s["f_ref"].unsqueeze(-1)
        cross, plus = _approximant(self.approximant)(frequencies, **{**s, "f_ref": f_ref})

        start, low, corner = (s[k].unsqueeze(-1) for k in ("f_start", "f_low", "f_highpass"))
        fade = 0.5 - 0.5 * torch.cos(torch.pi * ((frequencies - start) / (low - start)).clamp(0, 1))
        warp = torch.tan(torch.pi * corner / self.sample_rate) * (HIGHPASS_GAIN**-0.5 - 1) ** (0.5 / HIGHPASS_ORDER)
        highpass = 1 / (1 + (warp / torch.tan(torch.pi * frequencies / self.sample_rate)) ** (2 * HIGHPASS_ORDER))
        tail = min(size // 2, int(np.ceil(float(s["tail"].max()) * self.sample_rate)))
        shift = torch.polar(torch.ones_like(frequencies), 2 * torch.pi * frequencies * (tail / self.sample_rate))
        window = fade * highpass * (frequencies <= highest.unsqueeze(-1)) * shift
        series, fade_in = [], torch.as_tensor(self._fade[: size - tail])
        for polarisation in (cross, plus):
            spectrum = torch.zeros(len(polarisation), size // 2 + 1, dtype=torch.complex128)
            spectrum[:, k0:k1] = polarisation * window
            series.append(torch.fft.irfft(spectrum, n=size) * self.sample_rate)
            series[-1][:, : len(fade_in)] *= fade_in
        return series[0], series[1], size - tail

    def _highest_frequency(self, total: torch.Tensor) -> torch.Tensor:
        nyquist = torch.full_like(total, self.sample_rate / 2)
        cut = 1 / (6**1.5 * torch.pi * total) if self.approximant == "TaylorF2" else MF_CUT / total
        return torch.minimum(nyquist, cut)


@lru_cache
def _approximant(name: str) -> torch.nn.Module:
    return getattr(waveforms, name)().double()


def _physical(values: Mapping[str, np.ndarray]) -> np.ndarray:
    good = np.all([np.isfinite(v) for v in values.values()], axis=0)
    with np.errstate(invalid="ignore"):
        good &= (values["mass_1"] > 0) & (values["mass_2"] > 0) & (values["redshift"] > 0)
        good &= (np.abs(values["a_1"]) <= 1) & (np.abs(values["a_2"]) <= 1)
    return good


def placed(series: torch.Tensor, merger: int, coalescence: int, size: int) -> torch.Tensor:
    """Cut or zero-pad series (rows, any) to (rows, size) so that sample `merger` comes to sample `coalescence`."""
    out = series.new_zeros((len(series), size))
    left = min(merger, coalescence)
    right = min(series.shape[-1] - merger, size - coalescence)
    out[:, coalescence - left : coalescence + right] = series[:, merger - left : merger + right]
    return out
