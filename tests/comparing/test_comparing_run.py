"""`aframe compare` as a user runs it, on a finished run at test size."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import wait_for


@pytest.fixture
def searched(tiny_run, new_run):
    """A copy of the finished run, and beside it `bundles` with other models, of which one breaks when it is searched with."""
    run = new_run("run")
    shutil.copytree(tiny_run.path, run.path)
    workspace = run.workspace()
    source = workspace.store.open_local(workspace.store.manifest("model").handle)
    folder = run.path.parent / "bundles"

    def bundle(name, change=lambda w: w, **conditioning):
        shutil.copytree(source, folder / name)
        torch.manual_seed(1)
        weights = load_file(source / "model.safetensors")
        save_file({k: change(v) if v.is_floating_point() else v for k, v in weights.items()}, folder / name / "model.safetensors")
        description = json.loads((source / "bundle.json").read_text())
        description["conditioning"] |= conditioning
        (folder / name / "bundle.json").write_text(json.dumps(description))

    bundle("changed", lambda v: v + 0.05 * torch.randn_like(v))
    bundle("longer", psd_length=16.0)
    # finite numbers, whose products are not
    bundle("overflows", lambda v: v * 1e30)
    return run


def compared(run, *args, check=True):
    return run.aframe("compare", *args, "--on", str(run.path), check=check, timeout=1800)


def made(run, asset):
    return {p: m.provenance["created"] for p, m in run.workspace().store.manifests(asset).items()}


ASKED = ("run", "bundles/*", "nowhere/missing")


@pytest.mark.slow
def test_three_models_and_two_that_are_not(searched):
    run = searched
    done = compared(run, *ASKED, "--soft", "--json")
    found = json.loads(done.stdout)
    assert [m["name"] for m in found["models"]] == ["run", "changed", "longer"]
    assert set(found["broken"]) == {"missing", "overflows"}
    assert "not found" in found["broken"]["missing"]
    assert found["reference"] == "run"
    # nothing of the experiment can be measured with so little: the lowest rate that all can give is shown
    assert [r["far"] for r in found["not_measurable"]] == [1, 3, 10]
    (rate,) = {v["far"] for m in found["models"] for v in m["values"]}
    shortest = min(m["Tb"] for m in found["models"])
    assert 10 / shortest * 3600 <= rate < 1.01 * 10 / shortest * 3600
    # the model with the longer PSD loses time and injections at the start of each segment, and all are compared on the others
    assert found["models"][2]["Tb"] < found["models"][0]["Tb"] == found["models"][1]["Tb"]
    assert found["num_left_out"] > 0
    assert found["num_left_out"] + found["num_injections"] == 30
    assert len(found["differences"]) == 3 * len(found["quantities"])
    page = open(found["page"]).read()
    assert all(f'<th scope="row">{name}</th>' in page for name in ("run", "changed", "longer", "missing", "overflows"))

    # the run's own model, searched again, gives the run's own events
    workspace = run.workspace()
    ours = workspace.store.open_local(workspace.store.manifest("events").handle)
    sha256 = found["models"][0]["sha256"]
    theirs = workspace.store.open_local(workspace.store.manifest("compared_model", sha256[:16]).handle)
    for name in ("background.hdf5", "foreground.hdf5", "rejected-parameters.hdf5"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name

    # the same again searches nothing; other models in another order neither, for they are there
    before = made(run, "compared_model")
    again = compared(run, "bundles/longer", str(run.path))
    assert made(run, "compared_model") == before
    assert "longer" in again.stdout and "σ" in again.stdout and "page: " in again.stdout
    status = json.loads(run.aframe("status", str(run.path), "--json").stdout)
    assert all(a["done"] for a in status["assets"])


def test_one_that_is_missing_a_run_without_injections_and_none_that_works(searched):
    run = searched
    refused = compared(run, *ASKED, check=False)
    assert refused.returncode == 1
    assert "missing: not found; expected a bundle folder" in refused.stdout
    assert "nothing was searched" in refused.stdout and "--soft" in refused.stdout
    assert not made(run, "compared_model")
    none = compared(run, "nowhere", "bundles/nothing-*", "--soft", check=False)
    assert none.returncode == 1 and "none of the models can be compared" in none.stdout
    experiment = (run.path / "aframe.yaml").read_text()
    (run.path / "aframe.yaml").write_text(experiment.replace("num_signals: 30", "num_signals: 0"))
    refused = compared(run, str(run.path), check=False)
    assert refused.returncode == 2
    assert "injections.num_signals = 0: models are compared by the injections that they find" in refused.stderr


@pytest.mark.slow
def test_a_killed_comparison_goes_on_with_the_segment_that_it_was_at(searched):
    run = searched
    undisturbed = json.loads(compared(run, "bundles/changed", str(run.path), "--json").stdout)
    for folder in run.path.glob("store/compar*"):
        shutil.rmtree(folder)
    log = open(run.path / "compare.out", "ab")
    command = run.command("compare", "bundles/changed", str(run.path), "--on", str(run.path), "--json")
    process = subprocess.Popen(command, stdout=log, stderr=log, env=run.env, cwd=run.path.parent, start_new_session=True)
    wait_for(lambda: made(run, "compared_inference_results"), 400, "the first segment")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = made(run, "compared_inference_results") | made(run, "compared_engine")
    assert not made(run, "comparison")
    found = json.loads(compared(run, "bundles/changed", str(run.path), "--json").stdout)
    after = made(run, "compared_inference_results") | made(run, "compared_engine")
    assert {k: after[k] for k in before} == before
    assert len(after) > len(before)
    assert found | {"page": ""} == undisturbed | {"page": ""}
