"""One training, that goes on where it was killed.

Every batch is a function of (seed, step) and nothing else is random after the first weights are drawn, so on one machine
with one thread count a resumed training ends bit for bit where an undisturbed one does; on a GPU with
``execution.training.deterministic``. With another number of threads, or on a GPU without that, sums are taken in another
order and scores differ by what a different seed of the same training gives.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping

from aframe_assets.model import tracking
from aframe_assets.model.checkpoints import (
    SIGNALS,
    Keeper,
    PlacedCheckpoint,
    Seeded,
    Stopped,
    Stopping,
    WholeFiles,
    callback_state,
    guarded,
    newest_checkpoint,
    read_checkpoint,
    restore,
)
from aframe_assets.model.data_module import TrainingData
from aframe_assets.model.launching import launch
from aframe_assets.model.lightning_module import Detector, Follower
from aframe_assets.model.progress import History, Observer, reporters
from aframe_assets.model.ranks import ALONE, Rank, check_devices, has_unused, training_devices
from aframe_assets.model.samplers import Placement
from aframe_assets.model.training_needs import lacking_for_compilation

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.model.progress import Watch
    from aframe_assets.store.ranges import Source
    from aframe_assets.store.unfinished import Unfinished

_PRECISIONS = {"fp32": "32-true", "tf32": "32-true", "bf16": "bf16-mixed"}
"""Lightning's names."""


