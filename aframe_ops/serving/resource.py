"""The server of ``inference.mode: triton`` as a Dagster resource: one for each step, ended with it."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from aframe_assets.inference.remote.server import InferenceServer
from aframe_ops.serving.provider import LocalServers
from aframe_ops.site import SiteConfig


@dataclass(frozen=True)
class NamedServer:
    """A server that somebody else runs, named in site.yaml.

    Attributes:
        url: host and port of its gRPC service.
    """

    url: str

    @property
    def local(self) -> bool:
        """Its host is this machine."""
        host = self.url.rpartition(":")[0].strip("[]")
        if host in ("localhost", socket.gethostname(), socket.getfqdn()):
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def open(self, repository: Path, log: logging.Logger, threads: int | None = None) -> NamedServer:
        """Itself: whether it serves what `repository` holds is asked by the engine that is evaluated there."""
        log.info("the network is evaluated by the Triton server at %s", self.url)
        return self

    def close(self) -> None:
        """It is not ours to stop."""


def server_resource(site: SiteConfig) -> dg.ResourceDefinition:
    """What a step is given: the server that `site` names, or ones that are started when they are asked for."""

    @dg.resource(description="Triton servers of inference.mode: triton")
    def inference_server(context: dg.InitResourceContext) -> Iterator[InferenceServer]:
        folder = site.logs / (context.run.run_id if context.run else "no-run")
        servers = NamedServer(site.triton.url) if site.triton.url else LocalServers(site.triton, folder / "triton")
        try:
            yield servers
        finally:
            servers.close()

    return inference_server
