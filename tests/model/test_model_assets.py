"""The room's assets, made as Dagster makes them, from artifacts under their true keys."""

from __future__ import annotations

import json
import logging
import os
import signal

import dagster as dg
import pytest
import torch

from aframe_assets.config_load import resolved_text
from aframe_assets.model.assets import assets, background_files, make_model
from aframe_assets.model.bundle import load_bundle
from aframe_assets.model.tuning import ask, best_record, distributions, with_training
from aframe_assets.store.bodies import Experiment
from aframe_assets.store.io_managers import io_manager_for
from aframe_assets.store.job import Job
from aframe_assets.store.workspace import Workspace

TUNE = {
    "num_rounds": 2,
    "trials_per_round": 2,
    "max_epochs": 1,
    "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "batch_size": {"low": 8, "high": 16}},
}


def materialize(config, url, *names, **options):
    items = [a for a in assets(config) if isinstance(a, dg.AssetsDefinition) and not isinstance(a, dg.AssetChecksDefinition)]
    resources = {"experiment": Experiment(config_json=resolved_text(config), store_url=url), "io_manager": io_manager_for(url)}
    return dg.materialize(items, selection=list(names), resources=resources, **options)


def made_by(result) -> set[str]:
    return {e.step_key for e in result.all_events if e.event_type_value == "STEP_SUCCESS"}


def weighted(config, **model):
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


def test_model_is_trained_and_another_experiment_imports_it(published, tiny_config, tmp_path):
    config = tiny_config(max_epochs=2)
    store, url = published(config)
    assert materialize(config, url, "model").success
    manifest = store.manifest("model")
    folder = store.open_local(manifest.handle)
    names = {f.name.split("/")[0] for f in manifest.handle.files}
    assert names == {"bundle.json", "model.safetensors", "metrics.csv", "config.json"}
    logs = store.manifest("model_logs").handle  # beside it: they hold times, and equal trainings must have equal content
    assert {f.name.split("/")[0] for f in logs.files} == {"csv", "tensorboard"}
    assert {c["name"] for c in manifest.checks} == {"validation_metric_above_chance", "training_loss_finite"}
    bundle = load_bundle(folder)
    assert bundle.description["provenance"]["inputs"]["training_waveforms"] == store.manifest("training_waveforms").handle.identity
    # imported from the bundle's folder, by an experiment of its own store
    other = weighted(config, weights=str(folder))
    wanted = Workspace(other, store).wanted("model")
    assert wanted.inputs == {} and "weights" in wanted.parts.inputs
    assert materialize(other, url, "model").success
    imported = store.manifest("model").handle
    assert imported.meta["imported"] and imported.meta["valid_auroc"] == manifest.handle.meta["valid_auroc"]
    a, b = load_bundle(store.open_local(imported)).network.state_dict(), bundle.network.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_how_a_training_goes_is_seen_while_it_goes(published, tiny_config, monkeypatch):
    from aframe_assets.model import bundle

    config = tiny_config(max_epochs=2)
    training = config.execution.training.model_copy(update={"observe_every": 0.0, "checkpoint_every": 1e-6})
    config = config.model_copy(update={"execution": config.execution.model_copy(update={"training": training})})
    store, url = published(config)
    seen = []

    def saved(*args, **kwargs):  # the network is trained, and nothing is materialized yet
        (run,) = instance.get_runs()
        records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_OBSERVATION).records
        seen.extend(r.asset_observation.metadata for r in records)
        assert store.manifest("model_unfinished").handle.meta["step"] > 6
        return save(*args, **kwargs)

    save = bundle.save_bundle
    monkeypatch.setattr(bundle, "save_bundle", saved)
    with dg.DagsterInstance.ephemeral() as instance:
        assert materialize(config, url, "model", instance=instance).success
    first, *others = seen
    assert first["example_batch_size"].value == 16 and first["example batch"].value.startswith("![example batch](data:image/png")
    assert [m["step"].value for m in others if "steps_per_s" in m] == [s for s in range(1, 12) if s % 6]
    curves = [m for m in others if "learning curve" in m]
    assert [m["step"].value for m in curves] == [6, 12] and all(0 <= m["valid_auroc"].value <= 1 for m in curves)
    assert store.manifest("model_unfinished") is None


