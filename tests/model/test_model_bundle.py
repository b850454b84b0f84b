"""Bundles: round trip, damage, import from a folder or a run, disagreement with the experiment."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from aframe_assets.config import Comparison
from aframe_assets.config_load import ConfigError, build_config, merge
from aframe_assets.model import importing
from aframe_assets.model.bundle import BundleError, describe, load_bundle, save_bundle
from aframe_assets.model.importing import (
    WeightsError,
    check_agreement,
    disagreements,
    find_bundle,
    read_weights,
    settings_of,
    weights_identity,
)
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.preflight import preflight
from aframe_assets.store import KeyParts, open_store

METRICS = {"valid_auroc": 0.9, "valid_efficiency": 0.8, "train_loss": 0.3}


@pytest.fixture
def bundle(tiny_config, tmp_path):
    config = tiny_config()
    torch.manual_seed(0)
    network = build_network(config.model.architecture, Sky.of(config)).eval()
    return network, config, save_bundle(tmp_path / "bundle", network, config, metrics=METRICS, provenance={"seed": 1})


def test_round_trip(bundle):
    network, config, folder = bundle
    loaded = load_bundle(folder)
    x = torch.randn(3, 2, 512)
    assert torch.equal(loaded.network(x), network(x)) and not loaded.network.training
    assert loaded.ifos == ["H1", "L1"] and loaded.sample_rate == 512 and loaded.kernel_size == 512
    assert loaded.conditioning == config.conditioning and loaded.metrics == METRICS
    d = loaded.description
    assert d["input"]["shape"] == ["batch", 2, 512] and d["output"]["shape"] == ["batch", 1] and d["licence"] == "MIT (code and weights)"
    assert d["software"]["torch"] == version("torch") and d["provenance"] == {"seed": 1} and "network" not in d
    assert json.loads((folder / "config.json").read_text())["model"] == config.model_dump(mode="json")["model"]


@pytest.mark.parametrize(("source", "words"), [("gwosc", "credit GWOSC, CC BY 4.0"), ("files", "their owner decides")])
def test_the_licence_follows_from_the_strain(tiny_config, source, words):
    config = tiny_config()
    config = config.model_copy(update={"strain": config.strain.model_copy(update={"source": source})})
    assert words in describe(config, {}, {})["licence"]
    assert "not known here" in describe(config, {}, {"imported_from": {"file": "model.pt"}})["licence"]


def test_damage_is_named(bundle, tmp_path):
    _, _, folder = bundle
    with pytest.raises(BundleError, match=r"bundle\.json: not found"):
        load_bundle(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(BundleError, match=r"model\.safetensors: cannot be read"):
        load_bundle(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"model\.safetensors: not found"):
        load_bundle(folder)
    (folder / "model.safetensors").write_bytes(weights)
    description = json.loads((folder / "bundle.json").read_text())
    description["architecture"]["width"] = 8
    (folder / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(BundleError, match=r"bundle\.json: weights are not those of the architecture: conv1\.weight \[8, ") as e:
        load_bundle(folder)
    assert len(str(e.value).splitlines()) == 1
    (folder / "bundle.json").write_text(json.dumps({"format": "other/1"}))
    with pytest.raises(BundleError, match=r"format = 'other/1': expected 'aframe-bundle/1'"):
        load_bundle(folder)


def test_weights_may_be_a_bundle_folder(bundle, tmp_path):
    _, _, folder = bundle
    assert find_bundle(str(folder)) == folder
    one = weights_identity(str(folder))
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert weights_identity(str(copy)) == one
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes() + b"x")
    assert weights_identity(str(copy)) != one


@pytest.mark.parametrize("root", [None, "elsewhere/artifacts"])
def test_weights_may_be_a_run_directory(bundle, tmp_path, root):
    _, _, folder = bundle
    run = tmp_path / "run"
    run.mkdir()
    (run / "site.yaml").write_text(f"store: {{root: {root}}}\n" if root else "executor: {backend: local}\n")
    with pytest.raises(WeightsError, match=r"holds no model yet; run `aframe run .*run --until model`"):
        find_bundle(str(run))
    store = open_store(str(run / (root or "store")))
    parts = KeyParts(asset="model", code_version="1", partition=None, config={}, inputs={})
    handle = store.publish(parts, folder, {})
    assert load_bundle(find_bundle(str(run))).metrics == METRICS
    assert weights_identity(str(run)) == handle.identity
    store.record_failure(parts.model_copy(update={"code_version": "2"}), "it broke")
    with pytest.raises(WeightsError, match="it broke"):
        find_bundle(str(run))


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "shipped_folder", lambda: tmp_path / "not shipped")
    for value, message in (
        (str(tmp_path / "nothing"), "not found; expected a bundle folder"),
        (str(tmp_path), "neither a bundle folder"),
        ("pretrained", "no such weights are shipped with this version"),
    ):
        with pytest.raises(WeightsError, match=message):
            weights_identity(value)


def test_shipped_weights_are_a_bundle_of_this_package(bundle, monkeypatch):
    _, _, folder = bundle
    monkeypatch.setattr(importing, "shipped_folder", lambda: folder)
    assert find_bundle("pretrained") == folder and weights_identity("pretrained") == weights_identity(str(folder))
    values = {"preset": "demo", "model": {"weights": "pretrained"}}
    assert build_config(values).model.weights == "pretrained"
    settings = settings_of(read_weights("pretrained"))
    assert disagreements(read_weights("pretrained"), build_config(merge(values, settings))) == []
    monkeypatch.setattr(importing, "shipped_folder", lambda: folder.with_name("nothing"))
    with pytest.raises(ConfigError, match="no weights are shipped with this version"):
        build_config(values)


def test_shipped_folder_is_inside_the_package():
    folder = importing.shipped_folder()
    assert folder.name == "pretrained" and (folder.parent / "importing.py").is_file()


def test_disagreements_are_named_with_key_value_and_expectation(bundle, tiny_config):
    _, config, folder = bundle
    assert check_agreement(folder, config)["ifos"] == ["H1", "L1"]
    other = config.model_copy(
        update={
            "ifos": ["H1", "V1"],
            "sample_rate": 1024.0,
            "conditioning": config.conditioning.model_copy(update={"kernel_length": 2.0, "psd_length": 64.0, "highpass": 20.0}),
        }
    )
    with pytest.raises(WeightsError) as e:
        check_agreement(folder, other)
    lines = str(e.value).splitlines()[1:]
    keys = ["ifos", "sample_rate", "conditioning.kernel_length", "conditioning.psd_length", "conditioning.highpass"]
    assert [line.split(" = ")[0] for line in lines] == keys
    assert lines[3].startswith("conditioning.psd_length = 64.0: expected 4.0")
    changed = config.model_copy(update={"conditioning": config.conditioning.model_copy(update={"fduration": 2.0, "fftlength": 2.0})})
    assert len(disagreements(json.loads((folder / "bundle.json").read_text()), changed)) == 2


def test_a_bundle_is_read_before_anything_starts(bundle, tiny_config):
    _, _, folder = bundle

    def found(**changes) -> list[str]:
        config = tiny_config()
        model = config.model.model_copy(update={"weights": str(folder)})
        return preflight(config.model_copy(update={"model": model, **changes}))

    assert found() == []
    (line,) = found(conditioning=tiny_config().conditioning.model_copy(update={"psd_length": 7.0}))
    assert re.match(r"model\.weights = .*bundle: made for other data .* conditioning\.psd_length = 7\.0: expected ", line)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    (line,) = found()
    assert re.match(r"model\.weights: .*model\.safetensors: cannot be read .* copy it again", line)
    # a comparison on this run searches with others
    assert found(comparison=Comparison(models=[("a", "0" * 64)])) == []
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "bundle.json").write_text("[]")
    (line,) = found()
    assert re.match(r"model\.weights: .*bundle\.json: format = None: expected", line)


@pytest.mark.parametrize("text", ["{}", "[]", "3"])
def test_a_description_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(WeightsError, match=r"model\.weights = .*bundle\.json does not describe a model"):
        read_weights(str(tmp_path))


@pytest.mark.parametrize("key", ["weights", "filter_weights"])
def test_empty_weights_do_not_mean_a_training(key):
    with pytest.raises(ConfigError, match=rf"model\.{key} = ''"):
        build_config({"preset": "demo", "model": {key: ""}})


def test_planning_with_weights_loads_no_torch(bundle):
    _, _, folder = bundle
    code = (
        f"import sys; from aframe_assets.model.importing import weights_identity as w; w({str(folder)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
