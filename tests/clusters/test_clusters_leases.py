"""Jobs whose run is killed, most on a real SLURM: the next run waits for them, `aframe reap` ends them, two runs share them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from conftest import job_of
from tiny_run import RunDirectory, wait_for

from aframe_assets.store.leases import Lease
from aframe_ops.leases_watch import Watch, identified, now
from aframe_ops.site import load_site

HOLD = 'case "$SLURM_JOB_NAME" in {steps}*) while [ -e {gate} ]; do sleep 0.2; done;; esac\n'


@pytest.fixture
def gate(tmp_path) -> Path:
    """Jobs do not get past their set-up as long as this file is there."""
    path = tmp_path / "gate"
    path.touch()
    return path


@pytest.fixture
def on_slurm(slurm, new_run, gate):
    """Makes run directories in which `asset` is made by jobs, and those whose name starts with `steps` wait at the gate."""

    def make(asset: str, steps: str, name: str = "run", store: str = "store") -> RunDirectory:
        run = new_run(name, slurm.env).init()
        executor = {"backend": "local", "routes": {asset: "slurm"}, "poll_seconds": 0.5, "max_memory_gb": 2, "env": ["OMP_NUM_THREADS"]}
        site = {"store": {"root": store}, "executor": executor, "slurm": {"setup": HOLD.format(steps=steps, gate=gate)}}
        (run.path / "site.yaml").write_text(yaml.safe_dump(site))
        return run

    return make


def jobs_of(run: RunDirectory, steps: str = "") -> dict[str, str]:
    """Id -> id of the run, of every job that was submitted here for steps with names that begin so."""
    return {json.loads(p.read_text())["id"]: p.parent.name for p in run.path.glob(f"logs/*/{steps}*.job")}


def killed_at_the_gate(slurm, run: RunDirectory, asset: str, steps: str, count: int) -> tuple[set[str], str]:
    """Ids of its jobs, all running, and id of a run whose worker was killed."""
    first = run.start("--until", asset)
    wait_for(lambda: len(jobs_of(run, steps)) == count, 300, f"{count} jobs submitted")
    jobs = jobs_of(run, steps)
    wait_for(lambda: {slurm.jobs()[job] for job in jobs} == {"RUNNING"}, 120, "its jobs running")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    return set(jobs), next(iter(jobs.values()))


def test_the_next_run_waits_for_the_jobs_of_a_killed_one(slurm, on_slurm, gate):
    steps = "background.make_background"
    run = on_slurm("background", steps)
    jobs, dead = killed_at_the_gate(slurm, run, "background", steps, 3)
    (run.path / "run.out").write_text("")
    second = run.start("--until", "background")
    said = wait_for(lambda: (t := (run.path / "run.out").read_text()).count("waits for slurm job") == 3 and t, 300, "three steps that wait")
    assert f"run {dead[:8]} of this directory had died; its jobs go on: " in said
    assert all(f"waits for slurm job {job} of run {dead[:8]}" in said and f"to end that job: scancel {job};" in said for job in jobs)
    assert jobs_of(run, steps).keys() == jobs, "none was submitted a second time"
    gate.unlink()
    assert second.wait(400) == 0, (run.path / "run.out").read_text()
    workspace = run.workspace()
    made_by = {m.provenance["run_id"] for m in workspace.store.manifests("background").values()}
    assert made_by == {dead}, "the jobs of the killed run have made everything"
    assert {slurm.jobs()[job] for job in jobs} == {"COMPLETED"}
    assert not list(run.path.glob("store/_leases/*.json"))
    assert "no run of this directory is active" in run.aframe("reap", str(run.path)).stdout


def test_reap_cancels_the_jobs_of_a_killed_run(slurm, on_slurm, gate):
    run = on_slurm("segments", "segments")
    (job,), dead = killed_at_the_gate(slurm, run, "segments", "segments", 1)
    said = run.aframe("reap", str(run.path), "--dry-run").stdout
    assert f"slurm {job}" in said and "would be cancelled" in said and slurm.jobs()[job] == "RUNNING"
    said = run.aframe("reap", str(run.path)).stdout
    assert f"run {dead[:8]} had died; marked failed" in said and f"slurm {job}" in said
    wait_for(lambda: slurm.jobs()[job] == "CANCELLED", 60, "the job to be cancelled")
    gate.unlink()
    run.run("--until", "segments")
    (other,) = jobs_of(run).keys() - {job}
    assert run.workspace().store.manifest("segments").provenance["run_id"] == jobs_of(run)[other]


def test_two_run_directories_on_one_store_do_the_same_work_once(slurm, on_slurm, gate, tmp_path):
    runs = [on_slurm("segments", "segments", name, str(tmp_path / "store")) for name in ("one", "two")]
    processes = [run.start("--until", "segments") for run in runs]
    wait_for(lambda: any("waits for slurm job" in (run.path / "run.out").read_text() for run in runs), 300, "one that waits")
    (first,) = [run for run in runs if jobs_of(run)]
    ((job, run_id),) = jobs_of(first).items()
    # neither directory's `aframe reap` touches the other's job, nor its own live one
    for run in runs:
        assert "cancelled" not in run.aframe("reap", str(run.path)).stdout
    assert slurm.jobs()[job] == "RUNNING"
    gate.unlink()
    assert [p.wait(300) for p in processes] == [0, 0], [(run.path / "run.out").read_text() for run in runs]
    assert first.workspace().store.manifest("segments").provenance["run_id"] == run_id
    assert sorted(len(jobs_of(run)) for run in runs) == [1, 1], "the other one has only read it"


def test_a_job_whose_worker_was_killed_is_known_by_its_name_to_whoever_asks(cluster, new_toy, monkeypatch):
    # The client of Kubernetes looks for KUBECONFIG when it is imported, and this process may have done so long ago.
    kubeconfig = f"  kubeconfig: {cluster.env['KUBECONFIG']}\n" if "KUBECONFIG" in cluster.env else ""
    toy = new_toy(cluster, cluster.site + kubeconfig)
    process = toy.start("waiting")
    toy.wait_for("waiting", timeout=300)
    record = wait_for(
        lambda: list((toy.path / "logs").glob("*/waiting.0.job")) and job_of(toy, "waiting.0"), 60, "what is written of the job"
    )
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for name, value in toy.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(toy.path)
    run_id = toy.log("waiting.0.job").parent.name
    about = {"run": run_id, "step": "waiting", "attempt": 0, "host": "h", "user": "u", "directory": "/d", "when": now(), "asset": "a"}
    lease = Lease(backend=cluster.name, name=record["name"], submitted_as=record["submitted_as"], job=record["id"], **about)
    watch = Watch(load_site(), 0.0)
    assert not watch.over([lease]) and not watch.trouble(lease)
    assert record["id"] in watch.how_to_stop(lease)
    assert identified(watch.scheduler(cluster.name, run_id), [(record["id"] + "0", record["submitted_as"])]) == [None]
    watch.scheduler(cluster.name, run_id).cancel([record["id"]])
    wait_for(lambda: watch.over([lease]), 60, "the end of the job")
