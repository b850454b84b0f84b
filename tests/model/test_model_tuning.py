"""A study: what may be searched, what is asked, and six trials with rungs that are killed and go on."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
import yaml

from aframe_assets.config_load import ConfigError, build_config, resolved_text
from aframe_assets.model.assets import assets, tell_study
from aframe_assets.model.search_space import dimensions, read_elsewhere, with_values
from aframe_assets.model.trials import train_trial
from aframe_assets.model.tuning import ask, best_trial, load_study, trials_of, tuned_experiment, write_study
from aframe_assets.model.tuning_plots import importances, study_plot
from aframe_assets.preflight import preflight
from aframe_assets.store.bodies import Experiment
from aframe_assets.store.io_managers import io_manager_for
from aframe_assets.store.job import Job
from aframe_assets.store.work import reported_trials, trial_parts
from aframe_assets.store.workspace import Workspace

RATE = {"low": 1e-4, "high": 1e-2, "log": True}


def searching(config, **tune):
    settings = {"num_rounds": 3, "trials_per_round": 6, "max_epochs": 4, "min_epochs": 1, "reduction": 2, "space": {"learning_rate": RATE}}
    tuned = type(config.model).model_validate({"tune": {**settings, **tune}}).tune
    return config.model_copy(update={"model": config.model.model_copy(update={"tune": tuned})})


def made(proposals, number, value, failed=()):
    """Records of `proposals`, with `value` (params, epoch) as objective."""
    out = []
    for i, p in enumerate(proposals):
        curve = [[e, value(p["params"], e)] for e in range(1, p["epochs"] + 1)]
        meta = {"metric": "valid_efficiency", "curve": curve}
        meta |= {"failed": "diverged"} if p["trial"] in failed else {"value": max(v for _, v in curve)}
        out.append({"round": number, "index": i, **p, "meta": meta, "made": {"key": f"key{number}{i}", "sha256": "s"}})
    return out


def study(config, value=lambda params, epoch: params["learning_rate"] * epoch, failed=()):
    records = []
    for number in range(config.model.tune.num_rounds):
        records += made(ask(config, records, number), number, value, failed)
    return records


# -- what may be searched ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_speed": {"low": 0, "high": 1}}, "model.training has no key learning_speed; expected one of batch_size"),
        ({"learning_rate": {"low": 1.0, "high": 0.1}}, "low not above high"),
        ({"learning_rate": {"lowest": 1.0}}, "expected {low, high}"),
        ({"learning_rate": {"low": -1.0, "high": 1.0}}, "-1.0: Input should be greater than 0"),
        ({"learning_rate": {"low": 0, "high": 1, "log": True}}, "a low above 0"),
        ({"batch_size": {"low": 8, "high": 16.5}}, "is a whole number"),
        ({"batch_size": {"low": 8, "high": 21, "step": 8}}, "a high that is whole steps above low"),
        ({"precision": {"low": 1, "high": 2}}, "is no number; expected {choices}"),
        ({"precision": {"choices": ["fp32", "fp64"]}}, "fp64.*: Input should be"),
        ({"learning_rate": {"choices": [1e-3, 1e-3]}}, "different choices"),
        ({"model.architecture.name": {"choices": ["resnet", "resnt"]}}, "'resnt': expected one of resnet, streaming, map"),
        ({"model.architecture.lag_head": {"choices": [1]}}, "is a section; expected one of its keys encoder, channels"),
        ({"model.architecture.width.x": {"choices": [1]}}, "model.architecture.width has no keys of its own"),
        ({"inference.Tb": {"low": 1, "high": 2}}, "expected a key of model.training, model.architecture, conditioning"),
        ({"valid_stride": {"low": 1, "high": 2}}, "cannot be searched: it defines what trials are compared by"),
        ({"max_epochs": {"low": 1, "high": 2}}, "model.tune.max_epochs says"),
        ({"signals": {"choices": ["stored", "generated"]}}, "which data are made before any training"),
        ({"learning_rate": RATE, "model.training.learning_rate": RATE}, "named twice"),
    ],
)
def test_a_space_that_cannot_be_is_refused_when_the_experiment_is_read(space, message):
    with pytest.raises(ConfigError, match=rf"(?s)model\.tune\.space\..*{message}"):
        build_config({"preset": "demo", "model": {"tune": {"space": space}}})


def test_rungs_that_no_trial_can_climb_are_refused():
    tune = {"num_rounds": 2, "max_epochs": 9, "min_epochs": 1}
    with pytest.raises(ConfigError, match=r"num_rounds = 2: expected at least 3, a round for each rung \(1, 3, 9 epochs\)"):
        build_config({"preset": "demo", "model": {"tune": tune}})
    with pytest.raises(ConfigError, match=r"min_epochs = 10: expected at most model.tune.max_epochs 9"):
        build_config({"preset": "demo", "model": {"tune": tune | {"min_epochs": 10}}})


def test_any_key_of_a_network_its_training_and_its_conditioning(tiny_config):
    space = {
        "patience": {"low": 1, "high": 3},
        "model.architecture.layers": {"choices": [[1, 1, 1], [2, 2, 2]]},
        "model.architecture.lag_head.similarity": {"choices": ["product", "cosine"]},
        "conditioning.fduration": {"low": 0.5, "high": 1, "step": 0.25},
    }
    config = searching(tiny_config(), space=space)
    assert [d.kind for d in dimensions(config)] == ["float", "choice", "choice", "int"]
    values = {
        "patience": 2,
        "model.architecture.layers": [2, 2, 2],
        "conditioning.fduration": 0.5,
        "model.architecture.lag_head.similarity": "product",
    }
    changed = with_values(config, values)
    assert changed.model.training.patience == 2 and changed.model.architecture.layers == [2, 2, 2]
    assert changed.conditioning.fduration == 0.5 and changed.model.architecture.lag_head.similarity == "product"
    assert config.model.training.patience is None and read_elsewhere(config, values) == {"conditioning.fduration": 0.5}
    with pytest.raises(ValueError, match="learning_rate"):
        with_values(config, {"learning_rate": -1.0})
    with pytest.raises(ValueError, match="no network of your own"):
        with_values(config, {"model.architecture.settings.block.size": 3})
    params = ask(config, [], 0)[0]["params"]
    assert params["model.architecture.layers"] in ([1, 1, 1], [2, 2, 2]) and set(params) == set(space)


# -- what is asked ----------------------------------------------------------------------------------------------------


def test_a_study_halves_its_trials_and_its_best_is_the_one_that_ran_longest(tiny_config):
    config = searching(tiny_config())
    records = study(config)
    assert [(r["round"], r["epochs"]) for r in records] == [(0, 1)] * 6 + [(1, 2)] * 3 + [(2, 4)]
    trials = trials_of(records)
    order = sorted(trials, key=lambda t: -t.params["learning_rate"])
    assert {r["trial"] for r in records if r["round"] == 1} == {t.number for t in order[:3]} and best_trial(records) is not None
    assert best_trial(records).number == order[0].number and best_trial(records).epochs == 4
    last = records[-1]
    assert last["began"] == f"00-{last['trial']:03d}" and last["source"] == {"partition": "01-000", "key": "key10", "sha256": "s"}
    assert study(config) == records  # the same proposals for the same records
    # more rounds: new trials are begun while one of them can still reach the last rung
    begun = [r["round"] for r in study(searching(tiny_config(), num_rounds=5)) if r["source"] is None]
    assert set(begun) == {0, 1, 2}
    # without rungs each trial is trained once, to the end
    plain = study(searching(tiny_config(), min_epochs=None, num_rounds=2, trials_per_round=2))
    assert [(r["trial"], r["epochs"], r["source"]) for r in plain] == [(t, 4, None) for t in range(4)]


def test_values_that_are_impossible_together_are_not_tried(tiny_config):
    config = searching(tiny_config(), space={"model.architecture.kernel_size": {"low": 2, "high": 9}})
    asked = [p["params"]["model.architecture.kernel_size"] for p in ask(config, [], 0)]
    assert len(asked) == 6 and all(size % 2 for size in asked)
    with pytest.raises(ValueError, match="hardly any are possible together"):
        ask(searching(tiny_config(), space={"model.architecture.kernel_size": {"choices": [4, 6]}}), [], 0)


def test_a_study_that_cannot_be_asked_is_told_before_any_data_are_made(monkeypatch):
    def lines(**space):
        tune = {"space": {f"model.architecture.{k}": {"choices": v} for k, v in space.items()}}
        return preflight(build_config({"preset": "demo", "model": {"tune": tune}}))

    assert lines(kernel_size=[3, 4]) == []
    (line,) = lines(kernel_size=[4, 6])
    assert "hardly any are possible together" in line and "expected an odd number" in line
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert lines(kernel_size=[3]) == ["model.tune: optuna is not installed; pip install 'aframe-dagster[tune]'"]


def test_a_failed_trial_is_a_result(tiny_config, tmp_path):
    config = searching(tiny_config())
    winner = best_trial(study(config)).number
    records = study(config, failed=(winner,))
    assert best_trial(records).number != winner and len([r for r in records if r["trial"] == winner]) == 1
    write_study(config, records, tmp_path)
    states = {t["trial"]: t["state"] for t in json.loads((tmp_path / "study.json").read_text())["trials"]}
    assert states[winner] == "failed" and sorted(states.values()).count("complete") == 1
    with pytest.raises(ValueError, match="none of 6 trials could be trained; the last: diverged"):
        best_trial(study(config, failed=range(6)))


def test_importance_names_the_setting_that_decides(tiny_config):
    config = searching(tiny_config(), trials_per_round=24, space={"learning_rate": RATE, "weight_decay": {"low": 0, "high": 1}})
    records = study(config)
    found = importances(config, records)
    assert found["learning_rate"] > 0.8 and sum(found.values()) == pytest.approx(1)
    assert importances(config, records[:3]) == {}
    assert study_plot(config, records).startswith(b"\x89PNG") and len(study_plot(config, records)) < 150_000


def test_the_plot_of_a_study_of_the_real_size_fits_an_assets_page(tiny_config, tmp_path):
    """Forty trials of which many were trained for 200 epochs, with values that never rest; a page carries 150 kB."""
    config = searching(tiny_config(), num_rounds=5, trials_per_round=40, max_epochs=200, min_epochs=100)
    rest = np.random.default_rng(1).random((40, 201))
    records = study(config, lambda params, epoch: float(rest[int(1e7 * params["learning_rate"]) % 40, epoch]))
    assert sum(len(t.curve) == 200 for t in trials_of(records)) > 20
    assert "study" in tell_study(config, records, tmp_path).plots
    # all failed: there is nothing to draw, and the study goes on to say so
    (tmp_path / "failed").mkdir()
    assert tell_study(config, study(config, failed=range(40)), tmp_path / "failed").meta["failed_trials"] == 40


def test_a_longer_study_keeps_the_trials_it_has(published, tiny_config):
    store, _ = published(tiny_config())
    record = {"round": 0, "index": 1, **ask(searching(tiny_config()), [], 0)[1]}
    keys = [
        trial_parts(Workspace(searching(tiny_config(), num_rounds=n, space=space), store).wanted("tuned_model").parts, record).key
        for n, space in ((3, {"learning_rate": RATE}), (9, {"learning_rate": RATE}), (3, {"learning_rate": RATE | {"high": 0.1}}))
    ]
    assert len(set(keys)) == 1
    other = Workspace(searching(tiny_config(batch_size=8)), store).wanted("tuned_model").parts
    assert trial_parts(other, record).key != keys[0]
    assert trial_parts(other, record).key == trial_parts(other, {**record, "made": {}, "meta": {}}).key


def test_what_others_read_too_is_not_taken_over_in_silence(tiny_config, tmp_path):
    config = searching(tiny_config(), space={"learning_rate": RATE, "conditioning.fduration": {"choices": [0.5]}})
    write_study(config, study(config), tmp_path)
    with pytest.raises(ValueError, match=r"(?s)found conditioning.fduration = 0.5, which PSDs.*in place of model.tune"):
        tuned_experiment(config, tmp_path / "best.json")
    found = yaml.safe_load((tmp_path / "best.yaml").read_text())
    settled = with_values(tiny_config(), {"conditioning.fduration": found["conditioning"]["fduration"]})
    taken, params = tuned_experiment(settled, tmp_path / "best.json")
    assert taken.model.training.learning_rate == found["model"]["training"]["learning_rate"] == params["learning_rate"]


# -- trainings of a study ---------------------------------------------------------------------------------------------


def trial_job(config, store, tmp_path, reported):
    work = tmp_path / "work"
    work.mkdir()
    services = {"report": reported.append}
    return Job(config, "tuned_model_trial", "01-000", {}, None, store, tmp_path, work, logging.getLogger("test"), services)


def test_a_trial_that_diverges_tells_how_far_it_came(published, tiny_config, tmp_path):
    config = searching(tiny_config())
    store, _ = published(tiny_config())
    record, reported = ask(config, [], 0)[1], []

    def train(job, config, until, on_epoch):
        assert job.partition == "00-001" and until == 1 and config.model.training.max_epochs == 4
        on_epoch([{"epoch": 0, "valid_efficiency": 0.25}])
        raise FloatingPointError("loss is nan")

    product = train_trial(trial_job(config, store, tmp_path, reported), record, train)
    assert product.meta["failed"] == "FloatingPointError: loss is nan" and "value" not in product.meta
    assert product.meta["curve"] == [[1, 0.25]] == reported[-1]


def test_a_trial_whose_beginning_was_replaced_says_so(published, tiny_config, tmp_path):
    config = searching(tiny_config())
    store, _ = published(tiny_config())
    record = ask(config, [], 0)[0] | {"epochs": 2, "source": {"partition": "00-000", "key": "k", "sha256": "s"}}
    with pytest.raises(RuntimeError, match=r"00-000 of this study.*not in the store any more"):
        train_trial(trial_job(config, store, tmp_path, []), record, None)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from aframe_assets.config import Config
from test_model_tuning import materialize
materialize(Config.model_validate_json(Path(sys.argv[1]).read_text()), sys.argv[2], "tuned_model")
"""


