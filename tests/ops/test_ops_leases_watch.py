"""How batch systems are asked about jobs of others: seldom, all at once, and without altering anything."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from aframe_assets.store.leases import Lease
from aframe_ops.executor.htcondor import HTCondor
from aframe_ops.executor.scheduler import JobState, Phase, Scheduler
from aframe_ops.executor.schedulers import SCHEDULERS
from aframe_ops.leases_watch import ELSEWHERE_S, Watch, now
from aframe_ops.site import SiteConfig
from aframe_ops.sites.htcondor import HTCondorSite


class Asked(Scheduler):
    """Says that every job runs, and keeps what it was asked."""

    name = "asked"

    def __init__(self):
        self.questions: list[tuple[str, tuple[str, ...]]] = []

    def submit(self, job):
        raise AssertionError("nobody submits here")

    def find(self, name: str) -> str | None:
        raise AssertionError("one by one")

    def find_many(self, names: Sequence[str]) -> Mapping[str, str]:
        self.questions.append(("find", tuple(names)))
        return {name: f"id-of-{name}" for name in names}

    def poll(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        raise AssertionError("polling may end jobs")

    def watch(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        self.questions.append(("watch", tuple(ids)))
        return {id: JobState(Phase.RUNNING) for id in ids}

    def cancel(self, ids):
        raise AssertionError


@pytest.fixture
def asked(monkeypatch) -> Asked:
    made = Asked()
    monkeypatch.setitem(SCHEDULERS, "asked", lambda site, run_id: made)
    return made


def lease(name: str, run: str = "run", **given) -> Lease:
    about = {"step": "s", "attempt": 0, "host": "h", "user": "u", "directory": "/d", "when": now(), "asset": "a"}
    return Lease(**{**about, "backend": "asked", "name": name, "run": run, **given})


def test_five_hundred_leases_are_one_question(asked):
    watch = Watch(SiteConfig(directory=Path("/nowhere")), 30.0)
    leases = [lease(f"j{i}", run=f"run-{i % 50}", job=str(i)) for i in range(500)]
    assert watch.over(leases) == set()
    assert watch.over(leases) == set()
    assert [(what, len(about)) for what, about in asked.questions] == [("watch", 500)]
    assert watch.over([lease("new", job="501")]) == set() and len(asked.questions) == 1, (
        "it is asked about with the others, when it is time"
    )


def test_names_are_looked_for_only_where_there_is_no_id_and_all_at_once(asked):
    watch = Watch(SiteConfig(directory=Path("/nowhere")), 0.0)
    watch.over([lease("a", job="1"), lease("b"), lease("c")])
    assert asked.questions == [("find", ("b", "c")), ("watch", ("1", "id-of-b", "id-of-c"))]


def test_a_job_of_another_place_is_taken_to_go_on_for_as_long_as_it_may(asked):
    asked.place = "here"
    watch = Watch(SiteConfig(directory=Path("/nowhere")), 0.0)
    theirs = lease("theirs", job="1", place="there", time_min=60)
    assert watch.over([theirs, lease("ours", job="2", place="here"), lease("unknown", job="3")]) == set()
    assert asked.questions == [("watch", ("2", "3"))] and "a job of there" in watch.trouble(theirs)
    assert watch.over([lease("old", job="1", place="there", time_min=60, when="2020-01-01T00:00:00+00:00")]) == {"old"}
    assert ELSEWHERE_S >= 3600, "it queues before it runs"


CONDOR = """#!/bin/sh
printf '%s\\n' "$(basename "$0")" "$@" >> {folder}/said
echo . >> {folder}/said
cat {folder}/$(basename "$0") 2>/dev/null
"""


@pytest.fixture
def condor(tmp_path, monkeypatch):
    """An HTCondor whose commands print the file of their name, and keep what they were told."""
    for name in ("condor_q", "condor_rm", "condor_history", "condor_config_val"):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(CONDOR.format(folder=tmp_path))
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path


def said(condor: Path) -> list[list[str]]:
    path = condor / "said"
    return [words.split("\n") for words in path.read_text().removesuffix("\n.\n").split("\n.\n")] if path.exists() else []


def test_jobs_of_other_users_are_found_by_their_names(condor):
    ads = [{"ClusterId": 7, "ProcId": 0, "JobBatchName": "a.b-1"}, {"ClusterId": 8, "ProcId": 0, "JobBatchName": "other"}]
    (condor / "condor_q").write_text(json.dumps(ads))
    for prefix in ([], [shutil.which("sh"), "-c", 'eval "$*"', "ssh"]):  # ssh puts its words together for a shell
        assert HTCondor(HTCondorSite(command=prefix)).find_many(["a.b-1", "c_2"]) == {"a.b-1": "7.0"}
    for words in said(condor):
        assert "-allusers" in words and words[-1] == 'stringListMember(JobBatchName,"a.b-1,c_2")'
    with pytest.raises(ValueError, match="no name"):
        HTCondor(HTCondorSite()).find('x"||true')


@pytest.mark.parametrize("ad", [{"JobStatus": 5, "HoldReasonCode": 13}, {"JobStatus": 1, "NumJobStarts": 1}])
def test_watching_jobs_of_others_removes_none(condor, ad):
    (condor / "condor_q").write_text(json.dumps([{"ClusterId": 7, "ProcId": 0, **ad}]))
    scheduler = HTCondor(HTCondorSite())
    assert scheduler.watch(["7.0"])["7.0"].phase is Phase.ENDED
    assert "condor_rm" not in [words[0] for words in said(condor)] and "-allusers" in said(condor)[0]
    scheduler.poll(["7.0"])
    assert "condor_rm" in [words[0] for words in said(condor)]


def test_the_access_point_is_the_place(condor):
    (condor / "condor_config_val").write_text("ap1.example.org\n")
    assert HTCondor(HTCondorSite()).place == "ap1.example.org"
    shutil.rmtree(condor / "bin")
    assert HTCondor(HTCondorSite()).place == ""
