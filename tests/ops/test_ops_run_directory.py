"""An experiment and site that are read once."""

from __future__ import annotations

import os

import pytest

from aframe_assets.config_load import ConfigError, load_config
from aframe_ops.cli.initialise import initialise
from aframe_ops.site import load_site


def test_what_is_pinned_is_not_reached_by_edits(tmp_path, monkeypatch):
    run, _ = initialise(tmp_path / "run", "demo")
    monkeypatch.setenv("AFRAME_CONFIG", "before")
    monkeypatch.setenv("AFRAME__SEED", "11")
    with run.pinned() as (config, site):
        run.experiment.write_text("preset: demo\nseed: 12\n")
        (run.path / "site.yaml").write_text("store: {root: elsewhere}\n")
        monkeypatch.delenv("AFRAME__SEED")
        assert load_config() == config and config.seed == 11
        assert load_site() == site and site.store_url == str(run.path / "store")
        assert run.workspace(config, site).config.seed == 11
    assert os.environ["AFRAME_CONFIG"] == "before" and "AFRAME_SITE" not in os.environ
    assert run.config().seed == 12 and run.site().store_url == str(run.path / "elsewhere")


def test_on_is_a_key_of_the_site_and_true_where_it_is_a_value(tmp_path):
    """YAML 1.1 reads the word as a truth value, so that the switch of the sensors could not be set."""
    (tmp_path / "site.yaml").write_text("automation:\n  on: on\n")
    assert load_site(tmp_path / "site.yaml", env={}).automation.on is True
    (tmp_path / "site.yaml").write_text("automation: {on: true, off: 1}\n")
    with pytest.raises(ConfigError, match=r"automation\.off = 1: unknown key"):
        load_site(tmp_path / "site.yaml", env={})
