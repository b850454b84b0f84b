"""The record of a search beside its model: round trip and damage."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from aframe_assets.config import Inference
from aframe_assets.inference.merger_time import Calibration
from aframe_assets.inference.search_record import SearchRecord, SearchRecordError


def record(statistic=(3.0, -1.0, 2.5), livetime=7200.0) -> SearchRecord:
    inference = Inference(inference_rate=8, cluster_window_length=4)
    return SearchRecord(inference, Calibration(0.02, 0.11, 40, "centre"), np.array(statistic), livetime, "simulated noise")


def test_round_trip(tmp_path):
    files = record().write(tmp_path)
    assert sorted(p.name for p in files) == ["background.hdf5", "search.json"]
    found = SearchRecord.read(tmp_path)
    assert found.inference == record().inference and found.calibration == record().calibration
    assert found.detection_statistic.tolist() == [-1.0, 2.5, 3.0] and found.Tb == 7200.0 and found.noise == "simulated noise"


def test_a_folder_without_a_record(tmp_path):
    assert SearchRecord.read(tmp_path) is None


def test_what_cannot_be_a_background_is_not_written(tmp_path):
    for bad in (record(livetime=0.0), record(statistic=(1.0, np.inf))):
        with pytest.raises(SearchRecordError, match="expected Tb > 0 and finite statistics"):
            bad.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damage_is_named(tmp_path):
    record().write(tmp_path)
    text = (tmp_path / "search.json").read_text()
    (tmp_path / "search.json").write_text(json.dumps({**json.loads(text), "format": "aframe-search/9"}))
    with pytest.raises(SearchRecordError, match=r"search\.json.*expected 'aframe-search/1'"):
        SearchRecord.read(tmp_path)
    (tmp_path / "search.json").write_text(text[:40])
    with pytest.raises(SearchRecordError, match=r"search\.json: cannot be read"):
        SearchRecord.read(tmp_path)
    (tmp_path / "search.json").write_text(text)
    with h5py.File(tmp_path / "background.hdf5", "r+") as f:
        del f["detection_statistic"]
        f["detection_statistic"] = np.zeros(2)
    with pytest.raises(SearchRecordError, match=r"background\.hdf5: 2 events; search\.json tells of 3"):
        SearchRecord.read(tmp_path)
    (tmp_path / "background.hdf5").unlink()
    with pytest.raises(SearchRecordError, match=r"background\.hdf5: cannot be read"):
        SearchRecord.read(tmp_path)
