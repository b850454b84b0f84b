"""Exported files and engines answer as the network does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from aframe_assets.config import Architecture, Conditioning
from aframe_assets.engine.build import batches, build_engine
from aframe_assets.engine.checks import parity_check
from aframe_assets.engine.engine import load_engine
from aframe_assets.engine.export import INPUT, ONNX_FILE, OUTPUT, TORCH_FILE, export
from aframe_assets.engine.parity import compare, probes
from aframe_assets.engine.platforms import get_platform
from aframe_assets.engine.runners import default_threads
from aframe_assets.engine.signature import Signature
from aframe_assets.model.networks import Sky, build_network

RATE = 256.0
CONDITIONING = Conditioning(psd_length=8, fftlength=1, kernel_length=1.5, highpass=20)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(Architecture(layers=[1, 1], width=8), Sky(2, RATE, (0.01,))).eval()


@pytest.fixture(scope="module")
def signature() -> Signature:
    return Signature.of(["H1", "L1"], RATE, CONDITIONING)


@pytest.fixture(scope="module")
def exported(network, signature, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(network, signature, folder)
    return folder


@pytest.fixture(scope="module")
def built(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        # compiling takes as long as all else here
        patch.setattr(type(get_platform("aotinductor")), "missing", lambda self, device: "no compiler in this test")
        return folder, build_engine(exported, folder, "auto", 1e-3, {"name": "toy"}, device="cpu")


def logits(network, windows) -> np.ndarray:
    with torch.no_grad():
        return network(torch.from_numpy(windows))[:, 0].numpy()


@pytest.mark.parametrize("batch", [1, 2, 5, 40])
def test_onnx_equals_torch_at_any_batch(network, exported, batch):
    windows = probes(2, 384, RATE, batch, seed=batch)
    session = onnxruntime.InferenceSession(str(exported / ONNX_FILE), providers=["CPUExecutionProvider"])
    (out,) = session.run([OUTPUT], {INPUT: windows})
    assert out.shape == (batch, 1)
    assert np.abs(out[:, 0] - logits(network, windows)).max() < 1e-4


def test_equal_networks_make_equal_files_without_paths_of_this_machine(network, exported, signature, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(network, signature, tmp_path)
    assert (tmp_path / ONNX_FILE).read_bytes() == (exported / ONNX_FILE).read_bytes()
    for name in (ONNX_FILE, TORCH_FILE):
        assert b".py" not in (exported / name).read_bytes()


RELEASED = """
import os, signal, sys, threading
from pathlib import Path
from aframe_assets.engine.openvino_platform import OpenVinoRunner
from aframe_assets.engine.runners import How

signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
kept = [OpenVinoRunner(Path(sys.argv[1]), How())]
thread = threading.Thread(target=kept.clear)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_after_an_engine_was_released_in_another_thread_is_handled(exported):
    """As a batch system's SIGTERM to a step whose engine a pool's thread, or its garbage collection, has let go."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", RELEASED, str(exported / ONNX_FILE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_torch_export_equals_torch(network, exported):
    windows = probes(2, 384, RATE, 7)
    program = torch.export.load(str(exported / TORCH_FILE)).module()
    with torch.no_grad():
        assert np.allclose(program(torch.from_numpy(windows))[:, 0].numpy(), logits(network, windows), atol=1e-5)


@pytest.mark.parametrize("platform", ["onnxruntime", "torch", "openvino"])
def test_engine_equals_torch(network, exported, tmp_path, platform):
    record = build_engine(exported, tmp_path, platform, device="cpu")
    engine = load_engine(tmp_path)
    windows = probes(2, 384, RATE, 100, seed=9)
    assert engine.platform == record["platform"] == platform
    out = engine.infer(windows)
    assert out.dtype == np.float32 and out.shape == (100,)
    assert np.abs(out - logits(network, windows)).max() < 1e-4
    assert np.array_equal(out, engine.infer(windows))


def test_auto_measures_once_and_records(built, signature):
    folder, record = built
    assert set(record["measured"]) == {"onnxruntime", "torch", "openvino"}
    assert record["passed_over"] == {"aotinductor": "no compiler in this test", "tensorrt": "has no fp32 on cpu"}
    assert record["ms_per_input"] == min(m["ms_per_input"] for m in record["measured"].values())
    assert record["device_class"].startswith("cpu ") and record["batch"] in batches("windows", record["platform"], "cpu")
    assert record["parity"]["passed"] and record["parity"]["max_difference"] < 1e-3
    on_disk = json.loads((folder / "engine.json").read_text())
    assert on_disk == json.loads(json.dumps(record))
    engine = load_engine(folder)
    assert engine.ifos == ["H1", "L1"] and engine.sample_rate == RATE and engine.kernel == 384
    assert Conditioning.model_validate(engine.conditioning) == CONDITIONING and engine.bundle == {"name": "toy"}
    assert (folder / ONNX_FILE).is_file()


def test_engine_refuses_other_windows_and_folders(built, tmp_path):
    engine = load_engine(built[0])
    with pytest.raises(ValueError, match=r"expected \(batch, 2, 384\)"):
        engine.infer(np.zeros((3, 3, 384), np.float32))
    with pytest.raises(ValueError, match="aframe run --until engine"):
        load_engine(tmp_path)
    (tmp_path / "engine.json").write_text("{}")
    with pytest.raises(ValueError, match="not an engine"):
        load_engine(tmp_path)


def test_threads_follow_the_step(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert default_threads() == 1


def test_a_wrong_engine_fails_parity(network):
    windows = probes(2, 384, RATE)
    right = compare(lambda x: logits(network, x), lambda x: logits(network, x), windows, 1e-3)
    off = compare(lambda x: logits(network, x) + 0.01, lambda x: logits(network, x), windows, 1e-3)
    broken = compare(lambda x: logits(network, x) * np.nan, lambda x: logits(network, x), windows, 1e-3)
    # an exporter that froze the batch: every window gets the answer of the first
    frozen = compare(lambda x: np.repeat(logits(network, x[:1]), len(x)), lambda x: logits(network, x), windows, 1e-3)
    assert right.passed and not off.passed and not broken.passed and not frozen.passed
    assert not parity_check("p", {"onnx": right.as_dict(), "torch": off.as_dict()}).passed


def test_a_network_without_one_logit_is_refused(tmp_path, signature):
    with pytest.raises(ValueError, match="one logit for each window"):
        export(torch.nn.Flatten(), signature, tmp_path)
    with pytest.raises(ValueError, match="whole number"):
        Signature.of(["H1"], 2048.5, CONDITIONING)
