"""Which engine is taken: measured once, in parity, of the precision asked for; what is not there is said."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from aframe_assets import lineage
from aframe_assets.config import Config
from aframe_assets.engine import build, parity
from aframe_assets.engine.build import batches, build_engine
from aframe_assets.engine.checks import parity_check
from aframe_assets.engine.engine import load_engine
from aframe_assets.engine.export import export
from aframe_assets.engine.parity import compare, probes, spearman
from aframe_assets.engine.platforms import get_platform
from aframe_assets.engine.runners import How
from aframe_assets.engine.signature import Signature
from aframe_assets.engine.support import SUPPORT, TOLERANCES, not_installed, precisions
from aframe_assets.engine.torch_platform import GraphRunner
from aframe_assets.model.bundle import load_bundle, save_bundle
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.preflight import preflight
from aframe_assets.store import open_store
from aframe_assets.store.handle import Handle
from aframe_assets.store.workspace import Workspace

RATE = 256.0


def config(engine: dict | None = None, name: str = "resnet") -> Config:
    context = 0 if name == "resnet" else 1.0
    return Config(
        ifos=["H1", "L1"],
        sample_rate=RATE,
        segments={"train_start": 0, "train_stop": 1000, "test_start": 1000, "test_stop": 2000},
        strain={"source": "simulated", "simulated": {"asd": {"H1": "aLIGO", "L1": "aLIGO"}}},
        conditioning={"psd_length": 8, "fftlength": 1, "kernel_length": 1.5, "highpass": 20},
        model={"architecture": {"name": name, "layers": [1, 1], "width": 8, "context": context}},
        engine=engine or {},
    )


def make(folder, name):
    c = config(name=name)
    torch.manual_seed(3)
    network = build_network(c.model.architecture, Sky.of(c)).eval()
    # logits of a trained network's size
    network.fc.weight.data *= 20
    save_bundle(folder, network, c, metrics={}, provenance={})
    export(load_bundle(folder).network, Signature.of_bundle(load_bundle(folder), 2), folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return make(tmp_path_factory.mktemp("exported"), "resnet")


@pytest.fixture(scope="module")
def framed(tmp_path_factory):
    return make(tmp_path_factory.mktemp("framed"), "streaming")


# --- precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["torch", "openvino"])
@pytest.mark.parametrize("form", ["windows", "frames"])
def test_bf16_moves_logits_but_neither_ranks_nor_events(platform, form, exported, framed, tmp_path):
    record = build_engine(exported if form == "windows" else framed, tmp_path, platform, precision="bf16", device="cpu")
    found, engine = record["parity"], load_engine(tmp_path)
    assert (record["precision"], engine.form) == ("bf16", form)
    assert found["passed"] and found["tolerance"] == TOLERANCES["bf16"] and found["events"] >= 4 and not found["events_lost"]
    assert 1e-5 < found["max_difference"] < 0.3 * found["logit_std"] and found["rank_correlation"] > 0.99
    scores = engine.score_windows(probes(2, engine.window, RATE, 90))
    assert scores.dtype == np.float32
    if platform == "torch":
        # the last layer is exact: bfloat16 itself would leave eight bits and tie what is loud
        assert len(np.unique(scores)) > 80


def test_the_tolerance_of_bf16_is_a_setting(exported, tmp_path):
    record = build_engine(exported, tmp_path, "torch", 1e-6, precision="bf16", device="cpu")
    assert not record["parity"]["passed"] and not parity_check("p", {"torch": record["parity"]}).passed


@pytest.mark.parametrize(
    ("engine", "key"),
    [
        ({"platform": "onnxruntime", "precision": "bf16"}, "engine.precision"),
        ({"platform": "openvino", "precision": "fp16"}, "engine.precision"),
        ({"platform": "openvino", "device": "cuda"}, "engine.device"),
        ({"platform": "tensorrt", "device": "cpu"}, "engine.device"),
        ({"platform": "auto", "device": "cpu", "precision": "tf32"}, "engine.precision"),
        ({"platform": "torch", "device": "cpu", "precision": "fp16"}, "engine.precision"),
    ],
)
def test_impossible_pairs_are_refused(engine, key):
    with pytest.raises(ValueError, match=f"{key} = "):
        config(engine)


def test_possible_pairs():
    assert config({"platform": "tensorrt", "precision": "tf32"}).engine.parity_tolerance is None
    assert precisions("auto", "cpu") == ["fp32", "bf16"] and precisions("onnxruntime", "auto") == ["fp32", "tf32", "fp16"]
    assert set(TOLERANCES) == set(precisions("auto", "auto"))
    for name, places in SUPPORT.items():
        assert config({"platform": name, "device": next(iter(places))}).engine.platform == name


# --- what is not there -----------------------------------------------------------------------------


def test_a_platform_that_is_not_installed_is_said_before_anything_starts(monkeypatch, exported, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "openvino" else real(name, *a))
    assert any("pip install 'aframe-dagster[openvino]'" in line for line in preflight(config({"platform": "openvino"})))
    assert not [line for line in preflight(config()) if "engine" in line]
    with pytest.raises(ValueError, match=r"engine\.platform openvino: the package openvino is not installed"):
        build_engine(exported, tmp_path, "openvino", device="cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "install g++" in not_installed("aotinductor")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("platform", ["torch", "onnxruntime"])
def test_without_a_gpu_cuda_is_refused(platform, exported, tmp_path):
    with pytest.raises(ValueError, match=r"no CUDA device|onnxruntime-gpu"):
        build_engine(exported, tmp_path, platform, device="cuda")
    with pytest.raises(ValueError, match="CUDA"):
        get_platform(platform).open(exported, "model", How("cuda"))


def test_auto_passes_over_what_fails_and_takes_the_fastest_in_parity(monkeypatch, exported, tmp_path):
    def broken(self, *args):
        raise RuntimeError("no such instruction")

    for name, speed in (("torch", {8: 3.0}), ("openvino", {8: 1.0, 16: 2.0}), ("onnxruntime", {8: 0.5})):
        monkeypatch.setitem(SPEEDS, name, speed)
    monkeypatch.setattr(type(get_platform("aotinductor")), "build", broken)
    monkeypatch.setattr(build, "milliseconds", lambda engine, sizes: SPEEDS[engine.platform])
    real = build.compare_engine

    def biased(engine, *args):
        found = real(engine, *args)
        return (
            found
            if engine.platform != "onnxruntime"
            else parity.Parity(**{k: v for k, v in found.as_dict().items() if k != "passed"} | {"events_lost": 1})
        )

    monkeypatch.setattr(build, "compare_engine", biased)
    record = build_engine(exported, tmp_path, "auto", device="cpu")
    assert (record["platform"], record["batch"], record["ms_per_input"]) == ("openvino", 8, 1.0)
    assert not record["measured"]["onnxruntime"]["parity"]["passed"] and "no such instruction" in record["passed_over"]["aotinductor"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine.json", "model.onnx", "signature.json"]
    monkeypatch.setattr(build, "build_engine", None)
    assert load_engine(tmp_path).platform == "openvino"


SPEEDS: dict[str, dict[int, float]] = {}


def test_torch_on_a_cpu_takes_small_calls():
    assert max(batches("windows", "torch", "cpu")) == 32 and max(batches("windows", "openvino", "cpu")) == 128
    assert max(batches("windows", "torch", "cuda")) > 128


# --- parity ----------------------------------------------------------------------------------------


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(200).round(1)
    b = a + 0.5 * rng.standard_normal(200)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(np.ones(3), np.ones(3)) == 1 and np.isnan(spearman(np.ones(3), a[:3])) and np.isnan(spearman(a, np.full(200, np.nan)))


def test_ranks_have_a_floor_of_their_own():
    windows, rng = np.zeros((96, 2, 8), np.float32), np.random.default_rng(1)
    logits = rng.standard_normal(96)
    found = compare(lambda x: _next(x, logits[::-1]), lambda x: _next(x, logits), windows, 100.0)
    assert not found.passed and found.max_difference < found.tolerance and found.rank_correlation < 0.9
    # nothing is asked of the ranks
    assert compare(lambda x: _next(x, logits[::-1]), lambda x: _next(x, logits), windows, 100.0, -1.0).passed


_PLACE = {"at": 0}


def _next(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The next len(x) of `values`, again from the start after the last."""
    at = _PLACE["at"] % len(values)
    _PLACE["at"] += len(x)
    return values[at : at + len(x)]


