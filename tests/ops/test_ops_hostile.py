"""200 strings that would do harm in one shell or another, as config values, folders, partition keys and variables."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hostile import hostile
from typer.testing import CliRunner

from aframe_assets.config_load import ConfigError, build_config, load_config, write_resolved
from aframe_assets.store.base import folder_of
from aframe_ops.cli import templates
from aframe_ops.cli.main import app
from aframe_ops.site import load_site


@pytest.fixture
def texts(tmp_path) -> list[str]:
    marker = tmp_path / "marker"
    made = hostile(marker)
    assert len(made) == 200
    yield made
    assert not marker.exists(), "one of them was executed"


def test_as_partition_keys_and_asset_names_they_are_refused_or_stay_in_their_folder(texts, tmp_path):
    refused = 0
    for text in texts:
        for asset, partition in ((text, None), ("strain", text)):
            try:
                where = folder_of(asset, partition)
            except ValueError as e:
                assert repr(text) in str(e)
                refused += 1
                continue
            assert text in where.split("/") and (tmp_path / where).resolve().parent.parent == tmp_path
    assert refused > 300


@pytest.mark.parametrize("section", [("waveforms", "prior"), ("model", "weights")])
def test_as_config_values_they_are_refused_by_name_or_kept_as_they_are(texts, section, tmp_path):
    kept = 0
    for text in texts:
        data = {"preset": "demo", section[0]: {section[1]: text}}
        try:
            config = build_config(data, env={})
        except ConfigError as e:
            assert ".".join(section) in str(e)
            continue
        again = load_config(write_resolved(config, tmp_path / "resolved"), env={})
        assert getattr(getattr(again, section[0]), section[1]) == text
        kept += 1
    assert kept > 0
    for text in texts:
        with pytest.raises(ConfigError, match="name"):
            build_config({"preset": "demo", "name": text + "$"}, env={})


def test_as_run_directories_they_hold_a_run_and_nothing_is_outside(texts, tmp_path):
    names = [t for t in texts if "/" not in t and len(t.encode()) < 200]
    assert len(names) > 60
    root = tmp_path / "runs"
    root.mkdir()
    for name in names:
        run = root / name
        made = CliRunner().invoke(app, ["init", str(run), "--preset", "demo"])
        assert made.exit_code == 0, (name, made.output)
        assert load_config(run / "aframe.yaml", env={}).preset == "demo"
        assert load_site(run / "site.yaml", env={}).store_url == str(run / "store")
    assert {p.name for p in root.iterdir()} == set(names)


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_as_variables_of_env_sh_they_are_what_they_are(texts, shell, tmp_path):
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.sh").write_text(templates.environment({"AFRAME_CONFIG": text}, ":"))
    lines = "".join(f". ./{number}.sh; printf '%s\\0' \"$AFRAME_CONFIG\"; " for number in range(len(texts)))
    done = subprocess.run([shell, "-c", lines], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == texts
    assert {p.suffix for p in Path(tmp_path).iterdir()} == {".sh"}
