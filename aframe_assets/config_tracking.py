"""The section ``execution.training.tracking``: where a training writes down how it goes."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from aframe_assets.config_quantities import Section


class Tracking(Section):
    """Loggers. Keys and passwords come from the environment alone (WANDB_API_KEY, MLFLOW_TRACKING_USERNAME, ..._PASSWORD)."""

    loggers: list[Literal["csv", "tensorboard", "wandb", "mlflow"]] = Field(
        default=["csv", "tensorboard"], description="'wandb' and 'mlflow' need the extra `tracking`"
    )
    project: str = Field(default="aframe", min_length=1, description="project of Weights & Biases, experiment of MLflow")
    entity: str | None = Field(default=None, description="user or team of Weights & Biases")
    group: str | None = Field(default=None, description="group of Weights & Biases, tag `group` of MLflow")
    tags: list[str] = Field(default=[], description="of the run")
    offline: bool = Field(default=False, description="Weights & Biases: only files, in the logs; `wandb sync` sends them later")
    mlflow_uri: str | None = Field(
        default=None, description="MLflow server or store; None: MLFLOW_TRACKING_URI, else a database in the logs"
    )

    @field_validator("loggers")
    @classmethod
    def _once(cls, loggers: list[str]) -> list[str]:
        if len(set(loggers)) != len(loggers):
            raise ValueError("expected each logger once: two would write to the same files")
        return loggers

    @field_validator("mlflow_uri")
    @classmethod
    def _no_secret(cls, uri: str | None) -> str | None:
        if uri and "@" in urlsplit(uri).netloc:
            raise ValueError(
                "the address carries credentials, and this file is copied into artifacts; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        return uri
