"""A publish that is killed, raced, pruned under its hands, or meets a full disk: what was there stays, and nothing half counts."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aframe_assets.store import Handle, KeyParts, StoreError, open_store


def put(store, parts, text="data") -> Handle:
    with store.scratch() as folder:
        (folder / "a.txt").write_text(text)
        return store.publish(parts, {"a.txt": folder / "a.txt"})


KILLED = """
import os, signal, sys
from pathlib import Path
from aframe_assets.store import KeyParts, open_store

url, cache, point = sys.argv[1:]
store = open_store(url, cache_dir=cache)
die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
count = [0]

def second(original):
    def call(*a, **k):
        count[0] += 1
        return die() if count[0] == 2 else original(*a, **k)
    return call

local = hasattr(store, "root")
if point == "before":
    store._place = die
elif point == "between files":
    if local:
        store._take = second(store._take)
    else:
        store.client.upload_file = second(store.client.upload_file)
elif point == "before rename":
    if local:
        os.rename = die
    else:
        store.client.head_object = second(store.client.head_object)
elif point == "before manifest":
    store._exchange = die
elif point == "in manifest":
    if local:
        os.replace = die
    else:
        store.client.put_object = die
with store.scratch() as folder:
    (folder / "a.txt").write_text("good")
    (folder / "b.txt").write_text("good too")
    store.publish(KeyParts(asset="background", code_version="1", partition="1-1", config={"v": 2}), folder)
"""


@pytest.mark.parametrize("point", ["before", "between files", "before rename", "before manifest", "in manifest"])
def test_kill_during_publish(store, tmp_path, point):
    old, new = (KeyParts(asset="background", code_version="1", partition="1-1", config={"v": v}) for v in (1, 2))
    before = put(store, old, "old")
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, script, store.url, tmp_path / "cache", point], env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert store.complete(new) is None
    assert store.complete(old) == before and store.open_local(before, "a.txt").read_text() == "old"
    with store.scratch() as folder:
        (folder / "a.txt").write_text("good")
        (folder / "b.txt").write_text("good too")
        handle = store.publish(new, folder)
    assert store.complete(new) == handle and store.verify(handle) == []
    assert store.open_local(handle, "b.txt").read_text() == "good too"
    if hasattr(store, "root"):
        left = [p for p in store.root.rglob("*") if "~" in p.name and "scratch" not in p.parts]
        assert left == [], "what the dead worker left is swept"
        assert not list((store.root / ".local" / "scratch").iterdir())


WRITER = """
import sys, time
from aframe_assets.store import KeyParts, open_store

url, cache, me, rounds, start = sys.argv[1:]
store = open_store(url, cache_dir=cache)
store.complete(KeyParts(asset="background", code_version="1", partition="0-0"))  # all imports and connections are made
while time.time() < float(start):
    time.sleep(0.001)
for i in range(int(rounds)):
    parts = KeyParts(asset="background", code_version="1", partition=f"{i}-1")
    with store.scratch() as folder:
        for name in "abc":
            (folder / name).write_text(f"by {me}")
        handle = store.publish(parts, folder, {"who": me})
    print(i, handle.meta["who"], handle.sha256, flush=True)
    assert {store.open_local(handle, name).read_text() for name in "abc"} == {"by " + handle.meta["who"]}
    found = store.complete(parts)
    assert found == handle, (found, handle)
"""


@pytest.mark.parametrize(("writers", "rounds"), [(12, 6)])
def test_of_many_racing_writers_exactly_one_counts(store, tmp_path, writers, rounds):
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    start = str(time.time() + 0.8 * writers)
    workers = [
        subprocess.Popen(
            [sys.executable, script, store.url, tmp_path / f"cache{i}", str(i), str(rounds), start],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(writers)
    ]
    done = [w.communicate(timeout=300) for w in workers]
    assert [w.returncode for w in workers] == [0] * writers, "\n".join(err for _, err in done)
    lines = [out.splitlines() for out, _ in done]
    for i in range(rounds):
        (counts,) = {text[i] for text in lines}  # all of them were given the same artifact
        handle = store.complete(KeyParts(asset="background", code_version="1", partition=f"{i}-1"))
        assert counts == f"{i} {handle.meta['who']} {handle.sha256}" and store.verify(handle) == []


def test_pruning_by_another_worker_is_noticed(store, make, monkeypatch):
    """The folder vanishes between the files and the manifest: the publish puts it back before it returns."""
    exchange, times = store._exchange, []

    def racing(path, data, mark):
        if not times and path.endswith("-32.json"):
            times.append(1)
            folder = next(iter(store._versions("background/1126259446-32")))
            store._remove(f"background/1126259446-32/{folder}")
        return exchange(path, data, mark)

    monkeypatch.setattr(store, "_exchange", racing)
    handle = put(store, make(), "x")
    assert times and store.complete(make()) == handle


@pytest.mark.parametrize("where", ["file", "manifest"])
def test_full_disk(tmp_path, make, monkeypatch, where):
    from aframe_assets.store import local

    store = open_store(tmp_path / "store")
    old = put(store, make(v=1), "old")
    (tmp_path / "outside").write_bytes(b"x" * 100)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "file":
        monkeypatch.setattr(local, "copy_file", full)
    else:
        monkeypatch.setattr(local.os, "replace", full)
    with pytest.raises(StoreError, match=r"no space left for background.*nothing was published.*[Ff]ree space"):
        store.publish(make(v=2), {"f": tmp_path / "outside"})
    monkeypatch.undo()
    assert store.complete(make(v=1)) == old
    assert store.complete(make(v=2)) is None
    assert [p.name for p in (tmp_path / "store").rglob("*") if "~" in p.name] == [], "nothing half-written is left"
    handle = store.publish(make(v=2), {"f": tmp_path / "outside"})
    assert store.complete(make(v=2)) == handle


def test_really_full_disk(tmp_path, make):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small filesystem cannot be mounted here (needs root)")
    try:
        store = open_store(disk / "store")
        (tmp_path / "big").write_bytes(os.urandom(2_000_000))
        with pytest.raises(StoreError, match="no space left"):
            store.publish(make(), {"big": tmp_path / "big"})
        assert store.complete(make()) is None
        (tmp_path / "small").write_bytes(os.urandom(500_000))
        assert store.publish(make(), {"small": tmp_path / "small"}) == store.complete(make())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_unwritable_folder(tmp_path, make, monkeypatch):
    store = open_store(tmp_path / "store")
    (tmp_path / "f").write_text("x")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match=r"may not write background.*Permission denied"):
        store.publish(make(), {"f": tmp_path / "f"})
