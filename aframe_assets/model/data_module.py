"""Training and validation data for Lightning."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning
from torch.utils.data import DataLoader, Dataset

from aframe_assets.model.ahead import Ahead
from aframe_assets.model.batches import TrainingBatches
from aframe_assets.model.ranks import ALONE, Rank
from aframe_assets.model.validation import ValidationSet

if TYPE_CHECKING:
    import torch

    from aframe_assets.config import Config
    from aframe_assets.store.ranges import Source


class _Items(Dataset):
    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class TrainingData(lightning.LightningDataModule):
    """Loaders hand out step numbers; the batch of a step is made on the training device, from its number alone.

    Args:
        config: the experiment.
        background: background files by role, 'train' and 'validation', local or in the store.
        training_signals, validation_signals: waveform files (reference 2.12), the same; no training signals where they are made here.
        seed: of all random numbers.
        rank: whose rows of batches are made.
    """

    def __init__(
        self,
        config: Config,
        background: dict[str, list[Source]],
        training_signals: Source | None,
        validation_signals: Source,
        seed: int,
        rank: Rank = ALONE,
    ) -> None:
        super().__init__()
        self.config, self.background, self.seed, self.rank = config, background, seed, rank
        self.training_signals, self.validation_signals = training_signals, validation_signals
        self._batches: Ahead | None = None
        self._validation: ValidationSet | None = None

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device if self.trainer else "cpu"
        if self._batches is None:
            self._validation = ValidationSet(self.config, self.background["validation"], self.validation_signals, device)
            batches = TrainingBatches(self.config, self.background["train"], self.training_signals, self.seed, device, self.rank)
            # a batch after the last would have a pool made for it
            last = self.config.model.training.max_epochs * self.config.model.training.batches_per_epoch - 1
            self._made, self._batches = batches, Ahead(batches.batch, last)
            held = (batches.nbytes + self._validation.nbytes) / 1e9
            logging.getLogger(__name__).info("training and validation data take at most %.2f GB of memory", held)

    def teardown(self, stage: str) -> None:
        if self._batches is not None:
            self._made.close()
            self._batches.close()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Items(range(self.config.model.training.batches_per_epoch)), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(_Items([self._validation]), batch_size=None)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, ValidationSet):
            return batch
        # not the loader's number: one that resumes within an epoch hands out the first ones again
        return self._batches.get(self.trainer.global_step)
