"""An experiment: precedence, refusals, and the resolved form that every step reads."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import yaml

from aframe_assets import lineage
from aframe_assets.config import SECONDS_PER_YEAR, Config
from aframe_assets.config_load import (
    ConfigError,
    build_config,
    config_hash,
    load_config,
    merge,
    preset,
    preset_names,
    resolved_text,
    write_resolved,
)
from aframe_assets.config_quantities import Section, in_key, later


class _Section(Section):
    old: int = 1
    new: int = later(2, ge=0, description="added")


class _Whole(Section):
    section: _Section = _Section()
    other: _Section = later(_Section())


def test_a_key_that_came_later_enters_no_key_at_its_default():
    assert in_key(_Whole()) == {"section": {"old": 1}}
    assert in_key(_Whole(section=_Section(new=3))) == {"section": {"old": 1, "new": 3}}
    assert in_key(_Whole(other=_Section(old=0))) == {"section": {"old": 1}, "other": {"old": 0}}
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        _Section(new=-1)


@pytest.mark.parametrize(
    ("asset", "digest"),
    [
        ("model", "70256f035cbc39f9902fb2ae093e1affb4cb2a263115ee9afa521c6574314a37"),
        ("inference_results", "7e2cad58793839bcae91f8d73582f9aa340aa5d7a00527069e1bbc045e913b91"),
    ],
)
def test_what_was_made_before_settings_were_added_stays_complete(asset, digest):
    """A new setting is `config_quantities.later`; the digests are those of the commit before there was any."""
    config = build_config({"preset": "demo"})
    node = lineage.graph(config)[asset]
    text = json.dumps(config.select(node.config, node.free), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def experiment(tmp_path, **values):
    path = tmp_path / "aframe.yaml"
    path.write_text(yaml.safe_dump({"preset": "demo", **values}))
    return path


def refusal(data, env=None) -> str:
    with pytest.raises(ConfigError) as e:
        build_config({"preset": "demo", **data}, env=env or {}, source="aframe.yaml")
    return str(e.value)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_possible(name):
    over = {}
    if name == "events":  # needs its files and weights, which `aframe init` asks for
        over = {"strain": {"files": ["x.hdf5"]}, "model": {"weights": "/bundle"}}
    assert build_config({"preset": name, **over}).preset == name


def test_the_presets_are_those_of_the_design():
    assert preset_names() == ["demo", "direct", "events", "mlgwsc1", "o3", "review", "small", "tune"]


def test_o3_has_upstream_values():
    # reference 3.1, 3.3: Aframe's O3 configuration
    c = build_config({"preset": "o3"})
    assert (c.segments.train_start, c.segments.train_stop, c.segments.test_stop) == (1240579783, 1241443783, 1244035783)
    assert (c.sample_rate, c.conditioning.kernel_length, c.conditioning.psd_length, c.conditioning.fduration) == (2048, 1.5, 64, 1)
    assert (c.inference.inference_rate, c.inference.integration_window_length, c.inference.cluster_window_length) == (4, 1.5, 8)
    assert c.inference.Tb == 31_536_000 and c.conditioning.highpass == 32
    t = c.model.training
    assert (t.batch_size, t.batches_per_epoch, t.max_epochs) == (384, 3700, 200)
    assert c.injections.num_signals == 500_000 and c.waveforms.snr_threshold == 4
    assert SECONDS_PER_YEAR == 365.25 * 86400


def test_review_is_the_known_small_data_set():
    c = build_config({"preset": "review"})
    # reference 8.3 and review.cfg
    assert (c.segments.train_start, c.segments.train_stop, c.segments.test_stop) == (1250900000, 1250909263, 1251109263)
    assert c.inference.Tb == 2_592_000 and c.injections.num_signals == 100_000 and c.inference.integration_window_length == 1


def test_precedence_is_preset_file_environment(tmp_path):
    assert preset("demo")["inference"]["num_slides"] != 7
    path = experiment(tmp_path, inference={"num_slides": 7, "cluster_window_length": 6}, seed=5)
    env = {"AFRAME__INFERENCE__NUM_SLIDES": "9", "AFRAME__SEED": "6", "AFRAME__INFERENCE__TB": "1000", "AFRAME_CONFIG": "ignored"}
    c = load_config(path, env=env)
    assert (c.inference.num_slides, c.inference.cluster_window_length, c.seed, c.inference.Tb) == (9, 6, 6, 1000)
    assert c.conditioning.psd_length == preset("demo")["conditioning"]["psd_length"]
    assert load_config(path, env={}).seed == 5


def test_environment_reaches_lists_and_deep_keys():
    c = build_config({"preset": "demo"}, env={"AFRAME__MODEL__TRAINING__BATCH_SIZE": "64", "AFRAME__INFERENCE__SHIFTS": "[0, 2]"})
    assert c.model.training.batch_size == 64 and c.inference.shifts == [0, 2]


def test_environment_alone_may_choose_the_preset():
    assert build_config({}, env={"AFRAME__PRESET": "small"}).preset == "small"


def test_the_file_of_the_environment_is_read_when_none_is_named(tmp_path):
    path = experiment(tmp_path, seed=11)
    assert load_config(env={"AFRAME_CONFIG": str(path)}).seed == 11


def test_units():
    c = build_config(
        {"preset": "demo", "inference": {"Tb": "2 h", "cluster_window_length": "500ms"}, "sample_rate": "2.048e0 kHz"},
    )
    assert (c.inference.Tb, c.inference.cluster_window_length, c.sample_rate) == (7200, 0.5, 2048)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"inference": {"clusterwindow": 4}}, ["inference.clusterwindow = 4", "unknown key"]),
        ({"colour": "blue"}, ["colour = 'blue'", "unknown key"]),
        ({"inference": {"cluster_window_length": "4 Hz"}}, ["inference.cluster_window_length = '4 Hz'", "'Hz' is not a unit of time"]),
        ({"sample_rate": "2048 s"}, ["sample_rate = '2048 s'", "'s' is not a unit of frequency"]),
        ({"inference": {"cluster_window_length": "four s"}}, ["inference.cluster_window_length = 'four s'", "number"]),
        ({"inference": {"cluster_window_length": float("inf")}}, ["inference.cluster_window_length = inf", "finite"]),
        ({"inference": {"cluster_window_length": -1}}, ["inference.cluster_window_length = -1", "greater than 0"]),
        ({"conditioning": {"kernel_length": 2000}}, ["conditioning.kernel_length = 2000", "shorter than the shortest segment", "300 s"]),
        ({"conditioning": {"psd_length": 500}}, ["conditioning.psd_length = 500", "shorter than the shortest data", "300 s"]),
        ({"inference": {"inference_rate": 3}}, ["inference.inference_rate = 3", "divides sample_rate 2048"]),
        ({"conditioning": {"fftlength": 2.5}}, ["conditioning.fftlength = 2.5", "less than or equal to 2"]),
        ({"conditioning": {"highpass": 1024}}, ["conditioning.highpass = 1024", "below the Nyquist frequency 1024"]),
        ({"inference": {"shifts": [0, 1, 2]}}, ["inference.shifts", "one shift for each of ifos"]),
        ({"inference": {"shifts": [0, 0]}}, ["inference.shifts", "at least one above 0"]),
        (
            {"inference": {"memory_gb": 0.5}},
            ["inference.memory_gb = 0.5", "at least 0.9", "libraries 0.7 GB", "at least 0.2 GB"],
        ),
        ({"ifos": ["H1", "H1"]}, ["ifos", "each detector once"]),
        ({"ifos": ["H1", "X1"]}, ["ifos", "no geometry of X1", "H1, L1, V1, K1", "detectors.X1"]),
        ({"detectors": {"V1": "v1.interferometer"}}, ["detectors", "of ifos ['H1', 'L1'] only"]),
        ({"segments": {"test_stop": 1}}, ["segments.test_stop = 1", "not before test_start"]),
        ({"segments": {"train_start": None}}, ["segments.train_start = None", "GPS time"]),
        ({"segments": {"fixed": []}}, ["segments.fixed", "at least one"]),
        ({"strain": {"source": "files"}}, ["strain.files", "at least one file"]),
        ({"strain": {"source": "frames"}}, ["strain.channels", "one channel for each"]),
        ({"preset": "demoo"}, ["preset = demoo", "demo, direct, events, mlgwsc1, o3"]),
        ({"model": {"training": {"waveform_prob": 0.9, "mute_prob": 0.2}}}, ["model.training.waveform_prob", "<= 1"]),
        ({"injections": {"spacing": -9}}, ["injections.spacing = -9", "-8 s"]),
    ],
)
def test_refused_with_key_value_and_expectation(data, words):
    text = refusal(data)
    assert all(w in text for w in words), text


def test_all_refusals_at_once():
    text = refusal({"inference": {"inference_rate": 3, "shifts": [0, 1, 2]}, "ifos": ["H1", "H1"]})
    assert len(text.splitlines()) == 3 and all(line.startswith("aframe.yaml: ") for line in text.splitlines())
    text = refusal({"colour": 1, "seed": -1, "inference": {"cluster_window_length": "1 kg"}})
    assert len(text.splitlines()) == 3


def test_a_refused_variable_is_named():
    text = refusal({}, env={"AFRAME__CONDITIONING__PSD_LENGTH": "8 m"})
    assert text.startswith("AFRAME__CONDITIONING__PSD_LENGTH: conditioning.psd_length = '8 m'")
    assert "AFRAME__SEEED" in refusal({}, env={"AFRAME__SEEED": "1"})


def test_a_variable_that_goes_through_a_value_is_refused():
    text = refusal({}, env={"AFRAME__SEED": "1", "AFRAME__SEED__DEEP": "2"})
    assert "AFRAME__SEED" in text and "section" in text


@pytest.mark.parametrize(
    ("text", "words"), [("a: [", "is not YAML"), ("- 1\n- 2", "expected a mapping"), ("just words", "expected a mapping")]
)
def test_files_that_are_not_experiments(tmp_path, text, words):
    path = tmp_path / "aframe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as e:
        load_config(path, env={})
    assert str(path) in str(e.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        load_config(tmp_path / "absent.yaml", env={})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / f"{'0' * 16}.json", env={})


def test_a_section_that_is_not_a_mapping():
    assert "inference" in refusal({"inference": 4})


def test_relative_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    path = experiment(folder, strain={"source": "files", "files": ["../data/*.hdf5", "/abs/x.hdf5"]}, model={"weights": "bundle"})
    c = load_config(path, env={})
    assert c.strain.files == [str(tmp_path / "data/*.hdf5"), "/abs/x.hdf5"]
    assert c.model.weights == str(folder / "bundle")


def test_a_name_stays_a_name_and_a_file_beside_the_experiment_is_the_file(tmp_path):
    (tmp_path / "mine.prior").write_text("mass_1 = Uniform(20, 30)\nmass_2 = Uniform(5, 10)\nredshift = UniformSourceFrame(0, 1)\n")
    path = experiment(tmp_path, waveforms={"prior": "mine.prior"}, sensitivity={"catalog": "packaged"})
    c = load_config(path, env={})
    assert c.waveforms.prior == str(tmp_path / "mine.prior")
    assert (c.sensitivity.catalog, c.injections.prior) == ("packaged", "demo_mixture")


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ("demo_mixtur", "neither a file nor one of"),
        ("log_normal_masses(35)", "expected gaussian_masses"),
        ("ringdown_prior", "without masses"),
        ("absent.prior", "neither a file nor one of"),
        ("bad.prior", "bad.prior, line 2: mass_2: 'os.system' is not allowed"),
    ],
)
def test_a_population_that_cannot_be_drawn_from_is_refused_at_once(tmp_path, prior, message):
    (tmp_path / "bad.prior").write_text("mass_1 = Uniform(20, 30)\nmass_2 = os.system('true')\n")
    for section, key in (("waveforms", "prior"), ("waveforms", "validation_prior"), ("injections", "prior")):
        with pytest.raises(ConfigError, match=re.escape(message)) as e:
            load_config(experiment(tmp_path, **{section: {key: prior}}), env={})
        assert f"{section}.{key} = " in str(e.value)


def test_resolved_is_read_as_it_stands(tmp_path):
    c = build_config({"preset": "demo", "seed": 3})
    path = write_resolved(c, tmp_path / "resolved")
    assert path.name == f"{config_hash(c)}.json"
    assert load_config(path, env={"AFRAME__SEED": "4"}) == c
    assert write_resolved(c, tmp_path / "resolved") == path and len(list(path.parent.iterdir())) == 1
    assert Config.model_validate_json(resolved_text(c)) == c


def test_a_resolved_experiment_is_never_edited(tmp_path):
    path = write_resolved(build_config({"preset": "demo"}), tmp_path)
    data = json.loads(path.read_text())
    data["seed"] = 99
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="never edited"):
        load_config(path)


def test_the_hash_depends_on_values_alone():
    a = build_config({"preset": "demo", "inference": {"num_slides": 30}})
    b = build_config({"preset": "demo", "inference": {"num_slides": 31}})
    assert config_hash(a) == config_hash(build_config({"inference": {"num_slides": 30}, "preset": "demo"})) != config_hash(b)


def test_merge_replaces_lists_and_joins_mappings():
    assert merge({"a": {"x": 1, "y": [1, 2]}, "b": 1}, {"a": {"y": [3]}, "c": 2}) == {"a": {"x": 1, "y": [3]}, "b": 1, "c": 2}


def test_select_gives_the_named_values_only():
    c = build_config({"preset": "demo"})
    chosen = c.select(("seed", "inference.cluster_window_length", "waveforms"))
    assert set(chosen) == {"seed", "inference.cluster_window_length", "waveforms"}
    assert chosen["inference.cluster_window_length"] == 8 and chosen["waveforms"]["prior"] == c.waveforms.prior


def test_files_are_relative_to_the_experiment_and_may_name_their_detector(tmp_path):
    path = tmp_path / "aframe.yaml"
    path.write_text("preset: events\nstrain: {files: ['H1=a.hdf', 'b/*.hdf5', /abs/c]}\nmodel: {weights: demo}\n")
    config = load_config(path, env={})
    assert config.strain.files == [f"H1={tmp_path}/a.hdf", f"{tmp_path}/b/*.hdf5", "/abs/c"]
    assert config.model.weights == f"{tmp_path}/demo"


def test_a_filter_needs_background_for_its_threshold_and_weights_need_a_filter(tmp_path):
    small = {"layers": [1, 1], "width": 4, "context": 0.125}
    model = {"architecture": {"name": "streaming", **small}, "filter": {"name": "map", **small, "lag_head": {"map_stride": 8}}}
    data = {"preset": "demo", "model": model | {"training": {"background_livetime": 900}}}
    with pytest.raises(ConfigError, match=r"cascade\.keep = 0\.05: expected a share of .* 900 s that is at least 54\.2 s"):
        build_config(data)
    assert build_config(data | {"inference": {"cascade": {"keep": 0.07}}}).model.trains
    given = build_config({"preset": "demo", "model": data["model"] | {"weights": "w", "filter_weights": "f"}})
    assert not given.model.trains
    # the joint network is given and its filter is trained here
    half = {"preset": "demo", "model": model | {"weights": "w", "training": {"background_livetime": 900}}}
    with pytest.raises(ConfigError, match=r"cascade\.keep = 0\.05: expected a share of .* 900 s"):
        build_config(half)
    with pytest.raises(ConfigError, match=r"filter_weights = f: expected a network in model\.filter"):
        build_config({"preset": "demo", "model": {"filter_weights": "f"}})
    path = tmp_path / "aframe.yaml"
    path.write_text(
        f"{{preset: demo, model: {{architecture: {model['architecture']}, filter: {model['filter']}, filter_weights: runs/a}}}}"
    )
    assert load_config(path, env={}).model.filter_weights == f"{tmp_path}/runs/a"


def test_a_value_from_the_environment_is_blamed_on_its_variable():
    for name, value in (
        ("AFRAME__NOPE__X", "3"),
        ("AFRAME__INFERENCE__INFERENCE_RATE", "3"),
        ("AFRAME__CONDITIONING__KERNEL_LENGTH", "2000 s"),
        ("AFRAME__INFERENCE__SHIFTS", "[0, 0]"),
    ):
        with pytest.raises(ConfigError) as e:
            build_config({"preset": "demo"}, env={name: value}, source="aframe.yaml")
        assert str(e.value).startswith(f"{name}: "), str(e.value)


@pytest.mark.parametrize("name", ["AFRAME_INFERENCE__NUM_SLIDES", "aframe__inference__num_slides"])
def test_a_misspelt_variable_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}: is not read; expected AFRAME__SECTION__KEY"):
        build_config({"preset": "demo"}, env={name: "4"})


@pytest.mark.parametrize(("spacing", "good"), [(-5.7, True), (-5.9, False), (-8.0, False)])
def test_signals_so_close_that_one_event_recovers_several_are_refused(spacing, good):
    """2 x (recovery window 1 s + jitter 0.1 s) = 2.2 s apart at least, waveforms of 8 s."""
    data = {"preset": "demo", "injections": {"spacing": spacing}}
    if good:
        assert build_config(data).injections.spacing == spacing
    else:
        with pytest.raises(ConfigError, match=r"injections\.spacing"):
            build_config(data)


def test_memory_must_hold_the_strain_of_the_longest_chunk():
    four = {"ifos": ["H1", "L1", "V1", "K1"], "sample_rate": 2048, "inference": {"shifts": [0, 1, 2, 3], "memory_gb": 2}}
    segments = {
        "max_duration": 20000,
        "fixed": [[0, 60000]],
        "train_start": 0,
        "train_stop": 10000,
        "test_start": 10000,
        "test_stop": 60000,
    }
    # 4 detectors x 20,000 s x 2048 Hz x 4 bytes, with and without signals, beside 0.9 GB
    text = refusal(four | {"segments": segments})
    assert "inference.memory_gb = 2" in text and "expected at least 2.22" in text and "1.31 GB" in text
    for change in ({"max_duration": 10000}, {"test_stop": 20000}):
        build_config(four | {"segments": segments | change})
