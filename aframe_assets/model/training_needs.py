"""What a training needs installed and set where it runs; imports nothing heavy, so that it can be asked before anything starts."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aframe_assets.config_model import TrainingResources
    from aframe_assets.config_tracking import Tracking


def lacking_for_compilation(resources: TrainingResources) -> str | None:
    """What ``execution.training.compile`` lacks here, and what to do; None when nothing is."""
    if resources.compile and shutil.which(os.environ.get("CXX", "g++")) is None:
        return "execution.training.compile = True: there is no C++ compiler here (g++, or what CXX names); install one, or set it false"
    return None


def wandb_is_offline(tracking: Tracking) -> bool:
    """Whether Weights & Biases is to write files alone."""
    return tracking.offline or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")


def lacking_for_loggers(tracking: Tracking) -> str | None:
    """The first thing that the loggers asked for lack here, package or key, and what to do; None when nothing is."""
    where = "execution.training.tracking.loggers"
    for name in ("wandb", "mlflow"):
        if name not in tracking.loggers:
            continue
        if name == "wandb" and not wandb_is_offline(tracking) and not os.environ.get("WANDB_API_KEY"):
            return (
                f"{where}: 'wandb' needs WANDB_API_KEY in the environment of the step (in batch jobs: named in executor.env of site.yaml, "
                "or in a Secret), or tracking.offline: true"
            )
        # find_spec raises for what sys.modules holds without a spec, as a test or a failed import leaves it
        if sys.modules.get(name, ...) is None or (name not in sys.modules and importlib.util.find_spec(name) is None):
            return f"{where}: '{name}' is not installed; install the extra [tracking], or leave it out"
    return None
