"""The code location: the asset graph with its executor, store and site. Nothing heavy is imported here.

``workspace.yaml``, ``DAGSTER_MODULE_NAME`` and every step's process load this module. The experiment is
``$AFRAME_CONFIG``; without it the demo's graph is shown, so that a clean checkout can be validated and browsed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from aframe_assets import definitions as assets
from aframe_assets.config import Config
from aframe_assets.config_load import build_config, load_config
from aframe_assets.inference.remote.server import RESOURCE
from aframe_ops.automation.sensors import with_automation
from aframe_ops.executor.executor import make_executor
from aframe_ops.site import SiteConfig, load_site


def build_defs(
    config: Config,
    site: SiteConfig,
    *,
    resources: Mapping[str, Any] | None = None,
    sensors: Sequence[dg.SensorDefinition] = (),
) -> dg.Definitions:
    """Definitions of `config`'s graph, run and stored as `site` says; with sensors of new data, and of batch systems if there are any.

    Args:
        config: the experiment.
        site: executor and store.
        resources: added to, or replacing, those of the graph.
        sensors: further automation.
    """
    if set(site.executor.backends) != {"local"}:
        from aframe_ops.automation.reaping import reap_sensor

        sensors = [*sensors, reap_sensor(site)]
    if config.inference.mode == "triton":
        from aframe_ops.serving.resource import server_resource

        resources = {RESOURCE: server_resource(site), **(resources or {})}
    defs = assets.build_defs(
        config,
        store_url=site.store_url,
        cache_dir=site.cache_dir,
        cache_gb=site.store.cache_gb,
        executor=make_executor(site, config),
        resources=resources,
        sensors=sensors,
    )
    return with_automation(defs, config, site)


def current_config() -> Config:
    """The experiment of ``$AFRAME_CONFIG``, or the demo when it is not set."""
    return load_config() if os.environ.get("AFRAME_CONFIG") else build_config({"preset": "demo"}, env=os.environ)


defs = build_defs(current_config(), load_site())
