"""What a training keeps of itself, so that another try, here or on another node, goes on where it was."""

from __future__ import annotations

import io
import logging
import os
import pickle
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint

from aframe_assets.store.errors import StoreError
from aframe_assets.store.files import FULL, remove_dead, stamp
from aframe_assets.store.job import MakeRoom

if TYPE_CHECKING:
    from aframe_assets.store.unfinished import Unfinished

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""An interrupt by the user; a scheduler that wants the node; a scheduler that warns of the time limit."""

BEFORE_SCORING_S = 60.0
"""What a signal that comes while validation scores its windows may cost."""


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """A checkpoint of Lightning's, or None where there is none, or not a whole one. Nothing in it is executed.

    Raises:
        OSError: the disk does not give it now. To begin again then would throw away what it holds.
    """
    try:
        # first all bytes: of a file that was cut short, torch asks the system for places that it does not have
        content = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        return None
    try:
        return torch.load(content, map_location="cpu", weights_only=True)
    except (EOFError, OSError, RuntimeError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile):
        logging.getLogger(__name__).warning(f"{path} is not a whole checkpoint and is passed over")
        return None


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The readable checkpoint of the latest step in `folder`; one that a kill cut short is passed over."""
    found = [(c["epoch"], c["global_step"], str(p), c) for p in folder.glob("*.ckpt") if (c := read_checkpoint(p))]
    if not found:
        return None
    *_, path, checkpoint = max(found, key=lambda x: x[:3])
    return Path(path), checkpoint


def callback_state(checkpoint: dict[str, Any], kind: str) -> dict[str, Any]:
    """What the first callback whose key starts with `kind` had written into `checkpoint`."""
    return next((v for k, v in checkpoint["callbacks"].items() if k.startswith(kind)), {})


