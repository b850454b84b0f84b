"""Vetoed time from masks, timelines, DQSegDB, lists, gates and catalogues; the asset, its checks and its key."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from gwosc_file import write_gwosc

from aframe_assets import lineage
from aframe_assets.config_load import ConfigError, build_config, load_config
from aframe_assets.segments.assets import assets, make_segments, make_vetoes
from aframe_assets.segments.checks import VETO_CHECKS, veto_checks
from aframe_assets.segments.query import SegmentError
from aframe_assets.segments.strain_headers import StrainError
from aframe_assets.segments.vetoes import (
    Veto,
    coincident_seconds,
    find_vetoes,
    not_cumulative,
    read_gates,
    read_vetoes,
    vetoed_seconds,
    vetoed_times,
    vetoes_at,
    vetoes_of,
    write_vetoes,
)
from aframe_assets.store import open_store
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.job import Job
from aframe_assets.store.workspace import Workspace

GPS = 1_240_000_000
FIXED = {
    "source": "fixed",
    "train_start": None,
    "train_stop": None,
    "fixed": [[GPS, GPS + 64]],
    "test_start": GPS,
    "test_stop": GPS + 64,
    "test_min_duration": 16,
}


def file_config(tmp_path, vetoes, unset=None, ifos=("H1", "L1"), segments=None):
    """An experiment on two 32 s files per detector; `unset`: {(ifo, file number): {bit: seconds}}."""
    noise = np.random.default_rng(0).standard_normal(32 * 1024)
    for ifo in ifos:
        for i in range(2):
            write_gwosc(tmp_path / f"{ifo}-{i}.hdf5", ifo, GPS + 32 * i, noise, 1024, (unset or {}).get((ifo, i)))
    return build_config(
        {
            "preset": "events",
            "ifos": list(ifos),
            "sample_rate": 512,
            "conditioning": {"lowpass": None},
            "model": {"weights": "elsewhere"},
            "inference": {"shifts": list(range(len(ifos))), "exclude_catalog": None},
            "strain": {"files": [str(tmp_path)]},
            "segments": segments or {},
            "vetoes": vetoes,
        }
    )


def spans(found, ifo, category):
    return [(v.start - GPS, v.stop - GPS) for v in found if (v.ifo, v.category) == (ifo, category)]


def test_masks_answer_for_each_detector_and_bit(tmp_path):
    unset = {
        ("L1", 0): {"CBC_CAT2": [3, 4, 9], "CBC_CAT3": [3, 4, 5, 9], "NO_CBC_HW_INJ": [31]},
        ("L1", 1): {"NO_CBC_HW_INJ": [0, 1]},
        ("H1", 1): {"CBC_CAT2": [31], "CBC_CAT3": [31]},
    }
    vetoes = {"categories": ["CBC_CAT2", "L1_CBC_CAT3"], "hardware_injections": ["NO_CBC_HW_INJ", "NO_BURST_HW_INJ"]}
    found = find_vetoes(file_config(tmp_path, vetoes, unset), [(GPS, GPS + 64)])
    assert spans(found, "L1", "CBC_CAT2") == [(3, 5), (9, 10)]
    assert spans(found, "L1", "CBC_CAT3") == [(3, 6), (9, 10)] and spans(found, "H1", "CBC_CAT3") == []
    assert spans(found, "L1", "NO_CBC_HW_INJ") == [(31, 32), (32, 34)]  # a line for each file
    assert spans(found, "H1", "CBC_CAT2") == [(63, 64)]
    assert {v.source for v in found} == {"L1-0.hdf5", "L1-1.hdf5", "H1-1.hdf5"}
    times = vetoed_times(found, ["H1", "L1", "V1"])
    assert (times["L1"] - GPS).tolist() == [[3, 6], [9, 10], [31, 34]] and times["V1"].shape == (0, 2)
    seconds = vetoed_seconds(found)
    assert seconds["L1"] == {"CBC_CAT2": 3, "CBC_CAT3": 4, "NO_CBC_HW_INJ": 3, "any": 7} and seconds["H1"]["any"] == 1
    assert coincident_seconds([(GPS, GPS + 64)], times) == (64, 56)
    # cut to what is searched
    assert spans(find_vetoes(file_config(tmp_path, vetoes, unset), [(GPS + 4, GPS + 20)]), "L1", "CBC_CAT2") == [(4, 5), (9, 10)]
    assert [(v.ifo, v.category) for v in vetoes_at(found, GPS + 4.5, GPS + 4.6)] == [("L1", "CBC_CAT2"), ("L1", "CBC_CAT3")]


def test_the_real_masks_of_gw150914(shared_data):
    experiment = {"preset": "events", "model": {"weights": "elsewhere"}, "strain": {"files": [str(shared_data / "strain")]}}
    chunk = [(1126259446, 1126259478)]
    # CAT1-3 and compact-binary injections are clean there; the continuous-wave injections of L1 were on, as mostly.
    clean = build_config(experiment | {"vetoes": {"categories": ["CBC_CAT3"], "hardware_injections": ["NO_CBC_HW_INJ"]}})
    assert find_vetoes(clean, chunk) == []
    waves = build_config(experiment | {"vetoes": {"hardware_injections": ["NO_CW_HW_INJ"]}})
    assert find_vetoes(waves, chunk) == [Veto("L1", *map(float, chunk[0]), "NO_CW_HW_INJ", "L-L1_LOSC_4_V2-1126259446-32.hdf5")]


def test_unknown_bits_and_files_without_masks_are_named(tmp_path):
    with pytest.raises(StrainError, match=r"H1-0\.hdf5.*no data-quality bit 'CBC_CAT9' \(vetoes\); expected one of DATA, CBC_CAT1"):
        find_vetoes(file_config(tmp_path, {"categories": ["CBC_CAT9"]}), [(GPS, GPS + 64)])
    config = file_config(tmp_path, {"categories": ["CBC_CAT2"]})
    with pytest.raises(StrainError, match=r"vetoes of H1: nothing is known of CBC_CAT2 at GPS 1240000064 to 1240000070: no strain file"):
        find_vetoes(config, [(GPS, GPS + 70)])
    import h5py

    with h5py.File(tmp_path / "L1-1.hdf5", "r+") as file:
        del file["quality"]
    with pytest.raises(StrainError, match=r"vetoes of L1.*GPS 1240000032 to 1240000064: .*L1-1\.hdf5 .* has no data-quality mask"):
        find_vetoes(config, [(GPS, GPS + 64)])
    unanswered: list[str] = []
    assert find_vetoes(config, [(GPS, GPS + 64)], None, unanswered) == [] and len(unanswered) == 1 and "L1" in unanswered[0]


@pytest.fixture
def server(flag_server):
    http, url = flag_server, flag_server.url
    http.flags = {
        "H1_CBC_CAT2": [(GPS, GPS + 64)],
        "L1_CBC_CAT2": [(GPS, GPS + 20), (GPS + 21, GPS + 64)],
        "H1:DCH-BAD:1": [[GPS + 5, GPS + 6]],
        "L1:DCH-BAD:1": [[GPS + 50, GPS + 90]],
        "L1:DCH-ONE:2": [[GPS + 1, GPS + 2]],
    }
    times = {"test_start": GPS, "test_stop": GPS + 64, "test_min_duration": 16}
    http.config = lambda vetoes: build_config(
        {
            "preset": "demo",
            "model": {"weights": "elsewhere"},
            "segments": {"source": "gwosc", "host": url, "segment_server": url, "train_start": None, "train_stop": None, **times},
            "vetoes": vetoes,
        }
    )
    return http


def test_active_means_passed_in_gwosc_timelines_and_vetoed_in_dqsegdb(server):
    config = server.config({"categories": ["CBC_CAT2"], "flags": ["DCH-BAD:1", "L1:DCH-ONE:2"]})
    found = find_vetoes(config, [(GPS, GPS + 64)])
    assert [(v.ifo, v.start - GPS, v.stop - GPS, v.category, v.source) for v in found] == [
        ("H1", 5, 6, "DCH-BAD:1", "DQSegDB H1:DCH-BAD:1"),
        ("L1", 1, 2, "DCH-ONE:2", "DQSegDB L1:DCH-ONE:2"),
        ("L1", 20, 21, "CBC_CAT2", "GWOSC L1_CBC_CAT2"),
        ("L1", 50, 64, "DCH-BAD:1", "DQSegDB L1:DCH-BAD:1"),
    ]
    with pytest.raises(SegmentError, match=r"H1_CBC_CAT7 from GPS 1240000000 to 1240000064"):
        find_vetoes(server.config({"categories": ["CBC_CAT7"]}), [(GPS, GPS + 64)])


def test_lists_gates_and_catalogue(tmp_path):
    (tmp_path / "a.txt").write_text(f"{GPS + 1} {GPS + 2}\n{GPS + 60.5} {GPS + 99}\n")
    (tmp_path / "gates.txt").write_text(f"# centre, half width, taper\n{GPS + 10}, 0.5, 0.25\n\n{GPS + 10.5} 0.25 0.25  # a glitch\n")
    (tmp_path / "events.csv").write_text(f"name,gps\nX,{GPS + 30.25}\nY,5\n")
    text = f"""
