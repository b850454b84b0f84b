"""Stands for a tritonserver in tests of its life: takes its options, serves its HTTP health and metrics, loads nothing.

Its first argument, a folder, may hold ``refuse`` (it ends at once with an error), ``die`` (it is killed, and takes the file with it),
``late`` (its models are never ready), ``half`` (its metrics break off) and gets a file ``started-PID`` with the command line for each
start.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REFUSAL = """W0101 00:00:00.1 7 pinned_memory_manager.cc:271] Unable to allocate pinned system memory
I0101 00:00:00.2 7 cuda_memory_manager.cc:117] CUDA memory pool disabled
E0101 00:00:00.3 7 cuda_driver.cc:1] CudaDriverHelper has not been initialized.
E0101 00:00:00.4 7 model_lifecycle.cc:642] failed to load 'sum' version 1
+-------+---------+
| Model | Version |
+-------+---------+
I0101 00:00:00.5 7 server.cc:676] the end
"""


def main() -> int:
    words = sys.argv[1:]
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    notes = Path(words[0])
    (notes / f"started-{os.getpid()}").write_text(json.dumps({"words": words, "env": dict(os.environ)}))
    if (notes / "refuse").exists():
        sys.stderr.write(REFUSAL)
        return 1
    if (notes / "die").exists():
        (notes / "die").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    # as Triton's Python backend does, it has a process of its own
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    (notes / f"child-{child.pid}").touch()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            late = "models" in self.path and (notes / "late").exists()
            body = {"/v2": json.dumps({"name": options["id"]}), "/metrics": 'nv_inference_count{model="sum",version="1"} 3\n'}
            self.send_response(400 if late else 200)
            if self.path == "/metrics" and (notes / "half").exists():
                self.send_header("Content-Length", "1000")
                (notes / "asked").touch()
            self.end_headers()
            self.wfile.write(body.get(self.path, "").encode())

        def log_message(self, *_: object) -> None:
            pass

    for service in ("http", "metrics"):
        served = ThreadingHTTPServer((options[f"{service}-address"], int(options[f"{service}-port"])), Handler)
        threading.Thread(target=served.serve_forever, daemon=True).start()
    sys.stderr.write("I0101 server.cc] ready to serve\n")
    signal.sigwait({signal.SIGTERM})
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sys.exit(main())
