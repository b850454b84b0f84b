"""The process of one step inside a batch job: ``python -m aframe_ops.executor.job SPEC``.

Its output is where the scheduler put it (``{log}.out`` and ``{log}.err``). The spec is a JSON object that only its owner
may read: ``env``, ``cwd``, ``cpus``, ``time_min``, ``warn_s`` (seconds before the time limit at which the job interrupts
itself; 0: never), ``brought`` (variables whose values are files in the folder that the job starts in); in a container also
``files`` (variable -> text of the file that it names). A step without a route to the database has ``reference`` (see
`detached`), and ``mailbox``: the messages by which it sends its events if it finds itself ``away`` from the run directory.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from aframe_ops.containers import staging
from aframe_ops.executor.worker import LOG_VARIABLE, THREADS, execute, open_output, read_spec

WARNING_SIGNAL = signal.SIGUSR1
"""Sent by a scheduler when the time limit is near; an interrupt alone would look like a cancelled run."""


def main() -> None:
    """Runs the step once and writes what it used to ``{log}.usage``."""
    try:
        spec = read_spec(sys.argv[1])
    except FileNotFoundError:
        sys.exit(f"{sys.argv[1]} is gone: this job has been started before, and a step's attempt runs once")
    start = time.monotonic()
    if "files" in spec:
        _settle_in_container(spec)
    signal.signal(WARNING_SIGNAL, lambda *_: _warn(spec["time_min"]))
    if spec["warn_s"]:
        timer = threading.Timer(60 * spec["time_min"] - spec["warn_s"], os.kill, (os.getpid(), WARNING_SIGNAL))
        timer.daemon = True
        timer.start()
    _settle(spec)
    staging.settle(spec["env"])
    for name in THREADS:
        os.environ.setdefault(name, str(spec["cpus"]))
    try:
        code = execute(spec)
    finally:
        _write_usage(Path(spec["env"][LOG_VARIABLE] + ".usage"), time.monotonic() - start)
    sys.exit(code)


def _settle(spec: dict[str, Any]) -> None:
    """Makes the paths of `spec` absolute where they are relative: to the folder that this process was started in."""
    for name in spec["brought"]:
        spec["env"][name] = os.path.abspath(spec["env"][name])
    if spec["brought"]:
        spec["away"] = True
        os.makedirs(spec["cwd"], exist_ok=True)


def _settle_in_container(spec: dict[str, Any]) -> None:
    """Does for a process in a container what elsewhere the batch system does, or the disk that all share."""
    # The first process of a container is deaf to signals that it does not ask for.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    env = spec["env"]
    log = Path(env[LOG_VARIABLE])
    if log.parent.is_dir():
        try:
            Path(f"{log}.started").touch(exist_ok=False)
        except FileExistsError:
            sys.exit(f"{log}.started is there: this job has been started before, and a step's attempt runs once")
        open_output(spec)
        return
    # The run directory is not to be seen from here: output stays with the container, whose log is read at its end.
    spec["away"] = True
    folder = Path(tempfile.mkdtemp(prefix="aframe-"))
    (folder / "resolved").mkdir()
    env[LOG_VARIABLE] = str(folder / log.name)
    for suffix in ("out", "err"):  # what is there is not captured a second time (see `compute_logs`)
        Path(f"{env[LOG_VARIABLE]}.{suffix}").touch()
    for variable, text in spec["files"].items():
        path = folder / "resolved" / Path(env[variable]).name
        path.write_text(text)
        env[variable] = str(path)
    if not os.path.isdir(spec["cwd"]):
        spec["cwd"] = str(folder)


def _warn(time_min: int) -> None:
    sys.stderr.write(f"aframe: the job's time limit of {time_min} min is near; the step is interrupted\n")
    sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGINT)


def _write_usage(path: Path, elapsed_s: float) -> None:
    import resource

    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    used: dict[str, Any] = {
        "elapsed_s": elapsed_s,
        "cpu_s": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        # of the largest process; Linux counts in KiB
        "max_memory_gb": max(own.ru_maxrss, children.ru_maxrss) * 1024 / 1e9,
        "host": socket.gethostname(),
    }
    temporary = path.with_suffix(".usage.part")
    temporary.write_text(json.dumps(used))
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
