"""The Triton repository: its shapes are upstream's, Triton's own schema reads it, its models give what the code in a process gives."""

from __future__ import annotations

import json
import shutil
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from aframe_assets.config import Architecture, Conditioning
from aframe_assets.engine.checks import preprocessor_check, snapshotter_check
from aframe_assets.engine.export import export
from aframe_assets.engine.repository import Layout, configurations, protobuf_text, write_repository
from aframe_assets.engine.signature import Signature
from aframe_assets.engine.snapshotter import strain_snapshotter, window_snapshotter
from aframe_assets.inference.streaming import WindowSnapshotter
from aframe_assets.model.networks import Sky, build_network

RATE = 256.0
STRIDE, BATCH = 64, 16
CONDITIONING = Conditioning(psd_length=8, fftlength=1, kernel_length=1.5, highpass=20)
MODELS = {"snapshotter", "preprocessor", "aframe", "aframe-stream", "whitened-snapshotter", "aframe-whitened-stream"}


def _export(folder, **architecture) -> None:
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    head = {"channels": 8, "groups": 4, "hidden": 8, "map_stride": 4}
    network = build_network(Architecture(layers=[1, 1], width=8, lag_head=head, **architecture), Sky(2, RATE, (0.01,))).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(network, Signature.of(["H1", "L1"], RATE, CONDITIONING, network, 2.0), folder)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory):
    """Repository of a network of windows, and the folder of its engine."""
    folder = tmp_path_factory.mktemp("windowed")
    _export(folder / "engine")
    (folder / "models").mkdir()
    write_repository(folder / "models", folder / "engine", stride=STRIDE, batch=BATCH)
    return folder / "models", folder / "engine"


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    """The same of a network of frames with a filter of maps."""
    folder = tmp_path_factory.mktemp("cascade")
    _export(folder / "engine", name="streaming", context=1.0)
    _export(folder / "engine" / "filter", name="map", context=1.0)
    (folder / "models").mkdir()
    write_repository(folder / "models", folder / "engine", stride=STRIDE, batch=BATCH)
    return folder / "models", folder / "engine"


def session(path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("rate", [1, 4, 8])
@pytest.mark.parametrize("kernel_length", [2, 4])
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_shapes_of_a_repository(rate, kernel_length, batch):
    """Reference 4.2, 'export dims' and 'snapshotter': state int((K + F + P - 1/r) fs) for strain, less F and P for whitened streams."""
    fs, ifos = 128, 2
    conditioning = Conditioning(psd_length=64, fduration=1, kernel_length=kernel_length)
    layout = Layout(Signature.of(["H1", "L1"], fs, conditioning), fs // rate, batch)
    configs = configurations(layout)
    stream = batch * fs // rate
    state = int((kernel_length + 1 + 64 - 1 / rate) * fs)
    assert [t["dims"] for t in configs["snapshotter"]["input"]] == [[2, ifos, stream]]
    assert configs["snapshotter"]["sequence_batching"]["state"][0]["dims"] == [2, ifos, state]
    assert configs["snapshotter"]["output"][0]["dims"] == configs["preprocessor"]["input"][0]["dims"] == [2, ifos, state + stream]
    assert configs["preprocessor"]["output"][0]["dims"] == [batch, ifos, kernel_length * fs]
    assert configs["aframe-stream"]["output"][0]["dims"] == [batch, 1]
    whitened = configs["whitened-snapshotter"]
    assert whitened["sequence_batching"]["state"][0]["dims"] == [1, ifos, int((kernel_length - 1 / rate) * fs)]
    assert whitened["output"][0]["dims"] == configs["preprocessor"]["output"][0]["dims"]


def test_upstream_s_state_is_135680_samples():
    """Reference 2.10: K = 1.5 s, F = 1 s, P = 64 s, 4 Hz at 2048 Hz."""
    layout = Layout(Signature.of(["H1", "L1"], 2048, Conditioning()), 512, 128)
    assert (layout.state, layout.update) == (135_680, 65_536)


@pytest.mark.parametrize("stride", [64, 100, 256])
def test_windows_are_those_of_our_snapshotter(tmp_path, stride):
    window, batch, ifos = 256, 4, 2
    onnx.save(window_snapshotter(ifos, window, stride, batch), str(tmp_path / "s.onnx"))
    model = session(tmp_path / "s.onnx")
    stream = np.random.default_rng(0).standard_normal((ifos, 5 * batch * stride)).astype(np.float32)
    state, out = np.zeros((1, ifos, window - stride), np.float32), []
    expected = WindowSnapshotter(ifos, window, stride).update(np.concatenate([state[0], stream], axis=1))
    for i in range(5):
        update = stream[None, :, i * batch * stride : (i + 1) * batch * stride]
        windows, new = model.run(["windows", "output_state"], {"stream": update, "input_state": state})
        assert np.array_equal(new[0], np.concatenate([state[0], update[0]], axis=1)[:, -new.shape[2] :]) or not new.shape[2]
        state = new
        out.append(windows)
    assert np.array_equal(np.concatenate(out), expected)


@pytest.mark.parametrize("update", [8, 40])
def test_strain_is_the_end_of_the_stream(tmp_path, update):
    onnx.save(strain_snapshotter(2, 3, 24, update), str(tmp_path / "s.onnx"))
    model = session(tmp_path / "s.onnx")
    stream = np.random.default_rng(0).standard_normal((2, 3, 5 * update)).astype(np.float32)
    whole = np.concatenate([np.zeros((2, 3, 24), np.float32), stream], axis=2)
    state = whole[..., :24]
    for i in range(5):
        strain, state = model.run(["strain", "output_state"], {"stream": stream[..., i * update : (i + 1) * update], "input_state": state})
        assert np.array_equal(strain, whole[..., i * update : i * update + 24 + update])


def test_a_stride_that_skips_samples_is_refused():
    with pytest.raises(ValueError, match="expected 1 to the window"):
        window_snapshotter(2, 256, 257, 4)


def test_checks_pass_and_notice_a_wrong_model(windowed, tmp_path):
    models, engine = windowed
    signature = Signature.read(engine / "signature.json")
    assert snapshotter_check(models).passed and preprocessor_check(models, signature, STRIDE).passed
    shutil.copytree(models, tmp_path / "models")
    # a snapshotter that keeps the beginning of its stream, not the end
    path = tmp_path / "models" / "snapshotter" / "1" / "model.onnx"
    wrong = onnx.load(str(path))
    for constant in wrong.graph.initializer:
        if constant.name in ("tail", "end"):
            constant.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(constant) - 1, constant.name))
    onnx.save(wrong, str(path))
    assert not snapshotter_check(tmp_path / "models").passed
    # a preprocessor of another highpass
    other = Signature.of(["H1", "L1"], RATE, CONDITIONING.model_copy(update={"highpass": 25.0}))
    assert not preprocessor_check(models, other, STRIDE).passed


