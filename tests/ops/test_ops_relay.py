"""Events of a detached job reach the event log once each, whatever happens to the file, the log or the run worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events.log import EventLogEntry
from dagster._serdes import serialize_value

from aframe_assets.store.errors import StoreError
from aframe_ops.executor import mailbox
from aframe_ops.executor.base import Attempt
from aframe_ops.executor.detached import EventFile
from aframe_ops.executor.executor import LOCK_NAME
from aframe_ops.executor.mailbox import Mailbox, sending
from aframe_ops.executor.relay import EventRelay, Source
from aframe_ops.executor.step_output import StepOutput
from aframe_ops.leases_reaping import reap_all
from aframe_ops.site import ExecutorSite, SiteConfig

RUN = "11111111-2222-3333-4444-555555555555"
ATTEMPT = Attempt(RUN, "step", 0)


def line(number: int, *, run: str = RUN, text: str = "") -> str:
    entry = EventLogEntry(None, 20, text or f"event {number}", run, float(number), step_key="step", job_name="job")
    return f'{{"id": {number}, "event": {serialize_value(entry)}}}'


@pytest.fixture
def instance(tmp_path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as made:
        yield made


def relay_of(instance, path: Path, told: list[str] | None = None, **options) -> EventRelay:
    output = StepOutput(instance, RUN, path.with_suffix(""))
    return EventRelay(instance, ATTEMPT, options.pop("source", Source(path)), output, (told if told is not None else []).append, **options)


def stored(instance) -> list[str]:
    return [e.user_message for e in instance.all_logs(RUN)]


def expected(count: int) -> list[str]:
    return [f"event {i}" for i in range(count)]


def test_lines_are_stored_once_in_order_and_only_when_they_are_whole(instance, tmp_path):
    path = tmp_path / "step.0.events"
    relay = relay_of(instance, path)
    relay.pump()  # there is no file yet
    whole = "".join(line(i) + "\n" for i in range(5))
    for cut in range(0, len(whole), 97):
        path.write_text(whole[:cut])
        relay.pump()
        assert stored(instance) == expected(whole[:cut].count("\n"))
    path.write_text(whole + line(5)[:40])  # cut off by a kill
    relay.finish()
    relay.finish()
    assert stored(instance) == expected(5) and relay.behind is None


def test_a_line_that_comes_after_the_end_is_still_taken(instance, tmp_path):
    path = tmp_path / "step.0.events"
    path.write_text(line(0) + "\n")
    relay = relay_of(instance, path)
    relay.finish()
    with path.open("a") as f:
        f.write(line(1) + "\n")
    relay.pump()
    assert stored(instance) == expected(2)


@pytest.mark.parametrize(
    "bad", ["not json", "[1, 2]", '{"id": 1}', '{"id": 1, "event": {"__class__": "Nothing"}}', "{}", line(9, run="another")]
)
def test_a_damaged_or_foreign_line_is_left_out_and_reported(instance, tmp_path, bad):
    path, told = tmp_path / "step.0.events", []
    path.write_text(f"{line(0)}\n{bad}\n{line(1)}\n")
    relay_of(instance, path, told).pump()
    assert stored(instance) == expected(2)
    assert len(told) == 1 and f"a line of {path} is damaged and was left out" in told[0]
    assert not instance.all_logs("another")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_pump_goes_on_where_it_was(instance, tmp_path, monkeypatch, when, error):
    """Whether the event was stored before the interruption is seen in the log."""
    path = tmp_path / "step.0.events"
    path.write_text("".join(line(i) + "\n" for i in range(10)))
    relay, store, calls = relay_of(instance, path), instance.handle_new_event, []

    def faulty(entry):
        calls.append(entry)
        fails = len(calls) in (4, 5, 9)
        if fails and when == "before":
            raise error("the database is gone")
        store(entry)
        if fails:
            raise error("the answer was lost")

    monkeypatch.setattr(instance, "handle_new_event", faulty)
    for _ in range(3):
        with pytest.raises(error):
            relay.pump()
    relay.finish()
    assert stored(instance) == expected(10)


def test_a_killed_relay_is_continued_by_the_next_one(instance, tmp_path):
    """kill -9 of a process that relays 300 events; then another relay of the same attempt."""
    path = tmp_path / "step.0.events"
    path.write_text("".join(line(i) + "\n" for i in range(300)))
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nimport dagster as dg\nfrom test_ops_relay import relay_of\n"
        "with dg.DagsterInstance.local_temp(sys.argv[2]) as i:\n    relay_of(i, Path(sys.argv[3])).pump()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path), str(path)])
    deadline = time.monotonic() + 120
    while not stored(instance):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(stored(instance))
    assert 0 < before < 300, "the kill came too late to show anything"
    relay_of(instance, path, fresh=False).finish()
    assert stored(instance) == expected(300)


class Broken(Source):
    broken = True

    def read(self, offset: int) -> bytes:
        if self.broken:
            raise StoreError("s3 is away")
        return super().read(offset)


def test_while_events_cannot_be_read_nothing_is_known_about_the_step(instance, tmp_path):
    path, told = tmp_path / "step.0.events", []
    path.write_text(line(0) + "\n")
    source = Broken(path)
    relay = relay_of(instance, path, told, source=source)
    for _ in range(3):
        relay.pump()
    assert relay.behind == "s3 is away" and len(told) == 1 and "the run waits" in told[0]
    source.broken = False
    relay.pump()
    assert relay.behind is None and stored(instance) == expected(1)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_leaves_no_half_line(tmp_path, monkeypatch, error):
    file = EventFile(tmp_path / "events")
    file.append("first")
    write, calls = os.write, []

    def full(fd, data):
        calls.append(data)
        if len(calls) == 2:
            raise error
        return write(fd, data[:3])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(type(error)):
        file.append("second")
    monkeypatch.setattr(os, "write", write)
    file.append("third")
    file.close()
    assert (tmp_path / "events").read_text() == "first\nthird\n"


def test_a_line_that_was_read_stays_when_an_interrupt_comes_after_its_end(instance, tmp_path, monkeypatch):
    path, told = tmp_path / "step.0.events", []
    file, relay, write = EventFile(path), relay_of(instance, path, told), os.write

    def interrupted(fd, data):
        write(fd, data)
        relay.pump()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        file.append(line(0, text="a long event, and the next one is shorter"))
    monkeypatch.setattr(os, "write", write)
    file.append(line(1))
    file.append(line(2))
    file.close()
    relay.finish()
    assert stored(instance) == ["a long event, and the next one is shorter", "event 1", "event 2"] and not told


def test_keys_of_partitions_are_added_and_deleted_as_in_the_job(instance, tmp_path):
    path = tmp_path / "step.0.events"
    changes = [{"partitions": "keys", "add": ["b", "a"]}, {"partitions": "keys", "delete": "b"}, {"partitions": "keys", "add": ["c"]}]
    path.write_text("".join(json.dumps(c) + "\n" for c in changes))
    relay_of(instance, path).pump()
    assert list(instance.get_dynamic_partitions("keys")) == ["a", "c"]


def test_events_through_a_store(instance, tmp_path, monkeypatch):
    monkeypatch.setattr(mailbox, "LOOK_S", 0.0)
    monkeypatch.setattr(mailbox, "SEND_S", 0.05)
    away, store = tmp_path / "node", str(tmp_path / "store")
    away.mkdir()
    box = Mailbox(store, RUN)
    relay = relay_of(instance, tmp_path / "step.0.events", source=Source(tmp_path / "step.0.events", box, "step.0"))
    file = EventFile(away / "events")
    with sending(file.path, {"url": store, "folder": box.folder, "name": "step.0"}):
        for i in range(5):
            file.append(line(i))
            deadline = time.monotonic() + 60
            while len(stored(instance)) <= i:
                assert time.monotonic() < deadline, "not seen while the job runs"
                relay.pump()
                time.sleep(0.02)
        file.append(line(5))
        file.append(line(6))
    # a run worker that knows nothing reads the same from the beginning
    assert Mailbox(store, RUN).read("step.0", 0) == file.path.read_bytes()
    assert Mailbox(store, RUN).read("step.0", 100) == file.path.read_bytes()[100:]
    assert Mailbox(store, RUN).read("step.1", 0) == b""
    relay.finish()
    assert stored(instance) == expected(7)
    assert Mailbox(store, RUN).read("step.0", 0) == b""


def test_of_a_step_that_has_ended_nothing_is_kept(instance, tmp_path, monkeypatch):
    """Not in the store, where all that is there is listed at each look; and not what others may refer to."""
    monkeypatch.setattr(mailbox, "LOOK_S", 0.0)
    box = Mailbox(str(tmp_path / "store"), RUN)

    def send(name: str, start: int, text: str) -> int:
        box._messages.put(f"{name}@{start:012d}", text.encode())
        return start + len(text)

    relay = relay_of(instance, tmp_path / "step.0.events", source=Source(tmp_path / "step.0.events", box, "step.0"))
    sizes = [0]
    for i in range(3):
        sizes.append(send("step.0", sizes[-1], line(i) + "\n"))
    send("other.0", 0, line(7) + "\n")
    relay.pump()
    relay.finish()
    assert box._messages.names() == ["other.0@000000000000"] and stored(instance) == expected(3)
    # what comes late, or once more, is taken once and removed too
    send("step.0", sizes[2], line(2) + "\n")
    send("step.0", sizes[3], line(3) + "\n")
    relay.pump()
    assert box._messages.names() == ["other.0@000000000000"] and stored(instance) == expected(4)


def test_a_store_that_is_away_when_messages_are_removed_hinders_nothing(instance, tmp_path, monkeypatch):
    from aframe_assets.store.messages import Messages

    monkeypatch.setattr(mailbox, "LOOK_S", 0.0)

    def away(self, name):
        raise StoreError("s3 blinks")

    box = Mailbox(str(tmp_path / "store"), RUN)
    box._messages.put("step.0@000000000000", (line(0) + "\n").encode())
    relay = relay_of(instance, tmp_path / "step.0.events", source=Source(tmp_path / "step.0.events", box, "step.0"))
    with monkeypatch.context() as patch:
        patch.setattr(Messages, "remove", away, raising=False)
        relay.finish()
    assert stored(instance) == expected(1) and relay.behind is None
    box.clear()
    assert not box._messages.names()


def test_reaping_removes_what_a_dead_run_was_sent(tmp_path):
    (tmp_path / "logs" / RUN).mkdir(parents=True)
    (tmp_path / "logs" / RUN / LOCK_NAME).touch()  # and nobody has it
    site = SiteConfig(directory=tmp_path, executor=ExecutorSite(backend="slurm", transport="detached"))
    file = EventFile(tmp_path / "events")
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        dead = dg.DagsterRun("job", run_id=RUN, status=dg.DagsterRunStatus.STARTED)
        instance.add_run(dead)
        for run_id in (RUN, "another"):
            with sending(file.path, {"url": site.store_url, "folder": Mailbox(site.store_url, run_id).folder, "name": "s.0"}):
                file.append("a line")
        report = reap_all(instance, site)
    assert report.dead == [RUN]
    assert Mailbox(site.store_url, RUN).read("s.0", 0) == b"" and Mailbox(site.store_url, "another").read("s.0", 0) != b""


def test_a_last_line_without_its_end_is_not_waited_for(tmp_path):
    path = tmp_path / "events"
    with sending(path, {"url": str(tmp_path / "store"), "folder": "events/r", "name": "s.0"}):
        path.write_text("whole\ncut o")
    assert Mailbox(str(tmp_path / "store"), "r").read("s.0", 0) == b"whole\n"


def test_a_file_that_always_grows_is_not_sent_for_ever(tmp_path, monkeypatch):
    from aframe_assets.store.messages import Messages

    monkeypatch.setattr(mailbox, "FLUSH_S", 0.3)
    path, put = tmp_path / "events", Messages.put
    path.touch()

    def growing(self, name, data):
        with path.open("a") as f:
            f.write("one more\n")
        put(self, name, data)

    monkeypatch.setattr(Messages, "put", growing)
    with sending(path, {"url": str(tmp_path / "store"), "folder": "events/r", "name": "s.0"}):
        path.write_text("one\n")
    assert Mailbox(str(tmp_path / "store"), "r").read("s.0", 0).startswith(b"one\none more\n")


def test_what_could_not_be_sent_is_sent_again(tmp_path, monkeypatch):
    monkeypatch.setattr(mailbox, "SEND_S", 0.05)
    from aframe_assets.store.messages import Messages

    put, calls = Messages.put, []

    def flaky(self, name, data):
        calls.append(name)
        put(self, name, data)
        if len(calls) in (1, 2):  # it was stored, and the answer was lost
            raise StoreError("connection reset")

    monkeypatch.setattr(Messages, "put", flaky)
    file = EventFile(tmp_path / "events")
    with sending(file.path, {"url": str(tmp_path / "store"), "folder": "events/r", "name": "s.0"}):
        file.append("one")
        time.sleep(0.2)
        file.append("two")
    assert Mailbox(str(tmp_path / "store"), "r").read("s.0", 0) == b"one\ntwo\n" and len(calls) >= 3
