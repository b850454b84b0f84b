"""A chunk of strain whitened once for all its slides, and the same chunk with signals in it.

Whitening is linear, so the whitened strain with signals is the whitened strain plus the whitened signals, both with the
PSD of the noise alone. Block and PSD belong to the detector, so neither depends on the slide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from aframe_assets.config import Conditioning
from aframe_assets.inference.streaming import StreamingWhitener, pieces
from aframe_assets.strain.conditioning import Whitener
from aframe_assets.waveforms.inject import add_signals

_PIECE = 64.0
"""Seconds of strain handled at a time."""


@dataclass(frozen=True)
class WhitenedChunk:
    """Whitened streams of all detectors of one chunk.

    Attributes:
        streams: one float32 array per detector, equal lengths; sample 0 is that of GPS gps_start + (settle + crop) / sample_rate.
        psds: for each detector, the PSD of each block.
        gps_start: first sample of the strain, GPS seconds.
        sample_rate: Hz.
        settle, crop, block: samples spent on the first PSD, lost at each end, and sharing a PSD.
        whitener: conditioning that was used.
    """

    streams: tuple[np.ndarray, ...]
    psds: tuple[tuple[torch.Tensor, ...], ...]
    gps_start: float
    sample_rate: float
    settle: int
    crop: int
    block: int
    whitener: Whitener

    @classmethod
    def of(
        cls,
        strain: Iterable[np.ndarray],
        gps_start: float,
        sample_rate: float,
        conditioning: Conditioning,
        *,
        block: float,
        psd_source: Literal["preceding", "segment"] = "preceding",
    ) -> WhitenedChunk:
        """Whiten a chunk.

        Args:
            strain: one array (or HDF5 dataset) per detector, equal lengths, at `sample_rate`; a generator keeps one in memory.
            gps_start: GPS seconds of the first sample.
            sample_rate: Hz.
            conditioning: of the model that will look at it.
            block: seconds of whitened strain that share a PSD.
            psd_source: 'preceding' or 'segment', see `StreamingWhitener`.

        Raises:
            ValueError: lengths differ, or strain is not finite (names the GPS time).
        """
        whitener = Whitener(conditioning, sample_rate)
        streams, psds, sizes = [], [], []
        for i, data in enumerate(strain):
            sizes.append(len(data))
            psd = whitener.psd(torch.from_numpy(np.asarray(data[:], np.float64))) if psd_source == "segment" else None
            machine = StreamingWhitener(whitener, round(block * sample_rate), psd)
            parts = []
            for piece in pieces(len(data), round(_PIECE * sample_rate)):
                values = np.asarray(data[piece], np.float64)
                bad = ~np.isfinite(values)
                if bad.any():
                    where = gps_start + (piece.start + int(bad.argmax())) / sample_rate
                    raise ValueError(f"strain of detector {i} is not finite at GPS {where:.6f}; expected gap-free strain")
                parts.append(machine.update(values))
            parts.append(machine.finish())
            streams.append(np.concatenate(parts))
            psds.append(tuple(machine.psds))
        if len(set(sizes)) != 1:
            raise ValueError(
                f"strain at GPS {gps_start:g} has unequal lengths {sizes} samples; expected the same stretch of every detector"
            )
        return cls(tuple(streams), tuple(psds), gps_start, sample_rate, machine.settle, machine.crop, machine.block, whitener)

    @property
    def whitened_start(self) -> float:
        """GPS seconds of the first whitened sample."""
        return self.gps_start + (self.settle + self.crop) / self.sample_rate

    def starts(self, times: np.ndarray, coalescence: int) -> np.ndarray:
        """Strain sample at which a waveform begins whose sample `coalescence` is the one nearest to GPS `times`."""
        return np.round((np.asarray(times) - self.gps_start) * self.sample_rate).astype(np.int64) - coalescence

    def with_signals(self, starts: np.ndarray, waveforms: np.ndarray) -> tuple[np.ndarray, ...]:
        """The streams with signals added; signals may overlap (they add) and may reach over the ends (they are cut).

        Args:
            starts: (signal, ifo), strain sample at which each waveform begins in each detector's own data.
            waveforms: (signal, ifo, samples), strain.

        Returns:
            New streams, as `streams`.
        """
        out = []
        for c, (stream, psds) in enumerate(zip(self.streams, self.psds, strict=True)):
            stream = stream.copy()
            for b, psd in enumerate(psds):
                first = self.settle + b * self.block
                size = min(self.block, len(stream) - b * self.block)
                signal, touched = self._signal(starts[:, c], waveforms[:, c], first, size + 2 * self.crop)
                if touched is not None:
                    white = self.whitener.whiten(torch.from_numpy(signal)[None], psd[None])[0].numpy()
                    stream[b * self.block : b * self.block + size][touched] += white[touched]
            out.append(stream)
        return tuple(out)

    def _signal(self, starts: np.ndarray, waveforms: np.ndarray, first: int, size: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Signals in strain samples [first, first + size), and which whitened samples of it the filter lets them reach."""
        touched = np.zeros(size - 2 * self.crop, bool)
        near = (starts < first + size) & (starts + waveforms.shape[1] > first)
        for start in starts[near]:
            touched[max(0, start - first - 2 * self.crop) : start + waveforms.shape[1] - first] = True
        # in units of samples
        signal = add_signals(np.zeros(size), first, 1.0, waveforms[near], starts[near], 0)
        return signal, touched if touched.any() else None


def support(waveforms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last non-zero sample of each signal over all detectors; (0, 0) for a signal of zeros.

    Args:
        waveforms: (signal, ifo, samples).
    """
    live = (waveforms != 0).any(axis=1)
    some = live.any(axis=1)
    return np.where(some, live.argmax(axis=1), 0), np.where(some, live.shape[1] - live[:, ::-1].argmax(axis=1), 0)
