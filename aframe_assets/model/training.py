"""One training, that goes on where it was killed.

Every batch is a function of (seed, step) and nothing else is random after the first weights are drawn, so on one machine
with one thread count a resumed training ends bit for bit where an undisturbed one does. With another number of threads,
or on a GPU, sums are taken in another order and scores differ by what a different seed of the same training gives.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from aframe_assets.model.data_module import TrainingData
from aframe_assets.model.lightning_module import Detector, Follower
from aframe_assets.model.progress import History, reporters

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.ranges import Source

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
"""Lightning's names."""


@dataclass(frozen=True)
class Trained:
    """What a training gives.

    Attributes:
        network: the network of the best epoch, on the CPU, in eval mode.
        best_epoch: counted from 0.
        history: a row per epoch, see `History`.
        logs: folder of CSV and TensorBoard logs.
        resumed_from: epochs that were done when this call began.
        wall_s: seconds of this call.
    """

    network: torch.nn.Module
    best_epoch: int
    history: list[dict[str, float]]
    logs: Path
    resumed_from: int
    wall_s: float

    @property
    def metrics(self) -> dict[str, float]:
        """The row of the best epoch."""
        return next(r for r in self.history if r["epoch"] == self.best_epoch)


def _read_checkpoint(path: Path) -> dict[str, Any] | None:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile):
        return None


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The readable checkpoint of the latest epoch in `folder`; one that a kill cut short is passed over."""
    found = [(c["epoch"], c["global_step"], str(p), c) for p in folder.glob("*.ckpt") if (c := _read_checkpoint(p))]
    if not found:
        return None
    *_, path, checkpoint = max(found, key=lambda x: x[:3])
    return Path(path), checkpoint


def _state(checkpoint: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((v for k, v in checkpoint["callbacks"].items() if k.startswith(kind)), {})


def _finished(checkpoint: dict[str, Any], config: Config, epochs: int) -> bool:
    t = config.model.training
    stopped = t.patience is not None and _state(checkpoint, "EarlyStopping").get("wait_count", 0) >= t.patience
    return stopped or checkpoint["epoch"] + 1 >= epochs


def train(
    config: Config,
    *,
    background: dict[str, list[Source]],
    training_signals: Source,
    validation_signals: Source,
    workdir: Path,
    seed: int,
    log: logging.Logger | None = None,
    leader: torch.nn.Module | None = None,
    until: int | None = None,
    on_epoch: Callable[[Sequence[Mapping[str, float]]], None] | None = None,
) -> Trained:
    """Train the network of `config`, or finish the training that `workdir` holds.

    Args:
        config: the experiment; `model.architecture`, `model.training`, conditioning, ifos, sample_rate are read.
        background: background files by role, 'train' and 'validation' (`aframe_assets.strain.background_file`).
        training_signals: polarisations (reference 2.12).
        validation_signals: projected signals.
        workdir: folder of this training alone: checkpoints (one per epoch, the best kept) and logs.
        seed: of the first weights and of all batches.
        log: where progress goes when there is no terminal.
        leader: a network that the trained one is to follow, as a cascade's filter does its joint network; else it learns labels.
        until: stop after this many epochs. Learning rates stay those of ``max_epochs``, so that a later call with a larger
            `until` goes on as if there had been no stop.
        on_epoch: is given the rows of all epochs so far after each.

    Raises:
        ValueError: data that do not fit the experiment, before anything is trained.
        FloatingPointError: the loss or a validation score is not finite.
    """
    log = log or logging.getLogger(__name__)
    start, t = time.monotonic(), config.model.training
    epochs = t.max_epochs if until is None else min(until, t.max_epochs)
    folder = workdir / "checkpoints"
    newest = newest_checkpoint(folder)
    resumed_from = 0 if newest is None else newest[1]["epoch"] + 1
    threads = torch.get_num_threads()
    torch.set_num_threads(t.num_threads or len(os.sched_getaffinity(0)))
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(seed)
            module = Follower(config, leader) if leader is not None else Detector(config)
            if newest is None or not _finished(newest[1], config, epochs):
                if newest:
                    log.info(f"resuming after epoch {newest[1]['epoch'] + 1} of {epochs} from {newest[0].name}")
                data = TrainingData(config, background, training_signals, validation_signals, seed)
                _fit(config, module, data, workdir, newest and newest[0], log, epochs, on_epoch)
                newest = newest_checkpoint(folder)
        last = newest[1]
        best = Path(_state(last, f"ModelCheckpoint{{'monitor': '{module.monitor}'")["best_model_path"])
        checkpoint = _read_checkpoint(folder / best.name)
        if checkpoint is None:
            raise RuntimeError(f"{folder / best.name}: the best checkpoint cannot be read; delete {workdir} and train again")
        module.load_state_dict(checkpoint["state_dict"])
    finally:
        torch.set_num_threads(threads)
    history = _state(last, "History")["rows"]
    return Trained(module.network.cpu().eval(), checkpoint["epoch"], history, workdir / "logs", resumed_from, time.monotonic() - start)


def _fit(
    config: Config,
    module: Detector,
    data: TrainingData,
    workdir: Path,
    resume: Path | None,
    log: logging.Logger,
    epochs: int,
    on_epoch: Callable[[Sequence[Mapping[str, float]]], None] | None,
) -> None:
    t, folder = config.model.training, workdir / "checkpoints"
    # Both at the end of the training epoch, so that a resumed training begins the next one cleanly; the best first, so
    # that the last knows of it. A new file is written before the old one goes, so a kill leaves one that can be read.
    common = {"dirpath": folder, "save_top_k": 1, "save_on_train_epoch_end": True}
    best = ModelCheckpoint(filename="best-{epoch:04d}", monitor=module.monitor, mode="max", **common)
    last = ModelCheckpoint(filename="last-{epoch:04d}", **common)
    callbacks = [*reporters(log), History(on_epoch), best, last]
    if t.patience is not None:
        callbacks.append(EarlyStopping(module.monitor, mode="max", patience=t.patience))
    starts = len(list((workdir / "logs").glob("csv/*"))) if (workdir / "logs").is_dir() else 0
    loggers = [
        CSVLogger(workdir, name="logs/csv", version=f"start_{starts}", flush_logs_every_n_steps=10),
        TensorBoardLogger(workdir, name="logs", version="tensorboard"),
    ]
    # Lightning's advice on numbers of workers and loggers does not fit batches made on the training device
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        precision=_PRECISIONS[t.precision],
        max_epochs=epochs,
        gradient_clip_val=t.gradient_clip,
        callbacks=callbacks,
        logger=loggers,
        log_every_n_steps=20,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=any("ProgressBar" in type(c).__name__ for c in callbacks),
        default_root_dir=workdir,
    )
    trainer.fit(module, data, ckpt_path=str(resume) if resume else None)
    if trainer.interrupted:
        raise KeyboardInterrupt("training was interrupted; run again to go on from the last epoch")
