"""Segments that come late, taken through a whole search: by Dagster's daemon alone, and by a user. What there was stays as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from live_daemon import Daemon
from tiny_run import TINY

from aframe_ops.automation.sensors import DOWNSTREAM, TAG

LATE = [1240610600, 1240610700]
KEY = "1240610600-100"
ONE_FOR_ALL = {"segments/None", "background_index/None", *(f"{a}/None" for a in DOWNSTREAM)}
"""What reads all segments, and is made again with each that comes."""
WITH_LATE = {"segments": TINY["segments"] | {"fixed": [*TINY["segments"]["fixed"], LATE]}}


def require_rest_untouched(run, before: dict[str, str], made: dict[str, str]) -> None:
    """All but what reads every segment is as it was, byte for byte and not made again; what is of the new one is there."""
    now, again = run.contents(), run.made_at()
    assert all(now.values()), "the search is complete"
    assert {k for k in now if k not in before} == {f"{a}/{KEY}" for a in ("background", "injections", "inference_results")}
    # the choice of PSDs is looked at again, and comes out the same
    assert {k for k in before if again[k] != made[k]} <= ONE_FOR_ALL | {"psd/None"}
    assert {k for k in before if now[k] != before[k]} <= ONE_FOR_ALL
    assert {"events/None", "sensitive_volume/None"} <= {k for k in before if now[k] != before[k]}


def sensor(daemon: Daemon, *words: str) -> None:
    command = [sys.executable, "-m", "dagster", "sensor", *words, "-m", "aframe_ops.definitions"]
    subprocess.run(command, cwd=daemon.folder, env=daemon.env, check=True, timeout=600)


def ticked(daemon: Daemon, name: str) -> bool:
    with daemon.instance() as instance:
        states = {s.instigator_name: s for s in instance.all_instigator_state()}
        data = states[name].instigator_data if name in states else None
        return bool(data and data.last_tick_timestamp)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_daemon_searches_a_late_segment_with_the_network_that_there_is(tiny_run, tmp_path):
    run = tiny_run.copy_to(tmp_path / "run")
    before, made = run.contents(), run.made_at()
    automation = {"on": True, "poll_seconds": 5, "retry_minutes": 0.1}
    with (run.path / "site.yaml").open("a") as site:
        site.write(f"automation: {json.dumps(automation)}\n")
    daemon = Daemon(run.path)
    sensor(daemon, "start", "follow_new_results")
    with daemon.instance() as instance:
        known = {r.run_id for r in instance.get_runs()}
    daemon.start()
    try:
        daemon.wait_for(lambda: ticked(daemon, "follow_new_results"), 900, "a first look of what follows")
        daemon.stop()
        run.write(TINY | WITH_LATE)
        daemon.start()
        daemon.wait_for(lambda: run.workspace().complete("inference_results", KEY) is not None, 2400, "the search of the late segment")
        daemon.wait_for(lambda: run.workspace().complete("report") is not None and daemon.quiet(), 1500, "what follows from it")
    finally:
        daemon.stop()
    require_rest_untouched(run, before, made)
    with daemon.instance() as instance:
        new = [r for r in instance.get_runs() if r.run_id not in known]
    assert {r.status for r in new} == {dg.DagsterRunStatus.SUCCESS}
    assert sorted(r.tags[TAG] for r in new if r.tags[TAG] != "follow") == ["search", "segments"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_user_searches_a_late_segment_and_one_that_is_retired_changes_nothing_that_was_made(tiny_run, tmp_path):
    run = tiny_run.copy_to(tmp_path / "run")
    before, made = run.contents(), run.made_at()
    run.write(TINY | WITH_LATE)
    path = str(run.path)
    assert KEY in run.aframe("segments", "sync", path).stdout
    plan = run.aframe("plan", path).stdout
    assert "made before, and kept unless what they wait for comes out otherwise: " in plan and ", model," in plan
    run.run(timeout=3000)
    require_rest_untouched(run, before, made)
    run.aframe("segments", "retire", path, "--segments", KEY, "--reason", "a test")
    run.run(timeout=3000)
    now = run.contents()
    assert {k: v for k, v in now.items() if not k.startswith(("report/", "candidates/"))} == {
        k: v for k, v in before.items() if not k.startswith(("report/", "candidates/"))
    }
    assert Path(run.path / "store" / "inference_results" / f"{KEY}.json").exists()
