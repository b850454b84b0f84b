"""What only SLURM does: it says why a job will never start. The rest is in test_clusters_contract.py."""

from __future__ import annotations

import signal

from conftest import job_of


def test_a_job_that_no_node_can_run_is_reported_and_can_be_cancelled(slurm, new_toy):
    toy = new_toy(slurm)
    process = toy.start("impossible")
    line = next(line for line in process.stdout if line.startswith("aframe:"))
    job = job_of(toy, "impossible.0")["id"]
    assert line.startswith(f"aframe: step impossible waits: its slurm job {job} will not start by itself: PartitionConfig")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and f"job {job} was cancelled" in output
    assert slurm.jobs()[job] == "CANCELLED"
