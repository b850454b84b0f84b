"""Science segments from lists, and from GWOSC and DQSegDB servers on this machine (reference 2.1)."""

from __future__ import annotations

import pytest
from igwn_segments import segment, segmentlist

from aframe_assets.config import Config
from aframe_assets.segments.query import O3A_STOP, O3B_START, SegmentError, coincident, flags_of, read_segments, science_segments

DAY = 86400


@pytest.fixture
def lists(shared_data):
    return {f"{run}_{ifo}": str(shared_data / "segments" / f"{run}_{ifo}_times.dat") for run in ("o3a", "o3b") for ifo in ("H1", "L1")}


def test_o3a_coincidence_is_106_79_days(lists):
    both = coincident({ifo: read_segments(lists[f"o3a_{ifo}"]) for ifo in ("H1", "L1")})
    assert abs(both) / DAY == pytest.approx(106.79, abs=0.005)
    assert abs(both) == sum(b - a for a, b in both)  # coalesced, no overlaps
    assert both[0] == (1238166018, 1238170289)


def _brute_intersection(x, y):
    return sorted((max(a, c), min(b, d)) for a, b in x for c, d in y if min(b, d) > max(a, c))


def test_coincidence_equals_pairwise_loops(lists):
    h1, l1 = (read_segments(lists[f"o3a_{ifo}"]) for ifo in ("H1", "L1"))
    assert [tuple(s) for s in coincident({"H1": h1, "L1": l1})] == _brute_intersection(h1, l1)


def file_config(files, **segments):
    times = {"train_start": 1238166018, "train_stop": 1239000000, "test_start": 1239000000, "test_stop": 1240000000}
    return Config(segments={"source": "files", "files": files, **times, **segments})


def test_commissioning_break_is_never_used(tmp_path):
    path = tmp_path / "H1.txt"
    path.write_text(f"{O3A_STOP - 100} {O3B_START + 50}\n")
    c = file_config({"H1": str(path), "L1": str(path)})
    found = science_segments(c, [(O3A_STOP - 1000, O3B_START + 1000)])["H1"]
    assert found == [(O3A_STOP - 100, O3A_STOP), (O3B_START, O3B_START + 50)]


def test_every_list_of_the_data_set(shared_data):
    for path in sorted((shared_data / "segments").glob("*.dat")):
        columns = [tuple(map(int, line.split())) for line in path.read_text().splitlines()]
        assert all(b - a == d for a, b, d in columns)
        assert abs(read_segments(path)) == sum(d for _, _, d in columns), path.name
    assert len(read_segments(shared_data / "segments" / "mlgwsc_segments_approx.csv")) > 100


@pytest.mark.parametrize(
    "text",
    ["10 20\n30 45\n", "10 20 10\n30 45 15\n", "# seg start stop duration\n0 10 20 10\n1 30 45 15\n", "10 20 10 ; first\n\n30 45 15\n"],
)
def test_layouts(tmp_path, text):
    path = tmp_path / "s.txt"
    path.write_text(text)
    assert read_segments(path) == [(10, 20), (30, 45)]


def test_csv_and_gwpy_layouts(tmp_path):
    (tmp_path / "s.csv").write_text("key,gps_start,gps_stop,role\na,10,20,test\nb,30,45,test\n")
    assert read_segments(tmp_path / "s.csv") == [(10, 20), (30, 45)]
    from gwpy.segments import Segment, SegmentList

    SegmentList([Segment(10, 20), Segment(30, 45)]).write(str(tmp_path / "s.hdf5"), path="s")
    assert read_segments(tmp_path / "s.hdf5") == [(10, 20), (30, 45)]


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [("s.txt", "10 20\nten 20\n", "line 2: 'ten 20'"), ("s.txt", "10 20 11\n", "duration"), ("s.csv", "a,b\n1,2\n", "columns")],
)
def test_bad_lists_are_named(tmp_path, name, text, what):
    (tmp_path / name).write_text(text)
    with pytest.raises(SegmentError, match=rf"{name}.*{what}"):
        read_segments(tmp_path / name)
    with pytest.raises(SegmentError, match="no such segment list"):
        read_segments(tmp_path / "none.dat")


