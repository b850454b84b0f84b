"""The engine and inference rooms in a real store, on made-up strain and signals and an untrained network."""

from __future__ import annotations

import logging

import numpy as np
import torch
import yaml

from aframe_assets.config_load import build_config
from aframe_assets.engine import assets as engine_room
from aframe_assets.inference import assets as room
from aframe_assets.model.bundle import save_bundle
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.store import open_store
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.job import Job
from aframe_assets.strain.background_file import background_name, write_background
from aframe_assets.waveforms.injections import share
from aframe_assets.waveforms.ledger import SIGNAL, InjectionParameterSet, InterferometerResponseSet

ROWS = {
    "1240600000-100": {"gps_start": 1240600000.0, "gps_stop": 1240600100.0, "role": "train"},
    "1240610000-60": {"gps_start": 1240610000.0, "gps_stop": 1240610060.0, "role": "test"},
    "1240610100-48": {"gps_start": 1240610100.0, "gps_stop": 1240610148.0, "role": "test"},
    "1240610200-12": {"gps_start": 1240610200.0, "gps_stop": 1240610212.0, "role": "test"},
}
EXPERIMENT = """
preset: demo
sample_rate: 512
model: {architecture: {layers: [1], width: 4}}
engine: {platform: onnxruntime}
injections: {num_signals: 9, spacing: 0, buffer: 2}
inference: {num_slides: 3, batch_size: 64}
"""


class Room:
    """A store with the artifacts of these rooms, made by their bodies; `products` are what the bodies gave.

    Args:
        root: folder.
        experiment: overrides of the demo.
        rows: segments table.
    """

    def __init__(self, root, experiment=EXPERIMENT, rows=ROWS):
        self.experiment, self.rows, self.products = experiment, rows, {}
        self.config = build_config(yaml.safe_load(experiment))
        self.store, self.handles = open_store(root / "store"), {}
        self.files = root / "files"
        self.files.mkdir()

    def publish(self, asset, files, meta, partition=None, checks=()):
        parts = KeyParts(asset=asset, code_version="1", partition=partition)
        handle = self.store.publish(parts, files, meta)
        if partition is None:
            self.handles[asset] = handle
        else:
            self.handles.setdefault(asset, {})[partition] = handle
        return handle

    def make(self, function, asset, inputs, partition=None, config=None, services=None):
        chosen = {}
        for name in inputs:
            found = self.handles[name]
            chosen[name] = found[partition] if isinstance(found, dict) and partition else found
        with self.store.scratch() as scratch:
            row, place = self.rows.get(partition), (self.store, scratch, scratch)
            job = Job(config or self.config, asset, partition, chosen, row, *place, logging.getLogger("test"), services or {})
            product = function(job)
            self.publish(asset, product.files, dict(product.meta), partition)
        return product

    def signals(self, partition, seed):
        slides = share(self.config, self.rows, partition)
        times = np.concatenate([s.times for s in slides]) if slides else np.empty(0)
        n, fs = len(times), self.config.sample_rate
        t = np.arange(int(8 * fs)) / fs - 6
        wave = 1e-20 * np.exp(-((t / 0.05) ** 2)) * np.sin(2 * np.pi * 80 * t)
        common = {"sample_rate": fs, "duration": 8.0, "right_pad": 2.0, "ifos": ["H1", "L1"]}
        snrs = {"snr": np.full(n, 20.0), "ifo_snrs": np.full((n, 2), 14.0)}
        made = InterferometerResponseSet(
            **{p: np.ones(n) for p in SIGNAL},
            **snrs,
            injection_time=times,
            shift=np.concatenate([np.tile(s.shift, (len(s.times), 1)) for s in slides]) if slides else np.empty((0, 2)),
            waveforms={"h1": np.tile(wave, (n, 1)), "l1": np.tile(wave, (n, 1))} if n else {},
            num_injections=n + 2,
            **common,
        )
        rejected = InjectionParameterSet(
            **{p: np.ones(2) for p in SIGNAL}, snr=np.ones(2), ifo_snrs=np.ones((2, 2)), num_injections=2, **common
        )
        return made, rejected

    def engines(self):
        """From an untrained network to the model repository."""
        torch.manual_seed(1)
        network = build_network(self.config.model.architecture, Sky.of(self.config))
        with torch.no_grad():
            # features are not negative, so the loud bursts score above noise
            (network.fc if hasattr(network, "fc") else network.head[-1]).weight.abs_()
        self.publish("model", save_bundle(self.files / "model", network, self.config, metrics={}, provenance={}), {})
        self.publish("segments", _file(self.files / "segments.csv"), {"rows": self.rows})
        self.products |= {
            "exported_model": self.make(engine_room.make_exported_model, "exported_model", ["model"]),
            "engine": self.make(engine_room.make_engine, "engine", ["exported_model"]),
            "model_repository": self.make(engine_room.make_model_repository, "model_repository", ["engine"]),
        }

    def data(self):
        """Background and injections of every segment."""
        rng = np.random.default_rng(0)
        for partition, row in self.rows.items():
            length = row["gps_stop"] - row["gps_start"]
            path = self.files / background_name(row["gps_start"], length)
            strain = {i: rng.standard_normal(int(length * 512)) * 1e-22 for i in ("H1", "L1")}
            write_background(path, strain, row["gps_start"], 512)
            self.publish("background", {path.name: path}, {}, partition)
            placed, rejected = self.signals(partition, 1)
            files = {
                "waveforms.hdf5": placed.write(self.files / f"w-{partition}.hdf5"),
                "rejected-parameters.hdf5": rejected.write(self.files / f"r-{partition}.hdf5"),
            }
            self.publish("injections", files, {"num_signals": len(placed)}, partition)

    def search(self, partition, config=None, services=None):
        """One segment."""
        served = ["model_repository"] if config and config.inference.mode == "triton" else []
        inputs = ["segments", "background", "injections", "engine", *served]
        self.products[partition] = self.make(room.make_inference_results, "inference_results", inputs, partition, config, services)
        return self.handles["inference_results"][partition]


def _file(path):
    path.write_text("segments")
    return {path.name: path}
