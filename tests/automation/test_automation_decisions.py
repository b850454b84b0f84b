"""Which run new segments ask for, from a store that is filled by hand."""

from __future__ import annotations

import pytest

from aframe_assets.config_load import build_config
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.opening import open_store
from aframe_assets.store.workspace import Workspace
from aframe_ops.automation.new_segments import FULL, Memory, decide

ROLES = {"1-100": "train", "201-100": "test", "401-100": "test"}


class Filled:
    """A store with artifacts that hold next to nothing."""

    def __init__(self, folder, roles=ROLES, **overrides):
        self.folder, self.memory, self.now = folder, Memory(), 0.0
        self.config = build_config({"preset": "demo", **overrides})
        self.store = open_store(str(folder / "store"))
        rows = {k: {"gps_start": int(k.split("-")[0]), "gps_stop": int(k.split("-")[0]) + 100, "role": r} for k, r in roles.items()}
        identity = {"key": "0" * 64, "sha256": "0" * 64, "livetime": 0.0, "partitions": []}
        meta = {
            "rows": {k: {**r, "fingerprint": ""} for k, r in rows.items()},
            "roles": dict.fromkeys(("train", "validation", "test"), identity),
        }
        self.publish(Workspace(self.config, self.store).wanted("segments").parts, meta)

    def publish(self, parts: KeyParts, meta: dict | None = None) -> None:
        with self.store.scratch() as scratch:
            (scratch / "content").write_text(parts.asset)
            self.store.publish(parts, {"content": scratch / "content"}, meta or {}, checks=[], provenance={})

    def parts(self, asset: str, partition: str | None = None) -> KeyParts:
        return KeyParts(asset=asset, code_version="of old", partition=partition, config={}, inputs={})

    def make(self, asset: str, *partitions: str) -> None:
        for partition in partitions or (None,):
            self.publish(self.parts(asset, partition))

    def fail(self, asset: str, partition: str) -> None:
        self.store.record_failure(self.parts(asset, partition), "StrainError: nothing there")

    def decide(self, ended: bool = True, registered=(), **options):
        options = {"until": "inference_results", "attempts": 2, "wait_s": 60.0} | options
        return decide(Workspace(self.config, self.store), self.memory, registered, now=self.now, ended=ended, **options)


def test_without_an_engine_only_background_is_made(tmp_path):
    f = Filled(tmp_path)
    found = f.decide()
    assert found.wish.assets == ("background",) and found.wish.segments == ("201-100", "401-100")
    assert "no inference_results: engine must be made by `aframe run` first" in found.why
    assert found.register == tuple(ROLES), "in order of time, training too"
    f.make("background", "201-100", "401-100")
    assert f.decide(registered=ROLES).wish is None


def test_with_an_engine_segments_are_searched_and_nothing_is_trained(tmp_path):
    f = Filled(tmp_path, vetoes={"catalog": "packaged"})
    f.make("engine")
    f.make("inference_results", "201-100")
    found = f.decide()
    assert found.wish.assets == ("background", "background_index", "psd", "vetoes", "injections", "inference_results")
    assert found.wish.segments == ("401-100",), "what is there, if of an older experiment, is no new data"
    assert f.decide(until="background").wish.assets == ("background",)


def test_a_server_needs_its_repository(tmp_path):
    f = Filled(tmp_path, inference={"mode": "triton"})
    f.make("engine")
    assert "model_repository must be made" in f.decide().why


def test_a_request_is_the_same_until_it_has_been_accounted_for(tmp_path):
    f = Filled(tmp_path)
    f.make("engine")
    first = f.decide()
    # the cursor was lost with the daemon: the same wish, so the same run key
    f.memory = Memory()
    assert f.decide().wish == first.wish
    second = f.decide()
    assert second.wish is None and "2 are tried again in 60 s" in second.why
    f.now = 61
    third = f.decide()
    assert third.wish.segments == first.wish.segments and third.wish.key != first.wish.key
    f.now = 10_000
    last = f.decide()
    assert last.wish is None and set(last.given_up) == {"201-100", "401-100"}
    assert not f.decide().given_up, "told once"
    for f.now in (20_000, 30_000):
        assert f.decide().wish is None


def test_a_clock_that_is_set_back_puts_no_try_off_for_years(tmp_path):
    f = Filled(tmp_path)
    f.now = 1e9
    f.decide()
    f.decide()
    f.now = 1000.0
    assert "2 are tried again in 60 s" in f.decide().why
    f.now = 1061.0
    assert f.decide().wish is not None


def test_one_lost_segment_leaves_the_others_their_background_where_no_index_can_be_made(tmp_path):
    f = Filled(tmp_path, {**ROLES, "601-100": "test"})
    f.make("engine")
    f.fail("background", "201-100")
    f.make("background", "401-100")
    f.memory.tried = {"201-100": (2, 0.0)}
    found = f.decide()
    assert found.given_up == {"201-100": "background: StrainError: nothing there"}
    assert found.wish.assets == ("background",) and found.wish.segments == ("601-100",)
    assert "only background is made, since 1 of 4 segments have none and execution.min_segment_fraction is 1: lower it" in found.why
    g = Filled(tmp_path / "other", {**ROLES, "601-100": "test"}, execution={"min_segment_fraction": 0.5})
    g.make("engine")
    g.memory.tried = {"201-100": (2, 0.0)}
    found = g.decide()
    assert found.wish.segments == ("401-100", "601-100") and "inference_results" in found.wish.assets


def test_a_run_has_so_many_segments_at_most(tmp_path):
    f = Filled(tmp_path, {f"{i:05d}-100": "test" for i in range(100, 100 + 1000 * 7, 7)})
    assert len(f.decide().wish.segments) == FULL


def test_a_table_that_cannot_be_made_is_tried_so_often(tmp_path):
    f = Filled(tmp_path)
    f.config = f.config.model_copy(update={"segments": f.config.segments.model_copy(update={"test_min_duration": 130.0})})
    first = f.decide()
    assert first.wish.assets == ("segments",) and first.wish.segments == ()
    assert "is tried again in 60 s" in f.decide().why
    f.now = 100
    assert f.decide().wish.key != first.wish.key
    f.now = 1000
    last = f.decide()
    assert last.wish is None and "was not made in 2 tries" in last.why and len(last.given_up) == 1
    assert not f.decide().given_up
    # another experiment is another matter
    f.config = f.config.model_copy(update={"segments": f.config.segments.model_copy(update={"test_min_duration": 140.0})})
    assert f.decide().wish is not None


@pytest.mark.parametrize("cursor", [None, "", "{}"])
def test_an_empty_memory(cursor):
    assert Memory.of(cursor) == Memory()
