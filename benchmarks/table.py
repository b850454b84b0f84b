"""What every benchmark prints: a table for people, one line of JSON for a program."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def cpu_seconds() -> float:
    """CPU seconds of this process and its ended children, user and system. Wall time says nothing on a shared machine."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def peak_gb() -> float:
    """Most memory that this process has held, GB of 1e9 bytes.

    Not ru_maxrss, which begins with that of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9


def show(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    result: Mapping[str, Any],
    as_json: bool = False,
    notes: Sequence[str] = (),
) -> None:
    """Print a benchmark.

    Args:
        title, columns, rows: the table; numbers are shown with three significant digits.
        result: what `--json` prints in one line; 'ratio' is ours over the reference, the lower the better.
        as_json: print `result` and nothing else.
        notes: lines under the table.

    Raises:
        ValueError: `result` has no 'ratio'.
    """
    if "ratio" not in result:
        raise ValueError(f"a benchmark's result needs 'ratio'; got {sorted(result)}")
    if as_json:
        sys.stdout.write(json.dumps(dict(result)) + "\n")
        return
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row))
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note)
