"""Jobs that outlive their run: waited for, taken over, ended. On a played batch system; SLURM's is in tests/clusters."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._core.test_utils import create_run_for_test
from rich.console import Console
from toy_run import Toy

sys.path.insert(0, str(Path(__file__).parent))

from lease_play import Play, install

from aframe_assets.config_load import load_config
from aframe_assets.store.errors import StoreError
from aframe_assets.store.leases import Leases
from aframe_assets.store.work import makes
from aframe_assets.store.workspace import Workspace
from aframe_ops import leases_reaping, leases_watch
from aframe_ops.cli import reaping as cli_reaping
from aframe_ops.executor.base import Attempt
from aframe_ops.executor.executor import hold_lock
from aframe_ops.leases import Answer, Asked, Claims
from aframe_ops.leases_reaping import GoingOn, Unsure, reap_all
from aframe_ops.run_directory import RunDirectory
from aframe_ops.runs import reap
from aframe_ops.site import load_site

SITE = "executor: {poll_seconds: 0.3}\n"


@pytest.fixture
def toy(tmp_path):
    made = Toy(tmp_path, Path(__file__).with_name("lease_toy.py"), SITE)
    yield made
    made.close()


def await_(condition, timeout=60.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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


def activate(toy: Toy, monkeypatch) -> None:
    for name, value in toy.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DAGSTER_MODULE_NAME", "")  # `RunDirectory.activate` sets it, and no other test may see it
    monkeypatch.chdir(toy.path)
    for module, name in ((leases_watch, "UNKNOWN_S"), (leases_watch, "RETRY_S")):
        monkeypatch.setattr(module, name, getattr(module, name))  # put back what `install` changes
    install(toy.notes_dir)


def store_of(toy: Toy):
    from aframe_assets.store.opening import open_store

    return open_store(toy.path / "store")


def step(tag: dict[str, str], key: str = "table") -> SimpleNamespace:
    return SimpleNamespace(step=SimpleNamespace(tags=tag, step_inputs=[], key=key))


WHOLE = step(makes("segments"))


def ask(claims: Claims, attempt: Attempt, job_name: str, step: SimpleNamespace = WHOLE) -> Answer:
    (answer,) = claims.ask([Asked(step, attempt, "play", job_name)])
    return answer


@pytest.fixture
def claims(toy, monkeypatch):
    activate(toy, monkeypatch)
    yield lambda run: Claims(load_site(), load_config(), run)


def sleeper(toy: Toy, name: str) -> str:
    """A job of the played batch system that does nothing for long."""
    play, log = Play(toy.notes_dir), toy.notes_dir / name
    request = SimpleNamespace(memory_gb=1, cpus=1)
    return play.submit(SimpleNamespace(name=name, request=request, log=log, argv=["sleep", "300"], folder=toy.path))


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


# --- reaping ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def instance(tmp_path):
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as made:
        yield made


def write_record(folder: Path, id: str) -> None:
    name = f"job-{folder.name}"
    (folder / "table.0.job").write_text(json.dumps({"backend": "play", "id": id, "name": name, "submitted_as": name}))


class Left:
    """A run with a leased job, as a run worker would leave it."""

    def __init__(self, toy: Toy, instance: dg.DagsterInstance, claims, status: DagsterRunStatus | None, *, lives: bool = False):
        self.run = "0" * 8 if status is None else create_run_for_test(instance, status=status).run_id
        folder = toy.path / "logs" / self.run
        folder.mkdir(parents=True)
        self.lock = hold_lock(folder)
        self.attempt, self.claims = Attempt(self.run, "table", 0), claims(self.run)
        assert ask(self.claims, self.attempt, f"job-{self.run}").start
        self.id = sleeper(toy, f"job-{self.run}")
        self.claims.submitted({self.attempt: (self.id, f"job-{self.run}")})
        write_record(folder, self.id)
        if not lives:
            os.close(self.lock)

    @property
    def lives(self) -> bool:
        return Path(f"/proc/{self.id}").exists() and " Z " not in Path(f"/proc/{self.id}/stat").read_text()


@pytest.mark.parametrize("status", [DagsterRunStatus.STARTED, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED, None])
def test_reap_cancels_jobs_of_runs_that_are_over(toy, claims, instance, status):
    left = Left(toy, instance, claims, status)
    site = load_site()
    dry = reap_all(instance, site, dry_run=True)
    assert [(j.id, j.run, j.outcome) for j in dry.jobs] == [(left.id, left.run, "would be cancelled")] and left.lives
    if status is DagsterRunStatus.STARTED:
        assert dry.dead == [left.run] and instance.get_run_by_id(left.run).status is status
    report = reap_all(instance, site)
    assert [(j.id, j.outcome) for j in report.jobs] == [(left.id, "cancelled")]
    await_(lambda: not left.lives)
    assert not Leases(store_of(toy)).all()
    if status is DagsterRunStatus.STARTED:
        assert report.dead == [left.run] and instance.get_run_by_id(left.run).status is DagsterRunStatus.FAILURE
    assert reap_all(instance, site).jobs == []


def test_reap_asks_no_more_about_jobs_that_are_long_gone(toy, claims, instance):
    left = Left(toy, instance, claims, DagsterRunStatus.FAILURE)
    left.claims.release(left.attempt)
    record = toy.path / "logs" / left.run / "table.0.job"
    Play(toy.notes_dir).cancel([left.id])
    await_(lambda: not left.lives)

    def asked() -> bool:
        before = len(toy.notes("asked"))
        reap_all(instance, load_site())
        return len(toy.notes("asked")) > before

    assert asked() and asked(), "it may be on its way there"
    long_ago = time.time() - 7200
    os.utime(record, (long_ago, long_ago))
    reap_all(instance, load_site(), dry_run=True)
    assert asked() and not asked()


@pytest.mark.parametrize("status", [DagsterRunStatus.STARTED, DagsterRunStatus.FAILURE, None])
def test_reap_never_touches_a_live_run_whatever_the_database_says(toy, claims, instance, status):
    left = Left(toy, instance, claims, status, lives=True)
    report = reap_all(instance, load_site())
    assert not report.jobs and not report.dead and "executes it" in report.alive[left.run] and left.lives
    assert Leases(store_of(toy)).all()
    os.close(left.lock)


def test_reap_believes_signs_of_life_from_other_hosts(toy, claims, instance):
    left = Left(toy, instance, claims, DagsterRunStatus.STARTED)
    lock = toy.path / "logs" / left.run / "alive.lock"
    lock.write_text('{"pid": 1, "host": "elsewhere"}')
    report = reap_all(instance, load_site())
    assert not report.jobs and "its worker on elsewhere gave a sign of life" in report.alive[left.run] and left.lives
    long_ago = time.time() - 3600
    os.utime(lock, (long_ago, long_ago))
    assert [j.outcome for j in reap_all(instance, load_site()).jobs] == ["cancelled"]


@pytest.mark.parametrize("what", ["database", "store", "batch system"])
def test_reap_does_nothing_when_it_cannot_know(toy, claims, instance, monkeypatch, what):
    from aframe_assets.store import StoreError

    left = Left(toy, instance, claims, DagsterRunStatus.FAILURE)

    def fails(*_, **__):
        raise (StoreError if what == "store" else ConnectionError)("no route")

    if what == "batch system":
        (toy.notes_dir / "away").touch()
        assert "left as it is: play does not answer (gone for lunch)" in [j.outcome for j in reap_all(instance, load_site()).jobs]
    else:
        monkeypatch.setattr(*((Leases, "all") if what == "store" else (instance, "get_run_by_id")), fails)
        with pytest.raises(Unsure, match=r"no route\).*nothing was done"):
            reap_all(instance, load_site())
        out = io.StringIO()
        monkeypatch.setattr(cli_reaping, "open_instance", lambda run: dg.DagsterInstance.ephemeral())
        monkeypatch.setattr(leases_reaping, "reap_all", lambda *_, **__: fails())
        assert not cli_reaping.reap_directory(RunDirectory.find(toy.path), Console(file=out, width=200))
        assert "nothing was done" in out.getvalue()
    assert left.lives and not [n for n in toy.notes("asked") if n["question"] == "cancel"]


def away(*_):
    raise StoreError("s3 does not answer")


def test_reap_leaves_a_job_that_a_live_run_waits_for(toy, claims, instance, monkeypatch):
    left = Left(toy, instance, claims, DagsterRunStatus.STARTED)
    waiting = toy.path / "logs" / "waiting-run"
    waiting.mkdir()
    lock = hold_lock(waiting)
    assert not ask(claims("waiting-run"), Attempt("waiting-run", "table", 0), "other").start
    report = reap_all(instance, load_site())
    assert [j.outcome for j in report.jobs] == ["left to go on: run waiting- waits for it"] and left.lives
    assert report.left == [left.run] and not report.dead, "a step refuses to start in a failed run, and this one is waited for"
    # `aframe run` leaves it as well, as long as the job goes on
    assert GoingOn(load_site())(left.run) == [f"play {left.id}"]
    assert reap(instance, load_site(), leave=GoingOn(load_site())).left == [left.run]
    # of what is not known, nothing is given up
    with monkeypatch.context() as patch:
        patch.setattr(Leases, "all", away)
        assert reap(instance, load_site(), leave=GoingOn(load_site())).left == [left.run]
    os.close(lock)
    assert [j.outcome for j in reap_all(instance, load_site()).jobs] == ["cancelled"]
    assert GoingOn(load_site())(left.run) == []


def test_reap_leaves_other_directories_and_foreign_jobs_with_the_same_id_alone(toy, claims, instance, tmp_path):
    left = Left(toy, instance, claims, DagsterRunStatus.FAILURE)
    # the id was given to somebody else's job since
    stranger = sleeper(toy, "somebody-elses")
    write_record(toy.path / "logs" / left.run, stranger)
    reap_all(instance, load_site())
    assert Path(f"/proc/{stranger}").exists() and left.lives
    book, other = Leases(store_of(toy)), claims("foreign-run")
    ((key, lease),) = book.all().items()
    assert book.put(key, lease.model_copy(update={"run": "foreign-run", "directory": "/elsewhere", "name": "foreign"}), book.get(key).mark)
    report = reap_all(instance, load_site())
    assert [lease.run for lease in report.foreign] == ["foreign-run"] and other is not None
    assert not [n for n in toy.notes("asked") if n["question"] == "cancel"]
    Play(toy.notes_dir).cancel([stranger, left.id])


def test_the_sensor_reaps_and_is_off_by_default(toy, claims, instance):
    from aframe_ops.automation.reaping import reap_sensor

    left = Left(toy, instance, claims, DagsterRunStatus.FAILURE)
    sensor = reap_sensor(load_site())
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
    reason = sensor(dg.build_sensor_context(instance))
    assert "1 of 1 jobs cancelled" in reason.skip_message
    await_(lambda: not left.lives)


def test_the_table_of_reap(toy, claims, instance, monkeypatch):
    left, out = Left(toy, instance, claims, DagsterRunStatus.FAILURE), io.StringIO()
    monkeypatch.setattr(cli_reaping, "open_instance", lambda run: dg.DagsterInstance.from_ref(instance.get_ref()))
    assert cli_reaping.reap_directory(RunDirectory.find(toy.path), Console(file=out, width=200))
    (row,) = [line.split() for line in out.getvalue().splitlines() if left.id in line]
    assert row == ["play", left.id, left.run[:8], "table.0", "pending" if "pending" in row else "running", "cancelled"]
