"""Simulated strain: coloured Gaussian noise, spectral lines, glitches. A function of (seed, ifo, GPS) only.

White noise is drawn in blocks of 60 s of GPS time, each from its own seed, and coloured by a finite impulse response
(overlap-save), always in the same blocks. So any stretch can be made alone, is the same bit for bit however it is
asked for, and has no joints. Data at another sample rate are another realisation.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import fft as sp_fft

from aframe_assets.strain.glitches import MAX_DURATION, Shape, draw_shape, draw_snr, optimal_snr, waveform
from aframe_assets.strain.stretch import StrainError, Stretch

if TYPE_CHECKING:
    from aframe_assets.config import Config

BLOCK = 60
"""Seconds of GPS time that share a seed."""

FILTER = 4
"""Seconds of the colouring filter. BLOCK + FILTER seconds at 2048 Hz are a power of two."""

WALL = 15.0
"""Hertz; below it the spectrum is held at its value there. A detector's own wall is steeper, but no search looks at it."""


@dataclass(frozen=True)
class Glitch:
    """A glitch that is in the data: GPS time of its centre, its SNR in this detector's noise, its shape."""

    gps: float
    snr: float
    shape: Shape


def packaged_curve(name: str) -> Path:
    """The noise-curve file `name` of the installed bilby, or `name` itself where it is a file.

    Raises:
        FileNotFoundError: neither; lists the packaged names.
    """
    if Path(name).is_file():
        return Path(name)
    spec = importlib.util.find_spec("bilby")  # bilby itself takes seconds to import
    folder = Path(spec.submodule_search_locations[0]) / "gw" / "detector" / "noise_curves" if spec else None
    if folder and Path(name).name == name and (folder / name).is_file():
        return folder / name
    known = ", ".join(sorted(p.name for p in folder.glob("*_[ap]sd.txt"))) if folder else "none: bilby is not installed"
    raise FileNotFoundError(f"strain.simulated.asd: no file and no packaged noise curve '{name}'; packaged are {known}")


