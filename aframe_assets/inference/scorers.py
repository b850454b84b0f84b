"""The scorer that a network asks for by its form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aframe_assets.config import Inference
from aframe_assets.inference.frames import FrameScorer
from aframe_assets.inference.maps import MapScorer
from aframe_assets.inference.memory import JOINED, MAPS, memory_for_slides
from aframe_assets.inference.scoring import CascadeScorer, Chooser, Layout, NetworkScorer, SlideScorer
from aframe_assets.inference.windows import WindowScorer


def slide_scorer(
    engine: Any, streams: Sequence[np.ndarray], layout: Layout, inference: Inference, chooser: Chooser | None = None
) -> SlideScorer:
    """Scorer of one chunk.

    Args:
        engine: an `aframe_assets.engine.engine.Engine`; anything with `score_windows` alone is scored window by window.
        streams: whitened, one array per detector.
        layout: of the windows.
        inference: batch size and memory.
        chooser: of a cascade. Without one the engine's filter is not asked, and everything is scored.

    Raises:
        ValueError: a chooser and no filter; sizes that the network's frames do not serve.
    """
    scorer = _network(engine, streams, layout, inference)
    if chooser is None:
        return scorer
    if getattr(engine, "filter", None) is None:
        raise ValueError("a rule of what a filter network keeps, and an engine without one; build the engine again with model.filter")
    return CascadeScorer(_network(engine.filter, streams, layout, inference), scorer, chooser)


def _network(engine: Any, streams: Sequence[np.ndarray], layout: Layout, inference: Inference) -> NetworkScorer:
    form = getattr(engine, "form", "windows")
    if form == "frames":
        return FrameScorer(engine, streams, layout)
    if form == "maps":
        memory = memory_for_slides(inference, streams)
        return MapScorer(engine, streams, layout, MAPS * memory, int(JOINED * memory))
    return WindowScorer(engine, streams, layout, inference.batch_size)
