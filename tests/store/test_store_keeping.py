"""Damage is found and taken out of use; what no manifest needs is found and nothing else."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from aframe_assets.store.files import stamp
from aframe_assets.store.handle import Handle
from aframe_assets.store.layout import folder_of
from aframe_assets.store.leftovers import find_leftovers
from aframe_assets.store.unfinished import Unfinished
from aframe_assets.store.verifying import verify_store

KEYS = [f"{1126259446 + 32 * i}-32" for i in range(4)]


def put(store, parts, **files: str) -> Handle:
    with store.scratch() as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
        return store.publish(parts, folder)


def exchange(store, handle: Handle, name: str, data: bytes) -> None:
    """Puts other bytes in the place of a file."""
    path = f"{store._folder(handle)}/{name}"
    if hasattr(store, "root"):
        (store.root / path).unlink()
        (store.root / path).write_bytes(data)
    else:
        store.client.put_object(Bucket=store.bucket, Key=store._key(path), Body=data)


def test_truncated_swapped_and_flipped_artifacts_are_found_and_never_used(store, make):
    parts = {k: make(partition=k) for k in KEYS}
    text = {k: {"a": f"{k} strain", "b": "of both detectors"} for k in KEYS}
    handles = {k: put(store, parts[k], **text[k]) for k in KEYS}
    whole = put(store, make("psd", None), a="psd")
    assert [v.problems for v in verify_store(store, ["background", "psd"])] == [()] * 5

    exchange(store, handles[KEYS[0]], "a", b"cut")
    exchange(store, handles[KEYS[1]], "b", b"of both Detectors")
    exchange(store, handles[KEYS[2]], "a", text[KEYS[3]]["a"].encode())
    for mark in (False, True):
        found = {v.partition: v for v in verify_store(store, ["background", "psd"], mark=mark)}
        assert {p for p, v in found.items() if v.problems} == set(KEYS[:3])
        assert all(v.condemned == (mark and bool(v.problems)) for v in found.values())
    for k in KEYS[:3]:
        assert store.complete(parts[k]) is None
        error = store.manifest("background", k).error
        assert error.startswith("damaged: ") and f"background/{k}/" in error and "aframe verify" in error
    good, bad = store.survey("background", KEYS)
    assert good == {KEYS[3]: handles[KEYS[3]]} and all("damaged" in why for why in bad.values())
    assert store.complete(make("psd", None)).identity == whole.identity

    # made again, they come out the same, and so have the same address: the damaged bytes may not be taken for theirs
    for k in KEYS[:3]:
        assert put(store, parts[k], **text[k]).identity == handles[k].identity
    assert all(v.problems == () for v in verify_store(store, ["background"]))
    assert (store.open_local(store.complete(parts[KEYS[1]]), "b")).read_text() == text[KEYS[1]]["b"]


def test_damage_that_was_seen_by_its_mark_is_not_taken_for_what_is_made_again(store, make):
    """Without `verify` in between: on S3 the ETag tells; on a disk, where only the size does, the file is cut short."""
    handle = put(store, make(), a="of two detectors", b="kept")
    exchange(store, handle, "a", b"of two Detectors" if hasattr(store, "bucket") else b"of two")
    assert store.complete(make()) is None
    again = put(store, make(), a="of two detectors", b="kept")
    assert again.identity == handle.identity and store.complete(make()) is not None and store.verify(again) == []


def test_damage_that_nobody_saw_is_not_taken_for_what_is_made_again(store, make):
    """The record went, the bytes changed, and the same comes out again."""
    handle = put(store, make(), a="of two detectors", b="kept")
    store.forget("background", make().partition)
    exchange(store, handle, "a", b"of two Detectors")
    again = put(store, make(), a="of two detectors", b="kept")
    assert again.identity == handle.identity and store.verify(again) == []


def test_swapped_and_changed_manifests_are_found(store, make):
    first, _, third = (put(store, make(partition=k), a=k) for k in KEYS[:3])
    names = [f"{folder_of('background', k)}.json" for k in KEYS[:3]]
    texts = [store._read(name) for name in names]
    store._write(names[0], texts[1])
    store._write(names[1], texts[0])
    store._write(names[2], texts[2].replace(third.file("a").sha256.encode(), first.file("a").sha256.encode()))
    found = {v.partition: v for v in verify_store(store, ["background"])}
    assert "swapped" in found[KEYS[0]].problems[0] and "swapped" in found[KEYS[1]].problems[0]
    assert "contradicts itself" in found[KEYS[2]].problems[0]
    assert all(v.condemned for v in found.values())
    assert [store.complete(make(partition=k)) for k in KEYS[:3]] == [None] * 3


def test_a_manifest_that_cannot_be_read_is_told_and_its_bytes_stay(store, make):
    """Cut short, or of a later version of this project: what it names is not used, and is nobody's to remove."""
    handle, kept = put(store, make(partition=KEYS[0]), a="strain"), put(store, make(partition=KEYS[1]), a="strain")
    name = f"{folder_of('background', KEYS[0])}.json"
    text = store._read(name)
    store._write(name, text[: len(text) // 2])
    assert store.complete(make(partition=KEYS[0])) is None
    found = {v.partition: v for v in verify_store(store, ["background"])}
    assert set(found) == set(KEYS[:2]) and found[KEYS[1]].problems == ()
    assert name in found[KEYS[0]].problems[0] and "cannot be read" in found[KEYS[0]].problems[0] and not found[KEYS[0]].condemned
    assert find_leftovers(store, 0) == []
    store._write(name, text)
    assert store.complete(make(partition=KEYS[0])) == handle and store.verify(handle) == [] and store.verify(kept) == []


def test_the_manifests_are_read_themselves_not_their_index(store, make):
    handle = put(store, make(), a="strain")
    assert set(store.manifests("background")) == {make().partition}
    index = store._read("background/_index.json")
    store._write("background/_index.json", index.replace(handle.file("a").sha256.encode(), b"0" * 64))
    assert [v.problems for v in verify_store(store, ["background"])] == [()], "a flipped bit there is no damage to the artifact"
    assert store.manifests("background")[make().partition].handle == handle


def test_a_disk_that_cannot_read_a_file_is_told_and_the_others_are_read(store, make, monkeypatch):
    handles = [put(store, make(partition=k), a=k) for k in KEYS[:3]]
    original = type(store)._sha256

    def failing(self, path):
        if KEYS[1] in path:
            raise OSError(errno.EIO, "Input/output error")
        return original(self, path)

    monkeypatch.setattr(type(store), "_sha256", failing)
    found = {v.partition: v for v in verify_store(store, ["background"])}
    assert [bool(found[k].problems) for k in KEYS[:3]] == [False, True, False]
    assert "Input/output error" in found[KEYS[1]].problems[0] and not found[KEYS[1]].condemned, "it may pass"
    assert store.manifest("background", KEYS[1]).handle == handles[1]


def test_what_is_replaced_while_it_is_verified_is_left_alone(store, make, monkeypatch):
    from aframe_assets.store import verifying

    handle = put(store, make(), a="old")
    exchange(store, handle, "a", b"bad")
    original = verifying.problems_of

    def slow(*args):
        found = original(*args)
        put(store, make(rate=2), a="new")
        return found

    monkeypatch.setattr(verifying, "problems_of", slow)
    (found,) = verify_store(store, ["background"])
    assert found.problems and not found.condemned
    assert store.complete(make(rate=2)) is not None


def dead() -> str:
    """What a process of this host that is gone named its things."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return f"{socket.gethostname()}~{process.pid}~0123456789ab"


def test_leftovers_are_found_and_nothing_else(store, make):
    parts = {k: make(partition=k) for k in KEYS[:2]}
    kept = [put(store, p, a=k) for k, p in parts.items()]
    shard = put(store, make("waves_shard", "0000-of-0002"), a="shard")
    out_of_date = put(store, make("psd", None, rate=1), a="psd")
    store._write("_values/run/step.json", b"1")
    store._write("notes/of/a/user.txt", b"mine")
    with store.scratch() as folder:
        (folder / "ckpt").write_text("weights")
        Unfinished(store, make("model", None)).keep({"ckpt": folder / "ckpt"}, {})
        assert find_leftovers(store, 0) == []

    # a publish that was killed before its manifest; a model that is finished; a version that was replaced
    orphan = f"background/{KEYS[3]}/{'0' * 16}-{'1' * 8}"
    store._write(f"{orphan}/a", b"orphan")
    put(store, make("model", None), a="model")
    expected = {store.uri(orphan), store.uri("model_unfinished/_")}
    if hasattr(store, "root"):
        gone = dead()
        for name in (gone, stamp(), f"elsewhere~1~{'0' * 12}"):
            staging = store.root / "background" / KEYS[0] / f".staging-{name}"
            staging.mkdir()
            (staging / "a").write_text("half")
            (store.root / "background" / f".{KEYS[0]}.json~{name}").write_text("half")
        (store.local / "scratch" / gone).mkdir(parents=True)
        expected |= {store.uri(f"background/{KEYS[0]}/.staging-{gone}"), store.uri(f"background/.{KEYS[0]}.json~{gone}")}
        expected.add(str(store.local / "scratch" / gone))
    else:
        path = f"background/{KEYS[3]}/{'0' * 16}-{'2' * 8}/a"
        store.client.create_multipart_upload(Bucket=store.bucket, Key=store._key(path))
        expected.add(store.uri(path))
    found = find_leftovers(store, 0)
    assert {x.address for x in found} == expected
    young = {x.address for x in found} - {x.address for x in find_leftovers(store)}
    assert {store.uri(orphan), store.uri("model_unfinished/_")} <= young, "it may be a writer's"

    for x in found:
        x.remove()
    assert find_leftovers(store, 0) == []
    assert store._read("notes/of/a/user.txt") == b"mine" and store._read("_values/run/step.json") == b"1"
    for handle in (*kept, shard, out_of_date):
        assert store.manifest(handle.asset, handle.partition).handle.identity == handle.identity and store.verify(handle) == []


def shift_times(store, call: str, items: str, time: str, by: timedelta) -> None:
    """From now on, a server's answers to `call` give later times."""

    def shifted(parsed, **_) -> None:
        for one in parsed.get(items, []):
            one[time] += by

    store.client.meta.events.register(f"after-call.s3.{call}", shifted)


def test_what_is_newer_than_its_listing_is_as_old_as_nothing(store):
    """Ceph's listings are of a whole second, its objects of a thousandth."""
    if hasattr(store, "root"):
        pytest.skip("a folder has no listings with a time")
    store._write(f"background/{KEYS[3]}/{'0' * 16}-{'1' * 8}/a", b"orphan")
    shift_times(store, "ListObjectsV2", "Contents", "LastModified", timedelta(seconds=60))
    (found,) = find_leftovers(store, 0)
    assert found.age_s == 0


def test_an_upload_of_hours_that_goes_on_is_left_alone(store, make):
    if hasattr(store, "root"):
        pytest.skip("a folder has no uploads")

    def hours_ago(*call: str) -> None:
        shift_times(store, *call, timedelta(hours=-3))

    where = f"background/{KEYS[0]}/{'0' * 16}-{'2' * 8}"
    store._write(f"{where}/small", b"there first")
    large = {"Bucket": store.bucket, "Key": store._key(f"{where}/large")}
    begun = store.client.create_multipart_upload(**large)["UploadId"]
    store.client.upload_part(**large, UploadId=begun, PartNumber=1, Body=b"x" * 1000)
    hours_ago("ListMultipartUploads", "Uploads", "Initiated")
    hours_ago("ListObjectsV2", "Contents", "LastModified")
    assert find_leftovers(store) == [], "its last part came just now, so its writer is at work"
    hours_ago("ListParts", "Parts", "LastModified")
    assert {x.address: x.nbytes for x in find_leftovers(store)} == {store.uri(where): 11, store.uri(f"{where}/large"): 1000}


def test_a_version_that_was_published_after_it_was_found_stays(store, make):
    from aframe_assets.store.files import sealed_entry
    from aframe_assets.store.handle import content_sha256

    parts = make()
    with store.scratch() as folder:
        (folder / "a").write_text("text")
        sha256 = content_sha256([sealed_entry("a", folder / "a")])
    store._write(f"background/{parts.partition}/{parts.key[:16]}-{sha256[:8]}/a", b"text")
    (found,) = find_leftovers(store, 0)
    handle = put(store, parts, a="text")
    found.remove()
    assert store.complete(parts).identity == handle.identity and store.verify(handle) == []


def test_work_in_progress_of_other_settings_that_began_after_it_was_found_stays(store, make):
    with store.scratch() as folder:
        (folder / "ckpt").write_text("weights")
        Unfinished(store, make("model", None)).keep({"ckpt": folder / "ckpt"}, {})
        put(store, make("model", None), a="model")
        (found,) = find_leftovers(store, 0)
        begun = Unfinished(store, make("model", None, rate=2))
        begun.keep({"ckpt": folder / "ckpt"}, {"step": 3})
    found.remove()
    assert begun.find().meta == {"step": 3}


def test_checkpoints_go_once_the_artifact_is_there(store, make):
    work = store.workdir(make("model", None))
    (work / "last.ckpt").write_text("weights")
    assert find_leftovers(store, 0) == [], "a training that has not ended goes on from it"
    put(store, make("model", None), a="model")
    work.mkdir(parents=True, exist_ok=True)
    (found,) = find_leftovers(store, 0)
    assert Path(found.address) == work and "finished" in found.why
    old = time.time() - 10
    os.utime(work, (old, old))
    assert find_leftovers(store, 60) == [] and len(find_leftovers(store, 5)) == 1


@pytest.mark.parametrize("kind", ["values", "messages"])
def test_what_passes_between_steps_is_kept_for_a_week(store, kind, monkeypatch):
    from aframe_assets.store import leftovers

    store._write(f"_{kind}/run/step.json", b"1")
    assert find_leftovers(store, 0) == []
    monkeypatch.setattr(leftovers, "RUN_S", 0)
    (found,) = find_leftovers(store, 0)
    assert found.address == store.uri(f"_{kind}/run/step.json")
