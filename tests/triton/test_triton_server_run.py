"""`aframe run` with ``inference.mode: triton``: the events of the run in one process, and no server left behind by a killed run."""

from __future__ import annotations

import os
import re
import signal

import h5py
import numpy as np
import psutil
import pytest
import yaml
from tiny_run import wait_for

pytestmark = pytest.mark.triton


@pytest.fixture
def run(tiny_run, environment, tmp_path):
    """A finished run, copied, whose search is now to be made through a server."""
    copy = tiny_run.copy_to(tmp_path / "run")
    copy.env["AFRAME_TRITON_ENV"] = str(environment.folder)
    settings = yaml.safe_load((copy.path / "aframe.yaml").read_text())
    settings.setdefault("inference", {})["mode"] = "triton"
    (copy.path / "aframe.yaml").write_text(yaml.safe_dump(settings))
    return copy


def events(run) -> dict[str, dict[str, np.ndarray]]:
    """File -> dataset -> values of the run's events."""
    workspace = run.workspace()
    folder = workspace.store.open_local(workspace.complete("events"))
    out = {}
    for path in sorted(folder.glob("*.hdf5")):
        with h5py.File(path) as f:
            out[path.name] = {}
            f.visititems(
                lambda name, item, found=out[path.name]: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
    return out


def test_a_run_through_a_server_has_the_events_of_one_without(tiny_run, run):
    wanted = events(tiny_run)
    run.run("--until", "events")
    got = events(run)
    assert got.keys() == wanted.keys() and sum(len(v) for v in wanted["background.hdf5"].values()) > 0
    for name, datasets in wanted.items():
        assert got[name].keys() == datasets.keys()
        for key, values in datasets.items():
            if values.dtype.kind == "f":
                assert np.allclose(got[name][key], values, rtol=1e-5, atol=1e-5, equal_nan=True), (name, key)
            else:
                assert np.array_equal(got[name][key], values), (name, key)
    logs = sorted(run.path.glob("logs/*/triton/*/triton.log"))
    assert logs and all((p.parent / "triton-metrics.csv").is_file() for p in logs)
    print(f"{len(logs)} servers for {len(wanted)} files of events")


def test_a_killed_run_leaves_no_server(run):
    program = run.start("--until", "events")
    log = wait_for(lambda: next(iter(run.path.glob("logs/*/triton/*/triton.log")), None), 120, "the start of a server")
    wait_for(lambda: "Started GRPCInferenceService" in log.read_text(), 60, "a server that answers")
    step = psutil.Process(int(re.match(r"(\d+)-", log.parent.name)[1]))
    started = step.children(recursive=True)
    assert any("tritonserver" in p.name() for p in started)
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    gone = [step, *started]
    assert wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in gone), 30, "the end of the server")
