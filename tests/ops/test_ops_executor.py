"""What every step may do to the executor: succeed, fail, be killed, vanish, be interrupted."""

from __future__ import annotations

import os
import re
import signal
import time
from itertools import pairwise

import pytest

from aframe_ops.executor.base import Attempt, Request, RunFiles, RunSetup
from aframe_ops.executor.budget import Budget, machine_gpus
from aframe_ops.executor.executor import HANDLERS
from aframe_ops.site import SiteConfig


def gone(toy, timeout: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout
    while toy.processes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_success_retry_kill_and_vanishing_in_one_run(finished):
    toy, code, output = finished
    assert code == 1, output
    counts = {n: len(toy.notes(n)) for n in ("fine", "flaky", "killed", "vanishing")}
    assert counts == {"fine": 1, "flaky": 2, "killed": 2, "vanishing": 2}
    assert "Step killed failed health check: its process was killed by SIGKILL" in output
    assert "ended with exit code 0 without reporting a result" in output
    assert not any(f"step {name} failed" in output for name in counts)
    assert gone(toy)


def test_each_attempt_has_files_of_its_own(finished):
    toy, _, _ = finished
    assert "first time unlucky" in toy.log("flaky.0.err").read_text()
    assert "first time unlucky" not in toy.log("flaky.1.err").read_text()
    assert toy.log("fine.0.out").read_text() == "fine says hello\n"
    assert "fine complains" in toy.log("fine.0.err").read_text()


def test_start_files_with_credentials_are_not_left_behind(finished):
    toy, _, _ = finished
    assert not list((toy.path / "logs").glob("*/*.[0-9].json"))


def test_output_of_a_step_is_on_its_page(finished):
    toy, _, _ = finished
    pages = list((toy.path / "dagster_home" / "storage").glob("*/compute_logs/*"))
    assert any(p.suffix == ".out" and "fine says hello" in p.read_text() for p in pages)
    assert any(p.suffix == ".err" and "fine complains" in p.read_text() for p in pages)


def test_a_step_that_is_always_killed_fails_with_a_clear_line(finished):
    toy, _, output = finished
    assert "step killed_always failed: Step killed_always failed health check: its process was killed by SIGKILL" in output
    assert str(toy.log("killed_always.0.err")) in output


def test_a_missing_upstream_is_one_line_and_no_retry(finished):
    toy, _, output = finished
    lines = [line for line in output.splitlines() if line.startswith("aframe:")]
    assert lines == ["aframe: missing needs fine, which is missing; make it with `aframe run --until fine`"]
    assert len(toy.notes("missing")) == 1


@pytest.mark.parametrize("target", ["process", "group"])
def test_kill_of_the_run_worker_leaves_no_orphans_and_the_same_again_works(toy, target):
    process = toy.start("waiting")
    (note,) = toy.wait_for("waiting")
    (os.killpg if target == "group" else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    assert gone(toy), [p.cmdline() for p in toy.processes()]
    assert not _lives(note["pid"]) and not _lives(note["child"])
    code, output = toy.run("waiting")
    assert code == 0, output


def _lives(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_steps_too(toy, number):
    process = toy.start("waiting")
    toy.wait_for("waiting")
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1, output
    assert gone(toy)


def test_kill_of_the_fork_server_fails_its_steps(toy):
    process = toy.start("waiting")
    (note,) = toy.wait_for("waiting")
    import psutil

    psutil.Process(note["pid"]).parent().kill()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the fork server of this run ended" in output
    assert gone(toy)


def test_editing_the_experiment_during_a_run_changes_nothing_in_flight(toy):
    process = toy.start("slow", "after_slow")
    toy.wait_for("slow")
    (toy.path / "aframe.yaml").write_text("preset: demo\nseed: 8\nname: edited\n")
    (toy.path / "site.yaml").write_text("executor: {cores: 1, memory_gb: 1}\nstore: {root: elsewhere}\n")
    (toy.notes_dir / "go").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    (before,), (after,) = toy.notes("slow"), toy.notes("after_slow")
    assert (before["seed"], before["name"]) == (after["seed"], after["name"]) == (7, "aframe")
    code, output = toy.run("after_slow")
    assert code == 0, output
    assert (toy.notes("after_slow")[-1]["seed"], toy.notes("after_slow")[-1]["name"]) == (8, "edited")


def test_cores_and_memory_are_handed_out(toy):
    code, output = toy.run("one_a", "one_b", "hungry", "huge")
    assert code == 0, output
    spans = {n["name"]: (n["start"], n["stop"]) for n in toy.notes("sized")}
    assert len(spans) == 4
    need = {"one_a": (1, 1), "one_b": (1, 1), "hungry": (1, 3), "huge": (2, 1)}
    for moment in sorted(t for span in spans.values() for t in span):
        running = [n for n, (a, b) in spans.items() if a <= moment < b]
        assert sum(need[n][0] for n in running) <= 2, running
        assert sum(need[n][1] for n in running) <= 4, running
    # two that fit together did run together, and the one that asks for 64 cores got the machine's two
    ordered = sorted(spans.values())
    assert any(b > c for (_, b), (c, _) in pairwise(ordered))
    assert {n["name"]: n["threads"] for n in toy.notes("sized")} == {"one_a": "1", "one_b": "1", "hungry": "1", "huge": "2"}
    assert re.search(r"waits for [12] of 2 cores", output)


@pytest.mark.parametrize("per_gpu", [1, 2])
def test_gpus_are_handed_out_by_name(toy, per_gpu):
    site = f"executor: {{cores: 4, memory_gb: 4, gpus: [0, GPU-7e], steps_per_gpu: {per_gpu}}}\n"
    (toy.path / "site.yaml").write_text(site)
    code, output = toy.run("on_gpu_a", "on_gpu_b", "on_gpu_c", "on_two", "on_many", "one_a")
    assert code == 0, output
    notes = {n["name"]: n for n in toy.notes("sized")}
    assert notes["on_two"]["gpus"] == notes["on_many"]["gpus"] == "0,GPU-7e", "what is there, for a step that asks for more"
    assert notes.pop("one_a")["gpus"] == os.environ.get("CUDA_VISIBLE_DEVICES")
    for moment in sorted(n["start"] for n in notes.values()):
        held = [g for n in notes.values() if n["start"] <= moment < n["stop"] for g in n["gpus"].split(",")]
        assert all(held.count(g) <= per_gpu for g in held), held
    assert {notes[f"on_gpu_{c}"]["gpus"] for c in "abc"} == {"0", "GPU-7e"}
    assert "1 of 2 GPUs" in output


def test_which_gpu_is_first_does_not_depend_on_what_else_runs():
    budget = Budget(4, 4, ["0", "GPU-7e"], steps_per_gpu=2)
    assert budget.take(Attempt("run", "one", 0), Request(gpus=1)) == ("0",)
    assert budget.take(Attempt("run", "two", 0), Request(gpus=2)) == ("0", "GPU-7e")
    assert budget.take(Attempt("run", "three", 0), Request(gpus=1)) == ("GPU-7e",), "the least used one"


def test_gpus_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-a")
    assert machine_gpus() == ["2", "GPU-a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine_gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 0\necho 1\n")
    tool.chmod(0o755)
    assert machine_gpus() == ["0", "1"]
    tool.write_text("#!/bin/sh\necho 'could not communicate with the driver'\nexit 9\n")
    assert machine_gpus() == []


def test_gpus_are_looked_for_once_and_only_when_a_step_wants_one(monkeypatch, tmp_path):
    """nvidia-smi may take 20 s where a GPU hangs."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\necho 0\necho 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    budget = HANDLERS["local"](RunSetup(RunFiles(tmp_path), {}), SiteConfig(directory=tmp_path))._budget
    plain, wants = Request(cpus=0, memory_gb=0), Request(cpus=0, memory_gb=0, gpus=3)
    assert budget.share(plain).gpus == 0 and budget.take(Attempt("r", "plain", 0), plain) == ()
    assert not (tmp_path / "asked").exists()
    assert budget.share(wants).gpus == 2 and budget.take(Attempt("r", "wants", 0), wants) == ("0", "1")
    assert budget.take(Attempt("r", "waits", 0), wants) is None
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_without_a_fork_server(toy):
    (toy.path / "site.yaml").write_text("executor: {cores: 2, memory_gb: 4, fork: false}\n")
    code, output = toy.run("killed", "missing")
    assert code == 1
    assert len(toy.notes("killed")) == 2 and "its process was killed by SIGKILL" in output
    assert sum(line.startswith("aframe:") for line in output.splitlines()) == 1


def test_an_unknown_backend_is_named(toy):
    (toy.path / "site.yaml").write_text("executor: {backend: slurmm}\n")
    code, output = toy.run("fine")
    assert code != 0 and "executor.backend = 'slurmm'" in output
