"""A search whose network a server evaluates gives the events of one that evaluates it itself."""

from __future__ import annotations

from dataclasses import dataclass

import fake_triton as fake
import numpy as np
import onnxruntime
import pytest
import yaml
from search_room import EXPERIMENT, Room

from aframe_assets.config_load import build_config
from aframe_assets.inference.remote.server import RESOURCE, NoServer
from aframe_assets.waveforms.ledger import EventSet, RecoveredInjectionSet

SEGMENT = "1240610000-60"
ROWS = {SEGMENT: {"gps_start": 1240610000.0, "gps_stop": 1240610060.0, "role": "test"}}


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    r = Room(tmp_path_factory.mktemp("search"), rows=ROWS)
    r.engines()
    r.data()
    return r


def served(**change):
    experiment = yaml.safe_load(EXPERIMENT)
    experiment["inference"] |= {"mode": "triton", "in_flight": 2} | change
    return build_config(experiment)


@dataclass
class Servers:
    """Stands for aframe_ops: a server on the repository."""

    fault: object = None

    def open(self, repository, log, threads=None):
        session = onnxruntime.InferenceSession(str(repository / "aframe" / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
        name, kernel = session.get_inputs()[0].name, session.get_inputs()[0].shape[2]
        self.server = fake.FakeTriton(network=lambda x: session.run(None, {name: x})[0], kernel=kernel, fault=self.fault)
        self.server.serve()
        self.url, self.local = self.server.url, True
        return self

    def close(self):
        self.server.kill()


@pytest.mark.parametrize("fault", [None, lambda n, request: "drop" if n % 5 == 0 else None])
def test_events_of_both_modes_are_equal(room, fault):
    wanted = room.store.open_local(room.search(SEGMENT))
    servers = Servers(fault)
    try:
        found = room.store.open_local(room.search(SEGMENT, served(), {RESOURCE: servers}))
    finally:
        servers.close()
    assert servers.server.infers > 20 and not servers.server.regions
    for name, kind in (("background.hdf5", EventSet), ("0lag.hdf5", EventSet), ("foreground.hdf5", RecoveredInjectionSet)):
        a, b = kind.read(wanted / name), kind.read(found / name)
        assert len(a) and a.Tb == b.Tb
        np.testing.assert_array_equal(a.detection_time, b.detection_time)
        np.testing.assert_allclose(a.detection_statistic, b.detection_statistic, rtol=0, atol=1e-5)


def test_without_a_server_what_to_do_is_said(room):
    with pytest.raises(RuntimeError, match=r"aframe serve --install"):
        room.search(SEGMENT, served(), {RESOURCE: NoServer()})
