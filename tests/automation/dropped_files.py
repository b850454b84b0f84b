"""Strain files of every kind that may be dropped, small ones."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import yaml

from aframe_assets.config_load import load_config
from aframe_assets.strain.intake import inspect
from aframe_ops.automation.incoming import Incoming
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


def files_of(folder: Path, good: int, seed: int) -> tuple[list[Path], set[str], set[str]]:
    """Files to drop in random order, so that many come late; keys of the good segments, and names of the bad files.

    To ten good ones come one copy under another name, one cut short, and one with NaN, a gap or too low a rate.
    """
    order, files, bad = random.Random(seed), [], set()
    for i in range(good):
        files.append(write(folder, i))
    for i in range(0, good, 10):
        # a copy and what it is a copy of may come in either order, and the first is the good one
        files.append(Path(shutil.copy(files[i], folder / f"copy-{begin(i)}-16.hdf5")))
        wrong = [truncate(write(folder, good + i))]
        if i % 30 == 0:
            wrong.append(write(folder, good + i + 1, spoil=nan))
        elif i % 30 == 10:
            wrong.append(write(folder, good + i + 1, spoil=gap))
        else:
            wrong.append(write(folder, good + i + 1, name="slow", rate=256))
        files += wrong
        bad |= {p.name for p in wrong}
    order.shuffle(files)
    return files, {f"{begin(i)}-16" for i in range(good)}, bad


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


def incoming(folder: Path, **automation) -> tuple[Incoming, Here]:
    options = {"watch": ["inbox"], "settle_seconds": 10, "quiet_seconds": 100, "max_wait_seconds": 1000} | automation
    site = experiment(folder, options)
    config = config_of(folder)
    return Incoming(config, site), Here(config)


def verdicts(inc: Incoming) -> dict[str, str]:
    return {Path(e.file).name: e.verdict for e in inc.ledger.read()}
