"""The room's bodies with engines that were really built: networks of frames and of maps, resumed segment by segment."""

from __future__ import annotations

import numpy as np
import pytest
from frame_networks import Windowed
from search_room import EXPERIMENT, Room

from aframe_assets.engine.engine import load_engine
from aframe_assets.inference.aggregate import BACKGROUND, FOREGROUND, ZERO_LAG
from aframe_assets.waveforms.ledger import EventSet, RecoveredInjectionSet

KEY = "1240610000-60"
NETWORKS = {
    "streaming": "{name: streaming, layers: [1, 1], width: 4, context: 0.25, pooling: mean_max}",
    "map": "{name: map, layers: [1, 1], width: 4, context: 0.25, lag_head: {map_stride: 8, channels: 8, groups: 4, hidden: 8}}",
}


@pytest.mark.parametrize("name", ["streaming", "map"])
def test_a_segment_with_a_built_engine_is_that_of_its_windows(tmp_path, monkeypatch, name):
    room = Room(tmp_path, EXPERIMENT.replace("{layers: [1], width: 4}", NETWORKS[name]))
    room.engines()
    room.data()
    architecture = room.config.model.architecture.model_copy(update={"context": 0.5})
    other = room.config.model_copy(update={"model": room.config.model.model_copy(update={"architecture": architecture})})
    with pytest.raises(ValueError, match=r"model\.architecture\.context = 0\.5: the model was made with 0\.25; set these keys"):
        room.search(KEY, other)
    handle = room.search(KEY)
    path = room.store.open_local(room.handles["engine"])
    assert load_engine(path).form == {"streaming": "frames", "map": "maps"}[name]
    product = room.products[KEY]
    assert all(c.passed for c in product.checks) and product.meta["num_foreground"] > 2
    got = {f: (path.read_bytes(), path) for f in (BACKGROUND, ZERO_LAG, FOREGROUND) for path in [room.store.open_local(handle, f)]}
    # the same segment again, as after an interruption, gives the same bytes
    again = room.search(KEY)
    assert all(room.store.open_local(again, f).read_bytes() == content for f, (content, _) in got.items())

    monkeypatch.setattr("aframe_assets.engine.engine.load_engine", lambda folder: Dressed(load_engine(folder)))
    room.search(KEY)
    windowed = room.handles["inference_results"][KEY]
    for f, kind in ((BACKGROUND, EventSet), (ZERO_LAG, EventSet), (FOREGROUND, RecoveredInjectionSet)):
        ours, theirs = kind.read(got[f][1]), kind.read(room.store.open_local(windowed, f))
        assert len(theirs) > 2 and ours.Tb == theirs.Tb and np.array_equal(ours.detection_time, theirs.detection_time, equal_nan=True)
        scale = np.ptp(theirs.detection_statistic)
        assert np.allclose(ours.detection_statistic, theirs.detection_statistic, rtol=0, atol=1e-4 * scale)


class Dressed(Windowed):
    """An engine of windows alone."""

    def __init__(self, engine):
        super().__init__(engine)
        self.conditioning = engine.conditioning
