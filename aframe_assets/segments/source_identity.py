"""What the files behind an experiment contain, told cheaply enough to ask at every `plan`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from aframe_assets.config_rules import mask_source
from aframe_assets.segments.query import SegmentError
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


def veto_identity(config: Config) -> dict[str, str]:
    """Identity of the files that ``config.vetoes`` names, and of the strain files whose masks it asks.

    Raises:
        SegmentError or StrainError: a named file is not there.
    """
    v = config.vetoes
    named = [(f"{ifo} files", Path(p)) for ifo, paths in sorted(v.files.items()) for p in paths]
    named += [(f"{ifo} gates", Path(p)) for ifo, p in sorted(v.gates.items())]
    parts = []
    for what, path in named:
        if not path.is_file():
            raise SegmentError(f"vetoes, {what}: {path} does not exist")
        parts.append(f"{what} {path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}")
    if v.bits and mask_source(config) == "strain_files":
        parts += sorted(_sampled(p) for p in find_files(config.strain.files))
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return {"key": digest, "sha256": digest}


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
