"""A server of segments on this machine, for queries and vetoes."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import pytest


class _Server(BaseHTTPRequestHandler):
    """GWOSC's /api/v2/timelines and DQSegDB's /dq, over {flag: [(start, stop)]}."""

    def do_GET(self):
        url = urlparse(self.path)
        parts, query = url.path.strip("/").split("/"), {k: v[0] for k, v in parse_qs(url.query).items()}
        self.server.asked.append(self.path)
        answer = None
        if parts[:3] == ["api", "v2", "timelines"] and parts[-1] == "segments" and parts[3] in self.server.flags:
            start, stop, page = int(query["start"]), int(query["stop"]), int(query.get("page", 1))
            hits = [{"start": max(a, start), "stop": min(b, stop)} for a, b in self.server.flags[parts[3]] if a < stop and b > start]
            pages = max(1, -(-len(hits) // 2))
            link = f"http://{self.headers['Host']}{url.path}?start={start}&stop={stop}&page={page + 1}"
            answer = {
                "results_count": len(hits),
                "num_pages": pages,
                "next": link if page < pages else None,
                "results": hits[2 * page - 2 : 2 * page],
            }
        elif parts[0] == "dq" and ":".join(parts[1:4]) in self.server.flags:
            flag = self.server.flags[":".join(parts[1:4])]
            answer = {
                "known": [[int(query["s"]), int(query["e"])]],
                "active": flag,
                "ifo": parts[1],
                "name": parts[2],
                "version": int(parts[3]),
            }
        body = json.dumps(answer).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def flag_server():
    """A running server: `url`, `flags` to fill, and the paths that were `asked`."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    http.flags, http.asked = {}, []
    http.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield http
    http.shutdown()
    http.server_close()
    thread.join()
