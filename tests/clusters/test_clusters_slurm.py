"""What every step may do on SLURM: succeed, fail, be killed, vanish, wait, be cancelled. Against the real daemons."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest
from conftest import SITE, wait_until

ACTIVE = {"PENDING", "RUNNING", "COMPLETING"}


def job_of(toy, name: str) -> dict:
    """What the handler has recorded about the one job of attempt `name`."""
    return json.loads(toy.log(f"{name}.job").read_text())


def active(slurm) -> set[str]:
    return {job for job, state in slurm.jobs().items() if state in ACTIVE}


@pytest.mark.quick
def test_success_exception_with_retry_and_kill(slurm, toy):
    code, output = toy.run("fine", "flaky", "killed", timeout=240)
    assert code == 0, output
    assert {n: len(toy.notes(n)) for n in ("fine", "flaky", "killed")} == {"fine": 1, "flaky": 2, "killed": 2}
    record = job_of(toy, "fine.0")
    assert record["backend"] == "slurm" and slurm.jobs()[record["id"]] == "COMPLETED"
    (ran,) = toy.notes("fine")
    assert ran["SLURM_JOB_ID"] == record["id"] and ran["SLURM_JOB_NAME"] == record["name"]
    assert ran["FROM_SETUP"] == "from the set-up" and ran["OMP_NUM_THREADS"] == "1" and ran["seed"] == 7
    assert "runs on slurm (executor.backend)" in output
    assert f"its slurm job {job_of(toy, 'killed.0')['id']} was killed by SIGKILL" in output
    # output: the step's files, and the line that is meant for the user
    assert toy.log("fine.0.out").read_text() == "fine says hello\n"
    assert "first time unlucky" in toy.log("flaky.0.err").read_text()
    assert [line for line in output.splitlines() if line.startswith("aframe:")] == ["aframe: fine speaks to the user"]
    # what it used, from the job itself, since this cluster keeps no accounts
    assert re.search(rf"fine - ENGINE_EVENT - slurm: job {record['id']} used \d+% of 1 core for \d+ s, 0\.\d+ of 0\.6 GB", output), output
    assert not active(slurm)


@pytest.mark.quick
def test_a_cancelled_run_cancels_its_running_and_pending_jobs(slurm, new_toy):
    toy = new_toy(slurm, SITE + "  directives: [--exclusive]\n")
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
    wait_until(lambda: not active(slurm), 20, "no job left")


def test_an_exception_for_ever_fails_the_step_alone(slurm, toy):
    code, output = toy.run("hopeless", "fine", timeout=240)
    assert code == 1
    assert len(toy.notes("hopeless")) == 2 and len(toy.notes("fine")) == 1
    assert "step hopeless failed" in output and "step fine failed" not in output


def test_exit_code_0_without_a_result_is_a_failure(slurm, toy):
    code, output = toy.run("vanishing")
    assert code == 1
    assert f"its slurm job {job_of(toy, 'vanishing.0')['id']} ended with exit code 0 without reporting a result" in output
    assert str(toy.log("vanishing.0.err")) in output


def test_a_job_that_waits_long_is_healthy_and_a_held_one_is_reported(slurm, new_toy):
    toy = new_toy(slurm, SITE + "  directives: [--hold]\n")
    process = toy.start("fine")
    wait_until(lambda: list((toy.path / "logs").glob("*/fine.0.job")), 60, "the job submitted")
    job = job_of(toy, "fine.0")["id"]
    time.sleep(10)
    assert process.poll() is None and slurm.jobs()[job] == "PENDING"
    slurm.client("scontrol", "release", job)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    said = f"slurm job {job} will not start by itself: JobHeldUser (see `scontrol show job {job}`)"
    assert output.count(f"aframe: step fine waits: its {said}") == 1
    assert output.count(said.replace("slurm job", "ENGINE_EVENT - slurm: job")) == 1


def test_a_job_that_no_node_can_run_is_reported_and_can_be_cancelled(slurm, toy):
    process = toy.start("impossible")
    line = next(line for line in process.stdout if line.startswith("aframe:"))
    job = job_of(toy, "impossible.0")["id"]
    assert line.startswith(f"aframe: step impossible waits: its slurm job {job} will not start by itself: PartitionConfig")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and f"job {job} was cancelled" in output
    assert slurm.jobs()[job] == "CANCELLED"


def test_running_out_of_memory_is_named_and_the_next_attempt_has_more(slurm, toy):
    code, output = toy.run("hungry", timeout=240)
    assert code == 0, output
    assert len(toy.notes("hungry")) == 2
    if slurm.cgroups:
        assert "was killed because memory ran out (OUT_OF_MEMORY); it had 0.7 GB" in output
    else:  # SLURM then only sees a kill
        assert "was killed by SIGKILL (by hand, or because memory ran out)" in output
    assert "--mem=668M" in toy.log("hungry.0.sbatch").read_text()
    assert "--mem=1002M" in toy.log("hungry.1.sbatch").read_text()


@pytest.mark.parametrize(
    ("asset", "site", "said"),
    [
        ("fine", SITE + "  partition: nowhere\n", "Invalid partition name specified (change slurm.partition"),
        ("boundless", SITE, "Memory specification can not be satisfied"),
        ("on_gpu", SITE.replace("{h200: 141}", "{other: 141}"), "(no node of the partition has as many cores, GPUs or as much memory: "),
        (
            "on_gpu",
            SITE.replace("{h200: 141}", "{small: 8}"),
            "the step needs a GPU with 40 GB, and slurm.gpu.types has none: {'small': 8.0}",
        ),
        ("fine", SITE + "  directives: [--unheard-of=1]\n", "(change slurm.directives)"),
        ("fine", SITE + "  command: [/nonexistent/ssh, login]\n", "/nonexistent/ssh: No such file or directory; slurm.command"),
    ],
)
def test_a_refused_job_fails_its_step_with_slurms_words_and_the_key_to_change(slurm, new_toy, asset, site, said):
    toy = new_toy(slurm, site)
    code, output = toy.run(asset)
    assert code == 1 and said in output, output
    assert f"step {asset} failed: slurm refused the job of step {asset}: " in output
    assert not toy.notes(asset)
    assert not list((toy.path / "logs").glob("*/*.json")), "a start file with credentials was left"


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_commands_through_a_prefix_like_ssh(slurm, new_toy, tmp_path, shell):
    """ssh joins its words and has a shell read them again."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\ncd / && echo "$*" >> {tmp_path}/asked && shift && exec {shell} -c "$*"\n')
    ssh.chmod(0o755)
    toy = new_toy(slurm, SITE + f"  command: [{ssh}, login]\n")
    code, output = toy.run("fine", "killed", timeout=240)
    assert code == 0, output
    assert len(toy.notes("fine")) == 1 and len(toy.notes("killed")) == 2
    asked = (tmp_path / "asked").read_text()
    assert "login sbatch" in asked and "login squeue" in asked


