"""Parts of stored files: the bytes, how often they are asked for, what is kept, and what happens when something is wrong."""

from __future__ import annotations

import errno
import io
import os
import pickle
import subprocess
import sys
import threading

import h5py
import numpy as np
import pytest

from aframe_assets.store import StoreError, open_store, ranges, slabs
from aframe_assets.store.errors import ArtifactGone
from aframe_assets.store.ranges import StoredFile, open_hdf5
from aframe_assets.store.slabs import Slabs

PIECE = 4096


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(ranges, "PIECE_BYTES", PIECE)


@pytest.fixture
def data():
    return np.random.default_rng(0).bytes(20 * PIECE + 77)


def put(store, parts, data):
    with store.scratch() as folder:
        (folder / "x").write_bytes(data)
        return store.publish(parts, folder)


@pytest.fixture
def remote(bucket, tmp_path):
    return open_store(f"s3://{bucket[1]}/run", cache_dir=tmp_path / "cache")


@pytest.fixture
def asked(monkeypatch):
    """Function that watches a store: the ranges that are asked of it from then on."""

    def watch(store):
        found, original = [], store.client.get_object

        def get(**kwargs):
            if "Range" in kwargs:
                found.append(kwargs["Range"])
            return original(**kwargs)

        monkeypatch.setattr(store.client, "get_object", get)
        return found

    return watch


def test_ranges_are_those_of_the_file(store, make, data):
    handle = put(store, make(), data)
    source = store.open_ranges(handle, "x")
    file = ranges.ranges_of(pickle.loads(pickle.dumps(source)))
    assert file.nbytes == len(data)
    rng = np.random.default_rng(1)
    for first, last in [(0, len(data)), (len(data) - 1, len(data)), *np.sort(rng.integers(0, len(data), (20, 2)), axis=1)]:
        assert bytes(file.read(int(first), int(last - first))) == data[first:last]


def test_neighbours_are_one_request_and_nothing_is_asked_twice(remote, make, data, asked, tmp_path):
    file = StoredFile(remote, put(remote, make(), data), "x")
    found = asked(remote)
    file.read(PIECE + 5, 3 * PIECE)
    assert found == [f"bytes={PIECE}-{5 * PIECE - 1}"]
    file.read(2 * PIECE, 2 * PIECE)
    assert len(found) == 1
    # a request ends at a multiple of 8 pieces, and the file's last piece is shorter
    file.read(4 * PIECE, len(data) - 4 * PIECE)
    assert found[1:] == [f"bytes={5 * PIECE}-{8 * PIECE - 1}", f"bytes={8 * PIECE}-{16 * PIECE - 1}", f"bytes={16 * PIECE}-{len(data) - 1}"]
    again = open_store(remote.url, cache_dir=tmp_path / "cache")
    others = asked(again)
    StoredFile(again, file.handle, "x").read(0, len(data))
    assert others == [f"bytes=0-{PIECE - 1}"]


def test_processes_that_want_the_same_fetch_it_once(remote, make, data, asked, tmp_path):
    handle = put(remote, make(), data)
    stores = [open_store(remote.url, cache_dir=tmp_path / "cache") for _ in range(4)]
    found = [asked(s) for s in stores]
    barrier, got = threading.Barrier(4), []

    def read(store):
        barrier.wait()
        got.append(bytes(StoredFile(store, handle, "x").read(0, len(data))))

    threads = [threading.Thread(target=read, args=(s,)) for s in stores]
    [t.start() for t in threads], [t.join() for t in threads]
    every = [one for several in found for one in several]
    assert got == [data] * 4 and len(every) == len(set(every)) == 3


@pytest.mark.parametrize("change", ["flip", "cut", "gone"])
def test_a_damaged_piece_is_fetched_again(remote, make, data, asked, tmp_path, change):
    file = StoredFile(remote, put(remote, make(), data), "x")
    file.read(0, 3 * PIECE)
    path = next(tmp_path.glob("cache/pieces/??/*-1"))
    raw = bytearray(path.read_bytes())
    if change == "flip":
        raw[100] ^= 1
        path.write_bytes(raw)
    elif change == "cut":
        path.write_bytes(raw[:50])
    else:
        path.unlink()
    found = asked(remote)
    assert file.read(0, 3 * PIECE) == data[: 3 * PIECE]
    assert found == [f"bytes={PIECE}-{2 * PIECE - 1}"]


