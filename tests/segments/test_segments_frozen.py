"""Tables that are made again: what stays, what comes, and that nothing that was made before is asked for anew."""

from __future__ import annotations

import logging

import pytest
from igwn_segments import segment

from aframe_assets.config_load import build_config
from aframe_assets.segments.assets import make_segments, make_vetoes
from aframe_assets.segments.frozen import Table, plan_identity, planned_rows
from aframe_assets.store import open_store
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.job import Job
from aframe_assets.store.verifying import verify_store
from aframe_assets.store.workspace import Workspace
from aframe_assets.waveforms.injections import plan, share

T0 = 1_240_600_000
TRAIN = [[T0, T0 + 300], [T0 + 400, T0 + 600], [T0 + 700, T0 + 900]]
TEST = [[T0 + 10_000, T0 + 10_200], [T0 + 10_300, T0 + 10_500]]
LATE = [T0 + 10_600, T0 + 10_800]


def experiment(fixed, vetoes=None, **segments):
    base = {
        "source": "fixed",
        "fixed": fixed,
        "train_start": T0,
        "train_stop": T0 + 10_000,
        "test_start": T0 + 10_000,
        "test_stop": T0 + 20_000,
        "train_min_duration": 60,
        "test_min_duration": 60,
        "min_valid_duration": 150,
    }
    small = {"injections": {"num_signals": 20, "spacing": 4, "buffer": 2}, "inference": {"num_slides": 3}}
    return build_config({"preset": "demo", "segments": base | segments, "vetoes": vetoes or {}} | small, env={})


class History:
    """One store, and a table made in it time after time."""

    def __init__(self, root):
        self.root, self.store = root, open_store(root / "store")

    def make(self, config, asset="segments", body=make_segments):
        workspace = Workspace(config, self.store)
        wanted = workspace.wanted(asset)
        with self.store.scratch() as scratch:
            product = body(Job(config, asset, None, wanted.inputs, None, self.store, scratch, scratch, logging.getLogger("test")))
            checks = [{"name": c.name, "passed": c.passed, "severity": c.severity, "blocking": True} for c in product.checks]
            handle = self.store.publish(wanted.parts, product.files, dict(product.meta), checks, keep=False)
        return handle.meta

    def put(self, asset, meta, partition=None):
        path = self.root / "x.txt"
        path.write_text(asset)
        return self.store.publish(KeyParts(asset=asset, code_version="1", partition=partition), {"x.txt": path}, meta)


@pytest.fixture
def history(tmp_path):
    return History(tmp_path)


def test_what_was_decided_outlives_the_damage_of_its_file(history):
    """A flipped bit in a small file must not bring retired segments back, nor cut the search anew."""
    config = experiment([*TRAIN, *TEST])
    history.make(config)
    store = history.store
    before = Table.of(store.manifest("segments"))
    lost = sorted(before.rows)[0]
    table = before.without(config, [lost], "glitches", "2026-01-01")
    parts = Workspace(config, store).wanted("segments").parts
    with store.scratch() as folder:
        handle = store.publish(parts, table.write(folder), table.meta(), keep=False)
    decided = Table.of(store.manifest("segments"))
    assert lost in decided.retired

    file = store.root / store._folder(handle) / handle.files[0].name
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    (found,) = verify_store(store, ["segments"])
    assert found.condemned and Table.of(store.manifest("segments")) == decided
    store.record_failure(parts, "no answer from the server")
    assert store.manifest("segments").error == "no answer from the server" and Table.of(store.manifest("segments")) == decided
    assert lost in history.make(config)["retired"]


def test_a_manifest_that_is_not_believed_decides_nothing(history):
    history.make(experiment([*TRAIN, *TEST]))
    history.put("psd", {"roles": {}})
    store = history.store
    store._write("segments/_.json", store._read("psd/_.json"))
    (found,) = verify_store(store, ["segments"])
    assert found.condemned and Table.of(store.manifest("segments")) == Table({})


def roles(meta):
    return {p: r["role"] for p, r in meta["rows"].items()}