def restore(folder: Path, unfinished: Unfinished | None, log: logging.Logger) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of `folder` and of the store, which is put into `folder` if it is the one there."""
    newest = newest_checkpoint(folder)
    if unfinished is None:
        return newest
    try:
        stored = unfinished.find()
        if stored is None or (newest is not None and stored.meta["step"] <= newest[1]["global_step"]):
            return newest
        log.info(f"the state after step {stored.meta['step']} is taken from the store")
        unfinished.fetch(folder)
    except StoreError as e:
        # where nothing is known of a state, days may be lost by beginning again
        if newest is None:
            raise
        log.warning(f"the store cannot be asked for a later state than that of step {newest[1]['global_step']} ({e})")
    return newest_checkpoint(folder)


class PlacedCheckpoint(ModelCheckpoint):
    """Lightning's, whose state is of use in another folder too: it names files and no paths."""

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        names = {k: os.path.basename(state[k]) for k in _PATHS if state[k]}
        return state | names | {"dirpath": "", "best_k_models": {os.path.basename(k): v for k, v in state["best_k_models"].items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        paths = {k: self._path(state[k]) for k in _PATHS if state[k]}
        models = {self._path(k): v for k, v in state["best_k_models"].items()}
        super().load_state_dict(state | paths | {"dirpath": self.dirpath, "best_k_models": models})

    def _path(self, name: str) -> str:
        return os.path.join(str(self.dirpath), os.path.basename(name))


_PATHS = ("best_model_path", "last_model_path", "kth_best_model_path")


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: whole or not there.

    Lightning's own goes by way of memory, twice, and of the folder for temporary files, which may be small, and where a kill leaves it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises OSError: what could not be written, and what to do."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_dead(path.parent, _WRITING)
        temporary = path.parent / f"{_WRITING}{stamp()}"
        try:
            with temporary.open("xb") as stream:
                _save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except OSError as e:
            if e.errno not in FULL:
                raise
            words = "no space left for a checkpoint; free space there, then run the same command again: it goes on from the last one"
            raise OSError(e.errno, words, str(path)) from None
        finally:
            temporary.unlink(missing_ok=True)


_WRITING = ".writing-"


def _save(checkpoint: dict[str, Any], stream: Any) -> None:
    try:
        torch.save(checkpoint, stream)
    except RuntimeError as e:
        # what a write raises is hidden by torch's complaint of an archive that is not whole
        raise e.__context__ or e from None


class Seeded(Callback):
    """Makes what is random within a step, as dropout, a function of (seed, step, rank), so that it is the same after a restart.

    Args:
        seed: at least 0.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        words = np.random.SeedSequence([self.seed, trainer.global_step, trainer.global_rank])
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))


class Stopped(BaseException):
    """Leaves Lightning at once, which would end the process for a KeyboardInterrupt."""


class Stopping:
    """Signals while it is entered: the first one lets the step that is under way end, a second one does not.

    In a thread other than the main one signals are left as they are.

    Args:
        numbers: of the signals.
    """

    def __init__(self, numbers: Sequence[int] = SIGNALS) -> None:
        self.numbers = numbers
        self.number: int | None = None
        self.waits = False
        """Whether somebody will look at `number` soon; else a signal takes effect at once."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            # what is ignored stays so, as an interrupt in the background of a shell
            self._before = {n: handler for n in self.numbers if (handler := signal.getsignal(n)) is not signal.SIG_IGN}
            self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def install(self) -> None:
        """Takes the signals (again: Lightning takes SIGTERM for itself)."""
        for number in self._before:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: Any) -> None:
        at_once = self.number is not None or not self.waits
        self.number = self.number or number
        if at_once:
            raise Stopped

    def finish(self, said: str) -> None:
        """Once left: an interrupt does what it would have done, anything else raises MakeRoom with what is `said`."""
        if self.number == signal.SIGINT:
            handler = self._before[signal.SIGINT]
            if callable(handler):
                handler(self.number, None)
            raise KeyboardInterrupt(said)
        raise MakeRoom(f"{signal.Signals(self.number or 0).name}: {said}")


class Keeper(Checkpoint):
    """Keeps the state every so often, also within an epoch, and when a signal asks the training to end.

    Args:
        folder: where checkpoints are, those of others (the best and the last epoch) too.
        every: seconds.
        stopping: signals; looked at after every step.
        unfinished: where in the store the files of `folder` are kept too; in the background, except at the end.
        log: is told what could not be kept.
    """

    def __init__(self, folder: Path, every: float, stopping: Stopping, unfinished: Unfinished | None, log: logging.Logger):
        self.folder, self.every, self.stopping, self.unfinished, self.logger = folder, every, stopping, unfinished, log
        self.step: int | None = None
        """The step after which the state was last kept."""
        self._last = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._sending: Future[None] | None = None
        self._sent: int | None = None

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.stopping.install()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.stopping.waits = True

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Lightning goes on from the last step of an epoch as if that had been validated
        last = batch_idx + 1 >= trainer.num_training_batches
        asked = self.stopping.number is not None
        # decisions of all ranks together: a checkpoint waits for every one of them
        every = min(self.every, BEFORE_SCORING_S) if batch_idx + 2 == trainer.num_training_batches else self.every
        if trainer.strategy.reduce_boolean_decision(asked or (self._due(every) and not last), all=False):
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
            if not last:
                self._keep(trainer, wait=asked)
            if asked:
                raise Stopped
        self.stopping.waits = not last
        # one that came while the ranks decided would be looked at after all windows are scored
        if last and self.stopping.number is not None:
            raise Stopped

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """After the epoch's own checkpoints, which make that within it needless."""
        self.step = trainer.global_step
        if trainer.is_global_zero:
            self._remove_steps(None)
            if self._due(self.every):
                self._last = time.monotonic()
                self._send(self.step, wait=False)

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        if isinstance(exception, Stopped) and trainer.is_global_zero and self.step not in (None, self._sent):
            self._send(self.step, wait=True)

    def close(self) -> None:
        """Waits for what is being sent."""
        self._pool.shutdown()

    def _due(self, every: float) -> bool:
        return time.monotonic() - self._last >= every

    def _keep(self, trainer: Any, wait: bool) -> None:
        self._last, path = time.monotonic(), self.folder / f"step-{trainer.global_step:09d}.ckpt"
        try:
            trainer.save_checkpoint(path)
        except OSError as e:
            # of the rank that writes; the others wait for it here, at the end of `save_checkpoint`
            trainer.strategy.barrier()
            self.logger.warning(f"the state after step {trainer.global_step} could not be kept in {self.folder} ({e}); training goes on")
            return
        self.step = trainer.global_step
        if trainer.is_global_zero:
            self._remove_steps(path)
            self._send(self.step, wait)

    def _remove_steps(self, but: Path | None) -> None:
        for path in self.folder.glob("step-*.ckpt"):
            if path != but:
                path.unlink(missing_ok=True)

    def _send(self, step: int, wait: bool) -> None:
        """Sends the files as they are now; if others are still under way, only with `wait`."""
        if self.unfinished is None or (self._sending is not None and not self._sending.done() and not wait):
            return
        held = self.folder.parent / "sending"
        if self._sending is not None:
            self._sending.result()
        try:
            self._hold(held)
        except OSError as e:
            self._not_sent(step, e)
            return
        self._sent, self._sending = step, self._pool.submit(self._publish, held, step)
        if wait:
            self._sending.result()

    def _hold(self, held: Path) -> None:
        """The files are removed when there are newer ones, maybe before they have been read."""
        shutil.rmtree(held, ignore_errors=True)
        held.mkdir(exist_ok=True)
        for path in self.folder.glob("*.ckpt"):
            # that of the last epoch is of no use beside a later one
            if not (path.name.startswith("last-") and any(self.folder.glob("step-*.ckpt"))):
                _link(path, held / path.name)

    def _publish(self, held: Path, step: int) -> None:
        try:
            self.unfinished.keep({p.name: p for p in held.glob("*.ckpt")}, {"step": step})
        except (StoreError, OSError) as e:
            self._not_sent(step, e)
        finally:
            shutil.rmtree(held, ignore_errors=True)

    def _not_sent(self, step: int, error: Exception) -> None:
        self.logger.warning(f"the state after step {step} could not be kept in the store ({error}); it is tried again in {self.every:g} s")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # no hard links on this filesystem
        shutil.copyfile(source, target)


def guarded(fit: Callable[[Stopping], None], describe: Callable[[], str], numbers: Sequence[int] = SIGNALS) -> None:
    """Runs ``fit(stopping)``; what a signal has ended becomes KeyboardInterrupt (or what the process makes of an interrupt) or MakeRoom.

    Args:
        describe: words about what was kept.
        numbers: of the signals.
    """
    stopping = Stopping(numbers)
    try:
        with stopping:
            fit(stopping)
    except Stopped:
        stopping.finish(describe())
