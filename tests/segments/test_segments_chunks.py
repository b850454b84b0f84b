"""Cutting, roles and the table, against hand-made cases and upstream's arithmetic (reference 2.1, 2.2)."""

from __future__ import annotations

import csv
import json
from itertools import pairwise

import pytest
from igwn_segments import segment, segmentlist
from igwn_segments.utils import fromsegwizard

from aframe_assets.config import Config
from aframe_assets.segments.checks import CHECKS, segment_checks
from aframe_assets.segments.chunks import Chunk, Cut, cut, make_chunks, training_roles, windows
from aframe_assets.segments.query import coincident, science_segments
from aframe_assets.segments.table import make_roles, make_rows, write_csv, write_segwizard


def config(**segments) -> Config:
    base = {
        "source": "fixed",
        "fixed": [(1_000_000_000, 1_000_010_000), (1_000_020_000, 1_000_030_000)],
        "train_start": 1_000_000_000,
        "train_stop": 1_000_010_000,
        "test_start": 1_000_010_000,
        "test_stop": 1_000_040_000,
        "min_valid_duration": 1000,
    }
    return Config(segments=base | segments)


def pieces(config: Config):
    return make_chunks(config, science_segments(config, list(windows(config).values())))


@pytest.mark.parametrize("length", [128, 1023, 1024, 1025, 19999, 20000, 20001, 39999, 40000, 55000])
def test_cut_has_upstreams_number_of_pieces_less_short_remainders(length):
    report = Cut()
    found = cut([(0, length)], 100, 1024, report)
    upstream = (length - 1) // 1024 + 1  # reference 2.2
    remainder = length - (upstream - 1) * 1024
    merged = int(upstream > 1 and remainder < 100)
    assert (len(found), report.merged) == (upstream - merged, merged)
    assert found[0][0] == 0 and found[-1][1] == length
    assert all(a[1] == b[0] for a, b in pairwise(found))
    assert all(100 <= b - a < 1024 + 100 for a, b in found)


def test_minimum_is_inclusive_and_reported():
    report = Cut()
    assert cut([(0, 128), (200, 327), (400, 500)], 128, -1, report) == [(0, 128)]
    assert (report.short, report.short_seconds, report.longest_short) == (2, 227, 127)


def test_bounds_move_inwards_to_whole_seconds():
    assert cut([(10.25, 200.75)], 100, -1) == [(11, 200)]
    assert cut([(10.25, 110.75)], 100, -1) == []  # 99 whole seconds


def test_no_cut():
    assert cut([(0, 10**6)], 128, -1) == [(0, 10**6)]


def test_piece_shorter_than_minimum_when_max_is_shorter():
    # The minimum is of a science stretch; pieces may be shorter if max_duration says so.
    assert cut([(0, 1000)], 500, 300) == [(0, 300), (300, 600), (600, 1000)]


def test_validation_is_latest_and_never_all():
    p = [(0, 100), (100, 200), (200, 300), (300, 400)]
    assert training_roles(p, 150) == ["train", "train", "validation", "validation"]
    assert training_roles(p, 100) == ["train", "train", "train", "validation"]
    assert training_roles(p, 1e9) == ["train", "validation", "validation", "validation"]
    assert training_roles(p, 0) == ["train", "train", "train", "validation"]
    assert training_roles(p[:1], 100) == ["train"]
    assert training_roles([], 100) == []


def test_roles_by_time_and_cut_at_the_border():
    c = config(fixed=[(1_000_000_000, 1_000_020_000)], train_stop=1_000_012_000, test_start=1_000_012_000, max_duration=6000)
    chunks, report = pieces(c)
    assert [(x.gps_start - 10**9, x.gps_stop - 10**9, x.role) for x in chunks] == [
        (0, 6000, "train"),
        (6000, 12000, "validation"),
        (12000, 18000, "test"),
        (18000, 20000, "test"),
    ]
    assert chunks[0].key == "1000000000-6000"
    assert report.merged == 0


def test_single_training_stretch_is_cut_in_two():
    chunks, report = pieces(config(max_duration=20000))
    assert [(c.duration, c.role) for c in chunks] == [(8976, "train"), (1024, "validation"), (10000, "test")]
    assert report.split == 1
    with pytest.raises(ValueError, match=r"one stretch.*10000 s.*min_valid_duration"):
        pieces(config(min_valid_duration=9500))


def test_times_outside_windows_are_not_used():
    chunks, _ = pieces(config(test_stop=1_000_025_000, train_start=1_000_002_000, max_duration=4000))
    assert min(c.gps_start for c in chunks) == 1_000_002_000
    assert max(c.gps_stop for c in chunks) == 1_000_025_000


def test_given_weights_nothing_is_trained():
    c = Config(
        model={"weights": "x"}, segments={"source": "fixed", "fixed": [(10**9, 10**9 + 5000)], "test_start": 10**9, "test_stop": 2 * 10**9}
    )
    assert list(windows(c)) == ["test"]
    chunks, _ = pieces(c)
    assert [x.role for x in chunks] == ["test"]


