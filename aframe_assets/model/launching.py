"""Starts the ranks of a training, and is what each of them runs.

A rank is a program of its own, started by `subprocess`: it does not import the caller's main module again, so a notebook, a step of
Dagster (a child of a fork server) and a script can all start it. The caller is no rank itself: it waits, passes on what the ranks
tell, ends all of them when one fails, and they end when it is gone. So a rank that runs out of memory takes nobody along.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import signal as signals
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from aframe_assets.model.ranks import STOP, TIMEOUT, Rank, backend

GRACE = 3.0
"""Seconds after the first failure in which the others can tell theirs: the first to be heard of need not be the first that failed."""

PATIENCE = 60.0
"""Seconds that a rank whose work is done has to end."""

STOPPING = 300.0
"""Seconds that ranks which are asked to end have, from the end of the first one on: one of them may still be sending what it keeps."""

_OTHERS = (signals.SIGINT, signals.SIGTERM, signals.SIGUSR1)
"""Signals that a terminal, a scheduler or Dagster may send to all processes at once; they are the caller's."""

_TICK = 0.5
"""Seconds between two questions whether to end."""

_LOOPBACK = {"linux": "lo", "darwin": "lo0"}


class RankError(RuntimeError):
    """A rank died, or failed with an error that cannot be passed on."""


@dataclass
class _Started:
    rank: Rank
    process: subprocess.Popen[bytes]
    channel: Connection
    done: bool = False
    error: tuple[BaseException, str] | None = None

    @property
    def name(self) -> str:
        return f"rank {self.rank.index} of {self.rank.size} ({self.rank.device})"