def materialize(config, url, *names):
    items = [a for a in assets(config) if isinstance(a, dg.AssetsDefinition) and not isinstance(a, dg.AssetChecksDefinition)]
    resources = {"experiment": Experiment(config_json=resolved_text(config), store_url=url), "io_manager": io_manager_for(url)}
    return dg.materialize(items, selection=list(names), resources=resources)


def trained(result) -> set[str]:
    return {e.step_key for e in result.all_events if e.event_type_value == "STEP_SUCCESS" and "try_tuned_model" in e.step_key}


def test_six_trials_are_killed_and_go_on_without_repeating_finished_ones(published, tiny_config, tmp_path):
    space = {"learning_rate": RATE, "model.architecture.width": {"choices": [4, 8]}}
    config = searching(tiny_config(batches_per_epoch=2, max_epochs=1, glitch_prob=0.0), space=space)
    store, url = published(config)
    file = tmp_path / "config.json"
    file.write_text(resolved_text(config))
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "DAGSTER_HOME": "", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, str(file), url, str(Path(__file__).parent)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    finished = Path(url) / "tuned_model_trial"
    while len(list(finished.glob("0*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, "the study ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {p.name: p.read_bytes() for p in finished.glob("0*.json")}
    asked = {p.name: p.read_bytes() for p in (Path(url) / "tuned_model_asked").glob("0*.json")}
    assert 2 <= len(before) < 10 and store.manifest("tuned_model") is None
    assert len(before) >= 6 or load_study(store) is None

    result = materialize(config, url, "tuned_model", "model")
    assert result.success and len(trained(result)) == 10
    after = {p.name: p.read_bytes() for p in finished.glob("0*.json")}
    assert len(after) == 10 and {n: after[n] for n in before} == before
    assert {n: (Path(url) / "tuned_model_asked" / n).read_bytes() for n in asked} == asked

    handle = store.manifest("tuned_model").handle
    trials = json.loads(store.open_local(handle, "study.json").read_text())["trials"]
    assert sorted(t["state"] for t in trials) == ["complete", *["stopped"] * 5]
    assert sorted((t["epochs"], len(t["curve"])) for t in trials) == [(1, 1)] * 3 + [(2, 2)] * 2 + [(4, 4)]
    best = json.loads(store.open_local(handle, "best.json").read_text())
    assert best["params"] == next(t for t in trials if t["state"] == "complete")["params"]
    # what a trial goes on from is at hand; the last rung keeps none
    names = {p: {f.name.split("/")[0] for f in store.manifest("tuned_model_trial", p).handle.files} for p in ("00-000", "02-000")}
    assert names == {"00-000": {"checkpoints", "metrics.csv"}, "02-000": {"metrics.csv"}}
    # told after every round, and readable by optuna
    told = [e.asset_observation_data.asset_observation for e in result.all_events if e.event_type_value == "ASSET_OBSERVATION"]
    told = [o for o in told if o.asset_key.to_user_string() == "tuned_model"]
    assert [o.metadata["round"].value for o in told][-2:] == [1, 2] and "study" in told[-1].metadata
    read = load_study(store)
    assert sorted(t.state.name for t in read.trials) == ["COMPLETE", *["PRUNED"] * 5]
    assert read.best_trial.params["learning_rate"] == best["params"]["learning_rate"]
    # the best epoch of all its rungs counts
    assert sorted(read.best_trial.intermediate_values) == [1, 2, 3, 4]
    assert read.best_value == max(read.best_trial.intermediate_values.values())
    assert reported_trials(store, "tuned_model").names() == []
    # the model is trained with what was found
    description = json.loads(store.open_local(store.manifest("model").handle, "bundle.json").read_text())
    assert description["provenance"]["tuned"] == best["params"]
    assert description["architecture"]["width"] == best["params"]["model.architecture.width"]
    again = materialize(config, url, "tuned_model")
    assert again.success and store.manifest("tuned_model").handle == handle and not trained(again)