@dataclass(frozen=True)
class Trained:
    """What a training gives.

    Attributes:
        network: the network of the best epoch, on the CPU, in eval mode.
        best_epoch: counted from 0.
        history: a row per epoch, see `History`.
        logs: folder of CSV and TensorBoard logs.
        resumed_from, resumed_step: epochs and steps that were done when this call began.
        wall_s: seconds of this call.
        roc: shares of background and of signals of that epoch (`Scores.roc`); None of a checkpoint without.
    """

    network: torch.nn.Module
    best_epoch: int
    history: list[dict[str, float]]
    logs: Path
    resumed_from: int
    resumed_step: int
    wall_s: float
    roc: tuple[list[float], list[float]] | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The row of the best epoch."""
        return next(r for r in self.history if r["epoch"] == self.best_epoch)


def _finished(checkpoint: dict[str, Any], config: Config, epochs: int) -> bool:
    t = config.model.training
    stopped = t.patience is not None and callback_state(checkpoint, "EarlyStopping").get("wait_count", 0) >= t.patience
    return stopped or checkpoint["global_step"] >= epochs * t.batches_per_epoch


def train(
    config: Config,
    *,
    background: dict[str, list[Source]],
    training_signals: Source | None,
    validation_signals: Source,
    workdir: Path,
    seed: int,
    log: logging.Logger | None = None,
    leader: torch.nn.Module | None = None,
    until: int | None = None,
    on_epoch: Callable[[Sequence[Mapping[str, float]]], None] | None = None,
    unfinished: Unfinished | None = None,
    watch: Watch | None = None,
    devices: Sequence[str] | None = None,
) -> Trained:
    """Train the network of `config`, or finish the training that `workdir` or `unfinished` holds.

    With several devices a batch of model.training.batch_size is shared out among them, one process each (`ranks`). The result is
    that of one device but for the order in which sums are taken, and the learning rate stays what it is.

    SIGTERM, SIGUSR1 and an interrupt let the step under way end and keep the state, in the main thread; a second one does not wait.

    Args:
        config: the experiment; `model.architecture`, `model.training`, `execution.training`, conditioning, ifos, sample_rate are read.
        background: background files by role, 'train' and 'validation' (`aframe_assets.strain.background_file`).
        training_signals: polarisations (reference 2.12); None where `model.training.signals` is 'generated'.
        validation_signals: projected signals.
        workdir: folder of this training alone: checkpoints (the last and the best epoch, and one within an epoch) and logs.
        seed: of the first weights and of all batches.
        log: where progress goes when there is no terminal.
        leader: a network that the trained one is to follow, as a cascade's filter does its joint network; else it learns labels.
        until: stop after this many epochs. Learning rates stay those of ``max_epochs``, so that a later call with a larger
            `until` goes on as if there had been no stop.
        on_epoch: is given the rows of all epochs so far after each.
        unfinished: keeps checkpoints in the store too, and gives them to a try that finds a later one there than in `workdir`.
        watch: is shown the first batch, and every so often how the training goes.
        devices: as torch names them, as ('cuda:0', 'cuda:1') or ('cpu', 'cpu'); by default those of ``execution.training``.

    Raises:
        ValueError: data that do not fit the experiment, or settings that this machine cannot follow, before anything is trained.
        RankError: one of several processes was killed; the others were stopped.
        FloatingPointError: the loss or a validation score is not finite.
        MakeRoom: SIGTERM or SIGUSR1 came; call again to go on.
        StoreError: the store cannot say whether there is a state to go on from.
    """
    log = log or logging.getLogger(__name__)
    start, t = time.monotonic(), config.model.training
    epochs = t.max_epochs if until is None else min(until, t.max_epochs)
    folder = workdir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    newest = restore(folder, unfinished, log)
    step = 0 if newest is None else newest[1]["global_step"]
    devices = check_devices(devices or training_devices(config.execution.training, log), t.batch_size)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        module = _module(config, leader, seed)
        # what is compiled, or on a device, or another rank's, stays with the training
        network = module.network
        if newest is None or not _finished(newest[1], config, epochs):
            if newest:
                log.info(f"resuming after step {step} of {epochs * t.batches_per_epoch} from {newest[0].name}")
            work = {
                "config": config,
                "leader": leader,
                "data": (background, training_signals, validation_signals),
                "workdir": workdir,
                "seed": seed,
                "resume": newest and newest[0],
                "unfinished": unfinished,
                "epochs": epochs,
            }
            told = {name: f for name, f in {"watch": watch, "on_epoch": on_epoch}.items() if f is not None}
            if len(devices) == 1:
                _fit(Rank(devices), **work, **told, log=log)
            else:
                log.info(f"training in {len(devices)} processes, on {', '.join(devices)}")
                _fit_on(devices, work, told, log)
            newest = newest_checkpoint(folder)
    last = newest[1]
    best = callback_state(last, f"PlacedCheckpoint{{'monitor': '{module.monitor}'")["best_model_path"]
    checkpoint = read_checkpoint(folder / best)
    if checkpoint is None:
        raise RuntimeError(f"{folder / best}: the best checkpoint cannot be read; delete {workdir} and train again")
    weights = {k.removeprefix("network."): v for k, v in checkpoint["state_dict"].items() if k.startswith("network.")}
    network.load_state_dict(weights)
    history, best_epoch, done = callback_state(last, "History")["rows"], checkpoint["epoch"], step // t.batches_per_epoch
    logs, seconds = tracking.publishable(workdir / "logs"), time.monotonic() - start
    return Trained(network.eval(), best_epoch, history, logs, done, step, seconds, checkpoint.get("roc"))


def _module(config: Config, leader: torch.nn.Module | None, seed: int, rank: Rank = ALONE) -> Detector:
    torch.manual_seed(seed)
    return Follower(config, leader, rank) if leader is not None else Detector(config, rank)


def _threads(config: Config) -> int:
    return config.model.training.num_threads or len(os.sched_getaffinity(0))


@contextmanager
def _computing(config: Config, num_ranks: int) -> Iterator[None]:
    """Threads, precision and determinism of `config`, which torch has for the whole process; as before afterwards."""
    t, resources = config.model.training, config.execution.training
    threads, tf32 = torch.get_num_threads(), (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.set_num_threads(max(1, _threads(config) // num_ranks))
    # torch's own default rounds the factors of convolutions
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = t.precision == "tf32"
    if lacking := lacking_for_compilation(resources):
        raise ValueError(lacking)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark = benchmark


def _kept(workdir: Path, unfinished: Unfinished | None) -> str:
    places = f"{workdir / 'checkpoints'}{' and in the store' if unfinished else ''}"
    return f"what was trained is kept in {places}; the next try goes on from there"


def _fit_on(devices: Sequence[str], work: Mapping[str, Any], told: Mapping[str, Callable[..., Any]], log: logging.Logger) -> None:
    """`_fit` in a process for each of `devices`; they are asked to keep their state and end where this process is."""

    def wait(stopping: Stopping) -> None:
        stopping.waits = True
        if work["unfinished"] is not None:
            work["unfinished"].kept_by_others()
        try:
            launch(_fit, devices, work, log=log, told=told, threads=_threads(work["config"]), stop=lambda: stopping.number is not None)
        except Exception as e:
            if stopping.number is None:
                raise
            raise Stopped from e

    guarded(wait, lambda: _kept(work["workdir"], work["unfinished"]))


def _fit(
    rank: Rank,
    *,
    config: Config,
    leader: torch.nn.Module | None,
    data: tuple[dict[str, list[Source]], Source | None, Source],
    workdir: Path,
    seed: int,
    resume: Path | None,
    unfinished: Unfinished | None,
    epochs: int,
    log: logging.Logger,
    watch: Watch | None = None,
    on_epoch: Callable[[Sequence[Mapping[str, float]]], None] | None = None,
) -> None:
    """The part of `rank` in a training; in a process of its own where there are several."""
    with _computing(config, rank.size):
        module = _module(config, leader, seed, rank)
        held = TrainingData(config, *data, seed, rank)
        first = {"watch": watch, "on_epoch": on_epoch} if rank.index == 0 else {"watch": None, "on_epoch": None}
        _fit_module(rank, config, module, held, workdir, resume, log, unfinished, epochs=epochs, **first)


def _fit_module(
    rank: Rank,
    config: Config,
    module: Detector,
    data: TrainingData,
    workdir: Path,
    resume: Path | None,
    log: logging.Logger,
    unfinished: Unfinished | None,
    *,
    epochs: int,
    watch: Watch | None,
    on_epoch: Callable[[Sequence[Mapping[str, float]]], None] | None,
) -> None:
    t, resources, folder = config.model.training, config.execution.training, workdir / "checkpoints"
    unused = rank.size > 1 and has_unused(module.network, (2, len(config.ifos), Placement.of(config).kernel))
    # Both at the end of the training epoch, so that a resumed training begins the next one cleanly; the best first, so
    # that the last knows of it. A new file is written before the old one goes, so a kill leaves one that can be read.
    common = {"dirpath": folder, "save_top_k": 1, "save_on_train_epoch_end": True}
    best = PlacedCheckpoint(filename="best-{epoch:04d}", monitor=module.monitor, mode="max", **common)
    last = PlacedCheckpoint(filename="last-{epoch:04d}", **common)
    # the row of an epoch before whoever tells of it
    callbacks = [history := History(on_epoch), *(reporters(log) if rank.index == 0 else []), Seeded(data.seed), best, last]
    if watch is not None:
        callbacks.append(Observer(watch, history, config.execution.training.observe_every))
    if t.patience is not None:
        callbacks.append(EarlyStopping(module.monitor, mode="max", patience=t.patience))
    # Lightning's advice on numbers of workers and loggers does not fit batches made on the training device
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if resources.compile:
        module.network.compile()
    place = rank.trainer_arguments(unused=unused)
    place["plugins"].append(WholeFiles())
    made = tracking.loggers(config, workdir, unfinished and unfinished.key, log) if rank.index == 0 else []

    def fit(stopping: Stopping) -> None:
        keeper = Keeper(folder, resources.checkpoint_every, stopping, unfinished, log)
        # a rank that left before its first step would leave another, which has begun it, waiting
        stopping.waits = rank.size > 1
        trainer = lightning.Trainer(
            **place,
            precision=_PRECISIONS[t.precision],
            deterministic=resources.deterministic,
            benchmark=not resources.deterministic,
            max_epochs=epochs,
            gradient_clip_val=t.gradient_clip,
            callbacks=[*callbacks, keeper],
            logger=made,
            log_every_n_steps=20,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=any("ProgressBar" in type(c).__name__ for c in callbacks),
            default_root_dir=workdir,
        )
        try:
            trainer.fit(module, data, ckpt_path=str(resume) if resume else None, weights_only=True)
        finally:
            keeper.close()
            data.teardown("fit")
            tracking.close(made)

    guarded(fit, lambda: _kept(workdir, unfinished), rank.signals or SIGNALS)
