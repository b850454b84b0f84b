"""A step on a node with a disk of its own reads verified copies there, writes there, and publishes into the store."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from aframe_assets.store import node as node_module
from aframe_assets.store import open_store
from aframe_assets.store.archives import ArchiveError, unpack
from aframe_assets.store.errors import StoreError
from aframe_assets.store.handle import Handle, KeyParts


@pytest.fixture
def published(tmp_path) -> Handle:
    """In the store at ``tmp_path / "store"``, by somebody else."""
    files = tmp_path / "files"
    (files / "sub").mkdir(parents=True)
    (files / "a.txt").write_text("a" * 1000)
    (files / "sub" / "b.txt").write_text("b" * 1000)
    return open_store(tmp_path / "store").publish(KeyParts(asset="made", code_version="1"), files)


@pytest.fixture
def disk(tmp_path, monkeypatch) -> Path:
    (tmp_path / "node").mkdir()
    monkeypatch.setenv(node_module.NODE_DIRECTORY, str(tmp_path / "node"))
    return tmp_path / "node"


def test_what_is_opened_is_a_verified_copy_on_the_node(tmp_path, published, disk):
    store = open_store(tmp_path / "store")
    path = store.open_local(published, "a.txt")
    assert path.is_relative_to(disk) and path.read_text() == "a" * 1000
    assert not (path.parent / "sub").exists()  # what nobody opens is not copied
    folder = store.open_local(published)
    assert (folder / "sub" / "b.txt").read_text() == "b" * 1000
    # the next job of the node finds it there, even when the store's disk is slow
    before = path.stat().st_mtime_ns
    assert open_store(tmp_path / "store").open_local(published, "a.txt") == path and path.stat().st_mtime_ns == before


def test_without_a_disk_nothing_is_copied(tmp_path, published):
    assert open_store(tmp_path / "store").open_local(published, "a.txt").is_relative_to(tmp_path / "store")


def test_scratch_is_on_the_node_and_what_is_published_in_the_store(tmp_path, disk, published):
    store, parts = open_store(tmp_path / "store"), KeyParts(asset="next", code_version="1")
    with store.scratch() as scratch:
        assert scratch.is_relative_to(disk)
        assert store.workdir(parts).is_relative_to(tmp_path / "store")  # checkpoints are for whatever node comes next
        (scratch / "out.txt").write_text("made")
        handle = store.publish(parts, {"out.txt": scratch / "out.txt"})
    assert not scratch.exists()
    assert store.verify(handle) == [] and (tmp_path / "store" / "next").is_dir()


def test_bytes_that_are_not_those_of_the_manifest_are_not_used(tmp_path, published, disk):
    (original,) = (tmp_path / "store").glob("made/_/*/a.txt")
    original.chmod(0o644)
    original.write_text("x" * 1000)
    with pytest.raises(StoreError, match=r"made from file://.*a\.txt does not have the recorded sha256"):
        open_store(tmp_path / "store").open_local(published, "a.txt")
    assert not list(disk.rglob("a.txt"))


def test_a_full_node_is_said_once_and_files_are_read_in_place(tmp_path, published, disk, monkeypatch, capfd):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(node_module.shutil, "disk_usage", lambda path: usage(10**12, 10**12, 1000))
    store = open_store(tmp_path / "store")
    for name in ("a.txt", "sub/b.txt"):
        assert store.open_local(published, name).is_relative_to(tmp_path / "store")
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("aframe: not all inputs are copied to the node's disk") and "made (0.00 GB) does not fit" in line


def test_copies_that_others_may_use_stay_and_the_cap_holds(tmp_path, published, disk, capfd):
    store = open_store(tmp_path / "store", cache_bytes=2500)
    used = store.open_local(published)
    other = store.publish(KeyParts(asset="other", code_version="1"), tmp_path / "files" / "sub")
    assert store.open_local(other, "b.txt").is_relative_to(tmp_path / "store") and (used / "a.txt").exists()
    assert "0.00 of 2.5e-06 GB for copies (store.cache_gb) in use" in capfd.readouterr().err
    (record,) = disk.glob("cache/files/*/*.json")
    os.utime(record, (0, 0))  # last opened long ago
    assert store.open_local(other, "b.txt").is_relative_to(disk) and not used.exists()


def test_a_node_that_fills_up_meanwhile(tmp_path, published, disk, monkeypatch, capfd):
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aframe_assets.store.local.copy_file", full)
    path = open_store(tmp_path / "store").open_local(published, "a.txt")
    assert path.is_relative_to(tmp_path / "store") and "no space left in the cache" in capfd.readouterr().err
    assert not [p for p in disk.rglob("*") if p.is_file() and p.suffix not in (".lock", ".json")]


# --- archives -------------------------------------------------------------------------------------


def tar_of(path: Path, *members: tarfile.TarInfo | tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as t:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                t.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size, info.mode = len(member[1]), 0o4777
                t.addfile(info, io.BytesIO(member[1]))
    return path


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


def zip_of(path: Path, **members: tuple[int, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        for name, (mode, data) in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            z.writestr(info, data)
    return path


def test_a_step_unpacks_an_archive_of_its_input_on_the_node(tmp_path, disk):
    archive = tar_of(tmp_path / "many.tar.gz", ("./x/1.txt", b"one"), ("x/2.txt", b"two"))
    store = open_store(tmp_path / "store")
    handle = store.publish(KeyParts(asset="packed", code_version="1"), {"many.tar.gz": archive})
    with store.scratch() as scratch:
        folder = unpack(store.open_local(handle, "many.tar.gz"), scratch / "many", max_bytes=6)
        assert folder.is_relative_to(disk)
        assert {p.name: p.read_text() for p in (folder / "x").iterdir()} == {"1.txt": "one", "2.txt": "two"}
        assert stat.S_IMODE((folder / "x" / "1.txt").stat().st_mode) & 0o7111 == 0
        with pytest.raises(ArchiveError, match="has more than"):
            unpack(store.open_local(handle, "many.tar.gz"), scratch / "small", max_bytes=5)


HOSTILE = {
    "absolute": [("/tmp/aframe-hostile", b"x")],
    "up": [("../aframe-hostile", b"x")],
    "up inside": [("a/../../aframe-hostile", b"x")],
    "dot": [("a/./b", b"x")],
    "backslash": [("..\\aframe-hostile", b"x")],
    "control": [("a\nb", b"x")],
    "symlink out": [link("a", "/tmp"), ("a/aframe-hostile", b"x")],
    "symlink inside": [("b", b"x"), link("a", "b")],
    "hard link out": [link("a", "/etc/passwd", tarfile.LNKTYPE)],
    "device": [link("a", "", tarfile.CHRTYPE)],
    "fifo": [link("a", "", tarfile.FIFOTYPE)],
    "twice": [("a", b"x"), ("a", b"y")],
    "file and folder": [("a", b"x"), ("a/b", b"y")],
    "bomb": [("a", b"0" * 5000), ("b", b"0" * 5001)],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives_leave_nothing(tmp_path, name):
    archive = tar_of(tmp_path / "hostile.tar.gz", *HOSTILE[name])
    before = set(os.listdir(tmp_path))
    with pytest.raises(ArchiveError, match=r"hostile\.tar\.gz: "):
        unpack(archive, tmp_path / "out", max_bytes=10_000)
    assert set(os.listdir(tmp_path)) == before and not Path("/tmp/aframe-hostile").exists()


def test_hostile_zips_and_what_is_no_archive(tmp_path):
    bad = {"../x": (0o100644, b"x"), "/x": (0o100644, b"x"), "l": (0o120777, b"/etc")}
    for i, (name, member) in enumerate(bad.items()):
        with pytest.raises(ArchiveError):
            unpack(zip_of(tmp_path / f"{i}.zip", **{name: member}), tmp_path / "out", max_bytes=1000)
    good = zip_of(tmp_path / "good.zip", **{"a/b": (0o100755, b"x"), "c": (0, b"y")})
    assert {p.name for p in unpack(good, tmp_path / "out", max_bytes=1000).rglob("*")} == {"a", "b", "c"}
    with pytest.raises(FileExistsError):
        unpack(good, tmp_path / "out", max_bytes=1000)
    (tmp_path / "text").write_text("text")
    with pytest.raises(ArchiveError, match="neither a tar nor a zip"):
        unpack(tmp_path / "text", tmp_path / "other", max_bytes=1000)
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(tar_of(tmp_path / "whole.tar.gz", ("a", os.urandom(50_000))).read_bytes()[:20_000])
    with pytest.raises(ArchiveError):
        unpack(cut, tmp_path / "third", max_bytes=10**6)
    assert not (tmp_path / "other").exists() and not (tmp_path / "third").exists()


PACKINGS = ("gz", "bz2", "xz", zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_damaged_archive_is_called_one(tmp_path, packing):
    """Whatever byte of it is another one: it is unpacked as it says, or it is refused as an archive."""
    whole, damaged, files = tmp_path / "whole", tmp_path / "damaged", {"a": os.urandom(300) * 9, "b/c": b"0123456789" * 99}
    if isinstance(packing, str):
        with tarfile.open(whole, f"w:{packing}") as t:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                t.addfile(member, io.BytesIO(data))
    else:
        with zipfile.ZipFile(whole, "w", packing) as z:
            for name, data in files.items():
                z.writestr(name, data)
    data, refused = whole.read_bytes(), 0
    for at in range(0, len(data), 7):
        damaged.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            unpack(damaged, tmp_path / "out", max_bytes=10**5)
        except ArchiveError:
            refused += 1
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert refused > 10
