"""A run that ends while somebody looks for dead ones is not taken for one of them."""

from __future__ import annotations

import os
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import StepDelegatingExecutor

from aframe_ops import runs
from aframe_ops.executor import executor
from aframe_ops.executor.executor import RoutingExecutor, hold_lock, lock_holder, run_folder
from aframe_ops.site import SiteConfig


@pytest.fixture
def started(tmp_path):
    """An instance, a site, and a run that a worker executes."""
    with dg.instance_for_test() as instance:
        site = SiteConfig(directory=tmp_path)
        run = instance.create_run_for_job(dg.job(name="some")(lambda: None), status=dg.DagsterRunStatus.STARTED)
        run_folder(site, run.run_id).mkdir(parents=True)
        yield instance, site, run


def test_a_run_that_ends_after_it_was_listed_stays_as_it_ended(started, monkeypatch):
    instance, site, run = started
    lock = hold_lock(run_folder(site, run.run_id))

    def ends(folder):
        instance.report_dagster_event(dg.DagsterEvent("PIPELINE_SUCCESS", "some"), run.run_id)
        os.close(lock)

    monkeypatch.setattr(runs, "life", ends)
    assert runs.reap(instance, site, patience=0) == ([], [], [])
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.SUCCESS


def test_a_run_counts_as_alive_until_its_last_event_is_written(started, monkeypatch):
    instance, site, run = started
    monkeypatch.setattr(StepDelegatingExecutor, "execute", lambda *_: iter(()))
    monkeypatch.setattr(executor, "RoutingHandler", lambda *_: SimpleNamespace(close=lambda: None))
    made = RoutingExecutor(site, None, retries=RetryMode.DISABLED)
    folder = run_folder(site, run.run_id)
    assert not list(made.execute(SimpleNamespace(dagster_run=run), SimpleNamespace(step_dict={})))
    assert lock_holder(folder)["pid"] == os.getpid() and runs.reap(instance, site, patience=0).alive == [run.run_id]
    os.close(hold_lock(folder.parent))
    assert lock_holder(folder) is None, "the next run of this process"