@pytest.fixture
def server(lists, flag_server):
    flag_server.flags = {f"{ifo}_DATA": [tuple(map(int, s)) for s in read_segments(lists[f"o3a_{ifo}"])] for ifo in ("H1", "L1")}
    flag_server.flags |= {
        "H1:DMT-ANALYSIS_READY:1": [[100, 900], [800, 1000]],
        "L1:DMT-ANALYSIS_READY:1": [[0, 10**6]],
        "H1:DCH-OK:1": [[500, 950]],
    }
    return flag_server


def server_config(server, **segments):
    times = {"train_start": 1238166018, "train_stop": 1238300000, "test_start": 1238300000, "test_stop": 1238400000}
    return Config(segments={"host": server.url, "segment_server": server.url, **times, **segments})


def test_gwosc_timelines(server, lists):
    windows = [(1238166018, 1238300000), (1238350000, 1238400000)]
    found = science_segments(server_config(server, source="gwosc"), windows)
    within = segmentlist(segment(*w) for w in windows)
    assert found == {ifo: read_segments(lists[f"o3a_{ifo}"]) & within for ifo in ("H1", "L1")}
    assert all(p.startswith("/api/v2/timelines/") for p in server.asked) and len(server.asked) > 4  # answers come in pages


def test_gwosc_query_skips_the_break(server):
    server.flags["H1_DATA"] = server.flags["L1_DATA"] = [(O3A_STOP - 5000, O3B_START + 5000)]
    found = science_segments(server_config(server, source="gwosc"), [(O3A_STOP - 2000, O3B_START + 3000)])
    assert found["H1"] == [(O3A_STOP - 2000, O3A_STOP), (O3B_START, O3B_START + 3000)]


def test_dqsegdb(server):
    flags = ["DMT-ANALYSIS_READY:1", "H1:DCH-OK:1"]
    found = science_segments(server_config(server, source="dqsegdb", flags=flags), [(0, 980)])
    assert found == {"H1": [(500, 950)], "L1": [(0, 980)]}


def test_dqsegdb_takes_open_flags_from_gwosc(server, lists):
    c = server_config(server, source="dqsegdb", flags=["H1_DATA", "L1_DATA"])
    found = science_segments(c, [(1238166018, 1238200000)])
    assert found["H1"] == read_segments(lists["o3a_H1"]) & segmentlist([segment(1238166018, 1238200000)])


def test_errors_name_server_flag_and_times(server):
    with pytest.raises(SegmentError, match=r"127\.0\.0\.1.*H1:NO-SUCH:1 from GPS 0 to 980.*htgettoken"):
        science_segments(server_config(server, source="dqsegdb", flags=["NO-SUCH:1"]), [(0, 980)])
    server.shutdown()
    server.server_close()
    with pytest.raises(SegmentError, match=r"127\.0\.0\.1.*H1_DATA from GPS 1238166018 to 1238200000"):
        science_segments(server_config(server, source="gwosc"), [(1238166018, 1238200000)])


def test_flags():
    c = Config(
        segments={
            "source": "dqsegdb",
            "train_start": 0,
            "train_stop": 1,
            "test_start": 1,
            "test_stop": 2,
            "flags": ["DATA", "X:1", "L1:Y:2", "H1_CBC_CAT2"],
        }
    )
    assert flags_of(c) == {"H1": ["H1_DATA", "H1:X:1", "H1_CBC_CAT2"], "L1": ["L1_DATA", "L1:X:1", "L1:Y:2"]}
    default = c.model_copy(update={"segments": c.segments.model_copy(update={"flags": []})})
    assert flags_of(default) == {"H1": ["H1_DATA"], "L1": ["L1_DATA"]}
    one = c.model_copy(update={"segments": c.segments.model_copy(update={"flags": ["H1_DATA"]})})
    with pytest.raises(SegmentError, match="no flag of L1"):
        flags_of(one)
    closed = c.model_copy(update={"segments": c.segments.model_copy(update={"source": "gwosc", "flags": ["X:1"]})})
    with pytest.raises(SegmentError, match="H1:X:1 is not an open flag"):
        flags_of(closed)
