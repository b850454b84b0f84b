"""What `aframe doctor` finds, each check within a time limit and none with a secret in its words."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote

Level = Literal["ok", "warning", "error"]

LIMIT_S = 90.0
"""Longest time of one check. Commands of batch systems give up by themselves after less."""

_ALL_TOLD = b"all told"
"""Last line of a check that has come to its end."""

_SECRET_NAME = re.compile(r"PASSW|SECRET|TOKEN|CREDENTIAL|_KEY$|_KEY_ID$|API_?KEY", re.IGNORECASE)
_URL = re.compile(r"(?P<start>[a-z][a-z0-9+.-]*://[^\s:/@]*):(?P<password>[^\s/]*)@", re.IGNORECASE)


class Finding(NamedTuple):
    """One line; `check` is the name of the check that it comes from."""

    level: Level
    text: str
    check: str = ""


Check = Callable[[], Iterable[Finding]]


def within(limit_s: float, name: str, check: Check) -> Iterator[Finding]:
    """The findings of `check`, in which secrets of the environment are blotted out.

    It runs in a process of its own, which is killed with all that it started when it has not ended within `limit_s` seconds:
    a thread cannot be ended, and what hangs here (a database, a disk, ssh) may hang for ever.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _work(writing, check)
    os.close(writing)
    ended = told_all = False
    try:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            buffer, deadline = b"", time.monotonic() + limit_s
            with selectors.DefaultSelector() as selector:
                selector.register(pipe, selectors.EVENT_READ)
                while (left := deadline - time.monotonic()) > 0:
                    if not selector.select(left):
                        continue
                    data = pipe.read(65536)
                    if not data:
                        ended = True
                        break
                    *lines, buffer = (buffer + data).split(b"\n")
                    for line in lines:
                        if line == _ALL_TOLD:
                            told_all = True
                            continue
                        level, text = json.loads(line)
                        yield Finding(level, text, name)
    finally:
        started = _started_by(pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        for other in started:  # commands of batch systems have groups of their own
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        status = _status(pid)
    if not ended:
        yield Finding("error", f"{name}: no answer within {limit_s:g} s; this check was ended", name)
    elif not told_all:
        from aframe_ops.executor.local import describe

        words = "it does not end" if status is None else describe(status)
        yield Finding("error", f"{name}: the check itself failed, and what it had still to find is not known: {words}", name)


def _started_by(pid: int) -> list[int]:
    """The processes below `pid`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found = [pid]
    for known in found:
        found += children.get(known, [])
    return found[1:]


def _status(pid: int) -> int | None:
    """Wait status of a process that has been killed; None when not even that ends it (a disk that does not answer)."""
    for _ in range(50):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.02)
    return None


def _work(writing: int, check: Check) -> None:
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        hidden = secrets_of(os.environ)
        with os.fdopen(writing, "w") as pipe:

            def tell(finding: Finding) -> None:
                pipe.write(json.dumps([finding.level, blotted(finding.text, hidden)]) + "\n")
                pipe.flush()

            try:
                for finding in check():
                    tell(finding)
            except Exception as e:  # whatever is wrong is what the user wants to know, and the other checks go on
                tell(Finding("error", f"{type(e).__name__}: {e}"))
            # how the process ends says nothing: it may be killed by us while it is ending by itself
            pipe.write(_ALL_TOLD.decode() + "\n")
    finally:
        os._exit(0)


def secrets_of(env: Mapping[str, str]) -> list[str]:
    """Values of `env` that no output may show: what is called a key, token or password, and passwords within URLs."""
    found: set[str] = set()
    for name, value in env.items():
        if _SECRET_NAME.search(name):
            found.add(value)
        for match in _URL.finditer(value):
            password = match["password"]
            # a password with an @ in it is cut in two by whoever reads the URL
            found |= {password, unquote(password), *re.split("[@:]", password)}
    return sorted((s for s in found if len(s) >= 4), key=len, reverse=True)


def blotted(text: str, hidden: Iterable[str]) -> str:
    """`text` without `hidden` words and without the passwords of URLs."""
    for word in hidden:
        text = text.replace(word, "***")
    return _URL.sub(r"\g<start>:***@", text)


def one_line(error: BaseException, limit: int = 400) -> str:
    """An error's words in one line: those of its cause, which name what is wrong."""
    seen = error
    while seen.__cause__ is not None:
        seen = seen.__cause__
    text = " ".join(str(seen).split()) or type(seen).__name__
    return text if len(text) <= limit else text[:limit] + " ..."
