"""Strain files of every kind that may be dropped, small ones."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import yaml

from aframe_assets.config_load import load_config
from aframe_assets.strain.intake import inspect
from aframe_ops.automation.inspector import _held
from aframe_ops.site import SiteConfig, load_site

RATE = 512
LENGTH = 16
STEP = 20
START = 1_300_000_000

EXPERIMENT = {
    "preset": "demo",
    "ifos": ["H1", "L1"],
    "sample_rate": RATE,
    "conditioning": {"psd_length": 8, "fftlength": 1, "highpass": 20, "lowpass": None},
    # null takes back what the preset says
    "segments": {
        "train_start": None,
        "train_stop": None,
        "source": "strain_files",
        "test_start": START - 10,
        "test_stop": None,
        "test_min_duration": 12,
    },
    "strain": {"source": "files", "files": ["strain"]},
    "model": {"weights": "a-bundle"},
    "execution": {"segments_per_step": 500, "max_retries": 0},
}
"""A search of what is dropped; with a model that is somebody else's, so that there is no training time."""


def experiment(folder: Path, automation: dict, overrides: dict | None = None) -> SiteConfig:
    """Writes aframe.yaml and site.yaml into `folder`; returns the site."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "aframe.yaml").write_text(yaml.safe_dump(EXPERIMENT | (overrides or {})))
    (folder / "site.yaml").write_text(json.dumps({"automation": automation, "executor": {"cores": 2, "memory_gb": 4}}))
    return load_site(folder / "site.yaml")


def config_of(folder: Path):
    return load_config(folder / "aframe.yaml", env={})


def begin(number: int) -> int:
    """GPS start of the stretch with this number."""
    return START + STEP * number


def write(folder: Path, number: int, *, ifos=("H1", "L1"), rate: int = RATE, spoil=None, seed: int = 0, name: str = "background") -> Path:
    """A good file of stretch `number`: white noise of the size of strain, one dataset for each detector, named as Aframe's.

    Args:
        spoil: changes the samples of a detector, shape (time,), in place.
        name: what the file's name begins with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{begin(number)}-{LENGTH}.hdf5"
    with h5py.File(path, "w") as file:
        for i, ifo in enumerate(ifos):
            strain = 1e-21 * np.random.default_rng([abs(number), i, seed]).standard_normal(LENGTH * rate)
            if spoil:
                spoil(strain)
            file.create_dataset(ifo, data=strain).attrs.update(x0=float(begin(number)), dx=1 / rate, channel=ifo)
    return path


def nan(strain: np.ndarray) -> None:
    strain[100] = np.nan


def gap(strain: np.ndarray) -> None:
    strain[1000:2000] = 0.0


def volts(strain: np.ndarray) -> None:
    strain *= 1e21


def truncate(path: Path) -> Path:
    """Leaves the first two thirds."""
    data = path.read_bytes()
    path.write_bytes(data[: 2 * len(data) // 3])
    return path


class Here:
    """Reads files in this process, and remembers which."""

    def __init__(self, config):
        self.config, self.read = config, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def inspect(self, path):
        self.read.append(path.name)
        return inspect(path, self.config)

    def held(self, paths):
        return list(_held(list(paths)))
