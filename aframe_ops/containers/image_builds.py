"""Images built at the same time, each with a log of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from aframe_ops.containers.image_engines import BuildRequest, Engine
from aframe_ops.containers.images import HASH_LABEL, ImageError

Phase = Literal["waiting", "building", "pushing", "built", "pushed", "up to date", "failed", "interrupted"]
GOOD: tuple[Phase, ...] = ("built", "pushed", "up to date")
ENDED: tuple[Phase, ...] = (*GOOD, "failed", "interrupted")

_GRACE = 20.0
"""Seconds from an interrupt of an engine to its end by force."""


@dataclass
class Build:
    """An image on its way.

    Attributes:
        request: what is built.
        log: file with all that the engine says; only its owner may read it.
        why: why it is built; None when it is as it should be, and nothing but a push is left to do.
        phase: where it is.
        error: why it failed, in one line.
        pushed: what it is called in the registry.
        started, ended: seconds of a monotonic clock; None before.
    """

    request: BuildRequest
    log: Path
    why: str | None
    phase: Phase = "waiting"
    error: str = ""
    pushed: str = ""
    started: float | None = field(default=None)
    ended: float | None = field(default=None)

    @property
    def seconds(self) -> float:
        """For how long it has been, or was, worked on."""
        return 0.0 if self.started is None else (self.ended or time.monotonic()) - self.started

    def notes(self) -> list[str]:
        """What the recipe itself says to the user: what comes after ``aframe: `` in the log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return list(dict.fromkeys(line.split("aframe: ", 1)[1] for line in lines if "aframe: " in line and "echo" not in line))

    def last_line(self) -> str:
        """What the engine said last."""
        try:
            with open(self.log, "rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 4000))
                lines = log.read().decode(errors="replace").split("\n")
        except FileNotFoundError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Builds:
    """Runs builds, `jobs` at a time.

    Args:
        registry: where images are pushed to when they are there; None: nowhere.
        tell: called from any thread when a build changes its phase.
    """

    def __init__(self, engine: Engine, builds: Sequence[Build], jobs: int, registry: str | None, tell: Callable[[Build], None]):
        self._engine, self._builds, self._jobs, self._registry, self._tell = engine, builds, jobs, registry, tell
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self) -> None:
        """Returns when all have ended. An interrupt ends what runs, then goes on as KeyboardInterrupt."""
        pool = ThreadPoolExecutor(self._jobs)
        futures = [pool.submit(self._one, build) for build in self._builds]
        try:
            for future in futures:
                future.result()
        except BaseException:
            self._stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            for build in self._builds:
                if build.phase not in ENDED:
                    self._end(build, "interrupted")

    def _one(self, build: Build) -> None:
        if self._stopped:
            return
        build.started = time.monotonic()
        try:
            if build.why is not None:
                self._phase(build, "building")
                if not self._command(build, self._engine.build(build.request)):
                    return
                if made := self._engine.unfinished(build.request.reference):
                    os.replace(made, build.request.reference)
                self._require_made(build)
            if self._registry:
                self._phase(build, "pushing")
                commands, there = self._engine.push(build.request.reference, self._registry)
                if not all(self._command(build, words) for words in commands):
                    return
                build.pushed = there
            self._end(build, "pushed" if self._registry else "built" if build.why is not None else "up to date")
        except (ImageError, OSError) as e:
            build.error = str(e)
            self._end(build, "failed")

    def _require_made(self, build: Build) -> None:
        """Raises ImageError where there is no image of what was asked for: podman ends with 0 when it is terminated."""
        there = self._engine.labels(build.request.reference) or {}
        if there.get(HASH_LABEL) != build.request.labels[HASH_LABEL]:
            raise ImageError(f"{self._engine.name} build ended with exit code 0, and has not made the image; was it terminated?")

    def _command(self, build: Build, words: list[str]) -> bool:
        """Whether a command of the engine's ended well; its output goes to the log, its words do not."""
        with _log(build.log) as log:
            with self._lock:
                if self._stopped:
                    return False
                # a session of its own: Ctrl-C is handled here, once for all
                environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
                process = subprocess.Popen(
                    words,
                    cwd=build.request.context,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
        if code == 0:
            return True
        if self._stopped:
            self._end(build, "interrupted")
        else:
            build.error = f"{words[0]} {words[1]} ended with " + (f"exit code {code}" if code > 0 else signal.Signals(-code).name)
            self._end(build, "failed")
        return False

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for number in (signal.SIGINT, signal.SIGKILL):
            for process in running:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
            deadline = time.monotonic() + _GRACE
            while any(process.poll() is None for process in running) and time.monotonic() < deadline:
                time.sleep(0.1)

    def _phase(self, build: Build, phase: Phase) -> None:
        build.phase = phase
        self._tell(build)

    def _end(self, build: Build, phase: Phase) -> None:
        build.ended = time.monotonic()
        self._phase(build, phase)


@contextlib.contextmanager
def _log(path: Path) -> Iterator[int]:
    """A file that is added to; only its owner may read it, since an engine repeats what it is told."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        yield file
    finally:
        os.close(file)
