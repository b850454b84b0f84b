"""Stands for a tritonserver in tests of its life: takes its options, serves its HTTP health and metrics, loads nothing.

``FAKE_TRITON``, a folder, may hold ``refuse`` (it ends at once with an error), ``late`` (its models are never ready), ``half`` (its
metrics break off) and gets a file ``started-PID`` with the command line for each start.
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


def main() -> int:
    words = sys.argv[1:]
    options = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    notes = Path(words[0])
    (notes / f"started-{os.getpid()}").write_text(json.dumps({"words": words, "env": dict(os.environ)}))
    if (notes / "refuse").exists():
        sys.stderr.write("E0101 model_lifecycle.cc] failed to load 'sum'\n")
        return 1
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
