"""200 strings that no shell may see, a program that says what it was given, and a search for what nobody may see."""

from __future__ import annotations

import subprocess
from pathlib import Path

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


def holding(text: str, *folders: Path) -> list[Path]:
    """Files below `folders` with `text` in them."""
    found = subprocess.run(["grep", "-rlaF", "--", text, *map(str, folders)], capture_output=True, text=True)
    return [Path(line) for line in found.stdout.splitlines()]
