"""Networks of windows, frames and maps as files and engines: each answers in its cheapest form and in the windowed one."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from aframe_assets.config import Architecture, Conditioning, Config
from aframe_assets.engine.assets import make_engine
from aframe_assets.engine.build import build_engine
from aframe_assets.engine.checks import ENGINE_CHECKS
from aframe_assets.engine.engine import load_engine, network_engine, open_engine
from aframe_assets.engine.export import export
from aframe_assets.engine.fold import fold_batch_norms
from aframe_assets.engine.parity import compare_engine, probes, stream_logits
from aframe_assets.engine.signature import Signature
from aframe_assets.model.bundle import load_bundle, save_bundle
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.store.job import Job

RATE = 256.0
BLOCK = 2.0
NAMES = {"resnet": "windows", "streaming": "frames", "map": "maps", "wavenet": "frames", "s4": "windows"}


def config(name: str) -> Config:
    context = 1.0 if NAMES[name] != "windows" else 0
    architecture = {
        "name": name,
        "layers": [1] if name == "s4" else [1, 1],
        "s4": {"state": 8},
        "width": 8,
        "context": context,
        "lag_head": {"channels": 8, "groups": 4, "hidden": 8, "map_stride": 4},
    }
    return Config(
        ifos=["H1", "L1"],
        sample_rate=RATE,
        segments={"train_start": 0, "train_stop": 1000, "test_start": 1000, "test_stop": 2000},
        strain={"source": "simulated", "simulated": {"asd": {"H1": "aLIGO", "L1": "aLIGO"}}},
        conditioning={"psd_length": 8, "fftlength": 1, "kernel_length": 1.5, "highpass": 20},
        model={"architecture": architecture},
    )


def settled(network: nn.Module) -> nn.Module:
    """With batch norms whose averages are not those of a new network."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()


@pytest.fixture(scope="module", params=NAMES)
def exported(request, tmp_path_factory):
    folder, c = tmp_path_factory.mktemp(request.param), config(request.param)
    network = settled(build_network(c.model.architecture, Sky.of(c)))
    save_bundle(folder, network, c, metrics={}, provenance={})
    export(network, Signature.of_bundle(load_bundle(folder), BLOCK), folder)
    return folder


