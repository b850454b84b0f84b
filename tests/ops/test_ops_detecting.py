"""What `aframe detect` prints of a detection, and which model it takes."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from gwosc_file import write_gwosc
from rich.console import Console
from typer.testing import CliRunner

from aframe_assets.config import Inference
from aframe_assets.config_load import build_config
from aframe_assets.inference.detect import Candidate, Detection
from aframe_assets.inference.merger_time import Calibration
from aframe_assets.inference.search_record import SearchRecord
from aframe_assets.model import importing
from aframe_assets.model.bundle import save_bundle
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.segments.vetoes import Veto
from aframe_ops.cli import detecting
from aframe_ops.cli.main import app
from aframe_ops.cli.models import Model, open_model


def detection(vetoed=(), unanswered=()) -> Detection:
    candidate = Candidate(1264316110.25, None, None, 3.5, 1 / 3600, True)
    spans = ((1264316100.0, 1264316114.0), (1264316119.0, 1264316170.0))
    return Detection((candidate,), ("H1", "L1"), spans, 65.0, (), tuple(vetoed), tuple(unanswered), 3600.0, Calibration(0.0, 1.5, 0))


@pytest.fixture
def show(tmp_path, monkeypatch, capsys):
    path = write_gwosc(tmp_path / "H1.hdf5", "H1", 1264316084, np.zeros(32 * 1024), 1024)

    def shown(found, as_json=False):
        model = Model(None, None, found.calibration, None, "not calibrated", "no background")
        monkeypatch.setattr(detecting, "chosen_model", lambda run, model_name: model)
        monkeypatch.setattr(detecting, "_search", lambda model, files: found)
        out = io.StringIO()
        detecting.show_detection(None, "pretrained", [path], Console(file=out, width=200), as_json=as_json)
        return capsys.readouterr().out if as_json else out.getvalue()

    return shown


def test_vetoed_time_is_named_with_its_flag(show):
    veto = Veto("L1", 1264316116.0, 1264316117.0, "CBC_CAT2", "L-L1.hdf5")
    text = show(detection([veto], ["vetoes of H1: nothing is known of CBC_CAT2"]))
    assert "vetoed GPS 1264316116.00 to 1264316117.00: L1 CBC_CAT2 (L-L1.hdf5)" in text
    assert "nothing is known of CBC_CAT2; not vetoed" in text
    assert "GPS 1264316100.00 to 1264316114.00, GPS 1264316119.00" in text and "< 1 /h" in text
    assert json.loads(show(detection([veto]), as_json=True))["vetoed"] == [veto._asdict()]


def test_many_vetoes_are_counted(show):
    vetoes = [Veto("L1", 1264316000.0 + i, 1264316000.5 + i, "CBC_CAT2", "x") for i in range(25)]
    text = show(detection(vetoes))
    assert text.count("vetoed GPS") == 20 and "and 5 vetoes more; --json lists all" in text
    assert "vetoed" not in show(detection())


# --- which model ----------------------------------------------------------------------------------

ARCHITECTURE = {"name": "streaming", "layers": [1, 1, 1, 1], "width": 4, "stem_kernel": 15, "stem_stride": 4, "context": 0.3125}
START, SECONDS = 1264316084, 20


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """An untrained network in the place of the shipped one, with a search beside it; and two files of white noise."""
    config = build_config({"preset": "demo", "conditioning": {"psd_length": 4}, "model": {"architecture": ARCHITECTURE}})
    torch.manual_seed(0)
    folder = save_bundle(
        tmp_path / "shipped", build_network(config.model.architecture, Sky.of(config)), config, metrics={"valid_auroc": 0.5}, provenance={}
    )
    monkeypatch.setattr(importing, "shipped_folder", lambda: folder)
    rng = np.random.default_rng(0)
    for ifo in ("H1", "L1"):
        write_gwosc(tmp_path / f"{ifo}.hdf5", ifo, START, 1e-22 * rng.standard_normal(SECONDS * 2048), 2048)
    return folder


def record(folder, **inference) -> None:
    calibration = Calibration(0.01, 0.2, 25, "centre")
    SearchRecord(Inference(**inference), calibration, np.linspace(-30, -20, 11), 36000.0, "simulated noise").write(folder)


def run(*args):
    return CliRunner().invoke(app, ["detect", *map(str, args)])


@pytest.mark.parametrize("option", [["--model", "pretrained"], []])
def test_the_shipped_model_brings_its_settings_calibration_and_background(shipped, tmp_path, option):
    record(shipped, inference_rate=8, cluster_window_length=4)
    done = run(*option, tmp_path / "H1.hdf5", tmp_path / "L1.hdf5", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["calibration"] == {"offset": 0.01, "width90": 0.2, "num": 25, "edge": "centre"}
    # psd_length and context are those of the model, the rate that of its search; 1/2 s of context before in whole steps of 1/8 s
    assert found["livetime"] == (SECONDS - 4 - 1 - 1.5 - 1.5) - 0.375 - 0.3125 + 0.0625
    assert found["background_livetime"] == 36000.0 and "simulated noise" in found["false_alarms"]
    # an untrained network answers around zero, louder than all of that background
    best = found["candidates"][0]
    assert best["far"] == 1 / 36000.0 and best["far_is_limit"]
    text = run(*option, tmp_path / "H1.hdf5", tmp_path / "L1.hdf5").output
    assert (
        "merger times are calibrated on 25 injections" in text
        and "10 h of simulated noise" in text
        and "not of the noise in these files" in text
    )
    assert "< 0.1 /h" in text


def test_a_bundle_without_a_search(shipped, tmp_path):
    done = run("--model", shipped, tmp_path / "H1.hdf5", tmp_path / "L1.hdf5")
    assert done.exit_code == 0, done.output
    assert "not calibrated" in done.output and "false alarms need a background" in done.output and "/h" not in done.output
    assert open_model(shipped).config.inference == Inference()


def test_run_and_model_exclude_each_other_and_what_is_wrong_is_said(shipped, tmp_path):
    file = tmp_path / "H1.hdf5"
    both = run("--run", tmp_path, "--model", "pretrained", file)
    assert both.exit_code == 2 and "expected one of them" in both.output
    assert run("--run", tmp_path, file).exit_code == 2
    gone = run("--model", tmp_path / "gone", file)
    assert gone.exit_code == 2 and f"--model {tmp_path / 'gone'}: not found" in gone.output
    (shipped / "bundle.json").unlink()
    absent = run(file)
    assert absent.exit_code == 2 and "weights are shipped with this version" in absent.output
