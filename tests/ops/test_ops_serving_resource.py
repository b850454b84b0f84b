"""Which server the steps of a search are given, and that it ends with them."""

from __future__ import annotations

import logging

import dagster as dg
import pytest

from aframe_assets.config_load import build_config
from aframe_assets.inference.remote.server import RESOURCE
from aframe_ops.definitions import build_defs
from aframe_ops.serving import resource as module
from aframe_ops.serving.provider import LocalServers
from aframe_ops.serving.resource import NamedServer, server_resource
from aframe_ops.site import SiteConfig, TritonSite

LOG = logging.getLogger("test")


@pytest.mark.parametrize(
    ("url", "local"),
    [("localhost:8001", True), ("127.0.0.1:8001", True), ("[::1]:8001", True), ("192.0.2.7:8001", False), ("triton.example:8001", False)],
)
def test_a_named_server_is_local_where_its_host_is_this_machine(url, local, tmp_path):
    server = NamedServer(url)
    assert server.local is local and server.open(tmp_path, LOG).url == url


def test_a_site_with_an_address_starts_nothing(tmp_path):
    site = SiteConfig(directory=tmp_path, triton=TritonSite(url="localhost:8001"))
    with dg.build_resources({RESOURCE: server_resource(site)}) as given:
        assert getattr(given, RESOURCE) == NamedServer("localhost:8001")


def test_servers_that_were_started_end_with_the_step(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(module.LocalServers, "close", lambda self: closed.append(self))
    with pytest.raises(OSError, match="the body fails"):
        with dg.build_resources({RESOURCE: server_resource(SiteConfig(directory=tmp_path))}) as given:
            servers = getattr(given, RESOURCE)
            assert isinstance(servers, LocalServers) and servers.logs.is_relative_to(tmp_path / "logs")
            raise OSError("the body fails")
    assert closed == [servers]


def test_only_searches_through_a_server_are_given_one(tmp_path):
    site = SiteConfig(directory=tmp_path)
    for mode in ("inprocess", "triton"):
        defs = build_defs(build_config({"preset": "demo", "inference": {"mode": mode}}), site)
        assert (RESOURCE in defs.resources) == (mode == "triton")
