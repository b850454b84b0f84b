"""The shipped weights are in the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FILES = ("model.safetensors", "bundle.json", "config.json", "metrics.csv", "search.json", "background.hdf5", "CARD.md")


def test_a_wheel_holds_the_folder_of_the_shipped_weights(tmp_path):
    for name in ("aframe_assets", "aframe_ops"):
        shutil.copytree(REPO / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(REPO / name, tmp_path / name)
    folder = tmp_path / "aframe_assets" / "model" / "pretrained"
    folder.mkdir(exist_ok=True)
    for name in FILES:
        (folder / name).touch()
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("aframe_assets/model/pretrained/")}
    assert (
        held
        == {f"aframe_assets/model/pretrained/{p.name}" for p in folder.iterdir()}
        >= {f"aframe_assets/model/pretrained/{n}" for n in FILES}
    )
