"""The assets of the engine and inference rooms in a real store, on made-up strain, signals and an untrained network."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from search_room import EXPERIMENT, ROWS, Room

from aframe_assets.config_load import build_config
from aframe_assets.engine.checks import ENGINE_CHECKS, EXPORTED_CHECKS, REPOSITORY_CHECKS
from aframe_assets.inference import assets as room
from aframe_assets.inference.audit import AUDIT, Audit
from aframe_assets.inference.checks import CASCADE_EVENT_CHECKS, EVENT_CHECKS, RESULT_CHECKS, livetime_check, louder_check, sane_check
from aframe_assets.model.background_scores import BACKGROUND_SCORES, BackgroundScores
from aframe_assets.segments.geometry import SlideGeometry, shift_vectors
from aframe_assets.store.job import Job
from aframe_assets.store.plots import rendered
from aframe_assets.waveforms.ledger import EventSet, InjectionParameterSet, RecoveredInjectionSet


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    r = Room(tmp_path_factory.mktemp("inference"))
    r.engines()
    r.data()
    for partition in ROWS:
        r.search(partition)
    for asset in ("inference_results", "injections"):
        r.handles[asset] = {p: h for p, h in r.handles[asset].items() if ROWS[p]["role"] == "test"}
    r.products["events"] = r.make(room.make_events, "events", ["inference_results", "injections"])
    return r


def test_checks_are_those_declared_and_pass(made):
    declared = {"exported_model": EXPORTED_CHECKS, "engine": ENGINE_CHECKS, "model_repository": REPOSITORY_CHECKS, "events": EVENT_CHECKS}
    declared |= dict.fromkeys(ROWS, RESULT_CHECKS)
    for name, product in made.products.items():
        assert [c.name for c in product.checks] == [c.name for c in declared[name]], name
        assert all(c.passed for c in product.checks if c.severity == "error"), (name, product.checks)


def test_pages_show_events_and_what_was_measured(made, caplog):
    shown = {name: rendered(product, logging.getLogger("page")) for name, product in made.products.items()}
    assert caplog.records == []
    assert set(shown["events"]) == {"statistics", "injections"} and set(shown["engine"]) == {"platforms"}
    assert "| onnxruntime |" in shown["engine"]["platforms"] and "chosen" in shown["engine"]["platforms"]
    for partition, row in ROWS.items():
        found = made.handles["inference_results"].get(partition)
        wanted = {"statistics"} | ({"loudest_event"} if found and found.meta["num_zero_lag"] else set())
        assert set(shown[partition]) == (wanted if row["role"] == "test" else set())
    assert any("loudest_event" in s for s in shown.values())


@pytest.mark.parametrize(("precision", "same"), [("fp32", False), ("bf16", True)])
def test_events_of_a_cascade_tell_its_loss_and_its_share(made, tmp_path, precision, same):
    tree = yaml.safe_load(EXPERIMENT)
    tree["inference"]["cascade"] = {"keep": 0.05}
    config = build_config(tree)
    config = config.model_copy(
        update={"model": SimpleNamespace(filter="map"), "engine": config.engine.model_copy(update={"precision": precision})}
    )
    one = {"threshold": 1.0, "share": 0.025, "livetime": 100.0, "stretches": 4}
    thresholds = {"filtered": one, "joint": one | {"threshold": 25.5}}
    results, own = made.handles["inference_results"], {}
    for i, p in enumerate(results):
        meta = dict(results[p].meta) | {"cascade": {"thresholds": thresholds, "kept": 8 * i, "asked": 100}}
        sample = Audit(np.arange(30.0), np.ones(30, bool), np.full(5, 99.0), np.full(5, 99.0), 100.0, 0, 0.01)
        own[p] = SimpleNamespace(meta=meta, audit=sample.write(tmp_path / f"{i}.hdf5"))

    def path(asset, name, partition):
        return own[partition].audit if name == AUDIT else made.store.open_local(made.handles[asset][partition], name)

    job = SimpleNamespace(config=config, inputs={"inference_results": own}, path=path, scratch=tmp_path)
    product = room.make_events(job)
    checks = {c.name: c for c in product.checks}
    assert list(checks) == [c.name for c in EVENT_CHECKS + CASCADE_EVENT_CHECKS]
    share = 8 * sum(range(len(own))) / (100 * len(own))
    assert product.meta["cascade"]["share"] == share and checks["cascade_share_of_the_run"].passed == (share <= 0.05)
    # 0.01 is more than 1e-4 of the spread, and less than half precision may move a statistic
    loss = checks["cascade_loses_nothing"]
    assert f"(accepted {0.5 if same else 0.00087:g})" in loss.description
    # of each sample 26, 27, 28 and 29 reach what the cascade asks of the statistic
    assert loss.metadata["loudest_of"] == 4 * len(own) < 20
    assert product.meta["thresholds"] == thresholds and product.meta["cascade"]["injections_of"] == 5 * len(own)


def test_thresholds_of_a_cascade_are_found_on_what_each_network_says(tmp_path):
    rng, inference = np.random.default_rng(0), build_config(yaml.safe_load(EXPERIMENT)).inference
    for asset, mean in (("filter_model", 100.0), ("model", -50.0)):
        (tmp_path / asset).mkdir()
        BackgroundScores(8.0, [rng.normal(mean, 1, 40_000)]).write(tmp_path / asset / BACKGROUND_SCORES)
    config = SimpleNamespace(model=SimpleNamespace(filter="map"), inference=inference)
    found = room._thresholds(SimpleNamespace(config=config, path=lambda asset, name: tmp_path / asset / name))
    assert 100 < found.filtered.value < 103 and -50 < found.joint.value < -47
    assert found.share <= inference.cascade.keep


def test_repository_has_its_models(made):
    names = {f.name for f in made.handles["model_repository"].files}
    onnx = ("aframe", "snapshotter", "preprocessor", "whitened-snapshotter")
    wanted = {f"{m}/1/model.onnx" for m in onnx} | {f"{m}/1/ensemble" for m in ("aframe-stream", "aframe-whitened-stream")}
    assert wanted | {f"{m.split('/')[0]}/config.pbtxt" for m in wanted} == names


def test_a_training_chunk_gives_empty_sets_without_livetime(made):
    product = made.products["1240600000-100"]
    assert product.meta["livetime"] == {"background": 0.0, "zero_lag": 0.0} and product.meta["num_foreground"] == 0


def test_the_ring_of_a_chunk_is_told(made):
    """The room of sensitivity folds own times of slid events back into it."""
    assert made.products["events"].meta["rings"] == [] and made.products["1240610000-60"].meta["ring"] is None
    changed = yaml.safe_load(EXPERIMENT)
    changed["inference"] |= {"slide_mode": "ring", "psd_source": "segment"}
    config, key = build_config(changed), "1240610000-60"
    found = {name: made.handles[name] for name in ("segments", "engine")} | {n: made.handles[n][key] for n in ("background", "injections")}
    with made.store.scratch() as scratch:
        job = Job(config, "inference_results", key, found, ROWS[key], made.store, scratch, scratch, logging.getLogger("test"))
        ring = room.make_inference_results(job).meta["ring"]
    g = SlideGeometry.of(config, ROWS[key]["gps_start"], ROWS[key]["gps_stop"])
    assert g.ring and ring == [g.whitened_start, g.whitened_duration]


def test_livetime_is_that_of_the_slides_to_the_output(made):
    due, zero = 0.0, 0.0
    for row in ROWS.values():
        if row["role"] == "test":
            g = SlideGeometry.of(made.config, row["gps_start"], row["gps_stop"])
            due += sum(g.livetime(s) for s in shift_vectors(3, [0, 1]))
            zero += g.livetime((0, 0))
    meta = made.products["events"].meta
    assert meta["Tb"] == due > 0 and meta["T0"] == zero
    handle = made.handles["events"]
    assert EventSet.read(made.store.open_local(handle, "background.hdf5")).Tb == due
    # a chunk that is too short for a slide, but long enough for zero lag, is still counted
    assert made.products["1240610200-12"].meta["livetime"] == {"background": 0.0, "zero_lag": 0.25}


def test_events_are_sorted_and_every_injection_is_there(made):
    folder = made.store.open_local(made.handles["events"])
    background = EventSet.read(folder / "background.hdf5")
    assert len(background) and (np.diff(background.detection_statistic) >= 0).all()
    foreground = RecoveredInjectionSet.read(folder / "foreground.hdf5")
    assert len(foreground) == 9 and foreground.num_injections == 9 + 2 * 3
    near = np.isfinite(foreground.detection_statistic)
    assert near.sum() >= 5
    assert np.abs(foreground.detection_time - foreground.injection_time)[near].max() <= made.config.inference.recovery_window
    assert InjectionParameterSet.read_metadata(folder / "rejected-parameters.hdf5")["length"] == 6
    zero_lag = EventSet.read(folder / "0lag.hdf5")
    assert (zero_lag.shift == 0).all() and len(zero_lag)


def test_one_segment_again_gives_the_same_bytes(made):
    partition = "1240610000-60"
    before = made.handles["inference_results"][partition].sha256
    made.make(room.make_inference_results, "inference_results", ["segments", "background", "injections", "engine"], partition)
    assert made.handles["inference_results"][partition].sha256 == before


def test_an_engine_of_other_conditioning_is_refused(made):
    other = build_config(yaml.safe_load(EXPERIMENT) | {"conditioning": {"psd_length": 8, "highpass": 20}})
    before, made.config = made.config, other
    try:
        with pytest.raises(ValueError, match=r"conditioning.highpass = 20.0: the model was made with 32"):
            made.make(room.make_inference_results, "inference_results", ["segments", "background", "injections", "engine"], "1240610000-60")
    finally:
        made.config = before


def test_livetime_check_counts_outputs():
    assert livetime_check("l", {"background": 10.25}, {"background": 10.25}, 4).passed
    assert not livetime_check("l", {"background": 10.0}, {"background": 10.25}, 4).passed
    third = sum([1 / 3] * 3000)
    assert livetime_check("l", {"background": third}, {"background": 1000.0}, 3).passed


def test_statistics_checks():
    good, missed = np.array([1.0, 2.0]), np.array([-np.inf, 5.0])
    assert sane_check(good, good, missed).passed
    assert not sane_check(missed, good, good).passed
    assert not sane_check(good, good, np.array([np.nan])).passed
    assert not louder_check(good, good - 1).passed and louder_check(good, good + 1).passed
    # of a cascade's injections most may be dropped, as most of its noise is
    dropped = np.array([-np.inf, -np.inf, -np.inf, 5.0])
    assert not louder_check(good, dropped).passed and louder_check(good, dropped, filtered=True).passed
    assert not louder_check(good, np.array([-np.inf, 0.5]), filtered=True).passed
    assert louder_check(good, dropped[:3], filtered=True).description == "nothing to compare"
