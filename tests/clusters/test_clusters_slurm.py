"""What only SLURM has: arrays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import wait_until

from aframe_ops.executor.base import Request
from aframe_ops.executor.scheduler import BatchJob, Phase, Refused, Unreachable
from aframe_ops.executor.slurm import Slurm
from aframe_ops.sites.slurm import SlurmSite


def jobs_of(tmp_path: Path, commands: list[tuple[str, ...]]) -> list[BatchJob]:
    return [
        BatchJob(f"{tmp_path.name}-{i}", Request(memory_gb=0.1), 0, argv, tmp_path / f"{i}.json", tmp_path / f"{i} it's", tmp_path)
        for i, argv in enumerate(commands)
    ]


def test_an_array_has_files_states_and_ends_of_its_own(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    words = [("echo", "a b"), ("bash", "-c", "exit 3"), ("bash", "-c", "kill -9 $$"), ("sleep", "600"), ("echo", "$(touch x)", "'", "\n")]
    scheduler, jobs = Slurm(SlurmSite()), jobs_of(tmp_path, words)
    ids = scheduler.submit_together(jobs)
    array = ids[0].partition("_")[0]
    assert ids == [f"{array}_{i}" for i in range(5)]
    assert [scheduler.find(job.name) for job in jobs] == list(ids)

    def ended() -> bool:
        states = scheduler.poll(ids)
        return [states[i].phase for i in ids] == [Phase.ENDED] * 3 + [Phase.RUNNING, Phase.ENDED]

    wait_until(ended, 60, "all but one to end")
    said = {i: s.words for i, s in scheduler.poll(ids).items()}
    assert said[ids[1]] == "ended with exit code 3 without reporting a result" and "was killed by SIGKILL" in said[ids[2]]
    assert Path(f"{jobs[0].log}.out").read_text() == "a b\n" and Path(f"{jobs[4].log}.out").read_text() == "$(touch x) ' \n\n"
    scheduler.cancel([ids[3]])
    wait_until(lambda: scheduler.poll(ids)[ids[3]].phase is Phase.ENDED, 30, "the last one to end")
    assert not (tmp_path / "x").exists()


def test_of_an_array_only_so_many_run_at_once(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    scheduler = Slurm(SlurmSite(array_limit=2))
    ids = scheduler.submit_together(jobs_of(tmp_path, [("sleep", "600")] * 4))
    try:
        wait_until(lambda: [s.phase for s in scheduler.poll(ids).values()].count(Phase.RUNNING) == 2, 30, "two to run")
        states = scheduler.poll(ids)
        assert len(states) == 4 and {s.words for s in states.values() if s.phase is Phase.PENDING} == {"JobArrayTaskLimit"}
        assert not any(s.stuck for s in states.values())
    finally:
        scheduler.cancel(ids)
    wait_until(lambda: {s.phase for s in scheduler.poll(ids).values()} == {Phase.ENDED}, 30, "all to end")


def test_an_array_that_is_refused_or_not_answered(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(slurm.conf))
    jobs = jobs_of(tmp_path, [("true",)] * 2)
    with pytest.raises(Refused, match=r"change slurm\.partition"):
        Slurm(SlurmSite(partition="nowhere")).submit_together(jobs)
    lost = Slurm(SlurmSite(command=["/bin/false"]))
    with pytest.raises((Unreachable, Refused)):
        lost.submit_together(jobs)
    assert Slurm(SlurmSite()).find(jobs[1].name) is None


def test_a_fan_out_is_one_array(slurm, new_toy):
    toy = new_toy(slurm, TOY_PARTS="6")
    code, output = toy.run("fanned", timeout=400)
    assert code == 0, output
    ids = {p.name.rsplit(".", 2)[0]: json.loads(p.read_text())["id"] for p in (toy.path / "logs").glob("*/fanned.part*.0.job")}
    assert len(ids) == 6 and len({i.partition("_")[0] for i in ids.values()}) == 1
    assert {i.partition("_")[2] for i in ids.values()} == set("012345")
    assert len(toy.notes("part3")) == 2, "the one that was killed was tried again"
    (again,) = (toy.path / "logs").glob("*/fanned.part*.1.job")
    assert "_" not in json.loads(again.read_text())["id"]


def test_a_line_of_the_setup_that_fails_is_told(slurm, new_toy):
    toy = new_toy(slurm, slurm.site + "    ls /nonexistent-module\n")
    code, output = toy.run("fine", timeout=400)
    assert code == 1 and not toy.notes("fine")
    assert "without reporting a result (slurm.setup of site.yaml failed: ls /nonexistent-module)" in output
