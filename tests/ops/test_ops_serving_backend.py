"""The Python backend ``onnxruntime``, without a server: what it keeps of a sequence, what it refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest

import aframe_ops.serving
from aframe_assets.engine.repository import WHITENED_SNAPSHOTTER, Layout, configurations
from aframe_assets.engine.signature import Signature
from aframe_assets.engine.snapshotter import window_snapshotter

START, END = 1, 2


class TritonModelException(Exception):
    pass


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> np.ndarray:
        return self.values


class Request:
    """A request as Triton hands it to a Python backend."""

    def __init__(self, sequence: int, flags: int, **inputs: np.ndarray) -> None:
        self.sequence, self.bits = sequence, flags
        self.inputs = {name: Tensor(name, values) for name, values in inputs.items()}

    def correlation_id(self) -> int:
        return self.sequence

    def flags(self) -> int:
        return self.bits


class Response:
    def __init__(self, outputs: list[Tensor] = (), error: str | None = None) -> None:
        self.outputs, self.error = {t.name: t.values for t in outputs}, error


@pytest.fixture
def backend(monkeypatch):
    """The backend's module, with Triton's own beside it; numpy as the server has it."""
    triton = types.ModuleType("triton_python_backend_utils")
    triton.Tensor, triton.InferenceResponse, triton.TritonError = Tensor, Response, str
    triton.TritonModelException = TritonModelException
    triton.get_input_tensor_by_name = lambda request, name: request.inputs[name]
    triton.triton_string_to_numpy = {"TYPE_FP32": np.float32}.__getitem__
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.setattr(np, "__version__", "1.26.4")
    path = Path(aframe_ops.serving.__file__).parent / "backends" / "onnxruntime" / "model.py"
    spec = importlib.util.spec_from_file_location("onnxruntime_backend", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(values):
    """A configuration as Triton's JSON has it."""
    if isinstance(values, dict):
        return {k: plain(v) for k, v in values.items()}
    if isinstance(values, list):
        return [plain(v) for v in values]
    return getattr(values, "text", values)


@pytest.fixture
def snapshotter(tmp_path):
    """Arguments of an instance of a snapshotter: windows of 8 samples every 4, 3 windows for each request."""
    signature = Signature(("H1", "L1"), 4.0, 8, {"psd_length": 8, "fduration": 1})
    config = plain(configurations(Layout(signature, stride=4, batch=3, streams=2))[WHITENED_SNAPSHOTTER])
    config["parameters"] = {p["key"]: p["value"] for p in config["parameters"]}
    (tmp_path / "1").mkdir()
    onnx.save(window_snapshotter(2, 8, 4, 3), str(tmp_path / "1" / "model.onnx"))
    return {
        "model_config": json.dumps(config),
        "model_repository": str(tmp_path),
        "model_version": "1",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }


def started(backend, args):
    model = backend.TritonPythonModel()
    model.initialize(args)
    return model


def update(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 2, 12)).astype(np.float32)


def test_state_goes_from_request_to_request_and_away_with_the_last(backend, snapshotter):
    model = started(backend, snapshotter)
    stream = [update(i) for i in range(3)]
    answers = [model.execute([Request(7, f, stream=x)])[0] for f, x in zip((START, 0, END), stream, strict=True)]
    whole = np.concatenate([np.zeros((1, 2, 4), np.float32), *stream], axis=2)[0]
    wanted = np.lib.stride_tricks.sliding_window_view(whole, 8, axis=1)[:, ::4].transpose(1, 0, 2)
    assert np.array_equal(np.concatenate([a.outputs["windows"] for a in answers]), wanted)
    assert model.kept == {}


def test_a_sequence_without_its_state_is_refused_not_answered_from_zeros(backend, snapshotter):
    model = started(backend, snapshotter)
    (answer,) = model.execute([Request(7, 0, stream=update(0))])
    assert answer.outputs == {} and "sequence 7 has no state here; START is missing" in answer.error


def test_no_more_sequences_are_kept_than_the_instance_has_slots(backend, snapshotter):
    model = started(backend, snapshotter)
    for sequence in range(50):
        assert model.execute([Request(sequence, START, stream=update(sequence))])[0].error is None
    assert list(model.kept) == [49]
    assert model.execute([Request(3, 0, stream=update(3))])[0].error


def test_a_new_sequence_replaces_the_one_that_has_been_silent_longest(backend, snapshotter):
    model = started(backend, snapshotter)
    model.slots = 2
    for sequence, flags in ((1, START), (2, START), (1, 0), (3, START)):
        model.execute([Request(sequence, flags, stream=update(sequence))])
    assert list(model.kept) == [1, 3]
    assert model.execute([Request(1, 0, stream=update(4))])[0].error is None


def test_an_error_is_that_of_its_request_and_drops_the_state(backend, snapshotter):
    model = started(backend, snapshotter)
    model.execute([Request(7, START, stream=update(0))])
    wrong, right = model.execute([Request(7, 0, stream=update(1)[..., :5]), Request(8, START | END, stream=update(2))])
    assert "InvalidArgument" in wrong.error and right.error is None
    # going on would answer from a state that lacks a request
    assert "START is missing" in model.execute([Request(7, 0, stream=update(3))])[0].error


def test_threads_are_those_of_the_configuration(backend, snapshotter):
    config = json.loads(snapshotter["model_config"])
    config["parameters"]["intra_op_thread_count"] = {"string_value": "3"}
    model = started(backend, snapshotter | {"model_config": json.dumps(config)})
    assert model.session.get_session_options().intra_op_num_threads == 3


def test_numpy_2_a_gpu_that_is_not_there_and_other_initial_states_are_refused(backend, snapshotter, monkeypatch):
    with pytest.raises(TritonModelException, match="has no CUDA; install the server's environment with --gpu"):
        started(backend, snapshotter | {"model_instance_kind": "GPU"})
    config = json.loads(snapshotter["model_config"])
    config["sequence_batching"]["state"][0]["initial_state"][0] |= {"zero_data": False, "data_file": "state"}
    with pytest.raises(TritonModelException, match="only zero_data"):
        started(backend, snapshotter | {"model_config": json.dumps(config)})
    monkeypatch.setattr(np, "__version__", "2.4.6")
    with pytest.raises(TritonModelException, match=r"numpy 2\.4\.6, with which outputs are garbage"):
        started(backend, snapshotter)


def test_slots_follow_the_kind_of_sequence_batching(backend):
    assert backend.slots({"sequence_batching": {"direct": {}}, "max_batch_size": 0}) == 1
    assert backend.slots({"sequence_batching": {"direct": {}}, "max_batch_size": 4}) == 4
    assert backend.slots({"sequence_batching": {"oldest": {"max_candidate_sequences": 9}}, "max_batch_size": 4}) == 9