def read(models) -> dict:
    text_format = pytest.importorskip("google.protobuf.text_format")
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    found = {}
    for folder in sorted(models.iterdir()):
        config = text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())
        assert config.name == folder.name and (folder / "1").is_dir()
        found[config.name] = config
    return found


def test_repository_is_what_triton_reads(windowed):
    configs = read(windowed[0])
    assert set(configs) == MODELS
    for name in ("aframe", "snapshotter", "whitened-snapshotter", "preprocessor"):
        config, model = configs[name], onnx.load(str(windowed[0] / name / "1" / "model.onnx"))
        states = {s.input_name for s in config.sequence_batching.state} | {s.output_name for s in config.sequence_batching.state}
        for declared, actual in ((config.input, model.graph.input), (config.output, model.graph.output)):
            dims = {v.name: [d.dim_value or -1 for d in v.type.tensor_type.shape.dim] for v in actual if v.name not in states}
            assert {t.name: list(t.dims) for t in declared} == dims
    sequence = configs["whitened-snapshotter"].sequence_batching
    assert sequence.HasField("direct") and sequence.max_sequence_idle_microseconds == 600_000_000
    assert list(sequence.state[0].dims) == [1, 2, 320] and sequence.state[0].initial_state[0].zero_data
    steps = {name: configs[name].ensemble_scheduling.step for name in ("aframe-stream", "aframe-whitened-stream")}
    assert [s.model_name for s in steps["aframe-stream"]] == ["snapshotter", "preprocessor", "aframe"]
    assert [s.model_name for s in steps["aframe-whitened-stream"]] == ["whitened-snapshotter", "aframe"]
    for ensemble in steps.values():
        # what a step takes is what a step before it has given, or the stream
        known = {"stream"}
        for step in ensemble:
            assert set(step.input_map.values()) <= known
            known |= set(step.output_map.values())
        assert "discriminator" in known