def test_late_segments_leave_chunks_roles_and_plan_alone(history):
    first = history.make(experiment(TRAIN + TEST))
    assert roles(first) == {
        f"{T0}-300": "train",
        f"{T0 + 400}-200": "train",
        f"{T0 + 700}-200": "validation",
        f"{T0 + 10_000}-200": "test",
        f"{T0 + 10_300}-200": "test",
    }
    assert "plan" not in first and planned_rows(first).keys() == {f"{T0 + 10_000}-200", f"{T0 + 10_300}-200"}
    # later training data would have been the validation set of a new table; a stretch that goes on is no longer chunk
    grown = [[T0 + 1000, T0 + 1300], [TEST[1][0], TEST[1][1] + 90]]
    later = history.make(experiment(TRAIN + TEST + grown + [LATE]))
    new = {f"{T0 + 1000}-300": "train", f"{T0 + 10_500}-90": "test", f"{T0 + 10_600}-200": "test"}
    assert roles(later) == roles(first) | new
    assert all(later["rows"][p] == first["rows"][p] for p in first["rows"])
    assert planned_rows(later).keys() == planned_rows(first).keys() and plan_identity(later) == plan_identity(first)
    assert later["roles"]["test"]["sha256"] != first["roles"]["test"]["sha256"]
    # without the late ones it is the first table again
    assert history.make(experiment(TRAIN + TEST)) == first


def test_a_window_that_grows_is_late_data_too(history):
    first = history.make(experiment(TRAIN + TEST + [LATE], test_stop=T0 + 10_550))
    later = history.make(experiment(TRAIN + TEST + [LATE]))
    assert set(later["rows"]) - set(first["rows"]) == {f"{LATE[0]}-200"} and plan_identity(later) == plan_identity(first)


def test_time_that_is_lost_takes_its_chunk_and_what_is_left_of_it_is_cut_anew(history):
    first = history.make(experiment(TRAIN + TEST))
    lost = [[T0 + 10_000, T0 + 10_080], [T0 + 10_090, T0 + 10_200], TEST[1]]
    later = history.make(experiment(TRAIN + lost))
    assert set(first["rows"]) - set(later["rows"]) == {f"{T0 + 10_000}-200"}
    assert set(later["rows"]) - set(first["rows"]) == {f"{T0 + 10_000}-80", f"{T0 + 10_090}-110"}
    assert plan_identity(later) == plan_identity(first)


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        ({"max_duration": 100}, {"train", "validation", "test"}),
        ({"test_min_duration": 50}, {"test"}),
        ({"train_min_duration": 250, "min_valid_duration": 0}, {"train", "validation"}),
    ],
)
def test_other_rules_make_the_table_of_a_fresh_directory(history, tmp_path, changed, anew):
    before = history.make(experiment(TRAIN + TEST))
    history.make(experiment(TRAIN + TEST + [LATE]))
    config = experiment([[T0, T0 + 900], *TEST, LATE], **changed)
    (tmp_path / "fresh").mkdir()
    fresh, made = History(tmp_path / "fresh").make(config), history.make(config)
    for role in ("train", "validation", "test"):
        own, expected = ({p for p, r in m["rows"].items() if r["role"] == role} for m in (made, fresh))
        assert own == expected if role in anew else own >= {p for p, r in before["rows"].items() if r["role"] == role}
    assert ("plan" in made) == ("test" not in anew)


def test_roles_are_given_anew_where_no_validation_chunk_is_left(history):
    history.make(experiment(TRAIN + TEST))
    later = history.make(experiment(TRAIN[:2] + TEST))
    assert [later["rows"][p]["role"] for p in (f"{T0}-300", f"{T0 + 400}-200")] == ["train", "validation"]


def test_late_training_data_validate_only_where_validation_is_short(history):
    meta = history.make(experiment(TRAIN + TEST, min_valid_duration=250))
    assert [r["role"] for r in meta["rows"].values()][:3] == ["train", "validation", "validation"]
    (short := [r for r in meta["rows"].values() if r["role"] == "validation"]).pop()
    less = [f for f in TRAIN if f[0] != short[0]["gps_start"]]
    later = history.make(experiment([*less, [T0 + 1000, T0 + 1200], [T0 + 1300, T0 + 1500], *TEST], min_valid_duration=250))
    assert [r["role"] for r in later["rows"].values()][:4] == ["train", "validation", "train", "validation"]


