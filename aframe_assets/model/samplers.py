"""Where training batches come from: whitened background in memory, signals in memory, SNRs, and a seed for every step.

Background is whitened as inference does it: a block of up to `psd_block` seconds with the PSD of the `psd_length`
seconds before it, each detector by itself. A kernel cut from a block equals the kernel whitened alone with that PSD
(the filter is a FIR of fduration), so this is reference 2.7 at a small part of its cost: one PSD serves a block, not a
kernel. Sign and time reversal commute with the symmetric filter and are done on whitened kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aframe_assets.model.ahead import READERS, read_ahead
from aframe_assets.store.ranges import Source, open_hdf5
from aframe_assets.store.slabs import Slabs
from aframe_assets.strain.background_file import StrainFile
from aframe_assets.strain.stretch import StrainError
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
RUN = 8
"""Blocks that are read as one, where not all are: 4 MB and a few requests instead of many, at 32 s and 2048 Hz."""
_ROWS = 128
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
    """Background files of several detectors, read in contiguous runs of blocks and whitened on the whitener's device.

    Args:
        sources: files of one role (`aframe_assets.strain.background_file`), local or in the store.
        ifos: detectors, in the order of the network's channels.
        whitener: conditioning of the experiment, on the device where blocks are wanted.
        psd_block: seconds whitened with one PSD; shortened to what the shortest file allows.

    Attributes:
        files: what is in each, by source.
        block: samples of a block.
        closed: ends reading when it is set.

    Raises:
        StrainError: a file that cannot be read, or that has another sample rate.
        ValueError: no file, or one shorter than psd_length + fduration + `kernel_length` seconds.
    """

    def __init__(self, sources: Sequence[Source], ifos: Sequence[str], whitener: Whitener, psd_block: float, kernel_length: float) -> None:
        self.ifos, self.whitener, self.closed = list(ifos), whitener, Event()
        fs = whitener.sample_rate
        self.lead = round(whitener.psd_length * fs)
        if not sources:
            raise ValueError("no background files; training needs at least one chunk of role 'train' and one of role 'validation'")
        opened = read_ahead([partial(StrainFile.open, source, self.ifos) for source in sources])
        self.files: dict[Source, StrainFile] = {f.source: f for f in opened}
        for f in self.files.values():
            if abs(f.sample_rate - fs) > 1e-6 * fs:
                raise StrainError(f"{f.source}: strain at {f.sample_rate:g} Hz; expected sample_rate {fs:g} Hz, make it again")
        self.spent = self.lead + 2 * whitener.crop
        shortest = min(self.files.values(), key=lambda f: f.size)
        room = shortest.size - self.spent
        if room < round(kernel_length * fs):
            raise ValueError(
                f"{shortest.source}: {shortest.size / fs:g} s of strain; expected at least psd_length + fduration + kernel_length"
                f" = {self.spent / fs + kernel_length:g} s"
            )
        self.block = min(round(psd_block * fs), room)

    @property
    def num_blocks(self) -> int:
        """Blocks of one detector in all files."""
        return sum((f.size - self.spent) // self.block for f in self.files.values())

    def draw(self, ifo: str, rng: torch.Generator, limit: int = MAX_BLOCKS) -> Blocks:
        """Up to `limit` blocks of one detector: every file tiled from a random start; where there are more, random runs of `RUN`."""
        runs: list[tuple[StrainFile, int, int]] = []
        for f in self.files.values():
            count, rest = divmod(f.size - self.spent, self.block)
            phase = int(torch.randint(rest + 1, (), generator=rng))
            runs += [(f, phase + i * self.block, min(RUN, count - i)) for i in range(0, count, RUN)]
        if sum(n for *_, n in runs) > limit:
            chosen, left = [], limit
            for i in torch.randperm(len(runs), generator=rng).tolist():
                f, first, count = runs[i]
                chosen.append((i, f, first, min(count, left)))
                left -= chosen[-1][-1]
                if not left:
                    break
            runs = [run for _, *run in sorted(chosen, key=lambda c: c[0])]
        return self._load(ifo, runs)

    def stream(self, source: Source, ifo: str) -> Blocks:
        """All of one file of one detector, whitened block by block from its start.

        Returns:
            strain: (1, time), the first sample at lead + crop samples of the file; psd: (block, freq), block i whitens
            samples i * block ... (i + 1) * block.
        """
        f = self.files[source]
        size = f.size - self.spent
        count, rest = divmod(size, self.block)
        runs = [(f, i * self.block, min(RUN, count - i)) for i in range(0, count, RUN)]
        made = self._load(ifo, runs)
        strain, psd = made.strain.reshape(1, -1), made.psd
        if rest:
            data = torch.from_numpy(f.read(ifo, count * self.block, f.size)).to(self.device)
            last = self.whitener.psd(data[: self.lead])[None]
            strain = torch.cat([strain, self.whitener.whiten(data[None, self.lead :], last)], 1)
            psd = torch.cat([psd, last])
        return Blocks(strain, psd)

    def nbytes(self, limit: int = MAX_BLOCKS) -> int:
        """Memory of what `draw` gives, of one detector."""
        return min(limit, self.num_blocks) * (4 * self.block + 8 * self._bins)

    @property
    def reading_nbytes(self) -> int:
        """Memory that is needed besides while blocks are read and whitened: requests, their bytes, strain, and its transforms."""
        return (3 * READERS + 8) * 8 * (self.spent + RUN * self.block)

    @property
    def _bins(self) -> int:
        return int(self.whitener.fftlength * self.whitener.sample_rate) // 2 + 1

    @property
    def device(self) -> torch.device:
        return self.whitener.window.device

    def _load(self, ifo: str, runs: Sequence[tuple[StrainFile, int, int]]) -> Blocks:
        """Blocks of `runs` = (file, first sample, number of blocks), in their order."""
        total = sum(n for *_, n in runs)
        strain = torch.empty(total, self.block, device=self.device)
        psds = torch.empty(total, self._bins, dtype=torch.float64, device=self.device)
        reads = [partial(f.read, ifo, first, first + self.spent + n * self.block) for f, first, n in runs]
        at = 0
        for data in read_ahead(reads, self.closed):
            x = torch.from_numpy(data)
            if self.device.type == "cuda":
                x = x.pin_memory().to(self.device, non_blocking=True)
            # each block with the lead before it; they overlap by `spent`
            parts = x.unfold(0, self.spent + self.block, self.block)
            here = slice(at, at + len(parts))
            psds[here] = self.whitener.psd(parts[:, : self.lead])
            strain[here] = self.whitener.whiten(parts[:, None, self.lead :], psds[here][:, None])[:, 0]
            at += len(parts)
        return Blocks(strain, psds)


def read_signals(
    source: Source,
    names: Sequence[str],
    placement: Placement,
    rows: Sequence[slice],
    sample_rate: float,
    closed: Event | None = None,
) -> Tensor:
    """Signals around their mergers.

    Args:
        source: training or validation waveforms (reference 2.12), local or in the store.
        names: waveforms wanted, as `cross` and `plus`, or detectors.
        placement: what to cut; samples beyond the stored waveform are zero.
        rows: contiguous runs of rows.
        sample_rate: hertz expected.
        closed: ends reading, with `Closed`, when it is set.

    Returns:
        (signal, name, placement.size), float32, strain times STRAIN_SCALE.

    Raises:
        ValueError: another sample rate, or a waveform that is not there.
    """
    kind = WaveformPolarizationSet if "cross" in names else WaveformSet
    head = kind.read_metadata(source)
    if head["sample_rate"] != sample_rate:
        raise ValueError(f"{source}: waveforms at {head['sample_rate']} Hz; expected sample_rate {sample_rate:g} Hz, make them again")
    merger = int((head["duration"] - head["right_pad"]) * sample_rate)
    first, last = merger - placement.before, merger + placement.after
    with open_hdf5(source) as f:
        missing = [n for n in names if n.lower() not in f["waveforms"]]
        if missing:
            raise ValueError(f"{source}: no waveforms {', '.join(missing)}; the file holds {', '.join(f['waveforms'])}")
        waves = [Slabs.of(source, f["waveforms"][name.lower()]) for name in names]
    places, at = [], 0
    for run in rows:
        parts = range(run.start, run.stop, _ROWS)
        places += [(at + start - run.start, start, min(start + _ROWS, run.stop)) for start in parts]
        at += run.stop - run.start
    out = torch.zeros(at, len(names), placement.size)
    low, high = max(first, 0), min(last, waves[0].shape[1])
    reads = [(j, *place) for j in range(len(names)) for place in places]
    data = read_ahead([partial(waves[j].read, start, stop) for j, _, start, stop in reads], closed)
    for (j, i, *_), part in zip(reads, data, strict=True):
        scaled = part[:, low:high].astype(np.float64) * STRAIN_SCALE
        out[i : i + len(part), j, low - first : high - first] = torch.from_numpy(scaled.astype(np.float32))
    return out


class SignalFile:
    """Training signals: all of a file that fits MAX_SIGNALS, else runs of 1000 consecutive rows at random starts.

    Attributes:
        count: signals of the file.
        closed: ends reading when it is set.

    Raises:
        ValueError: as `read_signals`, or an empty file.
    """

    def __init__(self, source: Source, placement: Placement, sample_rate: float, device: torch.device | str = "cpu") -> None:
        self.source, self.placement, self.sample_rate, self.device = source, placement, sample_rate, device
        self.count = WaveformPolarizationSet.read_metadata(source)["length"]
        if not self.count:
            raise ValueError(f"{source}: no training signals; raise waveforms.num_training_signals or lower waveforms.snr_threshold")
        self.closed = Event()
        self._all: Tensor | None = None

    def draw(self, rng: torch.Generator, limit: int = MAX_SIGNALS, run: int = 1000) -> Tensor:
        """(signal, 2, placement.size), cross and plus, in units of `read_signals`."""
        if self._all is not None:
            return self._all
        if self.count <= limit:
            self._all = self._read([slice(0, self.count)])
            return self._all
        starts = torch.randint(self.count - run + 1, (limit // run,), generator=rng).sort().values.tolist()
        return self._read([slice(s, s + run) for s in starts])

    @property
    def changes(self) -> bool:
        """Whether one draw differs from the next."""
        return self.count > MAX_SIGNALS

    @property
    def nbytes(self) -> int:
        """Memory of what `draw` gives."""
        return min(MAX_SIGNALS, self.count) * 2 * 4 * self.placement.size

    def _read(self, rows: Sequence[slice]) -> Tensor:
        return read_signals(self.source, ("cross", "plus"), self.placement, rows, self.sample_rate, self.closed).to(self.device)


@dataclass(frozen=True)
class SnrCurriculum:
    """Target SNRs p(snr) ~ snr^alpha on [low, max_snr]; `low` falls linearly from `start` to `min_snr` in `decay_steps` steps."""

    min_snr: float
    max_snr: float
    alpha: float = -3.0
    start: float | None = None
    decay_steps: int = 1

    def low(self, step: int) -> float:
        """The smallest target SNR at optimiser step `step`."""
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