def test_strain_through_the_chain_of_models_gives_the_network_s_logits(windowed):
    """Reference 2.10 and 2.11 by hand: three requests of the ensemble's members, against whitening and network in one piece."""
    from aframe_assets.strain.conditioning import Whitener

    models, engine = windowed
    layout = Layout(Signature.read(engine / "signature.json"), STRIDE, BATCH)
    rng, requests = np.random.default_rng(3), 12
    background = rng.standard_normal((2, requests * layout.update)) * 1e-21
    stream = np.stack([background, background + 1e-21 * np.sin(np.arange(background.shape[1]) / 9)]).astype(np.float32)
    members = {name: session(models / name / "1" / "model.onnx") for name in ("snapshotter", "preprocessor", "aframe")}
    state, got = np.zeros((2, 2, layout.state), np.float32), []
    for i in range(requests):
        update = stream[..., i * layout.update : (i + 1) * layout.update]
        strain, state = members["snapshotter"].run(None, {"stream": update, "input_state": state})
        (windows,) = members["preprocessor"].run(None, {"strain": strain})
        got.append(members["aframe"].run(None, {"input_0": windows})[0])
    # the last request, from the whole stream
    whitener = Whitener(CONDITIONING, RATE)
    data = torch.from_numpy(stream[..., -(layout.state + layout.update) :]).double()
    settle = round(CONDITIONING.psd_length * RATE)
    whitened = whitener.whiten(data[1, :, settle:], whitener.psd(data[0, :, :settle])).numpy()
    windows = WindowSnapshotter(2, layout.signature.window, STRIDE).update(whitened)
    wanted = session(engine / "model.onnx").run(None, {"input_0": np.ascontiguousarray(windows)})[0]
    assert wanted.shape == (BATCH, 1)
    assert np.abs(got[-1] - wanted).max() < 1e-5 * np.abs(wanted).max()
    # and the stream's end is in the last window: moved by a sample, it would be another answer
    assert np.abs(members["aframe"].run(None, {"input_0": np.roll(windows, 1, -1)})[0] - wanted).max() > 1e-3 * np.abs(wanted).max()


def test_networks_of_frames_and_maps_are_there_in_their_cheapest_form(cascade):
    models, engine = cascade
    configs = read(models)
    assert set(configs) == MODELS | {"aframe-blocks", "filter-blocks"}
    forms = {"aframe": (engine, "windows"), "aframe-blocks": (engine, "frames"), "filter-blocks": (engine / "filter", "maps")}
    for name, (place, form) in forms.items():
        signature = Signature.read(place / "signature.json")
        about = json.loads(configs[name].parameters["aframe"].string_value)
        assert about["form"] == form and about["ifos"] == ["H1", "L1"] and about["block"] == signature.block == 512
        samples = signature.window if form == "windows" else signature.samples
        assert list(configs[name].input[0].dims) == [-1, 2, samples]
        x = np.random.default_rng(0).standard_normal((3, 2, samples)).astype(np.float32)
        (out,) = session(models / name / "1" / "model.onnx").run(None, {"input_0": x})
        assert list(out.shape) == [3, *configs[name].output[0].dims[1:]]


def test_plans_are_served_by_tensorrt_each_on_its_architecture(windowed, tmp_path):
    shutil.copytree(windowed[1], tmp_path / "engine")
    for name in ("model.sm90.trt10.9.0.plan", "model.sm90.trt10.16.1.11.plan", "model.sm120.trt10.9.0.plan", "windows.sm80.trt10.9.0.plan"):
        (tmp_path / "engine" / name).write_text(name)
    (tmp_path / "models").mkdir()
    write_repository(tmp_path / "models", tmp_path / "engine", stride=STRIDE, batch=BATCH)
    config = read(tmp_path / "models")["aframe"]
    assert config.platform == "tensorrt_plan" and list(config.input[0].dims) == [-1, 2, 384]
    # the latest version; of the windowed form, which is the network's cheapest one here
    wanted = {"9.0": "model.sm90.trt10.16.1.11.plan", "12.0": "model.sm120.trt10.9.0.plan"}
    assert dict(config.cc_model_filenames) == wanted
    files = {p.name: p.read_text() for p in (tmp_path / "models" / "aframe" / "1").iterdir()}
    assert files == {name: name for name in wanted.values()}


def test_an_engine_without_its_onnx_file_is_refused(windowed, tmp_path):
    shutil.copytree(windowed[1], tmp_path / "engine")
    (tmp_path / "engine" / "model.onnx").unlink()
    (tmp_path / "models").mkdir()
    with pytest.raises(ValueError, match=r"no model\.onnx; build the engine again"):
        write_repository(tmp_path / "models", tmp_path / "engine", stride=STRIDE, batch=BATCH)


def test_protobuf_text_escapes():
    assert protobuf_text({"name": 'a"b\\c', "flag": True}) == 'name: "a\\"b\\\\c"\nflag: true\n'
