"""The server that the graph's steps are given: `aframe_assets.inference.remote.server.InferenceServer`."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from aframe_ops.serving.environment import find
from aframe_ops.serving.errors import ServingError
from aframe_ops.serving.server import TritonServer
from aframe_ops.site import TritonSite


def require_server(site: TritonSite) -> str:
    """Looks whether a server can be started as `site` says, before hours are spent on what it is needed for.

    Returns:
        What there is, for people.

    Raises:
        ServingError: nothing that could be started; says what to install or set.
    """
    if site.url:
        return f"Triton server at {site.url}"
    if site.command:
        if shutil.which(site.command[0]) is None:
            raise ServingError(f"site.yaml: triton.command begins with {site.command[0]}, which is not a program on this machine")
        return f"Triton server by {site.command[0]}"
    environment = find(Path(site.environment) if site.environment else None)
    return f"Triton server in {environment.folder}, numpy {environment.look()['numpy']}"


def server_of(site: TritonSite, repository: Path, logs: Path, threads: int | None = None, **more: object) -> TritonServer:
    """A server, not started yet, on the models of `repository` as `site` asks for it.

    Args:
        site: section ``triton`` of site.yaml.
        repository, logs, threads: see `TritonServer`.
        more: other arguments of `TritonServer`.

    Raises:
        ServingError: no server is installed here, and the site names no command that starts one.
    """
    environment = None if site.command else find(Path(site.environment) if site.environment else None)
    return TritonServer(
        repository,
        logs,
        environment=environment,
        command=site.command,
        devices=site.devices,
        per_device=site.per_device,
        streams=site.streams,
        threads=threads,
        ready=site.ready_seconds,
        **more,
    )


class LocalServers:
    """Starts a server for each repository that is asked for, on this machine, and stops them all at the end.

    A search sends no sequences, so a snapshotter gets one instance, a process of its own, unless the site asks for more.

    Args:
        site: section ``triton`` of site.yaml.
        logs: folder; each server has one of its own in it.
    """

    def __init__(self, site: TritonSite, logs: Path) -> None:
        self.site, self.logs = site.model_copy(update={"streams": site.streams or 1}), logs
        self._servers: dict[Path, TritonServer] = {}

    def open(self, repository: Path, log: logging.Logger, threads: int | None = None) -> TritonServer:
        """The running server on `repository`; started when there is none.

        Raises:
            ServingError: no server is installed, or it does not become ready.
        """
        repository = Path(repository).resolve()
        if repository not in self._servers:
            folder = self.logs / f"{os.getpid()}-{len(self._servers)}"
            server = server_of(self.site, repository, folder, threads)
            log.info("starting a Triton server on %s; its log is %s", repository, server.log)
            self._servers[repository] = server.__enter__()
            log.info("Triton serves %s at %s", ", ".join(server.models), server.url)
        server = self._servers[repository]
        server.wait(self.site.ready_seconds)
        return server

    def close(self) -> None:
        """Stops what was started; may be called again."""
        while self._servers:
            _, server = self._servers.popitem()
            server.stop()