def test_strain_files_without_times(shared_data):
    files = [str(shared_data / "strain")]
    c = Config(
        model={"weights": "x"},
        segments={"source": "strain_files", "test_min_duration": 16, "max_duration": -1},
        strain={"source": "files", "files": files},
        conditioning={"psd_length": 8},
        inference={"psd_source": "segment"},
    )
    chunks, _ = pieces(c)
    starts = [1126259446, 1135136334, 1167559920, 1186741846, 1187529241]
    assert chunks == [Chunk(s, s + 32, "test") for s in starts]
    rows = make_rows(c, chunks)
    prints = [r["fingerprint"] for r in rows.values()]
    assert len(set(prints)) == 5 and all(len(p) == 64 for p in prints)
    with pytest.raises(ValueError, match=r"segments\.train_start"):
        windows(c.model_copy(update={"model": c.model.model_copy(update={"weights": None})}))
    three = c.model_copy(update={"ifos": ["H1", "L1", "V1"]})
    assert [x.gps_start for x in pieces(three)[0]] == [1186741846]


def test_fingerprint_is_of_content_not_of_time(tmp_path, shared_data):
    import os
    import shutil

    name = "H-H1_LOSC_4_V2-1126259446-32.hdf5"
    shutil.copy(shared_data / "strain" / name, tmp_path / name)
    os.chmod(tmp_path / name, 0o600)
    c = Config(
        ifos=["H1"],
        inference={"shifts": [1]},
        model={"weights": "x"},
        segments={"source": "strain_files", "test_min_duration": 80},
        strain={"source": "files", "files": [str(tmp_path)]},
    )
    from aframe_assets.segments.table import fingerprint

    first = fingerprint(c, 1126259446, 1126259478)
    os.utime(tmp_path / name, (1, 1))
    assert fingerprint(c, 1126259446, 1126259478) == first
    with open(tmp_path / name, "r+b") as file:
        file.seek(500_000)
        file.write(b"\x01\x02\x03")
    os.utime(tmp_path / name, (2, 2))
    assert fingerprint(c, 1126259446, 1126259478) != first


def test_table_and_role_identities(tmp_path):
    c = config(max_duration=5000)
    rows = make_rows(c, pieces(c)[0])
    assert list(rows) == ["1000000000-5000", "1000005000-5000", "1000020000-5000", "1000025000-5000"]
    assert rows["1000005000-5000"] == {"gps_start": 1000005000, "gps_stop": 1000010000, "role": "validation", "fingerprint": ""}
    roles = make_roles(rows)
    assert {r: v["livetime"] for r, v in roles.items()} == {"train": 5000, "validation": 5000, "test": 10000}
    assert roles["test"]["partitions"] == ["1000020000-5000", "1000025000-5000"]
    later = make_roles(make_rows(c, [*pieces(c)[0], Chunk(1000030000, 1000031000, "test")]))
    assert later["train"] == roles["train"] and later["test"]["sha256"] != roles["test"]["sha256"]
    json.dumps({"rows": rows, "roles": roles})
    write_csv(rows, tmp_path / "s.csv")
    read = list(csv.DictReader(open(tmp_path / "s.csv")))
    assert [r["key"] for r in read] == list(rows) and [int(r["duration"]) for r in read] == [5000] * 4
    write_segwizard(rows, tmp_path / "s.txt")
    assert fromsegwizard(open(tmp_path / "s.txt")) == [(r["gps_start"], r["gps_stop"]) for r in rows.values()]


def test_checks():
    c = config(max_duration=5000)
    science = science_segments(c, list(windows(c).values()))
    chunks, report = make_chunks(c, science)
    rows = make_rows(c, chunks)
    checks = segment_checks(c, rows, make_roles(rows), science, report)
    assert [x.name for x in checks] == [c.name for c in CHECKS] and all(x.passed for x in checks)
    assert checks[1].metadata["test_livetime_s"] == 10000

    science["L1"] = segmentlist([segment(1_000_000_000, 1_000_000_500), segment(1_000_020_000, 1_000_020_100)])
    empty, report = make_chunks(c, science)
    none = segment_checks(c, {}, make_roles({}), science, report)
    assert empty == [] and not none[0].passed and none[0].severity == "error"
    assert "0 segments for train" in none[0].description and "the longest 500 s" in none[0].description
    outside = segment_checks(c, rows, make_roles(rows), science, report)
    assert not outside[2].passed and "1000000000-5000" in outside[2].description
    wanting = segment_checks(config(max_duration=5000, min_valid_duration=6000), rows, make_roles(rows), coincident_dict(c), report)
    assert not wanting[1].passed and wanting[1].severity == "warn"


def coincident_dict(c):
    return science_segments(c, list(windows(c).values()))


def test_intersection_of_three():
    a = segmentlist([segment(0, 10), segment(20, 30)])
    b = segmentlist([segment(5, 25)])
    d = segmentlist([segment(0, 7), segment(22, 40)])
    assert coincident({"H1": a, "L1": b, "V1": d}) == [(5, 7), (22, 25)]
