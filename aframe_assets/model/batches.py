"""Training batches: a function of (seed, step), so that a resumed training sees what an undisturbed one would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aframe_assets.model.ahead import Ahead
from aframe_assets.model.augmentation import Augmentation, crop_kernels
from aframe_assets.model.generated import GeneratedSignals
from aframe_assets.model.ranks import ALONE, Rank
from aframe_assets.model.samplers import (
    REFILL_STEPS,
    STRAIN_SCALE,
    BackgroundFiles,
    Blocks,
    Placement,
    SignalFile,
    SnrCurriculum,
    generator_of,
)
from aframe_assets.store.ranges import Source
from aframe_assets.strain.conditioning import Whitener
from aframe_assets.strain.glitches import glitch_bank
from aframe_assets.waveforms.detectors import get_detectors

if TYPE_CHECKING:
    from aframe_assets.config import Config

NUM_GLITCHES = 512
"""Different glitches of each detector in memory; each is used at random times, signs and SNRs."""

GLITCH_SNR = SnrCurriculum(5.0, 100.0)
"""SNR of added glitches, falling as SNR^-3."""

_REFILL, _STEP = 1, 2


@dataclass(frozen=True)
class Pool:
    """What batches are made of for `REFILL_STEPS` steps, on the training device.

    Attributes:
        blocks: whitened background of each detector.
        signals: (signal, 2, placement.size), as `SignalFile.draw`.
        glitches: of each detector, as `TrainingBatches._glitch_bank`; or None.
    """

    blocks: list[Blocks]
    signals: Tensor
    glitches: list[Tensor] | None


class TrainingBatches:
    """Makes the batch of any step.

    Args:
        config: the experiment.
        background: training background files, local or in the store.
        signals: training waveforms, the same; None where they are made here.
        seed: of all random numbers.
        device: where batches are made.
        rank: whose rows of batches are made.

    Raises:
        ValueError: files that do not fit the experiment; see `BackgroundFiles` and `SignalFile`.
    """

    def __init__(
        self,
        config: Config,
        background: Sequence[Source],
        signals: Source | None,
        seed: int,
        device: torch.device | str = "cpu",
        rank: Rank = ALONE,
    ) -> None:
        t, c = config.model.training, config.conditioning
        self.config, self.training, self.seed, self.device, self.rank = config, t, seed, torch.device(device), rank
        self.whitener = Whitener(c, config.sample_rate).to(self.device)
        self.placement = Placement.of(config)
        self.files = BackgroundFiles(
            background, config.ifos, self.whitener, t.psd_block, c.kernel_length + 2 * config.model.architecture.context
        )
        if t.signals == "generated":
            self.signals: GeneratedSignals | SignalFile = GeneratedSignals(config, self.placement, self.device)
        elif signals is None:
            raise ValueError("model.training.signals is 'stored': expected a file of training waveforms")
        else:
            self.signals = SignalFile(signals, self.placement, config.sample_rate, self.device)
        self.augment = Augmentation(t, self.placement, self.whitener, get_detectors(config.ifos, config.detectors))
        self.snrs = SnrCurriculum(t.min_snr, t.max_snr, t.snr_alpha, t.snr_start, t.snr_decay_steps)
        self._pools = Ahead(self._load, (t.max_epochs * t.batches_per_epoch - 1) // REFILL_STEPS)
        self._pool: Pool | None = None
        self._index = -1

    @property
    def nbytes(self) -> int:
        """Most memory that pools take, with the next one and what is needed to read it; of the device, where that is no CPU."""
        channels, kernel = len(self.config.ifos), self.placement.kernel
        signals, glitches = self.signals.nbytes, NUM_GLITCHES * channels * 2 * kernel * 4 * bool(self.training.glitch_prob)
        changing = channels * self.files.nbytes() + glitches + signals * self.signals.changes
        return (1 + min(1, self._pools.last)) * changing + signals * (not self.signals.changes) + self.files.reading_nbytes

    def _load(self, index: int) -> Pool:
        rng = generator_of(self.seed, _REFILL, index)
        blocks = [self.files.draw(ifo, rng) for ifo in self.config.ifos]
        return Pool(blocks, self.signals.draw(rng), [self._glitch_bank(b, rng) for b in blocks] if self.training.glitch_prob else None)

    def _pool_of(self, index: int) -> Pool:
        if self._pool is None or self._index != index:
            self._pool = None
            self._pool, self._index = self._pools.get(index), index
        return self._pool

    def close(self) -> None:
        """Ends its threads, without waiting for the next pool: a training that has to make room has little time."""
        self.files.closed.set()
        self.signals.closed.set()
        self._pools.close()

    def _glitch_bank(self, blocks: Blocks, rng: torch.Generator) -> Tensor:
        """(NUM_GLITCHES, 2 * kernel), whitened, norm 1, centred: a random crop of length kernel cuts each anywhere."""
        kernel, crop, fs = self.placement.kernel, self.placement.crop, self.config.sample_rate
        numpy_rng = np.random.default_rng(int(torch.randint(2**62, (), generator=rng)))
        shapes = torch.from_numpy(glitch_bank(numpy_rng, NUM_GLITCHES, fs, 2 * (kernel + crop) / fs)).to(self.device)
        index = torch.randint(len(blocks.psd), (NUM_GLITCHES,), generator=rng).to(self.device)
        white = self.whitener.whiten(shapes[:, None] / STRAIN_SCALE, blocks.psd[index][:, None])[:, 0]
        return white / white.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-12)

    def _glitch(self, banks: list[Tensor] | None, count: int, rows: slice, rng: torch.Generator) -> Tensor | None:
        if banks is None:
            return None
        t, kernel = self.training, self.placement.kernel
        out = torch.zeros(rows.stop - rows.start, len(banks), kernel, device=self.device)
        for channel, bank in enumerate(banks):
            hit = torch.nonzero(torch.rand(count, generator=rng) < t.glitch_prob)[:, 0]
            which = torch.randint(len(bank), (len(hit),), generator=rng)
            starts = torch.randint(bank.shape[-1] - kernel + 1, (len(hit),), generator=rng)
            snr = GLITCH_SNR.sample(len(hit), 0, rng) * torch.sign(torch.rand(len(hit), generator=rng) - 0.5)
            own = (hit >= rows.start) & (hit < rows.stop)
            cut = crop_kernels(bank[which[own]][:, None], starts[own].to(self.device), kernel)[:, 0]
            out[hit[own] - rows.start, channel] = cut * snr[own].to(self.device)[:, None]
        return out

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """This rank's rows of the batch of optimiser step `step`, counted from the start of training.

        Random numbers are drawn for the whole batch, so that it is the same for any number of ranks.

        Returns:
            x (row, ifo, kernel), float32, whitened; labels (row, 1), float32.
        """
        pool = self._pool_of(step // REFILL_STEPS)
        rng, count, kernel = generator_of(self.seed, _STEP, step), self.training.batch_size, self.placement.kernel
        rows, background, blocks_of = self.rank.rows(count), [], []
        # each detector at times of its own: never really simultaneous noise (reference 2.7, coincident=False)
        for blocks in pool.blocks:
            which = torch.randint(len(blocks.strain), (count,), generator=rng)
            starts = torch.randint(blocks.strain.shape[-1] - kernel + 1, (count,), generator=rng)
            background.append(blocks.strain.unfold(-1, kernel, 1)[which[rows].to(self.device), starts[rows].to(self.device)])
            blocks_of.append(which)
        waveforms = torch.randint(len(pool.signals), (count,), generator=rng)
        snrs = self.snrs.sample(count, step, rng)
        glitches = self._glitch(pool.glitches, count, rows, rng)
        drawn = self.augment.draw(count, rng).part(rows)
        psds = [b.psd[which[drawn.made].to(self.device)] for b, which in zip(pool.blocks, blocks_of, strict=True)]
        polarisations = pool.signals[waveforms[drawn.made].to(self.device)]
        return self.augment(torch.stack(background, 1), torch.stack(psds, 1), polarisations, snrs[drawn.made], glitches, drawn)
