"""Dagster's own daemon with the sensors on, while files are dropped: good, double, late, damaged; and it is killed and started again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dropped_files import config_of, experiment, files_of

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


class Live:
    """A run directory with a daemon of its own."""

    def __init__(self, folder: Path):
        self.folder, self.daemon = folder, None
        self.site = experiment(folder, OPTIONS)
        for name in ("inbox", "strain", "dagster_home"):
            (folder / name).mkdir()
        (folder / "dagster_home" / "dagster.yaml").write_text(DAGSTER_YAML)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AFRAME_", "AWS_", "DAGSTER_"))}
        paths = {"DAGSTER_HOME": str(folder / "dagster_home"), "AFRAME_CONFIG": str(folder / "aframe.yaml")}
        patient = {"DAGSTER_GRPC_TIMEOUT_SECONDS": "600", "DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS": "600"}
        self.env = clean | paths | patient | {"OMP_NUM_THREADS": "1"}
        self.ledger = Ledger(folder / "automation" / "files.jsonl")

    def start(self) -> None:
        words = [sys.executable, "-c", "from dagster._daemon.cli import main; main()", "run", "-m", "aframe_ops.definitions"]
        with (self.folder / "daemon.log").open("ab") as log:
            # a suite that was started in the background ignores SIGINT, and so would all its children
            default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
            self.daemon = subprocess.Popen(words, cwd=self.folder, env=self.env, stdout=log, stderr=log, start_new_session=True, **default)

    def processes(self) -> list[psutil.Process]:
        """All that work for this run directory: the daemon, its code server, workers of runs and their steps."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get("DAGSTER_HOME") == self.env["DAGSTER_HOME"] and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def power_cut(self) -> None:
        found = self.processes()
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.daemon.wait()
        psutil.wait_procs(found, timeout=60)

    def stop(self) -> None:
        """As Ctrl-C does; what has not ended by then is killed."""
        if self.daemon is None or self.daemon.poll() is not None:
            return
        self.daemon.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.daemon.wait(60)
        self.power_cut()

    def wait_for(self, condition, timeout: float, what: str) -> None:
        end = time.monotonic() + timeout
        while not condition():
            log = self.folder / "daemon.log"
            assert self.daemon.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, f"waited {timeout:g} s for {what}; {log.read_text()[-3000:]}"
            time.sleep(0.5)

    def workspace(self) -> Workspace:
        return Workspace(config_of(self.folder), open_store(self.site.store_url))

    def searched(self) -> set[str]:
        return {p for p, m in self.workspace().store.manifests("background").items() if m.status == "ok"}

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(self.env["DAGSTER_HOME"])


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


def play(live: Live, good: int, waves: int, cuts: dict[int, str]) -> None:
    """Drops files in waves, and after some of them ends the daemon: 'kill' everything at once, or 'stop' it."""
    files, keys, bad = files_of(live.folder / "made", good, seed=7)
    total, inbox = len(files), live.folder / "inbox"
    live.start()
    size = -(-total // waves)
    for wave in range(waves):
        for number, path in enumerate(files[wave * size : (wave + 1) * size]):
            drop(path, inbox, slowly=number % 25 == 3)
            time.sleep(0.02)
        told = min(total, (wave + 1) * size)
        if wave in cuts:
            # in the middle of this wave: some of its files have been looked at
            live.wait_for(lambda told=told: len(live.ledger.read()) > told - size, 600, "the first files of a wave")
            live.power_cut() if cuts[wave] == "kill" else live.stop()
            live.start()
        live.wait_for(lambda told=told: len(live.ledger.read()) >= told, 1200, "every file of a wave to be looked at")
    live.wait_for(lambda: live.searched() >= keys, 3000, "every good segment to be searched")

    going = [s for s in dg.DagsterRunStatus if s.value in ("QUEUED", "STARTING", "STARTED")]

    def quiet() -> bool:
        with live.instance() as instance:
            return not instance.get_runs(dg.RunsFilter(statuses=going))

    live.wait_for(quiet, 600, "the end of all runs")
    time.sleep(10 * OPTIONS["poll_seconds"])  # whatever were to be started twice would be by now
    assert quiet()
    live.stop()
    assert not live.processes()
    require_once(live, keys, bad, len(cuts))


def require_once(live: Live, keys: set[str], bad: set[str], cuts: int) -> None:
    """Each good segment is there and was made once, each bad file was reported once, and no run was started in vain."""
    good, entries = len(keys), live.ledger.read()
    found = Counter(e.verdict for e in entries)
    assert found == {"good": good, "duplicate": -(-good // 10), "bad": len(bad)}
    assert live.searched() == keys == set(live.workspace().partitions())
    for key in keys:
        versions = [p for p in (live.folder / "store" / "background" / key).iterdir() if p.is_dir()]
        assert len(versions) == 1, f"{key} was made {len(versions)} times"
    with live.instance() as instance:
        reports = [r.asset_observation for r in instance.fetch_observations(dg.AssetKey(INCOMING), limit=5000).records]
        assert sorted(Path(r.metadata["file"].value).name for r in reports) == sorted(bad)
        made = Counter()
        for record in instance.fetch_materializations(dg.AssetKey("background"), limit=10000).records:
            # the collecting step says again what is there
            made[record.partition_key] += "make_background" in record.event_log_entry.step_key
        twice = {k: n for k, n in made.items() if n > 1}
        assert not twice, "made once, and said once"
        runs = Counter(r.tags[TAG] for r in instance.get_runs())
        keys_of_runs = [r.tags["dagster/run_key"] for r in instance.get_runs()]
    assert len(set(keys_of_runs)) == len(keys_of_runs)
    # a run of the table and one of the search for each batch, and a try again for what a kill cut off
    batches = runs["segments"]
    assert runs["search"] <= batches + 2 * cuts, runs
    print(json.dumps({"files": len(entries), "found": found, "runs": runs}))


@pytest.mark.timeout(1800)
def test_a_daemon_that_is_killed_searches_each_good_file_once(live):
    play(live, good=8, waves=1, cuts={0: "kill"})


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_five_hundred_files_and_a_daemon_that_is_restarted_twice(live):
    play(live, good=385, waves=5, cuts={1: "kill", 3: "stop"})
