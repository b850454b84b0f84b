"""What a network of a cascade says of slid background without signals: from this its threshold is found, at any inference rate.

Validation background is slid and scored as the search slides and scores test data, once for every step that the network
can make (its total stride), so that the outputs of any inference rate that the network allows are among them.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from aframe_assets.model.bundle import DESCRIPTION, BundleError, load_bundle
from aframe_assets.model.importing import BACKGROUND_SCORES
from aframe_assets.model.validation import ValidationSet

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.model.streaming import FrameNetwork
    from aframe_assets.store.ranges import Source

_BLOCK = 64.0
"""Seconds that go through the network together; bounds memory."""


@dataclass(frozen=True)
class BackgroundScores:
    """Scores of slid background.

    Attributes:
        rate: scores per second.
        slides: scores of each stretch, in order of time.
    """

    rate: float
    slides: list[np.ndarray]

    @property
    def livetime(self) -> float:
        """Seconds."""
        return sum(map(len, self.slides)) / self.rate

    def at(self, rate: float) -> list[np.ndarray]:
        """The scores of an inference rate (Hz), float64.

        Raises:
            ValueError: it does not divide the rate of these scores.
        """
        step = self.rate / rate
        if abs(step - round(step)) > 1e-6 or step < 0.5:
            raise ValueError(
                f"inference.inference_rate = {rate:g}: expected a rate that divides the {self.rate:g} Hz of the networks of a cascade"
            )
        return [s[:: round(step)].astype(np.float64) for s in self.slides]

    def write(self, path: Path) -> Path:
        """Writes the scores, in the float32 that the network gives."""
        lengths = np.array([len(s) for s in self.slides], np.int64)
        scores = np.concatenate([np.empty(0, np.float32), *(s.astype(np.float32) for s in self.slides)])
        np.savez(path, rate=self.rate, lengths=lengths, scores=scores)
        return path

    @classmethod
    def read(cls, path: Path) -> BackgroundScores:
        """Raises BundleError when `path` is absent or damaged."""
        try:
            with np.load(path) as f:
                rate, lengths, scores = float(f["rate"]), f["lengths"], f["scores"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
            raise BundleError(
                f"{path}: cannot be read ({e}); the bundle of a cascade's network is incomplete or damaged, copy it again"
            ) from None
        return cls(rate, np.split(scores, np.cumsum(lengths)[:-1]))


def filter_experiment(config: Config) -> Config:
    """The experiment whose model is the filter of `config`."""
    m = config.model
    own = {"weights": m.filter_weights, "architecture": m.filter, "filter": None, "filter_weights": None, "tune": None}
    return config.model_copy(update={"model": m.model_copy(update=own)})


def score_background(
    network: FrameNetwork, data: ValidationSet, sample_rate: float, device: torch.device | str = "cpu"
) -> BackgroundScores:
    """Scores of every window of every slide of `data`, one each total stride.

    Args:
        network: in eval mode.
        data: its windows are kernel and context of `network`.
        sample_rate: Hz.
        device: where the network is.
    """
    step = network.total_stride
    size, hop = (data.placement.kernel - 2 * network.context) // network.stride, step // network.stride
    block = max(1, round(_BLOCK * sample_rate / step))
    out = []
    with torch.inference_mode():
        for slide in data.slides:
            strain = data.stretch(slide).to(device)
            count, scores = (strain.shape[-1] - data.placement.kernel) // step + 1, []
            for first in range(0, count, block):
                last = min(first + block, count) - 1
                part = strain[None, :, first * step : last * step + data.placement.kernel]
                scores.append(network.slide(network.frames(part), size, hop)[0].float().cpu().numpy())
            out.append(np.concatenate(scores))
    return BackgroundScores(sample_rate / step, out)


def add_background_scores(folder: Path, config: Config, background: Sequence[Source], signals: Source) -> float:
    """Write the background scores of the bundle in `folder` into it; returns their livetime in seconds.

    Args:
        folder: bundle of the network of `config`.
        config: experiment of the network, see `filter_experiment`.
        background: validation background files.
        signals: validation waveforms.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load_bundle(folder).network.to(device)
    training = config.model.training
    longer = training.model_copy(update={"valid_livetime": training.background_livetime})
    config = config.model_copy(update={"model": config.model.model_copy(update={"training": longer})})
    scores = score_background(network, ValidationSet(config, background, signals, device), config.sample_rate, device)
    scores.write(folder / BACKGROUND_SCORES)
    description = json.loads((folder / DESCRIPTION).read_text())
    description["background_scores"] = {"file": BACKGROUND_SCORES, "rate": scores.rate, "livetime": scores.livetime}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True))
    return scores.livetime
