"""Files that are dropped: what is found wrong with each, when good ones go in, and what a kill costs."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from dropped_files import EXPERIMENT, LENGTH, RATE, START, Here, begin, config_of, experiment, files_of, gap, nan, truncate, volts, write
from filelock import FileLock
from gwosc_file import write_gwosc

from aframe_assets.config_load import ConfigError
from aframe_assets.store.opening import open_store
from aframe_assets.store.workspace import Workspace
from aframe_assets.strain.intake import inspect
from aframe_ops.automation.incoming import Incoming
from aframe_ops.automation.inspector import Inspector
from aframe_ops.automation.ledger import Entry, Ledger
from aframe_ops.automation.places import PlaceError, _copied, _pieces, drops, take
from aframe_ops.run_directory import RUN_LOCK


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "strain").mkdir()
    return tmp_path


def incoming(folder: Path, **automation) -> tuple[Incoming, Here]:
    options = {"watch": ["inbox"], "settle_seconds": 10, "quiet_seconds": 100, "max_wait_seconds": 1000} | automation
    site = experiment(folder, options)
    config = config_of(folder)
    return Incoming(config, site), Here(config)


def verdicts(inc: Incoming) -> dict[str, str]:
    return {Path(e.file).name: e.verdict for e in inc.ledger.read()}


# --- what a file is worth ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "verdict", "words"),
    [
        (lambda f: write(f, 1), "good", ""),
        (lambda f: write(f, 1, spoil=nan), "bad", f"NaN or infinite, the first at GPS {begin(1) + 100 / RATE:.14g}"),
        (lambda f: write(f, 1, spoil=gap), "bad", "a gap of"),
        (lambda f: write(f, 1, spoil=volts), "bad", "as strain has"),
        (lambda f: truncate(write(f, 1)), "bad", "truncated or no HDF5 file"),
        (lambda f: write(f, 1, rate=256), "bad", "expected at least sample_rate 512 Hz"),
        (lambda f: write(f, 1).rename(f / f"background-{begin(2)}-{LENGTH}.hdf5"), "bad", "its name"),
        (lambda f: write(f, 1, ifos=("V1",)), "unused", "the experiment has H1, L1"),
        (lambda f: write(f, -5), "unused", "outside of the test time"),
    ],
    ids=["good", "nan", "gap", "units", "truncated", "rate", "name", "detector", "time"],
)
def test_a_file_is_judged_by_header_and_samples(folder, make, verdict, words):
    experiment(folder, {})
    found = inspect(make(folder / "inbox"), config_of(folder))
    assert found.verdict == verdict and words in found.why, found
    assert (found.science == 2 * LENGTH) == (verdict == "good")


@pytest.mark.parametrize(
    ("header", "value", "words"),
    [
        ("x0", np.nan, "expected finite GPS times in its header"),
        ("x0", "begin", "could not convert string to float"),
        ("dx", 1 / 4e6, "4e+06 Hz; expected at most 131072 Hz"),
        ("dx", 1e-320, "is inf Hz; expected a whole number of samples per second"),
        ("dx", 0.0, "is 0 Hz; expected a whole number of samples per second"),
        ("dx", -1 / 4096, "is 0 Hz; expected a whole number of samples per second"),
        ("dx", np.nan, "expected a whole number of samples per second"),
    ],
)
def test_a_header_of_nonsense_is_no_strain(folder, header, value, words):
    experiment(folder, {})
    path = write(folder / "inbox", 1).rename(folder / "inbox" / "odd.hdf5")
    with h5py.File(path, "a") as file:
        file["H1"].attrs[header] = value
    found = inspect(path, config_of(folder))
    assert found.verdict == "bad" and words in found.why and str(path) in found.why


def test_only_science_time_must_be_sound(folder):
    experiment(folder, {})
    strain = 1e-21 * np.random.default_rng(1).standard_normal(LENGTH * 4096)
    strain[3 * 4096 : 4 * 4096] = np.nan
    path = folder / f"H-H1_GWOSC_4KHZ_R1-{START}-{LENGTH}.hdf5"
    found = inspect(write_gwosc(path, "H1", START, strain, 4096, {"DATA": [3]}), config_of(folder))
    assert found.verdict == "good" and found.science == LENGTH - 1
    found = inspect(write_gwosc(path, "H1", START, strain, 4096, {"DATA": [4]}), config_of(folder))
    assert found.verdict == "bad" and "NaN" in found.why
    found = inspect(write_gwosc(path, "H1", START, strain, 4096, {"DATA": range(LENGTH)}), config_of(folder))
    assert found.verdict == "unused" and "no science time" in found.why


def test_training_time_is_never_taken(folder):
    experiment(
        folder,
        {},
        {
            "model": {},
            "segments": EXPERIMENT["segments"] | {"train_start": START - 500, "train_stop": START + 30, "test_start": START + 30},
        },
    )
    config = config_of(folder)
    assert config.model.trains
    found = inspect(write(folder, 1), config)
    assert found.verdict == "unused" and "is training time" in found.why
    assert inspect(write(folder, 2), config).verdict == "good"


# --- debounce and landing ------------------------------------------------------------------------


def test_a_file_is_read_once_it_rests_and_goes_in_once_none_follows(folder):
    inc, here = incoming(folder)
    path = write(folder / "inbox", 1)
    assert inc.look(here, now=0).settling == 1
    with open(path, "ab") as file:  # it is still written to
        file.write(b"\0")
    assert inc.look(here, now=11).settling == 1 and not here.read
    write(folder / "inbox", 1)
    assert inc.look(here, now=12).settling == 1
    look = inc.look(here, now=30)
    assert [e.verdict for e in look.new] == ["good"] and look.ready == 1 and not look.landed
    write(folder / "inbox", 2)
    assert inc.look(here, now=120).ready == 1, "another one is on its way"
    look = inc.look(here, now=140)
    assert look.ready == 2 and not look.landed
    assert not list(folder.glob("strain/*.hdf5"))
    look = inc.look(here, now=241)
    assert sorted(look.landed) == sorted(p.name for p in (folder / "inbox").iterdir())
    assert sorted(look.landed) == sorted(p.name for p in (folder / "strain").glob("*.hdf5"))
    assert here.read == [path.name, write(folder / "other", 2).name]
    assert str(inc.look(here, now=1000)) == "no new files"


def test_what_never_rests_waits_no_longer_than_the_longest(folder):
    inc, here = incoming(folder, settle_seconds=0, quiet_seconds=50, max_wait_seconds=200)
    landed = []
    for i in range(12):
        write(folder / "inbox", i)
        landed.append(len(inc.look(here, now=25.0 * i).landed))
    assert landed.index(9) == 8 and sum(landed) == 9


def test_nothing_goes_in_while_something_reads_what_is_there(folder):
    inc, here = incoming(folder, settle_seconds=0, quiet_seconds=0)
    write(folder / "inbox", 1)
    look = inc.look(here, now=0, waits="run 1234 is started")
    assert look.ready == 1 and str(look) == "1 good, 1 good ones wait since run 1234 is started"
    with FileLock(folder / RUN_LOCK):
        look = inc.look(here, now=1)
    assert look.ready == 1 and "`aframe run`, or a command like it, is at work here" in str(look)
    assert inc.look(here, now=2).landed


def test_a_clock_that_is_set_back_keeps_nothing_waiting(folder):
    inc, here = incoming(folder)
    write(folder / "inbox", 1)
    inc.look(here, now=1e9)
    assert not inc.look(here, now=5000).new
    assert inc.look(here, now=5010).ready == 1
    # and again, when it has been judged
    assert inc.look(here, now=0).landed


def test_bad_and_double_files_stay_out(folder):
    inc, here = incoming(folder, settle_seconds=0, quiet_seconds=0)
    inbox = folder / "inbox"
    write(inbox, 1)
    shutil.copy(write(inbox, 1), inbox / f"copy-{begin(1)}-{LENGTH}.hdf5")
    write(inbox, 1, seed=1, name="other")
    write(inbox, 2, spoil=nan)
    truncate(write(inbox, 3))
    inc.look(here, now=0)
    assert verdicts(inc) == {
        f"background-{begin(1)}-16.hdf5": "good",
        f"copy-{begin(1)}-16.hdf5": "duplicate",
        f"other-{begin(1)}-16.hdf5": "bad",
        f"background-{begin(2)}-16.hdf5": "bad",
        f"background-{begin(3)}-16.hdf5": "bad",
    }
    assert [p.name for p in (folder / "strain").glob("*.hdf5")] == [f"background-{begin(1)}-16.hdf5"]
    why = {Path(e.file).name: e.why for e in inc.ledger.read()}
    assert f"H1 GPS {begin(1)} to {begin(1) + 16} is in background-{begin(1)}-16.hdf5 already" in why[f"other-{begin(1)}-16.hdf5"]
    assert all(str(inbox) in w for n, w in why.items() if verdicts(inc)[n] == "bad"), "the file that the user has is named"
    # the corrected file comes under the same name
    write(inbox, 2)
    inc.look(here, now=1)
    assert verdicts(inc)[f"background-{begin(2)}-16.hdf5"] == "good"


def test_detectors_in_files_of_their_own_and_folders_below(folder):
    inc, here = incoming(folder, settle_seconds=0, quiet_seconds=0)
    write(folder / "inbox" / "h1", 1, ifos=("H1",))
    write(folder / "inbox" / "l1", 1, ifos=("L1",))
    write(folder / "inbox" / ".hidden", 2)
    assert len(inc.look(here, now=0).landed) == 2
    assert len(list((folder / "strain").glob("*.hdf5"))) == 2, "one name, two files"


def test_a_file_put_there_by_hand_is_never_replaced(folder):
    inc, here = incoming(folder, settle_seconds=0)
    for i in (1, 2):
        write(folder / "inbox", i)
    inc.look(here, now=0)
    mine = write(folder / "strain", 1, seed=9)
    before = mine.read_bytes()
    look = inc.look(here, now=200)
    assert mine.read_bytes() == before and look.ready == 1 and "somebody has put it there" in str(look)
    assert [inc.whereabouts(e) for e in inc.ledger.read()] == ["waiting", "searched"]
    mine.unlink()
    assert inc.look(here, now=201).landed == [mine.name]


def test_files_put_there_by_hand_are_reckoned_with(folder):
    inc, here = incoming(folder, settle_seconds=0, quiet_seconds=0)
    shutil.copy(write(folder / "inbox", 1), folder / "strain")
    write(folder / "strain", 2)
    write(folder / "inbox", 2, seed=3)
    inc.look(here, now=0)
    assert sorted(verdicts(inc).values()) == ["bad", "duplicate"]


def test_a_lost_ledger_costs_a_second_look_and_nothing_else(folder):
    inc, here = incoming(folder, settle_seconds=0, quiet_seconds=0)
    for i in range(3):
        write(folder / "inbox", i)
    inc.look(here, now=0)
    before = sorted((folder / "strain").glob("*.hdf5"))
    shutil.rmtree(inc.folder)
    inc.look(here, now=1)
    assert set(verdicts(inc).values()) == {"duplicate"} and sorted((folder / "strain").glob("*.hdf5")) == before


def test_the_time_for_reading_is_limited_and_the_rest_follows(folder):
    inc, here = incoming(folder, settle_seconds=0, quiet_seconds=1000)
    for i in range(4):
        write(folder / "inbox", i)
    look = inc.look(here, now=0, budget_s=0)
    assert look.settling >= 3
    for now in range(1, 6):
        inc.look(here, now=now)
    assert here.read == sorted(set(here.read)) and len(here.read) == 4


# --- faults -----------------------------------------------------------------------------------------


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


# --- the process that reads ------------------------------------------------------------------------


def test_a_reader_that_dies_is_replaced_and_its_file_is_bad(folder, monkeypatch, tmp_path):
    experiment(folder, {})
    program = tmp_path / "sitecustomize.py"
    program.write_text(
        "import os, h5py\nfirst = h5py.File.__init__\n"
        "def init(self, name, *a, **k):\n"
        "    if 'deadly' in str(name): os.abort()\n"
        "    if 'endless' in str(name):\n"
        "        import time; time.sleep(1000)\n"
        "    first(self, name, *a, **k)\nh5py.File.__init__ = init\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    good = write(folder, 1)
    with Inspector(config_of(folder)) as reader:
        assert reader.inspect(good).verdict == "good"
        found = reader.inspect(write(folder, 2, name="deadly"))
        assert found.verdict == "bad" and "reading it ended the process (code -6)" in found.why
        reader._limit = 3
        found = reader.inspect(write(folder, 3, name="endless"))
        assert found.verdict == "bad" and "takes more than 3 s to read" in found.why
        reader._limit = 600
        held = [(("H1", begin(1), begin(1) + 16.0), str(good)), (("L1", begin(1), begin(1) + 16.0), str(good))]
        assert reader.held([str(good)]) == held
        # what lies there already may be damaged too
        for path in folder.glob("deadly*"):
            path.unlink()
        write(folder / "there", 1).rename(folder / "there" / good.name)
        write(folder / "there", 2, name="deadly")
        with h5py.File(folder / "there" / "odd.hdf5", "w") as file:
            file.create_dataset("H1", data=np.zeros(8)).attrs.update(x0="begin", dx=1 / RATE)
        assert [span for span, _ in reader.held([str(folder / "there")])] == [span for span, _ in held]


# --- buckets -----------------------------------------------------------------------------------------


def test_files_dropped_in_a_bucket(folder, bucket):
    client, name = bucket
    inc, here = incoming(folder, watch=[f"s3://{name}/drop"], quiet_seconds=0)
    for i, key in enumerate(("drop/a/", "drop/", "dropped/", "drop/.part/")):
        path = write(folder / "made", i)
        client.upload_file(str(path), name, key + path.name)
    client.put_object(Bucket=name, Key="drop/readme.txt", Body=b"no strain")
    assert sorted(inc.look(here, now=0).landed) == [f"background-{begin(i)}-16.hdf5" for i in (0, 1)]
    # the same again, and a key that is listed and never there
    assert not inc.look(here, now=1).new
    found = list(drops(f"s3://{name}/drop"))
    client.delete_object(Bucket=name, Key=f"drop/background-{begin(1)}-16.hdf5")
    with pytest.raises(PlaceError, match=r"cannot be fetched: .*(NoSuchKey|404)"):
        take(next(d for d in found if "/a/" not in d.file), folder / "copy")
    with pytest.raises(PlaceError, match="there is no such bucket"):
        list(drops("s3://no-such-bucket-here/x"))


def test_a_bucket_whose_server_fails_now_and_then_loses_nothing(folder, bucket, proxy, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client, name = bucket
    inc, here = incoming(folder, watch=[f"s3://{name}/drop", "inbox"], settle_seconds=0, quiet_seconds=0)
    for i in (1, 2):
        path = write(folder / "made", i)
        client.upload_file(str(path), name, f"drop/{path.name}")
    write(folder / "inbox", 3)
    for kind in ("500", "drop", "cut"):
        fault = proxy.fault(kind, where="list-type")
        look = inc.look(here, now=0)
        assert fault.met and f"s3://{name}/drop: cannot be listed" in str(look) and not look.settling, kind
    assert [Path(e.file).parent for e in inc.ledger.read()] == [folder / "inbox"], "the other place was looked at"
    # what breaks off is no fault of the disk here, and holds back no other file
    for kind in ("500", "cut"):
        proxy.fault(kind, where=f"{begin(1)}-")
        look = inc.look(here, now=1)
        assert f"drop/background-{begin(1)}-16.hdf5: cannot be" in str(look) and "copied" not in str(look)
    assert verdicts(inc) == {f"background-{begin(i)}-16.hdf5": "good" for i in (2, 3)}
    assert inc.look(here, now=2).landed == [f"background-{begin(1)}-16.hdf5"]


def test_an_object_that_is_listed_and_never_there_starts_nothing(folder, monkeypatch):
    inc, here = incoming(folder, settle_seconds=0, quiet_seconds=0)
    write(folder / "inbox", 1)
    write(folder / "inbox", 2)
    from aframe_ops.automation import incoming as module

    real = module.take

    def lost(drop, target, **options):
        if str(begin(1)) in drop.file:
            raise PlaceError(f"{drop.file}: cannot be fetched: NoSuchKey")
        return real(drop, target, **options)

    monkeypatch.setattr(module, "take", lost)
    assert [Path(n).name for n in inc.look(here, now=0).landed] == [f"background-{begin(2)}-16.hdf5"]
    for now in range(1, 5):
        look = inc.look(here, now=now)
        assert not look.new and not look.landed and "NoSuchKey" in str(look)
    assert len(inc.ledger.read()) == 1


# --- the command ---------------------------------------------------------------------------------


def test_the_command_tells_every_file_and_looks_without_dagster(folder, monkeypatch, capsys):
    from rich.console import Console

    from aframe_ops.cli import incoming as cli
    from aframe_ops.run_directory import RunDirectory

    monkeypatch.setattr("aframe_ops.automation.inspector.Inspector", Here)
    experiment(folder, {})
    run, options = RunDirectory(folder), {"look": False, "verdict": None, "as_json": False}
    with pytest.raises(ConfigError, match=r"automation\.watch names no folder or bucket"):
        cli.show_incoming(run, Console(), **options)
    incoming(folder, settle_seconds=0, quiet_seconds=0)
    write(folder / "inbox", 1)
    truncate(write(folder / "inbox", 2))
    with pytest.raises(ConfigError, match="expected one of searched, waiting"):
        cli.show_incoming(run, Console(), **options | {"verdict": "worse"})
    assert cli.show_incoming(run, Console(width=200), **options | {"look": True, "verdict": "bad"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 good, 1 bad, 1 put into the experiment" and lines[-1] == "1 searched, 1 bad"
    (line,) = lines[1:-1]
    assert line.startswith(f"bad\t{folder / 'inbox'}") and "truncated" in line
    assert cli.show_incoming(run, Console(stderr=True), **options | {"as_json": True})
    shown = json.loads(capsys.readouterr().out)
    assert [e["verdict"] for e in shown] == ["searched", "bad"] and shown[0]["spans"][0] == ["H1", begin(1), begin(1) + 16]
