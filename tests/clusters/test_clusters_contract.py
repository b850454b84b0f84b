"""What every step may do on every batch system: succeed, fail, be killed, vanish, wait, be cancelled.

SLURM is the real daemons. HTCondor and Kubernetes are the executing stand-ins of `condor_pool` and `kube_cluster`, which say
what in them is real.
"""

from __future__ import annotations

import os
import re
import signal
import time

import dagster as dg
import pytest
from condor_pool import CondorPool
from conftest import SITE, job_of, wait_until, webserver
from kube_cluster import KubeCluster

ANYWHERE = pytest.mark.parametrize("cluster", ["slurm", "htcondor", "kubernetes", "local"], indirect=True)
"""On this machine as well; what it does with the rest of the contract is in tests/ops/test_ops_executor.py."""

CONDOR, KUBE = CondorPool.site, KubeCluster.site


@pytest.mark.quick
def test_success_exception_with_retry_and_kill(cluster, toy):
    code, output = toy.run("fine", "flaky", "killed", timeout=400)
    assert code == 0, output
    assert {n: len(toy.notes(n)) for n in ("fine", "flaky", "killed")} == {"fine": 1, "flaky": 2, "killed": 2}
    record = job_of(toy, "fine.0")
    assert record["backend"] == cluster.name and cluster.ended_well(record["id"])
    (ran,) = toy.notes("fine")
    assert cluster.ran(ran, record)
    assert ran["OMP_NUM_THREADS"] == "1" and ran["seed"] == 7
    assert f"runs on {cluster.name} (executor.backend)" in output
    assert f"its {cluster.name} job {job_of(toy, 'killed.0')['id']} was killed by SIGKILL" in output
    # output: the step's files, and the line that is meant for the user
    assert toy.log("fine.0.out").read_text() == "fine says hello\n"
    assert "first time unlucky" in toy.log("flaky.0.err").read_text()
    assert [line for line in output.splitlines() if line.startswith("aframe:")] == ["aframe: fine speaks to the user"]
    # what it used, from the job itself
    assert re.search(
        rf"fine - ENGINE_EVENT - {cluster.name}: job {record['id']} used \d+% of 1 core for \d+ s, 0\.\d+ of 0\.6 GB", output
    ), output
    assert not cluster.active()


@pytest.mark.quick
def test_a_cancelled_run_cancels_its_running_and_pending_jobs(cluster, new_toy):
    with cluster.one_at_a_time() as site:
        toy = new_toy(cluster, site)
        process = toy.start("waiting", "fine")
        wait_until(lambda: len(list((toy.path / "logs").glob("*/*.job"))) == 2, 300, "both jobs submitted")
        wait_until(lambda: toy.notes("waiting") or toy.notes("fine"), 300, "one job running")
        if toy.notes("fine"):
            toy.wait_for("waiting", timeout=300)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 1, output
        assert toy.wait_for("interrupted", timeout=60), output
        assert "was cancelled" in output
        wait_until(lambda: not cluster.active(), 60, "no job left")


@ANYWHERE
def test_a_run_that_is_terminated_in_the_ui_cancels_its_jobs(cluster, toy):
    with webserver(toy) as client:
        run = client.submit_job_execution("wait")
        toy.wait_for("waiting", timeout=300)
        client.terminate_run(run)
        wait_until(lambda: client.get_run_status(run) is dg.DagsterRunStatus.CANCELED, 120, "the run to be cancelled")
    assert toy.wait_for("interrupted", timeout=60)
    wait_until(lambda: not cluster.active() and not toy.processes(), 60, "no job and no process left")


@ANYWHERE
def test_an_exception_for_ever_fails_the_step_alone(cluster, toy):
    code, output = toy.run("hopeless", "fine", timeout=400)
    assert code == 1
    assert len(toy.notes("hopeless")) == 2 and len(toy.notes("fine")) == 1
    assert "step hopeless failed" in output and "step fine failed" not in output


def test_exit_code_0_without_a_result_is_a_failure(cluster, toy):
    code, output = toy.run("vanishing", timeout=400)
    assert code == 1
    assert f"its {cluster.name} job {job_of(toy, 'vanishing.0')['id']} ended with exit code 0 without reporting a result" in output
    assert str(toy.log("vanishing.0.err")) in output


