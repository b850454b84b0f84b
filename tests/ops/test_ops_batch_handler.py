"""What every batch backend shares, on a batch system that loses answers, loses jobs and ends nothing in time."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_run import Toy


@pytest.fixture
def play(tmp_path):
    made: list[Toy] = []

    def make(fault: str, **variables: str) -> Toy:
        variables["PLAY"] = fault
        made.append(Toy(tmp_path, Path(__file__).with_name("batch_toy.py"), "executor: {backend: local}\n", variables))
        return made[0]

    yield make
    for toy in made:
        toy.close()


def test_one_question_about_all_jobs(play):
    toy = play("none")
    code, output = toy.run("quick", "beside")
    assert code == 0, output
    assert ["1", "2"] in [n["ids"] for n in toy.notes("polled")]
    assert "quick - ENGINE_EVENT - runs on play (its tag aframe/backend)" in output
    assert not toy.notes("searched") and not toy.notes("cancelled")


def test_a_submission_whose_answer_was_lost_is_found_and_not_made_twice(play):
    toy = play("no answer")
    code, output = toy.run("quick")
    assert code == 0, output
    assert len(toy.notes("submitted")) == len(toy.notes("quick")) == 1
    assert "will be submitted when play answers" in output


def test_a_scheduler_that_is_away_gets_the_job_later(play):
    toy = play("away")
    code, output = toy.run("quick")
    assert code == 0, output
    assert len(toy.notes("submitted")) == 3 and len(toy.notes("quick")) == 1
    assert output.count("play: does not answer (gone for lunch)") == 1
    assert output.count("play: answers again") == 1 and "play: job 1 was submitted" in output


def test_a_job_that_is_lost_is_tried_again(play):
    toy = play("loses")
    code, output = toy.run("long", timeout=400)
    assert "its play job 1 is not known to the scheduler" in output
    assert len(toy.notes("long")) == 2 and code == 0, output
    assert [n["ids"] for n in toy.notes("cancelled")] == [["1"]], "it would run beside the next attempt"


def test_a_job_that_is_unknown_for_a_moment_is_not_lost(play):
    toy = play("blinks")
    code, output = toy.run("beside")
    assert code == 0 and "not known" not in output, output


def test_a_job_that_outlives_its_time_limit_is_cancelled_and_tried_again(play):
    toy = play("overtime")
    code, output = toy.run("long", timeout=400)
    assert code == 0, output
    assert "its play job 1 was cancelled because it ran for" in output and "with a time limit of 1 min" in output
    assert [n["ids"] for n in toy.notes("cancelled")] == [["1"]]
    assert [n["memory"] for n in toy.notes("submitted")] == [2, 3]


def test_a_last_event_that_comes_after_the_end_of_its_job_counts(play):
    toy = play("none", GRACE="60")
    code, output = toy.run("late")
    assert code == 0, output
    assert len(toy.notes("late")) == len(toy.notes("submitted")) == 1


def test_a_last_event_that_never_comes_is_a_failure_after_the_grace(play):
    toy = play("none", GRACE="1")
    code, output = toy.run("late")
    assert code == 1
    assert "its play job 1 ended with 0" in output


def test_a_refused_job_is_not_tried_again(play):
    toy = play("refuses")
    code, output = toy.run("quick")
    assert code == 1
    assert "step quick failed: play refused the job of step quick: we do not like it (change nothing)" in output
    assert len(toy.notes("submitted")) == 1
    assert not list((toy.path / "logs").glob("*/*.json"))
