"""Serving without Triton: what is arranged, refused and watched. NVIDIA's own server is in tests/triton."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fake_tritonserver
import psutil
import pytest
from rich.console import Console
from tiny_run import wait_for

from aframe_ops.cli.doctor import findings
from aframe_ops.cli.initialise import initialise
from aframe_ops.cli.running import run_all
from aframe_ops.serving import arrangement, environment
from aframe_ops.serving.arrangement import arrange
from aframe_ops.serving.environment import NUMPY, Environment, clean, find, find_python, install
from aframe_ops.serving.errors import ServingError
from aframe_ops.serving.metrics import Table, read
from aframe_ops.serving.probe import write_sum
from aframe_ops.serving.provider import LocalServers
from aframe_ops.serving.server import TritonServer, free_ports
from aframe_ops.site import TritonSite

LOG = logging.getLogger("test")


# --- instances ------------------------------------------------------------------------------------

NETWORK = """name: "net" platform: "{platform}" max_batch_size: 0
input {{ name: "x" data_type: TYPE_FP32 dims: [ -1 ] }} output {{ name: "y" data_type: TYPE_FP32 dims: [ -1 ] }}
instance_group {{ count: 1 kind: {kind} }}
parameters {{ key: "intra_op_thread_count" value {{ string_value: "2" }} }} {more}
"""


def repository(folder: Path, platform: str = "onnxruntime_onnx", kind: str = "KIND_AUTO", more: str = "") -> Path:
    (folder / "net" / "1").mkdir(parents=True)
    (folder / "net" / "1" / "model.onnx").write_bytes(b"network")
    (folder / "net" / "config.pbtxt").write_text(NETWORK.format(platform=platform, kind=kind, more=more))
    return folder


def arranged(folder: Path, source: Path, **settings):
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    assert arrange(source, folder, **settings) == ["net"]
    return text_format.Parse((folder / "net" / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_networks_are_on_every_device_or_on_the_cores(tmp_path):
    source = repository(tmp_path / "source")
    cores = arranged(tmp_path / "cores", source, threads=5)
    (group,) = cores.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_CPU, 1, [])
    assert cores.parameters["intra_op_thread_count"].string_value == "5"
    devices = arranged(tmp_path / "devices", source, devices=[0, 2], per_device=3)
    (group,) = devices.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 3, [0, 2])
    assert devices.parameters["intra_op_thread_count"].string_value == "2"
    assert (tmp_path / "devices" / "net" / "1" / "model.onnx").read_bytes() == b"network"
    assert "KIND_AUTO" in (source / "net" / "config.pbtxt").read_text()


def test_what_keeps_a_state_or_is_meant_for_the_cores_stays_there(tmp_path):
    stateful = repository(tmp_path / "stateful", more="sequence_batching { direct { } }")
    (group,) = arranged(tmp_path / "a", stateful, devices=[0], streams=4).instance_group
    assert (group.kind, group.count) == (group.KIND_CPU, 4)
    meant = repository(tmp_path / "meant", kind="KIND_CPU")
    (group,) = arranged(tmp_path / "b", meant, devices=[0], threads=9).instance_group
    assert (group.kind, group.count) == (group.KIND_CPU, 1)


def test_a_plan_without_a_gpu_a_damaged_configuration_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ServingError, match=r"net is a TensorRT plan, and this machine has no GPU.*engine\.platform"):
        arrange(repository(tmp_path / "plan", "tensorrt_plan"), tmp_path / "a")
    with pytest.raises(ServingError, match=r"net/config\.pbtxt: not a model's configuration"):
        arrange(repository(tmp_path / "bad", more="nonsense: 1"), tmp_path / "b")
    with pytest.raises(ServingError, match="holds no Triton model"):
        arrange(tmp_path / "plan" / "net", tmp_path / "c")


def test_visible_devices_are_those_that_the_step_may_use(monkeypatch):
    for value, wanted in (("", []), ("-1", []), ("3", [0]), ("GPU-a,GPU-b", [0, 1])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert arrangement.gpus() == wanted


# --- environment ----------------------------------------------------------------------------------


def interpreter(path: Path, *answer: object) -> Path:
    """A program that answers as an interpreter asked for its version and library does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    path.chmod(0o755)
    return path


