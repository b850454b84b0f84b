"""Files that are dropped while processes are killed, disks are full and names lead astray: none is lost, and none is in twice."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from dropped_files import begin, files_of, incoming, verdicts, write

from aframe_assets.config_load import ConfigError
from aframe_assets.store.opening import open_store
from aframe_assets.store.workspace import Workspace
from aframe_ops.automation.ledger import Entry, Ledger
from aframe_ops.automation.places import PlaceError, _copied, _pieces, drops, take


@pytest.mark.parametrize("point", ["replace", "append", "land"])
def test_a_kill_at_any_point_leaves_no_file_twice_and_none_lost(folder, monkeypatch, point):
    inc, here = incoming(folder, settle_seconds=0, quiet_seconds=0)
    for i in range(4):
        write(folder / "inbox", i)

    class Killed(BaseException):
        pass

    calls, real_replace, real_append = [], os.replace, Ledger.append

    def killed(a, b):
        where = "land" if Path(b).parent == inc.land and Path(b).suffix == ".hdf5" else "replace"
        calls.append(where)
        if where == point and calls.count(where) == 2:
            raise Killed
        real_replace(a, b)

    def killed_append(self, entry):
        calls.append("append")
        if point == "append" and calls.count("append") == 2:
            with open(self.path, "ab") as file:
                file.write(b'{"file": "cut sh')
            raise Killed
        real_append(self, entry)

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(Ledger, "append", killed_append)
    with pytest.raises(Killed):
        inc.look(here, now=0)
    monkeypatch.undo()
    assert point != "land" or inc.landing
    again, here = incoming(folder, settle_seconds=0, quiet_seconds=0)
    again.look(here, now=1)
    assert verdicts(again) == {f"background-{begin(i)}-16.hdf5": "good" for i in range(4)}
    assert len(again.ledger.read()) == 4
    assert len(list((folder / "strain").glob("*.hdf5"))) == 4 and not again.landing
    assert not list((folder / "strain" / ".checking").iterdir()) + list((folder / "strain" / ".ready").iterdir())


def test_five_hundred_files_in_waves_with_a_kill_and_a_restart(folder, monkeypatch):
    files, keys, bad = files_of(folder / "made", 385, seed=7)
    options = {"settle_seconds": 2, "quiet_seconds": 20, "max_wait_seconds": 100}
    inc, here = incoming(folder, **options)
    now, landed, append = 0.0, [], Ledger.append

    class Killed(BaseException):
        pass

    def killed(self, entry):
        if len(self.read()) == 130:
            raise Killed
        append(self, entry)

    for wave in range(5):
        for path in files[wave * 101 : (wave + 1) * 101]:
            shutil.move(path, folder / "inbox" / path.name)
        landed += inc.look(here, now=now + 10, budget_s=1e9).landed
        if wave == 1:
            monkeypatch.setattr(Ledger, "append", killed)
            with pytest.raises(Killed):
                inc.look(here, now=now + 15, budget_s=1e9)
            monkeypatch.undo()
        if wave in (1, 3):
            inc, here = incoming(folder, **options)
        for seconds in (20, 30, 40, 60):
            landed += inc.look(here, now=now + seconds, budget_s=1e9).landed
        now += 60
    entries = inc.ledger.read()
    assert len(entries) == len(files) == len({e.identity for e in entries})
    assert sorted(Path(e.file).name for e in entries if e.verdict == "bad") == sorted(bad)
    assert {f"{e.spans[0][1]:.0f}-16" for e in entries if e.verdict == "good"} == keys
    assert len(landed) == len(set(landed)) == len(keys) == len(list((folder / "strain").glob("*.hdf5")))


def test_a_full_disk_is_no_verdict(folder, monkeypatch):
    inc, here = incoming(folder, settle_seconds=0, quiet_seconds=0)
    write(folder / "inbox", 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aframe_ops.automation.places._copied", full)
    look = inc.look(here, now=0)
    assert not look.new and "No space left on device" in look.troubles[0]
    monkeypatch.undo()
    assert inc.look(here, now=1).landed


def test_what_cannot_be_read_is_no_fault_of_the_disk_here(folder):
    class Broken:
        def read(self, size):
            raise OSError(5, "Input/output error")  # boto's timeouts are OSErrors too

    with pytest.raises(PlaceError, match=r"a file: cannot be read: OSError: .*Input/output error"):
        _copied(_pieces("a file", Broken()), folder / "copy")


def test_a_place_that_is_gone_is_told_and_the_others_are_looked_at(folder):
    inc, here = incoming(folder, watch=["gone", "inbox"], settle_seconds=0, quiet_seconds=0)
    write(folder / "inbox", 1)
    look = inc.look(here, now=0)
    assert look.landed and f"{folder / 'gone'}: cannot be listed (No such file or directory)" in str(look)


@pytest.mark.timeout(60)
def test_names_links_and_pipes_that_lead_astray(folder, capsys):
    from rich.console import Console

    from aframe_ops.cli.incoming import show_incoming
    from aframe_ops.run_directory import RunDirectory

    inc, here = incoming(folder, settle_seconds=0, quiet_seconds=0)
    inbox = folder / "inbox"
    os.mkfifo(inbox / "pipe.hdf5")
    for name in ("up", "again"):
        os.symlink(inbox, inbox / name)
    strange = [b"\xff\xfe-%d-16.hdf5" % begin(1), b"\x1b[31m\nbad\t-%d-16.hdf5" % begin(2), b"y" * 241 + b"-%d-16.h5" % begin(3)]
    for i, name in enumerate(strange, 1):
        path = os.fsencode(write(inbox, i))
        os.rename(path, path[: path.rindex(b"/") + 1] + name[-255:])
    write(inbox / "folder\udcff", 4)
    write(inbox, 5)
    look = inc.look(here, now=0)
    assert {e.spans[0][1] for e in look.new if e.verdict == "good"} == {begin(4), begin(5)}
    assert sum(e.verdict == "bad" and "expected a name of at most 240 bytes that can be printed" in e.why for e in look.new) == 3
    assert len(look.new) == 5 and not inc.look(here, now=1).new
    assert show_incoming(RunDirectory(folder), Console(), look=False, verdict=None, as_json=False)
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c in "\n\t" for c in shown) and shown.count("\n") == 6
    Workspace(inc.config, open_store(folder / "store")).wanted("segments")


def test_a_file_that_changes_under_the_copy_is_not_taken(folder):
    path = write(folder / "inbox", 1)
    (drop,) = drops(str(folder / "inbox"))
    with pytest.raises(PlaceError, match="changed while it was read"):
        take(drop._replace(stamp="1-1"), folder / "copy")
    path.unlink()
    with pytest.raises(PlaceError, match="No such file"):
        take(drop, folder / "copy")


def test_hard_links_where_asked(folder):
    inc, here = incoming(folder, take="link", settle_seconds=0, quiet_seconds=0)
    path = write(folder / "inbox", 1)
    inc.look(here, now=0)
    assert os.path.samefile(path, folder / "strain" / path.name)


def test_an_entry_that_was_cut_short_is_none(tmp_path):
    ledger = Ledger(tmp_path / "files.jsonl")
    entry = Entry("a", 1, "2", "good", spans=(("H1", 0.0, 1.0),))
    ledger.append(entry)
    with open(ledger.path, "ab") as file:
        file.write(b'{"file": "b", "si')
    ledger.append(replace(entry, file="c"))
    assert [e.file for e in ledger.read()] == ["a", "c"] and ledger.read()[0] == entry


def test_an_experiment_that_does_not_read_the_folder_is_refused(folder):
    with pytest.raises(ConfigError, match=r"expected a folder that strain\.files of aframe\.yaml names"):
        incoming(folder, land="elsewhere")
    with pytest.raises(ConfigError, match="overlaps the folder"):
        incoming(folder, watch=["strain/new"])
    with pytest.raises(ConfigError, match="expected a folder, or s3://bucket/prefix without user and keys") as caught:
        incoming(folder, watch=["s3://me:secret@bucket/x"])
    assert "secret" not in str(caught.value)
