"""Bytes of a growing file through the store, for a job and a run worker that share no disk.

Each piece of the file is a message whose name ends with the number of its first byte. So a piece that is sent twice is
the same message, and a reader who knows how far he has come knows the next one's name.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from aframe_assets.store.errors import StoreError
from aframe_assets.store.messages import Messages
from aframe_assets.store.opening import open_store

SEND_S = 1.0
"""What a step has reported leaves its node within so many seconds."""

LOOK_S = 2.0
"""The store is asked what is new for all jobs of a run at once, and not more often than that."""

FLUSH_S = 120.0
"""At a step's end, the store may be away for so long."""

LEFT_NAME = "messages.left"
"""File in the folder of a run that is over: what its jobs sent could not be removed from the store."""


class Mailbox:
    """What the jobs of one run have sent.

    Args:
        url, cache_dir: the store.
        run_id: id of the run.
    """

    def __init__(self, url: str, run_id: str, cache_dir: str | None = None):
        self.url = url
        self.folder = _folder(run_id)
        self._messages = Messages(open_store(url, cache_dir), self.folder)
        self._there: dict[str, list[int]] = {}
        self._looked, self._used = float("-inf"), False

    def read(self, name: str, offset: int) -> bytes:
        """What was sent as `name`, from byte `offset` on, as far as it is there.

        Raises:
            StoreError: the store does not answer.
        """
        self._look()
        found = b""
        for start in self._there.get(name, ()):
            if start <= offset + len(found):
                piece = self._messages.get(_piece(name, start)) if self._needed(name, start, offset + len(found)) else None
                found += (piece or b"")[offset + len(found) - start :]
        return found

    def discard(self, name: str, offset: int) -> None:
        """Removes what is known to be there of `name` and ends before byte `offset`.

        Raises:
            StoreError: the store does not answer.
        """
        starts = [s for s in self._there.get(name, ()) if s < offset]
        # Of a job's file that was brought in part, the last line may be only here.
        if starts and starts[-1] + len(self._messages.get(_piece(name, starts[-1])) or b"") > offset:
            starts.pop()
        for start in starts:
            self._messages.remove(_piece(name, start))
            self._there[name].remove(start)

    def clear(self) -> None:
        """Removes everything, if there was anything."""
        if self._used:
            self._messages.clear()

    def _look(self) -> None:
        if time.monotonic() - self._looked < LOOK_S:
            return
        there: dict[str, list[int]] = {}
        for piece in self._messages.names():
            name, _, start = piece.rpartition("@")
            there.setdefault(name, []).append(int(start))
        self._there, self._looked, self._used = there, time.monotonic(), self._used or bool(there)

    def _needed(self, name: str, start: int, offset: int) -> bool:
        later = [s for s in self._there[name] if s > start]
        return not later or min(later) > offset


def discard(url: str, run_ids: Iterable[str], cache_dir: str | None = None) -> None:
    """Removes what jobs of these runs have sent and nobody will read.

    Raises:
        StoreError: the store does not answer.
    """
    store = open_store(url, cache_dir)
    for run_id in run_ids:
        Messages(store, _folder(run_id)).clear()


def _folder(run_id: str) -> str:
    return f"events/{run_id}"


def _piece(name: str, start: int) -> str:
    return f"{name}@{start:012d}"


class _Sender:
    """Sends what is added to `path`, by whole lines."""

    def __init__(self, path: Path, where: Mapping[str, str]):
        self._path, self._name = path, where["name"]
        self._messages = Messages(open_store(where["url"]), where["folder"])
        self._sent, self._pending = 0, b""

    def send(self) -> bool:
        """Sends what is there, and returns whether there was a whole line.

        Raises:
            StoreError: the same piece is sent again at the next call.
        """
        if not self._pending:
            with self._path.open("rb") as f:
                f.seek(self._sent)
                data = f.read()
            self._pending = data[: data.rfind(b"\n") + 1]
        if not self._pending:
            return False
        self._messages.put(_piece(self._name, self._sent), self._pending)
        self._sent, self._pending = self._sent + len(self._pending), b""
        return True

    def flush(self) -> None:
        """Sends the rest, and tries for some time.

        Raises:
            StoreError: it could not be sent.
        """
        deadline = time.monotonic() + FLUSH_S
        while True:
            try:
                # a line without its end is never sent, and what the step has left running may write for ever
                if not self.send() or time.monotonic() > deadline:
                    return
            except StoreError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(SEND_S)


@contextlib.contextmanager
def sending(path: Path, where: Mapping[str, Any] | None) -> Iterator[None]:
    """Sends the lines of the file `path` as they come, and the last of them before it returns.

    Args:
        where: ``url``, ``folder`` and ``name`` of the messages; None sends nothing.
    """
    if where is None:
        yield
        return
    sender, over = _Sender(path, where), threading.Event()

    def loop() -> None:
        while not over.wait(SEND_S):
            with contextlib.suppress(StoreError):  # tried again a second later, and at the end
                sender.send()

    thread = threading.Thread(target=loop, name="events to the store", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        try:
            sender.flush()
        except StoreError as e:
            sys.stderr.write(f"aframe: what the step has reported could not be sent to the store: {e}\n")
