"""Candidates as GraceDB's JSON and as LIGO_LW, read back by others' readers."""

from __future__ import annotations

import json

import pytest
from gwpy.table import EventTable
from igwn_ligolw import lsctables, utils

from aframe_assets.sensitivity.event_files import gracedb_events, write_gracedb, write_ligolw


def row(rank, time, far, **more):
    match = [{"name": "GW150914"}] if rank == 1 else []
    p = {"p_astro": 0.9, "p_astro_low": 0.5, "p_astro_high": None, "p_astro_is_limit": rank == 1}
    base = {"rank": rank, "detection_time": time, "detection_statistic": 20.5 - rank, "far": far, "far_is_limit": rank == 1}
    return base | p | {"num_louder": rank - 1, "false_alarm_probability": 0.01, "flags": ["L1:CBC_CAT2"], "matches": match} | more


@pytest.fixture
def events():
    rows = [row(1, 1126259462.5, 1e-8), row(2, 1126259999.999999, 2.5e-4), row(3, 1126260000.25, 1e-3)]
    return gracedb_events(rows, ["L1", "H1"], {1: 1126259462.4144})


def test_json_has_the_shape_of_gracedb(events, tmp_path):
    first, second, _ = json.loads(write_gracedb(tmp_path / "x.json", events).read_text())
    assert (first["group"], first["pipeline"], first["instruments"], first["nevents"]) == ("CBC", "aframe", "H1,L1", 2)
    assert first["gpstime"] == 1126259462.4144 and second["gpstime"] == 1126259999.999999
    assert first["far"] == first["extra_attributes"]["CoincInspiral"]["combined_far"] == 1e-8
    assert first["extra_attributes"]["CoincInspiral"]["mchirp"] is None, "a search without templates knows no mass"
    assert [s["ifo"] for s in first["extra_attributes"]["SingleInspiral"]] == ["H1", "L1"]
    own = first["extra_attributes"]["Aframe"]
    assert own["far_is_limit"] and own["time_is"] == "merger" and own["catalog_matches"] == ["GW150914"] and own["flags"] == ["L1:CBC_CAT2"]
    assert second["extra_attributes"]["Aframe"]["time_is"] == "detection"


@pytest.mark.parametrize("name", ["c.xml", "c.xml.gz"])
def test_ligolw_is_read_by_ligolw_and_gwpy(events, tmp_path, name):
    path = write_ligolw(tmp_path / name, events, {"preset": "demo", "seed": 1122, "version": "0.1.0"})
    document = utils.load_filename(str(path))
    coincs, inspirals, singles, maps, definers = (
        t.get_table(document)
        for t in (
            lsctables.CoincTable,
            lsctables.CoincInspiralTable,
            lsctables.SnglInspiralTable,
            lsctables.CoincMapTable,
            lsctables.CoincDefTable,
        )
    )
    assert [c.likelihood for c in coincs] == [19.5, 18.5, 17.5]
    assert [float(i.end) for i in inspirals] == pytest.approx([1126259462.4144, 1126259999.999999, 1126260000.25], abs=1e-6)
    assert [i.combined_far for i in inspirals] == [1e-8, 2.5e-4, 1e-3] and {i.snr for i in inspirals} == {None}
    assert {frozenset(i.instruments) for i in inspirals} == {frozenset(("H1", "L1"))}
    of_first = {m.event_id for m in maps if m.coinc_event_id == coincs[0].coinc_event_id}
    assert sorted(s.ifo for s in singles if s.event_id in of_first) == ["H1", "L1"] and len(singles) == 6
    assert len(definers) == 1 and {c.coinc_def_id for c in coincs} == {definers[0].coinc_def_id}
    assert [(p.program, p.version) for p in lsctables.ProcessTable.get_table(document)] == [("aframe", "0.1.0")]
    table = EventTable.read(str(path), format="ligolw", tablename="coinc_inspiral")
    assert list(table["combined_far"]) == [1e-8, 2.5e-4, 1e-3]


def test_no_candidate_is_a_file_too(tmp_path):
    path = write_ligolw(tmp_path / "none.xml.gz", gracedb_events([], ["H1"], {}), {})
    assert len(lsctables.CoincInspiralTable.get_table(utils.load_filename(str(path)))) == 0
