"""Steps as processes of this machine, within its cores, memory and GPUs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dagster._core.executor.step_delegating import StepHandlerContext

from aframe_ops.executor.base import Attempt, Handler, Relayed, Request, RunSetup, write_private
from aframe_ops.executor.budget import Budget
from aframe_ops.executor.forkserver import end_group
from aframe_ops.executor.worker import LOG_VARIABLE, THREADS


def describe(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"
        hint = " (by hand, or by the kernel when memory ran out)" if number == signal.SIGKILL else ""
        return f"its process was killed by {name}{hint}"
    return f"its process ended with exit code {os.waitstatus_to_exitcode(status)} without reporting a result"


class ForkedWorkers:
    """Workers forked from a fork server of this run."""

    def __init__(self, setup: RunSetup):
        ours, theirs = socket.socketpair()
        folder = setup.files.folder
        run = "-"
        if setup.warm:
            run = str(folder / "run.json")
            Path(run).write_text(setup.warm)
        extra = ["science"] if setup.science else []
        keep = [theirs.fileno()] + ([setup.lock_fd] if setup.lock_fd >= 0 else [])
        with theirs, (folder / "forkserver.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "aframe_ops.executor.forkserver", str(theirs.fileno()), run, *extra],
                pass_fds=keep,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # numpy would start threads when it is imported, and they would not survive the forks.
                env={**os.environ, **setup.env, "OPENBLAS_NUM_THREADS": "1"},
            )
        self._channel = ours
        self._buffer = b""
        self._started: dict[str, int | None] = {}
        self.alive = True
        self._log = folder / "forkserver.log"

    def _send(self, message: dict) -> None:
        with contextlib.suppress(OSError):  # the next poll says that the server is gone
            self._channel.sendall(json.dumps(message).encode() + b"\n")

    def start(self, name: str, spec: Path) -> None:
        self._started[name] = None
        self._send({"start": name, "spec": str(spec)})

    def signal(self, name: str, number: int) -> None:
        self._send({"signal": name, "number": number})

    def poll(self) -> dict[str, str]:
        """Why each worker that ended since the last call did."""
        ended: dict[str, str] = {}
        while True:
            try:
                data = self._channel.recv(65536, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                data = b""
            if not data:
                reason = f"the fork server of this run ended (see {self._log}), and its process with it"
                ended |= dict.fromkeys(self._started, reason)
                for pid in filter(None, self._started.values()):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)  # the worker died with its parent; what it had started did not
                self._started.clear()
                self.alive = False
                break
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "started" in message:
                    self._started[message["started"]] = message["pid"]
                else:
                    self._started.pop(message["ended"], None)
                    ended[message["ended"]] = describe(message["status"])
        return ended

    def close(self) -> None:
        self._channel.close()  # the server ends its workers, then itself
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class SpawnedWorkers:
    """Workers as new interpreters; where a fork server cannot be used."""

    alive = True

    def __init__(self, setup: RunSetup):
        self._setup = setup
        self._processes: dict[str, subprocess.Popen] = {}

    def start(self, name: str, spec: Path) -> None:
        wanted = json.loads(spec.read_text())["env"]
        log = wanted[LOG_VARIABLE]
        with open(f"{log}.out", "ab") as out, open(f"{log}.err", "ab") as err:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "aframe_ops.executor.worker", str(spec)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **wanted},
                start_new_session=True,
                pass_fds=[self._setup.lock_fd] if self._setup.lock_fd >= 0 else [],
            )

    def signal(self, name: str, number: int) -> None:
        process = self._processes.get(name)
        if process and process.poll() is None:
            end_group(process.pid, number)

    def poll(self) -> dict[str, str]:
        ended = {}
        for name, process in list(self._processes.items()):
            code = process.poll()
            if code is not None:
                del self._processes[name]
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                ended[name] = describe(-code if code < 0 else code << 8)
        return ended

    def close(self) -> None:
        for name, process in list(self._processes.items()):
            self.signal(name, signal.SIGKILL)
            process.wait()


@dataclass
class _Waiting:
    attempt: Attempt
    request: Request
    spec: Path


@dataclass
class _Running:
    relayed: Relayed
    ended: str | None = None


class LocalHandler(Handler):
    """Runs steps on this machine, in the order in which they become ready.

    A step that does not fit waits, and those behind it too, so that a large one is never starved.

    Args:
        cores, memory_gb: what all running steps together may use.
        gpus: names of the GPUs that are handed out, or what finds them; a step that asks for some sees those and no other.
        steps_per_gpu: so many steps may have the same one.
        fork: use a fork server (else new interpreters).
        patience: seconds that an interrupted step has to end by itself.
    """

    name = "local"
    # Final events are committed before a process exits, so there is next to nothing to wait for.
    grace = 0.5

    def __init__(
        self,
        setup: RunSetup,
        *,
        cores: int,
        memory_gb: float,
        gpus: Sequence[str] | Callable[[], Sequence[str]] = (),
        steps_per_gpu: int = 1,
        fork: bool = True,
        patience: float = 10.0,
    ):
        super().__init__(setup)
        self._budget = Budget(cores, memory_gb, gpus, steps_per_gpu)
        self._fork, self._patience = fork and hasattr(os, "fork"), patience
        self._workers: ForkedWorkers | SpawnedWorkers | None = None
        self._waiting: deque[_Waiting] = deque()
        self._running: dict[Attempt, _Running] = {}
        self._stopping_since: float | None = None

    def launch(self, context: StepHandlerContext, attempt: Attempt) -> str:
        request = Request.of(context.step_tags[attempt.step])
        share = self._budget.share(request)
        log = self.setup.files.of(attempt, "err").with_suffix("")
        env = self.environment(context) | {LOG_VARIABLE: str(log)}
        env |= {v: str(share.cpus) for v in THREADS if v not in os.environ}
        spec = self.setup.files.of(attempt, "json")
        write_private(spec, json.dumps({"env": env, "cwd": os.getcwd(), "parent": os.getpid()}))
        self._waiting.append(_Waiting(attempt, request, spec))
        self._pump()
        what = f"{share.cpus} of {self._budget.cores} cores, {share.memory_gb:g} of {self._budget.memory_gb:.3g} GB"
        if share.gpus:
            what += f", {share.gpus} of {len(self._budget.gpus)} GPUs"
        return f"started with {what}" if attempt in self._running else f"waits for {what}"

    def state(self, attempt: Attempt) -> str | None:
        self._pump()
        running = self._running.get(attempt)
        if running is None:
            waits = any(w.attempt == attempt for w in self._waiting)
            return None if waits else "its process is not known to this run"
        return running.ended

    def stop(self, attempt: Attempt) -> str:
        self._waiting.clear()
        if self._stopping_since is None:  # all at once, so that they end side by side
            self._stopping_since = time.monotonic()
            for other, running in self._running.items():
                if running.ended is None and self._workers:
                    self._workers.signal(str(other), signal.SIGINT)
        running = self._running.get(attempt)
        if running is None:
            return "had not started"
        while running.ended is None and time.monotonic() - self._stopping_since < self._patience:
            time.sleep(0.05)
            self._pump()
        if running.ended is not None:
            return "interrupted"
        if self._workers:
            self._workers.signal(str(attempt), signal.SIGKILL)
        return f"killed; it did not end within {self._patience:g} s of an interrupt"

    def close(self) -> None:
        self._waiting.clear()
        # Steps that have reported their end are let to finish; at a normal end nothing else is left.
        deadline = time.monotonic() + (self._patience if self._stopping_since is None else 0.0)
        while any(r.ended is None for r in self._running.values()) and time.monotonic() < deadline:
            time.sleep(0.02)
            self._pump()
        if self._workers:
            self._workers.close()
        for running in self._running.values():
            running.relayed.pump()

    def _pump(self) -> None:
        """Takes note of what ended, repeats what steps have to say, and starts what fits."""
        if self._workers:
            for name, reason in self._workers.poll().items():
                attempt = next(a for a in self._running if str(a) == name)
                self._running[attempt].ended = reason
                self._budget.give_back(attempt)
        for running in self._running.values():
            running.relayed.pump()
        while self._waiting and (gpus := self._budget.take(self._waiting[0].attempt, self._waiting[0].request)) is not None:
            first = self._waiting.popleft()
            if gpus:
                spec = json.loads(first.spec.read_text())
                spec["env"]["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
                write_private(first.spec, json.dumps(spec))
            if self._workers is None or not self._workers.alive:
                self._workers = ForkedWorkers(self.setup) if self._fork else SpawnedWorkers(self.setup)
            self._running[first.attempt] = _Running(Relayed(self.setup.files.of(first.attempt, "relay")))
            self._workers.start(str(first.attempt), first.spec)
