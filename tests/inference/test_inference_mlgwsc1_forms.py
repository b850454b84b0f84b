"""The challenge's streaming search with networks of frames and maps, against the same network window by window."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from challenge_files import SETTINGS
from frame_networks import Windowed, frame_engine

from aframe_assets.config import Conditioning
from aframe_assets.inference.mlgwsc1.search import StreamingSearch, shortest


@pytest.mark.parametrize("refine", [np.inf, 1.0])
@pytest.mark.parametrize("name", ["streaming", "map"])
def test_events_and_times_are_those_of_windows(name, refine):
    engine = frame_engine(name)
    data = np.random.default_rng(1).standard_normal((2, 60 * 512)).astype(np.float32)
    inference = SETTINGS.inference.model_copy(update={"inference_rate": 4, "cluster_window_length": 4, "batch_size": 16})
    settings = replace(SETTINGS, inference=inference, threshold=-np.inf, refine_above=refine)
    found, outputs = [], []
    for network in (engine, Windowed(engine)):
        search = StreamingSearch(network, 1_000.0, settings)
        edges = [0, *np.sort(np.random.default_rng(2).choice(data.shape[1], 12, replace=False)).tolist(), data.shape[1]]
        rows = [search.update(list(data[:, a:b])) for a, b in pairwise(edges)]
        found.append(np.concatenate([*rows, search.finish()]))
        outputs.append(search.outputs)
    got, want = found
    # 60 s less a kernel and the context after it; the first output has its context, and the integration before it
    last = (60 * 512 - engine.kernel - engine.context) // 128
    assert outputs == [last + 1 - search.boxcar + 1 - -(-engine.context // 128)] * 2
    assert len(want) > 8 and got.shape == want.shape and np.allclose(got[:, ::2], want[:, ::2], rtol=0, atol=1e-6)
    assert np.abs(got[:, 1] - want[:, 1]).max() < 1e-4 * np.ptp(want[:, 1])


def test_the_context_lengthens_the_shortest_segment():
    conditioning = frame_engine("streaming").conditioning
    plain = shortest(Conditioning.model_validate(conditioning), SETTINGS)
    rate = SETTINGS.inference.inference_rate
    # what comes before the first output is whole steps
    assert shortest(Conditioning.model_validate(conditioning), SETTINGS, 1.25 / rate) == plain + 2 / rate + 1.25 / rate
