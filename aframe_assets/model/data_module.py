"""Training and validation data for Lightning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
from torch.utils.data import DataLoader, Dataset

from aframe_assets.model.batches import TrainingBatches
from aframe_assets.model.validation import ValidationSet

if TYPE_CHECKING:
    import torch

    from aframe_assets.config import Config


class _Items(Dataset):
    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Ahead:
    """Makes the batch of the next step while the network works on this one, in a thread of its own.

    A batch is a function of its step's number alone, so it is the same one, made earlier.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make, self.pool = make, ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.step, self.future = -1, None

    def batch(self, step: int) -> Any:
        if self.future is None or self.step != step:
            self.future = self.pool.submit(self.make, step)
        made = self.future
        out = made.result()
        self.step, self.future = step + 1, self.pool.submit(self.make, step + 1)
        return out

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class TrainingData(lightning.LightningDataModule):
    """Loaders hand out step numbers; the batch of a step is made on the training device, from its number alone.

    Args:
        config: the experiment.
        background: background files by role, 'train' and 'validation'.
        training_signals, validation_signals: waveform files (reference 2.12).
        seed: of all random numbers.
    """

    def __init__(
        self, config: Config, background: dict[str, list[Path]], training_signals: Path, validation_signals: Path, seed: int
    ) -> None:
        super().__init__()
        self.config, self.background, self.seed = config, background, seed
        self.training_signals, self.validation_signals = training_signals, validation_signals
        self._batches: Ahead | None = None
        self._validation: ValidationSet | None = None

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device if self.trainer else "cpu"
        if self._batches is None:
            self._validation = ValidationSet(self.config, self.background["validation"], self.validation_signals, device)
            batches = TrainingBatches(self.config, self.background["train"], self.training_signals, self.seed, device)
            self._batches = Ahead(batches.batch)

    def teardown(self, stage: str) -> None:
        if self._batches is not None:
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
        return self._batches.batch(self.trainer.current_epoch * self.config.model.training.batches_per_epoch + int(batch))
