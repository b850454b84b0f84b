"""Files that are dropped: what is found wrong with each, and when good ones go in."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from dropped_files import (
    EXPERIMENT,
    LENGTH,
    RATE,
    START,
    Here,
    begin,
    config_of,
    experiment,
    gap,
    incoming,
    nan,
    truncate,
    verdicts,
    volts,
    write,
)
from filelock import FileLock
from gwosc_file import write_gwosc

from aframe_assets.config_load import ConfigError
from aframe_assets.strain.intake import inspect
from aframe_ops.automation.inspector import Inspector
from aframe_ops.run_directory import RUN_LOCK

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
