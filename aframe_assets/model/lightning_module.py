"""Loss, optimiser and validation of a network, for Lightning (reference 2.8)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from aframe_assets.model.networks import Sky, build_network
from aframe_assets.model.ranks import ALONE, Rank
from aframe_assets.model.validation import score, score_noise

if TYPE_CHECKING:
    from aframe_assets.config import Config, Training
    from aframe_assets.model.validation import Scores, ValidationSet


class Detector(lightning.LightningModule):
    """Binary cross entropy with logits, AdamW, a learning rate for each step; every window of the validation set each epoch.

    Args:
        config: the experiment.
        rank: of several that train together, which one this is.

    Attributes:
        monitor: the validation metric whose largest value makes the best epoch.
    """

    def __init__(self, config: Config, rank: Rank = ALONE) -> None:
        super().__init__()
        self.training_config, self.rank = config.model.training, rank
        self.network = build_network(config.model.architecture, Sky.of(config))
        self.loss = nn.BCEWithLogitsLoss()
        self.roc: tuple[list[float], list[float]] | None = None

    @property
    def monitor(self) -> str:
        return f"valid_{self.training_config.monitor}"

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        loss = self.compare(x, self(x), y)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"training loss is {loss.item()} at step {self.global_step}; lower model.training.learning_rate"
                f" (now {self.training_config.learning_rate:g}) or set model.training.gradient_clip"
            )
        # gradients and what is logged are means over ranks, whose numbers of rows may differ by one
        loss = loss * self.rank.weight(len(x), self.training_config.batch_size)
        # of an epoch: see `progress.History`
        several = self.rank.size > 1
        self.log("train_loss_step", loss, on_step=True, on_epoch=False, prog_bar=True, batch_size=len(x), sync_dist=several)
        return loss

    def compare(self, x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of `logits` (batch, 1) for kernels `x` with labels `y`."""
        return self.loss(logits, y)

    def validation_step(self, data: ValidationSet, index: int) -> None:
        # in bfloat16 a logit has two digits: too few to rank signals by
        with torch.autocast(self.device.type, enabled=False):
            scores = score(self.network, data, self.training_config.batch_size, self.rank)
            metrics = scores.metrics(self.training_config) | self.more_metrics(scores, data)
            self.roc = scores.roc(self.training_config)
        for name, value in metrics.items():
            self.log(name, value, prog_bar=name in (self.monitor, "valid_auroc", "valid_efficiency"), batch_size=1)

    def more_metrics(self, scores: Scores, data: ValidationSet) -> dict[str, float]:
        """Of `scores` on `data`, beside those of detection."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        # so that the best epoch's checkpoint has the best epoch's curve
        checkpoint["roc"] = self.roc

    def configure_optimizers(self) -> dict:
        t = self.training_config
        optimiser = torch.optim.AdamW(self.parameters(), lr=t.learning_rate, weight_decay=t.weight_decay)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": learning_rate(optimiser, t), "interval": "step"}}


def learning_rate(optimiser: torch.optim.Optimizer, training: Training) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate by step.

    'one_cycle' is torch's (Smith & Topin 2017, with cosines). 'cosine' rises linearly to `learning_rate` during the share
    `pct_lr_ramp` of all steps, and falls to 0 as half a cosine (Loshchilov & Hutter 2017, equation 5, without restarts).
    """
    total = training.max_epochs * training.batches_per_epoch
    if training.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=training.learning_rate, total_steps=total, pct_start=training.pct_lr_ramp
        )
    ramp = max(1, round(training.pct_lr_ramp * total))

    def factor(step: int) -> float:
        return (step + 1) / ramp if step < ramp else 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, total - ramp)))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


class Follower(Detector):
    """The filter of a cascade: learns what another network says, mistakes included, so that it loses little of what that finds loud.

    The loss is the mean of smooth absolute differences of logits (Hinton, Vinyals & Dean 2015, section 2.1: logits as targets; Girshick
    2015, equation 3: linear from a difference of 1 on, so that very loud signals do not outweigh noise).

    Args:
        config: the experiment of the filter.
        leader: the network that is followed; not trained.
        rank: as of `Detector`.
    """

    def __init__(self, config: Config, leader: nn.Module, rank: Rank = ALONE) -> None:
        super().__init__(config, rank)
        # no part of this module: its weights are not trained and not in checkpoints
        self._leader = [leader.eval().requires_grad_(False)]
        self._leads: list[np.ndarray] | None = None

    @property
    def monitor(self) -> str:
        return "valid_correlation"

    def compare(self, x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """See `Detector.compare`; labels are not asked."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            target = self._leader[0].to(x.device)(x.float())
        return nn.functional.smooth_l1_loss(logits.float(), target)

    def more_metrics(self, scores: Scores, data: ValidationSet) -> dict[str, float]:
        """Of validation background: `valid_correlation` of the two scores (Pearson)."""
        if self._leads is None:
            self._leads = score_noise(self._leader[0].to(self.device), data, self.training_config.batch_size, self.rank)
        ours, theirs = np.concatenate(scores.background), np.concatenate(self._leads)
        alike = float(np.corrcoef(ours, theirs)[0, 1]) if ours.std() > 0 < theirs.std() else 0.0
        return {"valid_correlation": alike}
