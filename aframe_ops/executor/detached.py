"""A step in a job without any route to Dagster's database.

It runs exactly as it would elsewhere, but against an instance in memory, which knows of the outer world what its
`reference` holds. What it reports is appended to ``{log}.events``, a line for each event, and `relay` stores it where it
belongs.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._cli.api import _execute_step_command_body
from dagster._core.event_api import EventLogRecord
from dagster._core.events.log import EventLogEntry
from dagster._core.instance.types import InstanceType
from dagster._core.launcher.sync_in_memory_run_launcher import SyncInMemoryRunLauncher
from dagster._core.run_coordinator import DefaultRunCoordinator
from dagster._core.snap import ExecutionPlanSnapshot
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.storage.event_log import InMemoryEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster._core.storage.root import TemporaryLocalArtifactStorage
from dagster._core.storage.runs import InMemoryRunStorage
from dagster._grpc.types import ExecuteStepArgs
from dagster._serdes import deserialize_value, serialize_value
from dagster._utils.interrupts import capture_interrupts
from dagster_shared.record import replace
from sqlalchemy import func, select

from aframe_ops.executor.reference import EVENTS, FIRST_ID, unpacked
from aframe_ops.executor.worker import LOG_VARIABLE

ARGS_VARIABLE = "DAGSTER_COMPRESSED_EXECUTE_STEP_ARGS"


class EventFile:
    """A file that grows by whole lines, each on the disk before `append` returns."""

    def __init__(self, path: Path):
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, line: str) -> None:
        """Adds `line`, which has no line end.

        Raises:
            OSError: the disk is full or gone; no part of the line is in the file, or all of it.
        """
        data, size = line.encode() + b"\n", os.fstat(self._fd).st_size
        whole = size + len(data)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except BaseException:
            with contextlib.suppress(OSError):
                # An interrupt may come when all is written and nothing yet knows it: a whole line may have been read, and stays.
                if os.fstat(self._fd).st_size < whole:
                    os.ftruncate(self._fd, size)
            raise
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class JobEventLog(InMemoryEventLogStorage):
    """An event log in memory that holds what a step asks about others, and writes down what the step itself reports.

    Args:
        file: gets a line for each event of the step, and for each change of dynamic partitions.
        records: latest events of other assets, stored under the numbers that they have in the database.
        versions: asset -> partition -> tags of its latest materialization.
        partitions: keys of dynamic partitions, in order, by the name of their set.
    """

    def __init__(
        self,
        file: EventFile,
        records: Sequence[EventLogRecord],
        versions: Mapping[str, Mapping[str, Mapping[str, str]]],
        partitions: Mapping[str, Sequence[str]],
    ):
        super().__init__()
        self._file, self._versions, self._lock = file, versions, threading.RLock()
        latest = 0
        for record in sorted(records, key=lambda r: r.storage_id):
            if record.storage_id - 1 > latest:
                self._number_after(record.storage_id - 1)
            super().store_event(record.event_log_entry)
            latest = record.storage_id
        self._number_after(FIRST_ID)
        for name, keys in partitions.items():
            super().add_dynamic_partitions(name, keys)

    def _number_after(self, number: int) -> None:
        """SQLite counts on from the largest number that is there; an entry of no run is in nobody's way."""
        with self.run_connection() as connection:
            connection.execute(SqlEventLogStorageTable.insert().values(id=number, run_id="", event=""))

    def _next_number(self) -> int:
        with self.run_connection() as connection:
            return connection.execute(select(func.max(SqlEventLogStorageTable.c.id))).scalar_one() + 1

    def store_event(self, event: EventLogEntry) -> None:
        with self._lock:
            # Written first: what the step has been told is stored may not be lost.
            self._file.append(f'{{"id": {self._next_number()}, "event": {serialize_value(event)}}}')
            super().store_event(event)

    def add_dynamic_partitions(self, partitions_def_name: str, partition_keys: Sequence[str]) -> None:
        self._file.append(json.dumps({"partitions": partitions_def_name, "add": list(partition_keys)}))
        super().add_dynamic_partitions(partitions_def_name, partition_keys)

    def delete_dynamic_partition(self, partitions_def_name: str, partition_key: str) -> None:
        self._file.append(json.dumps({"partitions": partitions_def_name, "delete": partition_key}))
        super().delete_dynamic_partition(partitions_def_name, partition_key)

    def get_latest_tags_by_partition(
        self, asset_key, event_type, tag_keys, asset_partitions=None, before_cursor=None, after_cursor=None
    ) -> Mapping[str, Mapping[str, str]]:
        own = super().get_latest_tags_by_partition(asset_key, event_type, tag_keys, asset_partitions, before_cursor, after_cursor)
        if event_type is not dg.DagsterEventType.ASSET_MATERIALIZATION or before_cursor or after_cursor:
            return own
        known = self._versions.get(asset_key.to_user_string(), {})
        wanted = {p: tags for p, tags in known.items() if asset_partitions is None or p in asset_partitions}
        return {**{p: {k: v for k, v in tags.items() if k in tag_keys} for p, tags in wanted.items()}, **own}


def job_instance(known: Mapping[str, Any], run: DagsterRun, file: EventFile) -> dg.DagsterInstance:
    """An instance in memory for one step of `run`.

    Args:
        known: see `reference.known`.
    """
    records = [deserialize_value(text, EventLogRecord) for text in known["records"]]
    instance = dg.DagsterInstance(
        instance_type=InstanceType.EPHEMERAL,
        local_artifact_storage=TemporaryLocalArtifactStorage(),
        run_storage=InMemoryRunStorage(),
        event_storage=JobEventLog(file, records, known["versions"], known["partitions"]),
        compute_log_manager=NoOpComputeLogManager(),  # the job's output is in files; `relay` shows them
        run_coordinator=DefaultRunCoordinator(),
        run_launcher=SyncInMemoryRunLauncher(),
    )
    if known["plan"]:
        instance.run_storage.add_execution_plan_snapshot(deserialize_value(known["plan"], ExecutionPlanSnapshot))
    instance.run_storage.add_run(replace(run, job_snapshot_id=None, execution_plan_snapshot_id=None))
    return instance


def execute(spec: Mapping[str, Any]) -> int:
    """Runs the step of `spec` in this process, whose environment is set; returns its exit code."""
    from aframe_ops.executor.mailbox import sending

    args = deserialize_value(zlib.decompress(base64.b64decode(os.environ[ARGS_VARIABLE])).decode(), ExecuteStepArgs)
    known = unpacked(spec["reference"])
    run = deserialize_value(known["run"], DagsterRun)
    file = EventFile(Path(f"{os.environ[LOG_VARIABLE]}.{EVENTS}"))
    with contextlib.closing(file), sending(file.path, spec.get("mailbox") if spec.get("away") else None), capture_interrupts():
        with job_instance(known, run, file) as instance:
            for _ in _execute_step_command_body(args, instance, run):
                pass
    return 0
