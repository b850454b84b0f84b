"""Wheels and source distributions of a few lines each, and a project that requires them; nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pip

from aframe_ops.containers import node_install

BACKEND = """\
import zipfile
from pathlib import Path

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name = "{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w") as z:
        info = "{name}-{version}.dist-info"
        z.writestr(zipfile.ZipInfo("{name}/__init__.py"), Path("{name}/__init__.py").read_text())
        z.writestr(zipfile.ZipInfo(info + "/METADATA"), "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        z.writestr(zipfile.ZipInfo(info + "/WHEEL"), "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: {tag}\\n")
        z.writestr(zipfile.ZipInfo(info + "/RECORD"), "")
    return name
"""
"""A build backend that needs nothing installed."""


def wheel(
    folder: Path, name: str, version: str = "1.0", *, requires: Sequence[str] = (), tag: str = "py3-none-any", files: int = 1
) -> Path:
    """A package `name` with `files` modules."""
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(f"{name}/__init__.py", f"VERSION = {version!r}\n")
        for i in range(1, files):
            z.writestr(f"{name}/part{i}.py", f"PART = {i}\n")
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
        z.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        z.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n")
        z.writestr(f"{info}/RECORD", "")
    return path


def pip_wheel(folder: Path) -> Path:
    """The pip that is installed here, as a wheel again."""
    package = Path(pip.__file__).parent
    (info,) = package.parent.glob(f"pip-{pip.__version__}.dist-info")
    path = folder / f"pip-{pip.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as z:
        for root in (package, info):
            for file in sorted(p for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
                z.write(file, file.relative_to(package.parent))
    return path


def project(folder: Path, requires: Sequence[str], *, name: str = "aframe-dagster", extras: dict[str, list[str]] | None = None) -> Path:
    """A checkout of a project of this name, with a package ``ours`` and a backend of its own."""
    (folder / "ours").mkdir(parents=True)
    (folder / "ours" / "__init__.py").write_text("VALUE = 1\n")
    (folder / "build_ours.py").write_text(BACKEND.format(name="ours", version="0.1.0", tag="py3-none-any"))
    optional = "".join(f"{k} = {json.dumps(v)}\n" for k, v in (extras or {}).items())
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "build_ours"\nbackend-path = ["."]\n'
        f'[project]\nname = "{name}"\nversion = "0.1.0"\ndependencies = {json.dumps(list(requires))}\n'
        f"[project.optional-dependencies]\n{optional}"
    )
    (folder / "constraints.txt").write_text("alpha==1.0\ntorch==2.0\n")
    return folder


def sdist(folder: Path, name: str, version: str = "1.0", *, tag: str = "py3-none-any") -> Path:
    """A source distribution whose backend makes a wheel with this tag."""
    made = folder / f".{name}-{version}"
    (made / name).mkdir(parents=True)
    (made / name / "__init__.py").write_text("")
    (made / "build_it.py").write_text(BACKEND.format(name=name, version=version, tag=tag))
    text = '[build-system]\nrequires = []\nbuild-backend = "build_it"\nbackend-path = ["."]\n'
    (made / "pyproject.toml").write_text(f'{text}[project]\nname = "{name}"\nversion = "{version}"\n')
    (made / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as t:
        t.add(made, f"{name}-{version}")
    return path


def wheelhouse(folder: Path, *wheels: Path, python: str, platform: str) -> Path:
    """A wheelhouse of these wheels and pip, as `aframe wheelhouse` lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for path in (*wheels, pip_wheel(folder)):
        target = folder / path.name
        if path != target:
            target.write_bytes(path.read_bytes())
        name, version = path.name.split("-")[:2]
        with zipfile.ZipFile(target) as z:
            unpacked = sum(i.file_size for i in z.infolist())
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        record = {"name": name, "version": version, "file": path.name, "sha256": digest, "nbytes": target.stat().st_size}
        records.append(record | {"unpacked": unpacked})
    manifest = {"format": node_install.FORMAT, "python": python, "platform": platform, "wheels": records}
    (folder / node_install.MANIFEST).write_text(json.dumps(manifest))
    installer = Path(node_install.__file__)
    (folder / installer.name).write_bytes(installer.read_bytes())
    return folder
