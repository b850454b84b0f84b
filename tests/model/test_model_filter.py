"""The filter of a cascade: trained and imported like a model, with its scores of slid background."""

from __future__ import annotations

import json
import logging
import shutil

import dagster as dg
import numpy as np
import pytest
import torch

from aframe_assets.config import Config
from aframe_assets.config_load import build_config, resolved_text
from aframe_assets.model.assets import assets, make_filter_model
from aframe_assets.model.background_scores import BACKGROUND_SCORES, BackgroundScores, filter_experiment, score_background
from aframe_assets.model.bundle import BundleError, load_bundle
from aframe_assets.model.importing import WeightsError, find_bundle, weights_identity
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.model.validation import ValidationSet
from aframe_assets.store.bodies import Experiment
from aframe_assets.store.io_managers import io_manager_for
from aframe_assets.store.job import Job
from aframe_assets.store.workspace import Workspace

JOINT = {"name": "streaming", "layers": [1, 1], "width": 4, "norm_groups": 2, "stem_kernel": 7, "stem_stride": 2, "context": 0.125}
FILTER = JOINT | {"name": "map", "width": 2, "lag_head": {"map_stride": 8, "channels": 4, "groups": 2, "hidden": 3}}


def cascade(config: Config, **model) -> Config:
    tree = config.model_dump(mode="json")
    tree["model"] |= {"architecture": JOINT, "filter": FILTER} | model
    # the little background that there is
    tree["inference"]["cascade"]["keep"] = 0.5
    return build_config(tree)


def materialize(config: Config, url: str, name: str) -> dg.ExecuteInProcessResult:
    items = [a for a in assets(config) if isinstance(a, dg.AssetsDefinition) and not isinstance(a, dg.AssetChecksDefinition)]
    resources = {"experiment": Experiment(config_json=resolved_text(config), store_url=url), "io_manager": io_manager_for(url)}
    return dg.materialize(items, selection=[name], resources=resources)


@pytest.fixture
def trained(published, tiny_config):
    """A store with a trained model and filter_model, its URL and the experiment."""
    config = cascade(tiny_config(max_epochs=1))
    store, url = published(config)
    assert materialize(config, url, "model").success
    assert materialize(config, url, "filter_model").success
    return store, url, config


