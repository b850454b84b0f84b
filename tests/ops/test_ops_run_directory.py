"""An experiment and site that are read once."""

from __future__ import annotations

import os

from aframe_assets.config_load import load_config
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
