"""Images of this project: which there are, what goes into one, and whether one that is there was made of what is here now."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aframe_assets.config_load import ConfigError

HASH_LABEL = "org.aframe.environment"
"""Label of an image: hash of all that it was made of."""

INPUTS_LABEL = "org.aframe.inputs"
"""Label of an image: hash of each input, ``name=hash`` and spaces between, to tell which one has changed since."""

REVISION_LABEL = "org.opencontainers.image.revision"
FOLDER = "docker"
CONTAINERFILE, DEFINITION = ".Containerfile", ".def"
BOUND = "/src"
"""Where a development image expects the working tree."""

OWN_ARGUMENTS = {"BASE": "--base", "CODE": "--dev", "ENVIRONMENT": "aframe itself", "INPUTS": "aframe itself", "REVISION": "aframe itself"}
_COMMON = ("pyproject.toml", "constraints.txt", f"{FOLDER}/install.sh")
_CODE = ("README.md", "LICENSE", "aframe_assets", "aframe_ops")
_DEV_CODE = (f"{FOLDER}/aframe.py", "aframe_ops/__init__.py", "aframe_ops/serving")
"""What a development image has of the project: the command that starts what is mounted, and what installs a Triton server."""

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?"
_REFERENCE = re.compile(rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?(?:@sha256:[0-9a-f]{{64}})?")
_LONGEST = 255
_REGISTRY = re.compile(rf"{_HOST}(?:/{_PART})*")
# Apptainer writes values into a script, so that no shell may find a meaning in them.
_ARGUMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=([A-Za-z0-9_.,:=/@+-]*)")


class ImageError(Exception):
    """No image can be built, looked at or pushed as things are; the words say why, and what to do."""


@dataclass(frozen=True)
class Wanted:
    """How images are to be made.

    Attributes:
        tag: of all images.
        base: image that they start from; None: the one that each recipe names.
        arguments: further build arguments, by name.
        dev: without this project's code, which is then taken from what is mounted at `BOUND`.
    """

    tag: str
    base: str | None = None
    arguments: Mapping[str, str] | None = None
    dev: bool = False

    def build_arguments(self) -> dict[str, str]:
        """All build arguments."""
        own = {"BASE": self.base} if self.base else {}
        return {**(self.arguments or {}), **own, "CODE": "bound" if self.dev else "installed"}


def wanted(tag: str | None, base: str | None, arguments: Iterable[str], dev: bool) -> Wanted:
    """What a user asks for, looked at.

    Args:
        tag: None: ``dev`` for development images, else ``latest``.
        arguments: ``NAME=VALUE`` each.

    Raises:
        ConfigError: a tag, image or argument that is none; nothing of it reaches an engine then.
    """
    tag = tag if tag is not None else "dev" if dev else "latest"
    if not _TAG.fullmatch(tag):
        raise ConfigError(f"--tag {tag!r}: expected up to 128 letters, digits, '_', '.' and '-', beginning with none of the last two")
    if base is not None and not (_REFERENCE.fullmatch(base) and len(base) <= _LONGEST):
        raise ConfigError(f"--base {base!r}: expected the name of an image, such as debian:bookworm-20250520-slim")
    values: dict[str, str] = {}
    for text in arguments:
        found = _ARGUMENT.fullmatch(text)
        if not found:
            raise ConfigError(f"--build-arg {text!r}: expected NAME=VALUE, with letters, digits and _ . , : = / @ + - in the value")
        if found[1] in OWN_ARGUMENTS:
            raise ConfigError(f"--build-arg {found[1]}: is set by {OWN_ARGUMENTS[found[1]]}")
        values[found[1]] = found[2]
    if not values.get("SOURCE_DATE_EPOCH", "0").isdecimal():
        raise ConfigError(f"--build-arg SOURCE_DATE_EPOCH={values['SOURCE_DATE_EPOCH']}: expected seconds since 1970")
    return Wanted(tag, base, values, dev)


def require_registry(text: str) -> str:
    """`text`, the place that images are pushed to: ``host[:port][/path]``. Raises ConfigError."""
    if not _REGISTRY.fullmatch(text) or len(text) > _LONGEST:
        raise ConfigError(f"--push {text!r}: expected host[:port][/path], such as registry.example.org/group")
    return text


def find_tree(folder: Path | None) -> Path:
    """The working tree that images are made from: `folder`, else the one of the running code, else the current one.

    Raises:
        ConfigError: it has no recipes.
    """
    candidates = [folder] if folder else [Path(__file__).resolve().parents[2], Path.cwd()]
    for tree in candidates:
        if (tree / FOLDER).is_dir() and all((tree / name).is_file() for name in _COMMON):
            return tree.resolve()
    raise ConfigError(
        f"{', '.join(map(str, candidates))}: holds no {FOLDER}/install.sh, pyproject.toml and constraints.txt; images are made from a "
        "checkout of this project: name it with --tree"
    )


def image_names(tree: Path, kind: str = CONTAINERFILE) -> list[str]:
    """Names of the images that `tree` has a recipe of `kind` for."""
    return sorted(path.name.removesuffix(kind) for path in (tree / FOLDER).glob(f"*{kind}"))


def chosen(tree: Path, names: Iterable[str], kind: str = CONTAINERFILE) -> list[str]:
    """`names` without repetition, or all images where there are none. Raises ConfigError for one that is not known."""
    known = image_names(tree, kind)
    picked = list(dict.fromkeys(names)) or known
    for name in picked:
        if name not in known:
            raise ConfigError(f"image {name!r}: is not one of {', '.join(known)}")
    return picked


def declared(recipe: Path) -> dict[str, str]:
    """Build arguments that a recipe declares, with their defaults (empty where it has none)."""
    text = recipe.read_text()
    if recipe.suffix == DEFINITION:
        section = re.search(r"^%arguments\n(.*?)(?=^%|\Z)", text, re.MULTILINE | re.DOTALL)
        return dict(re.findall(r"^\s*(\w+)=(.*?)\s*$", section[1], re.MULTILINE)) if section else {}
    out: dict[str, str] = {}
    for name, value in re.findall(r"^ARG (\w+)(?:=(\S*))?\s*$", text, re.MULTILINE):
        out[name] = value or out.get(name, "")  # each stage that uses one declares it again
    return out


def require_arguments(tree: Path, names: Iterable[str], asked: Wanted, kind: str = CONTAINERFILE) -> None:
    """Raises ConfigError where an argument is declared by none of the recipes, which engines would only warn of."""
    known = {argument for name in names for argument in declared(recipe_of(tree, name, kind))}
    for argument in asked.arguments or {}:
        if argument not in known:
            settable = sorted(known - OWN_ARGUMENTS.keys())
            raise ConfigError(f"--build-arg {argument}: no image asked for takes it; expected one of {', '.join(settable)}")


def recipe_of(tree: Path, name: str, kind: str = CONTAINERFILE) -> Path:
    return tree / FOLDER / f"{name}{kind}"


def snapshot(tree: Path, folder: Path) -> Path:
    """Copies what images are made of from `tree` into `folder`, with the modes that git knows, and returns `folder`.

    What is hashed is then what is built, even when the tree is being edited, and no umask gets into an image.
    """
    recipes = [str(path.relative_to(tree)) for kind in (CONTAINERFILE, DEFINITION) for path in (tree / FOLDER).glob(f"*{kind}")]
    for source in _files(tree, (*_COMMON, *recipes, *_DEV_CODE[:1], *_CODE)):
        target = folder / source.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
    for made in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        made.chmod(0o755)
    return folder


def _files(tree: Path, names: Iterable[str]) -> Iterator[Path]:
    """The files of `names`, and of the folders among them, that go into images."""
    for name in names:
        top = tree / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            parts = path.relative_to(tree).parts
            if path.is_file() and not path.is_symlink() and not any(p == "__pycache__" or p.startswith(".") for p in parts):
                yield path


def inputs(folder: Path, name: str, asked: Wanted, kind: str = CONTAINERFILE) -> dict[str, str]:
    """Hash of each input of image `name`, in a folder made by `snapshot`.

    The inputs are the three files that all images share, the recipe, the build arguments that it declares, and this
    project's code; in a development image only the little of it that the image has.
    """
    recipe = recipe_of(folder, name, kind)
    known = declared(recipe)
    arguments = {k: v for k, v in asked.build_arguments().items() if k in known}
    code = {str(p.relative_to(folder)): _digest(p) for p in _files(folder, _DEV_CODE if asked.dev else _CODE)}
    content = {file: _digest(folder / file) for file in _COMMON} | {f"{FOLDER}/{recipe.name}": _digest(recipe)}
    content["arguments"] = _short(json.dumps(arguments, sort_keys=True))
    content["code"] = _short(json.dumps(code, sort_keys=True))
    return content


def environment_hash(content: Mapping[str, str]) -> str:
    """One hash of `inputs`."""
    return hashlib.sha256(inputs_text(content).encode()).hexdigest()


def inputs_text(content: Mapping[str, str]) -> str:
    """The value of `INPUTS_LABEL`."""
    return " ".join(f"{name}={digest}" for name, digest in sorted(content.items()))


def changed(labels: Mapping[str, str] | None, content: Mapping[str, str]) -> str | None:
    """Why an image with these labels is not one of `content`; None when it is.

    Args:
        labels: None when there is no image.
    """
    if labels is None:
        return "is not there"
    if labels.get(HASH_LABEL) == environment_hash(content):
        return None
    if INPUTS_LABEL not in labels:
        return "was not made by `aframe build-images`"
    before = dict(word.split("=", 1) for word in labels[INPUTS_LABEL].split() if "=" in word)
    differ = sorted(name for name in before.keys() | content.keys() if before.get(name) != content.get(name))
    return f"has changed: {', '.join(differ) or 'its labels'}"


def revision(tree: Path) -> str:
    """The commit of `tree`, with ``-dirty`` where files differ from it; ``unknown`` without git."""
    git = ["git", "-C", str(tree)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=60)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    if head.returncode or status.returncode:
        return "unknown"
    return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")


def _digest(path: Path) -> str:
    mode = b"x" if path.stat().st_mode & 0o100 else b"-"
    return hashlib.sha256(mode + path.read_bytes()).hexdigest()[:16]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
