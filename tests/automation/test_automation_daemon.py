"""Dagster's own daemon with the sensors on, while files are dropped: good, double, late, damaged; and it is killed and started again."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import pytest
from dropped_files import config_of, experiment, files_of
from live_daemon import Daemon

from aframe_assets.store.opening import open_store
from aframe_assets.store.workspace import Workspace
from aframe_ops.automation.ledger import Ledger
from aframe_ops.automation.sensors import INCOMING, TAG
from aframe_ops.cli.templates import DAGSTER_YAML

OPTIONS = {
    "on": True,
    "watch": ["inbox"],
    "until": "background",
    "poll_seconds": 3,
    "settle_seconds": 3,
    "quiet_seconds": 12,
    "max_wait_seconds": 60,
    "retry_minutes": 0.2,
}


class Live(Daemon):
    """A run directory with a daemon of its own."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.site = experiment(folder, OPTIONS)
        for name in ("inbox", "strain", "dagster_home"):
            (folder / name).mkdir()
        (folder / "dagster_home" / "dagster.yaml").write_text(DAGSTER_YAML)
        self.ledger = Ledger(folder / "automation" / "files.jsonl")

    def workspace(self) -> Workspace:
        return Workspace(config_of(self.folder), open_store(self.site.store_url))

    def searched(self) -> set[str]:
        return {p for p, m in self.workspace().store.manifests("background").items() if m.status == "ok"}


@pytest.fixture
def live(tmp_path):
    made = Live(tmp_path)
    yield made
    made.stop()


def drop(made: Path, inbox: Path, *, slowly: bool) -> None:
    """Puts a file into the inbox: written under its name in two parts, or moved there whole."""
    if not slowly:
        shutil.move(made, inbox / made.name)
        return
    data = made.read_bytes()
    with open(inbox / made.name, "wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        time.sleep(1)
        file.write(data[len(data) // 2 :])
    made.unlink()


def play(live: Live, good: int, waves: int, cuts: dict[int, str], *, searching: bool = False) -> Played:
    """Drops files in waves, and after some of them ends the daemon: 'kill' everything at once, or 'stop' it.

    Args:
        searching: end it in the middle of a search.
    """
    files, keys, bad = files_of(live.folder / "made", good, seed=7)
    total, inbox = len(files), live.folder / "inbox"
    live.start()
    size, seen = -(-total // waves), 0
    for wave in range(waves):
        for number, path in enumerate(files[wave * size : (wave + 1) * size]):
            drop(path, inbox, slowly=number % 25 == 3)
            time.sleep(0.02)
        told = min(total, (wave + 1) * size)
        if wave in cuts:
            # some files of this wave have been looked at
            live.wait_for(lambda told=told: len(live.ledger.read()) > told - size, 600, "the first files of a wave")
            if searching:
                live.wait_for(lambda seen=seen: len(live.searched()) > seen + 5 and not live.quiet(), 1200, "a search to be under way")
            live.power_cut() if cuts[wave] == "kill" else live.stop()
            seen = len(live.searched())
            live.start()
        live.wait_for(lambda told=told: len(live.ledger.read()) >= told, 1200, "every file of a wave to be looked at")
    live.wait_for(lambda: live.searched() >= keys, 3000, "every good segment to be searched")

    live.wait_for(live.quiet, 600, "the end of all runs")
    time.sleep(10 * OPTIONS["poll_seconds"])  # whatever were to be started twice would be by now
    assert live.quiet()
    live.stop()
    assert not live.processes()
    return played(live, keys, bad)


class Played(NamedTuple):
    """What a daemon has made of the files that were dropped.

    Attributes:
        found: verdict -> number of files.
        missing: good segments that were not searched, and searched ones that were not asked for.
        twice: segments that were made more than once.
        reported: bad files -> how often each stands on the page of incoming files, where it is not once.
        runs: kind of run -> number.
    """

    found: Counter[str]
    missing: set[str]
    twice: dict[str, int]
    reported: dict[str, int]
    runs: Counter[str]


def played(live: Live, keys: set[str], bad: set[str]) -> Played:
    found = Counter(e.verdict for e in live.ledger.read())
    versions = {k: sum(p.is_dir() for p in (live.folder / "store" / "background" / k).iterdir()) for k in keys}
    with live.instance() as instance:
        observed = instance.fetch_observations(dg.AssetKey(INCOMING), limit=5000).records
        reports = Counter(dict.fromkeys(bad, 0))
        reports.update(Path(r.asset_observation.metadata["file"].value).name for r in observed)
        made = Counter(
            # the collecting step says again what is there
            r.partition_key
            for r in instance.fetch_materializations(dg.AssetKey("background"), limit=10000).records
            if "make_background" in r.event_log_entry.step_key
        )
        runs = instance.get_runs()
    run_keys = Counter(r.tags["dagster/run_key"] for r in runs)
    twice = {k: n for counted in (versions, made, run_keys) for k, n in counted.items() if n > 1}
    reported = {name: n for name, n in reports.items() if n != 1 or name not in bad}
    missing = keys ^ live.searched() | keys ^ set(live.workspace().partitions())
    told = Played(found, missing, twice, reported, Counter(r.tags[TAG] for r in runs))
    print(json.dumps(told._asdict(), default=sorted))
    return told


def once(told: Played, good: int, cuts: int) -> bool:
    """Whether each good file was searched once and each bad one reported once, and no run was started in vain."""
    tens = -(-good // 10)
    assert told.found == {"good": good, "duplicate": tens, "bad": 2 * tens}
    assert (told.missing, told.twice, told.reported) == (set(), {}, {})
    # a run of the table and one of the search for each batch, and a try again for what a kill cut off
    return told.runs["search"] <= told.runs["segments"] + 2 * cuts


@pytest.mark.timeout(1800)
def test_a_daemon_that_is_killed_searches_each_good_file_once(live):
    told = play(live, good=8, waves=1, cuts={0: "kill"})
    assert once(told, good=8, cuts=1)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_five_hundred_files_and_a_daemon_that_is_restarted_twice(live):
    told = play(live, good=385, waves=5, cuts={1: "kill", 3: "stop"}, searching=True)
    assert once(told, good=385, cuts=2)
