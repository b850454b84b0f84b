"""The output of a detached step, shown on the web page as that of every other step."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from dagster._core.storage.cloud_storage_compute_log_manager import CloudStorageComputeLogManager
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager


class StepOutput:
    """Shows ``{log}.out`` and ``{log}.err`` as the output of one attempt at a step of run `run_id`."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str, log: Path):
        self._manager, self._run_id, self._log = instance.compute_log_manager, run_id, log
        self._key: Sequence[str] | None = None
        self._copied = False

    def open(self, file_key: str) -> None:
        """From now on the output is shown; `file_key` is how the step's events call it."""
        self._key = self._manager.build_log_key_for_run(self._run_id, file_key)
        if (local := self._local) is None:
            return
        for suffix in ("out", "err"):
            written, shown = Path(f"{self._log}.{suffix}"), Path(local.get_captured_local_path(self._key, suffix))
            shown.parent.mkdir(parents=True, exist_ok=True)
            written.touch()  # what is only brought at the end is added to the same file
            try:
                os.link(written, shown)
            except FileExistsError:
                pass
            except OSError:  # on another file system
                self._copied = True

    def finish(self) -> None:
        """The output is whole."""
        if self._key is None or (local := self._local) is None:
            return
        if self._copied:
            for suffix in ("out", "err"):
                with contextlib.suppress(OSError):
                    shutil.copyfile(f"{self._log}.{suffix}", local.get_captured_local_path(self._key, suffix))
        Path(local.complete_artifact_path(self._key)).touch()
        if isinstance(self._manager, CloudStorageComputeLogManager):
            for kind in (ComputeIOType.STDOUT, ComputeIOType.STDERR):
                try:
                    self._manager.upload_to_cloud_storage(self._key, kind)
                except Exception as e:  # whatever a cloud's client raises: the step's result does not depend on it
                    sys.stderr.write(f"the output of {self._log.name} was not uploaded ({type(e).__name__}); it is in {self._log.parent}\n")
        self._key = None

    @property
    def _local(self) -> LocalComputeLogManager | None:
        manager = self._manager
        if isinstance(manager, CloudStorageComputeLogManager):
            manager = manager.local_manager
        return manager if isinstance(manager, LocalComputeLogManager) else None