def test_a_job_that_waits_long_is_healthy_and_a_held_one_is_reported(cluster, new_toy):
    with cluster.hold() as site:
        toy = new_toy(cluster, site)
        process = toy.start("fine")
        wait_until(lambda: list((toy.path / "logs").glob("*/fine.0.job")), 300, "the job submitted")
        job = job_of(toy, "fine.0")["id"]
        time.sleep(10)
        assert process.poll() is None and cluster.waits(job)
        cluster.release(job)
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    said = cluster.held_words.format(job)
    assert output.count(f"aframe: step fine waits: its {cluster.name} {said}") == 1
    assert output.count(f"ENGINE_EVENT - {cluster.name}: {said}") == 1


@pytest.mark.parametrize("cluster", ["slurm", "kubernetes"], indirect=True)
def test_a_job_that_no_node_can_run_is_reported_and_can_be_cancelled(cluster, new_toy):
    toy = new_toy(cluster, cluster.site + cluster.impatient)
    process = toy.start("impossible")
    line = next(line for line in process.stdout if line.startswith("aframe:"))
    job = job_of(toy, "impossible.0")["id"]
    assert line.startswith(f"aframe: step impossible waits: its {cluster.name} job {job} will not start by itself: {cluster.impossible}")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and f"job {job} was cancelled" in output
    wait_until(lambda: job not in cluster.active(), 20, "the job gone")
    assert not cluster.ended_well(job)


def test_running_out_of_memory_is_named_and_the_next_attempt_has_more(cluster, toy):
    code, output = toy.run("hungry", timeout=400)
    assert code == 0, output
    assert len(toy.notes("hungry")) == 2
    if cluster.cgroups:
        assert cluster.memory_words in output
    elif cluster.name != "htcondor":  # then there is only a kill to be seen
        assert "was killed by SIGKILL (by hand, or because memory ran out)" in output
    for number, words in enumerate(cluster.memory):
        record = toy.log(f"hungry.{number}.job")
        assert cluster.memory_of(job_of(toy, f"hungry.{number}")["id"], record) == words


