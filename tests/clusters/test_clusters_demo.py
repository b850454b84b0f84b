"""The demo's graph in one `aframe run`: network and search on SLURM with a GPU of its making, all else here."""

from __future__ import annotations

import json

import pytest
import yaml

SITE = {
    "store": {"root": "store"},
    "executor": {
        "backend": "local",
        "routes": {"model": "slurm", "inference_results": "slurm"},
        "max_memory_gb": 6,
        "max_time_min": 600,
        "poll_seconds": 1,
        # the same threads as in the run that this one is compared with
        "env": ["OMP_NUM_THREADS"],
    },
    "slurm": {"partition": "gpu", "directives": ["--gpus-per-node=h200:1"]},
}


@pytest.mark.timeout(3600)
def test_the_demo_with_its_network_and_search_on_slurm_equals_the_local_run(slurm, new_run, tiny_run):
    run = new_run(env=slurm.env).init()
    (run.path / "site.yaml").write_text(yaml.safe_dump(SITE))
    run.run(timeout=1800)
    jobs = {json.loads(p.read_text())["id"]: p.name for p in (run.path / "logs").glob("*/*.job")}
    assert {name.split(".")[0] for name in jobs.values()} == {"model", "inference_results"}
    assert sum(name.startswith("inference_results.") for name in jobs.values()) > 2
    states = slurm.jobs()
    assert {states[job] for job in jobs} == {"COMPLETED"}
    assert all("gpu:h200:1" in slurm.client("scontrol", "show", "job", job).stdout for job in jobs)
    assert run.contents() == tiny_run.contents()
