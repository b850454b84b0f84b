"""A Triton server from its start to its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aframe_ops.serving import keeper
from aframe_ops.serving.arrangement import arrange, gpus
from aframe_ops.serving.environment import Environment, clean, find
from aframe_ops.serving.errors import ServingError
from aframe_ops.serving.log import reasons
from aframe_ops.serving.metrics import Metric, Table, read
from aframe_ops.serving.ports import free_ports, require_free

LOOPBACK = "127.0.0.1"
GRACE, EXIT = 10.0, 3
"""Seconds that a server has to end when it is told to, and that it gives the requests that it is answering."""

_POLL = 0.1
_PORT_TRIES = 3
_NO_ANSWER = (OSError, http.client.HTTPException, ValueError)
"""Raised by an HTTP request that finds nobody, is cut off, or is answered by something else that listens there."""


class TritonServer:
    """Serves a model repository while its context is entered.

    The server is ended with this process, however that ends (see `keeper`, also on containers). If it dies by itself it is started again,
    on the same ports, `restarts_allowed` times; state of sequences is lost then, and every start has an identity of its own
    (``aframe-...``, the name in the server's metadata) by which a client sees it.

    Attributes:
        url: host and port of the gRPC service.
        http_url: host and port of the HTTP service.
        local: True.
        models: names.
        identity: of the present start.
        restarts: how often the server has been started again.
        failure: why it will not be started again; empty while it runs.
        pid: process id of the server (of the container's client, when it runs in a container); None before the start.

    Args:
        repository: folder of models.
        logs: folder for ``triton.log`` and ``triton-metrics.csv``; made when it is not there.
        environment: what `find` found; None looks for it. Not needed with `command`.
        command: what starts a tritonserver elsewhere, as words of a command line, for example a container's. In each word
            ``{repository}`` stands for the folder of the models, which must be seen inside at the same path.
        host: address to listen at. Anything but loopback lets everyone who reaches it use the models and read the metrics.
        ports: of gRPC, HTTP and metrics; None takes free ones.
        devices: GPUs; None takes all that may be used, if the server can use them.
        per_device: instances of the network on each.
        streams, threads: see `arrange`. `streams` of the installed server on a CPU: as many as cores by default, at least 2.
        ready: seconds until all models must be ready.
        restarts_allowed: starts after the first.
        sample: seconds between samples of the metrics.
    """

    local = True

    def __init__(
        self,
        repository: Path,
        logs: Path,
        *,
        environment: Environment | None = None,
        command: Sequence[str] | None = None,
        host: str = LOOPBACK,
        ports: tuple[int, int, int] | None = None,
        devices: Sequence[int] | None = None,
        per_device: int = 1,
        streams: int | None = None,
        threads: int | None = None,
        ready: float = 180.0,
        restarts_allowed: int = 1,
        sample: float = 5.0,
    ) -> None:
        self.repository, self.logs, self.host = Path(repository).resolve(), Path(logs), host
        self.environment = None if command else environment or find()
        self.command = list(command or ())
        self.restarts, self.pid, self.models, self.identity = 0, None, [], ""
        self._ports, self._fixed = ports, ports is not None
        self._arrangement = {"devices": devices, "per_device": per_device, "streams": streams, "threads": threads}
        self._ready_seconds, self._restarts_allowed, self._sample = ready, restarts_allowed, sample
        self._keeper: subprocess.Popen[bytes] | None = None
        self._work: Path | None = None
        self._ready, self._stopping, self.failure = threading.Event(), threading.Event(), ""
        self._watcher: threading.Thread | None = None
        # a server on loopback is not reached through a proxy
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.logs / "triton.log"

    @property
    def url(self) -> str:
        return f"{self._reached}:{self._port(0)}"

    @property
    def http_url(self) -> str:
        return f"{self._reached}:{self._port(1)}"

    @property
    def metrics_url(self) -> str:
        """Address of the metrics, in Prometheus' text format."""
        return f"http://{self._reached}:{self._port(2)}/metrics"

    @property
    def _reached(self) -> str:
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host

    def _port(self, index: int) -> int:
        if self._ports is None:
            raise ServingError("the server was not started; enter its context first")
        return self._ports[index]

    def __enter__(self) -> TritonServer:
        """Starts it and waits until every model is ready.

        Raises:
            ServingError: it did not start, or was not ready in time, with the errors of its log; or a port is taken.
        """
        if self._fixed:
            require_free(self.host, self._ports)
        devices = self._arrangement["devices"]
        if self.environment is not None:
            has_cuda = "CUDAExecutionProvider" in self.environment.look()["providers"]
            if devices and not has_cuda:
                raise ServingError(
                    f"{self.environment.folder}: has no CUDA, and GPUs {list(devices)} were asked for; install it with --gpu"
                )
            devices = (gpus() if devices is None else devices) if has_cuda else []
            if not devices and self._arrangement["streams"] is None:
                # every stream is a Python process here, and more of them than cores bring nothing
                self._arrangement["streams"] = max(2, len(os.sched_getaffinity(0)))
        elif devices is None:
            devices = gpus()
        self.logs.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        self._work = Path(tempfile.mkdtemp(prefix="aframe-triton-"))
        try:
            self.models = arrange(self.repository, self._work / "models", **{**self._arrangement, "devices": devices})
            if self.environment is not None:
                self.environment.backends(self._work / "backends")
            self._table = Table(self.logs / "triton-metrics.csv")
            self._first_start()
        except BaseException:
            self.stop()
            raise
        self._watcher = threading.Thread(target=self._watch, name="triton-watch", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the server; may be called again."""
        if not self._stopping.is_set() and self._ready.is_set():
            self._keep_metrics()
        self._stopping.set()
        self._end_keeper()
        if self._watcher is not None and self._watcher is not threading.current_thread():
            self._watcher.join()
            # the watch may have been about to start another
            self._end_keeper()
        self._ready.clear()
        if self._work is not None:
            shutil.rmtree(self._work, ignore_errors=True)
            self._work = None

    def kill(self) -> None:
        """Kills the server as the kernel would: what tests of clients and of restarts do."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> None:
        """Returns when the server is ready, at once if it is: what a client calls when its connection has broken.

        Raises:
            ServingError: it was stopped, has died too often, or is not ready after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        # a death is noticed a moment after it; until then only the server itself can say that it is there
        while not (self._ready.wait(_POLL) and self._is_ready()):
            if self._stopping.is_set():
                raise ServingError("the Triton server was stopped")
            if self.failure:
                raise ServingError(self.failure)
            if deadline is not None and time.monotonic() > deadline:
                raise ServingError(f"the Triton server is not ready after {timeout:g} s{self._tail()}")
            time.sleep(_POLL)

    def metrics(self) -> list[Metric]:
        """What the server counts now.

        Raises:
            ServingError: it does not answer.
        """
        try:
            return read(self._get(self.metrics_url))
        except _NO_ANSWER as e:
            raise ServingError(f"the Triton server's metrics cannot be read: {e}") from None

    def _get(self, address: str, data: bytes | None = None) -> str:
        with self._http.open(urllib.request.Request(address, data=data), timeout=5) as answer:
            return answer.read().decode()

    def _first_start(self) -> None:
        ports_tried = 0
        while True:
            if not self._fixed:
                self._ports, ports_tried = tuple(free_ports(self.host, 3)), ports_tried + 1
            try:
                self._start()
                return
            except ServingError:
                if self._was_killed() and self.restarts < self._restarts_allowed:
                    self._count_restart()
                    continue
                # somebody else took a port between its choice and the server's start
                taken = "already in use" in self.log.read_text(errors="replace").lower()
                if self._fixed or not taken or ports_tried >= _PORT_TRIES:
                    raise
                self._end_keeper()
                self.log.write_bytes(b"")

    def _was_killed(self) -> bool:
        """Something outside ended the server, so that it may do well another time."""
        return self._keeper is not None and self._keeper.poll() == keeper.KILLED and not self._stopping.is_set()

    def _count_restart(self) -> None:
        self.restarts += 1
        with self.log.open("a") as f:
            f.write(f"--- the server died and is started again ({self.restarts}) ---\n")

    def _arguments(self, models: Path) -> list[str]:
        grpc, http, metrics = self._ports
        self.identity = f"aframe-{uuid.uuid4().hex}"
        out = [
            f"--model-repository={models}",
            f"--id={self.identity}",
            f"--exit-timeout-secs={EXIT}",
        ]
        # the two libraries that listen write an IPv6 address each in a way of its own
        bracketed, prefixed = (f"[{self.host}]", f"ipv6:{self.host}") if ":" in self.host else (self.host, self.host)
        for service, port, address in (("grpc", grpc, bracketed), ("http", http, prefixed), ("metrics", metrics, prefixed)):
            out += [f"--{service}-port={port}", f"--{service}-address={address}"]
        return out

    def _start(self) -> None:
        """One start, and the wait for all models."""
        models, shared_memory = self._work / "models", ""
        if self.environment is None:
            command = [word.replace("{repository}", str(models)) for word in self.command] + self._arguments(models)
            variables = clean()
        else:
            shared_memory = f"aframe_triton_{uuid.uuid4().hex[:12]}"
            command = [str(self.environment.executable), *self._arguments(models)]
            command += [f"--backend-directory={self._work / 'backends'}", f"--cache-directory={self.environment.bundle / 'caches'}"]
            command += [f"--backend-config=python,shm-region-prefix-name={shared_memory}"]
            variables = self.environment.variables()
        spec = {"command": command, "env": variables, "log": str(self.log), "grace": GRACE, "shared_memory": shared_memory}
        spec["work"] = str(self._work)
        self._end_keeper()
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            self._keeper.stdin.write(json.dumps(spec).encode() + b"\n")
            self._keeper.stdin.flush()
            answer = self._keeper.stdout.readline()
        except ValueError:
            # `stop` has closed them
            raise ServingError("the Triton server was stopped while it started") from None
        if not answer:
            raise ServingError(f"the Triton server cannot be started: {command[0]} does not run (is it installed?)")
        self.pid = json.loads(answer)["pid"]
        deadline = time.monotonic() + self._ready_seconds
        while not self._is_ready():
            if self._stopping.is_set():
                raise ServingError("the Triton server was stopped while it started")
            if self._keeper.poll() is not None:
                raise ServingError(f"the Triton server ended while it started{self._tail()}")
            if time.monotonic() > deadline:
                raise ServingError(f"the Triton server is not ready after {self._ready_seconds:g} s{self._tail()}")
            time.sleep(_POLL)
        self._ready.set()

    def _is_ready(self) -> bool:
        try:
            # what answers at this port may be another server, which had the port before
            told = json.loads(self._get(f"http://{self.http_url}/v2"))
            if not isinstance(told, dict) or told.get("name") != self.identity:
                return False
            self._get(f"http://{self.http_url}/v2/health/ready")
            for name in self.models:
                self._get(f"http://{self.http_url}/v2/models/{name}/ready")
        except _NO_ANSWER:
            return False
        return True

    def _tail(self) -> str:
        found = reasons(self.log)
        return f"; see {self.log}" + (", which says:\n" + "\n".join(f"  {line}" for line in found) if found else "")

    def _watch(self) -> None:
        """Thread: samples metrics, and starts the server again when it has died."""
        next_sample = time.monotonic() + self._sample
        while not self._stopping.wait(_POLL):
            if self._keeper.poll() is None:
                if time.monotonic() >= next_sample:
                    self._keep_metrics()
                    next_sample = time.monotonic() + self._sample
                continue
            self._ready.clear()
            if self.restarts >= self._restarts_allowed:
                self.failure = f"the Triton server died {self.restarts + 1} times and is not started again{self._tail()}"
                return
            self._count_restart()
            try:
                self._start()
            except (ServingError, OSError) as e:
                if self._was_killed():
                    continue
                self.failure = str(e)
                self._end_keeper()
                return

    def _keep_metrics(self) -> None:
        # a server that has just died has no metrics: the next look at it says so; a full disk must not end the watch
        with contextlib.suppress(ServingError, OSError):
            self._table.add(self.metrics())

    def _end_keeper(self) -> None:
        """Ends the server by its keeper, and closes the keeper's pipes; may be called again."""
        if self._keeper is None:
            return
        # without a word, its end would say that this process is gone
        with contextlib.suppress(OSError, ValueError):
            self._keeper.stdin.write(b"\n")
        with contextlib.suppress(OSError):
            self._keeper.stdin.close()
        try:
            self._keeper.wait(GRACE + 10)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._keeper.stdout.close()


def ask(server: TritonServer, model: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """One request by HTTP and JSON, for small checks: input name -> {"shape", "datatype", "data"}; output name -> data.

    Raises:
        ServingError: the server refuses or does not answer.
    """
    body = json.dumps({"inputs": [{"name": k, **v} for k, v in inputs.items()]}).encode()
    try:
        answer = json.loads(server._get(f"http://{server.http_url}/v2/models/{model}/infer", body))
    except urllib.error.HTTPError as e:
        raise ServingError(f"{model}: {e.read().decode(errors='replace')}") from None
    except OSError as e:
        raise ServingError(f"{model}: the server does not answer: {e}") from None
    return {o["name"]: o["data"] for o in answer["outputs"]}
