"""What is HTCondor's own: holds, evictions, transferred files, answers that cannot be trusted. Against the stand-in of `condor_pool`."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import condor_pool
import pytest
from conftest import wait_until
from hostile import job_for

from aframe_ops.executor.base import Request
from aframe_ops.executor.htcondor import HTCondor, description
from aframe_ops.executor.scheduler import Phase, Refused, Unreachable
from aframe_ops.executor.userlog import parse
from aframe_ops.sites.htcondor import HTCondorSite

TRANSCRIPTS = condor_pool.SHARED / "transcripts"


@pytest.fixture
def pool(htcondor, monkeypatch):
    monkeypatch.setenv("PATH", htcondor.env["PATH"])
    return htcondor


def ended(scheduler: HTCondor, id: str, timeout: float = 90) -> str:
    seen = {}

    def over() -> bool:
        seen.update(scheduler.poll([id]))
        return id in seen and seen[id].phase is Phase.ENDED

    wait_until(over, timeout, f"job {id} to end")
    return seen[id].words


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("exit 0", "ended with exit code 0 without reporting a result"),
        ("exit 7", "ended with exit code 7 without reporting a result"),
        ("kill -9 $$", "was killed by SIGKILL (by hand, or because memory ran out)"),
    ],
)
def test_ends_of_jobs_by_their_log_and_by_the_history_alone(pool, tmp_path, command, said):
    scheduler = HTCondor(HTCondorSite())
    job = job_for(tmp_path, 0, ("/bin/bash", "-c", command))
    id = scheduler.submit(job)
    assert ended(scheduler, id) == said
    (tmp_path / "logs" / "0.condor").unlink()
    other = HTCondor(HTCondorSite())
    assert ended(other, id) == said
    assert other.poll(["99999.0"]) == {}
    other.cancel(["99999.0"])


def test_a_job_that_its_user_holds_waits_and_one_that_is_held_for_a_fault_ends_and_leaves_the_queue(pool, tmp_path):
    scheduler = HTCondor(HTCondorSite(commands={"periodic_hold": "JobStatus == 99"}))
    id = scheduler.submit(job_for(tmp_path, 0, ("/bin/sleep", "60")))
    wait_until(lambda: scheduler.poll([id])[id].phase is Phase.RUNNING, 60, "the job to run")
    pool.client("condor_hold", "-reason", "let me see", id)
    state = scheduler.poll([id])[id]
    assert state.phase is Phase.PENDING and state.stuck
    assert state.words.startswith("let me see (by user ") and f"`condor_release {id}`" in state.words
    scheduler.cancel([id])
    assert ended(scheduler, id).startswith("was removed from the queue: via condor_rm")

    scheduler = HTCondor(HTCondorSite(shared_disk=False))
    job = job_for(tmp_path, 1, ("/bin/true",))  # its spec is not there
    id = scheduler.submit(job)
    words = ended(scheduler, id)
    assert words.startswith("was put on hold: Transfer input files failure at access point") and str(job.spec) in words
    assert words.endswith("(hold code 13, subcode 2); files could not be brought to the node")
    assert pool.ads(id)["JobStatus"] == 3


def test_a_job_past_its_limit_is_held_and_named(pool, tmp_path):
    scheduler = HTCondor(HTCondorSite())
    id = scheduler.submit(job_for(tmp_path, 0, ("/bin/sleep", "200"), request=Request(memory_gb=0.1, time_min=1)))
    said = ended(scheduler, id, 150)
    assert said == "was stopped at its time limit of 1 min: The job exceeded allowed job duration of 01:00 (hold code 46, subcode 0)"


def test_a_job_that_was_sent_away_is_over_and_is_never_started_again(pool, tmp_path):
    scheduler = HTCondor(HTCondorSite())
    marks = tmp_path / "marks"
    id = scheduler.submit(job_for(tmp_path, 0, ("/bin/bash", "-c", f"echo x >> {marks}; sleep 100")))
    wait_until(marks.exists, 60, "the job to run")
    # the stand-in does not evict, but hold and release put a job that has started back into the queue
    pool.client("condor_hold", id)
    pool.client("condor_release", id)
    assert ended(scheduler, id).startswith("had to leave its node, and is not started a second time")
    assert marks.read_text() == "x\n" and pool.ads(id)["JobStatus"] == 3


def test_an_unanswered_submission_is_found_by_its_log_and_by_its_name(pool, tmp_path):
    scheduler = HTCondor(HTCondorSite(commands={"hold": "true"}))
    job = job_for(tmp_path, 0, ("/bin/true",))
    pool.stop_controller()
    try:
        with pytest.raises(Unreachable, match="address of local schedd"):
            scheduler.submit(job)
        with pytest.raises(Unreachable):
            scheduler.find(job.name)
        with pytest.raises(Unreachable):
            scheduler.poll(["1.0"])
        with pytest.raises(Unreachable):
            scheduler.cancel(["1.0"])
    finally:
        pool.start_controller()
    assert scheduler.find(job.name) is None
    text = description(job, HTCondorSite(commands={"hold": "true"}), {})
    done = subprocess.run(["condor_submit", "-terse", "-"], input=text, capture_output=True, text=True)
    id = done.stdout.split()[0]
    assert HTCondor(HTCondorSite()).find(job.name) == id
    assert scheduler.find(job.name) == id and scheduler.poll([id])[id].stuck
    scheduler.cancel([id])


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo '<html>busy</html>'", "where JSON was expected"),
        ("echo '-- Failed to fetch ads from: <127.0.0.1:9618> : vm' >&2", "Failed to fetch ads"),
        ("echo 'CEDAR:6001:Failed to connect to <127.0.0.1:9618>' >&2; exit 1", "CEDAR:6001"),
        ("exit 1", "exit code 1 without a word"),
    ],
)
def test_a_strange_answer_says_nothing_about_jobs(tmp_path, monkeypatch, script, said):
    (tmp_path / "condor_q").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "condor_q").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Unreachable, match=said):
        HTCondor(HTCondorSite()).poll(["12.0"])


def test_what_the_parser_of_htcondor_makes_of_a_description(pool, tmp_path):
    site = HTCondorSite(
        accounting_group="ligo.dev.o4.cbc.test",
        container_image="osdf:///igwn/aframe.sif",
        requirements='HasSingularity || Machine == "x"',
        gpu={"minimum_capability": 7.5, "require": 'DeviceName == "NVIDIA H200"'},
        oauth_services=["scitokens"],
        commands={"+WantIGWN": "true", "hold": "true", "priority": "5"},
    )
    request = Request(cpus=2, memory_gb=4, gpus=1, gpu_memory_gb=40, time_min=30, disk_gb=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGO_GROUP", "not.used")
        patch.setenv("LIGO_USERNAME", "albert.einstein")
        id = HTCondor(site).submit(job_for(tmp_path, 0, ("/bin/true",), request=request))
    ad = pool.ads(id)
    pool.client("condor_rm", id)
    wanted = {
        "AcctGroup": "ligo.dev.o4.cbc.test",
        "AcctGroupUser": "albert.einstein",
        "RequestCpus": 2,
        "RequestMemory": 3815,
        "RequestDisk": 9765625,
        "RequestGPUs": 1,
        "GPUsMinMemory": 38147,
        "ContainerImage": "aframe.sif",
        "TransferInput": "osdf:///igwn/aframe.sif",
        "OAuthServicesNeeded": "scitokens",
        "AllowedJobDuration": 1800,
        "KillSig": "SIGINT",
        "OnExitRemove": True,
        "PeriodicRelease": False,
        "WantIGWN": True,
        "JobPrio": 5,
    }
    assert {k: ad.get(k) for k in wanted} == wanted
    assert "NumJobStarts == 0" in str(ad["Requirements"]) and 'Machine == "x"' in str(ad["Requirements"]).replace('\\"', '"')


def test_an_account_from_the_environment_is_checked(tmp_path):
    with pytest.raises(Refused, match=r"LIGO_GROUP = 'a.*queue 100' is no accounting group"):
        description(job_for(tmp_path, 0, ("/bin/true",)), HTCondorSite(), {"LIGO_GROUP": "a\nqueue 100"})


def test_a_job_without_a_shared_disk_has_its_files_brought(pool, new_toy):
    """The stand-in's jobs do see this machine's disk; so what they open is what is looked at."""
    setup = f"    export FROM_SETUP=1 PYTHONPATH={os.environ.get('PYTHONPATH') or os.getcwd()}\n"
    site = f"store: {{root: 's3://bucket/prefix'}}\n{pool.site}{setup}  shared_disk: false\n"
    toy = new_toy(pool, site, PLANTED="planted-secret-31aa")
    code, output = toy.run("fine", timeout=400)
    assert code == 0, output
    (ran,) = toy.notes("fine")
    execute = str(pool.folder / "execute")
    for place in (ran["cwd"], ran["AFRAME_CONFIG"], ran["AFRAME_STEP_LOG"]):
        assert place.startswith(execute), ran
    assert ran["seed"] == 7
    assert toy.log("fine.0.out").read_text() == "fine says hello\n"
    assert "aframe: fine speaks to the user" in output
    assert json.loads(toy.log("fine.0.usage").read_text())["elapsed_s"] > 0
    found = subprocess.run(["grep", "-rlaF", "planted-secret-31aa", str(toy.path), execute], capture_output=True, text=True)
    assert found.stdout == ""


def test_logs_of_a_real_pool_are_read():
    """Written by HTCondor 25 daemons once; the stand-in writes the same, as far as it goes."""
    if reason := condor_pool.absent():
        pytest.skip(reason)
    events = [e for p in sorted(TRANSCRIPTS.glob("*.log")) for e in parse(p.read_text())]
    held = [e.text for e in events if e.number == 12]
    assert any("Code 46 Subcode 0" in text and "The job exceeded allowed job duration of 00:01" in text for text in held)
    ends = {e.id: e.exit() for e in events if e.number == 5}
    assert ends["16.0"] == (0, 9) and ends["13.0"] == (0, 0) and ends["2.0"] == (3, 0)
    assert {e.reason() for e in events if e.number == 9} == {"via condor_rm (by user condortest)", "bye (by user condortest)"}
    (evicted,) = (e for e in events if e.number == 4 and e.id == "4.0")
    assert evicted.reason() == "via condor_rm (by user condortest)"
    used = evicted.usage()
    assert (used.elapsed_s, used.cpu_s) == (20.0, 0) and used.max_memory_gb == pytest.approx(2 * 2**20 / 1e9)
    assert (TRANSCRIPTS / "job.log").read_text().count("\n...\n") == len(list(parse((TRANSCRIPTS / "job.log").read_text())))


def test_files_of_a_job_are_for_its_owner(pool, tmp_path):
    scheduler = HTCondor(HTCondorSite(commands={"hold": "true"}))
    id = scheduler.submit(job_for(tmp_path, 0, (sys.executable, "-c", "pass")))
    scheduler.cancel([id])
    assert stat.S_IMODE((tmp_path / "logs" / "0.sh").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "logs" / "0.submit").stat().st_mode) == 0o600
