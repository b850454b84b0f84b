"""The assets of the engine and inference rooms in a real store, on made-up strain, signals and an untrained network."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import yaml

from aframe_assets.config_load import build_config
from aframe_assets.engine import assets as engine_room
from aframe_assets.engine.checks import ENGINE_CHECKS, EXPORTED_CHECKS, REPOSITORY_CHECKS
from aframe_assets.inference import assets as room
from aframe_assets.inference.checks import EVENT_CHECKS, RESULT_CHECKS, livetime_check, louder_check, sane_check
from aframe_assets.model.bundle import save_bundle
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.segments.geometry import SlideGeometry, shift_vectors
from aframe_assets.store import open_store
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.job import Job
from aframe_assets.strain.background_file import background_name, write_background
from aframe_assets.waveforms.injections import share
from aframe_assets.waveforms.ledger import SIGNAL, EventSet, InjectionParameterSet, InterferometerResponseSet, RecoveredInjectionSet

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
injections: {num_signals: 9, spacing: 0, buffer: 2}
inference: {num_slides: 3, batch_size: 64}
"""


class Room:
    def __init__(self, root):
        self.config = build_config(yaml.safe_load(EXPERIMENT))
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

    def make(self, function, asset, inputs, partition=None):
        chosen = {}
        for name in inputs:
            found = self.handles[name]
            chosen[name] = found[partition] if isinstance(found, dict) and partition else found
        with self.store.scratch() as scratch:
            row = ROWS.get(partition)
            job = Job(self.config, asset, partition, chosen, row, self.store, scratch, scratch, logging.getLogger("test"))
            product = function(job)
            self.publish(asset, product.files, dict(product.meta), partition)
        return product

    def signals(self, partition, seed):
        slides = share(self.config, ROWS, partition)
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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    r = Room(tmp_path_factory.mktemp("inference"))
    torch.manual_seed(1)
    network = build_network(r.config.model.architecture, Sky.of(r.config))
    with torch.no_grad():
        network.fc.weight.abs_()  # features are not negative, so the loud bursts score above noise
    r.publish("model", save_bundle(r.files / "model", network, r.config, metrics={}, provenance={}), {})
    r.publish("segments", _file(r.files / "segments.csv"), {"rows": ROWS})
    r.products = {
        "exported_model": r.make(engine_room.make_exported_model, "exported_model", ["model"]),
        "engine": r.make(engine_room.make_engine, "engine", ["exported_model"]),
        "model_repository": r.make(engine_room.make_model_repository, "model_repository", ["engine"]),
    }
    rng = np.random.default_rng(0)
    for partition, row in ROWS.items():
        length = row["gps_stop"] - row["gps_start"]
        path = r.files / background_name(row["gps_start"], length)
        strain = {i: rng.standard_normal(int(length * 512)) * 1e-22 for i in ("H1", "L1")}
        write_background(path, strain, row["gps_start"], 512)
        r.publish("background", {path.name: path}, {}, partition)
        placed, rejected = r.signals(partition, 1)
        files = {
            "waveforms.hdf5": placed.write(r.files / f"w-{partition}.hdf5"),
            "rejected-parameters.hdf5": rejected.write(r.files / f"r-{partition}.hdf5"),
        }
        r.publish("injections", files, {"num_signals": len(placed)}, partition)
        inputs = ["segments", "background", "injections", "engine"]
        r.products[partition] = r.make(room.make_inference_results, "inference_results", inputs, partition)
    for asset in ("inference_results", "injections"):
        r.handles[asset] = {p: h for p, h in r.handles[asset].items() if ROWS[p]["role"] == "test"}
    r.products["events"] = r.make(room.make_events, "events", ["inference_results", "injections"])
    return r


def _file(path):
    path.write_text("segments")
    return {path.name: path}


def test_checks_are_those_declared_and_pass(made):
    declared = {"exported_model": EXPORTED_CHECKS, "engine": ENGINE_CHECKS, "model_repository": REPOSITORY_CHECKS, "events": EVENT_CHECKS}
    declared |= dict.fromkeys(ROWS, RESULT_CHECKS)
    for name, product in made.products.items():
        assert [c.name for c in product.checks] == [n for n, _ in declared[name]], name
        assert all(c.passed for c in product.checks if c.severity == "error"), (name, product.checks)


def test_repository_has_its_models(made):
    names = {f.name for f in made.handles["model_repository"].files}
    onnx = ("aframe", "snapshotter", "preprocessor", "whitened-snapshotter")
    wanted = {f"{m}/1/model.onnx" for m in onnx} | {f"{m}/1/ensemble" for m in ("aframe-stream", "aframe-whitened-stream")}
    assert wanted | {f"{m.split('/')[0]}/config.pbtxt" for m in wanted} == names


