"""`aframe serve`: a Triton server for whoever wants to ask it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from aframe_assets.config_load import ConfigError
from aframe_ops.run_directory import RunDirectory
from aframe_ops.serving.environment import install
from aframe_ops.serving.errors import ServingError
from aframe_ops.serving.provider import server_of
from aframe_ops.site import TritonSite

ASSET = "model_repository"


def install_server(folder: Path | None, console: Console, *, gpu: bool = False) -> None:
    """Installs the server and says what is there."""
    environment = install(folder, gpu=gpu, tell=lambda text: console.print(text, soft_wrap=True))
    found = environment.look()
    python = ".".join(map(str, environment.python))
    console.print(
        f"{environment.folder}: tritonserver 2.51.0 with Python {python}, numpy {found['numpy']}, onnxruntime {found['onnxruntime']}; "
        "it answers as it should",
        soft_wrap=True,
    )


def repository_of(directory: Path | None) -> tuple[Path, TritonSite, Path]:
    """The models to serve, the site's settings, and the folder of this process's logs.

    Raises:
        ConfigError: neither a model repository nor a run directory that has one.
    """
    # several may serve the same, and process ids come again in containers
    own = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    if directory is not None and any(directory.glob("*/config.pbtxt")):
        return directory, TritonSite(), Path("triton-logs") / own
    run = RunDirectory.find(directory)
    site, workspace = run.site(), run.workspace()
    handle = workspace.complete(ASSET)
    if handle is None:
        raise ConfigError(f"{run.path}: {ASSET} is not complete; make it with `aframe run {directory or '.'} --until {ASSET}`")
    return workspace.store.open_local(handle), site.triton, site.logs / "triton" / own


def serve_models(directory: Path | None, console: Console, *, host: str, port: int | None) -> None:
    """Serves until SIGINT or SIGTERM, or until the server has died twice (ServingError)."""
    repository, site, logs = repository_of(directory)
    more: dict[str, Any] = {"host": host}
    if port is not None:
        more["ports"] = (port, port + 1, port + 2)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with server_of(site, repository, logs, **more) as server:
        console.print(f"models: {', '.join(server.models)}", soft_wrap=True)
        console.print(
            f"gRPC    {server.url}\nHTTP    {server.http_url}\nmetrics {server.metrics_url}\nlog     {server.log}", soft_wrap=True
        )
        console.print("Ctrl-C stops it")
        seen = 0
        while not stop.wait(0.5):
            if server.failure:
                raise ServingError(server.failure)
            if server.restarts != seen:
                seen = server.restarts
                console.print("the server died and was started again: sequences begin anew", soft_wrap=True)
    console.print("stopped")
