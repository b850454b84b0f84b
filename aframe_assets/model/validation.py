"""Validation data: slides of the validation background, every window of them, and signals in them (reference 2.8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aframe_assets.model.metric import HOUR, Injected, Pooling, efficiencies, max_pool, partial_auroc, require_finite, threshold_at
from aframe_assets.model.ranks import ALONE, Rank
from aframe_assets.model.samplers import STRAIN_SCALE, BackgroundFiles, Placement, read_signals
from aframe_assets.store.ranges import Source
from aframe_assets.strain.conditioning import Whitener
from aframe_assets.waveforms.ledger import InjectionParameterSet, WaveformSet

if TYPE_CHECKING:
    from aframe_assets.config import Config, Training

_PHASE = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, lie evenly over [0, 1) however many there are (Weyl's sequence)."""


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

    Memory: 8 kB per second of validation data and detector at 2048 Hz, 66 kB per signal of two detectors.

    Args:
        config: the experiment.
        background: validation background files.
        signals: validation waveforms.
        device: where windows are made.

    Raises:
        ValueError: no signals, files that do not fit the experiment, no window at all, slides too short to look for a signal in.
    """

    def __init__(self, config: Config, background: Sequence[Source], signals: Source, device: torch.device | str = "cpu") -> None:
        t, c, fs = config.model.training, config.conditioning, config.sample_rate
        self.training, self.ifos, self.device = t, config.ifos, torch.device(device)
        self.placement, self.stride = Placement.of(config), round(t.valid_stride * fs)
        self.kernel, self.context = round(c.kernel_length * fs), round(config.model.architecture.context * fs)
        # signals are kept with all that a kernel with the merger anywhere in it can hold
        whole = self.placement.crop + self.kernel + self.context
        self._stored = Placement(whole, whole, self.placement.kernel, self.placement.crop, self.kernel)
        self.whitener = Whitener(c, fs).to(self.device)
        files = BackgroundFiles(
            background, config.ifos, self.whitener, t.psd_block, c.kernel_length + 2 * config.model.architecture.context
        )
        self.block = files.block
        self._strain, self._psd = [], []
        for source in files.files:
            streams = [files.stream(source, ifo) for ifo in config.ifos]
            self._strain.append(torch.cat([b.strain for b in streams]))
            self._psd.append(torch.stack([b.psd for b in streams]))
        self.slides = self._plan(fs)
        self.num_windows = sum(s.windows for s in self.slides)
        if not self.num_windows:
            raise ValueError(
                "validation background gives no window; expected chunks longer than psd_length + fduration + kernel_length + 1 s"
            )
        head = WaveformSet.read_metadata(signals)
        if not head["length"]:
            raise ValueError(f"{signals}: no validation signals; raise waveforms.num_validation_signals or lower waveforms.snr_threshold")
        self.signals = read_signals(signals, config.ifos, self._stored, [slice(0, head["length"])], fs)
        self.snr = InjectionParameterSet.read(signals, waveforms=False).snr
        self.pooling = Pooling.of(t)
        self.injected_windows = -(-self.kernel // self.stride)
        self._slide, self._first = self._places()

    @property
    def nbytes(self) -> int:
        """Memory of background, PSDs and signals."""
        return sum(x.nbytes for x in (*self._strain, *self._psd, self.signals))

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

    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """Slide of each signal and the first window that has its merger: evenly over those where all outputs that see it count."""
        spent = self.injected_windows + 2 * (self.pooling.boxcar - 1)
        edges = np.cumsum([0] + [max(0, s.windows - spent) for s in self.slides])
        if not edges[-1]:
            raise ValueError(
                f"slides of validation background have at most {max(s.windows for s in self.slides)} windows; expected more than {spent},"
                " which a signal and the integration around it take: raise model.training.valid_livetime or segments.min_valid_duration"
            )
        where = (np.arange(len(self.signals)) * edges[-1]) // len(self.signals)
        slide = np.searchsorted(edges, where, side="right") - 1
        return slide, where - edges[slide] + self.pooling.boxcar - 1

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

    def background(self, batch: int, rank: Rank = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        """(numbers, windows) of up to `batch` windows of a slide, until all ranks together have given every window of all slides.

        Windows are numbered through all slides. The pieces, and so the scores to the last bit, are the same for any number of ranks.
        """
        first = 0
        pieces: list[tuple[int, Slide, Tensor]] = []
        for slide in self.slides:
            pieces += [(first, slide, part) for part in torch.arange(slide.windows).split(batch)]
            first += slide.windows
        for first, slide, part in rank.share(pieces):
            yield first + part, self._windows(slide, part.to(self.device))[0]

    def foreground(self, batch: int, rank: Rank = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows, views): signals' rows and their kernels (signal, view, ifo, kernel), shared out to ranks as in `background`.

        Signals lie evenly over all windows; the views of one put its merger from edge to edge of the same window.
        """
        edges = np.cumsum([0] + [s.windows for s in self.slides])
        where = (np.arange(len(self.signals)) * self.num_windows) // len(self.signals)
        number = np.searchsorted(edges, where, side="right") - 1
        # the stored signal begins earlier than that of the placement, by what lies between the pads and the kernel's end
        early = self._stored.before - self.placement.before
        starts = [early + s for s in self.placement.views(self.training.valid_views)]
        for rows in rank.share(torch.arange(len(self.signals)).split(max(1, batch // len(starts)))):
            parts = []
            for row in rows.tolist():
                slide = self.slides[number[row]]
                parts.append(self._windows(slide, torch.tensor([where[row] - edges[number[row]]], device=self.device)))
            noise, psd = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
            white = self.whitener.whiten(self.signals[rows].double().to(self.device), psd * STRAIN_SCALE**2)
            views = [noise + white[..., s : s + self.placement.kernel] for s in starts]
            yield rows, torch.stack(views, 1)

    def injected(self, batch: int, rank: Rank = ALONE) -> Iterator[tuple[Tensor, Tensor]]:
        """(signals, windows): the signals' rows, and (signal, window, ifo, kernel) all windows of a slide that have its merger.

        Mergers lie at any time between two windows, as those of a search do. Signals are shared out to ranks as in `background`.
        """
        number = torch.arange(self.injected_windows)
        for rows in rank.share(torch.arange(len(self.signals)).split(max(1, batch // len(number)))):
            noise, psd = [], []
            for row in rows.tolist():
                x, p = self._windows(self.slides[self._slide[row]], (self._first[row] + number).to(self.device))
                noise.append(x)
                # one whitening of a signal: that of the block in which its first window lies
                psd.append(p[0])
            white = self.whitener.whiten(self.signals[rows].double().to(self.device), torch.stack(psd) * STRAIN_SCALE**2)
            late = (rows.double() * _PHASE % 1 * self.stride).long()
            # in window k the merger is kernel - 1 - late - k stride samples after the kernel's start
            starts = (1 + late[:, None] + number * self.stride).clamp(max=self.kernel).to(self.device)
            views = white.unfold(-1, self.placement.kernel, 1)
            row = torch.arange(len(rows), device=self.device)
            signal = torch.stack([views[row, :, s] for s in starts.T], 1)
            yield rows, torch.stack(noise) + signal

    def in_slides(self, scores: np.ndarray) -> Injected:
        """`scores` (signal, window) of the windows of `injected`, with their places."""
        return Injected(self._slide, self._first, scores, self.snr)


@dataclass(frozen=True)
class Scores:
    """What a network says of a validation set.

    Attributes:
        background: scores of each slide's windows, in order.
        foreground: (signal,), mean over views.
        injected: the signals one by one in the slides.
    """

    background: list[np.ndarray]
    foreground: np.ndarray
    injected: Injected

    def metrics(self, training: Training) -> dict[str, float]:
        """What is logged of them.

        Returns:
            `valid_auroc`: partial (McClish), of background pooled over `pool_length`, and the views' means.
            `valid_efficiency`, and that of SNR bins (`efficiencies`): at `valid_far_per_hour`, of events as a search makes them.
            `valid_background_max`: the loudest background event.

        Raises:
            ValueError: a score is not finite.
        """
        # pooling takes NaN for a window that was not scored
        require_finite(self.injected.scores)
        pooled = self._pooled(training)
        area = partial_auroc(pooled, self.foreground, training.max_fpr)
        pooling = Pooling.of(training)
        events, livetime = pooling.events(self.background)
        least = threshold_at(events, livetime, training.valid_far_per_hour / HOUR)
        found = pooling.recovered(self.background, self.injected) > least
        return {
            "valid_auroc": area,
            **efficiencies(found, self.injected.snr, training.valid_snr_edges),
            "valid_background_max": float(events.max(initial=-np.inf)),
        }

    def _pooled(self, training: Training) -> np.ndarray:
        size = max(1, int(training.pool_length / training.valid_stride))
        return np.concatenate([max_pool(b, size) for b in self.background])

    def roc(self, training: Training, points: int = 200) -> tuple[list[float], list[float]]:
        """The curve whose area is `valid_auroc`: shares of pooled background and of signals at or above `points` thresholds, rising."""
        background, foreground = np.sort(self._pooled(training)), np.sort(self.foreground)
        loud = np.unique(np.geomspace(1, len(background), points).astype(int))
        levels = background[len(background) - loud]
        shares = [1 - np.searchsorted(x, levels) / len(x) for x in (background, foreground)]
        return shares[0].tolist(), shares[1].tolist()


def score(network: torch.nn.Module, data: ValidationSet, batch: int, rank: Rank = ALONE) -> Scores:
    """Scores every window and every signal of `data`; `network` is used as it stands, without gradients.

    Of several ranks each scores its share, and all get all scores; they must all call this.
    """
    background, foreground = score_noise(network, data, batch, rank), torch.zeros(len(data.signals))
    injected = torch.zeros(len(data.signals), data.injected_windows)
    with torch.no_grad():
        for rows, x in data.foreground(batch, rank):
            foreground[rows] = _flat(network, x).mean(1)
        for rows, x in data.injected(batch, rank):
            injected[rows] = _flat(network, x)
    return Scores(background, rank.merged(foreground).numpy(), data.in_slides(rank.merged(injected).numpy()))


def _flat(network: torch.nn.Module, x: Tensor) -> Tensor:
    """Scores (signal, window) of windows (signal, window, ifo, kernel), on the CPU."""
    return network(x.flatten(0, 1))[:, 0].float().view(x.shape[:2]).cpu()


def score_noise(network: torch.nn.Module, data: ValidationSet, batch: int, rank: Rank = ALONE) -> list[np.ndarray]:
    """Scores of each slide's windows, in order, as in `score`."""
    out = torch.zeros(data.num_windows)
    with torch.no_grad():
        for numbers, x in data.background(batch, rank):
            out[numbers] = network(x)[:, 0].float().cpu()
    return [b.numpy() for b in rank.merged(out).split([s.windows for s in data.slides])]
