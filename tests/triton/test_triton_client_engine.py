"""Engines evaluated by NVIDIA's server, and whole searches in both modes."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest
import yaml
from tritonclient.grpc import InferenceServerClient

from aframe_assets.config_load import build_config
from aframe_assets.engine.engine import load_engine
from aframe_assets.inference.remote.connection import Refused
from aframe_assets.inference.remote.engine import RemoteEngine
from aframe_assets.inference.remote.server import RESOURCE
from aframe_assets.waveforms.ledger import EventSet, RecoveredInjectionSet
from aframe_ops.serving.provider import LocalServers
from aframe_ops.serving.resource import NamedServer
from aframe_ops.site import TritonSite

pytestmark = pytest.mark.triton

FORMS = ["resnet", "streaming", "map"]
SEGMENT = "1240610000-200"
LOG = logging.getLogger("test")


def repository(room):
    return room.store.open_local(room.handles["model_repository"])


def inputs(samples: int, count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 2, samples)).astype(np.float32)


def left_behind() -> list[str]:
    return [n for n in os.listdir("/dev/shm") if n.startswith(f"aframe-{os.getpid()}-")]


@pytest.mark.parametrize("room", FORMS, indirect=True)
def test_a_server_answers_as_the_engine_and_after_it_was_killed(room, tritonserver, caplog):
    local = load_engine(room.store.open_local(room.handles["engine"]))
    server, blocks, windows = tritonserver(repository(room)), inputs(local.signature.samples, 40), inputs(local.window, 70)
    with RemoteEngine(local, server, in_flight=3, log=LOG) as remote, InferenceServerClient(server.url) as client:
        for killed in (False, True):
            if killed:
                server.kill()
            for mine, theirs in (
                (local.infer(blocks), remote.infer(blocks)),
                (local.score_windows(windows), remote.score_windows(windows)),
            ):
                assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
                difference = np.abs(mine - theirs).max() / np.abs(mine).max()
                assert difference < 1e-5
            assert len(client.get_system_shared_memory_status().regions) >= 2, "data do not go through shared memory"
        assert server.restarts == 1
        print(f"{local.form}: largest difference {difference:.2g} of the largest answer")
    with InferenceServerClient(server.url) as client:
        assert not client.get_system_shared_memory_status().regions and not left_behind()


@pytest.mark.parametrize("room", FORMS, indirect=True)
def test_searches_of_both_modes_have_equal_events(room, environment, tmp_path):
    wanted = room.store.open_local(room.search(SEGMENT))
    experiment = yaml.safe_load(room.experiment)
    experiment["inference"] |= {"mode": "triton", "in_flight": 2}
    servers = LocalServers(TritonSite(environment=str(environment.folder)), tmp_path / "logs")
    try:
        found = room.store.open_local(room.search(SEGMENT, build_config(experiment), {RESOURCE: servers}))
    finally:
        servers.close()
    for name, kind in (("background.hdf5", EventSet), ("0lag.hdf5", EventSet), ("foreground.hdf5", RecoveredInjectionSet)):
        a, b = kind.read(wanted / name), kind.read(found / name)
        assert len(a) and a.Tb == b.Tb
        np.testing.assert_array_equal(a.detection_time, b.detection_time)
        np.testing.assert_allclose(a.detection_statistic, b.detection_statistic, rtol=0, atol=1e-5)


@pytest.mark.parametrize("room", ["resnet"], indirect=True)
def test_a_named_server_of_another_search_is_refused(room, tritonserver, tmp_path):
    local = load_engine(room.store.open_local(room.handles["engine"]))
    server = NamedServer(tritonserver(repository(room)).url)
    assert server.local and server.open(tmp_path, LOG) is server
    RemoteEngine(local, server, log=LOG).close()
    other = load_engine(room.store.open_local(room.handles["engine"]))
    other.score_windows = lambda windows: 1.5 * local.score_windows(windows) + 1
    with pytest.raises(Refused, match="apart from this search's engine"):
        RemoteEngine(other, server, log=LOG)
    other.signature = local.signature.__class__(**{**local.signature.__dict__, "sample_rate": 1024.0})
    with pytest.raises(Refused, match=r"sample_rate = 512.0: the engine of this search has 1024.0"):
        RemoteEngine(other, server, log=LOG)
