"""The partitions of an asset of a large search, in a browser."""

from __future__ import annotations

import time

import pytest
from dagster import AssetMaterialization, DagsterInstance
from tiny_run import RunDirectory

from aframe_assets.partitions import SEGMENTS
from benchmarks.planner import rows_of

pytestmark = [pytest.mark.ui, pytest.mark.timeout(1800)]


PATIENCE_MS = 300_000
"""Of a busy machine; idle, it takes seconds."""


def test_the_page_of_10000_segments_loads(browser, watch, serve, tmp_path):
    run, keys = RunDirectory(tmp_path / "run").init(), list(rows_of(10_000))
    with DagsterInstance.from_config(str(run.path / "dagster_home")) as instance:
        instance.add_dynamic_partitions(SEGMENTS.name, keys)
        for key in keys[:200]:
            instance.report_runless_asset_event(AssetMaterialization("background", partition=key))
    with serve(run) as address:
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        watched = watch(page, (address, "data:", "blob:"))
        start = time.monotonic()
        page.goto(f"{address}/assets/background?view=partitions", timeout=PATIENCE_MS)
        page.get_by_text("Missing (9800)").wait_for(timeout=PATIENCE_MS)
        print(f"partitions page of 10,000 segments: {time.monotonic() - start:.1f} s")
        page.get_by_text(keys[0]).first.wait_for(timeout=PATIENCE_MS)
        watched.shot("partitions-10000")
        assert not watched.outside
        page.close()