def test_the_filter_is_trained_with_its_own_architecture_and_imported_with_its_scores(trained, tmp_path):
    store, url, config = trained
    manifest = store.manifest("filter_model")
    folder = store.open_local(manifest.handle)
    bundle = load_bundle(folder)
    assert bundle.architecture == config.model.filter
    assert bundle.description["provenance"]["inputs"]["model"] == store.manifest("model").handle.identity
    rows = (folder / "metrics.csv").read_text().splitlines()
    assert "valid_correlation" in rows[0] and len(rows) == 2
    assert {c["name"] for c in manifest.checks} == {"validation_metric_above_chance", "training_loss_finite"}
    scores = BackgroundScores.read(folder / BACKGROUND_SCORES)
    joint = BackgroundScores.read(store.open_local(store.manifest("model").handle) / BACKGROUND_SCORES)
    assert joint.livetime == scores.livetime > config.model.training.valid_livetime
    assert len(scores.slides) == len(joint.slides) and not np.array_equal(scores.slides[0], joint.slides[0])
    assert scores.rate == 512 / bundle.network.total_stride
    assert scores.livetime == manifest.handle.meta["background_livetime"] == bundle.description["background_scores"]["livetime"]
    # from the bundle's folder, and from the run directory whose store it is
    run = tmp_path / "run"
    shutil.copytree(url, run / "store")
    folder = find_bundle(str(run), "filter_model")
    for weights in (str(folder), str(run)):
        other = cascade(config, filter_weights=weights)
        assert materialize(other, url, "filter_model").success
        imported = store.manifest("filter_model").handle
        assert imported.meta["imported"]
        copied = store.open_local(imported)
        assert (copied / BACKGROUND_SCORES).read_bytes() == (folder / BACKGROUND_SCORES).read_bytes()
        assert (copied / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_weights_that_cannot_be_a_filter_are_refused(trained, tmp_path):
    store, _, config = trained

    def imported(weights):
        scratch = tmp_path / f"scratch {weights.name}"
        scratch.mkdir()
        job = Job(
            cascade(config, filter_weights=str(weights)), "filter_model", None, {}, None, store, scratch, scratch, logging.getLogger("t")
        )
        return make_filter_model(job)

    folder = store.open_local(store.manifest("filter_model").handle)
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / BACKGROUND_SCORES).unlink()
    with pytest.raises(WeightsError, match=f"model.filter_weights = .*no {BACKGROUND_SCORES}"):
        imported(bare)
    # planning says so too, of either network, before anything is made
    assert weights_identity(str(bare)) != weights_identity(str(folder))
    for asset, key in (("model", "weights"), ("filter_model", "filter_weights")):
        with pytest.raises(WeightsError, match=f"model.{key} = .*no {BACKGROUND_SCORES}"):
            Workspace(cascade(config, **{key: str(bare)}), store).wanted(asset, None)
    other = shutil.copytree(folder, tmp_path / "other")
    description = json.loads((other / "bundle.json").read_text())
    description["architecture"]["context"] = 0.25
    (other / "bundle.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match=r"model.filter_weights = (.|\n)*model.filter.context = 0.125: expected 0.25"):
        imported(other)
    with pytest.raises(WeightsError, match=r"holds no filter_model yet; run `aframe run .* --until filter_model`"):
        (tmp_path / "empty" / "store").mkdir(parents=True)
        find_bundle(str(tmp_path / "empty"), "filter_model")
    with pytest.raises(ValueError, match=r"model.filter_weights = .*expected a network in model.filter"):
        cascade(config, filter=None, filter_weights=str(folder))


def test_background_scores_are_those_of_every_window_by_itself(tiny_config, tiny_data):
    config = filter_experiment(cascade(tiny_config()))
    torch.manual_seed(1)
    network = build_network(config.model.architecture, Sky.of(config)).eval()
    data = ValidationSet(config, tiny_data.background["validation"], tiny_data.validation)
    scores = score_background(network, data, config.sample_rate)
    assert len(scores.slides) == len(data.slides) > 1
    for slide, found in zip(data.slides, scores.slides, strict=True):
        windows = data.stretch(slide).unfold(-1, data.placement.kernel, network.total_stride).transpose(0, 1)
        with torch.no_grad():
            alone = network(windows)[:, 0].numpy()
        assert found.shape == alone.shape and np.abs(found - alone).max() < 1e-5
    # those of the validation's own windows are among them
    step = round(config.model.training.valid_stride * scores.rate)
    with torch.no_grad():
        first = network(next(data.background(4))[1])[:, 0].numpy()
    assert np.abs(scores.slides[0][: 4 * step : step] - first).max() < 1e-5


def test_scores_are_kept_and_read_at_an_inference_rate(tmp_path):
    slides = [np.random.default_rng(i).normal(0, 5, n).astype(np.float32) for i, n in enumerate((50, 1, 33))]
    path = BackgroundScores(32.0, slides).write(tmp_path / BACKGROUND_SCORES)
    read = BackgroundScores.read(path)
    assert read.livetime == 84 / 32 and [len(s) for s in read.slides] == [50, 1, 33]
    for a, b in zip(read.at(4), slides, strict=True):
        assert a.dtype == np.float64 and (a == b[::8]).all()
    with pytest.raises(ValueError, match="inference_rate = 5: expected a rate that divides the 32 Hz of the networks"):
        read.at(5)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BundleError, match="damaged"):
        BackgroundScores.read(path)
    with pytest.raises(BundleError, match="cannot be read"):
        BackgroundScores.read(tmp_path / "absent.npz")


def test_a_direct_model_can_be_a_filter(published, tiny_config, tmp_path):
    tree = cascade(tiny_config(max_epochs=1)).model_dump(mode="json")
    alone = {"model": tree["model"] | {"architecture": FILTER, "filter": None}, "inference": tree["inference"] | {"cascade": {}}}
    direct = build_config(tree | alone)
    store, url = published(direct)
    assert materialize(direct, url, "model").success
    folder = store.open_local(store.manifest("model").handle)
    assert BackgroundScores.read(folder / BACKGROUND_SCORES).livetime > 0
    config = cascade(direct, filter_weights=str(folder))
    assert materialize(config, url, "filter_model").success
