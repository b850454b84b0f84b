"""What a training tells while it runs, and the record of its epochs."""

from __future__ import annotations

import csv
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, RichProgressBar

PERIOD = 20.0
"""Seconds between progress lines where there is no terminal."""


class History(Callback):
    """One row per finished epoch; travels in the checkpoint, so that a resumed training has the whole of it.

    Args:
        tell: is given all rows after each epoch.
    """

    def __init__(self, tell: Callable[[Sequence[Mapping[str, float]]], None] | None = None) -> None:
        self.rows: list[dict[str, float]] = []
        self.tell = tell

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        loss = metrics.get("train_loss_epoch", metrics.get("train_loss"))
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "learning_rate": rate, "train_loss": loss}
        self.rows.append(row | {k: v for k, v in metrics.items() if k.startswith("valid_")})
        if self.tell is not None:
            self.tell(self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])


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
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [r["epoch"] + 1 for r in rows]
    left.plot(epochs, [r["train_loss"] for r in rows], marker=".")
    left.set(xlabel="epoch", ylabel="training loss")
    for name in ("valid_auroc", "valid_efficiency"):
        right.plot(epochs, [r.get(name, float("nan")) for r in rows], marker=".", label=name)
    right.set(xlabel="epoch", ylim=(0, 1.02))
    right.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
