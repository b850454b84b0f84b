"""Two experiments run by one process, one after the other."""

from __future__ import annotations

from aframe_assets.config import Comparison
from aframe_ops.cli.initialise import initialise
from aframe_ops.runs import load_job


def test_each_run_has_the_graph_of_its_own_experiment(tmp_path, monkeypatch):
    run, _ = initialise(tmp_path / "run", "demo")
    for name in run.variables:
        # so that what a run sets is undone
        monkeypatch.setenv(name, "")
    run.activate()
    for sha256 in ("a" * 64, "b" * 64):
        chosen = run.config().model_copy(update={"comparison": Comparison(models=[("x", sha256)])})
        with run.pinned(chosen):
            job, _ = load_job(["compared_models", "comparison"])
        assert sha256 in str(job.get_definition().resource_defs["experiment"].config_schema.default_value)