def logits(folder, windows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return load_bundle(folder).network(torch.from_numpy(windows))[:, 0].numpy()


@pytest.mark.parametrize("platform", ["onnxruntime", "torch", "openvino"])
def test_both_forms_answer_as_the_network(exported, platform, tmp_path):
    record = build_engine(exported, tmp_path, platform, 1e-4, device="cpu")
    assert record["parity"]["passed"] and record["parity"]["windows"] >= 96
    engine, bundle = load_engine(tmp_path), load_bundle(exported)
    assert engine.form == NAMES[bundle.architecture.name] and engine.context == bundle.context and engine.window == bundle.window_size
    windows = probes(2, engine.window, RATE, 40, seed=3)
    assert np.abs(engine.score_windows(windows) - logits(exported, windows)).max() < 1e-5
    out = engine.infer(probes(2, engine.signature.samples, RATE, 3))
    if engine.form == "windows":
        assert out.shape == (3,) and engine.head is None
    else:
        frames = engine.block // engine.stride
        channels = 8 if bundle.architecture.name == "wavenet" else 16
        assert out.shape == ((3, channels, frames) if engine.form == "frames" else (3, 2, 16, frames + 2 * engine.head.reach))


def test_frames_of_blocks_give_the_scores_of_every_window(exported):
    engine = open_engine(exported, "onnxruntime")
    if engine.form == "windows":
        with pytest.raises(ValueError, match=r"expected \(batch, 2, 384\)"):
            engine.infer(np.zeros((1, 2, 512), np.float32))
        return
    stream = probes(2, 3 * engine.block + 2 * engine.context, RATE, 2, seed=5)
    found = stream_logits(engine, stream, engine.total_stride, 2)
    windows = np.lib.stride_tricks.sliding_window_view(stream, engine.window, axis=-1)[:, :, :: engine.total_stride].swapaxes(1, 2)
    wanted = np.stack([logits(exported, np.ascontiguousarray(w)) for w in windows])
    assert found.shape == wanted.shape and np.abs(found - wanted).max() < 1e-5 * np.ptp(wanted) + 1e-6


def test_the_networks_own_torch_is_an_engine(exported):
    bundle = load_bundle(exported)
    engine, other = network_engine(bundle, block=BLOCK), open_engine(exported, "torch")
    x = probes(2, engine.signature.samples, RATE, 3, seed=2)
    assert engine.signature == other.signature and np.allclose(engine.infer(x), other.infer(x), atol=1e-5)
    windows = probes(2, engine.window, RATE, 5)
    assert np.allclose(engine.score_windows(windows), other.score_windows(windows), atol=1e-5)


def test_parity_sees_a_network_whose_frames_feel_the_block(exported):
    engine, bundle = open_engine(exported, "onnxruntime"), load_bundle(exported)

    def network(windows):
        return logits(exported, windows)

    assert compare_engine(engine, network, 1e-4).passed
    if engine.form != "windows":
        engine._runner = lambda x, run=engine._runner: np.roll(run(x), 1, axis=-1)
    else:
        engine._windows = lambda x, run=engine._runner: run(x) + 0.01
    assert bundle.kernel_size == 384 and not compare_engine(engine, network, 1e-4).passed


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    places = {name: tmp_path_factory.mktemp(name) for name in ("streaming", "map")}
    for name, folder in places.items():
        c = config(name)
        save_bundle(folder, settled(build_network(c.model.architecture, Sky.of(c))), c, metrics={}, provenance={})
        export(load_bundle(folder).network, Signature.of_bundle(load_bundle(folder), BLOCK), folder)
    shutil.copytree(places["map"], places["streaming"] / "filter")
    return places["streaming"]


@pytest.mark.parametrize("off", ["maps", "frames", None])
def test_either_network_of_a_cascade_out_of_parity_blocks_its_engine(cascade, tmp_path, monkeypatch, off):
    def compared(engine, *args):
        found = compare_engine(engine, *args)
        return replace(found, max_difference=1.0) if engine.form == off else found

    monkeypatch.setattr("aframe_assets.engine.build.compare_engine", compared)
    c = config("streaming")
    c = c.model_copy(update={"engine": c.engine.model_copy(update={"platform": "onnxruntime", "device": "cpu"})})
    store = SimpleNamespace(open_local=lambda handle, name: cascade)
    job = Job(c, "engine", None, {"exported_model": None}, None, store, tmp_path, tmp_path, logging.getLogger("test"))
    product = make_engine(job)
    (check,) = product.checks
    assert check.name == "engine_equals_torch" and check.passed == (off is None)
    assert "filter/onnxruntime: " in check.description and (product.meta["max_difference"] == 1.0) == (off is not None)
    # what cannot be used stops everything after it
    assert {c.name: c.blocking for c in ENGINE_CHECKS}[check.name]


def test_cascade_carries_its_filter(cascade, tmp_path):
    (tmp_path / "engine").mkdir()
    record = build_engine(cascade, tmp_path / "engine", "onnxruntime", device="cpu")
    engine = load_engine(tmp_path / "engine")
    assert engine.form == "frames" and engine.filter.form == "maps" and engine.filter.filter is None
    assert (
        record["filter"]["parity"]["passed"]
        and json.loads((tmp_path / "engine/filter/engine.json").read_text())["platform"] == "onnxruntime"
    )
    x = probes(2, engine.filter.signature.samples, RATE, 2)
    assert np.allclose(engine.filter.infer(x), open_engine(cascade / "filter", "torch").infer(x), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_folded_network_has_no_batch_norm_and_the_same_logits(name):
    c = config(name)
    network = settled(build_network(c.model.architecture, Sky.of(c)))
    folded = fold_batch_norms(network)
    x = torch.from_numpy(probes(2, load_window(c), RATE, 6))
    with torch.no_grad():
        assert torch.allclose(folded(x), network(x), atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm1d) for m in folded.modules())
    assert name not in ("streaming", "map") or any(isinstance(m, nn.BatchNorm1d) for m in network.modules())


def load_window(c: Config) -> int:
    return round((c.conditioning.kernel_length + 2 * c.model.architecture.context) * RATE)


def test_a_batch_norm_that_follows_nothing_is_refused():
    with pytest.raises(ValueError, match="follows no convolution"):
        fold_batch_norms(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))


def test_a_block_of_part_frames_is_refused(tmp_path):
    c = config("streaming")
    network = build_network(c.model.architecture, Sky.of(c))
    with pytest.raises(ValueError, match=r"engine\.block = 1\.01 s"):
        Signature.of(c.ifos, RATE, c.conditioning, network, 1.01)
    signature = Signature.of(c.ifos, RATE, c.conditioning, network, 2)
    signature.write(tmp_path / "s.json")
    assert Signature.read(tmp_path / "s.json") == signature and signature.samples == 512 + 512 and signature.window == 384 + 512
    (tmp_path / "s.json").write_text(json.dumps({"ifos": ["H1"], "sample_rate": 2, "kernel": 3, "conditioning": {}, "colour": "red"}))
    with pytest.raises(ValueError, match="export the model again"):
        Signature.read(tmp_path / "s.json")


def test_networks_of_before_have_windows():
    plain = Signature.of(["H1"], RATE, Conditioning(kernel_length=1))
    assert (plain.form, plain.context, plain.window, plain.block) == ("windows", 0, 256, 0)
    assert Architecture().name == "resnet"
