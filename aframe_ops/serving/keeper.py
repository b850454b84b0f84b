"""Starts one server and ends it, with all that it has started, as soon as this process's parent is gone.

Run as a script by a bare interpreter, ``python -I -S keeper.py``: nothing of this project is imported, so that it starts
at once and holds no memory. Where the command is the client of a container's daemon, the client is what is started and ended here: a
container whose client is killed lives on. Standard input: one line of JSON, then silence; an empty line means that the parent wants the
server to stop, its end that the parent is gone. Standard output: one line of JSON with the server's process id. Exit status:
0 or 1 as the server's, or KILLED.

| key of the line | meaning |
|---|---|
| ``command``, ``env`` | of the server |
| ``log`` | file that its output is added to |
| ``grace`` | seconds between SIGTERM and SIGKILL |
| ``shared_memory`` | start of the names of its shared memory, removed after its end |
| ``work`` | folder that is removed last where the parent is gone; otherwise it is the parent's to remove |
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys

POLL = 0.2
"""Seconds between looks at the server and at the parent."""

KILLED = 9
"""Exit status where a signal ended the server; containers say so by statuses above 128."""


def end(server: subprocess.Popen[bytes], grace: float) -> None:
    """SIGTERM to the server's group, and SIGKILL for what is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def gone(parent: int) -> bool:
    """Whether the parent is no more. A fork of it that holds the pipe is not the parent."""
    ready, _, _ = select.select([0], [], [], 0)
    return os.getppid() != parent or (bool(ready) and not os.read(0, 1))


def main() -> int:
    parent = os.getppid()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    spec = json.loads(sys.stdin.buffer.raw.readline())
    prctl = ctypes.CDLL(None).prctl
    with open(spec["log"], "ab") as log:
        server = subprocess.Popen(
            spec["command"],
            env=spec["env"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # PR_SET_PDEATHSIG: the server goes even when this process is killed
            preexec_fn=lambda: prctl(1, int(signal.SIGKILL), 0, 0, 0),
        )
    sys.stdout.write(json.dumps({"pid": server.pid}) + "\n")
    sys.stdout.flush()
    while server.poll() is None:
        # an ended parent is seen at the pipe, or, when a process that it forked still holds the pipe, by its absence
        ready, _, _ = select.select([0], [], [], POLL)
        if told or ready or os.getppid() != parent:
            end(server, spec["grace"])
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # the server's own children, when it was killed
    for name in os.listdir("/dev/shm") if spec["shared_memory"] and os.path.isdir("/dev/shm") else ():
        if name.startswith(spec["shared_memory"]):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join("/dev/shm", name))
    if gone(parent):
        shutil.rmtree(spec["work"], ignore_errors=True)
    if server.returncode < 0 or server.returncode > 128:
        return KILLED
    return 0 if server.returncode == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