def test_the_cap_holds_and_what_was_used_last_stays(bucket, make, tmp_path):
    cap = 64 * PIECE
    store = open_store(f"s3://{bucket[1]}/run", cache_dir=tmp_path / "cache", cache_bytes=cap)
    data = np.random.default_rng(0).bytes(200 * PIECE)
    file = StoredFile(store, put(store, make(), data), "x")
    for i in range(200):
        assert file.read(i * PIECE, PIECE) == data[i * PIECE : (i + 1) * PIECE]
        file.read(0, PIECE)
        assert store.cache.held() <= cap
    assert store.cache.held() > cap / 2
    assert list(tmp_path.glob("cache/pieces/??/*-0")) and not list(tmp_path.glob("cache/pieces/??/*-5"))


def test_a_full_disk_costs_no_more_than_requests(remote, make, data, monkeypatch, tmp_path):
    file = StoredFile(remote, put(remote, make(), data), "x")

    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(ranges.os, "replace", full)
    assert file.read(0, len(data)) == data
    assert not list(tmp_path.glob("cache/pieces/arriving/*")) and not list(tmp_path.glob("cache/pieces/??/*-0"))


def test_neither_a_stopped_process_nor_a_disk_without_locks_stops_others(remote, make, data, monkeypatch, tmp_path):
    file = StoredFile(remote, put(remote, make(), data), "x")
    monkeypatch.setattr(ranges, "_LOCK_S", 0.1)
    with remote.pieces._lock(file.handle.file("x"), 0):
        assert file.read(0, PIECE) == data[:PIECE]
    again = open_store(remote.url, cache_dir=tmp_path / "file")
    (tmp_path / "file").write_text("not a folder")
    assert StoredFile(again, file.handle, "x").read(0, len(data)) == data


def test_another_object_or_none_is_told(remote, make, data, damage):
    handle = put(remote, make(), data)
    file = StoredFile(remote, handle, "x")
    damage(remote, handle, "x", data[::-1])
    with pytest.raises(ArtifactGone, match=r"was replaced.*aframe run --until background"):
        file.read(0, 10)
    damage(remote, handle, "x", data[:100])
    with pytest.raises(ArtifactGone, match="was replaced"):
        file.read(0, 10)
    damage(remote, handle, "x", None)
    with pytest.raises(ArtifactGone, match="is missing"):
        file.read(0, 10)
    with pytest.raises(ValueError, match=f"bytes 5 to {len(data) + 1}, has {len(data)}"):
        file.read(5, len(data) - 4)


@pytest.mark.parametrize("breaks", [2, 99])
def test_a_connection_that_breaks_off_is_tried_again(remote, make, data, monkeypatch, breaks):
    file = StoredFile(remote, put(remote, make(), data), "x")
    original, count = remote.client.get_object, [0]

    def get(**kwargs):
        found = original(**kwargs)
        count[0] += 1
        if count[0] <= breaks:
            found["Body"] = io.BytesIO(found["Body"].read()[:-5])
        return found

    monkeypatch.setattr(remote.client, "get_object", get)
    monkeypatch.setattr("aframe_assets.store.s3_connection.time.sleep", lambda _: None)
    if breaks == 2:
        assert file.read(0, 100) == data[:100] and count[0] == 3
    else:
        with pytest.raises(StoreError, match="the connection broke off 5 times while"):
            file.read(0, 100)


def test_a_whole_file_in_the_cache_is_read_there_while_it_is_there(remote, make, data, asked):
    handle = put(remote, make(), data)
    path = remote.open_local(handle, "x")
    record = path.parent.with_suffix(".json")
    os.utime(record, (1e9, 1e9))
    file, found = remote.open_ranges(handle, "x"), asked(remote)
    assert file.read(5, PIECE) == data[5 : PIECE + 5] and found == []
    # it is in use, so others go before it
    assert record.stat().st_mtime > 1.1e9
    remote.cache.trim(to=0), remote.cache.__dict__.update(keep_s=0), remote.cache.trim(to=0)
    assert not path.exists()
    assert file.read(5, PIECE) == data[5 : PIECE + 5] and len(found) == 1


