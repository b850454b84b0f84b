"""The folder of shipped weights is made from a run, whole or not at all, and its card says what the run's files say."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
import pytest
from gwosc_file import write_gwosc

from aframe_assets.inference.merger_time import Calibration
from aframe_assets.inference.search_record import SearchRecord
from aframe_assets.model.bundle import load_bundle
from aframe_assets.waveforms.ledger import EventSet
from aframe_ops.cli.initialise import initialise
from benchmarks import model_card, pretrained
from benchmarks.pretrained import PackagingError, package

GW150914 = 1126259462


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """White noise in the place of real data: of both detectors around GW150914, and of one for slides."""
    folder, rng = tmp_path_factory.mktemp("real"), np.random.default_rng(0)
    (folder / "strain").mkdir()
    for ifo in ("H1", "L1"):
        write_gwosc(folder / "strain" / f"{ifo}.hdf5", ifo, GW150914 - 14, 1e-22 * rng.standard_normal(24 * 2048), 2048)
    with h5py.File(folder / "noise.hdf", "w") as f:
        data = f.create_dataset("data", data=1e-22 * rng.standard_normal(64 * 2048))
        data.attrs.update({"start_time": 1238205077.0, "delta_t": 1 / 2048})
    return folder


@pytest.fixture(scope="module")
def packed(tiny_run, real, tmp_path_factory):
    output = tmp_path_factory.mktemp("packed") / "pretrained"
    return package(tiny_run.path, output, strain=real / "strain", noise=real / "noise.hdf", replicates=20)


def test_the_folder_is_the_run_s_model_and_its_search(tiny_run, packed):
    workspace = tiny_run.workspace()
    model, events = workspace.complete("model"), workspace.complete("events")
    own = workspace.store.open_local(model)
    for name in ("model.safetensors", "bundle.json", "metrics.csv", "config.json"):
        assert (packed / name).read_bytes() == (own / name).read_bytes()
    assert load_bundle(packed).ifos == ["H1", "L1"]
    record = SearchRecord.read(packed)
    background = EventSet.read(workspace.store.open_local(events, "background.hdf5"))
    np.testing.assert_allclose(record.detection_statistic, np.sort(background.detection_statistic), rtol=1e-6)
    assert record.Tb == background.Tb and record.inference.inference_rate == workspace.config.inference.inference_rate
    assert record.calibration == Calibration.from_meta(events.meta["merger_time_calibration"])
    assert record.noise.startswith("simulated noise (Gaussian, aLIGO_O4_high_asd.txt, lines at 36") and "30 glitches" in record.noise
    assert (packed.stat().st_mode & 0o777) == 0o755 and not list(packed.parent.glob(".pretrained*"))


def test_the_card_says_what_the_files_say(tiny_run, packed):
    card, workspace = (packed / "CARD.md").read_text(), tiny_run.workspace()
    volume = json.loads(workspace.store.open_local(workspace.complete("sensitive_volume"), "sensitive_volume.json").read_text())
    events, training = workspace.complete("events").meta, workspace.config.model.training
    epochs = len((packed / "metrics.csv").read_text().splitlines()) - 1
    assert f"{epochs * training.batches_per_epoch * training.batch_size:,} windows: {epochs} epochs" in card
    assert f"{volume['num_draws']:,} draws" in card and f"{events['num_background']:,} events" in card
    assert "none of it seen in training" in card and "IMRPhenomPv2" in card and "mass_1 = PowerLaw(alpha=-1, minimum=8" in card
    # efficiency by SNR: a tiny network finds few, but every bin has a number with an error
    rows = re.findall(r"^\| SNR (?:above \d+|\d+ to \d+) \| (\d\.\d+) ± (\d\.\d+)", card, re.MULTILINE)
    assert len(rows) == 6 and all(0 <= float(share) <= 1 for share, _ in rows)
    assert len(re.findall(r"^\| V \d+\+\d+, Gpc\^3 \| \d+\.\d+ ± \d+\.\d+ \|", card, re.MULTILINE)) == 4
    assert (packed / "efficiency.svg").stat().st_size > 1000
    assert "| GW150914 |" in card and "GW151226" not in card
    assert "One detector's real noise against itself, slid" in card and "Trained on simulated noise" in card


def test_slides_of_one_detector(tiny_run, packed, real):
    from aframe_ops.cli.models import open_model

    model = open_model(packed, "cpu")
    slid = pretrained.slide_against_itself(real / "noise.hdf", model, num=2)
    # 64 s less psd_length, fduration, kernel and integration (+ one output), less the shift
    full = 64 - 8 - 1 - 1.5 - 1.5 + 0.25
    assert slid.Tb == (full - 16) + (full - 32)
    assert {tuple(s) for s in slid.shift} == {(0.0, 16.0), (0.0, 32.0)}


def test_what_cannot_be_shipped_is_refused_and_the_old_folder_stays(tiny_run, packed, tmp_path, monkeypatch):
    output = tmp_path / "pretrained"
    output.mkdir()
    (output / "CARD.md").write_text("old")
    run, _ = initialise(tmp_path / "new", "demo")
    with pytest.raises(PackagingError, match="segments, model, events, sensitive_volume is not complete"):
        package(run.path, output)
    with pytest.raises(PackagingError, match="has not trained this model"):
        package(tiny_run.path, output, trained_in=run.path)
    monkeypatch.setattr(pretrained, "LIMIT", 1000)
    with pytest.raises(PackagingError, match="expected at most 1,000"):
        package(tiny_run.path, output)
    monkeypatch.undo()
    monkeypatch.setattr(model_card, "render", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        package(tiny_run.path, output)
    assert [p.name for p in tmp_path.iterdir() if "pretrained" in p.name] == ["pretrained"]
    assert (output / "CARD.md").read_text() == "old"
    monkeypatch.undo()
    package(tiny_run.path, output, replicates=2)
    assert (output / "CARD.md").read_text().startswith("# Model card") and "Not tried on any." in (output / "CARD.md").read_text()
    assert [p.name for p in tmp_path.iterdir() if "pretrained" in p.name] == ["pretrained"]
