"""What a batch system has to offer, so that `batch.BatchHandler` can run steps on it."""

from __future__ import annotations

import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from aframe_ops.executor.base import Request


class Unreachable(Exception):
    """The scheduler could not be asked, or did not answer in time. Nothing is known about any job; the words say why.

    Raised by `submit`, it may be that the job was accepted all the same.
    """


class Refused(Exception):
    """The scheduler will never take this job as it is. The words are its own, and say which key of site.yaml to change."""


class Full(Exception):
    """The scheduler takes no more jobs like this one now; it is tried again while others go on. The words are its own.

    Attributes:
        surely: room is all that is missing. Otherwise it may be that such a job will never be taken, and it counts as
            refused where no job of the run is queued that could make room.
    """

    def __init__(self, words: str, *, surely: bool = False):
        super().__init__(words)
        self.surely = surely


class Phase(Enum):
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class JobState:
    """A job as its scheduler sees it.

    Attributes:
        phase: pending takes in everything before the step's own process starts (queued, held, pulling an image); ended is
            final, whatever the exit code was.
        words: pending: why it waits. Ended: what became of it, as the end of a sentence that starts with 'job 12':
            ``was killed because it used more than its 4 GB of memory``.
        seconds: for how long it has been running, by the scheduler's clock; 0 while it is pending.
        stuck: it is pending for a reason that time alone does not cure (held, unschedulable). It stays healthy, and the
            user is told once.
    """

    phase: Phase
    words: str = ""
    seconds: float = 0.0
    stuck: bool = False


@dataclass(frozen=True)
class Usage:
    """What a job really used. None where it is not known.

    Attributes:
        elapsed_s: wall time, seconds.
        cpu_s: processor time of all its processes, seconds.
        max_memory_gb: largest resident memory, GB (1e9 bytes).
        host: where it ran.
    """

    elapsed_s: float | None = None
    cpu_s: float | None = None
    max_memory_gb: float | None = None
    host: str | None = None


@dataclass(frozen=True)
class BatchJob:
    """One attempt at one step, ready to be submitted.

    Attributes:
        name: unique among all attempts of all runs; letters, digits, ``_``, ``.`` and ``-``, at most 63 characters.
        request: what the step asks for, already scaled for this attempt and capped by the site.
        number: 0 for the first attempt; for lists of GPU types to fall back on.
        argv: what the job has to execute. Never to be put into a shell line unquoted.
        spec: file that `argv` reads; only its owner may read it, and it holds every variable of the step's environment,
            credentials of the event database among them. It may be transferred, and never printed or put into `argv`.
        log: output goes to ``{log}.out`` and ``{log}.err``.
        folder: working directory.
        python_path: value that PYTHONPATH needs before `argv` can start; None for none.
        files: what else has to be brought to a job that sees no disk of the submitting machine.
    """

    name: str
    request: Request
    number: int
    argv: tuple[str, ...]
    spec: Path
    log: Path
    folder: Path
    python_path: str | None = None
    files: tuple[Path, ...] = ()


_SIGNALS = {"SIGKILL": " (by hand, or because memory ran out)", "SIGUSR1": " (its time limit was near before Python had started)"}


def exit_words(code: int | str, number: int = 0) -> str:
    """`JobState.words` of a job whose process ended with exit code `code`, or by signal `number` if that is not 0."""
    if not number:
        return f"ended with exit code {code} without reporting a result"
    name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
    return f"was killed by {name}{_SIGNALS.get(name, '')}"