def test_pieces_and_whole_files_share_the_cap_by_their_last_use(bucket, make, tmp_path):
    cap = 64 * PIECE
    store = open_store(f"s3://{bucket[1]}/run", cache_dir=tmp_path / "cache", cache_bytes=cap)
    rng = np.random.default_rng(0)
    handles = [put(store, make(partition=f"112625944{i}-32"), rng.bytes(40 * PIECE)) for i in range(3)]
    old = store.open_local(handles[0], "x")
    os.utime(old.parent.with_suffix(".json"), (1e9, 1e9))
    # pieces do not go without for the sake of files that nobody uses any more
    StoredFile(store, handles[1], "x").read(0, 40 * PIECE)
    assert len(list(tmp_path.glob("cache/pieces/??/*"))) == 40 and not old.exists()
    store.open_local(handles[2], "x")
    assert store.cache.held() <= cap


LOST = """
from aframe_assets.store.errors import StoreError
from aframe_assets.store.ranges import StoredFile, open_hdf5

class Lost(StoredFile):
    nbytes = 10_000

    def read(self, first, size):
        raise error

class Handle:
    uri = "s3://bucket/run/x"

error = StoreError("cannot be reached")
with open_hdf5(Lost(None, Handle, "x")):
    pass
"""


def test_a_store_that_is_lost_ends_a_process_with_its_error_and_no_crash():
    out = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True)
    assert "StoreError: cannot be reached" in out.stderr
    assert out.returncode == 1


KINDS = {
    "contiguous": {},
    "chunks": {"chunks": (1000,)},
    "rows": {"chunks": (7, 30)},
    "columns": {"chunks": (7, 10)},
    "compressed": {"chunks": (1000,), "compression": "gzip"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_slabs_are_what_h5py_reads(store, make, tmp_path, kind):
    rng = np.random.default_rng(2)
    values = rng.normal(size=(100, 30)) if kind in ("rows", "columns") else rng.normal(size=30_500)
    path = tmp_path / "x"
    with h5py.File(path, "w") as f:
        f.create_dataset("a/first", data=values[::-1].astype(np.float32), chunks=KINDS[kind].get("chunks"))
        f.create_dataset("a/second", data=values, **KINDS[kind])
    source = store.open_ranges(put(store, make(), path.read_bytes()), "x")
    with open_hdf5(source) as f:
        one, two = Slabs.of(source, f["a/first"]), Slabs.of(source, f["a/second"])
    assert (two.offsets is None) == (kind in ("compressed", "columns"))
    for first, last in [(0, len(values)), (3, 3), *np.sort(rng.integers(0, len(values), (12, 2)), axis=1)]:
        np.testing.assert_array_equal(one.read(first, last), values[::-1].astype(np.float32)[first:last])
        np.testing.assert_array_equal(two.read(first, last), values[first:last])
    with pytest.raises(ValueError, match=f"rows 5 to {len(values) + 1} of a/second"):
        two.read(5, len(values) + 1)


def test_a_stretch_over_many_chunks_is_one_read(tmp_path, monkeypatch):
    path = tmp_path / "x"
    with h5py.File(path, "w") as f:
        for name in ("H1", "L1"):
            f.create_dataset(name, data=np.arange(200_000.0), chunks=(5000,))
        lies = [Slabs.of(path, f[name]) for name in f]
    sizes = []
    monkeypatch.setattr(slabs, "ranges_of", lambda source: Spy(source, sizes))
    for one in lies:
        np.testing.assert_array_equal(one.read(1234, 181_234), np.arange(1234.0, 181_234))
    assert len(sizes) <= 4 and sum(sizes) < 2 * 180_000 * 8 + 4 * slabs.GAP_BYTES


class Spy:
    def __init__(self, source, sizes):
        self.file, self.sizes = ranges._LocalFile(source), sizes

    def read(self, first, size):
        self.sizes.append(size)
        return self.file.read(first, size)


def test_a_truncated_file_and_chunks_never_written(tmp_path):
    path = tmp_path / "x"
    with h5py.File(path, "w") as f:
        f.create_dataset("a", data=np.arange(50_000.0), chunks=(1000,))
        f.create_dataset("holes", shape=(5000,), dtype=float, chunks=(1000,))[:1500] = 1.0
    with h5py.File(path) as f:
        whole, holes = Slabs.of(path, f["a"]), Slabs.of(path, f["holes"])
    assert holes.offsets is None and holes.read(1400, 3000).sum() == 100
    os.truncate(path, 200_000)
    with pytest.raises(OSError, match="ends at byte 200000, expected a up to 40"):
        whole.read(0, 50_000)
