"""Time-domain polarisations of binaries (reference 2.4), by any of the approximants of `approximants`.

Those of `BATCHED` are made many at once on any torch device: spectra of `phenom`, conditioned as lalsimulation
conditions them: begun below the minimum frequency and faded in up to it, high-passed there, and long enough that
nothing wraps around. Signals of similar length share a spectrum, so that a light binary does not make every other pay
for its length, and what happens before the window opens is never computed. A signal depends on its own parameters only:
alone and in any batch it is the same to less than 1e-9 of its peak. The high-pass, forward and backward in
lalsimulation, is applied to the spectrum as its squared magnitude.
The others are lalsimulation's, one at a time, in this process or in several (`lalsim_pool`).

Coalescence lies at sample int((duration - right_pad) * sample_rate). What coalescence is, is the model's: for `BATCHED`
the time that the phase of the spectrum refers to (as in PyCBC), for the others time zero of lalsimulation's series.
Everything is float64.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from ml4gw.constants import MSUN
from ml4gw.waveforms.cbc import utils as bounds

from aframe_assets.waveforms.approximants import BATCHED, problem
from aframe_assets.waveforms.frames import DetectorFrame
from aframe_assets.waveforms.lalsim import PARAMETERS, Window, signal
from aframe_assets.waveforms.lalsim_pool import Pool
from aframe_assets.waveforms.parameters import complete, lal_spins, luminosity_distance
from aframe_assets.waveforms.phenom import Grid, Spectra

if TYPE_CHECKING:
    from aframe_assets.config import Config

EXTRA_TIME = 0.1
"""Share of the chirp's length by which it is begun early, to fade in (lalsimulation)."""
EXTRA_CYCLES = 3.0
HIGHPASS_ORDER, HIGHPASS_GAIN = 8, 0.99
HIGHPASS_REACH = 4.0
"""Multiple of the corner frequency above which the high-pass is 1 to 1e-11."""
SPECTRUM_ELEMENTS = {"cpu": 100_000, "cuda": 16_000_000}
"""Frequencies x signals computed at once: on a CPU less than a MB an array, which stays in a core's cache."""
MARGIN = 0.5
"""Seconds kept before the window opens, for the fade-in of a signal that began earlier."""