preset: demo
model: {{weights: elsewhere}}
segments: {json.dumps(FIXED)}
vetoes: {{files: {{H1: [a.txt]}}, gates: {{L1: gates.txt}}, catalog: events.csv, catalog_pad: 2}}
"""
    (tmp_path / "aframe.yaml").write_text(text)
    config = load_config(tmp_path / "aframe.yaml", env={})  # relative to the experiment
    found = find_vetoes(config, [(GPS, GPS + 64)])
    assert spans(found, "H1", "FILES") == [(1, 2), (60.5, 64)] and spans(found, "L1", "FILES") == []
    # reference 2.13: [c - w - (t + 0.375), c + w + (t + 0.375)]
    assert spans(found, "L1", "GATES") == [(10 - 0.5 - 0.625, 10.5 + 0.25 + 0.625)]
    assert spans(found, "L1", "CATALOG") == spans(found, "H1", "CATALOG") == [(28.25, 32.25)]
    assert read_vetoes(write_vetoes(found, tmp_path / "v.csv")) == found
    assert "X of events" in {v.source for v in found}


@pytest.mark.parametrize("line", ["10 0.5", "10 -0.5 0.25", "ten 1 1", "1 2 3 4", "nan 1 1"])
def test_bad_gates_are_named(tmp_path, line):
    (tmp_path / "g.txt").write_text(f"5 1 1\n{line}\n")
    with pytest.raises(SegmentError, match=rf"g\.txt, line 2: '{line}'; expected 'centre half-width taper'"):
        read_gates(tmp_path / "g.txt")
    with pytest.raises(SegmentError, match=r"no such file of gates \(vetoes\.gates\)"):
        read_gates(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("vetoes", "what"),
    [
        ({"categories": ["CBC_CAT2"]}, r"vetoes\.categories = \['CBC_CAT2'\]: nothing knows these bits .* fixed .* simulated"),
        ({"hardware_injections": ["CBC_HW_INJ"]}, "expected a bit that is set when nothing was injected, as NO_CBC_HW_INJ"),
        ({"categories": ["L1:DCH-BAD:1"]}, r"flags of DQSegDB go to vetoes\.flags"),
        ({"flags": ["CBC_CAT2"]}, "expected a DQSegDB flag, NAME:VERSION"),
        ({"flags": ["V1:DCH-BAD:1"]}, "expected a flag of ifos"),
        ({"files": {"V1": ["x.txt"]}}, "expected files of ifos"),
        ({"gates": {"K1": "x.txt"}}, "expected files of ifos"),
        ({"catalog_pad": 0}, "greater than 0"),
        ({"catagories": []}, "unknown key"),
    ],
)
def test_impossible_vetoes_are_refused(vetoes, what):
    with pytest.raises(ConfigError, match=what):
        build_config({"preset": "demo", "vetoes": vetoes})


def test_cumulative_categories():
    rows = [Veto("L1", 10.0, 20.0, "CBC_CAT1", "x"), Veto("L1", 10.0, 25.0, "CBC_CAT2", "x"), Veto("H1", 0.0, 5.0, "CBC_CAT1", "x")]
    assert not_cumulative(rows) == []  # nothing is known of H1's CAT2
    wrong = not_cumulative([*rows, Veto("H1", 3.0, 9.0, "CBC_CAT2", "x")])
    assert wrong == [Veto("H1", 0.0, 3.0, "CBC_CAT1", "CBC_CAT2")]
    good, bad = veto_checks(100, 50, []), veto_checks(100, 49, wrong)
    assert [c.name for c in good] == [c.name for c in VETO_CHECKS] and all(c.passed for c in good)
    assert not bad[0].passed and "49 s of 100 s" in bad[0].description
    assert not bad[1].passed and "H1 CBC_CAT1 at GPS 0 to 3, which passes CBC_CAT2" in bad[1].description


def test_nothing_is_vetoed_by_default_and_the_graph_has_no_such_asset():
    for name in ("demo", "o3"):
        config = build_config({"preset": name})
        graph = lineage.graph(config)
        assert not config.vetoes.asked and "vetoes" not in graph and len(assets(config)) == 1
        assert all(i.asset != "vetoes" for node in graph.values() for i in node.inputs)


@pytest.mark.parametrize("weights", [None, "elsewhere"])
def test_who_reads_vetoes(weights):
    config = build_config({"preset": "o3", "model": {"weights": weights}, "vetoes": {"categories": ["CBC_CAT2"]}})
    graph = lineage.graph(config)
    readers = {name for name, node in graph.items() if any(i.asset == "vetoes" for i in node.inputs)}
    assert readers >= {"injections", "inference_results"} and len(assets(config)) == 2
    assert not readers & {"background", "psd", "training_waveforms", "model", "events"}


def job(config, store, asset, inputs, scratch):
    scratch.mkdir(exist_ok=True)
    return Job(config, asset, None, inputs, None, store, scratch, scratch, logging.getLogger("test"))


def test_the_asset_and_its_key(tmp_path):
    files = tmp_path / "strain"
    files.mkdir()
    unset = {("L1", 0): {"CBC_CAT2": [3]}, ("H1", 1): {"CBC_CAT2": [4, 5]}}
    config = file_config(files, {"categories": ["CBC_CAT2"]}, unset)
    store = open_store(tmp_path / "store")

    def made(config):
        workspace = Workspace(config, store)
        wanted = workspace.wanted("segments")
        table = make_segments(job(config, store, "segments", {}, tmp_path / "s"))
        store.publish(wanted.parts, table.files, dict(table.meta))
        workspace = Workspace(config, store)
        wanted = workspace.wanted("vetoes")
        product = make_vetoes(job(config, store, "vetoes", wanted.inputs, tmp_path / "v"))
        return product, store.publish(wanted.parts, product.files, dict(product.meta)), wanted

    product, handle, wanted = made(config)
    assert [(c.name, c.passed) for c in product.checks] == [(c.name, True) for c in VETO_CHECKS]
    assert product.meta["num_vetoes"] == 2 and product.meta["coincident_seconds_left"] == 61
    assert product.meta["vetoed_seconds"] == {"H1": {"CBC_CAT2": 2, "any": 2}, "L1": {"CBC_CAT2": 1, "any": 1}}
    times = vetoes_of(job(config, store, "injections", {"vetoes": handle}, tmp_path / "i"))
    assert (times["L1"] - GPS).tolist() == [[3, 4]] and (times["H1"] - GPS).tolist() == [[36, 38]]
    assert vetoes_of(job(config, store, "injections", {}, tmp_path / "i")) is None
    assert Workspace(config, store).complete("vetoes") is not None

    # other masks are other vetoes, and so is another list with the same name
    file_config(files, {}, {("L1", 0): {"CBC_CAT2": [3, 4]}})
    assert Workspace(config, store).complete("vetoes") is None
    _, _, after = made(config)
    assert after.parts.key != wanted.parts.key
    listed = tmp_path / "list.txt"
    listed.write_text("1 2\n")
    config = file_config(files, {"files": {"H1": [str(listed)]}})
    _, _, first = made(config)
    listed.write_text("1 3\n")
    assert Workspace(config, store).wanted("vetoes").parts.key != first.parts.key


def test_training_time_is_not_looked_at(tmp_path):
    """Only test chunks are searched; masks need not even cover the rest."""
    store = open_store(tmp_path / "store")
    config = file_config(tmp_path, {"categories": ["CBC_CAT2"]}, {("L1", 0): {"CBC_CAT2": [3]}})
    rows = {
        "a": {"gps_start": GPS - 500, "gps_stop": GPS, "role": "train"},
        "b": {"gps_start": GPS + 2, "gps_stop": GPS + 64, "role": "test"},
    }
    (tmp_path / "x.txt").write_text("x")
    segments = store.publish(KeyParts(asset="segments", code_version="1"), {"x.txt": tmp_path / "x.txt"}, {"rows": rows})
    product = make_vetoes(job(config, store, "vetoes", {"segments": segments}, tmp_path / "v"))
    assert product.meta["test_seconds"] == 62 and product.meta["vetoed_seconds"]["L1"]["any"] == 1
