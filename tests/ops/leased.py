"""A toy run directory on a played batch system, and what tests of its leases do with it."""

from __future__ import annotations

import time
from types import SimpleNamespace

from lease_play import Play, install
from toy_run import Toy

from aframe_assets.store.work import makes
from aframe_ops import leases_watch
from aframe_ops.executor.base import Attempt
from aframe_ops.leases import Answer, Asked, Claims

TOY = ("lease_toy.py", "executor: {poll_seconds: 0.3}\n")
"""The graph, and the site file."""


def await_(condition, timeout=60.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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


def sleeper(toy: Toy, name: str) -> str:
    """A job of the played batch system that does nothing for long."""
    play, log = Play(toy.notes_dir), toy.notes_dir / name
    request = SimpleNamespace(memory_gb=1, cpus=1)
    return play.submit(SimpleNamespace(name=name, request=request, log=log, argv=["sleep", "300"], folder=toy.path))
