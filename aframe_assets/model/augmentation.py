"""What is done to a batch of whitened background (reference 2.7): flips, signals, mutes, swaps, glitches."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Drawn:
    """All that is random about the augmentation of a batch, or of some of its elements; on the CPU.

    Attributes:
        sign, reverse: (element, ifo), bool: kernels that are inverted, reversed in time.
        label: (element, 1), float32: 1 where a signal is in all detectors as it should be.
        made: (signal,), the element of the whole batch that each signal is made for: with its PSD, its waveform and its SNR.
        sky: (3, signal), float64, uniform in [0, 1): place and polarisation, see `Augmentation.project`.
        start: (signal,), sample of the whitened signal at which its kernel begins.
        target: (target,), the elements that something is added to.
        source: (target, ifo), the signal that each channel is taken from: another element's where channels are swapped.
        heard: (target, ifo), bool: False where a channel is muted.
    """

    sign: Tensor
    reverse: Tensor
    label: Tensor
    made: Tensor
    sky: Tensor
    start: Tensor
    target: Tensor
    source: Tensor
    heard: Tensor

    def part(self, rows: slice) -> Drawn:
        """Those of elements `rows` of the whole batch, and the signals that these need."""
        own = (self.target >= rows.start) & (self.target < rows.stop)
        needed, source = self.source[own].unique(return_inverse=True)
        return Drawn(
            self.sign[rows],
            self.reverse[rows],
            self.label[rows],
            self.made[needed],
            self.sky[:, needed],
            self.start[needed],
            self.target[own] - rows.start,
            source,
            self.heard[own],
        )


def flip(x: Tensor, sign: Tensor, reverse: Tensor) -> Tensor:
    """Invert the kernels and channels of `sign`, reverse those of `reverse` in time. x: (batch, ifo, time); both: (batch, ifo), bool."""
    x = torch.where(reverse.to(x.device)[..., None], x.flip(-1), x)
    return torch.where(sign.to(x.device)[..., None], -x, x)


def crop_kernels(x: Tensor, starts: Tensor, size: int) -> Tensor:
    """`size` samples of each row from its own start. x: (batch, ..., time), starts: (batch,) or (batch, ifo)."""
    if starts.ndim == 1:
        starts = starts[:, None].expand(-1, x.shape[1])
    windows = x.unfold(-1, size, 1)
    i, j = torch.meshgrid(torch.arange(x.shape[0]), torch.arange(x.shape[1]), indexing="ij")
    return windows[i, j, starts]


def swap_channels(signals: int, num_ifos: int, count: int, rng: torch.Generator, channel: int | None = None) -> tuple[Tensor, int]:
    """Exchange one channel between pairs of signals, so that the detectors of each disagree.

    Args:
        signals: number of signals.
        count: signals to change; made even, at least 2 when 1 is asked for, at most all.
        rng: draws a channel for each pair, unless `channel` is given.

    Returns:
        (signal, ifo): the signal that each channel is now taken from, i and i + half exchanged in that channel; the first
        so many signals are changed.
    """
    source = torch.arange(signals)[:, None].repeat(1, num_ifos)
    if count <= 0 or signals < 2:
        return source, 0
    count = min(max(2, count // 2 * 2), signals // 2 * 2)
    half = count // 2
    drawn = torch.randint(num_ifos, (half,), generator=rng)
    channels = torch.full((half,), channel) if channel is not None else drawn
    first = torch.arange(half)
    source[first, channels], source[first + half, channels] = first + half, first
    return source, count


def mute_channels(signals: int, num_ifos: int, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """One random channel of each of `count` signals, drawn without replacement.

    Returns:
        (signal, ifo), bool: False in the muted channels; and the signals that have one.
    """
    count = min(max(count, 0), signals)
    index = torch.randperm(signals, generator=rng)[:count]
    heard = torch.ones(signals, num_ifos, dtype=torch.bool)
    heard[index, torch.randint(num_ifos, (count,), generator=rng)] = False
    return heard, index


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

    def places(self, signals: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random `sky` and `start` of so many signals, as in `signals`."""
        sky = torch.rand(3, signals, generator=rng, dtype=torch.float64)
        return sky, torch.randint(self.placement.offsets, (signals,), generator=rng)

    def draw(self, count: int, rng: torch.Generator) -> Drawn:
        """What is random about a batch of `count` elements: who is flipped, who gets what signal from where, who is swapped or muted."""
        t, ifos = self.training, len(self.detectors)
        sign, reverse = (torch.rand(count, ifos, generator=rng) < 0.5 for _ in range(2))
        total = t.waveform_prob + t.swap_prob + t.mute_prob
        target = torch.nonzero(torch.rand(count, generator=rng) < total)[:, 0]
        n, label = len(target), torch.zeros(count, 1)
        sky, start = torch.empty(3, 0, dtype=torch.float64), torch.empty(0, dtype=torch.long)
        source, heard = (torch.empty(0, ifos, dtype=kind) for kind in (torch.long, torch.bool))
        if n:
            sky, start = self.places(n, rng)
            # the shares are of the batch, so of the injected ones each is larger by 1 / total
            source, swapped = swap_channels(n, ifos, int(n * t.swap_prob / total), rng)
            rest, muted = mute_channels(n - swapped, ifos, int(n * t.mute_prob / total), rng)
            heard = torch.cat([torch.ones(swapped, ifos, dtype=torch.bool), rest])
            label[target] = 1
            label[target[:swapped]] = 0
            label[target[muted + swapped]] = 0
        return Drawn(sign, reverse, label, target, sky, start, target, source, heard)

    def project(self, polarisations: Tensor, sky: Tensor) -> Tensor:
        """Responses of the detectors to sources at random places over the Earth.

        The sky is isotropic, so longitudes are drawn as they are and no sidereal time is needed.

        Args:
            polarisations: (signal, 2, time), cross and plus.
            sky: (3, signal), uniform in [0, 1): gives dec ~ cosine, psi ~ U(0, pi), longitude ~ U(0, 2 pi).

        Returns:
            (signal, ifo, time).
        """
        u = sky.to(polarisations.device)
        dec, psi, longitude = torch.asin(2 * u[0] - 1), torch.pi * u[1], 2 * torch.pi * u[2]
        cross, plus = polarisations.unbind(1)
        return respond(cross, plus, longitude, dec, psi, self.detectors, self.whitener.sample_rate)

    def signals(self, polarisations: Tensor, psd: Tensor, snrs: Tensor, sky: Tensor, start: Tensor) -> Tensor:
        """Whitened kernels of signals with the wanted network SNRs.

        The SNR is that of the stored stretch around the merger: the norm of the whitened signal, which is
        4 int |h|^2 / S df with S as the whitening filter sees it.

        Args:
            polarisations: (signal, 2, placement.size), strain times STRAIN_SCALE.
            psd: (signal, ifo, freq), 1/Hz.
            snrs: (signal,), above 0.
            sky: as in `project`.
            start: (signal,), the kernel's first sample, 0 ... placement.offsets - 1: puts mergers anywhere between the pads.

        Returns:
            (signal, ifo, kernel), float32.
        """
        white = self.whitener.whiten(self.project(polarisations, sky), psd * STRAIN_SCALE**2)
        norm = white.double().square().sum((-2, -1)).sqrt()
        white = white * (snrs.to(norm) / norm.clamp_min(1e-12)).float()[:, None, None]
        return crop_kernels(white, start.to(white.device), self.placement.kernel)

    def __call__(
        self, background: Tensor, psd: Tensor, polarisations: Tensor, snrs: Tensor, glitches: Tensor | None, drawn: Drawn
    ) -> tuple[Tensor, Tensor]:
        """A training batch, or the part of one that `drawn` is.

        Args:
            background: (element, ifo, kernel), whitened.
            psd: (signal, ifo, freq), the PSD that the elements `drawn.made` were whitened with.
            polarisations: (signal, 2, placement.size), of these, as in `signals`.
            snrs: (signal,), target network SNRs of these.
            glitches: (element, ifo, kernel), whitened, zero where there is none; or None.
            drawn: of `draw`.

        Returns:
            x (element, ifo, kernel) and labels (element, 1).
        """
        x = flip(background, drawn.sign, drawn.reverse)
        if len(drawn.target):
            made = self.signals(polarisations, psd, snrs, drawn.sky, drawn.start)
            added = made[drawn.source.to(x.device), torch.arange(x.shape[1], device=x.device)]
            x[drawn.target.to(x.device)] += added * drawn.heard.to(x.device)[..., None]
        return (x if glitches is None else x + glitches), drawn.label.to(x.device)
