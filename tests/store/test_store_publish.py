"""What every kind of store promises; each test runs on a folder and on an S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from aframe_assets.store import ArtifactGone, Handle, KeyParts, open_store
from aframe_assets.store import base as base_module
from aframe_assets.store.handle import content_sha256

CHECK = {"name": "finite", "passed": True, "severity": "error", "blocking": True}


def put(store, parts, text="data", **kwargs) -> Handle:
    with store.scratch() as folder:
        (folder / "a.txt").write_text(text)
        return store.publish(parts, {"a.txt": folder / "a.txt"}, **kwargs)


def test_round_trip(store, make):
    parts = make(rate=2048)
    assert store.manifest("background", "1126259446-32") is None
    assert store.complete(parts) is None
    with store.scratch() as folder:
        assert folder.is_dir()
        (folder / "x.hdf5").write_bytes(b"\0" * 1000)
        (folder / "notes.md").write_text("n")
        handle = store.publish(
            parts,
            {"x.hdf5": folder / "x.hdf5", "doc/notes.md": folder / "notes.md"},
            {"livetime": np.float64(32.0), "shape": (2, 3), "std": np.array([1.0, 2.0]), "psd": float("nan")},
            checks=[CHECK],
            provenance={"run_id": "r1", "wall_s": 1.5},
        )
    assert not folder.exists()
    assert handle.key == parts.key and handle.partition == "1126259446-32" and handle.nbytes == 1001
    assert handle.uri.startswith(store.url + "/background/1126259446-32/" + parts.key[:16])
    assert handle.sha256 == content_sha256(reversed(handle.files))
    assert handle.file("x.hdf5").sha256 == hashlib.sha256(b"\0" * 1000).hexdigest()
    assert handle.meta["shape"] == [2, 3] and handle.meta["std"] == [1.0, 2.0] and handle.meta["livetime"] == 32.0
    assert np.isnan(store.manifest("background", "1126259446-32").handle.meta["psd"])
    assert store.complete(parts).identity == handle.identity == {"key": handle.key, "sha256": handle.sha256}
    assert store.open_local(handle, "doc/notes.md").read_text() == "n"
    assert store.open_local(handle, "x.hdf5").stat().st_size == 1000
    with pytest.raises(KeyError, match=r"has no file 'y'.*notes\.md"):
        store.open_local(handle, "y")
    found = store.manifest("background", "1126259446-32")
    assert found.status == "ok" and found.parts == parts and found.checks == [CHECK]
    assert found.provenance["run_id"] == "r1" and found.provenance["host"] and found.provenance["created"]
    assert store.verify(handle) == []
    assert Handle.model_validate_json(handle.model_copy(update={"meta": {}}).model_dump_json()).identity == handle.identity


def test_folder_artifact(store, make, tmp_path):
    source = tmp_path / "bundle"
    (source / "1" / "deep").mkdir(parents=True)
    (source / "1" / "deep" / "model.bin").write_bytes(b"w" * 10)
    (source / "bundle.json").write_text("{}")
    (source / "latest.json").symlink_to(source / "bundle.json")
    handle = store.publish(make("model", None), source)
    assert [f.name for f in handle.files] == ["1/deep/model.bin", "bundle.json", "latest.json"]
    folder = store.open_local(handle)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == ["1/deep/model.bin", "bundle.json", "latest.json"]
    assert not (folder / "latest.json").is_symlink()
    assert (source / "bundle.json").read_text() == "{}", "the caller's files stay"
    assert store.manifests("model").keys() == {None}


def test_many_partitions_and_index(store, make, monkeypatch):
    keys = [f"{1126259446 + 32 * i}-32" for i in range(20)]
    handles = {k: put(store, make(partition=k), text=k) for k in keys}
    assert {p: m.handle for p, m in store.manifests("background").items()} == handles
    wanted = [make(partition=k) for k in keys]
    assert store.complete_many([*wanted, make(partition="9-9"), make(partition=keys[0], other=1)]) == handles
    good, bad = store.survey("background", [*keys, "9-9"])
    assert good == handles and bad == {"9-9": "was never made"}

    reads = []
    original = type(store)._read
    monkeypatch.setattr(type(store), "_read", lambda self, path: reads.append(path) or original(self, path))
    assert len(store.manifests("background")) == 20
    assert reads == ["background/_index.json"], "a fresh index is the only file read"

    # one stale entry is read anew; an index that is lost or damaged is rebuilt
    put(store, make(partition=keys[3], rate=1), text="new")
    reads.clear()
    assert store.manifests("background")[keys[3]].parts.config == {"rate": 1}
    assert reads == ["background/_index.json", f"background/{keys[3]}.json"]
    for bad_index in (b"{not json", b'{"records": {"1126259446-32.json": {"stamp": 1}}}', b'{"entries": {}}', b"[]", None):
        if bad_index is None:
            store._remove("background/_index.json")
        else:
            store._write("background/_index.json", bad_index)
        assert store.manifests("background").keys() == set(keys)
        assert len(json.loads(original(store, "background/_index.json"))["records"]) == 20
    store._remove(f"background/{keys[0]}.json")
    assert store.manifests("background").keys() == set(keys[1:])
    assert f"{keys[0]}.json" not in json.loads(original(store, "background/_index.json"))["records"]


def test_complete_is_about_key_size_and_checks(store, make, damage):
    parts = make(rate=1)
    handle = put(store, parts, "four")
    assert store.complete(parts) is not None
    assert store.complete(make(rate=2)) is None
    assert store.complete(parts.model_copy(update={"code_version": "2"})) is None
    assert store.complete(parts.model_copy(update={"inputs": {"segments": {"key": "k", "sha256": "t"}}})) is None

    damage(store, handle, "a.txt", b"fou")
    assert store.complete(parts) is None and store.complete_many([parts]) == {}
    assert "3 bytes, expected 4" in store.verify(handle)[0]
    damage(store, handle, "a.txt", b"FOUR")
    if handle.file("a.txt").etag:
        assert store.complete(parts) is None, "same size, other ETag"
        assert "replaced" in store.verify(handle)[0]
    else:
        assert "another sha256" in store.verify(handle)[0]
    handle = put(store, parts, "four")
    assert store.complete(parts) == handle and store.verify(handle) == [], "publishing again repairs"
    damage(store, handle, "a.txt", None)
    assert store.complete(parts) is None
    with pytest.raises(ArtifactGone, match=r"background\[1126259446-32\].*missing.*aframe run --until background"):
        store.open_local(handle, "a.txt")

    failed = {**CHECK, "passed": False}
    put(store, parts, "four", checks=[failed], keep=False)
    assert store.complete(parts) is None and store.complete_many([parts]) == {}
    assert store.survey("background", [parts.partition])[1] == {parts.partition: "is held back by its check finite"}
    for harmless in ({**failed, "blocking": False}, {**failed, "severity": "warn"}):
        put(store, parts, "four", checks=[harmless])
        assert store.complete(parts) is not None


def test_new_version_replaces_the_old_one(store, make):
    old = put(store, make(rate=1), "old")
    new = put(store, make(rate=2), "new")
    assert store.complete(make(rate=1)) is None and store.complete(make(rate=2)) == new
    assert list(store._versions("background/1126259446-32")) == [new.uri.rsplit("/", 1)[1]]
    if hasattr(store, "root"):
        with pytest.raises(ArtifactGone):
            store.open_local(old, "a.txt")


def test_of_two_writers_of_one_key_the_first_counts(store, make, damage, monkeypatch):
    first = put(store, make(), "first", meta={"who": 1})
    assert put(store, make(), "second!", meta={"who": 2}) == first
    assert put(store, make(), "first", meta={"who": 3}) == first == store.complete(make())
    assert store.open_local(first, "a.txt").read_text() == "first"
    store.record_failure(make(), "I was too late")
    assert store.complete(make()) == first
    damage(store, first, "a.txt", None)
    third = put(store, make(), "third")
    assert store.complete(make()) == third and store.open_local(third, "a.txt").read_text() == "third"
    forced = put(store, make(), "forced", keep=False)
    assert store.complete(make()) == forced
    assert store.open_local(third, "a.txt").read_text() == "third", "a reader of what was replaced is not disturbed"
    monkeypatch.setattr(base_module, "ORPHAN_S", -1.0)
    last = put(store, make(), "last", keep=False)
    assert list(store._versions("background/1126259446-32")) == [last.uri.rsplit("/", 1)[1]], "orphans go in the end"


def test_a_small_file_is_exchanged_only_for_one_that_was_seen(store):
    assert store._marked("_x/a.json") == (None, None)
    assert store._exchange("_x/a.json", b"1", None) and not store._exchange("_x/a.json", b"2", None)
    seen = store._marked("_x/a.json")
    assert seen.data == b"1"
    assert store._exchange("_x/a.json", b"3", seen.mark) and not store._exchange("_x/a.json", b"4", seen.mark)
    assert store._read("_x/a.json") == b"3"
    store._remove("_x/a.json")
    assert not store._exchange("_x/a.json", b"5", seen.mark) and store._read("_x/a.json") is None
    assert [e.name for e in store._list("_x")] == []


def test_failures_are_recorded_without_secrets(store, make, monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "tok-123456789")
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY", "s3cr3t-Zq81-never-shown")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    parts = make(rate=1)
    monkeypatch.setenv("WANDB_API_KEY", "wandb-123456789")
    store.record_failure(parts, f"ValueError: GPS 1126259446: 12 NaN (tok-123456789, wandb-123456789, {secret})")
    found = store.manifest("background", "1126259446-32")
    assert found.status == "failed" and found.handle is None and "12 NaN" in found.error
    assert store.complete(parts) is None and store.manifests("background")["1126259446-32"].status == "failed"
    assert "failed: ValueError" in store.survey("background", [parts.partition])[1][parts.partition]
    put(store, parts, provenance={"env": {"t": "tok-123456789"}, "note": [secret]})
    store.record_failure(parts, "a slower worker failed")
    assert store.complete(parts) is not None, "a good artifact of the same key stays"
    for name in ("background/1126259446-32.json", "background/_index.json"):
        store.manifests("background")
        text = store._read(name).decode()
        assert "tok-123456789" not in text and "wandb-123456789" not in text and secret not in text


def test_workdir_survives_and_is_dropped(store, make):
    parts = make(rate=1)
    folder = store.workdir(parts)
    (folder / "last.ckpt").write_text("epoch 3")
    again = open_store(store.url, cache_dir=getattr(store, "_folder_cache", None))
    assert (again.workdir(parts) / "last.ckpt").read_text() == "epoch 3"
    assert store.workdir(make(rate=2)) != folder
    handle = store.publish(parts, folder)
    assert not folder.exists()
    assert store.open_local(handle, "last.ckpt").read_text() == "epoch 3"


def test_values(store):
    store.put_value("runs/r1/plan/result/c00001", {"keys": ["a"], "n": np.int64(3), "x": None})
    assert store.get_value("runs/r1/plan/result/c00001") == {"keys": ["a"], "n": 3, "x": None}
    with pytest.raises(ArtifactGone, match="no value 'runs/r2'"):
        store.get_value("runs/r2")
    store.put_value("runs/r10", 1)
    store.drop_values("runs/r1")
    with pytest.raises(ArtifactGone):
        store.get_value("runs/r1/plan/result/c00001")
    assert store.get_value("runs/r10") == 1
    with pytest.raises(TypeError, match=r"value-x\.bad"):
        store.put_value("value-x", {"bad": object()})


@pytest.mark.parametrize("word", ["a/b", "..", "/abs", "", "_", "a..b", ".hidden", "x.json", "a b", "a,b", "a\n"])
def test_partition_keys_that_could_leave_their_folder(word):
    with pytest.raises(ValueError, match="partition key"):
        KeyParts(asset="background", code_version="1", partition=word)
    with pytest.raises(ValueError, match="asset name"):
        KeyParts(asset=word, code_version="1")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../b", "", "a//b", "./a", "a\\b", "a\0b", "a/"])
def test_file_names_that_could_leave_their_folder(store, make, tmp_path, name):
    (tmp_path / "f").write_text("x")
    with pytest.raises(ValueError, match="cannot be stored"):
        store.publish(make(), {name: tmp_path / "f"})
    with pytest.raises(ValueError, match="cannot be stored"):
        store.get_value(name)
    assert store.manifest("background", "1126259446-32") is None


def test_what_cannot_be_published(store, make, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "f").write_text("x")
    for files, message in (
        (tmp_path / "empty", "no files"),
        (tmp_path / "none", "expected a folder"),
        ({"a": tmp_path / "none"}, "not a file"),
        ({"a": tmp_path / "f", "a/b": tmp_path / "f"}, "another file"),
    ):
        with pytest.raises(ValueError, match=message):
            store.publish(make(), files)
    with pytest.raises(TypeError, match=r"meta\.model\.net: a object"):
        store.publish(make(), {"f": tmp_path / "f"}, {"model": {"net": object()}})
    assert store.manifests("background") == {}


def test_damaged_manifest_counts_as_missing(store, make):
    put(store, make(), "x")
    store._write("background/1126259446-32.json", b'{"status": "ok"')
    assert store.manifest("background", "1126259446-32") is None
    assert store.complete(make()) is None and store.manifests("background") == {}
    assert put(store, make(), "x") == store.complete(make())


def test_key_depends_on_values_only():
    parts = KeyParts(asset="a", code_version="1", config={"x": 1.0, "y": [1, 2]}, inputs={"b": {"sha256": "s", "key": "k"}})
    same = KeyParts(asset="a", code_version="1", config={"y": (1, 2), "x": 1.0}, inputs={"b": {"key": "k", "sha256": "s"}})
    assert parts.key == same.key and len(parts.key) == 64
    assert parts.key != KeyParts(asset="a", code_version="1", config={"x": 1.5, "y": [1, 2]}, inputs=parts.inputs).key


def test_large_files_are_streamed(store, make, tmp_path):
    """100 MB pass through with a small part of them in memory (on S3 more than one part is uploaded)."""
    path = tmp_path / "large"
    with path.open("wb") as stream:
        block = os.urandom(1 << 20)
        for _ in range(100):
            stream.write(block)
    tracemalloc.start()
    try:
        handle = store.publish(make(), {"large": path})
        publishing = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert store.open_local(handle, "large").stat().st_size == 100 << 20
    if hasattr(store, "root"):
        assert publishing < 20e6
    else:
        assert handle.file("large").etag.endswith("-13"), "a multipart upload"
    assert store.verify(handle) == []


def test_moved_store_still_works(tmp_path, make):
    store = open_store(tmp_path / "store")
    put(store, make(), "x")
    store.manifests("background")
    (tmp_path / "store").rename(tmp_path / "moved")
    moved = open_store(tmp_path / "moved")
    handle = moved.complete(make())
    assert handle.uri.startswith(moved.url)
    assert moved.open_local(handle, "a.txt").read_text() == "x"
    assert moved.manifests("background")["1126259446-32"].handle.uri == handle.uri


def test_own_scratch_is_linked_and_other_files_are_copied(tmp_path, make):
    store = open_store(tmp_path / "store")
    with store.scratch() as folder:
        (folder / "a").write_text("x")
        inode = (folder / "a").stat().st_ino
        handle = store.publish(make(), folder)
    assert store.open_local(handle, "a").stat().st_ino == inode
    (tmp_path / "b").write_text("y")
    handle = store.publish(make(v=2), {"b": tmp_path / "b"})
    assert store.open_local(handle, "b").stat().st_ino != (tmp_path / "b").stat().st_ino
    assert os.access(tmp_path / "b", os.W_OK)
    assert store.open_local(handle, "b").stat().st_mode & 0o222 == 0


def test_scratch_of_dead_processes_is_swept(tmp_path):
    store = open_store(tmp_path / "store")
    script = "import os, sys; from aframe_assets.store import open_store\nwith open_store(sys.argv[1]).scratch(): os.kill(os.getpid(), 9)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    subprocess.run([sys.executable, "-c", script, store.url], env=env)
    base = tmp_path / "store" / ".local" / "scratch"
    assert len(list(base.iterdir())) == 1
    with store.scratch() as mine:
        assert list(base.iterdir()) == [mine]


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "file://host/x", "s3://", "s3:///x", "s3://user:pw123456@bucket/x", "s3://b/../c", "s3://b/x?y=1"]
)
def test_addresses_that_are_refused(url):
    with pytest.raises(ValueError) as error:
        open_store(url, cache_dir="/nowhere")
    assert "pw123456" not in str(error.value)


def test_import_is_light():
    code = (
        "import sys, aframe_assets.store, aframe_assets.store.io_managers\n"
        "heavy = {'boto3', 'botocore', 'obstore', 'h5py', 'torch', 'numpy', 'pandas', 'gwpy'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