@pytest.mark.parametrize(
    ("name", "asset", "site", "said"),
    [
        ("slurm", "fine", SITE + "  partition: nowhere\n", "Invalid partition name specified (change slurm.partition"),
        ("slurm", "boundless", SITE, "Memory specification can not be satisfied"),
        (
            "slurm",
            "on_gpu",
            SITE.replace("{h200: 141}", "{other: 141}"),
            "(no node of the partition has as many cores, GPUs or as much memory: ",
        ),
        (
            "slurm",
            "on_gpu",
            SITE.replace("{h200: 141}", "{small: 8}"),
            "the step needs a GPU with 40 GB, and slurm.gpu.types has none: {'small': 8.0}",
        ),
        ("slurm", "fine", SITE + "  directives: [--unheard-of=1]\n", "(change slurm.directives)"),
        ("slurm", "fine", SITE + "  command: [/nonexistent/ssh, login]\n", "/nonexistent/ssh: No such file or directory; slurm.command"),
        ("htcondor", "fine", CONDOR + "  requirements: Memory >\n", "(change htcondor.requirements)"),
        ("htcondor", "fine", CONDOR + "  commands: {reqest_x: '4'}\n", "does not know 'reqest_x = 4'; change htcondor.commands"),
        ("htcondor", "on_gpu", CONDOR + "  gpu: {require: 'Capability >'}\n", "(change htcondor.gpu.require)"),
        (
            "htcondor",
            "fine",
            CONDOR + "  command: [/nonexistent/ssh, login]\n",
            "/nonexistent/ssh: No such file or directory; htcondor.",
        ),
        ("kubernetes", "fine", KUBE + "  namespace: nowhere\n", 'namespaces "nowhere" not found (change kubernetes.namespace)'),
        ("kubernetes", "fine", KUBE.replace("image: ", "images: {gpu: x}\n  #"), "no image for it: set kubernetes.image"),
    ],
)
def test_a_refused_job_fails_its_step_with_the_schedulers_words_and_the_key_to_change(request, new_toy, name, asset, site, said):
    cluster = request.getfixturevalue(name)
    toy = new_toy(cluster, site)
    code, output = toy.run(asset, timeout=400)
    assert code == 1 and said in output, output
    assert f"step {asset} failed: {name} refused the job of step {asset}: " in output
    assert not toy.notes(asset)
    assert not list((toy.path / "logs").glob("*/*.json")), "a start file with credentials was left"


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("cluster", ["slurm", "htcondor"], indirect=True)
def test_commands_through_a_prefix_like_ssh(cluster, new_toy, tmp_path, shell):
    """ssh joins its words and has a shell read them again."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\ncd / && echo "$*" >> {tmp_path}/asked && shift && exec {shell} -c "$*"\n')
    ssh.chmod(0o755)
    toy = new_toy(cluster, cluster.site + f"  command: [{ssh}, login]\n")
    code, output = toy.run("fine", "killed", timeout=400)
    assert code == 0, output
    assert len(toy.notes("fine")) == 1 and len(toy.notes("killed")) == 2
    asked = (tmp_path / "asked").read_text()
    assert all(f"login {word}" in asked for word in cluster.asked)


def test_gpu_steps_by_route_and_the_rest_here(cluster, new_toy):
    routes = f"backend: local\n  routes: {{gpus: {cluster.name}, 'flak?': {cluster.name}}}"
    site = cluster.site.replace(f"backend: {cluster.name}", routes)
    toy = new_toy(cluster, site)
    code, output = toy.run("on_gpu", "fine", "flaky", "at_home", timeout=400)
    assert code == 0, output
    assert f"on_gpu - ENGINE_EVENT - runs on {cluster.name} (executor.routes.gpus)" in output
    assert "fine - ENGINE_EVENT - runs on local (executor.backend)" in output
    assert f"flaky - ENGINE_EVENT - runs on {cluster.name} (executor.routes.flak?)" in output
    assert "at_home - ENGINE_EVENT - runs on local (its tag aframe/backend)" in output
    (note,) = toy.notes("on_gpu")
    assert cluster.ran_on_gpu(note)
    assert cluster.ran(toy.notes("flaky")[0], job_of(toy, "flaky.0"))
    assert {path.name for path in (toy.path / "logs").glob("*/*.job")} == {"on_gpu.0.job", "flaky.0.job", "flaky.1.job"}


def test_a_controller_away_for_30_seconds_fails_nothing(cluster, toy):
    process = toy.start("waiting", "after_waiting")
    toy.wait_for("waiting", timeout=300)
    cluster.stop_controller()
    time.sleep(30)
    cluster.start_controller()
    output = ""
    for line in process.stdout:
        output += line
        if "answers again" in line:
            (toy.notes_dir / "go").touch()
    assert process.wait(300) == 0, output
    # once, unless a slow machine makes it silent again
    told = output.count(f"aframe: {cluster.name} does not answer")
    assert 1 <= told <= 2
    assert output.count(f"{cluster.name}: does not answer") == told
    # the run may end in that second silence, since events need no controller
    assert output.count(f"{cluster.name}: answers again") in {told, max(1, told - 1)}
    assert len(toy.notes("waiting")) == len(toy.notes("after_waiting")) == 1


def test_a_controller_away_when_a_job_is_submitted(cluster, toy):
    cluster.stop_controller()
    try:
        process = toy.start("fine")
        wait_until(lambda: list((toy.path / "logs").glob("*/fine.0.json")), 300, "a try")
        time.sleep(12)
    finally:
        cluster.start_controller()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert f"{cluster.name}: will be submitted when {cluster.name} answers (1 core, 0.6 GB, 10 min)" in output
    assert f"{cluster.name}: job {job_of(toy, 'fine.0')['id']} was submitted" in output
    assert len(toy.notes("fine")) == 1


@ANYWHERE
def test_two_runs_at_once(cluster, toy):
    # two that both make Dagster's tables would be a test of Dagster
    with dg.DagsterInstance.from_config(str(toy.path / "dagster_home")):
        pass
    first, second = toy.start("fine"), toy.start("flaky")
    outputs = [p.communicate(timeout=400)[0] for p in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert len(toy.notes("fine")) == 1 and len(toy.notes("flaky")) == 2


def test_a_job_past_its_time_limit_is_warned_and_tried_again(cluster, toy):
    code, output = toy.run("endless", timeout=300)
    assert code == 0, output
    assert len(toy.notes("endless")) == 2
    assert "aframe: the job's time limit of 1 min is near; the step is interrupted" in output


@ANYWHERE
def test_fan_out_of_50(cluster, new_toy):
    toy = new_toy(cluster, cluster.site, TOY_PARTS="50")
    code, output = toy.run("fanned", timeout=580)
    assert code == 0, output
    (result,) = toy.notes("collected")
    assert (result["count"], result["total"]) == (50, sum(range(50)))
    assert len(toy.notes("part3")) == 2
    assert len(list((toy.path / "logs").glob("*/*.job"))) == (0 if cluster.name == "local" else 53)
