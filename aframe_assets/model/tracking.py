"""Loggers of a training: files, Weights & Biases, MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

if TYPE_CHECKING:
    from aframe_assets.config import Config


def loggers(config: Config, workdir: Path, resumed: dict[str, Any] | None) -> list[Logger]:
    """The loggers that ``execution.training.tracking`` asks for; their files are below ``workdir/logs``."""
    logs = workdir / "logs"
    starts = len(list(logs.glob("csv/*"))) if logs.is_dir() else 0
    return [
        CSVLogger(workdir, name="logs/csv", version=f"start_{starts}", flush_logs_every_n_steps=10),
        TensorBoardLogger(workdir, name="logs", version="tensorboard"),
    ]
