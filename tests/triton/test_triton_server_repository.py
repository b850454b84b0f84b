"""The model repository on NVIDIA's server: strain sent as upstream's client sends it gives the logits of whitening and network in
one piece, for sequences that are served at once; the command that serves a run tells where."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from aframe_assets.config import Architecture, Conditioning
from aframe_assets.engine.export import export
from aframe_assets.engine.repository import BLOCKS, ENSEMBLE, NETWORK, Layout, write_repository
from aframe_assets.engine.signature import Signature
from aframe_assets.inference.streaming import WindowSnapshotter
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.strain.conditioning import Whitener
from aframe_ops.serving.probe import write_sum

pytestmark = pytest.mark.triton

RATE, STRIDE, BATCH, REQUESTS = 256.0, 64, 16, 6
CONDITIONING = Conditioning(psd_length=8, fftlength=1, kernel_length=1.5, highpass=20)


@pytest.fixture(scope="module", params=["resnet", "streaming"])
def made(request, tmp_path_factory):
    """Folder of a network's engine and of its repository, and the repository's shapes."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    context = {"context": 1.0} if request.param == "streaming" else {}
    network = build_network(Architecture(name=request.param, layers=[1, 1], width=8, **context), Sky(2, RATE, (0.01,))).eval()
    signature = Signature.of(["H1", "L1"], RATE, CONDITIONING, network, 2.0)
    (folder / "engine").mkdir()
    (folder / "models").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(network, signature, folder / "engine")
        write_repository(folder / "models", folder / "engine", stride=STRIDE, batch=BATCH)
    return folder / "engine", folder / "models", Layout(signature, STRIDE, BATCH)


def expected(engine: Path, layout: Layout, stream: np.ndarray) -> np.ndarray:
    """Logits (windows of the last request,) of a stream (2, ifo, samples): the last stretch whitened and scored in one piece."""
    data = torch.from_numpy(stream[..., -(layout.state + layout.update) :]).double()
    whitener, settle = Whitener(CONDITIONING, RATE), round(CONDITIONING.psd_length * RATE)
    whitened = whitener.whiten(data[1, :, settle:], whitener.psd(data[0, :, :settle])).numpy()
    windows = WindowSnapshotter(2, layout.signature.window, STRIDE).update(whitened)
    network = onnxruntime.InferenceSession(str(engine / f"{layout.signature.windows_stem}.onnx"), providers=["CPUExecutionProvider"])
    return network.run(None, {"input_0": np.ascontiguousarray(windows)})[0][:, 0]


def test_strain_of_two_sequences_at_once_is_scored_as_in_one_piece(made, tritonserver):
    from tritonclient.grpc import InferenceServerClient, InferInput

    engine, models, layout = made
    server = tritonserver(models)
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((2, REQUESTS * layout.update)) * 1e-21
    tone = 2e-21 * np.sin(np.arange(noise.shape[1]) * 0.9)  # 37 Hz
    # reference 2.11: a sequence of background and one of background and injections, of neighbouring identities
    streams = {n: np.stack([noise, x]).astype(np.float32) for n, x in ((1234, noise), (1235, noise + tone))}
    got: dict[int, list[np.ndarray]] = {n: [] for n in streams}
    with InferenceServerClient(server.url) as client:
        for i in range(REQUESTS):
            for name, stream in streams.items():
                given = InferInput("stream", [2, 2, layout.update], "FP32")
                given.set_data_from_numpy(np.ascontiguousarray(stream[..., i * layout.update : (i + 1) * layout.update]))
                flags = {"sequence_start": i == 0, "sequence_end": i == REQUESTS - 1}
                got[name].append(client.infer(ENSEMBLE, [given], sequence_id=name, **flags).as_numpy("discriminator")[:, 0])
    full = -(-(layout.state + layout.update) // layout.update)
    assert full < REQUESTS
    for last in range(full, REQUESTS + 1):
        for name, stream in streams.items():
            wanted = expected(engine, layout, stream[..., : last * layout.update])
            assert wanted.shape == (BATCH,)
            off = np.abs(got[name][last - 1] - wanted).max() / np.abs(wanted).max()
            assert off < 1e-5, (name, last, off)
    print(f"largest relative difference of the last request {off:.2g}")
    assert np.abs(got[1234][-1] - got[1235][-1]).max() > 1e-3


def test_networks_alone_answer_as_in_this_process(made, tritonserver):
    from tritonclient.grpc import InferenceServerClient, InferInput

    engine, models, layout = made
    signature = layout.signature
    server = tritonserver(models)
    forms = {NETWORK: (signature.windows_stem, signature.window)}
    if signature.form != "windows":
        forms[BLOCKS] = ("model", signature.samples)
    assert (BLOCKS in server.models) == (signature.form != "windows")
    with InferenceServerClient(server.url) as client:
        for name, (stem, samples) in forms.items():
            network = onnxruntime.InferenceSession(str(engine / f"{stem}.onnx"), providers=["CPUExecutionProvider"])
            for batch in (1, 7):
                x = np.random.default_rng(batch).standard_normal((batch, 2, samples)).astype(np.float32)
                given = InferInput("input_0", list(x.shape), "FP32")
                given.set_data_from_numpy(x)
                output = network.get_outputs()[0].name
                got = client.infer(name, [given]).as_numpy(output)
                wanted = network.run(None, {"input_0": x})[0]
                assert got.shape == wanted.shape and np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serving_from_the_command_line_says_where_and_stops(environment, tmp_path, number):
    words = [sys.executable, "-m", "aframe_ops.cli.main", "serve", str(write_sum(tmp_path / "models"))]
    env = {**os.environ, "AFRAME_TRITON_ENV": str(environment.folder)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path, env=env) as program:
        told = ""
        while "Ctrl-C" not in told:
            line = program.stdout.readline()
            assert line, told
            told += line
        program.send_signal(number)
        told += program.stdout.read()
    assert program.returncode == 0 and told.endswith("stopped\n")
    assert "models: sum\n" in told and re.search(r"gRPC +127\.0\.0\.1:\d+\n", told)
    assert len(list(tmp_path.glob("triton-logs/*/triton.log"))) == 1
