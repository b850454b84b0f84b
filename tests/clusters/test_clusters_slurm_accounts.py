"""A cluster that keeps accounts: what killed jobs used, and what became of jobs that the controller has forgotten."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from conftest import started, wait_until
from slurm_cluster import SlurmCluster

from aframe_ops.executor.base import Request
from aframe_ops.executor.scheduler import BatchJob, Phase
from aframe_ops.executor.slurm import Slurm
from aframe_ops.sites.slurm import SlurmSite


@pytest.fixture(scope="module")
def accounted() -> Iterator[SlurmCluster]:
    yield from started(accounting=True, memory_s=2)


@pytest.fixture
def scheduler(accounted, monkeypatch) -> Slurm:
    monkeypatch.setenv("SLURM_CONF", str(accounted.conf))
    return Slurm(SlurmSite(signal_seconds=0))


def test_a_killed_job_cannot_say_what_it_used_but_the_accounts_can(accounted, new_toy):
    toy = new_toy(accounted)
    code, output = toy.run("killed", timeout=240)
    assert code == 0, output
    job = re.search(r"its slurm job (\d+) was killed by SIGKILL", output)[1]
    assert not list((toy.path / "logs").glob("*/killed.0.usage"))
    assert re.search(rf"killed - ENGINE_EVENT - slurm: job {job} used \d+% of 1 core for \d+ s, 0\.\d+ of 0\.6 GB", output), output


def test_a_job_that_the_controller_has_forgotten_is_looked_up(accounted, scheduler, tmp_path):
    request = Request(memory_gb=0.1, time_min=5)
    commands = {"ends": "exit 0", "fails": "exit 3", "dies": "kill -9 $$"}
    ids = {}
    for name, command in commands.items():
        job = BatchJob(name, request, 0, ("/bin/bash", "-c", command), tmp_path / "none", tmp_path / name, tmp_path)
        ids[scheduler.submit(job)] = name
    wait_until(lambda: not set(ids) & set(accounted.jobs()), 150, "the controller to forget")
    states = scheduler.poll(list(ids))
    assert {s.phase for s in states.values()} == {Phase.ENDED}
    assert {ids[i]: s.words for i, s in states.items()} == {
        "ends": "ended with exit code 0 without reporting a result",
        "fails": "ended with exit code 3 without reporting a result",
        "dies": "was killed by SIGKILL (by hand, or because memory ran out)",
    }
    assert scheduler.poll(["1"]) == {}


@pytest.mark.parametrize(
    ("name", "command", "said"),
    [
        ("slow", ("update", "jobid={}", "timelimit=0:01"), "was killed at its time limit (TIMEOUT) of 5 min"),
        ("lost", ("update", "nodename={host}", "state=down", "reason=test"), "was lost with its node (NODE_FAIL)"),
    ],
)
def test_what_an_administrator_or_a_node_may_do(accounted, scheduler, tmp_path, name, command, said):
    request = Request(memory_gb=0.1, time_min=5)
    job = BatchJob(f"sleeps-{name}", request, 0, ("/bin/sleep", "120"), tmp_path / "none", tmp_path / name, tmp_path)
    id = scheduler.submit(job)
    assert scheduler.find(f"sleeps-{name}") == id
    wait_until(lambda: scheduler.poll([id])[id].phase is Phase.RUNNING, 60, "the job to run")
    done = accounted.client("scontrol", *(w.format(id, host=accounted.host) for w in command))
    assert done.returncode == 0, done.stderr
    wait_until(lambda: scheduler.poll([id])[id].phase is Phase.ENDED, 120, "the job to end")
    assert scheduler.poll([id])[id].words == said
    accounted.client("scontrol", "update", f"nodename={accounted.host}", "state=resume")
