"""The demo's graph in one `aframe run`: network and search are jobs, all else runs here."""

from __future__ import annotations

import json
import shlex
import sys

import pytest
import yaml

EXECUTOR = {
    "backend": "local",
    "max_memory_gb": 6,
    "max_time_min": 600,
    "poll_seconds": 1,
    # the same threads as in the run that this one is compared with
    "env": ["OMP_NUM_THREADS"],
}
SLURM = {"partition": "gpu", "directives": ["--gpus-per-node=h200:1"]}
TIMED = {"engine/None", "report/None"}
"""What holds measured times: of an engine's trial, and of all steps."""

CASES = [("slurm", "direct"), ("kubernetes", "direct"), ("slurm", "detached")]


def without_database(run) -> str:
    """A Python for jobs in which the folder of Dagster's database is another one, and empty."""
    home, python = run.path / "dagster_home", run.path.parent / "python"
    hide = 'mount -t tmpfs none "$0" && touch "$0/hidden" && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", hide, str(home), sys.executable]
    python.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    python.chmod(0o755)
    return str(python)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("cluster", "transport"), [("slurm", "direct"), ("kubernetes", "direct"), ("slurm", "detached")], indirect=["cluster"]
)
def test_the_demo_with_its_network_and_search_as_jobs_equals_the_local_run(cluster, transport, new_run, tiny_run):
    run = new_run(env=cluster.env).init()
    own = SLURM if cluster.name == "slurm" else yaml.safe_load(cluster.site)["kubernetes"]
    if transport == "detached":
        own = {**own, "python": without_database(run)}
    routes = {"model": cluster.name, "inference_results": cluster.name}
    executor = {**EXECUTOR, "routes": routes, "transport": transport}
    (run.path / "site.yaml").write_text(yaml.safe_dump({"store": {"root": "store"}, "executor": executor, cluster.name: own}))
    run.run(timeout=1800)
    assert not (run.path / "dagster_home" / "hidden").exists()
    jobs = {json.loads(p.read_text())["id"]: p.name for p in (run.path / "logs").glob("*/*.job")}
    assert {name.split(".")[0] for name in jobs.values()} == {"model", "inference_results"}
    assert sum(name.startswith("inference_results.") for name in jobs.values()) > 2
    assert all(cluster.ended_well(job) for job in jobs)
    if cluster.name == "slurm":
        assert all("gpu:h200:1" in cluster.client("scontrol", "show", "job", job).stdout for job in jobs)
    ours, theirs = run.contents(), tiny_run.contents()
    assert ours.keys() == theirs.keys()
    # bit for bit, the network too, which was trained with as many threads
    assert {k for k in ours if ours[k] != theirs[k]} <= TIMED
