"""Which models are compared: names, what is wrong with them before anything is searched, keys."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aframe_assets import lineage
from aframe_assets.comparing.models import ComparisonError, expand, keep_bundle, kept_bundle, of_model, read_model, step_name
from aframe_assets.config import Comparison
from aframe_assets.config_load import build_config
from aframe_assets.model.bundle import read_description, save_bundle
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.segments.geometry import SlideGeometry
from aframe_assets.store import open_store
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.work import compared_parts, makes, work_of
from aframe_ops.cli.progress import step_label

CONFIG = build_config({"preset": "demo", "model": {"architecture": {"width": 4, "layers": [1, 1, 1, 1]}}})


@pytest.fixture
def bundle(tmp_path):
    torch.manual_seed(0)
    network = build_network(CONFIG.model.architecture, Sky.of(CONFIG))
    return save_bundle(tmp_path / "runs" / "a" / "bundle", network, CONFIG, metrics={"valid_auroc": 0.9}, provenance={"seed": 1})


def test_globs_paths_and_names(tmp_path, monkeypatch):
    for name in ("runs/a/bundle", "runs/b/bundle", "other/wide"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "runs" / "README.md").write_text("not a model")
    monkeypatch.chdir(tmp_path)
    asked = expand(["runs/*/bundle", "other/wide", "pretrained", "runs/a/bundle", "nothing/*"])
    assert [a.weights for a in asked] == ["runs/a/bundle", "runs/b/bundle", "other/wide", "pretrained", "nothing/*"]
    assert [a.name for a in asked] == ["a/bundle", "b/bundle", "wide", "pretrained", "*"]
    assert [a.weights for a in expand(["runs/*"])] == ["runs/a", "runs/b"]
    # each once, however it is written
    (tmp_path / "latest").symlink_to(tmp_path / "runs" / "a")
    several = ["runs/b", "runs/b/", "./runs/*", str(tmp_path / "runs" / "b"), "latest"]
    assert [(a.name, a.weights) for a in expand(several)] == [("b", "runs/b"), ("a", "./runs/a")]
    assert step_name("a/bundle", "0123456789") == "a_bundle_012345"
    assert step_label("compared_models.make_compared_models[a_bundle_012345]") == "compared_models (make a_bundle_012345)"


@pytest.mark.parametrize("name", ["", "x" * 300, "~nobody-of-this-name/model"])
def test_what_can_be_no_path_is_a_missing_model_and_not_where_one_is(bundle, name, monkeypatch):
    monkeypatch.chdir(bundle)
    (asked,) = expand([name])
    assert asked.weights == name
    with pytest.raises(ComparisonError, match="not found; expected a bundle folder"):
        read_model(name, CONFIG)


def test_a_good_bundle_is_kept_once_and_found_again(bundle, tmp_path):
    assert read_model(str(bundle), CONFIG) == bundle
    store = open_store(tmp_path / "store")
    sha256 = keep_bundle(store, bundle)
    assert keep_bundle(store, shutil.copytree(bundle, tmp_path / "copy")) == sha256
    handle = kept_bundle(store, sha256)
    assert handle.sha256 == sha256
    assert read_description(store.open_local(handle)) == read_description(bundle)
    with pytest.raises(ComparisonError, match=r"is not in .* any more; `aframe compare` puts it there"):
        kept_bundle(store, "0" * 64)


def _nan(folder):
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = np.nan
    save_file(weights, folder / "model.safetensors")


def _described(**values):
    def change(folder):
        found = json.loads((folder / "bundle.json").read_text())
        (folder / "bundle.json").write_text(json.dumps(found | values))

    return change


BROKEN = {
    "missing": (shutil.rmtree, "not found; expected a bundle folder"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: not found; the bundle is incomplete"),
    "cut short": (lambda f: (f / "model.safetensors").write_bytes(b"half"), "the file is damaged, copy it again"),
    "not JSON": (lambda f: (f / "bundle.json").write_text("{"), "cannot be read as JSON"),
    "not finite": (_nan, "some of its weights are not finite numbers"),
    "other detectors": (_described(ifos=["L1", "H1"]), r"for ifos \['L1', 'H1'\], the data are of \['H1', 'L1'\]"),
    "other rate": (_described(sample_rate=4096), "for sample_rate 4096.0, the data are of 2048.0"),
    "impossible": (
        _described(conditioning=CONFIG.conditioning.model_dump(mode="json") | {"psd_length": 0.5}),
        "conditioning.psd_length = 0.5: expected at least fftlength",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_bundle_is_told_before_anything_is_searched(case, bundle):
    spoil, message = BROKEN[case]
    spoil(bundle)
    with pytest.raises(ComparisonError, match=message):
        read_model(str(bundle), CONFIG)


def test_a_search_with_a_model_takes_its_conditioning_and_nothing_else(bundle):
    description = read_description(bundle)
    description["conditioning"]["psd_length"] = 16.0
    cascade = CONFIG.model_copy(update={"inference": CONFIG.inference.model_copy(update={"mode": "triton"})})
    own = of_model(cascade, description)
    assert own.conditioning.psd_length == 16 and CONFIG.conditioning.psd_length == 8
    assert own.inference == CONFIG.inference.model_copy(update={"mode": "inprocess", "zero_lag": False})
    same = ("segments", "strain", "injections", "sensitivity", "vetoes", "ifos", "seed")
    assert all(getattr(own, name) == getattr(CONFIG, name) for name in same)


def _with(*models):
    return CONFIG.model_copy(update={"comparison": Comparison(models=list(models))})


def _parts(config, asset="compared_models"):
    node = lineage.graph(config)[asset]
    return KeyParts(asset=asset, code_version=node.code_version, config=config.select(node.config, node.free))


def test_a_models_search_does_not_depend_on_what_it_is_compared_with():
    a, b = ("wide", "a" * 64), ("deep", "b" * 64)
    alone, both = _parts(_with(a)), _parts(_with(b, a))
    assert alone.key != both.key
    assert compared_parts(alone, "a" * 64) == compared_parts(both, "a" * 64) != compared_parts(both, "b" * 64)
    # nor on what is asked of the result, on memory, or on where the network runs
    other = _with(a).model_copy(
        update={
            "sensitivity": CONFIG.sensitivity.model_copy(update={"fars_per_hour": [2.0]}),
            "inference": CONFIG.inference.model_copy(update={"memory_gb": 9.0}),
        }
    )
    assert _parts(other).key == alone.key
    assert _parts(other, "comparison").key != _parts(_with(a), "comparison").key
    # the first is what others are compared with
    assert _parts(_with(a, b), "comparison").key != _parts(_with(b, a), "comparison").key


def test_without_a_comparison_the_graph_is_what_it_was():
    assert not {"compared_models", "comparison"} & set(lineage.graph(CONFIG))
    assert list(lineage.graph(_with(("wide", "a" * 64))))[-2:] == ["compared_models", "comparison"]
    assert Comparison(models=[("x", "a" * 64), ("y", "b" * 64), ("z", "a" * 64)]).bundles == {"a" * 64: "x", "b" * 64: "y"}


def test_two_runs_know_that_they_search_with_the_same_model():
    class Known:
        def wanted(self, asset):
            return type("Wanted", (), {"parts": _parts(_with(("wide", "a" * 64)), asset)})

    tag = makes("compared_models", "models")["aframe/work"]
    assert work_of(tag, Known(), ["a" * 64]) == [compared_parts(_parts(_with(("wide", "a" * 64))), "a" * 64)]


def test_injections_are_seen_whole_where_they_may_be_placed():
    """`sees` is what placed them; and, output by output, that every window that holds the signal counts."""
    geometry = SlideGeometry(1000.0, 120.0, 8.0, 1.0, 1.5, 4.0, 1.5, vetoes=(((1050.0, 1052.0),), ()))
    shift = (0.0, 3.0)
    rng = np.random.default_rng(0)
    placed = geometry.injection_times(shift, step=2.0, buffer=0.0, jitter=0.1, rng=rng)
    assert len(placed) > 30 and geometry.sees(shift, placed).all()
    times = np.arange(1000.0, 1120.0, 0.3)
    edges, good = geometry.right_edges(shift), geometry.valid(shift)
    rate, reach = geometry.inference_rate, geometry.kernel_length + geometry.integration_window_length
    for time, found in zip(times, geometry.sees(shift, times), strict=True):
        wanted = np.arange(np.ceil((time - edges[0]) * rate - 1e-6), np.floor((time + reach - edges[0]) * rate + 1e-6) + 1).astype(int)
        there = (wanted >= 0).all() and (wanted < len(edges)).all()
        assert found == (there and bool(good[wanted].all())), time
