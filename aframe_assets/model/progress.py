"""What a training tells while it runs, and the record of its epochs."""

from __future__ import annotations

import csv
import io
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch import Tensor, distributed

Watch = Callable[[Mapping[str, Any], Mapping[str, bytes]], None]
"""Is shown numbers, and plots (PNG) by title, while a training runs."""

PERIOD = 20.0
"""Seconds between progress lines where there is no terminal."""


class History(Callback):
    """One row per finished epoch; travels in the checkpoint, so that a resumed training has the whole of it.

    The loss of a row is the mean over the epoch's steps, also where the epoch was made by several processes one after the other.

    Args:
        tell: is given all rows after each epoch.
    """

    def __init__(self, tell: Callable[[Sequence[Mapping[str, float]]], None] | None = None) -> None:
        self.rows: list[dict[str, float]] = []
        self.tell = tell
        self._sum: Tensor | float = 0.0
        self._count = 0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # a number of its own at each step would wait for the device
        self._sum, self._count = self._sum + outputs["loss"].detach().double(), self._count + 1

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        loss = self._mean_over_ranks() / max(1, self._count)
        self._sum, self._count = 0.0, 0
        module.log("train_loss_epoch", torch.tensor(loss), rank_zero_only=True)
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "learning_rate": rate, "train_loss": loss}
        self.rows.append(row | {k: v for k, v in metrics.items() if k.startswith("valid_")})
        if self.tell is not None:
            self.tell(self.rows)

    def state_dict(self) -> dict[str, Any]:
        # asked of all ranks at once, as all of it is
        return {"rows": self.rows, "sum": self._mean_over_ranks(), "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self._sum, self._count = list(state["rows"]), state["sum"], state["count"]

    def _mean_over_ranks(self) -> float:
        if isinstance(self._sum, Tensor) and distributed.is_available() and distributed.is_initialized():
            total = self._sum.clone()
            distributed.all_reduce(total)
            self._sum = total / distributed.get_world_size()
        return float(self._sum)


class Observer(Callback):
    """Shows `watch` the first batch, then how it goes.

    Args:
        watch: what it raises is logged, and ends nothing.
        history: has the rows of finished epochs.
        every: least time between two looks, in seconds.
    """

    def __init__(self, watch: Watch, history: History, every: float) -> None:
        self.watch, self.history, self.every = watch, history, every
        self._last, self._step = float("-inf"), -1

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self._step < 0:
            x, y = batch
            counts = {"example_batch_size": len(y), "example_batch_signals": int((y > 0.5).sum())}
            self._show(trainer, counts, lambda: {"example batch": example_batch(x.float().cpu(), y.cpu())})
            self._last, self._step = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # the epoch's end tells more
        if self._due() and batch_idx + 1 < trainer.num_training_batches:
            rate = (trainer.global_step - self._step) / (time.monotonic() - self._last)
            where = {"epoch": trainer.current_epoch, "step": trainer.global_step, "steps_per_s": round(rate, 3)}
            self._show(trainer, where | {"train_loss": float(outputs["loss"])}, dict)
            self._last, self._step = time.monotonic(), trainer.global_step

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        rows = self.history.rows
        if self._due() or len(rows) == 1:
            self._show(trainer, rows[-1], lambda: {"learning curve": learning_curve(rows)})
            self._last, self._step = time.monotonic(), trainer.global_step

    def _due(self) -> bool:
        return time.monotonic() - self._last >= self.every

    def _show(self, trainer: Any, numbers: Mapping[str, Any], draw: Callable[[], Mapping[str, bytes]]) -> None:
        if trainer.is_global_zero:
            try:
                self.watch(numbers, draw())
            except Exception as e:
                logging.getLogger(__name__).warning(f"how the training goes could not be shown ({type(e).__name__}: {e}); it goes on")


class LogLines(Callback):
    """A line every PERIOD seconds and one per epoch, for logs."""

    def __init__(self, log: logging.Logger) -> None:
        self.logger, self._last = log, time.monotonic()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if time.monotonic() - self._last >= PERIOD:
            self._last = time.monotonic()
            total, loss = trainer.num_training_batches, float(trainer.callback_metrics.get("train_loss_step", float("nan")))
            self.logger.info(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, step {batch_idx + 1} of {total}, loss {loss:.4f}")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        # runs before History: callback_metrics hold this epoch's validation already
        found = {k: float(v) for k, v in trainer.callback_metrics.items()}
        parts = [f"{k} {found[k]:.4f}" for k in ("train_loss_epoch", "valid_auroc", "valid_efficiency", "valid_correlation") if k in found]
        self.logger.info(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs} done: {', '.join(parts)}")


def reporters(log: logging.Logger) -> list[Callback]:
    """A progress bar on a terminal, log lines elsewhere."""
    return [RichProgressBar()] if sys.stderr.isatty() and sys.stdout.isatty() else [LogLines(log)]


def write_rows(rows: list[dict[str, Any]], path: Path) -> Path:
    """`rows` as CSV, columns in the order of their first appearance."""
    names = list(dict.fromkeys(k for row in rows for k in row))
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def learning_curve(rows: list[dict[str, Any]]) -> bytes:
    """PNG of training loss and validation metrics against the epoch."""
    figure = _figure(7, 3)
    left, right = figure.subplots(1, 2)
    # counted as in metrics.csv and in the bundle, which names the epoch that was kept
    epochs = [r["epoch"] for r in rows]
    left.plot(epochs, [r["train_loss"] for r in rows], marker=".")
    left.set(xlabel="epoch, counted from 0", ylabel="training loss")
    for name in ("valid_auroc", "valid_efficiency"):
        right.plot(epochs, [r.get(name, float("nan")) for r in rows], marker=".", label=name)
    right.set(xlabel="epoch, counted from 0", ylim=(0, 1.02), ylabel="validation metric")
    right.legend()
    return _png(figure)


def roc_curve(fpr: Sequence[float], tpr: Sequence[float], max_fpr: float) -> bytes:
    """PNG of the share of validation signals found against that of background windows taken for signals.

    Args:
        fpr, tpr: of one threshold each, rising.
        max_fpr: to where the training's partial AUROC counts.
    """
    figure = _figure(5.6, 3.4)
    axes = figure.add_subplot()
    low = min((x for x in fpr if x > 0), default=1e-4)
    axes.step([max(x, low / 2) for x in fpr], tpr, where="post", label="best epoch")
    # a straight line between two points of a logarithmic axis would be another curve
    guesses = np.geomspace(low / 2, 1, 100)
    axes.plot(guesses, guesses, "k:", lw=0.8, label="chance")
    axes.axvspan(low / 2, max(max_fpr, low), color="0.9", label="partial AUROC")
    axes.set(xscale="log", xlim=(low / 2, 1), ylim=(0, 1.02), xlabel="share of background above threshold", ylabel="share of signals above")
    axes.legend(loc="best", fontsize="small")
    return _png(figure)


def example_batch(x: Tensor, y: Tensor, each: int = 3) -> bytes:
    """PNG of the first `each` kernels with signals and as many without.

    Args:
        x: (batch, ifo, samples), whitened.
        y: (batch, 1), labels.
    """
    labels = (y[:, 0] > 0.5).tolist()
    columns = [[i for i, label in enumerate(labels) if label == wanted][:each] for wanted in (True, False)]
    figure = _figure(6.5, 1.0 * each)
    panels = figure.subplots(each, 2, sharex=True, squeeze=False)
    for column, (rows, title) in enumerate(zip(columns, ("label 1", "label 0"), strict=True)):
        for panel in panels[len(rows) :, column]:
            panel.set_axis_off()
        for panel, row in zip(panels[:, column], rows, strict=False):
            offset = 1.2 * 2 * float(x[row].abs().max())
            for ifo, kernel in enumerate(x[row]):
                panel.plot(kernel.numpy() - ifo * offset, linewidth=0.5)
            panel.set_yticks([])
        panels[0, column].set_title(title)
        panels[-1, column].set_xlabel("sample")
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