class Scheduler(ABC):
    """A batch system. One object serves one run; it is used from one thread.

    `BatchHandler` does the rest: it writes the files of each attempt, scales requests, asks `poll` about all jobs of the
    run at once and not more often than the site allows, keeps steps healthy while the scheduler does not answer, counts
    time limits, consults the event log before it calls a step dead, tells the user, and cleans up. So an implementation
    only translates:

    - `submit` turns a `BatchJob` into native directives and returns the job's id;
    - `poll` turns native states into `JobState`;
    - `cancel` ends jobs.

    Every method blocks, and is called from the loop that also starts and watches all other steps: set a time limit of a
    few tens of seconds on each command or request, and raise `Unreachable` when it passes. Raise `Unreachable` also for
    whatever may be cured by time (connection refused, a server error, too many requests), and nothing else for it: any
    other exception is taken to be a bug. When a step is launched it ends the run; later it is written to the event log,
    with its traceback, each time that the scheduler is asked, and the run goes on.

    A job must never be started a second time by the scheduler itself (``--no-requeue``, ``backoffLimit: 0``,
    ``max_retries = 0``): trying again is Dagster's business, with a new attempt and a larger request. Should it happen
    anyway, the second start finds its spec gone and ends at once.
    """

    name: str
    """The backend's name in site.yaml and tags."""

    python: str = sys.executable
    """The interpreter that `BatchJob.argv` starts with, where the job runs."""

    warn_s: float = 0.0
    """Seconds before its time limit at which a job interrupts itself; 0 where the scheduler does that, or nobody."""

    together: int = 1
    """How many jobs that differ in nothing but their command `submit_together` takes at once."""

    code: str = ""
    """Version of the code that jobs run, where it is not that which is installed there."""

    cancel_words: str = "cancel job {}"
    """What a user types to end a job; ``{}`` stands for its id."""

    place: str = ""
    """Which of the batch systems of this name it is (server and namespace, cluster): ids mean nothing in another. Empty where
    that cannot be told. It is written down for others to read, so no secret is in it; and it is had without asking the server."""

    shared_disk: bool = True
    """False: jobs start in a folder of their own, to which the scheduler brings `BatchJob.spec` and `BatchJob.files`, and
    from which it brings back new files beside `BatchJob.log`."""

    @abstractmethod
    def submit(self, job: BatchJob) -> str:
        """Submits `job` and returns its id, as `poll` and `cancel` take it and as the user would type it.

        Raises:
            Refused: it will never be taken.
            Full: not beside those that are there already.
            Unreachable: not now. `find` is asked before the same job is submitted again.
        """

    def submit_together(self, jobs: Sequence[BatchJob]) -> Sequence[str]:
        """Submits jobs with the same request, number, folder and interpreter in one request; their ids, in their order.

        At most `together` of them, so that the default has one.

        Raises:
            Refused: none of them will ever be taken.
            Full: not so many of them beside those that are there already; none has been submitted.
            Unreachable: not now; either all of them have been submitted or none. `find` knows each by its own name.
        """
        (job,) = jobs
        return [self.submit(job)]

    @abstractmethod
    def find(self, name: str) -> str | None:
        """The id of the job that was submitted under this `BatchJob.name`, queued, running or just ended; None if there is none.

        Raises:
            Unreachable: nothing is known.
        """

    def find_many(self, names: Sequence[str]) -> Mapping[str, str]:
        """`find` for many names, without those that are not there; override it where one request can do.

        Raises:
            Unreachable: nothing is known.
        """
        return {name: id for name in names if (id := self.find(name)) is not None}

    @abstractmethod
    def poll(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        """States of all these jobs, by id, from as few requests as can be (one, not one for each job).

        Called for jobs that have not been seen to end, at least one. Jobs that the scheduler does not know are left out
        of the answer: that may be because they are too new or too old, and they are called lost only if it lasts.

        Raises:
            Unreachable: nothing is known.
        """

    def watch(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        """What `poll` says, without any side effect: for whoever looks at the jobs of another run.

        Raises:
            Unreachable: nothing is known.
        """
        return self.poll(ids)

    @abstractmethod
    def cancel(self, ids: Sequence[str]) -> None:
        """Ends these jobs, in whatever phase; unknown and ended ones are no error.

        Raises:
            Unreachable: nothing is known.
        """

    def interrupt(self, ids: Sequence[str]) -> None:
        """Sends SIGINT to the steps of these running jobs, so that they can report before they are cancelled.

        The default cancels them, which is right where cancelling sends SIGTERM and waits.
        """
        self.cancel(ids)

    def usage(self, ids: Sequence[str]) -> Mapping[str, Usage]:
        """What these ended jobs used, as far as the scheduler has it; asked only for jobs that could not say so themselves."""
        return {}
