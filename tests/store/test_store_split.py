"""A store in two places: each asset is in one of them, readers and writers do not notice, and nothing is kept where it would be lost."""

from __future__ import annotations

import pickle

import pytest

from aframe_assets import lineage
from aframe_assets.store import StoreError, open_store
from aframe_assets.store.opening import require_writable
from aframe_assets.store.ranges import StoredFile
from aframe_assets.store.split import MARK, SplitStore, is_training
from aframe_assets.store.syncing import Options, sync
from aframe_ops.site import load_site

TRAINING = {
    "segments",
    "background",
    "background_index",
    "psd",
    "training_waveforms",
    "validation_waveforms",
    "tuned_model",
    "model",
    "filter_model",
}


@pytest.fixture
def split(bucket, tmp_path):
    return open_store(f"{tmp_path / 'run' / 'store'}{MARK}s3://{bucket[1]}/demo", cache_dir=tmp_path / "cache")


def put(store, parts, text="data"):
    with store.scratch() as folder:
        (folder / "x").write_text(text)
        return store.publish(parts, folder)


def test_the_training_part_is_the_networks_and_their_ancestors():
    assert lineage.trained_from() == TRAINING
    beside = {"model_plots", "model_unfinished", "tuned_model_trial", "training_waveforms_shard", "background_plots", "_values", "_leases"}
    assert all(is_training(name) for name in TRAINING | beside)
    assert not any(is_training(name) for name in (lineage.names() - TRAINING) | {"model_repository_plots", "injections_plots", "other"})


def test_each_asset_is_in_its_place(split, make, tmp_path, bucket):
    (tmp_path / "run").mkdir()
    strain, events = put(split, make()), put(split, make("events", None))
    model = put(split, make("model", None), "weights")
    local, remote = split.parts
    assert local.assets() == ["events"] and remote.assets() == ["background", "model"]
    assert split.assets() == ["background", "events", "model"]
    assert strain.uri.startswith(f"s3://{bucket[1]}/demo/") and events.uri.startswith("file://")
    for handle in (strain, events, model):
        assert split.verify(handle) == [] and split.open_local(handle, "x").is_file()
    again = pickle.loads(pickle.dumps(split))
    assert again.complete_many([make()]) == {make().partition: strain} and again.complete(make("events", None)) == events
    assert isinstance(again.open_ranges(strain, "x"), StoredFile) and bytes(again.open_ranges(strain, "x").read(1, 2)) == b"at"
    assert again.open_ranges(events, "x").read_text() == "data"
    split.put_value("runs/r1", 1)
    assert remote.get_value("runs/r1") == 1 and again.get_value("runs/r1") == 1
    require_writable(split)
    # what is beside an artifact goes with it, and its work in progress is where the next node finds it
    assert split.workdir(make("model", None)).is_relative_to(remote.local) and split.workdir(make("events", None)).is_relative_to(
        local.local
    )


def test_a_node_that_does_not_see_the_folder_keeps_nothing_there(split, make, tmp_path):
    model = put(split, make("model", None))
    assert split.complete(make("model", None)) == model
    with pytest.raises(StoreError, match=r"events.* is kept in .*store, which is not here.*executor.routes"):
        put(split, make("events", None))
    assert not (tmp_path / "run").exists()


def test_one_store_becomes_two_and_one_again(split, make, tmp_path):
    (tmp_path / "run").mkdir()
    whole = open_store(tmp_path / "whole")
    handles = [put(whole, make()), put(whole, make("model", None)), put(whole, make("events", None))]
    assert {o.state for o in sync(whole, split)} == {"copied"}
    assert split.parts[0].assets() == ["events"] and split.complete(make()).identity == handles[0].identity
    back = open_store(tmp_path / "back")
    assert [o.state for o in sync(split, back, Options(move=True))] == ["copied"] * 3 and back.assets() == whole.assets()
    assert split.manifests("background") == {} and split.manifests("events") == {}


def test_the_site_names_both(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text("store: {root: store, training: 's3://bucket/demo'}\nhtcondor: {shared_disk: false}\nexecutor: {backend: htcondor}\n")
    assert load_site(file, env={}).store_url == f"{tmp_path / 'store'}{MARK}s3://bucket/demo"
    assert isinstance(open_store(load_site(file, env={}).store_url, cache_dir=tmp_path), SplitStore)