@dataclass(frozen=True)
class WaveformGenerator:
    """Makes polarisations.

    Attributes:
        approximant: one of `approximants.KNOWN`. Those without precession get the spins' components along the orbital
            angular momentum, those without spin none.
        sample_rate: Hz.
        duration: seconds of the window.
        minimum_frequency: Hz; where it exceeds 1899 / (m1 + m2) (detector-frame solar masses), that is used, and as
            reference frequency too.
        reference_frequency: Hz, at which spins and phase are given.
        right_pad: seconds from coalescence to the end of the window, in [0, duration].
        device: torch device of the batches.
        processes: processes that make lalsimulation's signals; 1 is this process. They are started when first needed
            and end with the generator.
    """

    approximant: str
    sample_rate: float
    duration: float
    minimum_frequency: float
    reference_frequency: float
    right_pad: float
    device: str = "cpu"
    processes: int = 1

    def __post_init__(self) -> None:
        trouble = problem(self.approximant)
        if trouble:
            raise ValueError(f"waveforms.approximant = {self.approximant}: {trouble}")
        if not 0 <= self.right_pad < self.duration:
            raise ValueError(f"waveforms.right_pad = {self.right_pad:g} s must lie in [0, waveforms.duration = {self.duration:g} s)")
        if not 0 < self.minimum_frequency < self.sample_rate / 2:
            raise ValueError(f"waveforms.minimum_frequency = {self.minimum_frequency:g} Hz must lie below {self.sample_rate / 2:g} Hz")
        if self.processes < 1:
            raise ValueError(f"execution.waveform_processes = {self.processes} must be at least 1")

    @classmethod
    def of(cls, config: Config, device: str = "cpu") -> WaveformGenerator:
        """The generator of an experiment; batches on `device`."""
        w, processes = config.waveforms, config.execution.waveform_processes
        numbers = (config.sample_rate, w.duration, w.minimum_frequency, w.reference_frequency, w.right_pad)
        return cls(w.approximant, *numbers, device=device, processes=processes)

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

    @cached_property
    def _pool(self) -> Pool:
        pool = Pool(self.processes)
        weakref.finalize(self, pool.close)
        return pool

    def __call__(self, values: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Generate signals.

        Args:
            values: `DetectorFrame` parameters of the signals (`ledger.SIGNAL`), each of shape (n,).

        Returns:
            {'cross', 'plus'}, each (n, size) float64 strain; and a mask (n,) of the signals that could be generated.
            The others are zero: parameters that are not finite, masses that are not positive, spins above 1, or an
            approximant that refuses them or returns no finite number.

        Raises:
            RuntimeError: one of several processes died.
            TypeError: parameters that are not in the detector frame.
        """
        values = complete(DetectorFrame.require(values))
        n = len(values["mass_1"])
        out = {name: np.zeros((n, self.size)) for name in ("cross", "plus")}
        rows = np.flatnonzero(_physical(values))
        good = np.zeros(n, bool)
        if len(rows):
            source = self._source({k: v[rows] for k, v in values.items()})
            write = self._batched if self.approximant in BATCHED else self._one_by_one
            good[rows] = write(source, rows, out)
            # what began before the window opens fades in with it
            for series in out.values():
                series[:, : min(len(self._fade), self.coalescence)] *= self._fade[: self.coalescence]
        return out, good

    def _source(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What approximants take (`lalsim.PARAMETERS`), heavier body first."""
        conditional = 1899 / (values["mass_1"] + values["mass_2"])
        reference = np.where(self.minimum_frequency > conditional, conditional, self.reference_frequency)
        spins = lal_spins(values, reference)
        swap = values["mass_2"] > values["mass_1"]
        return {
            "mass_1": np.maximum(values["mass_1"], values["mass_2"]),
            "mass_2": np.minimum(values["mass_1"], values["mass_2"]),
            **{f"s1{c}": np.where(swap, spins[f"s2{c}"], spins[f"s1{c}"]) for c in "xyz"},
            **{f"s2{c}": np.where(swap, spins[f"s1{c}"], spins[f"s2{c}"]) for c in "xyz"},
            "distance": luminosity_distance(values["redshift"]),
            "inclination": spins["inclination"],
            "phase": values["phase"],
            "f_low": np.minimum(self.minimum_frequency, conditional),
            "f_ref": reference,
        }

    def _one_by_one(self, source: dict[str, np.ndarray], rows: np.ndarray, out: dict[str, np.ndarray]) -> np.ndarray:
        window = Window(self.approximant, self.sample_rate, self.size, self.coalescence)
        several = [{k: float(source[k][i]) for k in PARAMETERS} for i in range(len(rows))]
        if self.processes == 1:
            made = [signal(window, p) for p in several]
        else:
            try:
                made = self._pool(window, several)
            except BaseException:
                # the pool has ended with its dead worker, or an interrupt; the next call starts another
                self.__dict__.pop("_pool", None)
                raise
        good = np.zeros(len(rows), bool)
        for i, one in enumerate(made):
            if one is not None and np.any(one[1]):
                good[i] = True
                first, series = one
                for name, samples in zip(("cross", "plus"), series, strict=True):
                    out[name][rows[i], first : first + len(samples)] = samples
        return good

    def _batched(self, source: dict[str, np.ndarray], rows: np.ndarray, out: dict[str, np.ndarray]) -> np.ndarray:
        s = {k: torch.as_tensor(np.ascontiguousarray(v, dtype=np.float64)) for k, v in source.items()}
        spectra = Spectra.of(self.approximant, s, self.device)
        s |= self._lengths(s)
        good = np.zeros(len(rows), bool)
        for seconds, batch in self._batches(s):
            cross, plus, mergers = self._series(spectra, {k: v[batch] for k, v in s.items()}, torch.as_tensor(batch), seconds)
            good[batch] = (np.isfinite(cross) & np.isfinite(plus)).all(1) & (np.abs(plus) + np.abs(cross) > 0).any(1)
            for i in np.flatnonzero(good[batch]):
                for name, series in (("cross", cross), ("plus", plus)):
                    put(out[name], rows[batch[i : i + 1]], series[i : i + 1], int(mergers[i]), self.coalescence)
        return good

    def _lengths(self, s: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Frequencies (Hz) and lengths (seconds) of the conditioning; lalsimulation's bounds."""
        kg1, kg2, z1, z2 = s["mass_1"] * MSUN, s["mass_2"] * MSUN, s["s1z"], s["s2z"]
        # a chirp is at least this high in frequency when the window opens, less the margin
        opens = bounds.chirp_start_frequency_bound(torch.tensor(self.duration - self.right_pad + MARGIN).double(), kg1, kg2).double()
        low = torch.maximum(s["f_low"], opens)
        chirp = bounds.chirp_time_bound(low, kg1, kg2, z1, z2).double()
        merge = bounds.merge_time_bound(kg1, kg2).double() + bounds.ringdown_time_bound(
            kg1 + kg2, bounds.final_black_hole_spin_bound(z1, z2)
        )
        extra = EXTRA_CYCLES / low
        start = bounds.chirp_start_frequency_bound((1 + EXTRA_TIME) * chirp, kg1, kg2).double()
        chirp = bounds.chirp_time_bound(start, kg1, kg2, z1, z2).double()
        return {
            "f_full": low,
            "f_start": start,
            "f_high": Spectra.highest_frequency(self.approximant, s["mass_1"] + s["mass_2"]).clamp(max=self.sample_rate / 2),
            "tail": merge + extra,
            "length": chirp + merge + 2 * extra,
        }

    def _batches(self, s: dict[str, torch.Tensor]) -> Iterator[tuple[float, np.ndarray]]:
        """(length of the spectrum in seconds, indices) of signals that are computed together."""
        length = s["length"].numpy()
        # lengths 0.5, 0.75, 1, 1.5, 2, 3, ... s
        octave = 2.0 ** np.floor(np.log2(np.maximum(length, 0.5)))
        factor = np.select([length <= octave, length <= 1.5 * octave], [1.0, 1.5], 2.0)
        seconds = octave * factor
        elements = SPECTRUM_ELEMENTS["cpu" if self.device == "cpu" else "cuda"]
        for span in np.unique(seconds):
            group = np.flatnonzero(seconds == span)
            group = group[np.argsort(-s["mass_1"].numpy()[group] - s["mass_2"].numpy()[group], kind="stable")]
            rows = max(1, int(elements / (span * self.sample_rate / 2)))
            for i in range(0, len(group), rows):
                yield float(span), group[i : i + rows]

    def _series(
        self, spectra: Spectra, s: dict[str, torch.Tensor], rows: torch.Tensor, seconds: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cross and plus of one batch, (rows, seconds * sample_rate), and the sample of each one's merger, (rows,).

        A signal does not depend on its company: its spectrum's length and where its series is cut are its own, and the
        frequencies that only others have are zero for it.
        """
        size = int(seconds * self.sample_rate) // 2 * 2
        df = self.sample_rate / size
        k0 = max(1, int(float(s["f_start"].min()) / df))
        k1 = min(size // 2, int(float(s["f_high"].max()) / df) + 1)
        grid = Grid(df, k0, k1, self.device)
        tail = torch.ceil(s["tail"] * self.sample_rate).clamp(max=size // 2)
        made = spectra(rows.to(self.device), grid, (tail / self.sample_rate).to(self.device))
        for spectrum in made:
            self._condition(spectrum, s, grid)
        spectrum = torch.stack(made)
        spectrum = torch.nn.functional.pad(spectrum, (k0, 0))
        fade_in = torch.as_tensor(self._fade[: size // 2], device=self.device)
        if len(made) == 2:
            cross, plus = torch.fft.irfft(spectrum, n=size) * self.sample_rate
        else:
            # h_plus is the real and h_cross the imaginary part of one transform, up to the factors of the inclination
            analytic = torch.fft.ifft(spectrum[0], n=size) * (2 * self.sample_rate)
            here = rows.to(self.device)
            plus, cross = spectra.tensors["plus"][here, None] * analytic.real, spectra.tensors["cross"][here, None] * analytic.imag
        for series in (cross, plus):
            series[:, : len(fade_in)] *= fade_in
        return cross.cpu().numpy(), plus.cpu().numpy(), size - tail.numpy().astype(int)

    def _condition(self, spectrum: torch.Tensor, s: dict[str, torch.Tensor], grid: Grid) -> None:
        """Fade in, high-pass and cut a batch of spectra in place."""
        start, low, corner, high = (s[k].unsqueeze(-1).to(self.device) for k in ("f_start", "f_full", "f_low", "f_high"))
        last = len(grid.frequencies)
        begun = min(last, max(0, int(float(s["f_full"].max()) / grid.df) + 2 - grid.k0))
        fade = 0.5 - 0.5 * torch.cos(torch.pi * ((grid.row[:, :begun] - start) / (low - start)).clamp(0, 1))
        spectrum[:, :begun] *= fade
        passed = min(last, max(0, int(HIGHPASS_REACH * float(s["f_low"].max()) / grid.df) - grid.k0))
        warp = torch.tan(torch.pi * corner / self.sample_rate) * (HIGHPASS_GAIN**-0.5 - 1) ** (0.5 / HIGHPASS_ORDER)
        ratio = (warp / torch.tan(torch.pi * grid.row[:, :passed] / self.sample_rate)) ** 2
        spectrum[:, :passed] /= 1 + ratio**HIGHPASS_ORDER
        over = min(last, max(0, int(float(s["f_high"].min()) / grid.df) - grid.k0))
        spectrum[:, over:] *= grid.row[:, over:] <= high


def _physical(values: Mapping[str, np.ndarray]) -> np.ndarray:
    good = np.all([np.isfinite(v) for v in values.values()], axis=0)
    with np.errstate(invalid="ignore"):
        good &= (values["mass_1"] > 0) & (values["mass_2"] > 0) & (values["redshift"] > 0)
        good &= (np.abs(values["a_1"]) <= 1) & (np.abs(values["a_2"]) <= 1)
    return good


def put(out: np.ndarray, rows: np.ndarray, series: np.ndarray, merger: int, coalescence: int) -> None:
    """Write series (rows, any) into `out[rows]` so that sample `merger` comes to sample `coalescence`; what does not fit is cut."""
    left = min(merger, coalescence)
    right = min(series.shape[-1] - merger, out.shape[-1] - coalescence)
    out[rows, coalescence - left : coalescence + right] = series[:, merger - left : merger + right]
