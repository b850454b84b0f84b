"""Brings what a detached step has reported into Dagster's event log: each event once, in order, as soon as it is there."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.events.log import EventLogEntry
from dagster._serdes import deserialize_value, serialize_value
from dagster_shared.check import CheckError
from dagster_shared.serdes.errors import DeserializationError

from aframe_assets.store.errors import StoreError
from aframe_ops.executor.base import FINAL, Attempt
from aframe_ops.executor.mailbox import Mailbox
from aframe_ops.executor.reference import FIRST_ID
from aframe_ops.executor.step_output import StepOutput

_POINTER = "dagster/input_event_pointer/"
RECENT = 100
"""Among so many latest events of an asset is the one that this step has just reported."""

_REFERRED = {dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_OBSERVATION}


class Source:
    """The bytes that one attempt has reported: its file, or what it has sent while there is none.

    Args:
        path: the file, where it is seen from here, or comes to when the job has ended.
        mailbox: where the job sends to, if it may not see `path`; and `name`, the name that it sends under.
    """

    def __init__(self, path: Path, mailbox: Mailbox | None = None, name: str = ""):
        self.path, self._mailbox, self._name = path, mailbox, name

    def read(self, offset: int) -> bytes:
        """From byte `offset` to the end of what is there.

        Raises:
            OSError, StoreError: it cannot be read now.
        """
        try:
            with self.path.open("rb") as f:  # opened anew each time: NFS looks for changes then
                f.seek(offset)
                if data := f.read():
                    return data
        except FileNotFoundError:
            pass
        return self._mailbox.read(self._name, offset) if self._mailbox else b""

    def discard(self, offset: int) -> None:
        """Nobody will read again what was sent before byte `offset`, where a line begins."""
        if self._mailbox:
            with contextlib.suppress(OSError, StoreError):  # it is removed with the rest at the run's end
                self._mailbox.discard(self._name, offset)


class EventRelay:
    """Stores the events of one attempt in `instance`.

    Args:
        instance: the run worker's.
        attempt: whose events they are; others are left out.
        source: where they come from.
        output: what the web page shows as the step's output.
        tell: reports something about the attempt.
        fresh: nothing was stored before this relay. Otherwise the event log is searched for what a relay before this one
            has stored.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        attempt: Attempt,
        source: Source,
        output: StepOutput,
        tell: Callable[[str], None],
        *,
        fresh: bool = True,
    ):
        self._instance, self._attempt, self._source, self._output, self._tell = instance, attempt, source, output, tell
        self._offset = 0
        self._in_doubt = not fresh
        self._stored: Counter[str] | None = None
        self._ids: dict[int, int] = {}
        self._unnumbered: dict[int, tuple[dg.DagsterEvent, str]] = {}
        self._finished = False
        self.behind: str | None = None

    def pump(self) -> None:
        """Stores what is new. `behind` then says why something may be missing; None if nothing is.

        An exception of the event log is passed on; the next call goes on where this one stopped.
        """
        try:
            data = self._source.read(self._offset)
        except (OSError, StoreError) as e:
            if self.behind is None:
                self._tell(f"events of {self._attempt} cannot be read now ({e}); the run waits for them")
            self.behind = str(e)
            return
        self.behind = None
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):  # still being written, or cut off with the job
                break
            self._take(line)
            self._offset += len(line)
        if self._finished:  # what is listed at each look stays short; and late lines go the same way
            self._source.discard(self._offset)

    def finish(self) -> None:
        """The job has ended: stores what is left, and closes the step's output."""
        self._finished = True
        self.pump()
        self._output.finish()

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            if "partitions" in message:
                self._change_partitions(message)
                return
            number, event = message["id"], message["event"]
            if event["run_id"] != self._attempt.run_id:
                raise ValueError(f"it is of run {event['run_id']}")
            entry = deserialize_value(json.dumps(_with_ids(event, self._host_id)), EventLogEntry)
        except (ValueError, TypeError, KeyError, CheckError, DeserializationError) as e:
            self._tell(f"a line of {self._source.path} is damaged and was left out ({type(e).__name__}: {e})")
            return
        text = serialize_value(entry)
        if not self._is_stored(text):
            # A failure, or an interrupt, leaves open whether it was stored.
            self._in_doubt, self._stored = True, None
            self._instance.handle_new_event(entry)
            self._in_doubt = False
        if entry.dagster_event and entry.dagster_event.event_type in _REFERRED:
            self._unnumbered[number] = entry.dagster_event, text
        if entry.dagster_event and entry.dagster_event.event_type in FINAL:  # no event after it refers to another
            self._unnumbered.clear()
        if entry.dagster_event and entry.dagster_event.event_type is dg.DagsterEventType.LOGS_CAPTURED:
            self._output.open(entry.dagster_event.logs_captured_data.file_key)

    def _change_partitions(self, message: Mapping[str, Any]) -> None:
        # doing either a second time changes nothing
        if "add" in message:
            self._instance.add_dynamic_partitions(message["partitions"], message["add"])
        else:
            self._instance.delete_dynamic_partition(message["partitions"], message["delete"])

    def _is_stored(self, text: str) -> bool:
        """Whether a relay that was interrupted has stored this event already. Times in microseconds make events unique."""
        if not self._in_doubt:
            return False
        if self._stored is None:
            entries = self._instance.all_logs(self._attempt.run_id)
            self._stored = Counter(serialize_value(entry) for entry in entries)
        if self._stored[text] == 0:
            return False
        self._stored[text] -= 1
        return True

    def _host_id(self, number: int) -> int:
        """The number in the event log of the event that the job calls `number`."""
        if number not in self._ids:
            event, text = self._unnumbered[number]
            materialized = event.event_type is dg.DagsterEventType.ASSET_MATERIALIZATION
            fetch = self._instance.fetch_materializations if materialized else self._instance.fetch_observations
            wanted = dg.AssetRecordsFilter(event.asset_key, asset_partitions=None if event.partition is None else [event.partition])
            same = [r for r in fetch(wanted, limit=RECENT).records if serialize_value(r.event_log_entry) == text]
            if not same:
                raise KeyError(f"event {number}, to which it refers, is not in the event log")
            self._ids[number] = same[0].storage_id
        return self._ids[number]


def _with_ids(value: Any, host_id: Callable[[int], int], key: str = "") -> Any:
    """`value` with the job's own numbers of events replaced by those of the event log."""
    if isinstance(value, dict):
        return {k: _with_ids(v, host_id, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_with_ids(v, host_id) for v in value]
    if key == "storage_id" and isinstance(value, int) and value > FIRST_ID:
        return host_id(value)
    if key.startswith(_POINTER) and isinstance(value, str) and value.isdigit() and int(value) > FIRST_ID:
        return str(host_id(int(value)))
    return value
