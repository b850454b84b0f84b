"""What became of every file that was dropped: one line of JSON each, appended and never changed."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One file as it was at one time.

    Attributes:
        file: path, or s3://bucket/key.
        size, stamp: bytes; and what changes when the file does: time of change or ETag.
        verdict: 'good', 'duplicate' (the same bytes are held already), 'unused' or 'bad'.
        why: the reason, unless it is good.
        sha256: of its content; '' if it could not be read.
        name: what it is called in the folder that good files are put in; '' of others.
        spans: (detector, GPS start, GPS stop) of its strain.
        science: seconds of science time, of all detectors together.
        time: when that was found, ISO 8601.
    """

    file: str
    size: int
    stamp: str
    verdict: str
    why: str = ""
    sha256: str = ""
    name: str = ""
    spans: tuple[tuple[str, float, float], ...] = ()
    science: float = 0.0
    time: str = ""

    @property
    def identity(self) -> tuple[str, int, str]:
        return self.file, self.size, self.stamp

    @property
    def shown(self) -> str:
        """`file` as it may be written to a terminal, a log or a page: names may hold anything."""
        return printable(self.file)


def printable(name: str) -> str:
    """`name` if it can be printed, else with escapes for what cannot."""
    return name if name.isprintable() else ascii(name)[1:-1]


class Ledger:
    """The file of entries at `path`; one process at a time may append."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> list[Entry]:
        """All entries, in order. A last line that a kill cut short is none."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return []
        out = []
        for line in text.split("\n"):
            try:
                data: dict[str, Any] = json.loads(line) if line else {}
            except ValueError:
                continue
            if data:
                out.append(Entry(**{**data, "spans": tuple((i, a, b) for i, a, b in data["spans"])}))
        return out

    def append(self, entry: Entry) -> None:
        """Writes an entry to disk. One that was cut short before it stays a line of its own."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(asdict(entry)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
