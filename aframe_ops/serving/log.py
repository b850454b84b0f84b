"""What a server's log says of its end."""

from __future__ import annotations

import re
from pathlib import Path

_MOST = 8
_ERROR = re.compile(r"E\d{4} ")
_NO_REASON = re.compile(r"[IW]\d{4} |[+|]|\s*$|.*(CudaDriverHelper|NVML|unable to create stream)", re.IGNORECASE)
"""Notes and warnings, frames and rows of tables, and what every server says on a machine without GPUs."""


def reasons(log: Path) -> list[str]:
    """Its last errors; its last lines of no level where it has none, as programs print them that are no server."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if not _NO_REASON.match(line)]
    return ([line for line in lines if _ERROR.match(line)] or lines)[-_MOST:]
