"""Validation data: slides of the validation background, every window of them, and signals in them (reference 2.8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aframe_assets.model.metric import efficiency, max_pool, partial_auroc
from aframe_assets.model.samplers import STRAIN_SCALE, BackgroundFiles, Placement, read_signals
from aframe_assets.strain.conditioning import Whitener
from aframe_assets.waveforms.ledger import WaveformSet

if TYPE_CHECKING:
    from aframe_assets.config import Config


@dataclass(frozen=True)
class Slide:
    """One shift of one file.

    Attributes:
        file: index of the file.
        shifts: samples that each detector is read later.
        windows: number of windows, `stride` samples apart, from the start of the whitened data.
    """

    file: int
    shifts: tuple[int, ...]
    windows: int


def slide_shifts(index: int, num_ifos: int) -> tuple[float, ...]:
    """Seconds that each detector is read later in slide `index` = 0, 1, ...: +1, -1, +2, -2, ... of the others against
    the first (reference 2.8); every detector gets a multiple of its own, so that no two are ever simultaneous.
    """
    size = index // 2 + 1
    shifts = [size * i if index % 2 == 0 else size * (num_ifos - 1 - i) for i in range(num_ifos)]
    return tuple(float(s) for s in shifts)


class ValidationSet:
    """Whitened validation background and signals in memory.

    Memory: 8 kB per second of validation data and detector at 2048 Hz, 61 kB per signal of two detectors.

    Args:
        config: the experiment.
        background: validation background files.
        signals: validation waveforms.
        device: where windows are made.

    Raises:
        ValueError: no signals, files that do not fit the experiment, no window at all.
    """

    def __init__(self, config: Config, background: Sequence[Path], signals: Path, device: torch.device | str = "cpu") -> None:
        t, c, fs = config.model.training, config.conditioning, config.sample_rate
        self.training, self.ifos, self.device = t, config.ifos, torch.device(device)
        self.placement, self.stride = Placement.of(config), round(t.valid_stride * fs)
        self.whitener = Whitener(c, fs).to(self.device)
        files = BackgroundFiles(
            background, config.ifos, Whitener(c, fs), t.psd_block, c.kernel_length + 2 * config.model.architecture.context
        )
        streams = [[files.stream(path, ifo) for ifo in config.ifos] for path in files.sizes]
        self.block = files.block
        self._strain = [torch.cat([b.strain for b in s]).to(self.device) for s in streams]
        self._psd = [torch.stack([b.psd for b in s]).to(self.device) for s in streams]
        self.slides = self._plan(fs)
        self.num_windows = sum(s.windows for s in self.slides)
        if not self.num_windows:
            raise ValueError(
                "validation background gives no window; expected chunks longer than psd_length + fduration + kernel_length + 1 s"
            )
        head = WaveformSet.read_metadata(signals)
        if not head["length"]:
            raise ValueError(f"{signals}: no validation signals; raise waveforms.num_validation_signals or lower waveforms.snr_threshold")
        self.signals = read_signals(signals, config.ifos, self.placement, [slice(0, head["length"])], fs)

    def _plan(self, sample_rate: float) -> list[Slide]:
        kernel, slides, live = self.placement.kernel, [], 0.0
        for index in range(10_000):
            shifts = tuple(round(s * sample_rate) for s in slide_shifts(index, len(self.ifos)))
            gained = 0.0
            for f, strain in enumerate(self._strain):
                left = self.training.valid_livetime - live
                room = (strain.shape[-1] - max(shifts) - kernel) // self.stride + 1
                count = min(room, round(left / self.training.valid_stride))
                if count > 0:
                    slides.append(Slide(f, shifts, count))
                    gained += count * self.training.valid_stride
                    live += count * self.training.valid_stride
            if not gained:
                break
        return slides

    def _windows(self, slide: Slide, index: Tensor) -> tuple[Tensor, Tensor]:
        """Windows `index` of a slide (window, ifo, kernel), and the PSD at the middle of each (window, ifo, freq)."""
        strain, psd, kernels, psds = self._strain[slide.file], self._psd[slide.file], [], []
        for channel, shift in enumerate(slide.shifts):
            start = index * self.stride + shift
            kernels.append(strain[channel].unfold(-1, self.placement.kernel, 1)[start])
            psds.append(psd[channel, (start + self.placement.kernel // 2) // self.block])
        return torch.stack(kernels, 1), torch.stack(psds, 1)

    def stretch(self, slide: Slide) -> Tensor:
        """Whitened strain of a slide from the start of its first window to the end of its last, (ifo, time)."""
        size = (slide.windows - 1) * self.stride + self.placement.kernel
        return torch.stack([s[shift : shift + size] for s, shift in zip(self._strain[slide.file], slide.shifts, strict=True)])

    def background(self, batch: int) -> Iterator[tuple[int, Tensor]]:
        """(slide, windows) until every window of every slide has been given, in order."""
        for number, slide in enumerate(self.slides):
            for part in torch.arange(slide.windows).split(batch):
                yield number, self._windows(slide, part.to(self.device))[0]

    def foreground(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(signals, views): kernels (signal, view, ifo, kernel) and the signals' rows.

        Signals lie evenly over all windows; the views of one put its merger from edge to edge of the same window.
        """
        edges = np.cumsum([0] + [s.windows for s in self.slides])
        where = (np.arange(len(self.signals)) * self.num_windows) // len(self.signals)
        number = np.searchsorted(edges, where, side="right") - 1
        starts = self.placement.views(self.training.valid_views)
        for rows in torch.arange(len(self.signals)).split(max(1, batch // len(starts))):
            parts = []
            for row in rows.tolist():
                slide = self.slides[number[row]]
                parts.append(self._windows(slide, torch.tensor([where[row] - edges[number[row]]], device=self.device)))
            noise, psd = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
            white = self.whitener.whiten(self.signals[rows].double().to(self.device), psd * STRAIN_SCALE**2)
            views = [noise + white[..., s : s + self.placement.kernel] for s in starts]
            yield rows, torch.stack(views, 1)


@dataclass(frozen=True)
class Scores:
    """What a network says of a validation set.

    Attributes:
        background: scores of each slide's windows, in order.
        foreground: (signal,), mean over views.
    """

    background: list[np.ndarray]
    foreground: np.ndarray

    def metrics(self, *, max_fpr: float, pool: int) -> dict[str, float]:
        """`valid_auroc` (partial, McClish) and `valid_efficiency` at `max_fpr`, over background pooled by `pool` windows."""
        pooled = np.concatenate([max_pool(b, pool) for b in self.background])
        return {
            "valid_auroc": partial_auroc(pooled, self.foreground, max_fpr),
            "valid_efficiency": efficiency(pooled, self.foreground, max_fpr),
            "valid_background_max": float(pooled.max()),
        }


def score(network: torch.nn.Module, data: ValidationSet, batch: int) -> Scores:
    """Scores every window and every signal of `data`; `network` is used as it stands, without gradients."""
    background, foreground = score_noise(network, data, batch), torch.zeros(len(data.signals))
    with torch.no_grad():
        for rows, x in data.foreground(batch):
            foreground[rows] = network(x.flatten(0, 1))[:, 0].float().view(x.shape[:2]).mean(1).cpu()
    return Scores(background, foreground.numpy())


def score_noise(network: torch.nn.Module, data: ValidationSet, batch: int) -> list[np.ndarray]:
    """Scores of each slide's windows, in order, as in `score`."""
    out: list[list[Tensor]] = [[] for _ in data.slides]
    with torch.no_grad():
        for number, x in data.background(batch):
            out[number].append(network(x)[:, 0].float().cpu())
    return [torch.cat(b).numpy() for b in out]
