"""What the fork server imports beforehand must survive a fork (no threads, no GPU); and it goes when its run worker does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import psutil
from tiny_run import wait_for

from aframe_ops.executor.forkserver import Server

PROBE = """
import importlib, json, os
import torch
asked = []
torch._C._cuda_getDeviceCount = lambda: asked.append("GPUs were counted") or 0
from aframe_ops.executor.forkserver import SCIENCE, warm
warm(None, science=True)
import sys
from aframe_ops.executor.worker import _set_threads
threads = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 1
os.environ["OMP_NUM_THREADS"] = "3"
_set_threads()
print(json.dumps({
    "missing": [m for m in SCIENCE if m not in sys.modules],
    "threads": threads,
    "gpu": asked + [w for w in ["CUDA was initialised"] if torch.cuda.is_initialized()],
    "torch": torch.get_num_threads(),
}))
"""


def test_preloaded_science_starts_no_thread_and_asks_for_no_gpu():
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"missing": [], "threads": 1, "gpu": [], "torch": 3}


RUN_WORKER = """
import socket, subprocess, sys, time
ours, theirs = socket.socketpair()
server = subprocess.Popen(
    [sys.executable, "-m", "aframe_ops.executor.forkserver", str(theirs.fileno()), "-", "science"], pass_fds=[theirs.fileno()]
)
print(server.pid, flush=True)
time.sleep(60)
"""


def test_a_run_worker_killed_while_the_server_still_imports_is_noticed(tmp_path):
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "torch.py").write_text(f"import time\nopen({str(tmp_path / 'importing')!r}, 'w').close()\ntime.sleep(60)\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(slow), os.environ.get("PYTHONPATH")]))}
    worker = subprocess.Popen([sys.executable, "-c", RUN_WORKER], stdout=subprocess.PIPE, text=True, env=env)
    server = psutil.Process(int(worker.stdout.readline()))
    wait_for((tmp_path / "importing").exists, 60, "the slow import")
    worker.kill()
    worker.wait()
    assert wait_for(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 5, "the end of the fork server")


def test_a_run_worker_that_dies_with_messages_unread_is_noticed():
    ours, theirs = socket.socketpair()
    server = Server(theirs)
    server.send({"started": "a step", "pid": 1})
    ours.close()
    assert server.read() is False
