"""A process that has loaded the definitions once and forks a worker from itself for every step.

Measured on two cores: a worker forked from here reaches its step's body about 2 s of CPU sooner than a new interpreter.
`multiprocessing`'s fork server is not used because its children import the parent's main module again, and because
this one also watches over the workers: it ends every one of them when the run worker is gone, even by ``kill -9``.

Protocol, one JSON object a line on a socket pair. In: ``{"start": id, "spec": path}``, ``{"signal": id, "number": n}``.
Out: ``{"started": id, "pid": pid}``, ``{"ended": id, "status": wait status}``. End of input: kill all, exit.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from aframe_ops.executor import worker

SCIENCE = ("scipy.signal", "torch", "ml4gw.transforms", "matplotlib.figure", "astropy.cosmology")
"""What most bodies of the graph import: about 3 s of CPU, which 17 of the demo's steps would each pay. None of these
starts a thread or looks at a GPU when it is imported, and nothing that does may be added: neither survives a fork."""


def warm(run: str | None, science: bool = False) -> None:
    """Imports what steps import, and builds the job of `run` (a serialised DagsterRun) as they will look it up.

    Errors are left to the steps, which meet them again and can report them.

    Args:
        science: import `SCIENCE` too; worth it for a run of several steps that compute.
    """
    for name in ("dagster._cli", *(SCIENCE if science else ())):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    with contextlib.suppress(Exception):
        if run:
            from dagster._core.storage.dagster_run import DagsterRun
            from dagster._serdes import deserialize_value
            from dagster._utils.hosted_user_process import recon_job_from_origin

            record = deserialize_value(run, DagsterRun)
            recon_job_from_origin(record.job_code_origin).get_subset(
                op_selection=record.resolved_op_selection,
                asset_selection=record.asset_selection,
                asset_check_selection=record.asset_check_selection,
            ).get_definition()
    with contextlib.suppress(Exception):
        from dagster import DagsterInstance

        # opening it imports a third of what a step would still import; nothing of it stays open
        with DagsterInstance.get():
            pass
    gc.collect()
    gc.freeze()


class Server:
    """The loop of the fork server."""

    def __init__(self, channel: socket.socket):
        self.channel = channel
        self.workers: dict[int, str] = {}
        self.buffer = b""
        self.wake, waker = os.pipe()
        os.set_blocking(waker, False)
        self.waker = waker

    def send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a run worker that is gone is seen at the next read
            self.channel.sendall(json.dumps(message).encode() + b"\n")

    def fork(self, name: str, path: str) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self.become_worker(path, parent)
        self.workers[pid] = name
        self.send({"started": name, "pid": pid})

    def become_worker(self, path: str, parent: int) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setsid()
            worker.die_with(parent)
            for fd in (self.channel.fileno(), self.wake, self.waker):
                os.close(fd)
            spec = worker.read_spec(path)
            worker.open_output(spec)
            code = worker.execute(spec)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def reap(self) -> None:
        while self.workers:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self.workers.pop(pid, None)
            if name is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)  # what the step started and left behind
                self.send({"ended": name, "status": status})

    def read(self) -> bool:
        """Handles what has arrived; False at the end of input."""
        try:
            data = self.channel.recv(65536)
        except ConnectionResetError:  # what a run worker's death looks like when it had not read all that was sent to it
            data = b""
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "start" in message:
                self.fork(message["start"], message["spec"])
            else:
                for pid, name in self.workers.items():
                    if name == message["signal"]:
                        end_group(pid, message["number"])
        return bool(data)

    def serve(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.waker)
        # An interrupt at the terminal is for the run worker, which forwards it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        alive = True
        while alive:
            ready, _, _ = select.select([self.channel, self.wake], [], [])
            if self.wake in ready:
                os.read(self.wake, 4096)
                self.reap()
            if self.channel in ready:
                alive = self.read()
        self.end_all()

    def end_all(self) -> None:
        for pid in self.workers:
            end_group(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while self.workers and time.monotonic() < deadline:
            self.reap()
            time.sleep(0.01)


def end_group(pid: int, number: int) -> None:
    """Signals the group of process `pid`, or the process alone while it has no group yet."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def main() -> None:
    """``python -m aframe_ops.executor.forkserver FD WARM [science]``; WARM is a file that holds the serialised run, or ``-``."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    os.setsid()
    # Nothing is read while it imports, so a run worker that is killed meanwhile would not be noticed.
    worker.die_with(os.getppid())
    warm(None if sys.argv[2] == "-" else Path(sys.argv[2]).read_text(), science="science" in sys.argv[3:])
    worker.outlive_parent()  # from now on the server must live to end what its workers have started
    Server(channel).serve()


if __name__ == "__main__":
    main()
