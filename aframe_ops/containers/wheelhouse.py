"""A folder with every wheel that nodes without a network need: `aframe wheelhouse DIR`.

pip resolves and downloads (`wheelhouse_pip`); here is what is asked for, and a manifest that is written last. See
`node_install` for the other end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from aframe_assets.store.files import file_sha256
from aframe_ops.containers import node_install
from aframe_ops.containers.target import Target, WheelhouseError
from aframe_ops.containers.wheelhouse_pip import TORCH, Builder, Tell, find_pip, own_files

PROJECT = "aframe-dagster"


@dataclass(frozen=True)
class Wheel:
    """One file of the wheelhouse; `nbytes` of itself, `unpacked` of what is in it."""

    name: str
    version: str
    file: str
    sha256: str
    nbytes: int
    unpacked: int

    @classmethod
    def read(cls, path: Path) -> Wheel:
        name, version, _, _ = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as z:
            unpacked = sum(i.file_size for i in z.infolist())
        return cls(name, str(version), path.name, file_sha256(path), path.stat().st_size, unpacked)


@dataclass(frozen=True)
class Summary:
    """What a call did: all wheels, those of them that are new, and what else of wheels is in the folder."""

    target: Target
    wheels: Sequence[Wheel]
    new: Sequence[Wheel]
    unused: Sequence[str]


def source_tree() -> Path:
    """The folder that this project is installed from.

    Raises:
        WheelhouseError: only the installed package is here.
    """
    folder = Path(node_install.__file__).resolve().parents[2]
    try:
        found = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"] == PROJECT
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        found = False
    if not found:
        raise WheelhouseError(
            f"this project is installed in {folder} without its source tree; clone its repository, `make install` there, "
            "and use that environment's aframe"
        )
    return folder


def source_digest(source: Path) -> str:
    """sha256 over all that our own wheel is made of."""
    digest = hashlib.sha256()
    for path in own_files(source):
        digest.update(f"{path.relative_to(source).as_posix()}\0{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def requirements_of(source: Path, extras: Iterable[str], markers: Mapping[str, str]) -> list[Requirement]:
    """What the project in `source` requires with `extras`, as it applies under `markers`.

    Raises:
        WheelhouseError: an extra that there is not.
    """
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    optional = project.get("optional-dependencies", {})
    out: list[Requirement] = []
    pending, seen = list(extras), set()
    texts = list(project.get("dependencies", []))
    while True:
        for found in map(Requirement, texts):
            if canonicalize_name(found.name) == canonicalize_name(project["name"]):
                pending += found.extras
            elif found.marker is None or found.marker.evaluate(dict(markers)):
                out.append(found)
        pending = [e for e in pending if e not in seen]
        if not pending:
            return out
        extra = pending.pop(0)
        if extra not in optional:
            raise WheelhouseError(f"--extra {extra}: expected one of {', '.join(sorted(optional))}")
        seen.add(extra)
        texts = optional[extra]


def build(
    folder: Path,
    target: Target | None = None,
    *,
    extras: Sequence[str] = (),
    only: Sequence[str] = (),
    torch: str = "gpu",
    source: Path | None = None,
    tell: Tell = lambda text: None,
) -> Summary:
    """Makes `folder` a wheelhouse for `target` (default: `Target.here`), or adds what it lacks.

    Args:
        extras: of the project.
        only: names of requirements: these, what they require, and no others.
        torch: ``gpu``, the build that the index has under the plain version, or ``cpu``, the smaller one with ``+cpu``.
        source: a checkout of the project; default: `source_tree`.
        tell: takes lines about what goes on.

    Raises:
        WheelhouseError: a package that is not to be had for the target, a folder of something else, no pip, no space.
    """
    target, source = target or Target.here(), source or source_tree()
    pip = find_pip()
    folder = folder.expanduser().absolute()
    previous = _look(folder, target)
    wanted = _selected(requirements_of(source, extras, target.markers()), only)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_mode & 0o002:
            raise WheelhouseError(f"{folder}: everybody may write there, and jobs would install what they find; `chmod o-w` it first")
        with FileLock(folder / ".lock", timeout=0), _arriving(folder) as temporary:
            builder = Builder(pip, folder, target, _pins(source, torch), Path(temporary), tell)
            tell(f"building our own wheel from {source}")
            own = builder.own_wheel(source)
            tell(f"asking pip for {len(wanted)} requirements and all that they require, for Python {target.python} on {target.platform}")
            chosen = builder.resolve([*map(str, wanted), "pip"])
            files = [own, *builder.fetch(chosen)]
            wheels = sorted((Wheel.read(folder / name) for name in files), key=lambda w: w.file)
            _finish(
                folder, target, wheels, {"extras": sorted(extras), "only": sorted(only), "torch": torch, "source": source_digest(source)}
            )
    except Timeout:
        raise WheelhouseError(f"{folder}: another `aframe wheelhouse` is at work there; wait for it") from None
    except OSError as e:
        raise WheelhouseError(f"{folder}: {e.strerror or e} ({e.filename or folder})") from None
    unused = {p.name for p in folder.glob("*.whl")} - {w.file for w in wheels}
    return Summary(target, wheels, [w for w in wheels if w.file not in previous], sorted(unused))


@contextmanager
def _arriving(folder: Path) -> Iterator[str]:
    """A folder for what is not whole yet. One that a killed call left holds gigabytes, and goes first; `folder` is locked."""
    for left in folder.glob(".arriving-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".arriving-") as temporary:
        yield temporary


def _look(folder: Path, target: Target) -> set[str]:
    """Names of the wheels that are there already.

    Raises:
        WheelhouseError: the folder is of something else, or of another target.
    """
    if not folder.exists():
        return set()
    if not folder.is_dir():
        raise WheelhouseError(f"{folder}: is a file; name a folder")
    there = {p.name for p in folder.iterdir() if not p.name.startswith(".")}
    path = folder / node_install.MANIFEST
    if path.exists():
        try:
            found = json.loads(path.read_text())
            theirs = found["python"], found["platform"]
        except (OSError, ValueError, KeyError, TypeError):
            raise WheelhouseError(f"{path}: is not the manifest of a wheelhouse; remove it, or name another folder") from None
        if theirs != (target.python, target.canonical):
            raise WheelhouseError(f"{folder}: is for Python {theirs[0]} on {theirs[1]}; name another folder for another target")
    elif other := sorted(n for n in there if not n.endswith(".whl") and n != Path(node_install.__file__).name):
        raise WheelhouseError(f"{folder}: holds {other[0]}, and is no wheelhouse; name a new folder")
    return {n for n in there if n.endswith(".whl")}


def _selected(wanted: Sequence[Requirement], only: Sequence[str]) -> list[Requirement]:
    names = {canonicalize_name(r.name) for r in wanted}
    if unknown := [n for n in only if canonicalize_name(n) not in names]:
        raise WheelhouseError(f"--only {unknown[0]}: the project does not require it; it requires {', '.join(sorted(names))}")
    kept = {canonicalize_name(n) for n in only} or names
    return [r for r in wanted if canonicalize_name(r.name) in kept]


def _pins(source: Path, torch: str) -> list[str]:
    """The lines of constraints.txt, with the wanted build of torch."""
    if torch not in ("cpu", "gpu"):
        raise WheelhouseError(f"--torch {torch}: expected cpu or gpu")
    try:
        lines = (source / "constraints.txt").read_text().splitlines()
    except OSError as e:
        raise WheelhouseError(f"{e.filename}: cannot be read ({e.strerror}); it has the versions that work together") from None
    pinned = {line: line.partition("==")[2].strip() for line in lines if line.partition("==")[0].strip() in TORCH}
    # without saying so, pip takes any build of a version
    return [line + ("+cpu" if torch == "cpu" else f",!={pinned[line]}+cpu") if line in pinned else line for line in lines]


def _finish(folder: Path, target: Target, wheels: Sequence[Wheel], asked: Mapping[str, Any]) -> None:
    """The installer, and then the manifest. Neither holds a time, so that the same wheels have the same manifest."""
    manifest = {"format": node_install.FORMAT, "python": target.python, "platform": target.canonical, **asked}
    manifest["wheels"] = [asdict(w) for w in wheels]
    installer = Path(node_install.__file__)
    for name, data in (
        (installer.name, installer.read_bytes()),
        (node_install.MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode()),
    ):
        temporary = folder / f".{name}.{os.getpid()}"
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, folder / name)
