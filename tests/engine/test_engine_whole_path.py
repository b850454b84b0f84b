"""Strain to logits as one graph gives what whitening, windows and network give in a process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from aframe_assets.config import Architecture, Conditioning
from aframe_assets.engine.whole_path import Preprocessor, WholePath, export_path
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.strain.conditioning import Whitener

RATE, WINDOW, STRIDE, BATCH = 256.0, 384, 64, 12


def conditioning(**other) -> Conditioning:
    return Conditioning(**{"psd_length": 8, "fftlength": 1, "kernel_length": 1.5, "highpass": 20} | other)


def strain(samples: int, seed: int = 0) -> np.ndarray:
    """Noise of 1e-21 with the seismic wall below 20 Hz, four orders of magnitude higher, and a line."""
    rng, frequencies = np.random.default_rng(seed), np.fft.rfftfreq(2 * samples, 1 / RATE)
    colour = 1 + 1e4 * np.exp(-frequencies / 3)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal((1, 2, 2 * samples))) * colour)[..., :samples]
    return 1e-21 * (noise + 5 * np.sin(2 * np.pi * 60 * np.arange(samples) / RATE))


def in_process(c: Conditioning, x: np.ndarray) -> np.ndarray:
    white = Whitener(c, RATE)(torch.from_numpy(x[0]).double())
    return white.unfold(-1, WINDOW, STRIDE).transpose(0, 1).contiguous().numpy()


@pytest.mark.parametrize(
    "other", [{}, {"highpass": None}, {"lowpass": 100, "fftlength": 2}, {"psd_length": 8.5}, {"kernel_length": 3, "fduration": 0.5}]
)
def test_preprocessor_is_the_whitener_and_windows(other):
    c = conditioning(**other)
    p = Preprocessor(c, RATE, 2, WINDOW, STRIDE, BATCH)
    assert p.samples == round((c.psd_length + c.fduration) * RATE) + WINDOW + (BATCH - 1) * STRIDE
    x = strain(p.samples)
    found, wanted = p(torch.from_numpy(x)).numpy(), in_process(c, x)
    assert found.shape == wanted.shape == p.shape and found.dtype == np.float32
    assert np.abs(found - wanted).max() < 1e-6 * np.abs(wanted).max()


@pytest.fixture(scope="module")
def whole():
    torch.manual_seed(0)
    network = build_network(Architecture(layers=[1, 1], width=8), Sky(2, RATE, (0.01,))).eval()
    return WholePath(Preprocessor(conditioning(), RATE, 2, WINDOW, STRIDE, BATCH), network)


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"strain": x})
    return out


def test_one_onnx_graph_gives_the_logits_of_the_path_in_process(whole, tmp_path):
    path = export_path(whole, tmp_path / "whole.onnx")
    x = strain(whole.preprocessor.samples, seed=1)
    with torch.no_grad():
        wanted = whole.network(torch.from_numpy(in_process(conditioning(), x))).numpy()
    found = run(path, x)
    assert found.shape == (BATCH, 1) and np.abs(found - wanted).max() < 1e-4 * np.ptp(wanted)
    graph = onnx.load(path).graph
    assert [i.name for i in graph.input] == ["strain"] and [o.name for o in graph.output] == ["discriminator"]
    assert b".py" not in path.read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_torch_export_of_the_path(whole, tmp_path):
    path = export_path(whole, tmp_path / "whole.pt2")
    x = torch.from_numpy(strain(whole.preprocessor.samples, seed=2))
    with torch.no_grad():
        assert torch.allclose(torch.export.load(path).module()(x), whole(x), atol=1e-6)


def test_single_precision_strain_stays_near_double(whole, tmp_path):
    pre = whole.preprocessor
    path = export_path(pre, tmp_path / "pre.onnx", "float32")
    x = strain(pre.samples, seed=3)
    found, wanted = run(path, x.astype(np.float32)), in_process(conditioning(), x)
    # the rounding of a part 10^4 times higher than the rest
    assert np.abs(found - wanted).max() < 3e-3 and np.abs(run(path, x.astype(np.float32)) - found).max() == 0
    assert [o.name for o in onnx.load(path).graph.output] == ["input_0"]


def test_impossible_paths_are_refused(whole, tmp_path):
    with pytest.raises(ValueError, match="expected at least 1"):
        Preprocessor(conditioning(), RATE, 2, WINDOW, 0, 4)
    with pytest.raises(ValueError, match=r"\.onnx or \.pt2"):
        export_path(whole, tmp_path / "whole.plan")
