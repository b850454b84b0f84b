"""What the fork server imports beforehand must survive a fork: no threads, no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

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
