"""Where a training writes down how it goes: files, Weights & Biases, MLflow.

A server that is lost, or a disk that is full, while a training runs costs figures and never the training. Keys and passwords are
read from the environment by the clients themselves, and by nothing here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from aframe_assets.model.training_needs import lacking_for_loggers, wandb_is_offline

if TYPE_CHECKING:
    from aframe_assets.config import Config

LOST_S = 60.0
"""A server that did not answer is left alone for so long."""

KEY_TAG = "aframe.training"
"""Tag of MLflow by which another try of a training finds its run."""


class Tolerant(Logger):
    """`inner`, whose failures end nothing: they are told, once until it works again.

    Args:
        inner: a logger, which asks a server or writes to a disk that may be full.
        log: is told.
    """

    def __init__(self, inner: Logger, log: logging.Logger):
        super().__init__()
        self.inner, self._log, self._until, self._lost = inner, log, float("-inf"), False

    @property
    def name(self) -> str | None:
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        return self.inner.version

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._try(lambda: self.inner.log_metrics(dict(metrics), step))

    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        self._try(lambda: self.inner.log_hyperparams(dict(params), *args, **kwargs))

    def save(self) -> None:
        self._try(self.inner.save)

    def finalize(self, status: str) -> None:
        self._until = float("-inf")
        self._try(lambda: self.inner.finalize(status))

    def close(self) -> None:
        """Sends what is left; a step's process ends without doing so."""
        if isinstance(self.inner, WandbLogger):
            self._try(lambda: self.inner.experiment.finish())

    def _try(self, call: Callable[[], None]) -> None:
        if time.monotonic() < self._until:
            return
        try:
            call()
        except Exception as e:
            self._until = time.monotonic() + LOST_S
            if not self._lost:
                said = f"{type(self.inner).__name__} does not take figures ({_words(e)})"
                self._log.warning(f"{said}; training goes on without them")
            self._lost = True
        else:
            self._lost = False


def loggers(config: Config, workdir: Path, key: str | None, log: logging.Logger) -> list[Logger]:
    """The loggers that ``execution.training.tracking`` asks for; their files are below ``workdir/logs``.

    Args:
        key: the same for all tries of one training, so that they go on with one run of a server; by default one of `workdir`.

    Raises:
        ValueError: a library or key is missing, or the server does not answer, and what to do.
    """
    if lacking := lacking_for_loggers(config.execution.training.tracking):
        raise ValueError(lacking)
    logs = workdir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    key = (key or hashlib.sha256(f"{workdir.resolve()} {config.model_dump_json()}".encode()).hexdigest())[:16]
    made: list[Logger] = []
    for name in config.execution.training.tracking.loggers:
        if name == "csv":
            starts = len(list(logs.glob("csv/*")))
            inner: Logger = CSVLogger(workdir, name="logs/csv", version=f"start_{starts}", flush_logs_every_n_steps=10)
        elif name == "tensorboard":
            inner = TensorBoardLogger(workdir, name="logs", version="tensorboard")
        else:
            inner = _wandb(config, logs, key) if name == "wandb" else _mlflow(config, logs, key)
        made.append(Tolerant(inner, log))
        if name in ("wandb", "mlflow"):
            made[-1].log_hyperparams(_settings(config))
    return made


def close(loggers: Sequence[Logger]) -> None:
    """After the training."""
    for logger in loggers:
        if isinstance(logger, Tolerant):
            logger.close()


def publishable(logs: Path) -> Path:
    """The folder of a training's logs with files of its own alone.

    W&B leaves links beside them, to its latest run and into its cache: an artifact takes no folder behind a link, and what is
    outside of the logs, with what it says of this machine, is none of its business.
    """
    for path in list(logs.rglob("*")):
        if path.is_symlink():
            path.unlink()
    return logs


def _words(error: Exception) -> str:
    """The first line of what it says, without what an address may carry of a user and password."""
    said = str(error).strip().splitlines()
    return re.sub(r"://[^/@\s]*@", "://", f"{type(error).__name__}: {said[0][:300] if said else ''}")


def _settings(config: Config) -> dict[str, Any]:
    model = {"architecture": config.model.architecture, "training": config.model.training, "conditioning": config.conditioning}
    return {"ifos": config.ifos, "sample_rate": config.sample_rate, **{k: v.model_dump(mode="json") for k, v in model.items()}}


def _wandb(config: Config, logs: Path, key: str) -> WandbLogger:
    t = config.execution.training.tracking
    import wandb

    # no command line, packages or git remote: they name paths and people
    settings = wandb.Settings(console="off", disable_git=True, x_disable_meta=True, save_code=False, silent=True)
    return WandbLogger(
        name=f"{config.name} {key[:8]}",
        save_dir=logs,
        id=key,
        project=t.project,
        entity=t.entity,
        group=t.group,
        tags=t.tags or None,
        offline=wandb_is_offline(t),
        resume="allow",
        settings=settings,
    )


def _mlflow(config: Config, logs: Path, key: str) -> MLFlowLogger:
    t = config.execution.training.tracking
    uri = t.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{logs / 'mlflow.db'}"
    # its own default waits minutes for a server that is gone, each time
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(t.project)
        known = experiment and client.search_runs([experiment.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
        logger = MLFlowLogger(
            experiment_name=t.project,
            run_name=f"{config.name} {key[:8]}",
            tracking_uri=uri,
            tags={KEY_TAG: key, **({"group": t.group} if t.group else {}), **dict.fromkeys(t.tags, "")},
            run_id=known[0].info.run_id if known else None,
        )
        _ = logger.experiment
    except Exception as e:
        raise ValueError(
            f"execution.training.tracking: the MLflow server does not take this training ({_words(e)}); check mlflow_uri or "
            "MLFLOW_TRACKING_URI and MLFLOW_TRACKING_USERNAME, ..._PASSWORD, or leave 'mlflow' out of loggers"
        ) from None
    return logger
