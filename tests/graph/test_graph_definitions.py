"""The shape of the graph: furniture of every asset, and that looking at it costs little."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import dagster as dg
import pytest

from aframe_assets import lineage
from aframe_assets.config_load import ConfigError, build_config
from aframe_assets.definitions import build_defs
from aframe_assets.tags import RESOURCES_TAG

TABLE = {
    "segments",
    "background",
    "background_index",
    "psd",
    "training_waveforms",
    "validation_waveforms",
    "injections",
    "model",
    "exported_model",
    "engine",
    "model_repository",
    "inference_results",
    "events",
    "sensitive_volume",
    "candidates",
    "report",
}
PARTITIONED = {"background", "injections", "inference_results"}
FIELDS = {"cpus", "memory_gb", "gpus", "gpu_memory_gb", "time_min", "disk_gb", "container"}


def _defs(tmp_path, **overrides) -> dg.Definitions:
    return build_defs(build_config({"preset": "demo", **overrides}), store_url=str(tmp_path / "store"))


def _graph(defs: dg.Definitions):
    return defs.resolve_asset_graph()


def test_every_asset_of_the_design_is_there(tmp_path):
    graph = _graph(_defs(tmp_path))
    assert {k.to_user_string() for k in graph.get_all_asset_keys()} == TABLE


def test_pages_of_assets_and_checks_tell_what_they_are(tmp_path):
    """Descriptions come from docstrings, with what decides an asset and without sections meant for programmers."""
    specs = {s.key.to_user_string(): s for s in _defs(tmp_path, execution={"owners": ["team:cbc", "a@b.org"]}).resolve_all_asset_specs()}
    for name, spec in specs.items():
        assert len(spec.description.splitlines()[0]) > 40 and spec.kinds and spec.owners == ["team:cbc", "a@b.org"], name
        assert "Raises:" not in spec.description and "settings change: `" in spec.description, name
    assert "`segments`" in specs["segments"].description
    graph = _graph(_defs(tmp_path))
    said = {k: graph.get_check_spec(k).description for k in graph.asset_check_keys}
    assert all(text and text.endswith(".") for text in said.values()), said
    assert "0.9 to 1.3" in next(t for k, t in said.items() if k.name == "whitened_std")


@pytest.mark.parametrize("owner", ["cbc", "team:", "a@b", "team:a b"])
def test_an_owner_that_dagster_would_refuse_is_refused_with_its_key(owner):
    with pytest.raises(ConfigError, match=r"execution\.owners"):
        build_config({"preset": "demo", "execution": {"owners": [owner]}})


def test_tuning_adds_an_asset_and_weights_leave_the_training_set_out(tmp_path):
    tuned = _graph(_defs(tmp_path, model={"tune": {}}))
    assert {k.to_user_string() for k in tuned.get_all_asset_keys()} == TABLE | {"tuned_model"}
    imported = _graph(_defs(tmp_path, model={"weights": str(tmp_path)}))
    assert {k.to_user_string() for k in imported.get_all_asset_keys()} == TABLE - {"training_waveforms", "validation_waveforms"}


CASCADE = {
    "architecture": {"name": "streaming", "layers": [1, 1], "width": 4, "context": 0.125},
    "filter": {"name": "map", "layers": [1, 1], "width": 4, "context": 0.125, "lag_head": {"map_stride": 8, "channels": 4, "groups": 2}},
}


@pytest.mark.parametrize(
    ("weights", "absent"),
    [
        ((), set()),
        (("weights",), set()),
        (("filter_weights",), set()),
        (("weights", "filter_weights"), {"training_waveforms", "validation_waveforms"}),
    ],
)
def test_a_filter_adds_an_asset_that_export_and_inference_read(tmp_path, weights, absent):
    model = CASCADE | dict.fromkeys(weights, str(tmp_path))
    graph = _graph(_defs(tmp_path, model=model))
    assert {k.to_user_string() for k in graph.get_all_asset_keys()} == (TABLE | {"filter_model"}) - absent
    for name in ("exported_model", "inference_results"):
        assert dg.AssetKey("filter_model") in graph.get(dg.AssetKey(name)).parent_keys
    # the thresholds are found on what both networks say of background; without a filter nothing is asked of either
    assert dg.AssetKey("model") in graph.get(dg.AssetKey("inference_results")).parent_keys
    alone = _graph(_defs(tmp_path, model={"architecture": CASCADE["architecture"]}))
    assert dg.AssetKey("model") not in alone.get(dg.AssetKey("inference_results")).parent_keys
    follows = dg.AssetKey("model") in graph.get(dg.AssetKey("filter_model")).parent_keys
    assert follows == ("filter_weights" not in weights)
    trained = {"model": "weights" not in weights, "filter_model": "filter_weights" not in weights}
    for name, wanted in trained.items():
        assert (dg.AssetKey("training_waveforms") in graph.get(dg.AssetKey(name)).parent_keys) == wanted


def test_the_settings_of_one_network_are_not_in_the_key_of_the_other():
    with_filter, without = (build_config({"preset": "demo", "model": m}) for m in (CASCADE, {"architecture": CASCADE["architecture"]}))
    other = build_config({"preset": "demo", "model": CASCADE | {"architecture": CASCADE["architecture"] | {"width": 8}}})
    nodes = lineage.graph(with_filter)
    key = nodes["model"].config
    assert with_filter.select(key) == without.select(key) != other.select(key)
    key = nodes["filter_model"].config
    assert with_filter.select(key) == other.select(key)


def test_vetoes_add_an_asset_that_injections_and_inference_read(tmp_path):
    asked = {"flags": ["L1:DCH-BAD:1"]}
    graph = _graph(_defs(tmp_path, vetoes=asked))
    assert {k.to_user_string() for k in graph.get_all_asset_keys()} == TABLE | {"vetoes"}
    for weights in (None, str(tmp_path)):
        graph = _graph(_defs(tmp_path, vetoes=asked, model={"weights": weights}))
        for name in ("injections", "inference_results"):
            assert dg.AssetKey("vetoes") in graph.get(dg.AssetKey(name)).parent_keys


def test_dependencies_are_those_of_the_lineage_table(tmp_path):
    config = build_config({"preset": "demo"})
    graph = _graph(_defs(tmp_path))
    for name, node in lineage.graph(config).items():
        parents = {k.to_user_string() for k in graph.get(dg.AssetKey(name)).parent_keys}
        assert parents == set(lineage.deps(node)), name


def test_a_server_is_asked_for_only_where_it_evaluates_the_network(tmp_path):
    plain, served = (build_config({"preset": "demo", "inference": {"mode": mode}}) for mode in ("inprocess", "triton"))
    node, other = lineage.graph(plain)["inference_results"], lineage.graph(served)["inference_results"]
    assert set(lineage.deps(other)) - set(lineage.deps(node)) == {"model_repository"}
    assert plain.select(node.config, node.free) == served.select(other.config, other.free)
    for config, asked in ((plain, set()), (served, {"inference_server"})):
        assert set(build_defs(config, store_url=str(tmp_path)).resources) == {"experiment", "io_manager"} | asked
    graph = _graph(build_defs(served, store_url=str(tmp_path)))
    assert dg.AssetKey("model_repository") in graph.get(dg.AssetKey("inference_results")).parent_keys


def test_furniture(tmp_path):
    graph = _graph(_defs(tmp_path))
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        name = key.to_user_string()
        assert node.backfill_policy == dg.BackfillPolicy.single_run(), name
        assert node.code_version, name
        assert node.group_name and node.group_name != "default", name
        assert node.description and len(node.description) > 30, name
        assert (node.partitions_def is not None) == (name in PARTITIONED), name
        assert node.kinds, name


def test_every_op_says_what_it_needs(tmp_path):
    defs = _defs(tmp_path)
    job = defs.resolve_implicit_global_asset_job_def()
    ops = list(job.graph.iterate_op_defs())
    assert len(ops) > 20
    for op in ops:
        assert RESOURCES_TAG in op.tags, f"{op.name} has no {RESOURCES_TAG} tag"
        assert set(json.loads(op.tags[RESOURCES_TAG])) == FIELDS, op.name


def _asked(tmp_path, **overrides) -> dict[str, dict]:
    """What each op asks for, by its name."""
    job = _defs(tmp_path, **overrides).resolve_implicit_global_asset_job_def()
    return {op.name: json.loads(op.tags[RESOURCES_TAG]) for op in job.graph.iterate_op_defs()}


def test_every_training_asks_for_what_the_experiment_says_and_nothing_else_does(tmp_path):
    training = {"gpus": 1, "cpus_per_gpu": 12, "memory_per_cpu": 4, "min_gpu_memory": 15, "time": "12 h"}
    model = CASCADE | {"tune": {}}
    plain, asked = (_asked(tmp_path, model=model, **over) for over in ({}, {"execution": {"training": training}}))
    changed = {name for name in plain if plain[name] != asked[name]}
    wanted = {"cpus": 12, "memory_gb": 48, "gpus": 1, "gpu_memory_gb": 15, "time_min": 720, "disk_gb": 10, "container": "gpu"}
    assert {name: asked[name] for name in changed} == dict.fromkeys(changed, wanted)
    assert changed == {"model", "filter_model", *(f"try_tuned_model_{i:02d}" for i in range(4))}
    eight = _asked(tmp_path, model=model, execution={"training": training | {"gpus": 8}})["model"]
    assert eight == wanted | {"cpus": 96, "memory_gb": 384, "gpus": 8}
    imported = _asked(tmp_path, model={"weights": str(tmp_path)}, execution={"training": training})
    assert not any(node["gpus"] for node in imported.values())


def test_what_a_training_asks_for_is_no_part_of_it(tmp_path):
    plain, other = (build_config({"preset": "demo", "execution": {"training": {"memory_per_cpu": m}}}) for m in (2, 4))
    for node in lineage.graph(plain).values():
        assert plain.select(node.config, node.free) == other.select(node.config, node.free), node.name
    for wrong, words in (
        ({"devices": ["cuda:0", "cpu"], "gpus": 1}, "expected CPUs or GPUs, not both"),
        ({"devices": ["cuda:0", "cuda:1"], "gpus": 1}, "devices names 2 GPUs; expected gpus to ask for as many, it is 1"),
        ({"devices": ["gpu"]}, "execution.training.devices"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_config({"preset": "demo", "execution": {"training": wrong}})


def test_blocking_checks(tmp_path):
    graph = _graph(_defs(tmp_path))
    blocking = {(k.asset_key.to_user_string(), k.name) for k in graph.asset_check_keys if graph.get_check_spec(k).blocking}
    assert {a for a, _ in blocking} >= {"segments", "exported_model", "inference_results"}


@pytest.mark.parametrize("module", ["aframe_assets.definitions", "aframe_ops.definitions"])
def test_definitions_are_light(module, tmp_path):
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'lightning', 'gwpy', 'boto3', 'kubernetes', 'bilby', 'lal', 'scipy', 'pandas', 'h5py', 'onnxruntime'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert out.stdout.strip() == "[]"
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{module}: {cpu:.2f} s of CPU")
    # The promise is 3 s on a quiet machine; twice that separates a heavy import (torch alone is 3 s) from a busy machine.
    assert cpu < 6
