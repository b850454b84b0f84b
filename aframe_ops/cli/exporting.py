"""Results taken out of a run: single files, and the whole run as an RO-Crate."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from aframe_assets.config_load import ConfigError

if TYPE_CHECKING:
    from aframe_assets.store.workspace import Workspace

FILES = {
    "report": ("report", "report.html"),
    "csv": ("candidates", "candidates.csv"),
    "gracedb": ("report", "candidates-gracedb.json"),
    "ligolw": ("report", "candidates.xml.gz"),
    "volume": ("sensitive_volume", "sensitive_volume.h5"),
}
"""Format -> asset and file."""

_AUTHOR = re.compile(r"(?P<name>[^<>]+?)(?:\s*<(?:https://orcid\.org/)?(?P<orcid>\d{4}-\d{4}-\d{4}-\d{3}[\dX])>)?")


_MAKE = "{asset} is missing or out of date; make it with `aframe run --until {asset}`, and see `aframe status --why`"


class NotMade(ValueError):
    """What is to be exported is not there; the message says how it is made."""


def show_report(workspace: Workspace, console: Console) -> None:
    """Prints volumes, candidates, and the path of the report.

    Raises:
        NotMade: the report is not complete.
    """
    from aframe_ops.cli.results import show_results

    if workspace.complete("report") is None:
        raise NotMade(_MAKE.format(asset="report"))
    show_results(workspace, console)


def export_files(workspace: Workspace, folder: Path, formats: Sequence[str], console: Console) -> None:
    """Copies results into `folder`, which is made; a file that is there is replaced.

    Raises:
        ConfigError: an unknown format.
        NotMade: an asset is not complete, or its file is not what its manifest says.
    """
    unknown = [f for f in formats if f not in FILES]
    if unknown:
        raise ConfigError(f"--format {unknown[0]}: expected one of {', '.join(FILES)}")
    wanted = list(dict.fromkeys(formats or FILES))
    handles = {}
    for asset in dict.fromkeys(FILES[f][0] for f in wanted):
        handles[asset] = workspace.complete(asset)
        if handles[asset] is None:
            raise NotMade(_MAKE.format(asset=asset))
        damage = workspace.store.verify(handles[asset])
        if damage:
            raise NotMade(f"{asset} is damaged: {'; '.join(damage)}; make it again with `aframe run`")
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        asset, file = FILES[name]
        partial = folder / f".{file}.partial"
        # the store's own files are read-only, these belong to the user
        shutil.copyfile(workspace.store.open_local(handles[asset], file), partial)
        partial.replace(folder / file)
        console.print(str(folder / file), soft_wrap=True)


def export_crate(
    workspace: Workspace, target: Path, authors: Sequence[str], licence: str | None, *, everything: bool, console: Console
) -> None:
    """Writes the run as an RO-Crate.

    Args:
        workspace: of the run.
        target: folder or .zip to make.
        authors: 'Name' or 'Name <ORCID>'.
        licence: address; None for CC BY 4.0, where the strain is public.
        everything: copy large artifacts too.
        console: to say what was written.

    Raises:
        ConfigError: an author that cannot be read, or a package that is not installed.
        CrateError: see `aframe_assets.provenance.crate.write_crate`.
    """
    from aframe_assets.provenance.crate import COPIED, About, write_crate

    named = {}
    for text in authors:
        found = _AUTHOR.fullmatch(text.strip())
        if found is None:
            raise ConfigError(f"--author '{text}': expected a name, or a name and an ORCID as 'A. Person <0000-0002-1825-0097>'")
        named[found["name"]] = f"https://orcid.org/{found['orcid']}" if found["orcid"] else ""
    try:
        write_crate(workspace, target, About(named, licence or "", None if everything else COPIED))
    except ModuleNotFoundError as e:
        raise ConfigError(f"an RO-Crate needs the Python package {e.name}, which is not installed; run `make install` again") from None
    console.print(f"{target}: ro-crate-metadata.json describes it", soft_wrap=True)