def test_a_training_that_makes_room_is_tried_again_beyond_the_retries_of_failures(published, tiny_config, monkeypatch):
    from aframe_assets.model.lightning_module import Detector

    config = tiny_config(max_epochs=1)
    assert config.execution.max_retries == 1
    store, url = published(config)
    original, asked = Detector.training_step, []

    def training_step(self, batch, index):
        if len(asked) < 3 and self.global_step == len(asked):
            asked.append(self.global_step)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, index)

    monkeypatch.setattr(Detector, "training_step", training_step)
    result = materialize(config, url, "model")
    assert result.success and asked == [0, 1, 2]
    assert len([e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]) == 3
    assert store.manifest("model").handle.meta["resumed_from_step"] == 3


def test_tuning_runs_its_rounds_and_the_model_takes_the_best(published, tiny_config):
    config = weighted(tiny_config(max_epochs=1), tune=type(tiny_config().model).model_validate({"tune": TUNE}).tune)
    store, url = published(config)
    result = materialize(config, url, "tuned_model", "model")
    assert result.success and len([s for s in made_by(result) if "try_tuned_model" in s]) == 4
    handle = store.manifest("tuned_model").handle
    study = json.loads(store.open_local(handle, "study.json").read_text())["trials"]
    assert [(t["round"], t["index"]) for t in study] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    best = json.loads(store.open_local(handle, "best.json").read_text())
    assert best["params"] == best_record(study)["params"] and best["valid_auroc"] == max(t["meta"]["valid_auroc"] for t in study)
    description = json.loads(store.open_local(store.manifest("model").handle, "bundle.json").read_text())
    assert description["provenance"]["tuned"] == best["params"]
    # the same proposals for the same records
    assert ask(config, study[:2], 1) == [t["params"] for t in study[2:]] and ask(config, [], 0) == [t["params"] for t in study[:2]]
    again = materialize(config, url, "tuned_model")
    assert again.success and store.manifest("tuned_model").handle == handle
    assert not [s for s in made_by(again) if "try_tuned_model" in s]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_speed": {"low": 0, "high": 1}}, "learning_speed is no key of model.training"),
        ({"learning_rate": {"low": 1.0, "high": 0.1}}, "learning_rate = .*expected low, high"),
        ({"learning_rate": {"lowest": 1.0}}, "expected low, high"),
    ],
)
def test_a_search_space_that_cannot_be(space, message):
    with pytest.raises(ValueError, match=message):
        distributions(space)


def test_search_spaces_follow_the_kind_of_setting(tiny_config):
    kinds = {k: type(v).__name__ for k, v in distributions({**TUNE["space"], "patience": {"low": 1, "high": 3}}).items()}
    assert kinds == {"learning_rate": "FloatDistribution", "batch_size": "IntDistribution", "patience": "IntDistribution"}
    with pytest.raises(ValueError, match="learning_rate"):
        with_training(tiny_config(), {"learning_rate": -1.0})


def test_a_missing_role_is_an_error(published, tiny_config, tmp_path):
    config = tiny_config()
    store, _ = published(config)
    handle = store.manifest("background_index").handle
    cut = handle.model_copy(update={"meta": {"roles": {"train": handle.meta["roles"]["train"]}}})
    job = Job(config, "model", None, {"background_index": cut}, None, store, tmp_path, tmp_path, logging.getLogger("test"))
    with pytest.raises(ValueError, match="no background of role 'validation'"):
        background_files(job)


def test_weights_for_another_experiment_are_refused_before_anything_is_made(published, tiny_config, tmp_path):
    config = tiny_config(max_epochs=1)
    store, url = published(config)
    materialize(config, url, "model")
    folder = store.open_local(store.manifest("model").handle)
    other = weighted(tiny_config(), weights=str(folder)).model_copy(update={"ifos": ["L1", "H1"]})
    job = Job(other, "model", None, {}, None, store, tmp_path / "scratch", tmp_path, logging.getLogger("test"))
    with pytest.raises(ValueError, match=r"ifos = \['L1', 'H1'\]: expected \['H1', 'L1'\]"):
        make_model(job)
    assert not (tmp_path / "scratch").exists()