def test_events_that_only_one_of_two_has_are_counted():
    rng = np.random.default_rng(2)
    wanted = 0.01 * rng.standard_normal((2, 200))
    wanted[:, 50:54] += 5
    same, moved, gone = wanted + 1e-4, np.roll(wanted, 1, axis=1), wanted.copy()
    gone[0, 50:54] -= 5
    assert parity._events(same, wanted, 0.1)[1] == 0 and parity._events(moved, wanted, 0.1)[1] == 0
    assert parity._events(gone, wanted, 0.1)[1] == 1 == parity._events(wanted, gone, 0.1)[1]
    # an event no louder than the accepted difference may come and go
    assert parity._events(gone, wanted, 10)[1] == 0


# --- one engine for the whole search ---------------------------------------------------------------


def test_the_engine_is_part_of_what_results_are_made_from():
    graph = lineage.graph(config())
    assert "engine" in lineage.deps(graph["inference_results"]) and "engine" in graph["engine"].config
    (how,) = [i.how for i in graph["inference_results"].inputs if i.asset == "engine"]
    assert how == "whole"


def test_another_engine_gives_results_another_key(tmp_path, monkeypatch):
    """Of equal key, as when it was measured anew on another machine: what counts is what is in it."""
    row = {"role": "test", "gps_start": 1000.0, "gps_stop": 1100.0}

    def key(engine: str) -> str:
        def current(self, asset, partition, reader):
            sha256 = engine if asset == "engine" else f"content of {asset}"
            roles = {"test": {"key": "k", "sha256": "s"}}
            return Handle(asset=asset, key=f"key of {asset}", uri="file:///nowhere", files=(), sha256=sha256, meta={"roles": roles})

        monkeypatch.setattr(Workspace, "_current", current)
        monkeypatch.setattr(Workspace, "rows", lambda self: {"1000-100": row})
        return Workspace(config(), open_store(tmp_path.as_uri())).wanted("inference_results", "1000-100").parts.key

    assert key("one") == key("one") != key("two")


