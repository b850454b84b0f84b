"""Loss, optimiser and validation of a network, for Lightning (reference 2.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning
import torch
from torch import Tensor, nn

from aframe_assets.model.networks import Sky, build_network
from aframe_assets.model.validation import score

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.model.validation import ValidationSet


class Detector(lightning.LightningModule):
    """Binary cross entropy with logits, AdamW, OneCycle per step; every window of the validation set each epoch.

    Args:
        config: the experiment.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.training_config = config.model.training
        self.pool = max(1, int(self.training_config.pool_length / self.training_config.valid_stride))
        self.network = build_network(config.model.architecture, Sky.of(config))
        self.loss = nn.BCEWithLogitsLoss()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        x, y = batch
        loss = self.loss(self(x), y)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"training loss is {loss.item()} at step {self.global_step}; lower model.training.learning_rate"
                f" (now {self.training_config.learning_rate:g}) or set model.training.gradient_clip"
            )
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(x))
        return loss

    def validation_step(self, data: ValidationSet, index: int) -> None:
        # in bfloat16 a logit has two digits: too few to rank signals by
        with torch.autocast(self.device.type, enabled=False):
            scores = score(self.network, data, self.training_config.batch_size)
        metrics = scores.metrics(max_fpr=self.training_config.max_fpr, pool=self.pool)
        self.log_dict(metrics, prog_bar=True, batch_size=1)

    def configure_optimizers(self) -> dict:
        t = self.training_config
        optimiser = torch.optim.AdamW(self.parameters(), lr=t.learning_rate, weight_decay=t.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, max_lr=t.learning_rate, total_steps=t.max_epochs * t.batches_per_epoch, pct_start=t.pct_lr_ramp
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
