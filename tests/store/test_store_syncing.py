"""Artifacts between stores: the same bytes and keys arrive, once, whatever ends the copying; nothing damaged is copied or removed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aframe_assets.store import StoreError, open_store, syncing
from aframe_assets.store.syncing import Options, sync
from aframe_ops.cli.main import app
from aframe_ops.run_directory import RunDirectory

SEGMENTS = [f"{1126259446 + 32 * i}-32" for i in range(6)]


def put(store, parts, **files):
    with store.scratch() as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        return store.publish(parts, folder, {"livetime": 32.0}, provenance={"run_id": "r1"})


@pytest.fixture
def other(store, request, bucket, tmp_path):
    """A store of the other kind."""
    if hasattr(store, "root"):
        return open_store(f"s3://{bucket[1]}/copies", cache_dir=tmp_path / "other")
    return open_store(tmp_path / "copies")


@pytest.fixture
def filled(store, make):
    """Handles of six segments and a model with two files; a record of a failure that is not to be copied; a value."""
    handles = {p: put(store, make(partition=p), strain=p.encode() * 50) for p in SEGMENTS}
    handles["model"] = put(store, make("model", None), weights=os.urandom(3000), bundle=b"{}")
    store.record_failure(make(partition="9-9"), "no data")
    store.put_value("runs/r1/x", 1)
    return handles


def states(outcomes) -> Counter:
    return Counter(o.state for o in outcomes)


def bytes_of(store, handle) -> dict[str, bytes]:
    return {f.name: store.open_local(handle, f.name).read_bytes() for f in handle.files}


def test_a_copy_is_complete_where_the_original_is(store, other, filled, make):
    assert states(sync(store, other, Options(dry_run=True))) == {"would copy": 7} and other.assets() == []
    assert states(sync(store, other)) == {"copied": 7}
    assert other.assets() == ["background", "model"]
    wanted = [make(partition=p) for p in SEGMENTS]
    copies = other.complete_many(wanted)
    assert {p: h.identity for p, h in copies.items()} == {p: filled[p].identity for p in SEGMENTS}
    model = other.complete(make("model", None))
    assert bytes_of(other, model) == bytes_of(store, filled["model"]) and model.meta == {"livetime": 32.0}
    assert model.uri.startswith(other.url) and other.verify(model) == []
    made = other.manifest("model").provenance
    assert made["run_id"] == "r1" and made["copied_from"] == store.url
    # the way back finds all that is there
    assert states(sync(other, store)) == {"there": 7} == states(sync(store, other, Options(verify=True)))
    assert other.manifest("background", "9-9") is None and store.manifest("background", "9-9").status == "failed"


def test_some_assets_and_names_that_are_none(store, other, filled):
    assert states(sync(store, other, Options(assets=("mod*",)))) == {"copied": 1} and other.assets() == ["model"]
    with pytest.raises(StoreError, match="has no asset modle; it has: background, model"):
        list(sync(store, other, Options(assets=("modle",))))
    with pytest.raises(StoreError, match="source and target at once"):
        list(sync(store, store))


def test_another_version_is_left_alone_unless_it_is_to_be_replaced(store, other, filled, make):
    mine = put(other, make(partition=SEGMENTS[0], v=2), strain=b"mine")
    found = list(sync(store, other))
    (differs,) = [o for o in found if o.state == "differs"]
    assert differs.partition == SEGMENTS[0] and "another version" in differs.why
    assert other.complete(make(partition=SEGMENTS[0], v=2)) == mine
    assert states(sync(store, other, Options(move=True)))["differs"] == 1
    assert store.complete(make(partition=SEGMENTS[0])), "what was not copied is not removed"
    assert states(sync(store, other, Options(replace=True))) == {"copied": 1}
    assert other.complete(make(partition=SEGMENTS[0])).identity == filled[SEGMENTS[0]].identity
    assert len(other._versions(f"background/{SEGMENTS[0]}")) == 1


def test_another_result_of_the_same_settings_can_be_replaced(store, other, make):
    """Two trainings of one experiment have one key and other weights."""
    wanted = put(store, make("model", None), weights=b"of this machine")
    put(other, make("model", None), weights=b"of that machine")
    assert states(sync(store, other)) == {"differs": 1}
    assert states(sync(store, other, Options(replace=True))) == {"copied": 1}
    copy = other.complete(make("model", None))
    assert copy.identity == wanted.identity and bytes_of(other, copy) == {"weights": b"of this machine"}


def test_a_damaged_copy_is_written_anew_and_not_taken_for_the_upload_of_these_bytes(store, other, make, damage):
    put(store, make("model", None), weights=b"as trained")
    list(sync(store, other))
    copy = other.complete(make("model", None))
    # on a disk only sizes tell
    damage(other, copy, "weights", b"as" if hasattr(other, "root") else b"as trainee")
    assert other.complete(make("model", None)) is None
    assert states(sync(store, other)) == {"copied": 1}
    again = other.complete(make("model", None))
    assert bytes_of(other, again) == {"weights": b"as trained"} and other.verify(again) == []


@pytest.mark.parametrize("change", ["flip", "cut", "gone"])
def test_what_is_damaged_is_neither_copied_nor_removed(store, other, filled, make, damage, change):
    handle = filled["model"]
    whole = bytes_of(store, handle)["weights"]
    damage(store, handle, "weights", {"flip": bytes([whole[0] ^ 1]) + whole[1:], "cut": whole[:-9], "gone": None}[change])
    found = list(sync(store, other, Options(move=True)))
    (bad,) = [o for o in found if o.state != "copied"]
    assert (bad.asset, bad.state) == ("model", "damaged") and "weights" in bad.why
    assert other.manifest("model") is None and store.manifest("model") is not None
    assert store.manifests("background").keys() == {"9-9"}


def test_a_move_reads_back_what_it_wrote_before_it_removes(store, other, filled, make, damage, monkeypatch):
    list(sync(store, other, Options(assets=("model",))))
    copy = other.complete(make("model", None))
    damage(other, copy, "bundle", b"{]")
    with monkeypatch.context() as patch:
        patch.setattr(type(other), "_damage", lambda *_: [])  # sizes and ETags tell nothing
        (bad,) = sync(store, other, Options(assets=("model",), move=True))
    assert bad.state == "failed" and "bundle" in bad.why and store.manifest("model") is not None
    assert store.verify(filled["model"]) == []
    other._remove("model.json"), other._remove("model/_.json")
    assert states(sync(store, other, Options(move=True))) == {"copied": 7}
    assert store.manifest("model") is None and store._versions("model/_") == {} and set(store.manifests("background")) == {"9-9"}
    assert other.complete(make("model", None)).identity == filled["model"].identity


def test_no_space_is_told_before_anything_is_copied(store, filled, tmp_path, monkeypatch):
    target = open_store(tmp_path / "small")
    monkeypatch.setattr(syncing.shutil, "disk_usage", lambda _: type("U", (), {"free": 100})())
    with pytest.raises(StoreError, match=r"no space left for .* GB in .*small.*nothing was copied"):
        list(sync(store, target))
    assert target.assets() == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file: is a file; expected a folder"):
        list(sync(store, open_store(tmp_path / "file" / "store")))


KILLED = """
import os, signal, sys
from aframe_assets.store import open_store, syncing

