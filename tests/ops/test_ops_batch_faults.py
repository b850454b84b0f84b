"""What a handler of batch jobs does when answers, disks, event logs or room for jobs are missing at the worst moment."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from slurm_played import Played

from aframe_ops.executor import batch, submission
from aframe_ops.executor.base import Attempt, Request, RunFiles, RunSetup
from aframe_ops.executor.batch_options import BatchOptions
from aframe_ops.executor.scheduler import BatchJob, Full, JobState, Phase, Refused, Scheduler, Unreachable


class Toy(Scheduler):
    """Jobs that only exist; `trouble` maps a method to what it raises."""

    name = "toy"
    together = 500

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.asked: list[tuple[str, object]] = []
        self.trouble: dict[str, Exception] = {}
        self.room = 1000

    def _ask(self, question: str, about: object) -> None:
        self.asked.append((question, about))
        if question in self.trouble:
            raise self.trouble[question]

    def questions(self, question: str) -> list:
        return [about for asked, about in self.asked if asked == question]

    def _add(self, names: Sequence[str]) -> list[str]:
        if len(self.jobs) + len(names) > self.room:
            raise Full("submit limit, or size")
        ids = [str(len(self.jobs) + i + 1) for i in range(len(names))]
        self.jobs |= dict(zip(names, ids, strict=True))
        return ids

    def submit(self, job: BatchJob) -> str:
        self._ask("submit", job.name)
        return self._add([job.name])[0]

    def submit_together(self, jobs: Sequence[BatchJob]) -> Sequence[str]:
        if len(jobs) == 1:
            return super().submit_together(jobs)
        self._ask("submit_together", [job.name for job in jobs])
        return self._add([job.name for job in jobs])

    def find(self, name: str) -> str | None:
        self._ask("find", name)
        return self.jobs.get(name)

    def poll(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        self._ask("poll", list(ids))
        return dict.fromkeys(ids, JobState(Phase.RUNNING))

    def cancel(self, ids: Sequence[str]) -> None:
        self._ask("cancel", list(ids))

    def interrupt(self, ids: Sequence[str]) -> None:
        self._ask("interrupt", list(ids))


class Handler(batch.BatchHandler):
    def __init__(self, folder: Path, scheduler: Scheduler, detached=None):
        options = BatchOptions(poll_s=0.05, grace_s=0.1, patience_s=0.1)
        self.folder, self.told = folder, []
        super().__init__(RunSetup(RunFiles(folder), {}), scheduler, options, detached)

    def start(self, step: str, **request) -> Attempt:
        attempt = Attempt("run", step, 0)
        context = SimpleNamespace(instance=None, _plan_context=None, get_step_context=lambda step: None, request=Request(**request))
        self.launch(context, attempt)
        return attempt

    def _write(self, context, attempt):
        spec = self.setup.files.of(attempt, "json")
        spec.write_text("secret")
        return BatchJob(attempt.step.strip("[]"), context.request, 0, ("true",), spec, spec.with_suffix(""), self.folder)

    def _tell(self, message, tracked=None, metadata=None):
        self.told.append(message)

    def turn(self, *attempts: Attempt) -> None:
        """As the loop does, at a time when everything may be asked."""
        self._next_poll = self._next_relay = 0.0
        if self._gathering_until is not None:
            self._gathering_until = 0.0
        for attempt in attempts or list(self._tracked):
            self.state(attempt)

    def written(self, attempt: Attempt) -> dict:
        return json.loads(self.setup.files.of(attempt, "job").read_text())


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def handler(tmp_path, toy) -> Handler:
    return Handler(tmp_path, toy)


class Breaks:
    behind = None

    def pump(self):
        raise RuntimeError("the event log is away")

    finish = pump


def test_an_array_that_was_not_answered_and_does_not_exist_is_submitted_again_whole(tmp_path):
    played = Played(tmp_path)
    handler = Handler(tmp_path, played.slurm)
    attempts = [handler.start(f"[j{i}]") for i in range(4)]
    played.answer(sbatch=(1, "", "sbatch: error: Unable to contact slurm controller"))
    handler.turn(attempts[0])
    assert all(t.doubtful for t in handler._tracked.values())
    played.answer(sbatch=(0, "102\n", ""))
    handler.turn(attempts[0])
    assert [t.id for t in handler._tracked.values()] == [f"102_{i}" for i in range(4)]
    assert len(played.said("sbatch")) == 2 and len(played.said("squeue")) == 1


def test_an_array_that_was_not_answered_and_exists_is_found_under_its_name(tmp_path):
    played = Played(tmp_path)
    handler = Handler(tmp_path, played.slurm)
    attempts = [handler.start(f"[j{i}]") for i in range(3)]
    played.answer(sbatch=(1, "", "sbatch: error: Socket timed out"), squeue=(0, "102_0,j0\n102_1,j0\n102_2,j0\n", ""))
    handler.turn(attempts[0])
    handler.turn(attempts[0])
    assert [handler.written(a)["id"] for a in attempts] == ["102_0", "102_1", "102_2"]
    assert {handler.written(a)["submitted_as"] for a in attempts} == {"j0"}
    assert len(played.said("sbatch")) == 1


def test_a_job_that_was_in_an_array_once_is_found_under_its_own_name(tmp_path):
    played = Played(tmp_path)
    jobs = [played.job("j0"), played.job("j1")]
    played.answer(sbatch=(1, "", "sbatch: error: Socket timed out"))
    with pytest.raises(Unreachable):
        played.slurm.submit_together(jobs)
    played.answer(squeue=(0, "102,j0\n", ""))
    assert played.slurm.find("j1") is None, "102 is no array"
    played.answer(sbatch=(0, "103\n", ""), squeue=(0, "103,j1\n", ""))
    assert played.slurm.submit(jobs[1]) == "103" == played.slurm.find("j1")
    assert played.said("squeue")[-1][4] == "--name=j1"


def test_a_disk_that_is_full_after_a_submission_does_not_make_a_second(handler, toy, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(submission, "write_private", full)
    single = handler.start("single")
    for i in range(3):
        handler.start(f"[j{i}]")
    handler.turn()
    handler.turn()
    assert [t.id for t in handler._tracked.values()] == ["1", "2", "3", "4"] and len(toy.jobs) == 4
    assert len([m for m in handler.told if "cannot be written down" in m]) == 2
    handler.stop(single)
    assert toy.questions("cancel")[-1] == ["1", "2", "3", "4"]


def test_a_job_that_was_refused_is_not_tracked(handler, toy):
    toy.trouble["submit"] = Refused("never")
    with pytest.raises(Refused):
        handler.start("single")
    assert not handler._tracked


def test_an_exception_that_nobody_expects_is_not_met_again_at_every_turn(handler, toy):
    attempts = [handler.start(f"s{i}") for i in range(4)]
    handler._options = BatchOptions(poll_s=60)
    toy.trouble["poll"] = ValueError("a bug")
    handler._next_poll = 0.0
    raised = 0
    for attempt in attempts * 5:
        try:
            handler.state(attempt)
        except ValueError:
            raised += 1
    assert raised == len(toy.questions("poll")) == 1


def test_one_job_whose_events_cannot_be_stored_holds_up_no_other(handler, toy):
    first, second = handler.start("first"), handler.start("second")
    heard = []
    handler._tracked[first].relays = [Breaks()]
    handler._tracked[second].relays = [SimpleNamespace(behind=None, pump=lambda: heard.append("pumped"), finish=lambda: None)]
    for _ in range(3):
        handler.turn()
    assert len(heard) == 3 and len([m for m in handler.told if "the event log is away" in m]) == 1
    handler._end(handler._tracked[first], "ended")
    assert not handler.setup.files.of(first, "json").exists()
    assert handler.state(first) is None, "not dead as long as its events cannot be stored"
    handler._tracked[first].relays = []
    assert "ended" in handler.state(first)


def test_a_steady_stream_of_launches_is_submitted(handler, toy, monkeypatch):
    monkeypatch.setattr(batch, "GATHER_S", 0.3)
    start = time.monotonic()
    while time.monotonic() - start < 0.5:
        handler.state(handler.start(f"[j{len(handler._tracked)}]"))
        time.sleep(0.05)
    assert toy.questions("submit_together")


def test_a_fan_out_that_starts_while_nobody_answers_is_submitted_later(handler, toy):
    toy.trouble["submit"] = Unreachable("lunch")
    handler.start("single")
    handler.start("[j0]")
    toy.trouble.clear()
    handler.turn()
    assert set(toy.jobs) == {"single", "j0"}


def test_what_is_left_is_cancelled_once_when_patience_is_over(handler, toy):
    attempts = [handler.start(f"s{i}") for i in range(4)]
    said = [handler.stop(a) for a in attempts]
    assert toy.questions("cancel")[-1] == ["1", "2", "3", "4"] and len(toy.questions("cancel")) == 2, "one asks gently"
    assert all("did not end within" in s for s in said)


def test_a_scheduler_that_hangs_is_asked_once_for_all_when_patience_is_over(handler, toy):
    attempts = [handler.start(f"s{i}") for i in range(4)]
    toy.trouble = dict.fromkeys(("cancel", "interrupt", "poll"), Unreachable("hangs"))
    said = [handler.stop(a) for a in attempts]
    assert len(toy.questions("cancel")) == 2 and all("may still run" in s and "hangs" in s for s in said)


def test_a_limit_that_may_be_one_of_size_lets_others_go_on_and_is_told_once(handler, toy):
    small, toy.room = handler.start("small"), 1
    large = handler.start("large", cpus=64)
    assert handler._silent_since is None
    for _ in range(3):
        handler.turn(small)
    assert handler.told == [
        "takes no more jobs of 64 cores, 0 GB, 60 min now (submit limit, or size); they are tried again, and others go on"
    ]
    assert handler._tracked[large].ended is None and len(toy.questions("submit")) == 5
    toy.room = 2
    handler.turn(small)
    assert handler._tracked[large].id == "2"


def test_a_limit_refuses_what_does_not_fit_with_nothing_queued(handler, toy):
    toy.room = 0
    with pytest.raises(Refused, match="submit limit"):
        handler.start("large", cpus=64)
    assert not handler._tracked


def test_an_array_that_is_too_large_for_the_room_is_submitted_in_pieces(handler, toy):
    toy.room = 3
    attempts = [handler.start(f"[j{i}]") for i in range(8)]
    for _ in range(4):
        handler.turn(attempts[0])
    assert list(toy.jobs) == ["j0", "j1", "j2"]
    toy.room = 8
    for _ in range(4):
        handler.turn(attempts[0])
    assert len(toy.jobs) == 8 and not any(t.ended for t in handler._tracked.values())


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", Full),
        ("AssocMaxSubmitJobLimit\nsbatch: error: Job violates accounting/QOS policy (job submit limit, ...)", Full),
        ("QOSMaxWallDurationPerJobLimit\nsbatch: error: Job violates accounting/QOS policy (job submit limit, ...)", Refused),
        ("Unable to contact slurm controller (connect failure)", Unreachable),
    ],
)
def test_what_slurm_says_about_limits(tmp_path, said, error):
    played = Played(tmp_path)
    played.answer(sbatch=(1, "", f"sbatch: error: {said}"))
    with pytest.raises(error) as e:
        played.slurm.submit(played.job("a"))
    assert error is not Full or e.value.surely is ("MaxSubmitJob" in said)


def test_the_end_of_a_run_is_cleaned_up_whatever_fails(tmp_path, toy, monkeypatch, capfd):
    def away(*_):
        raise OSError("the store is away")

    given: list[Attempt] = []
    detached = SimpleNamespace(close=away, follow=lambda *_: Breaks())
    handler = Handler(tmp_path, toy, detached)
    first, second = handler.start("first"), handler.start("second")
    handler._instance = object()
    monkeypatch.setattr(batch, "reported", away)
    handler._end(handler._tracked[first], "ended")
    claims = SimpleNamespace(release=given.append)
    monkeypatch.setattr(handler, "setup", SimpleNamespace(files=handler.setup.files, claims=claims, lock_fd=-1))
    handler.close()
    assert toy.questions("cancel") == [["2"]] and given == [first]
    assert not list(tmp_path.glob("*.json"))
    assert capfd.readouterr().err.count("the end of the run is not clean (OSError: the store is away)") == 1
    assert not handler.setup.files.of(second, "json").exists()
