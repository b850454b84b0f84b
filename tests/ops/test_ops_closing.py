"""The end of a run, when something that is cleaned up does not let itself be cleaned up."""

from __future__ import annotations

from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import StepDelegatingExecutor

from aframe_assets.store.errors import StoreError
from aframe_assets.store.messages import Messages
from aframe_ops.executor.base import RunFiles
from aframe_ops.executor.executor import RoutingExecutor, hold_lock, run_folder
from aframe_ops.executor.mailbox import Mailbox
from aframe_ops.executor.routing import RoutingHandler
from aframe_ops.executor.transport import Detached
from aframe_ops.leases_reaping import reap_all
from aframe_ops.site import ExecutorSite, SiteConfig

RUN = "11111111-2222-3333-4444-555555555555"


class Closing:
    def __init__(self, error: BaseException | None = None):
        self.error, self.closed = error, False

    def close(self) -> None:
        self.closed = True
        if self.error:
            raise self.error


def routing(*handlers: Closing) -> RoutingHandler:
    made = RoutingHandler({str(i): lambda h=h: h for i, h in enumerate(handlers)}, "0")
    made._handlers = {str(i): h for i, h in enumerate(handlers)}
    return made


def test_every_handler_is_closed_and_an_error_of_one_is_told(capsys):
    handlers = Closing(), Closing(StoreError("s3 blinks")), Closing()
    routing(*handlers).close()
    assert all(h.closed for h in handlers)
    assert "aframe: cleaning up after the steps on 1 did not end well (StoreError: s3 blinks)" in capsys.readouterr().err


def test_an_interrupt_is_passed_on_when_every_handler_is_closed():
    handlers = Closing(KeyboardInterrupt()), Closing(KeyboardInterrupt()), Closing()
    with pytest.raises(KeyboardInterrupt):
        routing(*handlers).close()
    assert all(h.closed for h in handlers)


def test_an_executor_that_is_interrupted_while_it_closes_gives_its_lock_back(tmp_path, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(StepDelegatingExecutor, "execute", lambda self, context, plan: iter(()))
    monkeypatch.setattr(RoutingHandler, "close", interrupted)
    site = SiteConfig(directory=tmp_path)
    executor = RoutingExecutor(site, None, retries=RetryMode.DISABLED)
    with pytest.raises(KeyboardInterrupt):
        list(executor.execute(SimpleNamespace(dagster_run=dg.DagsterRun("job", run_id=RUN)), SimpleNamespace(step_dict={})))
    hold_lock(run_folder(site, RUN))


def test_messages_that_cannot_be_removed_now_do_not_fail_the_run_and_are_reaped(tmp_path, monkeypatch, capsys):
    site = SiteConfig(directory=tmp_path, executor=ExecutorSite(backend="slurm", transport="detached"))
    folder = run_folder(site, RUN)
    folder.mkdir(parents=True)
    box = Mailbox(site.store_url, RUN)
    box._messages.put("s.0@000000000000", b"a line\n")
    assert box.read("s.0", 0) == b"a line\n"

    def away(self):
        raise StoreError("s3 blinks")

    with monkeypatch.context() as patch:
        patch.setattr(Messages, "clear", away)
        Detached(RunFiles(folder), box).close()
    assert "was not removed from the store (s3 blinks); `aframe reap` removes it" in capsys.readouterr().err
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        instance.add_run(dg.DagsterRun("job", run_id=RUN, status=dg.DagsterRunStatus.SUCCESS))
        reap_all(instance, site)
    assert Mailbox(site.store_url, RUN).read("s.0", 0) == b"" and not list(folder.iterdir())
