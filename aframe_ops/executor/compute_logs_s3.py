"""Output of steps on S3, for web pages on any machine: Dagster's manager, around the files that a step's worker writes anyway."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dagster._serdes import ConfigurableClassData
from dagster_aws.s3.compute_log_manager import S3ComputeLogManager

from aframe_ops.executor.compute_logs import StepLogManager
from aframe_ops.executor.worker import LOG_VARIABLE


class S3StepLogManager(S3ComputeLogManager):
    """Dagster's manager, which uploads what is in files of this machine; in a step's worker those are the worker's own.

    It takes that manager's settings. `local_dir` is where files are until they are uploaded, and what was fetched again;
    default: beside the output of the step, or ``$DAGSTER_HOME/storage`` where there is none.
    """

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> S3StepLogManager:
        made = cls(inst_data=inst_data, **config_value)
        made._local_manager = StepLogManager(config_value.get("local_dir") or _folder())
        return made


def _folder() -> str:
    written = os.environ.get(LOG_VARIABLE)
    # a second name for a file has to be on its file system
    return str(Path(written).parent / ".captured" if written else Path(os.environ["DAGSTER_HOME"], "storage"))
