"""A training set small enough for seconds: white noise, sine-Gaussian signals, 512 Hz."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from aframe_assets.config import Config
from aframe_assets.config_load import build_config
from aframe_assets.store import ArtifactStore, open_store
from aframe_assets.store.workspace import Workspace
from aframe_assets.strain.background_file import background_name, parse_background_name, write_background
from aframe_assets.waveforms.ledger import SIGNAL, WaveformPolarizationSet, WaveformSet

RATE, ASD = 512, 1e-23


@dataclass(frozen=True)
class TinyData:
    background: dict[str, list[Path]]
    training: Path
    validation: Path

    def train(self, config: Config, workdir: Path, **changes):
        """A training of `config` on these data."""
        from aframe_assets.model.training import train

        files = {"background": self.background, "training_signals": self.training, "validation_signals": self.validation}
        return train(config, workdir=workdir, **({"seed": 3} | files | changes))


def make_config(**training) -> Config:
    values = {
        "batch_size": 16,
        "batches_per_epoch": 6,
        "max_epochs": 3,
        "learning_rate": 3e-3,
        "waveform_prob": 0.5,
        "glitch_prob": 0.2,
        "mute_prob": 0.1,
    }
    values |= {
        "swap_prob": 0.06,
        "valid_livetime": 60,
        "valid_stride": 1.0,
        "valid_views": 2,
        "max_fpr": 0.1,
        "pool_length": 2,
        "psd_block": 8,
        "num_threads": 1,
        "snr_start": None,
    }
    return build_config(
        {
            "preset": "demo",
            "sample_rate": RATE,
            "conditioning": {"kernel_length": 1.0, "psd_length": 4, "fduration": 1, "fftlength": 1, "highpass": 32},
            "waveforms": {"duration": 4, "right_pad": 1, "num_training_signals": 40, "num_validation_signals": 12},
            "model": {
                "architecture": {"layers": [1, 1], "width": 4, "norm_groups": 2, "stem_stride": 2, "stem_kernel": 7},
                "training": values | training,
            },
        }
    )


def make_signals(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2, 4 s): cross and plus around the merger at 3 s."""
    t = np.arange(4 * RATE) / RATE - 3.0
    f, phase = rng.uniform(50, 150, (count, 1)), rng.uniform(0, 6.28, (count, 1))
    envelope = np.exp(-((t / 0.05) ** 2)) * 4e-21
    return np.stack([envelope * np.sin(2 * np.pi * f * t + phase), envelope * np.cos(2 * np.pi * f * t + phase)], 1)


@pytest.fixture(scope="session")
def tiny_config():
    """Function that gives the tiny experiment with some training settings changed."""
    return make_config


@pytest.fixture(scope="session")
def sine_gaussians():
    """Function (count, rng) that gives polarisations."""
    return make_signals


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> TinyData:
    folder, rng = tmp_path_factory.mktemp("tiny"), np.random.default_rng(1)
    files = []
    for gps, duration in ((1240600000, 40), (1240600100, 31), (1240600200, 44)):
        # white noise of one-sided PSD S has variance S fs / 2
        strain = {ifo: rng.normal(0, ASD * np.sqrt(RATE / 2), duration * RATE) for ifo in ("H1", "L1")}
        files.append(folder / background_name(gps, duration))
        write_background(files[-1], strain, gps, RATE)
    common = {"sample_rate": float(RATE), "duration": 4.0, "right_pad": 1.0}
    waves = make_signals(40, rng)
    training = WaveformPolarizationSet(
        **{k: np.ones(40) for k in SIGNAL}, **common, num_injections=40, waveforms={"cross": waves[:, 0], "plus": waves[:, 1]}
    )
    waves = make_signals(12, rng)
    validation = WaveformSet(
        **{k: np.ones(12) for k in SIGNAL},
        **common,
        snr=np.full(12, 20.0),
        ifo_snrs=np.full((12, 2), 14.0),
        ifos=["H1", "L1"],
        num_injections=12,
        waveforms={"h1": waves[:, 0], "l1": waves[:, 1]},
    )
    return TinyData(
        {"train": files[:2], "validation": files[2:]},
        training.write(folder / "training_waveforms.hdf5"),
        validation.write(folder / "val_waveforms.hdf5"),
    )


@pytest.fixture
def published(tiny_data, tmp_path):
    """Function (config, url) -> a store that holds, under their true keys, all artifacts that `model` reads; and its URL."""

    def publish_all(config, url: str | None = None, **options) -> tuple[ArtifactStore, str]:
        url = url or str(tmp_path / "store")
        store, empty = open_store(url, **options), tmp_path / "placeholder"
        empty.write_text("{}")
        rows, roles = {}, {}
        for role, paths in tiny_data.background.items():
            for path in paths:
                start, stop = parse_background_name(path)
                key = path.stem.removeprefix("background-")
                rows[key] = {"gps_start": start, "gps_stop": stop, "role": role, "fingerprint": key}
            partitions = [k for k, r in rows.items() if r["role"] == role]
            roles[role] = {"key": role, "sha256": role, "livetime": 1.0, "partitions": partitions}

        def publish(asset, files, meta, partition=None):
            store.publish(Workspace(config, store).wanted(asset, partition).parts, files, meta)

        publish("segments", {"segments.csv": empty}, {"rows": rows, "roles": roles})
        for path in (p for paths in tiny_data.background.values() for p in paths):
            publish("background", {path.name: path}, {}, path.stem.removeprefix("background-"))
        publish("background_index", {"background_index.json": empty}, {"roles": roles})
        publish("psd", {"psd.hdf5": empty}, {"roles": roles})
        publish("training_waveforms", {tiny_data.training.name: tiny_data.training}, {})
        publish("validation_waveforms", {tiny_data.validation.name: tiny_data.validation}, {})
        return store, url

    return publish_all
