"""What the report says of provenance, time and resources."""

from __future__ import annotations

import json
import re

import pytest

from aframe_assets.lineage import Input, Node
from aframe_assets.sensitivity.report_provenance import artifact_rows, graph_svg, step_rows, timeline_figure, total_text
from aframe_assets.store.handle import FileEntry, Handle, KeyParts, Manifest

GRAPH = {
    "segments": Node("segments", "g", "1", ()),
    "background": Node("background", "g", "2", (), (Input("segments", "row"),), partitioned=True),
    "psd": Node("psd", "g", "1", (), (Input("background", "all"),)),
    "events": Node("events", "g", "1", (), (Input("segments"), Input("psd"), Input("absent", optional=True))),
}


def manifest(asset, partition=None, minute=0, wall=60.0, passed=True, **more):
    parts = KeyParts(asset=asset, code_version="1", partition=partition)
    files = (FileEntry(name="x", sha256="ab" * 32, nbytes=2_000_000),)
    handle = Handle(asset=asset, partition=partition, key=parts.key, uri="file:///x", files=files, sha256="cd" * 32)
    about = {"created": f"2026-01-01T00:{minute:02d}:00+00:00", "wall_s": wall, "cpu_s": wall / 2, "max_rss_mb": 1024, "host": "a"} | more
    checks = [{"name": "c", "passed": passed, "severity": "warn"}]
    return Manifest(handle=handle, parts=parts, status="ok", checks=checks, provenance=about)


@pytest.fixture
def manifests():
    failed = Manifest(parts=KeyParts(asset="background", code_version="1", partition="9-9"), status="failed", error="x")
    background = {
        "1-1": manifest("background", "1-1", 10),
        "2-1": manifest("background", "2-1", 11, host="b", max_rss_mb=3072),
        "3-1": manifest("background", "3-1", 40),
        "9-9": failed,
    }
    return {
        "segments": {None: manifest("segments", minute=1)},
        "background": background,
        "psd": {None: manifest("psd", minute=45, passed=False)},
        "events": {None: manifest("events", minute=50)},
    }


def test_rows(manifests):
    rows = {r["asset"]: r for r in artifact_rows(GRAPH, manifests)}
    assert rows["background"]["label"] == "background, 3 stretches" and rows["background"]["size"] == "6 MB"
    assert rows["events"]["inputs"] == ["segments", "psd"] and rows["events"]["sha256"] == "cd" * 8
    steps = {r["asset"]: r for r in step_rows(manifests)}
    b = steps["background"]
    assert (b["count"], b["wall"], b["cpu"], b["memory"], b["hosts"]) == ("3", "3 min", "1.5 min", "3.00 GB", "a, b")
    assert b["ended"] == "2026-01-01 00:40:00"
    assert total_text(manifests).startswith("6 artifacts of 12 MB: 6 min of steps, 3 min of one")


def test_a_timeline_joins_what_was_made_together(manifests):
    figure = json.loads(timeline_figure(manifests)[0].plotly)
    bars = {t["y"][0]: t for t in figure["data"]}
    assert list(bars) == ["segments", "background", "psd", "events"]
    assert bars["background"]["base"] == ["2026-01-01T00:09:00+00:00", "2026-01-01T00:39:00+00:00"]
    assert [x / 1000 for x in bars["background"]["x"]] == [120, 60]
    assert timeline_figure({"segments": {None: manifest("segments", created="long ago")}}) == []


def test_a_graph_has_every_asset_once_and_lines_that_lead_down(manifests):
    svg = graph_svg(GRAPH, manifests)
    boxes = {m[1]: float(m[2]) for m in re.finditer(r'<a href="#artifact-(\w+)">.*?<rect x="[\d.-]+" y="([\d.-]+)"', svg)}
    assert list(boxes) == ["segments", "background", "psd", "events"]
    assert boxes["segments"] < boxes["background"] < boxes["psd"] < boxes["events"]
    # segments -> events goes without saying: it is on the way over background and psd
    assert svg.count("<path") == 3
    assert svg.count('class="doubt"') == 1 and "psd: " in svg and "with failed checks" in svg
    lone = graph_svg(GRAPH, {"segments": manifests["segments"]})
    assert lone.count("<rect") == 1 and "<path" not in lone
    for m in re.finditer(r'<rect x="([\d.-]+)"', svg):
        assert 0 <= float(m[1]) <= 1000 - 176