def test_a_training_chunk_gives_empty_sets_without_livetime(made):
    product = made.products["1240600000-100"]
    assert product.meta["livetime"] == {"background": 0.0, "zero_lag": 0.0} and product.meta["num_foreground"] == 0


def test_the_ring_of_a_chunk_is_told(made):
    """The room of sensitivity folds own times of slid events back into it."""
    assert made.products["events"].meta["rings"] == [] and made.products["1240610000-60"].meta["ring"] is None
    changed = yaml.safe_load(EXPERIMENT)
    changed["inference"] |= {"slide_mode": "ring", "psd_source": "segment"}
    config, key = build_config(changed), "1240610000-60"
    found = {name: made.handles[name] for name in ("segments", "engine")} | {n: made.handles[n][key] for n in ("background", "injections")}
    with made.store.scratch() as scratch:
        job = Job(config, "inference_results", key, found, ROWS[key], made.store, scratch, scratch, logging.getLogger("test"))
        ring = room.make_inference_results(job).meta["ring"]
    g = SlideGeometry.of(config, ROWS[key]["gps_start"], ROWS[key]["gps_stop"])
    assert g.ring and ring == [g.whitened_start, g.whitened_duration]


def test_livetime_is_that_of_the_slides_to_the_output(made):
    due, zero = 0.0, 0.0
    for row in ROWS.values():
        if row["role"] == "test":
            g = SlideGeometry.of(made.config, row["gps_start"], row["gps_stop"])
            due += sum(g.livetime(s) for s in shift_vectors(3, [0, 1]))
            zero += g.livetime((0, 0))
    meta = made.products["events"].meta
    assert meta["Tb"] == due > 0 and meta["T0"] == zero
    handle = made.handles["events"]
    assert EventSet.read(made.store.open_local(handle, "background.hdf5")).Tb == due
    # a chunk that is too short for a slide, but long enough for zero lag, is still counted
    assert made.products["1240610200-12"].meta["livetime"] == {"background": 0.0, "zero_lag": 0.25}


def test_events_are_sorted_and_every_injection_is_there(made):
    folder = made.store.open_local(made.handles["events"])
    background = EventSet.read(folder / "background.hdf5")
    assert len(background) and (np.diff(background.detection_statistic) >= 0).all()
    foreground = RecoveredInjectionSet.read(folder / "foreground.hdf5")
    assert len(foreground) == 9 and foreground.num_injections == 9 + 2 * 3
    near = np.isfinite(foreground.detection_statistic)
    assert near.sum() >= 5
    assert np.abs(foreground.detection_time - foreground.injection_time)[near].max() <= made.config.inference.recovery_window
    assert InjectionParameterSet.read_metadata(folder / "rejected-parameters.hdf5")["length"] == 6
    zero_lag = EventSet.read(folder / "0lag.hdf5")
    assert (zero_lag.shift == 0).all() and len(zero_lag)


def test_one_segment_again_gives_the_same_bytes(made):
    partition = "1240610000-60"
    before = made.handles["inference_results"][partition].sha256
    made.make(room.make_inference_results, "inference_results", ["segments", "background", "injections", "engine"], partition)
    assert made.handles["inference_results"][partition].sha256 == before


def test_an_engine_of_other_conditioning_is_refused(made):
    other = build_config(yaml.safe_load(EXPERIMENT) | {"conditioning": {"psd_length": 8, "highpass": 20}})
    before, made.config = made.config, other
    try:
        with pytest.raises(ValueError, match=r"conditioning.highpass = 20.0: the model was made with 32"):
            made.make(room.make_inference_results, "inference_results", ["segments", "background", "injections", "engine"], "1240610000-60")
    finally:
        made.config = before


def test_livetime_check_counts_outputs():
    assert livetime_check("l", {"background": 10.25}, {"background": 10.25}, 4).passed
    assert not livetime_check("l", {"background": 10.0}, {"background": 10.25}, 4).passed
    third = sum([1 / 3] * 3000)
    assert livetime_check("l", {"background": third}, {"background": 1000.0}, 3).passed


def test_statistics_checks():
    good, missed = np.array([1.0, 2.0]), np.array([-np.inf, 5.0])
    assert sane_check(good, good, missed).passed
    assert not sane_check(missed, good, good).passed
    assert not sane_check(good, good, np.array([np.nan])).passed
    assert not louder_check(good, good - 1).passed and louder_check(good, good + 1).passed
