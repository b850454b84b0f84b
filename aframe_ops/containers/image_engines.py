"""Podman, Docker and Apptainer as programs: the words that build, look at, push and run an image. No shell reads any of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aframe_ops.containers.images import BOUND, CONTAINERFILE, DEFINITION, HASH_LABEL, INPUTS_LABEL, REVISION_LABEL, ImageError
from aframe_ops.containers.pip_settings import PipSettings

_QUESTION = 1200.0
"""Seconds for a question to an engine: podman answers none while another build of it writes a layer, which may be gigabytes."""


@dataclass(frozen=True)
class BuildRequest:
    """One image, ready to be built.

    Attributes:
        name: of the image: cpu, gpu, triton.
        reference: what the image is called when it is there; for Apptainer a path.
        context: folder made by `images.snapshot`.
        recipe: file in it.
        arguments: build arguments that the recipe declares, all with their values.
        labels: of the image.
        pip: pip's settings.
        force: take nothing from an earlier build.
        options: further words of the engine's.
    """

    name: str
    reference: str
    context: Path
    recipe: Path
    arguments: Mapping[str, str]
    labels: Mapping[str, str]
    pip: PipSettings
    force: bool = False
    options: Sequence[str] = field(default=())


class Engine(ABC):
    """A program that builds and keeps images."""

    name: str
    advice: str
    kind = CONTAINERFILE
    mounts = True
    """Whether a build can be shown folders of this machine."""

    def require(self) -> None:
        """Raises ImageError where the program is not there or does not work."""
        if shutil.which(self.name) is None:
            raise ImageError(f"{self.name} is not installed: {self.advice}; or name another one with --engine")
        done = self._ask("version")
        if done.returncode:
            raise ImageError(f"{self.name} does not work: {_last(done.stderr)}; {self.advice}")

    @abstractmethod
    def reference(self, name: str, tag: str) -> str:
        """What image `name` is called."""

    @abstractmethod
    def labels(self, reference: str) -> dict[str, str] | None:
        """Labels of an image; None when it is not there."""

    @abstractmethod
    def size(self, reference: str) -> int | None:
        """Bytes of an image on disk; None when it is not there."""

    @abstractmethod
    def build(self, request: BuildRequest) -> list[str]:
        """The command that builds."""

    def unfinished(self, reference: str) -> Path | None:
        """The file that a build makes, to be given the name `reference` when it is whole; None where the engine sees to that."""
        return None

    @abstractmethod
    def push(self, reference: str, registry: str) -> tuple[list[list[str]], str]:
        """The commands that push an image, one after the other, and what it is called there."""

    @abstractmethod
    def run(self, reference: str, tree: Path) -> list[str]:
        """A command that runs what is said behind it in a development image, in the current folder with the code of `tree`."""

    def _ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run([self.name, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_QUESTION)
        except subprocess.TimeoutExpired:
            raise ImageError(f"{self.name} {words[0]}: has not answered after {_QUESTION:g} s; run it by hand") from None
        except OSError as e:
            raise ImageError(f"{self.name}: {e.strerror}") from None


class _Layered(Engine):
    """What Podman and Docker have in common."""

    absent: tuple[str, ...]
    """What the program says when an image is not there."""

    def reference(self, name: str, tag: str) -> str:
        return f"aframe-{name}:{tag}"

    def labels(self, reference: str) -> dict[str, str] | None:
        found = self._inspect(reference)
        return None if found is None else (found.get("Config") or {}).get("Labels") or {}

    def size(self, reference: str) -> int | None:
        found = self._inspect(reference)
        return None if found is None else found.get("Size")

    def _inspect(self, reference: str) -> dict[str, Any] | None:
        done = self._ask("image", "inspect", reference)
        if done.returncode:
            if any(words in done.stderr.lower() for words in self.absent):
                return None
            raise ImageError(f"{self.name} image inspect {reference}: {_last(done.stderr)}")
        try:
            return json.loads(done.stdout)[0]
        except (ValueError, LookupError):
            raise ImageError(f"{self.name} image inspect {reference}: answered no JSON: {done.stdout.strip()[:200]!r}") from None

    def build(self, request: BuildRequest) -> list[str]:
        words = [self.name, "build", "--file", str(request.recipe), "--tag", request.reference]
        for key, value in request.labels.items():
            words += ["--label", f"{key}={value}"]
        for key, value in request.arguments.items():
            words += ["--build-arg", f"{key}={value}"]
        words += ["--secret", f"id=pip,src={request.pip.file}"]
        if request.pip.certificates:
            words += ["--secret", f"id=certificates,src={request.pip.certificates}"]
        if request.force:
            words.append("--no-cache")
        return [*words, *self._own(request), *request.options, str(request.context)]

    @abstractmethod
    def _own(self, request: BuildRequest) -> list[str]:
        """Words of the build that only this program has."""

    def _user(self) -> list[str]:
        return ["--user", f"{os.getuid()}:{os.getgid()}"]

    def run(self, reference: str, tree: Path) -> list[str]:
        here = os.getcwd()
        places = ["--volume", f"{tree}:{BOUND}:ro", "--volume", f"{here}:{here}", "--workdir", here]
        return [self.name, "run", "--rm", *self._user(), *places, reference]


class Podman(_Layered):
    name = "podman"
    advice = "on Debian, `apt-get install podman` as root"
    absent = ("image not known", "no such image", "failed to find image")

    def _own(self, request: BuildRequest) -> list[str]:
        # a base with a date in its tag does not change, and one made on this machine is in no registry
        words = ["--pull=missing", "--timestamp", request.arguments["SOURCE_DATE_EPOCH"]]
        for folder, place in request.pip.mounts.items():
            words += ["--volume", f"{folder}:{place}:ro"]
        return words

    def _user(self) -> list[str]:
        # root's podman has no user of the host to keep; the image's own is none of root's either
        return ["--userns=keep-id"] if os.getuid() else []

    def push(self, reference: str, registry: str) -> tuple[list[list[str]], str]:
        there = f"{registry}/{reference}"
        return [[self.name, "push", reference, there]], there


class Docker(_Layered):
    name = "docker"
    advice = "install Docker and start its daemon, which the command `docker version` must reach"
    absent = ("no such image",)
    mounts = False

    def _own(self, request: BuildRequest) -> list[str]:
        return ["--progress", "plain"]

    def push(self, reference: str, registry: str) -> tuple[list[list[str]], str]:
        there = f"{registry}/{reference}"
        return [[self.name, "tag", reference, there], [self.name, "push", there]], there


class Apptainer(Engine):
    """Images are files ``aframe-NAME_TAG.sif`` in `folder`."""

    name = "apptainer"
    advice = "it needs version 1.2 or later, from your system's packages or your cluster's modules"
    kind = DEFINITION
    mounts = False

    def __init__(self, folder: Path):
        self._folder = folder

    def reference(self, name: str, tag: str) -> str:
        return str(self._folder / f"aframe-{name}_{tag}.sif")

    def labels(self, reference: str) -> dict[str, str] | None:
        if not os.path.exists(reference):
            return None
        done = self._ask("inspect", "--labels", "--json", reference)
        if done.returncode:
            raise ImageError(f"{reference}: apptainer cannot read it: {_last(done.stderr)}; remove it, or build it with --force")
        try:
            return json.loads(done.stdout)["data"]["attributes"]["labels"] or {}
        except (ValueError, LookupError, TypeError):
            raise ImageError(f"apptainer inspect {reference}: answered no JSON with labels: {done.stdout.strip()[:200]!r}") from None

    def size(self, reference: str) -> int | None:
        return os.path.getsize(reference) if os.path.exists(reference) else None

    def build(self, request: BuildRequest) -> list[str]:
        labels = {"ENVIRONMENT": HASH_LABEL, "INPUTS": INPUTS_LABEL, "REVISION": REVISION_LABEL}
        arguments = dict(request.arguments) | {name: request.labels[label] for name, label in labels.items()}
        words = [self.name, "build", "--force", "--bind", f"{request.pip.file.parent}:/mnt:ro"]
        for key, value in arguments.items():
            words += ["--build-arg", f"{key}={value}"]
        return [*words, *request.options, str(self.unfinished(request.reference)), str(request.recipe)]

    def unfinished(self, reference: str) -> Path:
        path = Path(reference)
        return path.with_name(f".{path.name}.{os.getpid()}")

    def push(self, reference: str, registry: str) -> tuple[list[list[str]], str]:
        name, _, tag = Path(reference).stem.partition("_")
        there = f"oras://{registry}/{name}:{tag}"
        return [[self.name, "push", reference, there]], there

    def run(self, reference: str, tree: Path) -> list[str]:
        return [self.name, "exec", "--bind", f"{tree}:{BOUND}:ro", reference]


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:500]


def engine_named(name: str, folder: Path) -> Engine:
    """The engine `name`; Apptainer's images are in `folder`."""
    return {"podman": Podman, "docker": Docker}[name]() if name != "apptainer" else Apptainer(folder)