# --- compiled and on a GPU -------------------------------------------------------------------------


def test_a_process_that_opens_a_compiled_package_has_what_torch_needs_for_it():
    code = "import aframe_assets.engine.aotinductor_platform, torch; print(callable(torch._inductor.codecache.get_device_information))"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert fresh.stdout.strip() == "True", fresh.stderr


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_aotinductor_answers_as_torch_and_only_on_its_kind_of_machine(precision, framed, tmp_path):
    record = build_engine(framed, tmp_path, "aotinductor", precision=precision, device="cpu")
    engine = load_engine(tmp_path)
    assert record["parity"]["passed"] and engine.infer(probes(2, engine.signature.samples, RATE, 3)).shape[0] == 3
    # a step that searches is a process that has compiled nothing
    code = "import sys; from pathlib import Path; from aframe_assets.engine.engine import load_engine; load_engine(Path(sys.argv[1]))"
    fresh = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert fresh.returncode == 0, fresh.stderr
    (tmp_path / "model.aoti.json").write_text('{"target": "sm_90"}')
    with pytest.raises(ValueError, match="compiled for sm_90"):
        load_engine(tmp_path)


def test_buffers_of_a_cuda_graph_are_written_call_after_call(monkeypatch):
    """With a CPU's buffers and a stand-in for a graph that runs the module, as replay does: what a GPU does is in the next test."""
    module = torch.nn.Linear(3, 2)
    held = []

    class Graph:
        def replay(self):
            given, answer = held[-1]
            answer.copy_(module(given))

    class Recorded(torch.nn.Module):
        def forward(self, x):
            held.append((x, module(x)))
            return held[-1][1]

    def nothing(*args):
        return contextlib.nullcontext()

    stream = SimpleNamespace(wait_stream=nothing, synchronize=lambda: None)
    for name, value in {"Stream": lambda *a: stream, "current_stream": lambda *a: stream, "stream": nothing, "graph": nothing}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, pin_memory=False, **k: zeros(*a, **k))
    runner = GraphRunner(Recorded(), torch.get_num_threads(), "cpu")
    rng = np.random.default_rng(0)
    for count in (3, 4, 3):
        x = rng.standard_normal((count, 3)).astype(np.float32)
        np.testing.assert_allclose(runner(x), module(torch.from_numpy(x)).detach().numpy(), atol=1e-6)
    # a graph for four, made in the first call; three calls go before what is captured
    assert len(held) == 4 and held[0][0].shape == (4, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: CUDA graphs, pinned transfers and the tensor cores' precisions need one")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_cuda_graphs_answer_as_the_network(precision, exported, framed, tmp_path):
    for folder in (exported, framed):
        place = tmp_path / folder.name
        place.mkdir()
        record = build_engine(folder, place, "torch", precision=precision, device="cuda")
        engine = load_engine(place)
        x = probes(2, engine.signature.samples, RATE, 7)
        assert record["parity"]["passed"]
        # a batch that fills no graph, after one that does
        assert np.allclose(engine.infer(x[:3]), engine.infer(x)[:3], atol=1e-3 if precision == "fp32" else 0.1)
