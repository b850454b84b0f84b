"""Strings that would do harm in one shell or another, jobs that echo them, and where a secret was left."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from aframe_ops.executor.base import Request
from aframe_ops.executor.scheduler import BatchJob

PIECES = [
    "'",
    '"',
    "`touch {}`",
    "$(touch {})",
    "${{IFS}}",
    "; touch {} ;",
    "&& touch {}",
    "| touch {}",
    "\n touch {}",
    "\r",
    "\t",
    "*",
    "?",
]
PIECES += ["[a-z]", "{{a,b}}", "~root", "../../..", "-rf", "--wrap=x", "#SBATCH --hold", "# c", "%j", "%%", "\\", "\\'", "!!"]
PIECES += ["$HOME", "é💥", "<(touch {})", "> {}", "2>&1", "\x01", "\x7f", "(a)", "a b", "''", '""', "$'x'", "\\n"]

ECHO = "import json, os, sys; json.dump([sys.argv[2:], os.getcwd(), os.environ.get('PYTHONPATH', '')], open(sys.argv[1], 'w'))"


def hostile(marker: Path) -> list[str]:
    """200 strings, each of which would make the file `marker` or another mess in one shell or another."""
    single = [p.format(marker) for p in PIECES]
    pairs = [a + b for i, a in enumerate(single) for b in (single[(7 * i + 3) % len(single)], single[(11 * i + 5) % len(single)])]
    around = [f"ok{p}ok" for p in single if p != "-rf"] + [f"x={p} y{p}" for p in single]
    return list(dict.fromkeys(single + around + pairs + [p + p for p in single]))[:200]


def job_for(tmp_path: Path, number: int, argv: tuple[str, ...], **changes) -> BatchJob:
    log = tmp_path / "logs" / str(number)
    log.parent.mkdir(exist_ok=True)
    spec = tmp_path / "no.json"
    job = {
        "name": f"hostile-{os.getpid()}-{number}",
        "request": Request(memory_gb=0.1),
        "number": 0,
        "argv": argv,
        "spec": spec,
        "log": log,
    }
    return BatchJob(**{"folder": tmp_path, **job, **changes})


def holding(text: str, *folders: Path) -> list[Path]:
    """Files below `folders` with `text` in them."""
    found = subprocess.run(["grep", "-rlaF", "--", text, *map(str, folders)], capture_output=True, text=True)
    return [Path(line) for line in found.stdout.splitlines()]
