"""`aframe mlgwsc1`: run directories for the data sets, and real networks on files as the challenge writes them."""

from __future__ import annotations

import io
import shutil

import h5py
import numpy as np
import pytest
import yaml
from pycbc.detector import Detector
from pycbc.types import TimeSeries
from pycbc.waveform import get_td_waveform
from rich.console import Console
from typer.testing import CliRunner

from aframe_assets.config_load import ConfigError, build_config, load_config
from aframe_assets.engine.opening import OpeningError, open_network
from aframe_assets.model.bundle import BundleError
from aframe_assets.strain.simulated import simulator
from aframe_ops.cli import mlgwsc1
from aframe_ops.cli.main import app

START, DURATION = 1240620000, 180
TIMES = START + 20 + 26.3 * np.arange(6)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Background and foreground of 180 s of the demo's noise; PyCBC makes signals and files. SNR some 150."""
    folder, config, rng = tmp_path_factory.mktemp("challenge"), build_config({"preset": "demo"}), np.random.default_rng(1)
    strain = {i: TimeSeries(simulator(config, i).strain(START, START + DURATION), delta_t=1 / 2048, epoch=START) for i in ("H1", "L1")}
    for ifo, series in strain.items():
        series.save(str(folder / "background.hdf"), group=f"{ifo}/{START}")
    for tc in TIMES:
        hp, hc = get_td_waveform(approximant="IMRPhenomD", mass1=35, mass2=30, delta_t=1 / 2048, f_lower=20, distance=rng.uniform(75, 100))
        hp.start_time += tc
        hc.start_time += tc
        ra, dec = rng.uniform(0, 2 * np.pi), np.arcsin(rng.uniform(-1, 1))
        for ifo in strain:
            strain[ifo] = strain[ifo].inject(Detector(ifo).project_wave(hp, hc, ra, dec, 1.0))
    for ifo, series in strain.items():
        series.save(str(folder / "foreground.hdf"), group=f"{ifo}/{START}")
    return folder


def read(path):
    with h5py.File(path) as f:
        return {k: f[k][()] for k in ("time", "stat", "var")}


# --- searching ------------------------------------------------------------------------------------


def test_a_trained_network_finds_loud_signals_from_the_command_line(tiny_run, files, tmp_path):
    """Even 24 steps of training tell such signals from noise; what is louder than all noise is a signal, in time."""
    events = {}
    for name in ("background", "foreground"):
        out = tmp_path / f"{name}-events.hdf"
        done = tiny_run.aframe("mlgwsc1", "analyze", "--model", str(tiny_run.path), str(files / f"{name}.hdf"), "-o", str(out))
        assert f"1 segments of {DURATION} s" in done.stdout
        events[name] = read(out)
        assert len({len(v) for v in events[name].values()}) == 1
        assert (np.diff(events[name]["time"]) >= 0).all()
        # at most one event in half a cluster window, and none outside the segment
        assert 10 < len(events[name]["time"]) <= DURATION / 4
        assert START < events[name]["time"].min()
        assert events[name]["time"].max() < START + DURATION
    foreground = events["foreground"]
    loud = foreground["stat"] > events["background"]["stat"].max()
    apart = np.abs(foreground["time"][:, None] - TIMES).min(axis=1)
    assert loud.sum() >= 2
    assert (apart[loud] <= foreground["var"][loud]).all()