def read_curve(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (Hz) and amplitude spectral density (1/sqrt(Hz)) of a two-column text file.

    Args:
        name: as `packaged_curve`; the second column is a PSD where the name ends in ``psd.txt``, else an ASD.

    Raises:
        FileNotFoundError: no such curve.
        StrainError: not two columns of positive numbers of rising frequency that cover 15 to 100 Hz.
    """
    path = packaged_curve(name)
    try:
        table = np.loadtxt(path)
    except ValueError as e:
        raise StrainError(f"{path}: expected a text file of two columns, frequency and amplitude density ({e})") from None
    if table.ndim != 2 or table.shape[1] < 2:
        raise StrainError(f"{path}: expected two columns, frequency and amplitude density")
    f, a = table[:, 0], table[:, 1]
    if not (np.all(np.diff(f) > 0) and np.all(np.isfinite(a)) and np.all(a > 0)):
        raise StrainError(f"{path}: expected rising frequencies and positive densities")
    if f[0] > WALL or f[-1] < 100:
        raise StrainError(f"{path}: covers {f[0]:g} to {f[-1]:g} Hz; expected at least {WALL:g} to 100 Hz")
    return f, np.sqrt(a) if path.name.endswith("psd.txt") else a


def curves_identity(config: Config) -> dict[str, str]:
    """Identity of the noise curves' bytes, so that an edited curve makes its noise anew."""
    curves = config.strain.simulated.asd
    digest = hashlib.sha256(b"".join(packaged_curve(curves[ifo]).read_bytes() for ifo in sorted(curves))).hexdigest()
    return {"key": digest, "sha256": digest}


class SimulatedNoise:
    """Noise of one detector.

    Args:
        ifo: detector; enters the seeds, so that detectors are independent.
        frequencies, asd: noise curve, Hz and 1/sqrt(Hz); interpolated in log-log, held beyond its ends and below `WALL`.
        sample_rate: hertz, a whole number.
        seed: of the experiment.
        lines: frequencies of spectral lines, hertz; those at or above Nyquist are left out.
        line_snr: amplitude of a line: a sine of amplitude A has SNR A sqrt(T / S) in T seconds; this is its SNR in one, over the
            median noise within 5 Hz.
        glitch_rate: mean number per hour.
        glitch_snr: lowest and highest SNR; density falls as SNR^-3.

    Raises:
        ValueError: `sample_rate` is not a whole number.
    """

    def __init__(
        self,
        ifo: str,
        frequencies: np.ndarray,
        asd: np.ndarray,
        *,
        sample_rate: float,
        seed: int,
        lines: Sequence[float] = (),
        line_snr: float = 0.0,
        glitch_rate: float = 0.0,
        glitch_snr: tuple[float, float] = (5.0, 100.0),
    ) -> None:
        if float(sample_rate) != int(sample_rate) or int(sample_rate) % 2:
            raise ValueError(f"sample_rate = {sample_rate:g} Hz: expected an even whole number for simulated noise")
        self.ifo, self.sample_rate, self.seed = ifo, int(sample_rate), seed
        self.glitch_rate, self.glitch_snr = glitch_rate, glitch_snr
        self._curve = np.log(frequencies), np.log(asd)
        self._size = BLOCK * self.sample_rate
        self._reach = FILTER * self.sample_rate // 2
        self._words = [int.from_bytes(hashlib.sha256(ifo.encode()).digest()[:8], "big"), seed]
        self._white: dict[int, np.ndarray] = {}
        self._coloured: tuple[int, np.ndarray] | None = None
        self._transfer = sp_fft.rfft(self._filter(), n=self._size + 2 * self._reach)
        phases = self._rng("line").uniform(0, 2 * math.pi, len(lines))
        self._lines = [(f, line_snr * self._floor(f), p) for f, p in zip(lines, phases, strict=True) if f < self.sample_rate / 2]
        size = round(MAX_DURATION * self.sample_rate)
        self._psd = self.asd(np.fft.rfftfreq(size, 1 / self.sample_rate)) ** 2

    def asd(self, frequencies: np.ndarray) -> np.ndarray:
        """The amplitude spectral density that the Gaussian part follows (lines and glitches not included), 1/sqrt(Hz)."""
        return np.exp(np.interp(np.log(np.maximum(frequencies, WALL)), *self._curve))

    def _floor(self, frequency: float) -> float:
        # a measured curve has the line in it already; the noise beside it is what the line stands out of
        return float(np.median(self.asd(np.arange(frequency - 5, frequency + 5, 0.1))))

    def strain(self, gps_start: float, gps_stop: float) -> np.ndarray:
        """Strain of [gps_start, gps_stop), float64, shape (duration * sample_rate,).

        Raises:
            ValueError: an end that is no whole sample, or nothing in between.
        """
        first, last = (self._index(t) for t in (gps_start, gps_stop))
        if last <= first or first < 0:
            raise ValueError(f"simulated strain of {self.ifo}: expected 0 <= start < stop, got GPS {gps_start} to {gps_stop}")
        out = np.empty(last - first)
        for block in range(first // self._size, (last - 1) // self._size + 1):
            origin = block * self._size
            low, high = max(first, origin), min(last, origin + self._size)
            out[low - first : high - first] = self._block(block)[low - origin : high - origin]
        return out

    def glitches(self, gps_start: float, gps_stop: float) -> list[Glitch]:
        """The glitches whose centre is in [gps_start, gps_stop), by time."""
        blocks = range(int(gps_start // BLOCK), math.ceil(gps_stop / BLOCK))
        return [g for b in blocks for g in self._glitches(b) if gps_start <= g.gps < gps_stop]

    def _index(self, gps: float) -> int:
        index = gps * self.sample_rate
        if abs(index - round(index)) > 1e-3:
            raise ValueError(f"simulated strain of {self.ifo}: GPS {gps} is no whole sample at {self.sample_rate} Hz")
        return round(index)

    def _rng(self, what: str, block: int = 0) -> np.random.Generator:
        # + 2: the colouring filter reaches into the block before, seeds may not be negative
        words = [*self._words, int.from_bytes(what.encode(), "big"), block + 2]
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))

    def _filter(self) -> np.ndarray:
        size = 2 * self._reach
        # white noise of unit variance has the one-sided PSD 2 / fs
        amplitude = self.asd(np.fft.rfftfreq(size, 1 / self.sample_rate)) * math.sqrt(self.sample_rate / 2)
        response = np.roll(np.fft.irfft(amplitude, n=size), self._reach)
        return response * (0.5 - 0.5 * np.cos(2 * math.pi * np.arange(size) / size))

    def _draw(self, block: int) -> np.ndarray:
        if block not in self._white:
            while len(self._white) > 3:
                self._white.pop(next(iter(self._white)))
            self._white[block] = self._rng("noise", block).standard_normal(self._size)
        return self._white[block]

    def _block(self, block: int) -> np.ndarray:
        if self._coloured is None or self._coloured[0] != block:
            before, white, after = (self._draw(b) for b in (block - 1, block, block + 1))
            data = np.concatenate([before[-self._reach :], white, after[: self._reach]])
            data = sp_fft.irfft(sp_fft.rfft(data) * self._transfer, n=len(data))[2 * self._reach :]
            for frequency, amplitude, phase in self._lines:
                data += amplitude * self._sine(frequency, phase, block)
            for near in (block - 1, block, block + 1):
                for glitch in self._glitches(near):
                    self._add(data, glitch, block)
            self._coloured = block, data
        return self._coloured[1]

    def _sine(self, frequency: float, phase: float, block: int) -> np.ndarray:
        # one second of sine, then turned second by second: far fewer sines than samples
        start = 2 * math.pi * math.fmod(frequency * BLOCK * block, 1.0) + phase
        second = np.exp(1j * (start + 2 * math.pi * frequency * np.arange(self.sample_rate) / self.sample_rate))
        turns = np.exp(2j * math.pi * np.fmod(frequency * np.arange(BLOCK), 1.0))
        return (np.outer(turns.real, second.real) - np.outer(turns.imag, second.imag)).ravel()

    def _glitches(self, block: int) -> list[Glitch]:
        if not self.glitch_rate or block < 0:
            return []
        rng = self._rng("glitch", block)
        num = rng.poisson(self.glitch_rate * BLOCK / 3600)
        times = np.sort(rng.uniform(0, BLOCK, num))
        return [Glitch(block * BLOCK + float(t), float(draw_snr(rng, *self.glitch_snr)), draw_shape(rng)) for t in times]

    def _add(self, data: np.ndarray, glitch: Glitch, block: int) -> None:
        size = len(self._psd) * 2 - 2
        centre = (glitch.gps - block * BLOCK) * self.sample_rate
        first = round(centre) - size // 2
        if first >= len(data) or first + size <= 0:
            return
        w = waveform(glitch.shape, (np.arange(first, first + size) - centre) / self.sample_rate, self.sample_rate)
        w *= glitch.snr / optimal_snr(w, self.sample_rate, self._psd)
        low, high = max(first, 0), min(first + size, len(data))
        data[low:high] += w[low - first : high - first]


def simulator(config: Config, ifo: str) -> SimulatedNoise:
    """The simulated noise of `ifo` under ``config.strain.simulated``.

    Raises:
        StrainError: no noise curve is named for `ifo`, or its file is unusable.
        FileNotFoundError: no such curve.
    """
    s = config.strain.simulated
    if ifo not in s.asd:
        raise StrainError(f"strain.simulated.asd names no noise curve for {ifo}; add one, as {{{ifo}: aLIGO_O4_high_asd.txt}}")
    return SimulatedNoise(
        ifo,
        *read_curve(s.asd[ifo]),
        sample_rate=config.sample_rate,
        seed=config.seed,
        lines=s.lines,
        line_snr=s.line_snr,
        glitch_rate=s.glitch_rate,
        glitch_snr=s.glitch_snr,
    )


def fetch_simulated(config: Config, ifo: str, gps_start: float, gps_stop: float) -> Stretch:
    """Simulated strain of `ifo` over [gps_start, gps_stop); every second is science time."""
    strain = simulator(config, ifo).strain(gps_start, gps_stop)
    return Stretch(ifo, gps_start, config.sample_rate, strain, None, f"simulated ({config.strain.simulated.asd[ifo]}, seed {config.seed})")
