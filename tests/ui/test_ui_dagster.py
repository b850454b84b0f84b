"""Dagster's pages of a finished run, looked at as a scientist does."""

from __future__ import annotations

import json
import re
import urllib.request

import pytest
from tiny_run import wait_for

from aframe_assets import lineage
from aframe_assets.definitions import build_defs

pytestmark = [pytest.mark.ui, pytest.mark.timeout(1800)]

SHOWN = {
    "segments": {"timeline", "roles"},
    "background": {"asd"},
    "background_index": {"range"},
    "psd": {"train_asd", "train_whitened", "validation_asd", "test_asd", "test_whitened"},
    "training_waveforms": {"population"},
    "validation_waveforms": {"snr", "population"},
    "injections": {"snr"},
    "model": {"learning_curve", "roc"},
    "engine": {"platforms"},
    "inference_results": {"statistics", "loudest_event"},
    "events": {"statistics", "injections"},
    "sensitive_volume": {"volume", "far", "efficiency"},
    "candidates": {"loudest_event", "zero_lag", "loudest"},
    "report": {"how_to_open"},
}
"""What a scientist finds on the page of each asset, at least."""

TABLES = {"roles", "platforms", "loudest", "how_to_open"}


def _ask(server, query):
    request = urllib.request.Request(f"{server}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["data"]


@pytest.fixture(scope="module")
def graph(finished):
    return lineage.graph(finished.workspace().config)


def test_the_graph_shows_every_asset_in_its_group(ui, graph):
    watched = ui("/asset-groups")
    page = watched.page
    for group in {n.group for n in graph.values()}:
        page.get_by_text(group, exact=True).first.wait_for()
    page.keyboard.press("Alt+KeyE")
    # long names are cut in the middle
    names = {n: re.compile(rf"^({n}|{n[:5]}\w*…\w*{n[-4:]})$") for n in graph}
    for pattern in names.values():
        page.get_by_text(pattern).last.wait_for(state="attached")
    page.wait_for_timeout(5000)
    watched.shot("graph")
    assert watched.errors == []


def test_no_greeting_covers_a_page(server, ui):
    assert _ask(server, "{ shouldShowNux }") == {"shouldShowNux": False}
    watched = ui("/runs")
    watched.page.get_by_text("Success").first.wait_for()
    assert watched.page.get_by_text(re.compile("newsletter|join the dagster community", re.IGNORECASE)).count() == 0
    watched.shot("runs")


@pytest.mark.parametrize("asset", sorted(SHOWN))
def test_the_page_of_an_asset_shows_what_a_scientist_looks_for(asset, ui, graph, finished):
    workspace = finished.workspace()
    rows = workspace.store.manifest("segments").handle.meta["rows"]
    key = sorted(k for k, r in rows.items() if r["role"] == "test")[0] if graph[asset].partitioned else None
    watched = ui(f"/assets/{asset}" + (f"?view=partitions&partition={key}" if key else ""))
    page = watched.page
    rows = {title: page.locator("tr").filter(has=page.get_by_text(title, exact=True)).first for title in sorted(SHOWN[asset])}
    for row in rows.values():
        row.wait_for()
    # the run is a copy: its pages name the place where it was made
    assert workspace.store.manifest(asset, key).handle.uri.rpartition("/store/")[2] in page.inner_text("body").replace("\n", "")
    page.wait_for_timeout(4000)
    watched.shot(f"asset-{asset}")
    for title, row in rows.items():
        if title in TABLES:  # short texts stand in the page itself
            continue
        row.get_by_text("[Show Markdown]").click()
        picture = page.locator(f'img[alt="{title.replace("_", " ")}"]').last
        picture.wait_for()
        width, size = picture.evaluate("e => e.decode().then(() => [e.naturalWidth, e.src.length])")
        assert width > 300 and size < 200_000, f"{title} of {asset}: {width} pixels, {size} bytes"
        page.wait_for_timeout(500)
        watched.shot(f"plot-{asset}-{title}")
        page.get_by_role("button", name="Close", exact=True).click()
        picture.wait_for(state="hidden")
    assert watched.errors == []


def test_checks_tell_their_thresholds(ui):
    watched = ui("/assets/psd?view=checks&checkDetail=whitened_std")
    watched.page.get_by_text("0.9 to 1.3").first.wait_for()
    watched.shot("checks-psd")
    assert watched.errors == []


def test_a_backfill_from_the_page_makes_what_is_missing(ui, server, lost, finished):
    """Of all segments: those that are complete are passed over."""
    before = {k: m.provenance["created"] for k, m in finished.workspace().store.manifests("injections").items()}
    assert lost not in before
    watched = ui("/assets/injections?view=partitions")
    page = watched.page
    page.get_by_text(lost, exact=True).first.wait_for()
    page.locator("text=Materialize…").first.click()
    page.get_by_role("button", name="All", exact=True).click()
    launch = page.get_by_role("button", name="Launch backfill")
    watched.shot("backfill-dialog")
    launch.click()
    launch.wait_for(state="hidden")

    def ended():
        found = _ask(server, "{ partitionBackfillsOrError { ... on PartitionBackfills { results { status error { message } } } } }")
        newest = found["partitionBackfillsOrError"]["results"][:1]
        return newest and newest[0]["status"] not in ("REQUESTED", "COMPLETED", "FAILING") and newest[0]

    done = wait_for(ended, 1500, "the backfill to end")
    assert done["status"] == "COMPLETED_SUCCESS", done
    after = {k: m.provenance["created"] for k, m in finished.workspace().store.manifests("injections").items()}
    assert after.pop(lost) and after == before
    page.goto(f"{server}/assets/injections?view=partitions&partition={lost}", wait_until="domcontentloaded")
    page.get_by_text("[Show Markdown]").first.wait_for()
    watched.shot("backfill-done")


def test_every_asset_has_what_its_page_needs(tmp_path, finished):
    """No browser; kept here because its failure explains the others'."""
    specs = build_defs(finished.workspace().config, store_url=str(tmp_path)).resolve_all_asset_specs()
    assert {s.key.to_user_string() for s in specs} >= set(SHOWN)
    assert all(s.owners and s.kinds and s.group_name and len(s.description) > 60 for s in specs)
