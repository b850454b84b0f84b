"""Where training batches come from: whitened background in memory, signals in memory, SNRs, and a seed for every step.

Background is whitened as inference does it: a block of up to `psd_block` seconds with the PSD of the `psd_length`
seconds before it, each detector by itself. A kernel cut from a block equals the kernel whitened alone with that PSD
(the filter is a FIR of fduration), so this is reference 2.7 at a small part of its cost: one PSD serves a block, not a
kernel. Sign and time reversal commute with the symmetric filter and are done on whitened kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import torch
from torch import Tensor

from aframe_assets.strain.background_file import read_background
from aframe_assets.waveforms.ledger import WaveformPolarizationSet, WaveformSet

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.strain.conditioning import Whitener

MAX_BLOCKS = 512
"""Blocks of each detector in memory; at 32 s and 2048 Hz 134 MB per detector, plus 8 MB of PSDs."""
MAX_SIGNALS = 10_000
"""Training signals in memory; with the default kernel 0.61 GB (reference 2.7: chunk_size)."""
REFILL_STEPS = 500
"""Steps after which background and signals in memory are drawn anew."""
_ROWS = 512
"""Signals read at a time."""
STRAIN_SCALE = 1e21
"""Signals are kept as strain times this, in float32, whose squares of 1e-22 would vanish."""


def generator_of(*words: int) -> torch.Generator:
    """A CPU generator that is a function of `words` only."""
    state = np.random.SeedSequence([int(w) for w in words]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


@dataclass(frozen=True)
class Placement:
    """How a signal's merger lies in the kernel (reference 2.7, steps 5 and 6), in samples.

    Attributes:
        before, after: samples of the stored signal before and after its merger; whitening spends `crop` of each.
        kernel: samples of what the network sees, the context on both sides of the kernel among them.
        crop: samples that whitening spends at each end.
        offsets: number of start positions of the kernel in the whitened signal; start 0 puts the merger `right`
            samples before the kernel's end, the last start puts it `left` samples after its begin.
    """

    before: int
    after: int
    kernel: int
    crop: int
    offsets: int

    @classmethod
    def of(cls, config: Config) -> Placement:
        fs, c, t = config.sample_rate, config.conditioning, config.model.training
        context = round(config.model.architecture.context * fs)
        kernel, crop = round(c.kernel_length * fs) + 2 * context, round(c.fduration * fs) // 2
        left, right = int(t.left_pad * fs) + context, int(t.right_pad * fs) + context
        return cls(crop + kernel - right, crop + kernel - left, kernel, crop, kernel - left - right)

    @property
    def size(self) -> int:
        """Samples of a stored signal."""
        return self.before + self.after

    def views(self, count: int) -> list[int]:
        """`count` start positions from the first to the last, evenly (the middle one for a single view)."""
        last = self.offsets - 1
        return [last // 2] if count == 1 else [last - round(i * last / (count - 1)) for i in range(count)]


@dataclass(frozen=True)
class Blocks:
    """Whitened background.

    Attributes:
        strain: (block, time), float32, unit variance.
        psd: (block, freq), float64, 1/Hz.
    """

    strain: Tensor
    psd: Tensor


class BackgroundFiles:
    """Background files of several detectors, read in contiguous blocks.

    Args:
        paths: files of one role (`aframe_assets.strain.background_file`).
        ifos: detectors, in the order of the network's channels.
        whitener: conditioning of the experiment.
        psd_block: seconds whitened with one PSD; shortened to what the shortest file allows.

    Raises:
        ValueError: no file, or one shorter than psd_length + fduration + `kernel_length` seconds.
    """

    def __init__(self, paths: Sequence[Path], ifos: Sequence[str], whitener: Whitener, psd_block: float, kernel_length: float) -> None:
        self.ifos, self.whitener = list(ifos), whitener
        fs = whitener.sample_rate
        self.lead = round(whitener.psd_length * fs)
        self.sizes: dict[Path, tuple[float, int]] = {}
        if not paths:
            raise ValueError("no background files; training needs at least one chunk of role 'train' and one of role 'validation'")
        for path in paths:
            with h5py.File(path) as f:
                first = f[self.ifos[0]] if self.ifos[0] in f else None
                if first is None:
                    raise ValueError(f"{path}: no strain of {self.ifos[0]}; the file holds {', '.join(f)}")
                self.sizes[Path(path)] = float(first.attrs["x0"]), len(first)
        spent = self.lead + 2 * whitener.crop
        shortest = min(self.sizes, key=lambda p: self.sizes[p][1])
        room = self.sizes[shortest][1] - spent
        if room < round(kernel_length * fs):
            raise ValueError(
                f"{shortest}: {self.sizes[shortest][1] / fs:g} s of strain; expected at least psd_length + fduration + kernel_length"
                f" = {spent / fs + kernel_length:g} s"
            )
        self.block = min(round(psd_block * fs), room)

    def draw(self, ifo: str, rng: torch.Generator, limit: int = MAX_BLOCKS) -> Blocks:
        """Up to `limit` blocks of one detector: every file tiled from a random start; a random subset if there are more."""
        spent = self.lead + 2 * self.whitener.crop
        starts: list[tuple[Path, int]] = []
        for path, (_, size) in self.sizes.items():
            count, rest = divmod(size - spent, self.block)
            phase = int(torch.randint(rest + 1, (), generator=rng))
            starts += [(path, phase + i * self.block) for i in range(count)]
        if len(starts) > limit:
            starts = [starts[i] for i in sorted(torch.randperm(len(starts), generator=rng)[:limit].tolist())]
        fs, strain, psds = self.whitener.sample_rate, [], []
        for path, first in starts:
            x0 = self.sizes[path][0]
            data = read_background(path, [ifo], start=x0 + first / fs, stop=x0 + (first + spent + self.block) / fs).strain[ifo]
            psd = self.whitener.psd(torch.from_numpy(data[: self.lead]))
            strain.append(self.whitener.whiten(torch.from_numpy(data[self.lead :])[None], psd[None])[0])
            psds.append(psd)
        return Blocks(torch.stack(strain), torch.stack(psds))

    def stream(self, path: Path, ifo: str) -> Blocks:
        """All of one file of one detector, whitened block by block from its start.

        Returns:
            strain: (1, time), the first sample at lead + crop samples of the file; psd: (block, freq), block i whitens
            samples i * block ... (i + 1) * block.
        """
        data = torch.from_numpy(read_background(path, [ifo]).strain[ifo])
        spent, out, psds = self.lead + 2 * self.whitener.crop, [], []
        for first in range(0, len(data) - spent, self.block):
            psd = self.whitener.psd(data[first : first + self.lead])
            part = data[first + self.lead : first + spent + self.block]
            out.append(self.whitener.whiten(part[None], psd[None])[0])
            psds.append(psd)
        return Blocks(torch.cat(out)[None], torch.stack(psds))


def read_signals(path: Path, names: Sequence[str], placement: Placement, rows: Sequence[slice], sample_rate: float) -> Tensor:
    """Signals around their mergers.

    Args:
        path: training or validation waveforms (reference 2.12).
        names: waveforms wanted, as `cross` and `plus`, or detectors.
        placement: what to cut; samples beyond the stored waveform are zero.
        rows: contiguous runs of rows.
        sample_rate: hertz expected.

    Returns:
        (signal, name, placement.size), float32, strain times STRAIN_SCALE.

    Raises:
        ValueError: another sample rate, or a waveform that is not there.
    """
    kind = WaveformPolarizationSet if "cross" in names else WaveformSet
    head = kind.read_metadata(path)
    if head["sample_rate"] != sample_rate:
        raise ValueError(f"{path}: waveforms at {head['sample_rate']} Hz; expected sample_rate {sample_rate:g} Hz, make them again")
    merger = int((head["duration"] - head["right_pad"]) * sample_rate)
    first, last = merger - placement.before, merger + placement.after
    with h5py.File(path) as f:
        missing = [n for n in names if n.lower() not in f["waveforms"]]
        if missing:
            raise ValueError(f"{path}: no waveforms {', '.join(missing)}; the file holds {', '.join(f['waveforms'])}")
        out = torch.zeros(sum(r.stop - r.start for r in rows), len(names), placement.size)
        for j, name in enumerate(names):
            data, i = f["waveforms"][name.lower()], 0
            low, high = max(first, 0), min(last, data.shape[1])
            for run in rows:
                for start in range(run.start, run.stop, _ROWS):
                    part = np.asarray(data[start : min(start + _ROWS, run.stop), low:high], np.float64) * STRAIN_SCALE
                    out[i : i + len(part), j, low - first : high - first] = torch.from_numpy(part.astype(np.float32))
                    i += len(part)
    return out


class SignalFile:
    """Training signals: all of a file that fits MAX_SIGNALS, else runs of 1000 consecutive rows at random starts.

    Raises:
        ValueError: as `read_signals`, or an empty file.
    """

    def __init__(self, path: Path, placement: Placement, sample_rate: float) -> None:
        self.path, self.placement, self.sample_rate = path, placement, sample_rate
        self.count = WaveformPolarizationSet.read_metadata(path)["length"]
        if not self.count:
            raise ValueError(f"{path}: no training signals; raise waveforms.num_training_signals or lower waveforms.snr_threshold")
        self._all: Tensor | None = None

    def draw(self, rng: torch.Generator, limit: int = MAX_SIGNALS, run: int = 1000) -> Tensor:
        """(signal, 2, placement.size), cross and plus, in units of `read_signals`."""
        if self._all is not None:
            return self._all
        if self.count <= limit:
            self._all = read_signals(self.path, ("cross", "plus"), self.placement, [slice(0, self.count)], self.sample_rate)
            return self._all
        starts = torch.randint(self.count - run + 1, (limit // run,), generator=rng).sort().values.tolist()
        return read_signals(self.path, ("cross", "plus"), self.placement, [slice(s, s + run) for s in starts], self.sample_rate)


@dataclass(frozen=True)
class SnrCurriculum:
    """Target SNRs p(snr) ~ snr^alpha on [low, max_snr]; `low` falls linearly from `start` to `min_snr` in `decay_steps` steps."""

    min_snr: float
    max_snr: float
    alpha: float = -3.0
    start: float | None = None
    decay_steps: int = 1

    def low(self, step: int) -> float:
        if self.start is None or step >= self.decay_steps:
            return self.min_snr
        return self.start + (self.min_snr - self.start) * step / self.decay_steps

    def sample(self, count: int, step: int, rng: torch.Generator) -> Tensor:
        """`count` network SNRs at optimiser step `step`, shape (count,)."""
        u = torch.rand(count, generator=rng, dtype=torch.float64)
        low, high = self.low(step), self.max_snr
        if self.alpha == -1:
            return (low * (high / low) ** u).float()
        power = self.alpha + 1
        return ((low**power + u * (high**power - low**power)) ** (1 / power)).float()
