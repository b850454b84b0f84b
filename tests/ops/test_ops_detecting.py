"""What `aframe detect` prints of a detection."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from gwosc_file import write_gwosc
from rich.console import Console

from aframe_assets.inference.detect import Candidate, Detection
from aframe_assets.inference.merger_time import Calibration
from aframe_assets.segments.vetoes import Veto
from aframe_ops.cli import detecting


def detection(vetoed=(), unanswered=()) -> Detection:
    candidate = Candidate(1264316110.25, None, None, 3.5, 1 / 3600, True)
    spans = ((1264316100.0, 1264316114.0), (1264316119.0, 1264316170.0))
    return Detection((candidate,), ("H1", "L1"), spans, 65.0, (), tuple(vetoed), tuple(unanswered), 3600.0, Calibration(0.0, 1.5, 0))


@pytest.fixture
def show(tmp_path, monkeypatch, capsys):
    path = write_gwosc(tmp_path / "H1.hdf5", "H1", 1264316084, np.zeros(32 * 1024), 1024)

    def shown(found, as_json=False):
        monkeypatch.setattr(detecting, "_search", lambda run, files: (found, "no background"))
        out = io.StringIO()
        detecting.show_detection(None, [path], Console(file=out, width=200), as_json=as_json)
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
