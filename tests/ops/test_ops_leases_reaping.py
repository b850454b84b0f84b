"""Jobs that dead runs have left: which are ended, which go on, and what is left alone. On a played batch system."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._core.test_utils import create_run_for_test
from rich.console import Console
from toy_run import Toy

sys.path.insert(0, str(Path(__file__).parent))

from lease_play import Play
from leased import TOY, activate, ask, await_, sleeper, store_of

from aframe_assets.config_load import load_config
from aframe_assets.store.errors import StoreError
from aframe_assets.store.leases import Leases
from aframe_ops import leases_reaping
from aframe_ops.cli import reaping as cli_reaping
from aframe_ops.executor.base import Attempt
from aframe_ops.executor.executor import hold_lock
from aframe_ops.leases import Claims
from aframe_ops.leases_reaping import GoingOn, Unsure, reap_all
from aframe_ops.run_directory import RunDirectory
from aframe_ops.runs import reap
from aframe_ops.site import load_site

pytestmark = pytest.mark.toy(*TOY)


@pytest.fixture
def claims(toy, monkeypatch):
    activate(toy, monkeypatch)
    yield lambda run: Claims(load_site(), load_config(), run)


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
