"""The same contract where steps run on this machine: what tests/ops/test_ops_executor.py does not have of it."""

from __future__ import annotations

import dagster as dg
import pytest
from conftest import wait_until, webserver
from toy_run import Toy

SITE = "executor: {backend: local, cores: 4, memory_gb: 8}\n"


class Here:
    """This machine, as the fixtures want it."""

    site, env = SITE, {}


@pytest.fixture
def toy(new_toy) -> Toy:
    return new_toy(Here())


def test_a_run_that_is_terminated_in_the_ui_ends_its_steps(toy):
    with webserver(toy) as client:
        run = client.submit_job_execution("wait")
        toy.wait_for("waiting", timeout=300)
        client.terminate_run(run)
        wait_until(lambda: client.get_run_status(run) is dg.DagsterRunStatus.CANCELED, 120, "the run to be cancelled")
    assert toy.wait_for("interrupted", timeout=60)
    wait_until(lambda: not toy.processes(), 60, "no process left")


def test_an_exception_for_ever_fails_the_step_alone(toy):
    code, output = toy.run("hopeless", "fine", timeout=400)
    assert code == 1
    assert len(toy.notes("hopeless")) == 2 and len(toy.notes("fine")) == 1
    assert "step hopeless failed" in output and "step fine failed" not in output


def test_two_runs_at_once(toy):
    with dg.DagsterInstance.from_config(str(toy.path / "dagster_home")):
        pass
    first, second = toy.start("fine"), toy.start("flaky")
    outputs = [p.communicate(timeout=400)[0] for p in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert len(toy.notes("fine")) == 1 and len(toy.notes("flaky")) == 2


def test_fan_out_of_50(new_toy):
    toy = new_toy(Here(), TOY_PARTS="50")
    code, output = toy.run("fanned", timeout=580)
    assert code == 0, output
    (result,) = toy.notes("collected")
    assert (result["count"], result["total"]) == (50, sum(range(50)))
    assert len(toy.notes("part3")) == 2
