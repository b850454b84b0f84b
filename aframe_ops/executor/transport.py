"""How a batch job and Dagster's event log come together: by the database itself, or by a file of events (`detached`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dagster._core.executor.step_delegating import StepHandlerContext
from dagster_shared.record import replace

from aframe_assets.store.errors import StoreError
from aframe_ops.executor.base import RELAYED, Attempt, RunFiles, relay
from aframe_ops.executor.mailbox import LEFT_NAME, Mailbox
from aframe_ops.executor.reference import EVENTS, database_variables, known, packed
from aframe_ops.executor.relay import EventRelay, Source
from aframe_ops.executor.step_output import StepOutput


class Detached:
    """Equips jobs that have no route to the database, and follows what they report.

    Args:
        files: the run's files.
        mailbox: where jobs that do not see those files send their events; None: they all see them.
    """

    def __init__(self, files: RunFiles, mailbox: Mailbox | None = None):
        self._files, self._mailbox = files, mailbox

    def equip(self, spec: dict[str, Any], context: StepHandlerContext, attempt: Attempt) -> None:
        """Takes out of `spec` (see `job`) how the database is reached, and puts in what the step would ask it."""
        args = replace(context.execute_step_args, instance_ref=None, should_verify_step=False)
        env = {name: value for name, value in spec["env"].items() if name not in database_variables(context.instance) | {"DAGSTER_HOME"}}
        spec["env"] = env | {e["name"]: e["value"] for e in args.get_command_env()}
        spec["reference"] = packed(known(context, attempt.step))
        if self._mailbox:
            spec["mailbox"] = {"url": self._mailbox.url, "folder": self._mailbox.folder, "name": attempt.filename}

    def follow(self, context: StepHandlerContext, attempt: Attempt, tell: Callable[[str], None]) -> EventRelay:
        """The relay of an attempt that is about to be submitted."""
        source = Source(self._files.of(attempt, EVENTS), self._mailbox, attempt.filename)
        output = StepOutput(context.instance, attempt.run_id, self._files.of(attempt, "err").with_suffix(""))
        return EventRelay(context.instance, attempt, source, output, tell)

    def close(self) -> None:
        """Removes what was sent; a store that does not answer now says nothing about the steps, and `aframe reap` tries again."""
        if not self._mailbox:
            return
        try:
            self._mailbox.clear()
        except (StoreError, OSError) as e:
            (self._files.folder / LEFT_NAME).touch()
            relay(f"{RELAYED} what jobs of this run have sent was not removed from the store ({e}); `aframe reap` removes it")
