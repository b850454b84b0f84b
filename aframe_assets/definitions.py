"""The asset graph of one experiment as Dagster definitions; nothing heavy is imported here."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from aframe_assets.comparing.assets import assets as comparing_assets
from aframe_assets.config import Config
from aframe_assets.config_load import build_config, load_config, resolved_text
from aframe_assets.engine.assets import assets as engine_assets
from aframe_assets.inference.assets import assets as inference_assets
from aframe_assets.inference.remote.server import RESOURCE, NoServer
from aframe_assets.model.assets import assets as model_assets
from aframe_assets.segments.assets import assets as segment_assets
from aframe_assets.sensitivity.assets import assets as sensitivity_assets
from aframe_assets.store.bodies import Experiment
from aframe_assets.store.io_managers import io_manager_for
from aframe_assets.strain.assets import assets as strain_assets
from aframe_assets.waveforms.assets import assets as waveform_assets

ROOMS = (
    segment_assets,
    strain_assets,
    waveform_assets,
    model_assets,
    engine_assets,
    inference_assets,
    sensitivity_assets,
    comparing_assets,
)


def build_defs(
    config: Config,
    *,
    store_url: str = "store",
    cache_dir: str | None = None,
    cache_gb: float = 20.0,
    executor: dg.ExecutorDefinition | None = None,
    resources: Mapping[str, Any] | None = None,
    sensors: Sequence[dg.SensorDefinition] = (),
) -> dg.Definitions:
    """Definitions of `config`'s graph with its store.

    Args:
        config: the experiment.
        store_url: folder, ``file://`` or ``s3://bucket/prefix``.
        cache_dir: local cache of a remote store.
        cache_gb: size cap of that cache.
        executor: where steps run; Dagster's default if None.
        resources: added to, or replacing, the ones made here.
        sensors: automation.
    """
    items = [item for room in ROOMS for item in room(config)]
    assets = [a for a in items if isinstance(a, dg.AssetsDefinition) and not isinstance(a, dg.AssetChecksDefinition)]
    checks = [a for a in items if isinstance(a, dg.AssetChecksDefinition)]
    experiment = Experiment(config_json=resolved_text(config), store_url=store_url, cache_dir=cache_dir, cache_gb=cache_gb)
    server = {RESOURCE: NoServer()} if config.inference.mode == "triton" else {}
    made = server | {
        "experiment": experiment,
        "io_manager": io_manager_for(store_url, cache_dir=cache_dir, cache_bytes=int(cache_gb * 1e9)),
    }
    return dg.Definitions(
        assets=assets, asset_checks=checks, resources={**made, **(resources or {})}, executor=executor, sensors=list(sensors)
    )


def local_config() -> Config:
    """The experiment of ``$AFRAME_CONFIG``, or the demo when it is not set."""
    return load_config() if os.environ.get("AFRAME_CONFIG") else build_config({"preset": "demo"}, env=os.environ)


defs = build_defs(local_config())
