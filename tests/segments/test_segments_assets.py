"""The body of the asset `segments`, and its paths in an experiment file."""

from __future__ import annotations

import logging

import pytest

from aframe_assets.config_load import load_config
from aframe_assets.segments.assets import assets, make_segments
from aframe_assets.segments.query import read_segments
from aframe_assets.store import open_store
from aframe_assets.store.job import Job


def job(config, scratch):
    return Job(config, "segments", None, {}, None, open_store(scratch / "store"), scratch, scratch, logging.getLogger("test"))


def test_demo_preset(tmp_path):
    (tmp_path / "aframe.yaml").write_text("preset: demo\n")
    config = load_config(tmp_path / "aframe.yaml", env={})
    product = make_segments(job(config, tmp_path))
    roles = product.meta["roles"]
    assert all(c.passed for c in product.checks)
    assert len(roles["test"]["partitions"]) >= 6 and roles["test"]["livetime"] >= 3600 and roles["train"]["livetime"] >= 2400
    assert roles["validation"]["livetime"] >= config.segments.min_valid_duration
    assert read_segments(product.files["segments.txt"]) == read_segments(product.files["segments.csv"])
    assert product.meta["rows"].keys() == {k for r in roles.values() for k in r["partitions"]}
    assert make_segments(job(config, tmp_path)).meta == product.meta
    [asset] = assets(config)
    assert asset.key.path == ["segments"] and {s.name for s in asset.check_specs} == {c.name for c in product.checks}


def test_events_preset_on_real_files(tmp_path, shared_data):
    (tmp_path / "strain").symlink_to(shared_data / "strain")
    (tmp_path / "aframe.yaml").write_text("preset: events\nstrain: {files: [strain]}\nmodel: {weights: elsewhere}\n")
    config = load_config(tmp_path / "aframe.yaml", env={})
    product = make_segments(job(config, tmp_path))
    starts = [1126259446, 1135136334, 1167559920, 1186741846, 1187529241]
    assert list(product.meta["rows"]) == [f"{s}-32" for s in starts]
    assert {r["role"] for r in product.meta["rows"].values()} == {"test"} and all(c.passed for c in product.checks)


def test_too_short_files_fail_the_check_with_both_numbers(tmp_path, shared_data):
    text = "preset: events\nsegments: {test_min_duration: 64}\nmodel: {weights: elsewhere}\n"
    (tmp_path / "aframe.yaml").write_text(f"{text}strain: {{files: ['{shared_data / 'strain'}']}}\n")
    product = make_segments(job(load_config(tmp_path / "aframe.yaml", env={}), tmp_path))
    check = product.checks[0]
    assert not check.passed and "at least 64 s" in check.description and "the longest 32 s" in check.description


@pytest.mark.parametrize("written", ["H1=noise.hdf", "noise.hdf"])
def test_relative_files_are_relative_to_the_experiment(tmp_path, written):
    (tmp_path / "aframe.yaml").write_text(f"preset: events\nstrain: {{files: ['{written}']}}\nmodel: {{weights: elsewhere}}\n")
    config = load_config(tmp_path / "aframe.yaml", env={})
    assert config.strain.files == [written.replace("noise.hdf", str(tmp_path / "noise.hdf"))]
