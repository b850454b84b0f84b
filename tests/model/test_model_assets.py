"""The room's assets, made as Dagster makes them, from artifacts under their true keys."""

from __future__ import annotations

import logging
import os
import signal

import dagster as dg
import pytest
import torch

from aframe_assets.config_load import resolved_text
from aframe_assets.model.assets import assets, background_files, make_model
from aframe_assets.model.bundle import load_bundle
from aframe_assets.store.bodies import Experiment
from aframe_assets.store.io_managers import io_manager_for
from aframe_assets.store.job import Job
from aframe_assets.store.workspace import Workspace


def materialize(config, url, *names, **options):
    items = [a for a in assets(config) if isinstance(a, dg.AssetsDefinition) and not isinstance(a, dg.AssetChecksDefinition)]
    resources = {"experiment": Experiment(config_json=resolved_text(config), store_url=url), "io_manager": io_manager_for(url)}
    return dg.materialize(items, selection=list(names), resources=resources, **options)


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
