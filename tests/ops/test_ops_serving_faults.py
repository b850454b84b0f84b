"""Serving when something is in the way: ports and folders that are taken, servers and parents that are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fake_tritonserver
import pytest
from filelock import FileLock
from tiny_run import wait_for

from aframe_ops.cli import serving
from aframe_ops.serving import environment, server
from aframe_ops.serving.environment import install
from aframe_ops.serving.errors import ServingError
from aframe_ops.serving.ports import free_ports, require_free
from aframe_ops.serving.server import TritonServer


def command(notes: Path) -> list[str]:
    return [sys.executable, fake_tritonserver.__file__, str(notes), "{repository}"]


def works(notes: Path) -> list[Path]:
    """Work folders that the servers were given."""
    return [Path(json.loads(p.read_text())["words"][1]).parent for p in notes.glob("started-*")]


# --- starts ---------------------------------------------------------------------------------------


def test_a_server_that_is_killed_while_it_starts_is_started_again(models, notes, tmp_path):
    (notes / "die").touch()
    with TritonServer(models, tmp_path / "logs", command=command(notes)) as running:
        assert running.restarts == 1 and not running.failure and len(works(notes)) == 2
        assert "died and is started again (1)" in running.log.read_text()
        running.kill()
        with pytest.raises(ServingError, match="died 2 times"):
            running.wait(30)
    (notes / "die").touch()
    with pytest.raises(ServingError, match="ended while it started"):
        TritonServer(models, tmp_path / "none", command=command(notes), restarts_allowed=0).__enter__()
    assert len(works(notes)) == 3


def test_a_server_that_is_killed_while_it_starts_again_uses_up_another(models, notes, tmp_path):
    with TritonServer(models, tmp_path / "logs", command=command(notes), restarts_allowed=2) as running:
        (notes / "die").touch()
        running.kill()
        wait_for(lambda: running.restarts == 2, 20, "the second start")
        running.wait(20)
        assert not running.failure and len(works(notes)) == 3


def test_a_server_that_refuses_is_not_started_again_and_only_errors_are_repeated(models, notes, tmp_path):
    (notes / "refuse").touch()
    with pytest.raises(ServingError) as raised:
        TritonServer(models, tmp_path / "logs", command=command(notes)).__enter__()
    assert len(works(notes)) == 1
    first, *rest = str(raised.value).splitlines()
    assert first == f"the Triton server ended while it started; see {tmp_path / 'logs' / 'triton.log'}, which says:"
    assert rest == ["  E0101 00:00:00.4 7 model_lifecycle.cc:642] failed to load 'sum' version 1"]


def test_what_a_program_that_is_no_server_says_is_repeated(models, tmp_path):
    words = ["sh", "-c", "echo 'docker: no such image' >&2; echo; exit 1"]
    with pytest.raises(ServingError, match=r"which says:\n  docker: no such image$"):
        TritonServer(models, tmp_path / "logs", command=words).__enter__()


# --- ports ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_port_in_use_is_said_before_anything_is_started(models, notes, tmp_path, index):
    ports = tuple(free_ports("127.0.0.1", 3))
    with socket.create_server(("127.0.0.1", ports[index])):
        with pytest.raises(ServingError, match=rf"^port {ports[index]} is in use; choose another --port$"):
            TritonServer(models, tmp_path / "logs", command=command(notes), ports=ports).__enter__()
    assert not works(notes) and not (tmp_path / "logs").exists()
    require_free("127.0.0.1", ports)


def test_an_address_of_another_machine_is_said():
    with pytest.raises(ServingError, match=r"^192\.0\.2\.1, port 8001: cannot be listened at: "):
        require_free("192.0.2.1", [8001])


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"id": 3}', b"\xff"])
def test_another_service_at_the_port_is_not_taken_for_the_server(models, notes, tmp_path, monkeypatch, body):
    class Foreign(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    # it comes after the look at the ports
    monkeypatch.setattr(server, "require_free", lambda host, ports: None)
    grpc, metrics = free_ports("127.0.0.1", 2)
    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        ports = (grpc, foreign.server_port, metrics)
        with pytest.raises(ServingError, match="ended while it started"):
            TritonServer(models, tmp_path / "logs", command=command(notes), ports=ports).__enter__()
        foreign.shutdown()


# --- folders --------------------------------------------------------------------------------------


def test_a_place_where_nothing_can_be_installed_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    for place, reason in (
        ("/proc/zz", "/proc takes no files"),
        (tmp_path / "file" / "x", "takes no files"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(ServingError, match=rf"^{place}: .*{reason}.*name (another|a) folder"):
            install(Path(place))
    assert os.listdir(tmp_path) == ["file"]


def test_who_waits_for_another_installation_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(environment, "_install", lambda folder, wanted: folder)
    told: list[str] = []
    with FileLock(tmp_path / "env.lock"):
        with pytest.raises(ServingError, match=r"env: another process has been installing for 0\.2 s"):
            install(tmp_path / "env", wait=0.2, tell=told.append)
    assert told == [f"{tmp_path / 'env'}: waiting for another installation"]
    assert install(tmp_path / "env", tell=told.append) == tmp_path / "env" and len(told) == 1
    with FileLock(tmp_path / "env.lock", timeout=0):
        pass


def test_servers_of_the_same_models_have_logs_of_their_own(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, logs = serving.repository_of(models)
    monkeypatch.setattr(os, "getpid", lambda: 7)
    _, _, others = serving.repository_of(models)
    assert logs != others and logs.parent == others.parent == Path("triton-logs") and others.name.endswith("-7")


SERVE = """
import sys
from pathlib import Path
from aframe_ops.serving.server import TritonServer
with TritonServer(Path(sys.argv[1]), Path(sys.argv[2]), command=sys.argv[3:]) as server:
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, None])
def test_nothing_is_left_in_the_temporary_folder(models, notes, tmp_path, number):
    (tmp_path / "tmp").mkdir()
    words = [sys.executable, "-c", SERVE, str(models), str(tmp_path / "logs"), *command(notes)]
    variables = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as parent:
        assert parent.stdout.readline() == "ready\n"
        (work,) = works(notes)
        assert work.parent == tmp_path / "tmp" and (work / "models").is_dir()
        if number:
            parent.send_signal(number)
        else:
            parent.stdin.write("\n")
            parent.stdin.flush()
    wait_for(lambda: not list((tmp_path / "tmp").glob("aframe-triton-*")), 20, "the end of the work folder")
    assert parent.returncode == (-number if number else 0)


def test_a_restart_keeps_the_work_folder(models, notes, tmp_path):
    with TritonServer(models, tmp_path / "logs", command=command(notes)) as running:
        running.kill()
        running.wait(20)
        first, second = works(notes)
        assert first == second and (first / "models" / "sum").is_dir()
    assert not first.exists()
