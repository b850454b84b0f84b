"""The user log that HTCondor writes for a job: what happened to it, an event at a time, in the schedd's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aframe_ops.executor.scheduler import Usage

EVICTED, TERMINATED, SHADOW_FAILED, ABORTED, LOST_CONTACT = 4, 5, 7, 9, 24

_HEADER = re.compile(r"(\d{3}) \((\d+)\.(\d+)\.\d+\) (.*)")
_CPU = re.compile(r"Usr (\d+) (\d+):(\d+):(\d+), Sys (\d+) (\d+):(\d+):(\d+)\s+-\s+Run Remote Usage")
_MEMORY, _SECONDS = (re.compile(rf"{name} \({unit}\)\s*:\s*(\d+)") for name, unit in (("Memory", "MB"), ("TimeExecute", "s")))


@dataclass(frozen=True)
class Event:
    """One event: its number, the job's id (``cluster.proc``), and its lines, without the number, the id and tabs."""

    number: int
    id: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it in one string."""
        return "\n".join(self.lines)

    def exit(self) -> tuple[int, int] | None:
        """Exit code and signal (0: none) of a terminated job's process."""
        if found := re.search(r"Normal termination \(return value (-?\d+)\)", self.text):
            return int(found[1]), 0
        if found := re.search(r"Abnormal termination \(signal (\d+)\)", self.text):
            return 0, int(found[1])
        return None

    def reason(self) -> str:
        """Why the job was evicted or removed; empty where nobody says so."""
        if self.number == EVICTED:
            found = re.search(r"^Reason: (.+)$", self.text, re.MULTILINE)
            return found[1] if found else ""
        return " ".join(line for line in self.lines[1:] if line)

    def usage(self) -> Usage | None:
        """What the job used until this event, where the event has the table."""
        seconds, memory, cpu = (pattern.search(self.text) for pattern in (_SECONDS, _MEMORY, _CPU))
        if not seconds:
            return None
        parts = [int(x) for x in cpu.groups()] if cpu else []
        cpu_s = sum(n * w for n, w in zip(parts, (86400, 3600, 60, 1) * 2, strict=True)) if cpu else None
        return Usage(float(seconds[1]), cpu_s, int(memory[1]) * 2**20 / 1e9 if memory else None)


class UserLog:
    """The log in the file `path`, of one job, read as it grows; `events` are those of `read` calls so far."""

    def __init__(self, path: Path):
        self._path, self._offset = path, 0
        self.events: list[Event] = []

    def read(self) -> list[Event]:
        """All events that are whole by now. A file that is not there yet has none."""
        try:
            with self._path.open("rb") as f:
                f.seek(self._offset)
                data = f.read()
        except FileNotFoundError:
            return self.events
        # "..." ends an event only as a line of its own; as the first it is preceded by no end of a line
        end = data.rfind(b"\n...\n")
        whole = end + 5 if end >= 0 else 4 * data.startswith(b"...\n")
        self._offset += whole
        self.events.extend(parse(data[:whole].decode(errors="replace")))
        return self.events

    def last(self, *numbers: int) -> Event | None:
        """The latest event with one of these numbers."""
        return next((e for e in reversed(self.events) if e.number in numbers), None)


def parse(text: str) -> Iterator[Event]:
    """Events of `text`; what is none (other formats, leftovers) is passed over."""
    for block in re.split(r"^\.\.\.\n", text, flags=re.MULTILINE):
        first, *rest = block.splitlines() or [""]
        if found := _HEADER.match(first):
            lines = (found[4], *(line.strip() for line in rest))
            yield Event(int(found[1]), f"{int(found[2])}.{int(found[3])}", lines)
