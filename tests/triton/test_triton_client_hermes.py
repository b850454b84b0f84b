"""The client that Aframe uses, ml4gw-hermes, on our ensemble."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest

from aframe_assets.engine.repository import ENSEMBLE
from aframe_assets.inference.remote.client import SequenceClient

pytestmark = pytest.mark.triton


@pytest.mark.parametrize("room", ["resnet"], indirect=True)
def test_its_sequences_are_answered_as_those_of_our_client(room, tritonserver):
    from hermes.aeriel.client import InferenceClient

    # its requests time out after 60 microseconds of waiting for a slot, so there must be one for each sequence
    server, requests = tritonserver(room.store.open_local(room.handles["model_repository"]), streams=2), 10
    with SequenceClient(server.url, ENSEMBLE, log=logging.getLogger("test")) as own:
        rows, ifos, update = own.layout.chunk
        rng, batch = np.random.default_rng(4), own.layout.answer[0]
        streams = {n: (rng.standard_normal((rows, ifos, requests * update)) * 1e-22).astype(np.float32) for n in (1234, 1235)}
        wanted = own.collect({n: [s[..., i * update : (i + 1) * update] for i in range(requests)] for n, s in streams.items()})
        settled = own.layout.refill
    client = InferenceClient(server.url, ENSEMBLE, callback=lambda values, request_id, sequence_id: (values, request_id, sequence_id))
    got: dict[tuple[int, int], np.ndarray] = {}
    with client:
        for i in range(requests):
            for name, stream in streams.items():
                flags = {"sequence_start": i == 0, "sequence_end": i == requests - 1}
                client.infer(stream[..., i * update : (i + 1) * update], request_id=i, sequence_id=name, **flags)
        deadline = time.monotonic() + 120
        while len(got) < requests * len(streams) and time.monotonic() < deadline:
            for values, request_id, sequence_id in client.get(until_empty=True) or []:
                got[sequence_id, request_id] = values
            time.sleep(0.01)
    assert len(got) == requests * len(streams)
    for name in streams:
        for i in range(settled, requests):
            np.testing.assert_array_equal(got[name, i].reshape(-1), wanted[name][i * batch : (i + 1) * batch, 0])
