"""What a run worker shows to other hosts while it lives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from aframe_ops.executor import routing
from aframe_ops.executor.base import Attempt


@pytest.mark.parametrize("backend", ["local", "slurm"])
def test_a_run_gives_signs_of_life_whatever_its_steps_run_on(monkeypatch, backend):
    moment, signs = [1000.0], []
    monkeypatch.setattr(routing, "time", SimpleNamespace(monotonic=lambda: moment[0]))
    monkeypatch.setattr(Attempt, "of", classmethod(lambda cls, context: cls("run", "step", 0)))
    handler = SimpleNamespace(check_step_health=lambda context: "healthy")
    made = routing.RoutingHandler({backend: lambda: handler}, backend, sign=lambda: signs.append(moment[0]))
    context = SimpleNamespace(step_tags={"step": {}}, dagster_run=SimpleNamespace(tags={}))
    for _ in range(600):
        assert made.check_step_health(context) == "healthy"
        moment[0] += 1.0
    assert 9 <= len(signs) <= 11, "a file on a shared disk, once a minute"


def test_a_disk_that_is_away_for_a_moment_ends_no_run(monkeypatch):
    def away():
        raise OSError("stale file handle")

    monkeypatch.setattr(Attempt, "of", classmethod(lambda cls, context: cls("run", "step", 0)))
    handler = SimpleNamespace(check_step_health=lambda context: "healthy")
    made = routing.RoutingHandler({"local": lambda: handler}, "local", sign=away)
    context = SimpleNamespace(step_tags={"step": {}}, dagster_run=SimpleNamespace(tags={}))
    assert made.check_step_health(context) == "healthy"