def test_a_source_that_gives_nothing_for_now_is_not_what_later_tables_go_by(history):
    first = history.make(experiment(TRAIN + TEST))
    history.make(experiment(TRAIN + TEST + [LATE]))
    empty = history.make(experiment(TRAIN))
    assert "kept" in empty and history.store.manifest("segments").blocked == ["has_segments"]
    back = history.make(experiment(TRAIN + TEST + [[T0 + 9000, T0 + 9500]]))
    assert plan_identity(back) == plan_identity(first) and back["rows"][f"{T0 + 9000}-500"]["role"] == "train"
    assert back["rows"][f"{T0 + 700}-200"]["role"] == "validation"


def test_retired_time_is_not_cut_again(history):
    meta = history.make(experiment(TRAIN + TEST))
    gone = f"{T0 + 10_000}-200"
    table = Table.of(history.store.manifest("segments"))
    rows = {p: r for p, r in meta["rows"].items() if p != gone}
    parts = history.store.manifest("segments").parts
    retired = Table(rows, None, {gone: meta["rows"][gone] | {"reason": "hot", "since": "2026-11-21"}}, table.made_with)
    path = history.root / "y.txt"
    path.write_text("x")
    history.store.publish(parts, {"y.txt": path}, retired.meta() | {"roles": meta["roles"]}, keep=False)
    later = history.make(experiment(TRAIN + TEST + [LATE]))
    assert gone not in later["rows"] and later["retired"][gone]["reason"] == "hot" and f"{LATE[0]}-200" in later["rows"]


def test_injections_of_chunks_stay_and_late_ones_get_as_many_for_their_room(history):
    first = history.make(experiment(TRAIN + TEST))
    config = experiment(TRAIN + TEST + [LATE])
    rows = planned_rows(history.make(config))
    before, late = plan(config, first["rows"]), f"{LATE[0]}-200"
    for partition in rows:
        assert [s.times.tolist() for s in share(config, rows, partition)] == [s.times.tolist() for s in before[partition]]
    own = share(config, rows, late, late={"gps_start": LATE[0], "gps_stop": LATE[1], "role": "test"})
    # as long as each of the two that have 20 together
    assert sum(len(s.times) for s in own) == 10
    assert all(t in segment(*LATE) for s in own for t in s.times)
    none = build_config(config.model_dump() | {"injections": {"num_signals": 0}}, env={})
    assert share(none, rows, late, late={"gps_start": LATE[0], "gps_stop": LATE[1], "role": "test"}) == []


@pytest.mark.parametrize("vetoed", [False, True])
def test_keys_of_what_was_made_before_do_not_change(history, tmp_path, vetoed):
    listed = tmp_path / "bad.txt"
    listed.write_text(f"{T0 + 10_050} {T0 + 10_060}\n{LATE[0] + 5} {LATE[0] + 9}\n")
    vetoes = {"files": {"H1": [str(listed)]}} if vetoed else None

    def keys(fixed):
        config = experiment(fixed, vetoes)
        meta = history.make(config)
        if vetoed:
            history.make(config, "vetoes", make_vetoes)
        workspace = Workspace(config, history.store)
        workspace._current = lambda asset, partition, by: (
            history.store.manifest(asset).handle
            if asset in ("segments", "vetoes")
            else history.put(asset, {"roles": {r: {"key": "k", "sha256": r} for r in ("train", "validation", "test")}}, partition)
        )
        return {(a, p): workspace.wanted(a, p).parts.key for a in ("background", "injections", "inference_results") for p in meta["rows"]}

    first, later = keys(TRAIN + TEST), keys(TRAIN + TEST + [LATE])
    assert len(later) == len(first) + 3 and {k: later[k] for k in first} == first
    if vetoed:
        # other vetoed time of one chunk is another plan for all
        listed.write_text(f"{T0 + 10_050} {T0 + 10_061}\n")
        other = keys(TRAIN + TEST + [LATE])
        assert all((other[k] == later[k]) == (k[0] == "background") for k in later)
