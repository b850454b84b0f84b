"""Plots beside an artifact: kept with it, small enough, and never worth more than it."""

from __future__ import annotations

import base64
import errno
import io
import logging

import numpy as np
import pytest
from PIL import Image

from aframe_assets.store import open_store
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.job import Product
from aframe_assets.store.plots import keep, kept, plot_markdown, rendered, small


def _noise(width, height):
    """What a PNG packs worst."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(50, 40), (600, 400), (2000, 1500)])
def test_any_picture_fits_on_a_page_and_stays_a_picture(size):
    text = plot_markdown("a plot", _noise(*size))
    assert len(text) < 200_000
    picture = Image.open(io.BytesIO(base64.b64decode(text.partition("base64,")[2].rstrip(")"))))
    picture.load()
    assert picture.format == "PNG" and picture.width / picture.height == pytest.approx(size[0] / size[1], rel=0.02)


def test_a_small_picture_is_left_as_it_is():
    png = _noise(20, 20)
    assert small(png) is png


def test_a_plot_that_fails_costs_a_warning(caplog):
    def broken():
        raise ZeroDivisionError("no events")

    shown = rendered(Product({}, plots={"bad": broken, "good": lambda: _noise(4, 4)}, markdown={"table": "|a|"}), logging.getLogger())
    assert list(shown) == ["good", "table"]
    assert "'bad'" in caplog.text and "no events" in caplog.text


def test_what_is_kept_is_read_back_for_the_same_artifact_only(tmp_path):
    store, parts = open_store(tmp_path / "store"), KeyParts(asset="events", code_version="1", partition="10-5")
    file = tmp_path / "x"
    file.write_text("x")
    handle = store.publish(parts, {"x": file})
    assert kept(store, handle) == {}
    shown = {"b": "![b](data:)", "a": "|a|\n|-|\n"}
    keep(store, parts, shown, tmp_path / "page")
    assert list(kept(store, handle).items()) == list(shown.items())
    assert store.manifest("events", "10-5").handle == handle, "plots are no part of the artifact"
    later = store.publish(parts.model_copy(update={"code_version": "2"}), {"x": file})
    assert kept(store, later) == {}


def test_plots_that_cannot_be_kept_harm_nothing(tmp_path, monkeypatch):
    store, parts = open_store(tmp_path / "store"), KeyParts(asset="events", code_version="1")
    file = tmp_path / "x"
    file.write_text("x")
    handle = store.publish(parts, {"x": file})
    asked = []

    def full(*_, **__):
        asked.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "publish", full)
    keep(store, parts, {"a": "b"}, tmp_path / "page")
    assert asked and kept(store, handle) == {} and store.manifest("events", None).handle == handle


def test_plots_whose_bytes_are_gone_are_not_shown(tmp_path):
    store, parts = open_store(tmp_path / "store"), KeyParts(asset="events", code_version="1")
    file = tmp_path / "x"
    file.write_text("x")
    handle = store.publish(parts, {"x": file})
    keep(store, parts, {"a": "b"}, tmp_path / "page")
    next((tmp_path / "store" / "events_plots").rglob("a.md")).unlink()
    assert kept(store, handle) == {}