def test_gpu_steps_by_route_and_the_rest_here(slurm, new_toy):
    site = SITE.replace("backend: slurm", "backend: local\n  routes: {gpus: slurm, 'flak?': slurm}")
    toy = new_toy(slurm, site)
    code, output = toy.run("on_gpu", "fine", "flaky", "at_home", timeout=240)
    assert code == 0, output
    assert "on_gpu - ENGINE_EVENT - runs on slurm (executor.routes.gpus)" in output
    assert "fine - ENGINE_EVENT - runs on local (executor.backend)" in output
    assert "flaky - ENGINE_EVENT - runs on slurm (executor.routes.flak?)" in output
    assert "at_home - ENGINE_EVENT - runs on local (its tag aframe/backend)" in output
    (note,) = toy.notes("on_gpu")
    assert note["CUDA_VISIBLE_DEVICES"] in ("0", "1") and note["SLURM_JOB_PARTITION"] == "gpu"
    assert "SLURM_JOB_ID" not in toy.notes("fine")[0] and "SLURM_JOB_ID" in toy.notes("flaky")[0]


def test_a_controller_away_for_30_seconds_fails_nothing(slurm, toy):
    process = toy.start("waiting", "after_waiting")
    toy.wait_for("waiting")
    slurm.stop_controller()
    time.sleep(30)
    slurm.start_controller()
    output = ""
    for line in process.stdout:
        output += line
        if "answers again" in line:
            (toy.notes_dir / "go").touch()
    assert process.wait(60) == 0, output
    assert output.count("aframe: slurm does not answer") == 1
    assert output.count("slurm: does not answer") == 1 and output.count("slurm: answers again") == 1
    assert len(toy.notes("waiting")) == len(toy.notes("after_waiting")) == 1


def test_a_controller_away_when_a_job_is_submitted(slurm, toy):
    slurm.stop_controller()
    try:
        process = toy.start("fine")
        wait_until(lambda: list((toy.path / "logs").glob("*/fine.0.sbatch")), 60, "a try")
        time.sleep(12)
    finally:
        slurm.start_controller()
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert "slurm: will be submitted when slurm answers (1 core, 0.6 GB, 10 min)" in output
    assert f"slurm: job {job_of(toy, 'fine.0')['id']} was submitted" in output
    assert len(toy.notes("fine")) == 1


def test_two_runs_at_once(slurm, toy):
    first, second = toy.start("fine"), toy.start("flaky")
    outputs = [p.communicate(timeout=240)[0] for p in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert len(toy.notes("fine")) == 1 and len(toy.notes("flaky")) == 2


def test_a_job_past_its_time_limit_is_warned_and_tried_again(slurm, toy):
    code, output = toy.run("endless", timeout=300)
    assert code == 0, output
    assert len(toy.notes("endless")) == 2
    assert "aframe: the job's time limit of 1 min is near; the step is interrupted" in output


def test_fan_out_of_50(slurm, new_toy):
    toy = new_toy(slurm, SITE, TOY_PARTS="50")
    code, output = toy.run("fanned", timeout=580)
    assert code == 0, output
    (result,) = toy.notes("collected")
    assert (result["count"], result["total"]) == (50, sum(range(50)))
    assert len(toy.notes("part3")) == 2
    assert len(list((toy.path / "logs").glob("*/*.job"))) == 53
