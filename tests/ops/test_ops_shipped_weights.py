"""The shipped weights on real data: known mergers lead their files, at the published times, and noise slid against itself does not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from aframe_assets.inference.search_record import SearchRecord
from aframe_assets.model.importing import BUNDLE_FILES, is_shipped, shipped_folder
from aframe_ops.cli.main import app
from aframe_ops.cli.models import open_model
from benchmarks.model_card import CURVES
from benchmarks.pretrained import CARD, LIMIT, NUM_SHIFTS, SHIFT, slide_against_itself, try_events

FOUND = ("GW150914", "GW170104", "GW170814", "GW170823")


@pytest.fixture(scope="module")
def model():
    if not is_shipped():
        pytest.skip("no weights are shipped with this version: aframe_assets/model/pretrained is made by `python -m benchmarks.pretrained`")
    return open_model("pretrained", "cpu")


@pytest.fixture(scope="module")
def tried(model, shared_data):
    return {t.name: t for t in try_events(shared_data / "strain", model)}


@pytest.mark.parametrize("name", FOUND)
def test_known_mergers_lead_their_files(tried, name):
    t = tried[name]
    print(t)
    assert t.rank == 1 and t.statistic > t.next_statistic
    assert abs(t.detection_offset) < 0.5
    assert abs(t.merger_offset) < 0.1
    assert t.far is not None


def test_gw151226_is_as_the_card_says(tried):
    t = tried["GW151226"]
    print(t)
    said = next(line for line in (shipped_folder() / CARD).read_text().splitlines() if line.startswith("| GW151226 |"))
    assert said.split("|")[2].strip() == ("not among the candidates" if t.rank is None else str(t.rank))
    assert t.livetime > 10


def test_noise_slid_against_itself_is_fainter_than_the_mergers(model, tried, shared_data):
    slid = slide_against_itself(shared_data / "noise" / "real_noise.hdf", model)
    loudest = slid.detection_statistic.max()
    print(f"{NUM_SHIFTS} shifts of {SHIFT:g} s: {len(slid)} events in Tb = {slid.Tb:g} s, the loudest {loudest:.3f}")
    shifts = np.unique(slid.shift, axis=0)
    assert len(shifts) == NUM_SHIFTS >= 10 and (np.diff(shifts[:, 1]) >= 16).all() and shifts[:, 1].min() >= 16
    assert slid.Tb > 3600
    assert loudest < min(tried[name].statistic for name in FOUND)


def test_the_folder_is_whole_and_small(model):
    folder = shipped_folder()
    held = {p.name for p in folder.iterdir()}
    assert held <= {*BUNDLE_FILES, CARD, CURVES, "search.json", "background.hdf5"}
    assert held >= {"model.safetensors", "bundle.json", "config.json", "metrics.csv", CARD, CURVES, "search.json", "background.hdf5"}
    assert (folder / "model.safetensors").stat().st_size <= LIMIT
    description, record = json.loads((folder / "bundle.json").read_text()), SearchRecord.read(folder)
    assert description["provenance"]["epochs"] > 0 and record.Tb > 86400 and record.calibration.num > 0
    assert all(
        str(p) not in (folder / name).read_text() for name in ("bundle.json", "config.json", "search.json", CARD) for p in ("/tmp", "/work")
    )


def test_detect_needs_no_run_and_says_what_its_rates_are_of(model, shared_data):
    files = [shared_data / "strain" / f"{ifo[0]}-{ifo}_LOSC_4_V2-1126259446-32.hdf5" for ifo in ("H1", "L1")]
    done = CliRunner().invoke(app, ["detect", "--model", "pretrained", *map(str, files), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert abs(told["candidates"][0]["merger_time"] - 1126259462.4) < 0.1
    assert "not of the noise in these files" in told["false_alarms"] and "simulated" in told["false_alarms"]
