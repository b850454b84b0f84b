"""`--devices` of `aframe run`: what one training and this machine's steps use, for this run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aframe_assets.config_load import ConfigError

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_ops.site import SiteConfig


def with_devices(config: Config, site: SiteConfig, devices: str) -> tuple[Config, SiteConfig]:
    """The experiment and site with `devices` in place of what they say of devices.

    Args:
        devices: GPUs as CUDA_VISIBLE_DEVICES names them, with commas: local steps get these and no others, and one training gets all of
            them. Or ``cpu`` once for each process of a training.

    Raises:
        ConfigError: anything else.
    """
    names = [d.strip() for d in devices.split(",")]
    if set(names) == {"cpu"}:
        return _with_training(config, devices=names, gpus=0), site
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[0-9]+|(GPU|MIG)-[A-Za-z0-9/-]+", d) for d in names):
        raise ConfigError(f"--devices {devices}: expected different GPUs, as 0,1 or GPU-8f3c, or cpu once for each process, as cpu,cpu")
    executor = site.executor.model_copy(update={"gpus": names})
    return _with_training(config, devices=None, gpus=len(names)), site.model_copy(update={"executor": executor})


def _with_training(config: Config, **values: object) -> Config:
    training = config.execution.training.model_copy(update=values)
    return config.model_copy(update={"execution": config.execution.model_copy(update={"training": training})})
