"""Segments named in words, what can be made of them, and in which runs."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import dagster as dg
import pytest

from aframe_assets import lineage
from aframe_assets.config_load import ConfigError, build_config
from aframe_assets.partitions import SEGMENTS, register
from aframe_ops.runs import covering_ranges
from aframe_ops.selecting import doable, next_runs, select
from aframe_ops.survey import AssetState

ROWS = {
    f"{1000 + 100 * i}-50": {"gps_start": 1000 + 100 * i, "gps_stop": 1050 + 100 * i, "role": role}
    for i, role in enumerate(["train", "train", "validation", "test", "test", "test"])
}
KEYS = list(ROWS)
TRAIN, TEST = KEYS[:3], KEYS[3:]


def state(name, why, partitions=KEYS):
    return AssetState(name, "g", partitions != [None], list(partitions), [p for p in partitions if p not in why], dict(why))


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        (["1000-50"], [0]),
        (["1300-50, 1000-50"], [0, 3]),
        (["test"], [3, 4, 5]),
        (["train,validation"], [0, 1, 2]),
        # a chunk that only touches a time is outside of it
        (["1049..1300"], [0, 1, 2]),
        (["1050..1300.5"], [1, 2, 3]),
        (["..1100"], [0]),
        (["1449.."], [4, 5]),
        (["1100-50...1300-50"], [1, 2, 3]),
        (["1100-50...1300-50", "test"], [3]),
        (["failed"], [1, 4]),
        (["missing"], [2, 5]),
        (["failed,missing", "test"], [4, 5]),
        (["failed", "train", "1000..1100"], []),
    ],
)
def test_words(asked, numbers):
    background = state("background", {KEYS[1]: "failed: NaN in H1", KEYS[2]: "never made", KEYS[4]: "held back by its check finite"})
    results = state("inference_results", {KEYS[4]: "waits for background", KEYS[5]: "config x: 1 -> 2"})
    assert select(ROWS, asked, [background, results]) == [KEYS[i] for i in numbers]


def test_a_file_of_segments_is_what_list_prints(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("# mine\n1300-50\t1300\t1350\ttest\n\n1000-50\n")
    assert select(ROWS, [f"@{path}"]) == [KEYS[0], KEYS[3]]
    path.write_text("1300-50\n1300-51\n")
    with pytest.raises(ConfigError, match=r"some.txt, line 2: there is no segment 1300-51"):
        select(ROWS, [f"@{path}"])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["1000-51"], "there is no segment 1000-51; see `aframe segments list`"),
        (["1000-50...7-7"], "there is no segment 7-7"),
        (["bad"], "--segments bad: expected a segment"),
        ([".."], "expected a segment"),
        (["1300..1200"], "the first time is not before the second"),
        (["1060..1090"], "no segment of 6 fits"),
        (["train", "test"], "no segment of 6 fits"),
        (["@/nowhere"], "cannot be read"),
    ],
)
def test_what_does_not_fit_is_said(asked, words):
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        select(ROWS, asked)


def workspace(fraction=1.0):
    config = build_config({"preset": "demo", "execution": {"min_segment_fraction": fraction}}, env={})
    return SimpleNamespace(graph=lineage.graph(config), config=config, rows=lambda: ROWS)


def states(**incomplete):
    out = {}
    for name, node in workspace().graph.items():
        partitions = KEYS if node.partitioned else [None]
        missing = incomplete.get(name, [] if name == "segments" else partitions)
        out[name] = state(name, dict.fromkeys(missing, "never made"), partitions)
    return out


def test_of_some_segments_only_what_needs_no_others():
    assert doable(workspace(), states(), TEST) == {"background": set(TEST), "training_waveforms": {None}}
    # all of training is there: the model can be made, but not the background's index of all segments
    work = doable(workspace(), states(background=TEST[1:]), TEST[2:])
    assert work == {"background": {TEST[2]}, "training_waveforms": {None}}
    # a late segment: all else is there
    late = {a: [TEST[2]] for a in ("background", "injections", "inference_results")}
    once = {a: [None] for a in ("background_index", "psd", "events", "sensitive_volume", "candidates", "report")}
    others = {a: [] for a in workspace().graph if a not in late | once}
    work = doable(workspace(), states(**late, **once, **others), [TEST[2]])
    assert work == {a: {TEST[2]} for a in late} | {a: {None} for a in once}
    # another segment's results are missing, which is accepted or not
    late["inference_results"] = [TEST[1], TEST[2]]
    assert "events" not in doable(workspace(), states(**late, **once, **others), [TEST[2]])
    assert "events" in doable(workspace(0.6), states(**late, **once, **others), [TEST[2]])


def test_ranges_leave_out_what_is_not_asked_for_and_pass_over_what_is_complete():
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, ["b", "a", "d", "c"])
        register(instance, ["b", "a", "d", "c", "bb"])
        assert list(instance.get_dynamic_partitions(SEGMENTS.name)) == ["a", "b", "c", "d", "bb"]
        assert covering_ranges(instance, ["a", "d"]) == [("a", "d")]
        assert covering_ranges(instance, ["a", "b", "d"], ["c"]) == [("a", "b"), ("d", "d")]
        assert covering_ranges(instance, ["bb", "a"], ["c", "d"]) == [("a", "a"), ("bb", "bb")]
        assert covering_ranges(instance, ["b"], ["a", "c"]) == [("b", "b")] and covering_ranges(instance, [], ["a"]) == []
        register(instance, ["a", "bb"])
        assert list(instance.get_dynamic_partitions(SEGMENTS.name)) == ["a", "bb"]


def test_one_run_unless_others_lie_between():
    graph = workspace().graph
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, KEYS)
        ranges = partial(covering_ranges, instance)
        work = {"background": {KEYS[0], KEYS[2]}, "background_index": {None}, "psd": {None}, "injections": {KEYS[0], KEYS[2]}}
        assert next_runs(work, graph, [KEYS[0], KEYS[2]], ranges) == [(list(work), (KEYS[0], KEYS[2]))]
        both = [(["background"], (KEYS[0],) * 2), (["background"], (KEYS[2],) * 2)]
        assert next_runs(work, graph, KEYS[:3], ranges) == both
        del work["background"]
        assert next_runs(work, graph, KEYS[:3], ranges) == [(["background_index", "psd"], None)]
        assert next_runs({"psd": {None}}, graph, KEYS, ranges) == [(["psd"], None)]
