"""What is done to a batch of whitened background (reference 2.7): flips, signals, mutes, swaps, glitches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aframe_assets.model.samplers import STRAIN_SCALE, Placement
from aframe_assets.waveforms.projection import respond

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aframe_assets.config import Training
    from aframe_assets.strain.conditioning import Whitener
    from aframe_assets.waveforms.detectors import Detector


def flip(x: Tensor, rng: torch.Generator) -> Tensor:
    """Invert the sign and reverse the time of each kernel and channel, each with probability one half; shape kept."""
    sign = (torch.rand(x.shape[:2], generator=rng) < 0.5).to(x.device)
    reverse = (torch.rand(x.shape[:2], generator=rng) < 0.5).to(x.device)
    x = torch.where(reverse[..., None], x.flip(-1), x)
    return torch.where(sign[..., None], -x, x)


def crop_kernels(x: Tensor, starts: Tensor, size: int) -> Tensor:
    """`size` samples of each row from its own start. x: (batch, ..., time), starts: (batch,) or (batch, ifo)."""
    if starts.ndim == 1:
        starts = starts[:, None].expand(-1, x.shape[1])
    windows = x.unfold(-1, size, 1)
    i, j = torch.meshgrid(torch.arange(x.shape[0]), torch.arange(x.shape[1]), indexing="ij")
    return windows[i, j, starts]


def swap_channels(x: Tensor, count: int, rng: torch.Generator, channel: int | None = None) -> tuple[Tensor, Tensor]:
    """Exchange one channel between pairs of signals, so that the detectors of each disagree.

    Args:
        x: (signal, ifo, time).
        count: signals to change; made even, at least 2 when 1 is asked for, at most all.
        rng: draws a channel for each pair, unless `channel` is given.

    Returns:
        x with signals i and i + count/2 exchanged in that channel, and the changed indices 0 ... count-1.
    """
    if count <= 0 or len(x) < 2:
        return x, torch.empty(0, dtype=torch.long)
    count = min(max(2, count // 2 * 2), len(x) // 2 * 2)
    half = count // 2
    drawn = torch.randint(x.shape[1], (half,), generator=rng)
    channels = torch.full((half,), channel) if channel is not None else drawn
    first = torch.arange(half)
    x = x.clone()
    x[first, channels], x[first + half, channels] = x[first + half, channels].clone(), x[first, channels].clone()
    return x, torch.arange(count)


def mute_channels(x: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Zero one random channel of each of `count` signals, drawn without replacement; returns x and their indices."""
    count = min(max(count, 0), len(x))
    index = torch.randperm(len(x), generator=rng)[:count]
    channel = torch.randint(x.shape[1], (count,), generator=rng)
    x = x.clone()
    x[index, channel] = 0
    return x, index


class Augmentation:
    """Adds signals and glitches to whitened background.

    Args:
        training: probabilities of `config.model.training`.
        placement: where mergers lie.
        whitener: the experiment's conditioning.
        detectors: in the order of the channels.
    """

    def __init__(self, training: Training, placement: Placement, whitener: Whitener, detectors: Sequence[Detector]) -> None:
        self.training, self.placement, self.whitener, self.detectors = training, placement, whitener, tuple(detectors)

    def project(self, polarisations: Tensor, rng: torch.Generator) -> Tensor:
        """Responses of the detectors to sources at random places over the Earth.

        The sky is isotropic, so longitudes are drawn as they are and no sidereal time is needed.

        Args:
            polarisations: (signal, 2, time), cross and plus.
            rng: draws dec ~ cosine, psi ~ U(0, pi), longitude ~ U(0, 2 pi).

        Returns:
            (signal, ifo, time).
        """
        n, device = len(polarisations), polarisations.device
        u = torch.rand(3, n, generator=rng, dtype=torch.float64).to(device)
        dec, psi, longitude = torch.asin(2 * u[0] - 1), torch.pi * u[1], 2 * torch.pi * u[2]
        cross, plus = polarisations.unbind(1)
        return respond(cross, plus, longitude, dec, psi, self.detectors, self.whitener.sample_rate)

    def signals(self, polarisations: Tensor, psd: Tensor, snrs: Tensor, rng: torch.Generator) -> Tensor:
        """Whitened kernels of signals with the wanted network SNRs, mergers placed at random between the pads.

        The SNR is that of the stored stretch around the merger: the norm of the whitened signal, which is
        4 int |h|^2 / S df with S as the whitening filter sees it.

        Args:
            polarisations: (signal, 2, placement.size), strain times STRAIN_SCALE.
            psd: (signal, ifo, freq), 1/Hz.
            snrs: (signal,), above 0.

        Returns:
            (signal, ifo, kernel), float32.
        """
        white = self.whitener.whiten(self.project(polarisations, rng), psd * STRAIN_SCALE**2)
        norm = white.double().square().sum((-2, -1)).sqrt()
        white = white * (snrs.to(norm) / norm.clamp_min(1e-12)).float()[:, None, None]
        starts = torch.randint(self.placement.offsets, (len(white),), generator=rng).to(white.device)
        return crop_kernels(white, starts, self.placement.kernel)

    def __call__(
        self,
        background: Tensor,
        psd: Tensor,
        polarisations: Tensor,
        rows: Tensor,
        snrs: Tensor,
        glitches: Tensor | None,
        rng: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """One training batch.

        Args:
            background: (batch, ifo, kernel), whitened.
            psd: (batch, ifo, freq), the PSD each was whitened with.
            polarisations: (signal, 2, placement.size), as in `signals`.
            rows: (batch,), the signal for each element, should it get one.
            snrs: (batch,), target network SNRs.
            glitches: (batch, ifo, kernel), whitened, zero where there is none; or None.
            rng: all random numbers.

        Returns:
            x (batch, ifo, kernel) and labels (batch, 1): 1 where a signal is in all detectors as it should be.
        """
        t = self.training
        x = flip(background, rng)
        mask = torch.rand(len(x), generator=rng) < t.waveform_prob + t.swap_prob + t.mute_prob
        index = torch.nonzero(mask)[:, 0].to(x.device)
        label = torch.zeros(len(x), 1, device=x.device)
        if len(index):
            n = len(index)
            total = t.waveform_prob + t.swap_prob + t.mute_prob
            added = self.signals(polarisations[rows[index]], psd[index], snrs[index], rng)
            # the shares are of the batch, so of the injected ones each is larger by 1 / total
            added, swapped = swap_channels(added, int(n * t.swap_prob / total), rng)
            rest, muted = mute_channels(added[len(swapped) :], int(n * t.mute_prob / total), rng)
            added = torch.cat([added[: len(swapped)], rest])
            x[index] += added
            label[index] = 1
            label[index[swapped]] = 0
            label[index[muted + len(swapped)]] = 0
        return (x if glitches is None else x + glitches), label
