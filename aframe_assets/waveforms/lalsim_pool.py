"""Processes that make lalsimulation's signals side by side.

A worker is a program of its own, started by `subprocess`: it does not import the caller's main module again, it may be
started from any process (also one that is itself a worker of something), and it ends when the caller's end of its pipe
is closed, so that not even a caller killed by SIGKILL leaves one behind. Each signal depends on its parameters only, so
the results are the same for any number of workers.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal as signals
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aframe_assets.waveforms.lalsim import Window

SHARE = 8
"""Signals in one request: few enough to keep workers evenly busy, enough that sending them costs nothing."""
PATIENCE = 10.0
"""Seconds that a worker has to end once its pipe is closed."""


class Pool:
    """Workers that live until `close`, or until the pool is collected.

    Args:
        processes: number of workers, >= 1.
    """

    def __init__(self, processes: int) -> None:
        # this package may have been imported from the working directory, where a worker would not look for it; everything else
        # a worker needs is installed, or on PYTHONPATH
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, os.environ.get("PYTHONPATH")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        self._workers = [
            subprocess.Popen(
                [sys.executable, "-m", "aframe_assets.waveforms.lalsim"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            for _ in range(processes)
        ]

    def __call__(self, window: Window, parameters: Sequence[Mapping[str, float]]) -> list[tuple[int, np.ndarray] | None]:
        """Signals in the order of `parameters`; see `lalsim.signal`.

        Raises:
            RuntimeError: a worker died, or failed with an error that is not about a signal's parameters.
        """
        out: list[tuple[int, np.ndarray] | None] = [None] * len(parameters)
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for first in range(0, len(parameters), SHARE):
            waiting.put(first)
        failures: list[BaseException] = []

        def drive(worker: subprocess.Popen[bytes]) -> None:
            while not failures:
                try:
                    first = waiting.get_nowait()
                except queue.Empty:
                    return
                try:
                    out[first : first + SHARE] = _ask(worker, window, parameters[first : first + SHARE])
                except BaseException as e:
                    failures.append(e)

        threads = [threading.Thread(target=drive, args=(w,), daemon=True) for w in self._workers]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
            if failures:
                raise failures[0]
        except BaseException:
            # also on an interrupt: a worker whose answer was not read must not be asked again
            self.close()
            raise
        return out

    def close(self) -> None:
        """End the workers and wait for them; may be called more than once."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.stdin.close()
        for worker in self._workers:
            try:
                worker.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            worker.stdout.close()


def _ask(worker: subprocess.Popen[bytes], window: Window, parameters: Sequence[Mapping[str, float]]) -> list[tuple[int, np.ndarray] | None]:
    try:
        pickle.dump((window, list(parameters)), worker.stdin, protocol=pickle.HIGHEST_PROTOCOL)
        worker.stdin.flush()
        answer = pickle.load(worker.stdout)
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as e:
        try:
            code = worker.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            worker.kill()
            code = worker.wait()
        how = f"signal {signals.Signals(-code).name}" if code < 0 else f"exit code {code}"
        raise RuntimeError(
            f"a waveform process ended by {how} while it made {len(parameters)} {window.approximant} signals; if it was killed for its "
            "memory, lower execution.waveform_processes; its messages are in this process's standard error"
        ) from e
    if isinstance(answer, Exception):
        raise RuntimeError(f"approximant '{window.approximant}': {answer}")
    return answer
