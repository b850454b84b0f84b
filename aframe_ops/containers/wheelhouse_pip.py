"""What pip is asked for a wheelhouse, and what it answers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

from aframe_assets.store.files import file_sha256
from aframe_ops.containers.target import Target, WheelhouseError

TORCH = ("torch", "torchaudio")
"""Packages with a build for CPUs and others for GPUs, of one version."""

_BATCH = 12
_ROUNDS = 8

Tell = Callable[[str], None]


def find_pip() -> list[str]:
    for python in (sys.executable, getattr(sys, "_base_executable", sys.executable)):
        command = [python, "-m", "pip"]
        if subprocess.run([*command, "--version"], capture_output=True).returncode == 0:
            return [*command, "--disable-pip-version-check", "--no-input"]
    raise WheelhouseError(f"{sys.executable} has no pip; install it (`uv pip install pip`, or Debian's python3-pip) and try again")


@dataclass(frozen=True)
class Chosen:
    """One package of pip's answer."""

    name: str
    version: str
    file: str
    sha256: str | None
    requires: Sequence[str]


def own_files(source: Path) -> list[Path]:
    """What our own wheel is made of: its packages, and what describes them at the top of `source`."""
    found = [p for p in source.iterdir() if p.is_file() and p.name.startswith(("pyproject.toml", "README", "LICENSE", "build"))]
    for package in (p for p in source.iterdir() if (p / "__init__.py").is_file()):
        found += [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return sorted(found)


class Builder:
    """One call's questions to pip. `temporary` is on the disk of `folder`."""

    def __init__(self, pip: Sequence[str], folder: Path, target: Target, pins: Sequence[str], temporary: Path, tell: Tell):
        self._pip, self._folder, self._target, self._temporary, self._tell = list(pip), folder, target, temporary, tell
        self._built = folder / ".built"
        self._constraints = temporary / "constraints.txt"
        self._constraints.write_text("\n".join(pins) + "\n")

    def own_wheel(self, source: Path) -> str:
        """Name of the project's own wheel. Its content is in its name: a job that is installing an older one keeps it."""
        copy, out = self._temporary / "source", self._temporary / "own"
        copy.mkdir()  # a build in the tree itself would leave its traces there
        for path in own_files(source):
            target = copy / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        done = self._run("wheel", "--no-deps", "--quiet", f"--wheel-dir={out}", str(copy), SOURCE_DATE_EPOCH="1000000000")
        made = list(out.glob("*.whl")) if done.returncode == 0 else []
        if not made:
            raise WheelhouseError(f"{source}: pip cannot build a wheel from it: {_errors(done)}")
        (path,) = made
        distribution, version, rest = path.name.split("-", 2)
        name = f"{distribution}-{version}-0{file_sha256(path)[:12]}-{rest}"
        if not (self._folder / name).exists():
            os.replace(path, self._folder / name)
        return name

    def resolve(self, wanted: Sequence[str]) -> list[Chosen]:
        """pip's choice for the requirements `wanted` and all that they require there.

        pip reads environment markers as they are for the Python that it runs in; what the target needs beyond that is
        asked for in another round.
        """
        wanted, built = list(wanted), set()
        for _ in range(_ROUNDS + len(wanted)):
            found = self._ask(wanted)
            if isinstance(found, str):
                if canonicalize_name(Requirement(found).name) in built:
                    raise WheelhouseError(f"{found}: is built, and pip still does not take it for Python {self._target.python}")
                built.add(canonicalize_name(Requirement(found).name))
                self._build(found)
            elif lacking := _lacking(found, self._target.markers()):
                wanted += lacking
            else:
                return found
        raise WheelhouseError(f"pip does not come to an end; the last that was asked for is {wanted[-1]}")

    def _ask(self, wanted: Sequence[str]) -> list[Chosen] | str:
        """What pip would install, or the requirement that there is no wheel for."""
        report = self._temporary / "report.json"
        done = self._dry(wanted, "-c", str(self._constraints), f"--report={report}")
        if done.returncode == 0:
            return [_chosen(item) for item in json.loads(report.read_text())["install"]]
        if missing := self._without_wheel(done):
            name, version = _split_pin(missing)
            if name in TORCH and version.endswith("+cpu"):
                raise WheelhouseError(
                    f"{missing}: pip's index has no build of it for CPUs. PyTorch keeps those on an index of its own; set "
                    "PIP_EXTRA_INDEX_URL to its address, which PyTorch's installation page gives, or take --torch gpu"
                )
            return missing
        raise WheelhouseError(f"pip finds no set of packages: {_errors(done)}")

    def _dry(self, wanted: Sequence[str], *words: str) -> subprocess.CompletedProcess[str]:
        listed = self._temporary / "wanted.txt"
        listed.write_text("\n".join(wanted) + "\n")
        target = f"--target={self._temporary / 'none'}"
        return self._run("install", "--dry-run", "--ignore-installed", target, *self._for_target(), *words, "-r", str(listed))

    def _without_wheel(self, done: subprocess.CompletedProcess[str]) -> str | None:
        """What pip failed for because it has no wheel for the target; None if it failed for another reason."""
        pins = {_split_pin(line)[0]: line for line in self._constraints.read_text().splitlines()}
        if missing := re.search(r"No matching distribution found for (\S+)", done.stderr):
            return pins.get(_split_pin(missing[1])[0], missing[1])
        # of what a constraint pins to a version without a wheel, it says that there is a conflict
        for found in re.findall(r"\(constraint\) (\S+)", done.stdout):
            pin = pins.get(_split_pin(found)[0], found)
            if "No matching distribution found" in self._dry([pin], "--no-deps").stderr:
                return pin
        return None

    def _for_target(self) -> list[str]:
        """Options: wheels for the target, from the index and from what was built here."""
        words = [f"--python-version={self._target.python}", "--implementation=cp", "--only-binary=:all:"]
        words += [f"--platform={name}" for name in self._target.platforms()]
        return [*words, *([f"--find-links={self._built}"] if self._built.is_dir() else [])]

    def _build(self, requirement: str) -> None:
        """Builds a wheel of what is there as a source only."""
        self._tell(f"{requirement} has no wheel for {self._target.platform}; building it from its source")
        out = self._temporary / "sdist"
        done = self._run("wheel", "--no-deps", "--quiet", f"--wheel-dir={out}", "-c", str(self._constraints), requirement)
        made = list(out.glob("*.whl")) if done.returncode == 0 else []
        if not made:
            raise WheelhouseError(
                f"{requirement}: there is no wheel of it for Python {self._target.python} on {self._target.platform}, and it cannot be "
                f"built here: {_errors(done)}. If a node can build it, put the wheel into {self._built}"
            )
        for path in made:
            _, _, _, tags = parse_wheel_filename(path.name)
            if not tags & self._target.tags():
                raise WheelhouseError(
                    f"{requirement}: is a source only, and what it makes here ({path.name}) does not run with Python "
                    f"{self._target.python} on {self._target.platform}; build it there with `pip wheel` and put the wheel into "
                    f"{self._built}"
                )
            self._built.mkdir(exist_ok=True)
            os.replace(path, self._built / path.name)

    def fetch(self, chosen: Sequence[Chosen]) -> list[str]:
        """Names of the chosen wheels, all of which are in the folder then; those that are there are not downloaded again."""
        missing = [c for c in chosen if not self._there(c)]
        self._tell(f"{len(chosen)} packages, of which {len(missing)} are to be downloaded")
        for start in range(0, len(missing), _BATCH):
            part = missing[start : start + _BATCH]
            for number, item in enumerate(part, start + 1):
                self._tell(f"{number} of {len(missing)}: {item.name} {item.version}")
            self._download(part)
        return [c.file for c in chosen]

    def _there(self, item: Chosen) -> bool:
        path = self._folder / item.file
        if not path.is_file():
            return False
        if item.sha256 is not None:
            return file_sha256(path) == item.sha256
        return zipfile.is_zipfile(path)

    def _download(self, part: Sequence[Chosen]) -> None:
        listed, out = self._temporary / "part.txt", self._temporary / "part"
        # pip wants hashes of all of them or of none
        hashed = all(c.sha256 for c in part)
        if not hashed and len(part) > 1:
            for item in part:
                self._download([item])
            return
        listed.write_text("".join(f"{c.name}==={c.version}" + (f" --hash=sha256:{c.sha256}" if hashed else "") + "\n" for c in part))
        done = self._run("download", "--no-deps", "--quiet", f"--dest={out}", *self._for_target(), "-r", str(listed))
        absent = [c.file for c in part if not (out / c.file).is_file()]
        if done.returncode or absent:
            what = absent[0] if absent and not done.returncode else ", ".join(c.name for c in part)
            raise WheelhouseError(f"{what}: pip cannot download it: {_errors(done)}. The same command again continues")
        for item in part:
            os.replace(out / item.file, self._folder / item.file)

    def _run(self, command: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **variables, "TMPDIR": str(self._temporary)}  # /tmp may be too small for torch
        return subprocess.run([*self._pip, command, *words], env=env, capture_output=True, text=True, errors="replace")


def _split_pin(text: str) -> tuple[str, str]:
    """Name and version of ``name==version``; of anything else the name."""
    name = re.split(r"[^A-Za-z0-9._-]", text.strip(), maxsplit=1)[0]
    return canonicalize_name(name), text.partition("==")[2].partition(",")[0].strip()


def _chosen(item: Mapping[str, Any]) -> Chosen:
    metadata, info = item["metadata"], item["download_info"]
    address = urlsplit(info["url"])
    archive = info.get("archive_info", {})
    digest = archive.get("hashes", {}).get("sha256") or archive.get("hash", "").removeprefix("sha256=") or None
    path = Path(unquote(address.path))
    if digest is None and address.scheme == "file" and path.is_file():
        digest = file_sha256(path)
    requires = metadata.get("requires_dist", [])
    found = Chosen(canonicalize_name(metadata["name"]), metadata["version"], path.name, digest, requires)
    extras = item.get("requested_extras", [])
    # what an extra requires counts only where it was asked for
    return replace(found, version=str(Version(found.version)), requires=[*requires, *(f"extra:{e}" for e in extras)])


def _lacking(chosen: Sequence[Chosen], markers: Mapping[str, str]) -> list[str]:
    """Requirements of the chosen packages that none of them fulfils."""
    have = {c.name for c in chosen}
    out = []
    for item in chosen:
        extras = [r.removeprefix("extra:") for r in item.requires if r.startswith("extra:")]
        for text in item.requires:
            if text.startswith("extra:"):
                continue
            try:
                found = Requirement(text)
            except InvalidRequirement:
                continue
            applies = found.marker is None or any(found.marker.evaluate({**markers, "extra": e}) for e in ["", *extras])
            if applies and canonicalize_name(found.name) not in have:
                found.marker = None
                out.append(str(found))
    return sorted(set(out))


def _errors(done: subprocess.CompletedProcess[str]) -> str:
    """What pip complained about; never where it looked, which may be an address with a password."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and "://" not in line]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return "; ".join(errors[-4:] or lines[-3:])[:1500] or f"exit code {done.returncode}"
