"""What the web page shows as a step's output: the very files that the step's worker writes.

Dagster's local manager starts four helper processes per step to copy output from one file to another, and may lose the
last lines. A worker of ours writes to files from its first moment, so a second name for them is all that is needed.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

from dagster import Field, Float, Noneable, StringSource
from dagster._core.storage.compute_log_manager import CapturedLogContext
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._serdes import ConfigurableClassData

from aframe_ops.executor.worker import LOG_VARIABLE


class StepLogManager(LocalComputeLogManager):
    """Dagster's local manager, except inside a step's worker.

    Args:
        base_dir: default ``$DAGSTER_HOME/storage``.
    """

    @classmethod
    def config_type(cls):
        return {"base_dir": Field(Noneable(StringSource), is_required=False), "polling_timeout": Field(Float, is_required=False)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value) -> StepLogManager:
        base = config_value.get("base_dir") or str(Path(os.environ["DAGSTER_HOME"], "storage"))
        return cls(inst_data=inst_data, **{**config_value, "base_dir": base})

    @contextlib.contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Generator[CapturedLogContext, None, None]:
        if LOG_VARIABLE in os.environ and self._adopt(log_key, os.environ[LOG_VARIABLE]):
            yield CapturedLogContext(log_key)
            # whoever reads the files at the end of the step finds all of them
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            Path(self.complete_artifact_path(log_key)).touch()
            return
        with super().capture_logs(log_key) as context:
            yield context

    def _adopt(self, log_key: Sequence[str], written: str) -> bool:
        try:
            for suffix in ("out", "err"):
                path = Path(self.get_captured_local_path(log_key, suffix))
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(f"{written}.{suffix}", path)
        except OSError:  # logs and DAGSTER_HOME on different file systems
            return False
        return True
