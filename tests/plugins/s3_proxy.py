"""A proxy in front of an S3 server that does to its requests what networks and servers do at times."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import time
from urllib.parse import urlsplit

import pytest

REFUSALS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "429": (429, "TooManyRequests"),
    "501": (501, "NotImplemented"),
    "denied": (403, "AccessDenied"),
    "skewed": (403, "RequestTimeTooSkewed"),
    "full": (507, "InsufficientStorage"),
}
SKEW_S = 3600


@dataclass
class Fault:
    """What happens to the next `times` requests of `method` whose address holds `where`.

    `kind`: one of `REFUSALS`; "drop" the connection before the server hears of it; "lost": after the server has done it; "cut" the
    answer's body in its middle; "strip:NAME" the request's header NAME.
    """

    kind: str
    times: int
    method: str = ""
    where: str = ""
    met: int = 0


@dataclass
class Proxy:
    """`requests` are (method, address, headers) of all that came; `faults` may be changed at any time."""

    target: tuple[str, int]
    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, kind: str, times: int = 1, method: str = "", where: str = "") -> Fault:
        self.faults.append(Fault(kind, times, method, where))
        return self.faults[-1]

    def next(self, method: str, path: str) -> str:
        with self.guard:
            for f in self.faults:
                if f.met < f.times and f.method in ("", method) and f.where in path:
                    f.met += 1
                    return f.kind
        return ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, *args) -> None:
        pass

    def _any(self) -> None:
        proxy, sent = self.proxy, dict(self.headers)
        data = self.rfile.read(int(sent.get("Content-Length", 0)))
        proxy.requests.append((self.command, self.path, sent))
        kind = proxy.next(self.command, self.path)
        if kind == "drop":
            return self._hang_up()
        if kind in REFUSALS:
            return self._refuse(*REFUSALS[kind], skewed=kind == "skewed")
        if kind.startswith("strip:"):
            sent = {k: v for k, v in sent.items() if k.lower() != kind.removeprefix("strip:")}
        server = http.client.HTTPConnection(*proxy.target, timeout=60)
        try:
            server.request(self.command, self.path, data or None, sent)
            answer = server.getresponse()
            body = answer.read()
        finally:
            server.close()
        if kind == "lost":
            return self._hang_up()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        head = self.command == "HEAD"
        self.send_header("Content-Length", answer.getheader("Content-Length", "0") if head else str(len(body)))
        self.end_headers()
        if kind == "cut":
            self.wfile.write(body[: len(body) // 2])
            return self._hang_up()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

    def _hang_up(self) -> None:
        self.close_connection = True

    def _refuse(self, status: int, code: str, skewed: bool) -> None:
        body = b"" if self.command == "HEAD" else f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Date", formatdate(time() - (SKEW_S if skewed else 0), usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is nothing to report."""


@pytest.fixture
def proxy(bucket, s3_settings, monkeypatch) -> Iterator[Proxy]:
    """A proxy that the environment names as the server of `bucket`; pauses between tries are short."""
    at = urlsplit(s3_settings)
    found = Proxy((at.hostname, at.port))
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": found}))
    found.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", found.url)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
    monkeypatch.setattr("aframe_assets.store.s3_connection.PAUSE_S", 0.01)
    yield found
    with suppress(OSError):
        server.shutdown()
        server.server_close()
    thread.join(timeout=10)
