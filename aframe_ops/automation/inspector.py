"""New files are read in a process of their own: a damaged frame file may take its reader down with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from aframe_assets.config import Config
from aframe_assets.config_load import resolved_text
from aframe_assets.strain.intake import Finding, Span, inspect

LIMIT_S = 600.0
"""A file that takes longer to read is bad."""


class Inspector:
    """`inspect` in a child process, which is started at the first file and again after a file that killed it.

    Args:
        config: the experiment.
        limit_s: seconds for one file.
    """

    def __init__(self, config: Config, limit_s: float = LIMIT_S):
        self._config, self._limit = config, limit_s
        self._child: subprocess.Popen | None = None

    def __enter__(self) -> Inspector:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def inspect(self, path: Path) -> Finding:
        """What `path` is worth; bad also if reading it ended the process or took too long."""
        answer = self._ask({"inspect": str(path)})
        if isinstance(answer, str):
            return Finding("bad", f"{path}: {answer}")
        return Finding(answer["verdict"], answer["why"], tuple((i, a, b) for i, a, b in answer["spans"]), answer["science"])

    def held(self, paths: Iterable[str]) -> list[tuple[Span, str]]:
        """Strain of files that are there already, with their names; files that cannot be read have none."""
        paths = list(paths)
        answer = self._ask({"held": paths})
        if isinstance(answer, str):
            # one of them ended the process: what the others hold counts
            each = [p for given in paths for p in _files(given)]
            return [] if each == paths and len(each) == 1 else [found for p in each for found in self.held([p])]
        return [((i, a, b), name) for (i, a, b), name in answer["held"]]

    def _ask(self, question: dict) -> dict | str:
        child = self._child = self._child or self._start()
        assert child.stdin and child.stdout
        try:
            child.stdin.write(json.dumps(question).encode() + b"\n")
            child.stdin.flush()
            line = self._line(child)
        except BrokenPipeError:
            line = b""
        if line:
            return json.loads(line)
        code = self._end()
        return f"takes more than {self._limit:g} s to read" if line is None else f"reading it ended the process (code {code})"

    def _line(self, child: subprocess.Popen) -> bytes | None:
        assert child.stdout
        deadline, out = time.monotonic() + self._limit, b""
        while not out.endswith(b"\n"):
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            piece = os.read(child.stdout.fileno(), 1 << 16)
            if not piece:
                return b""
            out += piece
        return out

    def _start(self) -> subprocess.Popen:
        # libraries print what they like on stdout; answers have a channel of their own
        child = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        assert child.stdin
        child.stdin.write(json.dumps(resolved_text(self._config)).encode() + b"\n")
        return child

    def _end(self) -> int | None:
        child, self._child = self._child, None
        if child is None:
            return None
        with contextlib.suppress(OSError):
            child.stdin.close()
        try:
            return child.wait(2)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()


def _files(given: str) -> list[str]:
    """The files of an item of ``strain.files``, each written as such an item."""
    from aframe_assets.segments.strain_headers import StrainError, find_files

    try:
        return [f"{given[:3] if given[2:3] == '=' else ''}{path}" for path in find_files([given])]
    except StrainError:
        return []


def _held(paths: Sequence[str]) -> Iterator[tuple[Span, str]]:
    from aframe_assets.segments.strain_headers import describe

    for given in paths:
        for item in _files(given):
            # H1=PATH says what the file does not
            ifo, path = (item[:2], item[3:]) if item[2:3] == "=" else ("", item)
            with contextlib.suppress(Exception):  # a damaged header raises whatever it likes
                for info in describe(path):
                    yield (info.ifo or ifo, info.gps_start, info.gps_stop), path


def main() -> None:
    """Answers questions, a line of JSON each, until they end."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    config = Config.model_validate_json(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        question = json.loads(line)
        answer = {"held": list(_held(question["held"]))} if "held" in question else asdict(inspect(question["inspect"], config))
        answers.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
