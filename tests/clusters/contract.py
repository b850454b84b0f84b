"""What every step may do on any batch system: succeed, fail, be killed, vanish, wait, be cancelled.

A test module inherits `Contract`, and has a fixture `cluster`. A cluster has ``name``, ``env``, ``site`` (text of site.yaml),
``one_at_a_time()`` (the same, in a context in which no two jobs run at once), ``active()`` (ids of jobs that are not over),
``ended(id)`` (whether it ended with success), ``stop_controller()`` and ``start_controller()``.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest
from conftest import wait_until


def job_of(toy, name: str) -> dict:
    """What the handler has recorded about the one job of attempt `name`."""
    return json.loads(toy.log(f"{name}.job").read_text())


class Contract:
    """The tests; what differs between batch systems is in these attributes and `check_environment`."""

    out_of_memory: str
    """What is said of a job that used more than its 0.7 GB."""
    impossible: str
    """Beginning of what is said of a job that no node can run."""
    impatient = ""
    """Added to site.yaml so that such a job is reported at once."""
    gpu_site = ""
    """Added to site.yaml for steps that ask for a GPU."""

    def check_environment(self, note: dict, record: dict) -> None:
        """Asserts what is special about a job's environment."""

    def check_gpu(self, note: dict) -> None:
        """Asserts what is special about the environment of a step with a GPU."""

    def check_requests(self, toy, cluster, ids: list[str]) -> None:
        """Asserts that the first job of ``hungry`` asked for 0.7 GB and the second for half as much again."""

    @pytest.mark.quick
    def test_success_exception_with_retry_and_kill(self, cluster, toy):
        code, output = toy.run("fine", "flaky", "killed", timeout=240)
        assert code == 0, output
        assert {n: len(toy.notes(n)) for n in ("fine", "flaky", "killed")} == {"fine": 1, "flaky": 2, "killed": 2}
        record = job_of(toy, "fine.0")
        assert record["backend"] == cluster.name and cluster.ended(record["id"])
        (ran,) = toy.notes("fine")
        assert ran["OMP_NUM_THREADS"] == "1" and ran["seed"] == 7
        self.check_environment(ran, record)
        assert f"runs on {cluster.name} (executor.backend)" in output
        assert f"its {cluster.name} job {job_of(toy, 'killed.0')['id']} was killed by SIGKILL" in output
        # output: the step's files, and the line that is meant for the user
        assert toy.log("fine.0.out").read_text() == "fine says hello\n"
        assert "first time unlucky" in toy.log("flaky.0.err").read_text()
        assert [line for line in output.splitlines() if line.startswith("aframe:")] == ["aframe: fine speaks to the user"]
        # what it used, from the job itself
        used = rf"fine - ENGINE_EVENT - {cluster.name}: job {record['id']} used \d+% of 1 core for \d+ s, 0\.\d+ of 0\.6 GB"
        assert re.search(used, output), output
        assert not cluster.active()

    @pytest.mark.quick
    def test_a_cancelled_run_cancels_its_running_and_pending_jobs(self, cluster, new_toy):
        with cluster.one_at_a_time() as site:
            toy = new_toy(cluster, site)
            process = toy.start("waiting", "fine")
            wait_until(lambda: len(list((toy.path / "logs").glob("*/*.job"))) == 2, 60, "both jobs submitted")
            # one has the node to itself
            wait_until(lambda: toy.notes("waiting") or toy.notes("fine"), 60, "one job running")
            if toy.notes("fine"):
                toy.wait_for("waiting")
            os.kill(process.pid, signal.SIGINT)
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 1, output
            assert toy.notes("interrupted"), output
            assert "was cancelled" in output
            wait_until(lambda: not cluster.active(), 20, "no job left")

    def test_an_exception_for_ever_fails_the_step_alone(self, cluster, toy):
        code, output = toy.run("hopeless", "fine", timeout=240)
        assert code == 1
        assert len(toy.notes("hopeless")) == 2 and len(toy.notes("fine")) == 1
        assert "step hopeless failed" in output and "step fine failed" not in output

    def test_exit_code_0_without_a_result_is_a_failure(self, cluster, toy):
        code, output = toy.run("vanishing")
        assert code == 1
        assert f"its {cluster.name} job {job_of(toy, 'vanishing.0')['id']} ended with exit code 0 without reporting a result" in output
        assert str(toy.log("vanishing.0.err")) in output

    def test_a_job_that_no_node_can_run_is_reported_and_can_be_cancelled(self, cluster, new_toy):
        toy = new_toy(cluster, cluster.site + self.impatient)
        process = toy.start("impossible")
        line = next(line for line in process.stdout if line.startswith("aframe:"))
        job = job_of(toy, "impossible.0")["id"]
        assert line.startswith(f"aframe: step impossible waits: its {cluster.name} job {job} will not start by itself: {self.impossible}")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1 and f"job {job} was cancelled" in output
        wait_until(lambda: job not in cluster.active(), 20, "the job gone")
        assert not cluster.ended(job)

    def test_running_out_of_memory_is_named_and_the_next_attempt_has_more(self, cluster, toy):
        code, output = toy.run("hungry", timeout=240)
        assert code == 0, output
        assert len(toy.notes("hungry")) == 2
        if cluster.cgroups:
            assert self.out_of_memory in output
        else:  # then there is only a kill to be seen
            assert "was killed by SIGKILL (by hand, or because memory ran out)" in output
        self.check_requests(toy, cluster, [job_of(toy, f"hungry.{n}")["id"] for n in (0, 1)])

    def test_gpu_steps_by_route_and_the_rest_here(self, cluster, new_toy):
        name = cluster.name
        site = (cluster.site + self.gpu_site).replace(f"backend: {name}", f"backend: local\n  routes: {{gpus: {name}, 'flak?': {name}}}")
        toy = new_toy(cluster, site)
        code, output = toy.run("on_gpu", "fine", "flaky", "at_home", timeout=240)
        assert code == 0, output
        assert f"on_gpu - ENGINE_EVENT - runs on {name} (executor.routes.gpus)" in output
        assert "fine - ENGINE_EVENT - runs on local (executor.backend)" in output
        assert f"flaky - ENGINE_EVENT - runs on {name} (executor.routes.flak?)" in output
        assert "at_home - ENGINE_EVENT - runs on local (its tag aframe/backend)" in output
        (note,) = toy.notes("on_gpu")
        assert note["CUDA_VISIBLE_DEVICES"] in ("0", "1")
        self.check_gpu(note)
        self.check_environment(toy.notes("flaky")[0], job_of(toy, "flaky.0"))
        assert {path.name for path in (toy.path / "logs").glob("*/*.job")} == {"on_gpu.0.job", "flaky.0.job", "flaky.1.job"}

    def test_a_controller_away_for_30_seconds_fails_nothing(self, cluster, toy):
        process = toy.start("waiting", "after_waiting")
        toy.wait_for("waiting")
        cluster.stop_controller()
        time.sleep(30)
        cluster.start_controller()
        output = ""
        for line in process.stdout:
            output += line
            if "answers again" in line:
                (toy.notes_dir / "go").touch()
        assert process.wait(60) == 0, output
        assert output.count(f"aframe: {cluster.name} does not answer") == 1
        assert output.count(f"{cluster.name}: does not answer") == 1 and output.count(f"{cluster.name}: answers again") == 1
        assert len(toy.notes("waiting")) == len(toy.notes("after_waiting")) == 1

    def test_a_controller_away_when_a_job_is_submitted(self, cluster, toy):
        cluster.stop_controller()
        try:
            process = toy.start("fine")
            wait_until(lambda: list((toy.path / "logs").glob("*/fine.0.json")), 60, "a try")
            time.sleep(12)
        finally:
            cluster.start_controller()
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
        assert f"{cluster.name}: will be submitted when {cluster.name} answers (1 core, 0.6 GB, 10 min)" in output
        assert f"{cluster.name}: job {job_of(toy, 'fine.0')['id']} was submitted" in output
        assert len(toy.notes("fine")) == 1

    def test_two_runs_at_once(self, cluster, toy):
        first, second = toy.start("fine"), toy.start("flaky")
        outputs = [p.communicate(timeout=240)[0] for p in (first, second)]
        assert (first.returncode, second.returncode) == (0, 0), outputs
        assert len(toy.notes("fine")) == 1 and len(toy.notes("flaky")) == 2

    def test_a_job_past_its_time_limit_is_warned_and_tried_again(self, cluster, toy):
        code, output = toy.run("endless", timeout=300)
        assert code == 0, output
        assert len(toy.notes("endless")) == 2
        assert "aframe: the job's time limit of 1 min is near; the step is interrupted" in output

    def test_fan_out_of_50(self, cluster, new_toy):
        toy = new_toy(cluster, TOY_PARTS="50")
        code, output = toy.run("fanned", timeout=580)
        assert code == 0, output
        (result,) = toy.notes("collected")
        assert (result["count"], result["total"]) == (50, sum(range(50)))
        assert len(toy.notes("part3")) == 2
        assert len(list((toy.path / "logs").glob("*/*.job"))) == 53
