"""What the files behind an experiment contain, told cheaply enough to ask at every `plan`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from aframe_assets.segments.strain_headers import find_files

if TYPE_CHECKING:
    from aframe_assets.config import Config

_SAMPLED = 65536


def _sampled(path: Path) -> str:
    """Hash of name, size and the first and last 64 KiB: headers and masks are there, and reading years of strain is not."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{path.name}\x1f{size}".encode())
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLED))
        file.seek(max(0, size - _SAMPLED))
        digest.update(file.read(_SAMPLED))
    return digest.hexdigest()


def source_identity(config: Config) -> dict[str, str]:
    """Identity of the segment lists and strain files that `config` names; wherever they lie, the same files give the same.

    Raises:
        SegmentError or OSError: a named file is not there.
    """
    paths = [Path(p) for p in config.segments.files.values()] if config.segments.source == "files" else []
    if config.strain.files:
        paths += find_files(config.strain.files)
    digest = hashlib.sha256("\n".join(sorted(_sampled(p) for p in paths)).encode()).hexdigest()
    return {"key": digest, "sha256": digest}
