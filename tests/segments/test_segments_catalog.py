"""Catalogue tables of every layout in ../shared/data/catalog, read by content; facts from the tables themselves and from GWOSC's names."""

from __future__ import annotations

import pytest

from aframe_assets.segments.catalog import catalog, catalog_times, catalogs


@pytest.fixture
def tables(shared_data):
    return {p.name: str(p) for p in sorted((shared_data / "catalog").iterdir())}


def named(path):
    return {m.name: m for m in catalog(path)}


def test_every_table_is_read(tables):
    """Numbers of events counted by hand: lines of the text tables, different names of the others."""
    assert {name: len(catalog(path)) for name, path in tables.items()} == {
        "3-OGC_top.txt": 57,
        "4OGC_top.txt": 94,
        "GWOSC_all_versions_2023-09.csv": 121,
        "GWTC4_O4a_pe_summary.csv": 86,
        "GWTC_cumulative_2023-09.csv": 90,
    }


def test_newest_version_of_an_event_wins(tables):
    """GW190425: v1 (discovery paper) has no p_astro and SNR 12.46, v3 (GWTC-2.1) 0.78349 and 12.4."""
    event = named(tables["GWOSC_all_versions_2023-09.csv"])["GW190425"]
    assert (event.catalog, event.p_astro, event.snr, event.far_per_year) == ("GWTC-2.1-confident", 0.78349, 12.4, 0.034)
    assert named(tables["GWOSC_all_versions_2023-09.csv"])["GW150914"].catalog == "GWTC-1-confident"


def test_text_tables_have_their_header_in_a_comment(tables):
    event = named(tables["4OGC_top.txt"])["GW170814_103043"]
    assert event.gps == 1186741861.5336914 and event.catalog == "4OGC_top"
    assert event.far_per_year == pytest.approx(1 / 5270.872935459171)
    # SNR_V is -1: Virgo was there but not part of the trigger
    assert event.snr == pytest.approx((9.157429695129395**2 + 13.721809387207031**2) ** 0.5)
    assert named(tables["4OGC_top.txt"])["GW170817_124104"].p_astro is None, "-1 stands for none"


def test_times_from_names(tables):
    """GW230712_090405 is GPS 1373187863 (gwpy.time.to_gps of that UTC); the signal is somewhere in that second."""
    event = named(tables["GWTC4_O4a_pe_summary.csv"])["GW230712_090405"]
    assert (event.gps, event.accuracy) == (1373187863.5, 0.5)
    assert event.snr == 8.8245, "the median of its five analyses"
    assert {1373187863.0, 1373187864.0} <= set(catalog_times(tables["GWTC4_O4a_pe_summary.csv"]))


def test_names_hold_the_second_of_the_event(tables, tmp_path):
    """Every name of 4-OGC, 2015 to 2020 and so over two leap seconds, gives the second that its GPS time lies in."""
    table = catalog(tables["4OGC_top.txt"])
    path = tmp_path / "names.txt"
    path.write_text("name\n" + "\n".join(m.name for m in table))
    seconds = {m.name: m.gps for m in catalog(str(path))}
    assert all(abs(m.gps - seconds[m.name]) <= 0.5 for m in table)
    leap = tmp_path / "leap.txt"
    leap.write_text("name\nGW161231_235959\nGW161231_235960\nGW170101_000000\n")
    assert [m.gps for m in catalog(str(leap))] == [1167264016.5, 1167264017.5, 1167264018.5]


def test_several_catalogues(tables):
    both = catalogs([tables["3-OGC_top.txt"], "packaged", "packaged"])
    assert len(both) == 57 + 90 and [m.gps for m in both] == sorted(m.gps for m in both)
    assert catalogs(None) == () and catalogs("packaged") == catalog("packaged")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,GPS\nA,1126259462.4\nB,soon\n", r"mine.txt, line 3: GPS time 'soon' is not a number"),
        ("name,GPS,far\nA,1126259462.4,low\n", r"mine.txt, line 2: far 'low'"),
        ("# a note\nname,GPS,version\nA,1,v2\n", r"mine.txt, line 3: version 'v2'"),
        ("# Number, Name, GpsTime\n1 A 5\n2 B\n", r"mine.txt, line 3: 2 columns, expected 3"),
        ("name\nGW230712_090405\nGW23\n", r"mine.txt, line 3: no GPS time, and the name 'GW23' gives none"),
        ("name\nGW230712_090405\nGW231399_090405\n", r"mine.txt, line 3: the name 'GW231399_090405' holds no date"),
        ("name,when\nA,1\n", r"mine.txt has no GPS column; its columns are name, when"),
        ("\n", "mine.txt is empty"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, message):
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        catalog(str(path))