def test_the_first_python_that_will_do_is_taken_and_others_are_explained(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libpython3.12.so.1.0").touch()
    newer = interpreter(tmp_path / "newer", 3, 13, str(tmp_path / "lib"), "libpython3.13.so.1.0")
    static = interpreter(tmp_path / "static", 3, 11, str(tmp_path / "lib"), "libpython3.11.a")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    good = interpreter(tmp_path / "good", 3, 12, str(tmp_path / "lib"), "libpython3.12.so.1.0")
    assert find_python([newer, static, broken, good]) == (good, (3, 12), tmp_path / "lib")
    with pytest.raises(
        ServingError, match=r"(?s)Python 3\.11 or 3\.12.*newer: is Python 3\.13.*static: has no shared.*broken: does not run"
    ):
        find_python([newer, static, broken, tmp_path / "nothing"])


def test_a_python_that_does_not_answer_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_ANSWER", 0.2)
    hung = made_up(tmp_path / "hung", {})
    python = hung.folder / "bin" / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(ServingError, match=r"bin/python -I -c: has not ended after 0\.2 s"):
        hung.look()
    with pytest.raises(ServingError, match=r"bin/python: has not answered after 0\.2 s"):
        find_python([python])


def made_up(folder: Path, versions: dict[str, object]) -> Environment:
    """An environment whose Python says what it has installed."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho '{json.dumps(versions)}'\n")
    python.chmod(0o755)
    made = Environment(folder, (3, 12), folder)
    made.executable.parent.mkdir(parents=True)
    made.executable.touch()
    return made


def test_numpy_2_is_refused_before_the_server_is_started(tmp_path):
    fine = made_up(tmp_path / "fine", {"numpy": "1.26.4", "onnxruntime": "1.31.1", "providers": []})
    assert fine.look()["numpy"] == "1.26.4"
    upgraded = made_up(tmp_path / "upgraded", {"numpy": "2.4.6", "onnxruntime": "", "providers": []})
    with pytest.raises(ServingError, match=rf"numpy 2\.4\.6 is installed, expected {NUMPY}.*without an error.*aframe serve --install"):
        TritonServer(write_sum(tmp_path / "models"), tmp_path / "logs", environment=upgraded).__enter__()
    assert not (tmp_path / "logs").exists()


def test_an_environment_that_is_not_there_or_not_finished_is_said(tmp_path):
    with pytest.raises(ServingError, match=r"holds no Triton server; install it with `aframe serve --install"):
        find(tmp_path)
    (tmp_path / environment.RECORD).write_text('{"complete": false}')
    with pytest.raises(ServingError, match="was not finished"):
        find(tmp_path)


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ServingError, match="is not empty and was not made by"):
        install(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_installation_that_fails_is_made_anew_the_next_time(tmp_path, monkeypatch):
    """The half-made folder is taken for what it is; nothing of it is left in the next one."""
    python = tmp_path / "python"
    # makes an environment of itself, and its pip finds nothing
    python.write_text(
        '#!/bin/sh\ncase "$*" in\n*venv*) shift 3; mkdir -p "$1/bin"; cp "$0" "$1/bin/python";;\n*--version*) ;;\n'
        "*) echo no such package >&2; exit 1;;\nesac\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(environment, "find_python", lambda: (python, (3, 12), tmp_path))
    folder = tmp_path / "env"
    for _ in range(2):
        with pytest.raises(ServingError, match=r"(?s)nvidia-pytriton==0\.7\.0 cannot be installed.*no such package"):
            install(folder)
        assert not (folder / "left").exists()
        (folder / "left").touch()
        with pytest.raises(ServingError, match="was not finished"):
            find(folder)


def test_credentials_are_not_handed_to_the_server(monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "APPTAINER_DOCKER_PASSWORD", "PYTHONPATH", "LD_PRELOAD"):
        monkeypatch.setenv(name, "x")
    # a container's client must find its daemon
    for name in ("CUDA_VISIBLE_DEVICES", "DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.setenv(name, "1")
    assert {"PATH", "CUDA_VISIBLE_DEVICES", "DOCKER_HOST", "DOCKER_CONTEXT"} <= set(clean())
    assert not [k for k, v in clean().items() if v == "x"]


def test_a_search_that_needs_a_server_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    run, _ = initialise(tmp_path / "run", "demo")
    monkeypatch.setenv("AFRAME__INFERENCE__MODE", "triton")
    monkeypatch.setenv("AFRAME_TRITON_ENV", str(tmp_path / "nowhere"))
    for name in run.variables:
        monkeypatch.setenv(name, "")  # so that what the run sets is undone
    with pytest.raises(ServingError, match=r"nowhere: holds no Triton server; install it with `aframe serve --install"):
        run_all(run, Console(quiet=True))
    assert not (run.path / "store").exists()
    assert [f.text for f in findings(run.path) if f.level == "error" and "aframe serve --install" in f.text]
    (run.path / "site.yaml").write_text("triton: {command: [no-such-program, run]}\n")
    with pytest.raises(ServingError, match=r"triton\.command begins with no-such-program"):
        run_all(run, Console(quiet=True))
    (run.path / "site.yaml").write_text("triton: {url: 'elsewhere:8001'}\n")
    assert [f.text for f in findings(run.path) if "elsewhere:8001" in f.text and f.level == "ok"]


# --- life -----------------------------------------------------------------------------------------


def command(notes: Path) -> list[str]:
    """As a container's: a program, its arguments, and the models' folder among them."""
    return [sys.executable, fake_tritonserver.__file__, str(notes), "-v", "{repository}:{repository}:ro", "tritonserver"]


def processes(notes: Path) -> list[int]:
    return [int(p.name.split("-")[1]) for p in notes.glob("*-*")]


def alive(pids: list[int]) -> list[int]:
    return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


def test_a_server_is_started_by_the_command_of_the_site_and_ended_with_its_processes(models, notes, tmp_path):
    site = TritonSite(command=command(notes), ready_seconds=30)
    servers = LocalServers(site, tmp_path / "logs")
    server = servers.open(models, LOG)
    assert servers.open(models, LOG) is server and server.models == ["sum"] and server.local
    assert server._arrangement["streams"] == 1, "a search has no sequences, and each would be a process"
    assert [(m.name, m.labels["model"], m.value) for m in server.metrics()] == [("nv_inference_count", "sum", 3.0)]
    (started,) = notes.glob("started-*")
    words = json.loads(started.read_text())["words"]
    seen = words[2].split(":")[0]
    assert words[3:5] == ["tritonserver", f"--model-repository={seen}"] and f"--id={server.identity}" in words
    assert {w.split("=")[1] for w in words if "-address" in w} == {"127.0.0.1"}
    pids = processes(notes)
    assert len(pids) == 2 and alive(pids) == pids
    servers.close()
    servers.close()
    assert alive(pids) == [] and not Path(seen).exists()
    assert "ready to serve" in server.log.read_text()
    with (server.logs / "triton-metrics.csv").open() as f:
        assert [(r["metric"], r["model"], r["value"]) for r in csv.DictReader(f)] == [("nv_inference_count", "sum", "3")]


def test_a_server_that_dies_is_started_again_once(models, notes, tmp_path):
    with TritonServer(models, tmp_path / "logs", command=command(notes)) as server:
        before, identity, url = processes(notes), server.identity, server.url
        server.kill()
        server.wait(30)
        assert server.restarts == 1 and server.identity != identity and server.url == url and not server.failure
        assert alive(before) == []
        server.kill()
        with pytest.raises(ServingError, match="died 2 times and is not started again"):
            server.wait(30)
        assert "(1)" in server.log.read_text()
        assert alive(processes(notes)) == []


def test_answers_that_break_off_do_not_end_the_watch(models, notes, tmp_path):
    with TritonServer(models, tmp_path / "logs", command=command(notes), sample=0.1) as running:
        (notes / "half").touch()
        with pytest.raises(ServingError, match="metrics cannot be read"):
            running.metrics()
        (notes / "asked").unlink()
        wait_for((notes / "asked").exists, 20, "a sample of the metrics")
        running.kill()
        running.wait(20)
        assert running.restarts == 1


def test_a_start_that_fails_gives_the_reason_from_the_log(models, notes, tmp_path):
    (notes / "refuse").touch()
    with pytest.raises(ServingError, match=r"(?s)ended while it started.*triton\.log.*failed to load 'sum'"):
        TritonServer(models, tmp_path / "logs", command=command(notes)).__enter__()
    (notes / "refuse").unlink()
    (notes / "late").touch()
    with pytest.raises(ServingError, match=r"not ready after 1 s; see .*triton\.log$"):
        TritonServer(models, tmp_path / "logs", command=command(notes), ready=1.0).__enter__()
    assert alive(processes(notes)) == []
    with pytest.raises(ServingError, match="no-such-program does not run"):
        TritonServer(models, tmp_path / "logs", command=["no-such-program"]).__enter__()


def test_a_server_that_is_stopped_while_it_starts_again_leaves_nothing(models, notes, tmp_path, monkeypatch):
    """`stop` falls between the start of the keeper and what it is told: that is no error of the watch, and no server is left."""
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: raised.append(what.exc_value))
    with TritonServer(models, tmp_path / "logs", command=command(notes)) as running:
        first, popen = running._keeper, subprocess.Popen

        def told_too_late(*words, **settings):
            made = popen(*words, **settings)
            running._stopping.set()
            made.stdin.close()
            return made

        monkeypatch.setattr(subprocess, "Popen", told_too_late)
        running.kill()
        running._watcher.join(30)
        assert not running._watcher.is_alive() and not raised and "was stopped while it started" in running.failure
        assert first.stdin.closed and first.stdout.closed, "pipes of the keeper before"
        with pytest.raises(ServingError, match="the Triton server was stopped"):
            running.wait(5)
    assert alive(processes(notes)) == [] and running._keeper.returncode is not None


PARENT = """
import signal, sys, threading, time
# in a suite that was started with SIGINT ignored dagster has SIGTERM ignored too, and that is inherited
signal.signal(signal.SIGTERM, signal.SIG_DFL)
from pathlib import Path
from aframe_ops.serving.server import TritonServer
server = TritonServer(Path(sys.argv[1]), Path(sys.argv[2]), command=sys.argv[3:])
# the thread that starts it does not live on
starter = threading.Thread(target=server.__enter__)
starter.start()
starter.join()
print("ready", flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_goes_with_the_process_that_started_it(models, notes, tmp_path, number):
    words = [sys.executable, "-c", PARENT, str(models), str(tmp_path / "logs"), *command(notes)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        pids = processes(notes)
        assert len(alive(pids)) == 2
        parent.send_signal(number)
    assert wait_for(lambda: not alive(pids), 15, "the end of the server")


def test_a_fork_that_holds_the_pipe_does_not_keep_the_server(models, notes, tmp_path):
    forked = PARENT.replace("print(", "import os\nif os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\nprint(")
    words = [sys.executable, "-c", forked, str(models), str(tmp_path / "logs"), *command(notes)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        pids = processes(notes)
        parent.kill()
        assert wait_for(lambda: not alive(pids), 15, "the end of the server")
        os.killpg(parent.pid, signal.SIGKILL)


def test_ports_are_free_and_different():
    ports = free_ports("127.0.0.1", 5)
    assert len(set(ports)) == 5 and all(p > 1023 for p in ports)


@pytest.mark.parametrize(
    ("host", "reached", "grpc", "http"),
    [
        ("::1", "[::1]", "[::1]", "ipv6:::1"),
        ("::", "[::1]", "[::]", "ipv6:::"),
        ("0.0.0.0", "127.0.0.1", "0.0.0.0", "0.0.0.0"),
        ("node7", "node7", "node7", "node7"),
    ],
)
def test_an_address_is_written_as_each_service_and_its_clients_read_it(models, tmp_path, host, reached, grpc, http):
    server = TritonServer(models, tmp_path / "logs", command=["tritonserver"], host=host, ports=(1, 2, 3))
    assert (server.url, server.http_url, server.metrics_url) == (f"{reached}:1", f"{reached}:2", f"http://{reached}:3/metrics")
    addresses = dict(word[2:].split("=", 1) for word in server._arguments(models) if "-address=" in word)
    assert addresses == {"grpc-address": grpc, "http-address": http, "metrics-address": http}


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_are_read_and_kept_when_they_change(tmp_path):
    text = '# HELP a b\nnv_x{model="m",version="1"} 2\nnv_gpu{gpu_uuid="GPU-1"} 0.5\nnv_plain 1e+06\n\nno value\n'
    found = read(text)
    assert [(m.name, m.value) for m in found] == [("nv_x", 2.0), ("nv_gpu", 0.5), ("nv_plain", 1e6)]
    table = Table(tmp_path / "metrics.csv")
    table.add(found, now=1.0)
    table.add([found[0]._replace(value=3.0), *found[1:]], now=2.0)
    with (tmp_path / "metrics.csv").open() as f:
        rows = [tuple(r.values()) for r in csv.DictReader(f)]
    assert rows == [
        ("1.000", "nv_x", "m", "1", "", "2"),
        ("1.000", "nv_gpu", "", "", "GPU-1", "0.5"),
        ("1.000", "nv_plain", "", "", "", "1e+06"),
        ("2.000", "nv_x", "m", "1", "", "3"),
    ]
