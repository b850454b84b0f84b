"""Training signals that are made when they are needed, on the training device, instead of being read."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aframe_assets.model.ahead import Closed
from aframe_assets.model.samplers import MAX_SIGNALS, STRAIN_SCALE
from aframe_assets.waveforms.generation import WaveformGenerator
from aframe_assets.waveforms.priors import get_prior
from aframe_assets.waveforms.sets import training_set

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.model.samplers import Placement

_BATCH = 256
"""Signals made at a time; at 8 s and 2048 Hz 34 MB, and twice that in float64."""


class GeneratedSignals:
    """Draws of `waveforms.prior`, new ones each time.

    Attributes:
        count: signals of a draw, `waveforms.num_training_signals` or as many as fit.
        changes: whether one draw differs from the next.
        closed: ends making when it is set.

    Args:
        config: the experiment; `waveforms.approximant` is one of `approximants.BATCHED`.
        placement: what to cut; samples beyond the waveform's window are zero.
        device: where they are made and kept.
    """

    changes = True

    def __init__(self, config: Config, placement: Placement, device: torch.device | str = "cpu") -> None:
        self.count, self.placement, self.device = min(config.waveforms.num_training_signals, MAX_SIGNALS), placement, torch.device(device)
        self.closed = Event()
        self.prior, self.generator = get_prior(config.waveforms.prior), WaveformGenerator.of(config, str(self.device))

    def draw(self, rng: torch.Generator) -> Tensor:
        """(signal, 2, placement.size), cross and plus, float32, strain times STRAIN_SCALE.

        Raises:
            ValueError: more than one draw in a hundred cannot be generated.
        """
        first = self.generator.coalescence - self.placement.before
        low, high = max(first, 0), min(self.generator.coalescence + self.placement.after, self.generator.size)
        out = torch.zeros(self.count, 2, self.placement.size, device=self.device)
        for start in range(0, self.count, _BATCH):
            if self.closed.is_set():
                raise Closed("training data were closed")
            stop = min(start + _BATCH, self.count)
            seed = int(torch.randint(2**62, (), generator=rng))
            made, _ = training_set(stop - start, self.prior, self.generator, seed)
            for channel, name in enumerate(("cross", "plus")):
                scaled = torch.from_numpy(made.waveforms[name][:, low:high]).double() * STRAIN_SCALE
                out[start:stop, channel, low - first : high - first] = scaled.float().to(self.device)
        return out

    @property
    def nbytes(self) -> int:
        """Memory of what `draw` gives."""
        return self.count * 2 * 4 * self.placement.size