def test_a_model_is_the_same_wherever_it_is_kept(tiny_run, files, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    workspace = tiny_run.workspace()
    store = workspace.store
    places = {a: tmp_path / a for a in ("model", "exported_model", "engine")}
    for asset, place in places.items():
        shutil.copytree(store.open_local(workspace.complete(asset)), place)
    found = {}
    for name, place in places.items():
        mlgwsc1.analyze([files / "foreground.hdf"], place, tmp_path / f"{name}.hdf", Console(file=io.StringIO()), device="cpu")
        found[name] = read(tmp_path / f"{name}.hdf")
    for name in ("exported_model", "engine"):
        # torch and ONNX Runtime differ by single-precision rounding; engine parity allows 1e-3
        np.testing.assert_allclose(found[name]["stat"], found["model"]["stat"], atol=1e-3)
        assert np.median(np.abs(found[name]["time"] - found["model"]["time"])) < 0.02


def test_the_run_gives_rates_and_calibration(tiny_run, monkeypatch):
    made = mlgwsc1.open_model(tiny_run.path, "cpu")
    workspace = tiny_run.workspace()
    assert made.config.inference == workspace.config.inference
    assert made.calibration.num == workspace.complete("events").meta["merger_time_calibration"]["num"]
    meta = {"merger_time_calibration": {"offset": 0.02, "width90": 0.21, "num": 40, "edge": "centre"}}
    events = workspace.complete("events").model_copy(update={"meta": meta})
    monkeypatch.setattr("aframe_assets.store.workspace.Workspace.complete", lambda *a: events)
    made = mlgwsc1.open_model(tiny_run.path, "cpu")
    assert made.calibration.as_meta() == meta["merger_time_calibration"]
    assert made.timing == "calibrated on 40 injections"


def test_bad_calls_say_what_is_wrong(tiny_run, files, tmp_path):
    def say(*args):
        done = CliRunner().invoke(app, ["mlgwsc1", "analyze", *map(str, args)])
        assert done.exit_code in (1, 2)
        return " ".join(done.output.split())

    out, run = tmp_path / "events.hdf", tiny_run.path
    out.write_text("mine")
    assert "exists already" in say("--model", run, files / "background.hdf", "-o", out)
    assert out.read_text() == "mine"
    new = tmp_path / "new.hdf"
    assert "gone.hdf: no such file" in say("--model", run, tmp_path / "gone.hdf", "-o", new)
    assert "--model nothing: not found" in say("--model", "nothing", files / "background.hdf", "-o", new)
    assert "neither a bundle folder" in say("--model", files, files / "background.hdf", "-o", new)
    untrained = tmp_path / "untrained"
    assert CliRunner().invoke(app, ["mlgwsc1", "train-config", str(untrained), "--dataset", "1"]).exit_code == 0
    assert "has no usable engine yet" in say("--model", untrained, files / "background.hdf", "-o", new, "--device", "cpu")
    assert not new.exists()
    strain = shutil.copy(files / "background.hdf", tmp_path / "strain.hdf")
    before = strain.read_bytes()
    assert "is the strain file" in say("--model", run, strain, "-o", strain, "--overwrite")
    assert strain.read_bytes() == before
    assert "notes.hdf: is no file of events" in say("--model", run, strain, "-o", shutil.copy(out, tmp_path / "notes.hdf"), "--overwrite")
    strain.write_bytes(before[:-1000])
    assert "aframe: " + str(strain) + ": cannot be read" in say("--model", run, strain, "-o", new)
    assert f"aframe: {tmp_path}: is a folder" in say("--model", run, tmp_path, "-o", new)
    assert "aframe: /proc/new.hdf: cannot be written" in say("--model", run, strain, "-o", "/proc/new.hdf")
    for option in ("--threshold", "--refine-above"):
        assert f"{option} nan: expected a number" in say("--model", run, strain, "-o", new, option, "nan")
    assert "--var inf: expected a number" in say("--model", run, strain, "-o", new, "--var", "inf")


def test_the_data_set_has_to_be_named(tmp_path):
    done = CliRunner().invoke(app, ["mlgwsc1", "train-config", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert "--dataset" in done.output
    assert not (tmp_path / "run").exists()


def test_segments_that_are_too_short_are_told_once_and_briefly(tiny_run, files, tmp_path):
    strain = shutil.copy(files / "background.hdf", tmp_path / "strain.hdf")
    with h5py.File(strain, "a") as f:
        for ifo in ("H1", "L1"):
            for k in range(25):
                start = START + 1000 + 10 * k
                data = f.create_dataset(f"{ifo}/{start}", data=np.random.default_rng(k).standard_normal(2 * 2048))
                data.attrs.update({"start_time": float(start), "delta_t": 1 / 2048})
    done = tiny_run.aframe("mlgwsc1", "analyze", "--model", str(tiny_run.path), str(strain), "-o", str(tmp_path / "events.hdf"))
    told = [line for line in (done.stdout + done.stderr).splitlines() if "2 s, expected at least" in line]
    assert len(told) == 10
    assert (done.stdout + done.stderr).count("strain.hdf: segment") == 10
    assert "and 15 more, 30 s in all" in done.stdout


def test_what_cannot_be_opened_is_refused(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(OpeningError, match="sees no CUDA device"):
        open_network(tmp_path, "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    workspace = tiny_run.workspace()
    engine = workspace.store.open_local(workspace.complete("engine"))
    with pytest.raises(OpeningError, match="runs on the CPU"):
        open_network(engine, "cuda")
    (tmp_path / "engine.json").write_text("{}")
    with pytest.raises(OpeningError, match="not an engine"):
        open_network(tmp_path)
    with pytest.raises(BundleError, match="not found"):
        open_network(tmp_path / "nothing", "cpu")


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", mlgwsc1.DATA_SETS)
def test_a_data_set_is_a_run_directory(tmp_path, dataset):
    out = Console(file=io.StringIO(), width=300)
    run = mlgwsc1.train_config(tmp_path / "run", dataset, [], out)
    config = load_config(run.experiment, env={})
    assert config.waveforms.prior == config.waveforms.validation_prior == f"mlgwsc1_{dataset}"
    # one mode in sets 1 and 2, all of the challenge's in set 3
    assert config.waveforms.approximant == ("IMRPhenomXPHM" if dataset == 3 else "IMRPhenomD")
    assert config.waveforms.minimum_frequency == config.waveforms.reference_frequency == 20
    curve = "aLIGO_ZERO_DET_high_P_asd.txt" if dataset == 1 else "aLIGO_mid_asd.txt"
    assert config.strain.simulated.asd == {"H1": curve, "L1": curve}
    # stationary and Gaussian
    assert (config.strain.simulated.glitch_rate, config.strain.simulated.lines) == (0, [])
    mlgwsc1.train_config(tmp_path / "run", dataset, [], out)
    with pytest.raises(ConfigError, match="holds another experiment"):
        mlgwsc1.train_config(tmp_path / "run", dataset % 3 + 1, [], out)


def test_noise_curves_of_your_own(tmp_path):
    out, curve = Console(file=io.StringIO(), width=300), tmp_path / "H1.txt"
    np.savetxt(curve, np.column_stack([np.arange(10, 1025), np.full(1015, 1e-23)]))
    run = mlgwsc1.train_config(tmp_path / "run", 2, [f"H1={curve}", "L1=aLIGO_late_asd.txt"], out)
    assert load_config(run.experiment, env={}).strain.simulated.asd == {"H1": str(curve), "L1": "aLIGO_late_asd.txt"}
    for text, words in (("H1", "expected IFO=CURVE"), ("H1=gone.txt", "no packaged noise curve"), (f"H1={__file__}", "two columns")):
        with pytest.raises(ConfigError, match=words):
            mlgwsc1.train_config(tmp_path / "other", 2, [text], out)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match="expected 1, 2, 3; for set 4"):
        mlgwsc1.train_config(tmp_path / "other", 4, [], out)


SMALL = {
    "segments": {
        "fixed": [[1240000020, 1240000260], [1240130040, 1240130160]],
        "train_min_duration": 80,
        "test_min_duration": 80,
        "max_duration": 90,
        "min_valid_duration": 80,
    },
    "waveforms": {"num_training_signals": 100, "num_training_jobs": 1, "num_validation_signals": 20, "num_validation_jobs": 1},
    "injections": {"num_signals": 4, "spacing": 1, "buffer": 1},
    "model": {
        "architecture": {"layers": [1, 1, 1, 1], "width": 4, "norm_groups": 4},
        "training": {"batch_size": 32, "batches_per_epoch": 4, "max_epochs": 1, "valid_livetime": 60, "num_threads": 1},
    },
    "conditioning": {"psd_length": 8, "fftlength": 1},
    "inference": {"num_slides": 1},
}
"""What shrinks a data set's run to a test."""


@pytest.mark.slow
@pytest.mark.parametrize("dataset", mlgwsc1.DATA_SETS)
def test_one_run_makes_a_model_for_the_challenge(new_run, files, tmp_path, dataset):
    run = new_run(f"ds{dataset}")
    run.aframe("mlgwsc1", "train-config", str(run.path), "--dataset", str(dataset))
    experiment = yaml.safe_load((run.path / "aframe.yaml").read_text())
    for section, values in SMALL.items():
        experiment[section] = experiment.get(section, {}) | values
    run.write(experiment)
    run.run()
    out = tmp_path / "events.hdf"
    run.aframe("mlgwsc1", "analyze", "--model", str(run.path), str(files / "foreground.hdf"), "-o", str(out))
    assert len(read(out)["time"]) > 10
