"""The process of one step: its own group, its output in files, dead when its parent is.

Started by a fork of the fork server (`forkserver`), or as ``python -m aframe_ops.executor.worker SPEC``.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

LOG_VARIABLE = "AFRAME_STEP_LOG"
"""``FOLDER/STEP.ATTEMPT`` of this process's output files; also tells the compute-log manager that they exist."""

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""Variables that limit the threads of what a step computes with."""

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Asks the kernel to kill this process when `parent` ends, however it ends (Linux; elsewhere does nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the request was made
            os._exit(1)


def outlive_parent() -> None:
    """Takes `die_with` back."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


class _Tee:
    """Standard error that also writes lines starting with `prefix` to `relayed`, at once and once each.

    Reading them back from the log would depend on who has redirected the descriptors meanwhile.
    """

    def __init__(self, stream: Any, relayed: Path, prefix: str):
        self._stream, self._relayed, self._prefix, self._line = stream, relayed, prefix, ""

    def write(self, text: str) -> int:
        self._line += text
        *whole, self._line = self._line.split("\n")
        for line in whole:
            if line.startswith(self._prefix):
                with self._relayed.open("a") as f:
                    f.write(line + "\n")
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def read_spec(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads and deletes a step's start file; it may hold the credentials of the event database."""
    spec = json.loads(Path(path).read_text())
    try:
        os.unlink(path)
    except OSError as e:
        if e.errno != errno.EROFS:  # what is mounted into a container goes with it
            raise
    return spec


def open_output(spec: dict[str, Any]) -> None:
    """Sends this process's output to the step's files."""
    log = spec["env"][LOG_VARIABLE]
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)
    for fd, suffix in ((1, "out"), (2, "err")):
        target = os.open(f"{log}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(target, fd)
        os.close(target)


def execute(spec: dict[str, Any]) -> int:
    """Runs ``dagster api execute_step``, or its like without a database, in this process; returns its exit code."""
    from aframe_ops.executor.base import RELAYED

    os.environ.update(spec["env"])
    _set_threads()
    os.chdir(spec["cwd"])
    sys.stderr = _Tee(sys.stderr, Path(spec["env"][LOG_VARIABLE] + ".relay"), RELAYED)
    if "reference" in spec:
        from aframe_ops.executor import detached

        return detached.execute(spec)
    sys.argv = ["dagster", "api", "execute_step"]
    from dagster._cli import main as dagster

    try:
        dagster()
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    return 0


def _set_threads() -> None:
    """Gives this step's cores to a torch that was imported, and so read its number of threads, before the fork."""
    torch, wanted = sys.modules.get("torch"), os.environ.get("OMP_NUM_THREADS", "")
    if torch is not None and wanted.isdigit():
        torch.set_num_threads(max(1, int(wanted)))


def main() -> None:
    """Start without a fork server; the parent has set the output and the process group."""
    spec = read_spec(sys.argv[1])
    die_with(spec["parent"])
    sys.exit(execute(spec))


if __name__ == "__main__":
    main()
