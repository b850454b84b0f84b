"""The life of NVIDIA's server: installed, started, watched, started again once, and ended with whoever started it."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from tiny_run import wait_for

from aframe_assets.engine.repository import WHITENED_SNAPSHOTTER, Layout, configurations, protobuf_text
from aframe_assets.engine.signature import Signature
from aframe_assets.engine.snapshotter import window_snapshotter
from aframe_ops.serving.environment import install
from aframe_ops.serving.errors import ServingError
from aframe_ops.serving.probe import write_sum
from aframe_ops.serving.server import TritonServer, ask

pytestmark = pytest.mark.triton

QUESTION = {"x": {"shape": [3], "datatype": "FP32", "data": [1.0, -2.0, 0.5]}}
ANSWER = {"y": [2.0, -4.0, 1.0]}


@pytest.fixture
def models(tmp_path) -> Path:
    """The model ``sum`` and a second one."""
    folder = write_sum(tmp_path / "models")
    shutil.copytree(folder / "sum", folder / "again")
    text = (folder / "again" / "config.pbtxt").read_text().replace('name: "sum"', 'name: "again"')
    (folder / "again" / "config.pbtxt").write_text(text)
    return folder


def processes_of(server: TritonServer) -> list[psutil.Process]:
    """The server and the workers of its models."""
    top = psutil.Process(server.pid)
    return [top, *top.children(recursive=True)]


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


def test_installing_again_changes_nothing(environment):
    before = (environment.folder / "aframe-server.json").stat().st_mtime_ns
    assert install(environment.folder) == environment
    assert (environment.folder / "aframe-server.json").stat().st_mtime_ns == before
    assert environment.look()["numpy"] == "1.26.4"


def test_models_are_listed_and_answer_and_the_folder_of_logs_is_filled(tritonserver, models):
    server = tritonserver(models)
    assert server.models == ["again", "sum"]
    assert server.url.startswith("127.0.0.1:") and server.http_url != server.url
    for name in server.models:
        assert ask(server, name, QUESTION) == ANSWER
    listening = {c.laddr.ip for p in processes_of(server) for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    counted = {m.labels["model"]: m.value for m in server.metrics() if m.name == "nv_inference_count"}
    assert counted == {"again": 1.0, "sum": 1.0}
    processes = processes_of(server)
    server.stop()
    assert wait_for(lambda: gone(processes), 10, "the end of the server")
    assert "server_id" in server.log.read_text()
    with (server.logs / "triton-metrics.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert {r["model"] for r in rows if r["metric"] == "nv_inference_request_success" and r["value"] == "1"} == {"again", "sum"}


def test_a_killed_server_is_started_again_once_at_the_same_ports(tritonserver, models):
    server = tritonserver(models)
    ports, first = (server.url, server.http_url, server.metrics_url), processes_of(server)
    identity = server.identity
    server.kill()
    assert wait_for(lambda: server.restarts == 1, 20, "the restart")
    server.wait(60)
    assert gone(first)
    assert (server.url, server.http_url, server.metrics_url) == ports
    assert ask(server, "sum", QUESTION) == ANSWER
    assert server.identity != identity
    second = processes_of(server)
    server.kill()
    with pytest.raises(ServingError, match="died 2 times"):
        server.wait(60)
    assert gone(second) and server.restarts == 1


PARENT = """
import sys, threading, time
from pathlib import Path
from aframe_ops.serving.environment import find
from aframe_ops.serving.server import TritonServer
server = TritonServer(Path(sys.argv[1]), Path(sys.argv[2]), environment=find(Path(sys.argv[3])))
# the thread that starts it does not live on
starter = threading.Thread(target=server.__enter__)
starter.start()
starter.join()
print(server.pid, server.http_url, flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_goes_with_the_process_that_started_it(models, environment, tmp_path, number):
    command = [sys.executable, "-c", PARENT, str(models), str(tmp_path / "logs"), str(environment.folder)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline().split()[0])
    top = psutil.Process(pid)
    processes = [top, *top.children(recursive=True), *(p for p in psutil.Process(parent.pid).children() if p.pid != pid)]
    assert len(processes) >= 4  # server, a worker for each model, keeper
    prefix = next(w.split("=")[-1] for w in top.cmdline() if "shm-region-prefix-name" in w)
    assert any(n.startswith(prefix) for n in os.listdir("/dev/shm"))
    parent.send_signal(number)
    parent.wait()
    assert wait_for(lambda: gone(processes), 20, "the end of the server")
    assert not [n for n in os.listdir("/dev/shm") if n.startswith(prefix)]


def test_a_server_whose_keeper_is_killed_goes_too(tritonserver, models):
    server = tritonserver(models, restarts_allowed=0)
    processes = processes_of(server)
    server._keeper.kill()
    assert wait_for(lambda: gone(processes), 30, "the end of the server")
    with pytest.raises(ServingError, match="died 1 times"):
        server.wait(30)


def test_a_model_that_cannot_be_loaded_ends_the_start_with_the_reason(models, environment, tmp_path):
    (models / "sum" / "1" / "model.onnx").write_bytes(b"no model")
    server = TritonServer(models, tmp_path / "logs", environment=environment)
    with pytest.raises(ServingError, match=r"(?s)ended while it started.*triton.log.*failed to load 'sum'"):
        server.__enter__()
    assert psutil.pid_exists(server.pid) is False


def test_a_port_that_is_taken_is_said(tritonserver, models, environment, tmp_path):
    server = tritonserver(models)
    ports = tuple(int(a.rsplit(":", 1)[1].split("/")[0]) for a in (server.url, server.http_url, server.metrics_url))
    with pytest.raises(ServingError, match=rf"^port {ports[0]} is in use; choose another --port$"):
        TritonServer(models, tmp_path / "other", environment=environment, ports=ports).__enter__()
    assert ask(server, "sum", QUESTION) == ANSWER


def test_numpy_2_in_the_environment_is_refused_before_every_start(environment, models, tmp_path, monkeypatch):
    """As if somebody had upgraded it: a package of that name and version, first on the way of the environment's Python."""
    link = tmp_path / "env"
    shutil.copytree(environment.folder / "bin", link / "bin", symlinks=True)
    shutil.copyfile(environment.folder / "pyvenv.cfg", link / "pyvenv.cfg")
    packages = link / environment.packages.relative_to(environment.folder)
    packages.mkdir(parents=True)
    for entry in environment.packages.iterdir():
        if not entry.name.startswith("numpy"):
            (packages / entry.name).symlink_to(entry)
    (packages / "numpy").mkdir()
    (packages / "numpy" / "__init__.py").write_text('__version__ = "2.4.6"\n')
    upgraded = type(environment)(link, environment.python, environment.libdir)
    with pytest.raises(ServingError, match=r"numpy 2.4.6 is installed, expected numpy==1.26.4.*aframe serve --install"):
        TritonServer(models, tmp_path / "logs", environment=upgraded).__enter__()
    assert not (tmp_path / "logs").exists()


# --- sequences on the Python backend --------------------------------------------------------------


@pytest.fixture
def snapshotter(tmp_path) -> Path:
    """Two instances of a snapshotter: 2 detectors, windows of 8 samples every 4, 3 windows for each request."""
    folder = tmp_path / "models" / WHITENED_SNAPSHOTTER
    (folder / "1").mkdir(parents=True)
    signature = Signature(("H1", "L1"), 4.0, 8, {"psd_length": 8, "fduration": 1})
    config = configurations(Layout(signature, stride=4, batch=3, streams=2))[WHITENED_SNAPSHOTTER]
    (folder / "config.pbtxt").write_text(protobuf_text(config))
    onnx.save(window_snapshotter(2, 8, 4, 3), str(folder / "1" / "model.onnx"))
    return folder.parent


def send(client, sequence: int, update: np.ndarray, start: bool = False, end: bool = False) -> np.ndarray:
    from tritonclient.grpc import InferInput

    given = InferInput("stream", list(update.shape), "FP32")
    given.set_data_from_numpy(np.ascontiguousarray(update, np.float32))
    return client.infer(WHITENED_SNAPSHOTTER, [given], sequence_id=sequence, sequence_start=start, sequence_end=end).as_numpy("windows")


def test_sequences_keep_their_own_state_from_start_to_end(tritonserver, snapshotter):
    from tritonclient.grpc import InferenceServerClient

    server = tritonserver(snapshotter)
    rng = np.random.default_rng(1)
    streams = {7: rng.standard_normal((1, 2, 48)), 8: rng.standard_normal((1, 2, 48))}
    got: dict[int, list[np.ndarray]] = {7: [], 8: []}
    with InferenceServerClient(server.url) as client:
        for i in range(4):
            for name, stream in streams.items():
                got[name].append(send(client, name, stream[..., 12 * i : 12 * i + 12], i == 0, i == 3))
        for name, stream in streams.items():
            whole = np.concatenate([np.zeros((2, 4)), stream[0]], axis=1).astype(np.float32)
            wanted = np.lib.stride_tricks.sliding_window_view(whole, 8, axis=1)[:, ::4].transpose(1, 0, 2)
            assert np.array_equal(np.concatenate(got[name]), wanted)
        # both have ended: the next one of that name begins with zeros, and none goes on without a beginning
        again = send(client, 7, streams[7][..., :12], start=True, end=True)
        assert np.array_equal(again, got[7][0])
        with pytest.raises(Exception, match=r"START|must specify the START flag"):
            send(client, 8, streams[8][..., :12])


def test_a_sequence_that_is_started_again_begins_with_zeros(tritonserver, snapshotter):
    from tritonclient.grpc import InferenceServerClient

    server = tritonserver(snapshotter)
    stream = np.random.default_rng(2).standard_normal((1, 2, 24))
    with InferenceServerClient(server.url) as client:
        first = send(client, 3, stream[..., :12], start=True)
        send(client, 3, stream[..., 12:])
        assert np.array_equal(send(client, 3, stream[..., :12], start=True), first)