def launch(
    function: Callable[..., None],
    devices: Sequence[str],
    arguments: Mapping[str, Any],
    *,
    log: logging.Logger,
    told: Mapping[str, Callable[..., object]] | None = None,
    threads: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Calls ``function(rank, **arguments, log=..., **told)`` in a process for each of `devices`, and waits until all are done.

    Inside, `torch.distributed` is set up for the ranks.

    Args:
        function: of a module that can be imported.
        devices: as `check_devices` gives them.
        arguments: by name; picklable.
        log: gets what ranks log: all of the first, warnings and worse of the others.
        told: functions by name that ranks can call. They run here, in the order of the calls; arguments are picklable, nothing comes back.
        threads: of all ranks together; each gets its share.
        stop: is asked now and then whether the ranks are to end; they get the signal `STOP` then.

    Raises:
        RankError: a rank was killed, or its error cannot be passed on.
        BaseException: what `function` raised in the rank that failed first; the others are ended.
    """
    started: list[_Started] = []
    with tempfile.TemporaryDirectory(prefix="aframe-ranks-") as folder, contextlib.ExitStack() as stack:
        stack.callback(_end, started)
        payload = {
            "function": function,
            "arguments": dict(arguments),
            "told": list(told or ()),
            "meeting": str(Path(folder) / "meeting"),
        }
        own = {} if threads is None else {"OMP_NUM_THREADS": str(max(1, threads // len(devices)))}
        for index in range(len(devices)):
            started.append(_start(Rank(tuple(devices), index), own))
        for one in started:
            # a rank that is gone already is seen where its words are waited for
            with contextlib.suppress(OSError):
                one.channel.send(sys.path)
                # pickled here and not by `send`, whose tensors would go through shared memory, which containers have little of
                one.channel.send_bytes(pickle.dumps({**payload, "rank": one.rank}))
        functions: dict[str, Callable[..., object]] = {"log": log.log, **(told or {})}
        failed: list[_Started] = []
        deadline, stopping = math.inf, False
        while (working := [s for s in started if not (s.done or s in failed)]) and time.monotonic() < deadline:
            for channel in wait([s.channel for s in working], _TICK):
                one = next(s for s in working if s.channel is channel)
                if not _hear(one, functions):
                    failed.append(one)
                    deadline = min(deadline, time.monotonic() + (STOPPING if stopping else GRACE))
            if not stopping and stop():
                stopping = True
                for one in working:
                    one.process.send_signal(STOP)
        if failed:
            _raise_first(failed)


def _start(rank: Rank, own: Mapping[str, str]) -> _Started:
    ours, theirs = socket.socketpair()
    # this package may have been imported from the working directory, where a rank would not look for it
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | own
    if interface := _LOOPBACK.get(sys.platform):
        # all are on this machine, whatever its name resolves to and whatever networks it has
        environment = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface} | environment
    command = [sys.executable, "-c", "from aframe_assets.model.launching import main; main()", str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=environment)
    return _Started(rank, process, Connection(ours.detach()))


def _hear(one: _Started, functions: Mapping[str, Callable[..., object]]) -> bool:
    """Takes the next message of a rank; False when there is none, or it says that the rank failed."""
    try:
        message = pickle.loads(one.channel.recv_bytes())
    except (EOFError, OSError):
        return False
    match message:
        case ("call", name, arguments, keywords):
            functions[name](*arguments, **keywords)
        case ("done",):
            one.done = True
        case ("error", error, text):
            one.error = error, text
    return one.error is None


def _raise_first(failed: Sequence[_Started]) -> NoReturn:
    """Raises why the ranks failed; `failed` in the order in which they were heard of, which need not be that of their ends."""

    def consequence(one: _Started) -> int:
        # nothing in a rank ends itself by SIGKILL; NCCL aborts where another rank is gone, and Gloo complains of it
        code = None if one.error else one.process.wait(PATIENCE)
        return 0 if code == -signals.SIGKILL else 2 if one.error is None else 3 if _is_of_others(one.error[0]) else 1

    one = min(failed, key=consequence)
    if one.error:
        error, text = one.error
        raise error from RankError(f"in {one.name}; the others were stopped\n{text}")
    code = one.process.wait(PATIENCE)
    how = f"signal {signals.Signals(-code).name}" if code < 0 else f"exit code {code}"
    raise RankError(
        f"{one.name} ended by {how}; the others were stopped. If it was killed for its memory, ask for more"
        " (execution.training.memory_per_cpu) or lower model.training.batch_size; its messages are in this process's standard error"
    )


def _is_of_others(error: BaseException) -> bool:
    """Whether `error` is what a rank sees of another one's end."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "by peer" in str(error))


def _end(started: Sequence[_Started]) -> None:
    for one in started:
        if not one.done:
            one.process.kill()
    for one in started:
        try:
            one.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
        one.channel.close()


class _Caller:
    """What a rank tells its caller by."""

    def __init__(self, channel: Connection) -> None:
        self._channel, self._lock = channel, threading.Lock()

    def tell(self, *message: object) -> None:
        data = pickle.dumps(message)
        with self._lock:
            self._channel.send_bytes(data)

    def function(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **keywords: self.tell("call", name, arguments, keywords)

    def die_with(self) -> None:
        """Ends this process when the caller's end of the channel is closed, by whatever; nothing else ever arrives."""

        def watch() -> None:
            with contextlib.suppress(EOFError, OSError):
                self._channel.recv_bytes()
            os._exit(1)

        threading.Thread(target=watch, daemon=True, name="caller").start()


class _Told(logging.Handler):
    def __init__(self, caller: _Caller, rank: Rank) -> None:
        super().__init__(logging.DEBUG if rank.index == 0 else logging.WARNING)
        self.tell, self.prefix = caller.function("log"), "" if rank.index == 0 else f"rank {rank.index}: "

    def emit(self, record: logging.LogRecord) -> None:
        text = self.prefix + record.getMessage()
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        self.tell(record.levelno, "%s", text)


def _portable(error: BaseException) -> BaseException:
    try:
        again = pickle.loads(pickle.dumps(error))
    except Exception:
        return RankError(f"{type(error).__name__}: {error}")
    return again if type(again) is type(error) else RankError(f"{type(error).__name__}: {error}")


def main() -> None:
    """The program of a rank; its argument is the number of its end of the channel."""
    signals.pthread_sigmask(signals.SIG_BLOCK, _OTHERS)
    channel = Connection(int(sys.argv[1]))
    caller = _Caller(channel)
    sys.path[:] = channel.recv()
    payload = channel.recv_bytes()
    caller.die_with()
    try:
        _work(pickle.loads(payload), caller)
        caller.tell("done")
    except BaseException as e:
        caller.tell("error", _portable(e), traceback.format_exc())
        # without this process's group being taken down in good order, for which it would wait for the others
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(1)


def _work(payload: Mapping[str, Any], caller: _Caller) -> None:
    rank: Rank = payload["rank"]
    # what all modules of this package log, besides what the function is given to log with
    root = logging.getLogger("aframe_assets")
    root.propagate = False
    root.setLevel(logging.INFO)
    root.addHandler(_Told(caller, rank))
    log = logging.getLogger(__name__)
    if rank.device.type == "cuda":
        torch.cuda.set_device(rank.device)
    dist.init_process_group(
        backend(rank.devices),
        store=dist.FileStore(payload["meeting"], rank.size),
        rank=rank.index,
        world_size=rank.size,
        timeout=TIMEOUT,
        device_id=rank.device if backend(rank.devices) == "nccl" else None,
    )
    told = {name: caller.function(name) for name in payload["told"]}
    payload["function"](rank, **payload["arguments"], log=log, **told)
    dist.barrier()
    dist.destroy_process_group()
