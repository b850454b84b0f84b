"""Jobs that outlive their run: waited for, taken over, ended. On a played batch system; SLURM's is in tests/clusters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from toy_run import Toy

sys.path.insert(0, str(Path(__file__).parent))

from lease_play import Play
from leased import TOY, activate, ask, await_, sleeper, step, store_of

from aframe_assets.config_load import load_config
from aframe_assets.store.leases import Leases
from aframe_assets.store.workspace import Workspace
from aframe_ops import leases_watch
from aframe_ops.executor.base import Attempt
from aframe_ops.leases import Asked, Claims
from aframe_ops.site import load_site

pytestmark = pytest.mark.toy(*TOY)


def read_until(process: subprocess.Popen, words: str) -> str:
    output = ""
    for line in process.stdout:
        output += line
        if words in line:
            return output
    raise AssertionError(f"never said {words!r}:\n{output}")


def submitted(toy: Toy) -> list[dict]:
    return [n for n in toy.notes("asked") if n["question"] == "submit"]


# --- whole runs ---------------------------------------------------------------------------------------------------------


def test_a_run_waits_for_the_job_of_a_killed_run_and_reads_what_it_made(toy):
    first = toy.start("table")
    (made,) = toy.wait_for("made", timeout=120)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = toy.start("table")
    said = read_until(second, "aframe: step table waits for play job")
    line = said.splitlines()[-1]
    job = (toy.log("table.0.job").parent.name, submitted(toy)[0]["name"])
    assert f"of run {made['run'][:8]}" in line and "which makes the same; to end that job: kill " in line, line
    assert job[0] == made["run"] and len(submitted(toy)) == 1
    (toy.notes_dir / "go").touch()
    rest, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said + rest
    assert len(toy.notes("made")) == 1 and len(toy.notes("quick")) == 1, said + rest
    assert "what it makes is complete; its job only reads it" in said + rest
    assert [(n["cpus"], n["memory"]) for n in submitted(toy)] == [(3, 8), (1, 2)], "what is only read need not queue for its cores"
    assert not Leases(store_of(toy)).all()


def test_two_runs_at_once_do_the_same_work_once(toy):
    (toy.notes_dir / "go").touch()
    with dg.DagsterInstance.from_config(str(toy.path / "dagster_home")) as made:  # SQLite's tables cannot be made twice at once
        made.get_runs()
    runs = [toy.start("table") for _ in range(2)]
    outputs = [run.communicate(timeout=180)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(outputs)
    assert len(toy.notes("made")) == 1, outputs
    assert not Leases(store_of(toy)).all()


# --- claims -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def claims(toy, monkeypatch):
    activate(toy, monkeypatch)
    yield lambda run: Claims(load_site(), load_config(), run)


def test_a_lease_is_met_waited_for_and_taken_over_when_its_job_is_gone(toy, claims):
    ours, theirs, book = claims("our-run"), claims("their-run"), Leases(store_of(toy))
    a, b = Attempt("their-run", "table", 0), Attempt("our-run", "table", 0)
    assert ask(theirs, a, "their-job").start
    id = sleeper(toy, "their-job")
    theirs.submitted({a: (id, "their-job")})
    ((key, lease),) = book.all().items()
    assert (lease.backend, lease.job, lease.run, lease.attempt, lease.asset) == ("play", id, "their-run", 0, "segments")
    assert key == Workspace(load_config(), store_of(toy)).wanted("segments").parts.key
    answer = ask(ours, b, "our-job")
    assert not answer.start and f"waits for play job {id} of run their-ru" in answer.news[0]
    assert ask(ours, b, "our-job") == (False, False, ()), "told once"
    assert list(book.get(key).lease.waiters) == ["our-run"]
    # not answering is not being gone
    (toy.notes_dir / "away").touch()
    time.sleep(0.5)
    answer = ask(ours, b, "our-job")
    assert not answer.start and "does not say what became of job" in answer.news[0] and "gone for lunch" in answer.news[0]
    time.sleep(3)
    assert not ask(ours, b, "our-job").start
    (toy.notes_dir / "away").unlink()
    Play(toy.notes_dir).cancel([id])
    answers = []
    await_(lambda: answers.append(ask(ours, b, "our-job")) or answers[-1].start)
    assert answers[-1].news[0].startswith(f"takes over from play job {id} of run their-ru")
    assert book.get(key).lease.name == "our-job"
    theirs.release(a)
    assert book.get(key).lease.name == "our-job", "nobody gives back what is another's"
    ours.release(b)
    assert not book.all()


def test_a_lease_without_a_job_is_respected_for_a_while_only(toy, claims):
    """Its run may be about to submit the job, or may have been killed just before."""
    ours, theirs = claims("our-run"), claims("their-run")
    assert ask(theirs, Attempt("their-run", "table", 0), "never-submitted").start
    b = Attempt("our-run", "table", 0)
    start = time.monotonic()
    assert not ask(ours, b, "our-job").start
    await_(lambda: ask(ours, b, "our-job").start)
    assert time.monotonic() - start >= leases_watch.UNKNOWN_S


def test_a_retry_takes_the_lease_of_the_attempt_before_it(toy, claims):
    ours, book = claims("our-run"), Leases(store_of(toy))
    assert ask(ours, Attempt("our-run", "table", 0), "job-0").start
    sleeper(toy, "job-0")
    assert ask(ours, Attempt("our-run", "table", 1), "job-1").start
    (lease,) = book.all().values()
    assert (lease.name, lease.attempt) == ("job-1", 1)


def test_chunks_that_were_cut_differently_still_meet(toy, claims, monkeypatch):
    """Leases are of artifacts, so a chunk waits for every job that makes some of it."""
    chunks = {"a": ["p1", "p2"], "b": ["p3", "p4"], "c": ["p2", "p3"], "d": ["p5"]}
    parts = {p: Workspace(load_config(), store_of(toy)).wanted("segments").parts.model_copy(update={"partition": p}) for p in
             ("p1", "p2", "p3", "p4", "p5")}  # fmt: skip
    monkeypatch.setattr(Claims, "_work", lambda self, context: [parts[p] for p in chunks[context.step.key]])

    def claim(run, *names):
        return run.ask([Asked(step({}, c), Attempt(run._run, c, 0), "play", f"job-{c}") for c in names])

    theirs, ours, book = claims("their-run"), claims("our-run"), Leases(store_of(toy))
    assert [answer.start for answer in claim(theirs, "a", "b")] == [True, True]
    ids = {c: sleeper(toy, f"job-{c}") for c in "ab"}
    met, free = claim(ours, "c", "d")
    assert not met.start and len(met.news) == 2 and free.start
    Play(toy.notes_dir).cancel([ids["a"]])
    time.sleep(0.4)
    assert not claim(ours, "c")[0].start
    assert {lease.name for lease in book.all().values()} == {"job-a", "job-b", "job-d"}, "all of a chunk's leases are taken, or none"
    Play(toy.notes_dir).cancel([ids["b"]])
    await_(lambda: claim(ours, "c")[0].start)
    assert sorted(lease.name for lease in book.all().values()) == ["job-a", "job-b", "job-c", "job-c", "job-d"]


def test_a_run_that_waits_reads_only_what_has_changed(toy, claims, monkeypatch):
    base = Workspace(load_config(), store_of(toy)).wanted("segments").parts
    chunks = {f"c{i}": [base.model_copy(update={"partition": f"p{i}-{j}"}) for j in range(8)] for i in range(6)}
    monkeypatch.setattr(Claims, "_work", lambda self, context: chunks[context.step.key])

    def claim(run):
        return run.ask([Asked(step({}, c), Attempt(run._run, c, 0), "play", f"job-{c}") for c in chunks])

    theirs, ours = claims("their-run"), claims("our-run")
    assert all(answer.start for answer in claim(theirs))
    ids = {c: sleeper(toy, f"job-{c}") for c in chunks}
    assert not any(answer.start for answer in claim(ours))
    signed = [lease for lease in Leases(store_of(toy)).all().values() if lease.waiters]
    assert sorted(lease.name for lease in signed) == [f"job-{c}" for c in chunks], "once for each job"
    claim(ours)  # reads what it has written itself
    asked = []
    for name in ("_read", "_marked", "_list", "_stats"):
        there = getattr(type(ours._leases.store), name)
        monkeypatch.setattr(type(ours._leases.store), name, lambda *a, name=name, there=there: asked.append(name) or there(*a))
    assert not any(answer.start for answer in claim(ours))
    assert asked == ["_list"]
    Play(toy.notes_dir).cancel(list(ids.values()))
    await_(lambda: all(answer.start for answer in claim(ours)))


RACER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
from lease_play import install
from aframe_assets.config_load import load_config
from aframe_assets.store.work import makes
from aframe_ops.executor.base import Attempt
from aframe_ops.leases import Answer, Asked, Claims
from aframe_ops.site import load_site

install(Path(sys.argv[2]))
me, start = sys.argv[3], float(sys.argv[4])
claims = Claims(load_site(), load_config(), me)
step = SimpleNamespace(step=SimpleNamespace(tags=makes("segments"), step_inputs=[], key="table"))
while time.time() < start:
    time.sleep(0.001)
print(int(claims.ask([Asked(step, Attempt(me, "table", 0), "play", "job-" + me)])[0].start))
"""


def test_of_many_runs_that_claim_at_once_one_starts(toy, monkeypatch):
    start = str(time.time() + 8)
    words = [sys.executable, "-c", RACER, str(Path(__file__).parent), str(toy.notes_dir)]
    racers = [subprocess.Popen([*words, str(i), start], env=toy.env, cwd=toy.path, stdout=subprocess.PIPE, text=True) for i in range(6)]
    answers = [racer.communicate(timeout=120)[0].strip() for racer in racers]
    assert sorted(answers) == ["0"] * 5 + ["1"]


def test_a_store_that_does_not_answer_stops_nothing(toy, claims, monkeypatch):
    from aframe_assets.store import StoreError

    def fails(*_):
        raise StoreError("no such bucket")

    ours = claims("our-run")
    monkeypatch.setattr(Leases, "get", fails)
    answer = ask(ours, Attempt("our-run", "table", 0), "our-job")
    assert answer.start and "no such bucket" in answer.news[0]
