"""pip's settings of this machine, for builds: they are shown to the steps that need them, and stay in no image.

An index may be private and its address may hold a password. So it goes as a secret of the build, in files that only their
owner may read, and never as an argument, whose value stays in an image's history.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aframe_ops.containers.images import ImageError

_PLACES = {"index-url", "extra-index-url", "find-links"}
_KEPT = _PLACES | {"no-index", "trusted-host", "timeout", "retries", "proxy", "prefer-binary", "only-binary", "no-binary", "pre"}
_ALIASES = {"default-timeout": "timeout"}
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")

INSIDE = "/dev/shm/aframe"
"""Where folders of this machine are mounted in a build: memory, of which no trace is left in a layer."""


@dataclass(frozen=True)
class PipSettings:
    """What a build is told.

    Attributes:
        file: pip's configuration; only its owner may read it.
        certificates: bundle of certificate authorities, beside it; None: the image's own.
        mounts: folder of this machine -> where `file` expects it in the build.
        unseen: folders that `file` leaves out, because the engine cannot mount them.
    """

    file: Path
    certificates: Path | None
    mounts: Mapping[Path, str]
    unseen: tuple[Path, ...] = ()


def settings(listing: str) -> dict[str, str]:
    """pip's settings from what ``pip config list`` prints; variables before ``[install]``, and that before ``[global]``."""
    found: dict[str, dict[str, str]] = {}
    for line in listing.splitlines():
        match = re.fullmatch(r"(:env:|[\w-]+)\.([\w-]+)=(['\"].*)", line)
        if match:
            found.setdefault(match[1], {})[_ALIASES.get(match[2], match[2])] = ast.literal_eval(match[3])
    return {**found.get("global", {}), **found.get("install", {}), **found.get(":env:", {})}


def configured() -> dict[str, str]:
    """The settings of pip on this machine; empty where there is no pip.

    Raises:
        ImageError: pip cannot read its own configuration.
    """
    for words in ([sys.executable, "-m", "pip"], ["pip"], ["python3", "-m", "pip"]):
        if shutil.which(words[0]) is None:
            continue
        done = subprocess.run([*words, "config", "list"], capture_output=True, text=True, timeout=120)
        if done.returncode == 0:
            return settings(done.stdout)
        if "No module named" not in done.stderr:
            raise ImageError(f"`{' '.join(words)} config list` fails, so a build would not find its packages: mend pip's configuration")
    return {}


def write_settings(found: Mapping[str, str], folder: Path, *, can_mount: bool, environment: Mapping[str, str]) -> PipSettings:
    """Writes `found` for a build into `folder`, which is private.

    Folders of this machine among the places of packages get other names there (see `INSIDE`).

    Args:
        can_mount: whether the engine can show folders of this machine to a build.
        environment: variables that may name a bundle of certificates.

    Raises:
        ImageError: a folder cannot be mounted because of its name, or there is no file of certificates where there should be.
    """
    mounts: dict[Path, str] = {}
    unseen: list[Path] = []
    lines = ["[global]"]
    for key in sorted(_KEPT & found.keys()):
        words = found[key].split()
        if key in _PLACES:
            words = [w for word in words if (w := _inside(word, mounts, unseen, key, can_mount)) is not None]
        if words:
            lines.append(f"{key} = " + "\n    ".join(words))
    file = folder / "pip.conf"
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write("\n".join(lines) + "\n")
    named = found.get("cert") or next((environment[v] for v in _CERTIFICATES if environment.get(v)), None)
    if named and not Path(named).is_file():
        raise ImageError(f"{named}: pip's certificates are not there; correct `cert` of pip's configuration, or the variable that names it")
    certificates = Path(shutil.copyfile(named, folder / "certificates")) if named else None
    return PipSettings(file, certificates, mounts, tuple(dict.fromkeys(unseen)))


def _inside(word: str, mounts: dict[Path, str], unseen: list[Path], key: str, can_mount: bool) -> str | None:
    """`word`, a place of packages, as a build has to name it; None when it cannot be seen there."""
    is_url = word.startswith("file:")
    if not is_url and (key != "find-links" or "://" in word):
        return word
    path = Path(unquote(urlsplit(word).path) if is_url else os.path.expanduser(word))
    if not path.is_absolute() or not path.is_dir():
        return None  # pip goes on without it, too
    # the pages of an index name their files by relative links, often beside it
    folder = path if key == "find-links" else path.parent
    if not can_mount:
        unseen.append(path)
        return None
    if folder == Path("/") or re.search(r"[:,\s\x00-\x1f]", str(folder)):
        raise ImageError(f"{path}: a folder that pip's {key} names cannot be mounted into a build: give it a plain path")
    place = mounts.setdefault(folder, f"{INSIDE}/{len(mounts)}")
    place += str(path)[len(str(folder)) :]
    return f"file://{place}" if is_url else place
