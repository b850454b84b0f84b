"""Training batches: a function of (seed, step), so that a resumed training sees what an undisturbed one would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aframe_assets.model.augmentation import Augmentation, crop_kernels
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


class TrainingBatches:
    """Makes the batch of any step.

    Args:
        config: the experiment.
        background: training background files.
        signals: training waveforms.
        seed: of all random numbers.
        device: where batches are made.

    Raises:
        ValueError: files that do not fit the experiment; see `BackgroundFiles` and `SignalFile`.
    """

    def __init__(self, config: Config, background: Sequence[Path], signals: Path, seed: int, device: torch.device | str = "cpu") -> None:
        t, c = config.model.training, config.conditioning
        self.config, self.training, self.seed, self.device = config, t, seed, torch.device(device)
        self.whitener = Whitener(c, config.sample_rate).to(self.device)
        self.placement = Placement.of(config)
        self.files = BackgroundFiles(
            background, config.ifos, Whitener(c, config.sample_rate), t.psd_block, c.kernel_length + 2 * config.model.architecture.context
        )
        self.signals = SignalFile(signals, self.placement, config.sample_rate)
        self.augment = Augmentation(t, self.placement, self.whitener, get_detectors(config.ifos, config.detectors))
        self.snrs = SnrCurriculum(t.min_snr, t.max_snr, t.snr_alpha, t.snr_start, t.snr_decay_steps)
        self._refilled: int | None = None

    def _refill(self, index: int) -> None:
        if self._refilled == index:
            return
        rng = generator_of(self.seed, _REFILL, index)
        blocks = [self.files.draw(ifo, rng) for ifo in self.config.ifos]
        self._blocks = [Blocks(b.strain.to(self.device), b.psd.to(self.device)) for b in blocks]
        self._signals = self.signals.draw(rng).to(self.device)
        self._glitches = [self._glitch_bank(b, rng) for b in self._blocks] if self.training.glitch_prob else None
        self._refilled = index

    def _glitch_bank(self, blocks: Blocks, rng: torch.Generator) -> Tensor:
        """(NUM_GLITCHES, 2 * kernel), whitened, norm 1, centred: a random crop of length kernel cuts each anywhere."""
        kernel, crop, fs = self.placement.kernel, self.placement.crop, self.config.sample_rate
        numpy_rng = np.random.default_rng(int(torch.randint(2**62, (), generator=rng)))
        shapes = torch.from_numpy(glitch_bank(numpy_rng, NUM_GLITCHES, fs, 2 * (kernel + crop) / fs)).to(self.device)
        index = torch.randint(len(blocks.psd), (NUM_GLITCHES,), generator=rng).to(self.device)
        white = self.whitener.whiten(shapes[:, None] / STRAIN_SCALE, blocks.psd[index][:, None])[:, 0]
        return white / white.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-12)

    def _glitch(self, count: int, rng: torch.Generator) -> Tensor | None:
        if self._glitches is None:
            return None
        t, kernel = self.training, self.placement.kernel
        out = torch.zeros(count, len(self._glitches), kernel, device=self.device)
        for channel, bank in enumerate(self._glitches):
            hit = torch.nonzero(torch.rand(count, generator=rng) < t.glitch_prob)[:, 0]
            which = torch.randint(len(bank), (len(hit),), generator=rng)
            starts = torch.randint(bank.shape[-1] - kernel + 1, (len(hit),), generator=rng)
            snr = GLITCH_SNR.sample(len(hit), 0, rng) * torch.sign(torch.rand(len(hit), generator=rng) - 0.5)
            cut = crop_kernels(bank[which][:, None], starts.to(self.device), kernel)[:, 0]
            out[hit, channel] = cut * snr.to(self.device)[:, None]
        return out

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of optimiser step `step`, counted from the start of training.

        Returns:
            x (batch, ifo, kernel), float32, whitened; labels (batch, 1), float32.
        """
        self._refill(step // REFILL_STEPS)
        rng, count, kernel = generator_of(self.seed, _STEP, step), self.training.batch_size, self.placement.kernel
        background, psds = [], []
        # each detector at times of its own: never really simultaneous noise (reference 2.7, coincident=False)
        for blocks in self._blocks:
            which = torch.randint(len(blocks.strain), (count,), generator=rng).to(self.device)
            starts = torch.randint(blocks.strain.shape[-1] - kernel + 1, (count,), generator=rng).to(self.device)
            background.append(blocks.strain.unfold(-1, kernel, 1)[which, starts])
            psds.append(blocks.psd[which])
        rows = torch.randint(len(self._signals), (count,), generator=rng).to(self.device)
        snrs = self.snrs.sample(count, step, rng).to(self.device)
        return self.augment(torch.stack(background, 1), torch.stack(psds, 1), self._signals, rows, snrs, self._glitch(count, rng), rng)