source, target = open_store(sys.argv[1], cache_dir=sys.argv[3]), open_store(sys.argv[2], cache_dir=sys.argv[4])
syncing.PARALLEL, count = 1, [0]
place, drop = target._place, syncing._drop

def placing(*args):
    count[0] += 1
    if count[0] == 4 and sys.argv[5] == "copy":
        os.kill(os.getpid(), signal.SIGKILL)
    return place(*args)

def dropping(source, manifest):
    if count[0] == 5 and sys.argv[5] == "move":
        remove = source._remove
        source._remove = lambda path: remove(path) if path.endswith(".json") else os.kill(os.getpid(), signal.SIGKILL)
    return drop(source, manifest)

target._place, syncing._drop = placing, dropping
list(syncing.sync(source, target, syncing.Options(move=sys.argv[5] == "move")))
"""


@pytest.mark.parametrize("point", ["copy", "move"])
def test_the_same_call_after_a_kill_goes_on(store, other, filled, make, tmp_path, point):
    command = [sys.executable, "-c", KILLED, store.url, other.url, tmp_path / "cache", tmp_path / "other", point]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == -signal.SIGKILL, done.stderr
    for partition, manifest in other.manifests("background").items():
        assert other.verify(manifest.handle) == [], partition
    for partition, manifest in store.manifests("background").items():
        assert manifest.status == "failed" or store.verify(manifest.handle) == [], partition
    found = states(sync(store, other, Options(move=point == "move")))
    assert found == ({"there": 3, "copied": 4} if point == "copy" else {"copied": 2})
    for key, handle in filled.items():
        parts = make("model", None) if key == "model" else make(partition=key)
        assert bytes_of(other, other.complete(parts)) and other.complete(parts).identity == handle.identity


def test_the_command_moves_a_run_to_another_store(bucket, make, tmp_path, monkeypatch):
    monkeypatch.setenv("AFRAME_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def aframe(*words, code=0):
        done = CliRunner().invoke(app, [*map(str, words)])
        assert done.exit_code == code, done.output
        return done.output

    aframe("init", "run", "--preset", "demo")
    run, address = RunDirectory.find("run"), f"s3://{bucket[1]}/demo"
    for p in SEGMENTS[:2]:
        put(run.workspace().store, make(partition=p), strain=b"s" * 1200)
    before = (run.path / "site.yaml").read_text()
    assert "would copy" in aframe("sync", "run", address, "--dry-run", "--switch") and (run.path / "site.yaml").read_text() == before
    (run.path / "site.yaml").chmod(0o600)
    told = aframe("sync", "run", address, "--switch")
    assert (run.path / "site.yaml").stat().st_mode & 0o777 == 0o600, "its lines of shell may hold what others are not to read"
    assert "2.4 kB" in told and f"store.root is {address} now" in told
    after = (run.path / "site.yaml").read_text()
    assert run.site().store_url == address and [a for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b] == [
        "  root: store          # a folder, or s3://bucket/prefix"
    ]
    assert run.workspace().store.complete(make(partition=SEGMENTS[0])) is not None
    found = json.loads(aframe("sync", "run/store", "run", "--json", "--move"))
    assert [a["state"] for a in found["artifacts"]] == ["there"] * 2 and open_store("run/store").manifests("background") == {}
    put(open_store("run/store"), make(partition=SEGMENTS[0], v=2), strain=b"t")
    assert "--replace takes" in aframe("sync", "run/store", "run", code=1)
    for words, said in (
        (("run", address, "--switch", "--asset", "events"), "leave --asset out"),
        ((address, "run", "--switch"), "is none"),
        (("run", "ftp://host/x"), "ftp:// is not known"),
        (("run", "run"), "source and target"),
        (("rum", address), "rum: no such folder"),
    ):
        done = CliRunner().invoke(app, ["sync", *words])
        assert done.exit_code in (1, 2) and said in done.output, done.output
