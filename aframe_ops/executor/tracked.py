"""What a run worker keeps about one attempt that is a batch job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagster._core.execution.context.system import IStepContext

from aframe_ops.executor.base import Attempt, Relayed
from aframe_ops.executor.scheduler import BatchJob, Phase

if TYPE_CHECKING:
    from aframe_ops.executor.relay import EventRelay


@dataclass
class Tracked:
    """One attempt and its job.

    Attributes:
        relays: bring what the job says to the user, and to the event log if it cannot do that itself.
        id: of the job; None until it was submitted.
        submitted_as: the name that its scheduler has it under: its own, or that of the array that it is in.
        doubtful: it was submitted without an answer, so it may exist.
        ended: what became of the job; None while it is queued or running.
        seen: when its scheduler last knew it, on the monotonic clock.
        told: why it waits, in the words that the user has been told already.
        claimed: its leases are taken.
        trouble: why its relays could not do their work at the last attempt; empty if they could.
    """

    attempt: Attempt
    context: IStepContext
    job: BatchJob
    relays: Sequence[Relayed | EventRelay]
    id: str | None = None
    submitted_as: str = ""
    doubtful: bool = False
    phase: Phase = Phase.PENDING
    ended: str | None = None
    seen: float = 0.0
    told: str = ""
    claimed: bool = False
    trouble: str = ""

    def pump(self) -> None:
        for source in self.relays:
            source.pump()

    def finish(self) -> None:
        for source in self.relays:
            source.finish()

    @property
    def reads_behind(self) -> bool:
        """What it has reported is not all in the event log, and cannot be read at the moment."""
        return bool(self.trouble) or any(source.behind is not None for source in self.relays)
