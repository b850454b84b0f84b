"""Bodies of the room's assets: files, metadata, checks; and the checks themselves on what they must catch."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pytest

from aframe_assets.config_load import build_config
from aframe_assets.store.job import Job
from aframe_assets.waveforms import assets, checks
from aframe_assets.waveforms.ledger import InjectionParameterSet, InterferometerResponseSet, WaveformPolarizationSet, WaveformSet

ROWS = {
    "1240610000-200": {"gps_start": 1240610000.0, "gps_stop": 1240610200.0, "role": "test"},
    "1240610300-150": {"gps_start": 1240610300.0, "gps_stop": 1240610450.0, "role": "test"},
    "1240600000-900": {"gps_start": 1240600000.0, "gps_stop": 1240600900.0, "role": "train"},
}


@dataclass
class Artifact:
    folder: Path
    meta: dict = field(default_factory=dict)


class Folders:
    """The one call of a store that these bodies make."""

    def open_local(self, handle, name=None):
        return handle.folder / name if name else handle.folder


def config(**over):
    small = {
        "waveforms": {"num_training_signals": 7, "num_training_jobs": 2, "num_validation_signals": 5, "num_validation_jobs": 2},
        "injections": {"num_signals": 15},
    }
    return build_config({"preset": "demo"} | small | over, env={})


@pytest.fixture
def job(tmp_path):
    with h5py.File(tmp_path / "psd.hdf5", "w") as f:
        for role in ("validation", "test"):
            for ifo in ("H1", "L1"):
                # no signal reaches the threshold at the level of the typical PSD
                f.create_dataset(f"{role}/{ifo}", data=np.full(8193, 1e-30)).attrs["df"] = 0.125
                f.create_dataset(f"{role}_most_sensitive/{ifo}", data=np.full(8193, 1e-46)).attrs["df"] = 0.125

    def make(asset, partition=None, settings=None):
        scratch = tmp_path / f"{asset}-{partition}"
        scratch.mkdir(exist_ok=True)
        inputs = {"psd": Artifact(tmp_path), "segments": Artifact(tmp_path, {"rows": ROWS})}
        log = logging.getLogger("aframe")
        return Job(settings or config(), asset, partition, inputs, ROWS.get(partition), Folders(), scratch, scratch, log)

    return make


def shards(make, asset, job, number):
    out = []
    for i in range(number):
        one = job(f"{asset}_shard", f"{i}")
        out.append(Artifact(one.scratch, dict(make(one, i).meta)))
    return out


def passed(product):
    return {c.name: c.passed for c in product.checks}


def test_training_waveforms(job):
    made = shards(assets.make_training_shard, "training_waveforms", job, 2)
    product = assets.merge_training(job("training_waveforms"), made)
    signals = WaveformPolarizationSet.read(product.files["training_waveforms.hdf5"])
    assert len(signals) == 7 and set(signals.waveforms) == {"cross", "plus"} and signals.waveforms["plus"].shape == (7, 16384)
    assert signals.coalescence == 12288 and signals.num_injections == 7
    assert passed(product) == {"count": True, "finite": True}
    assert len(np.unique(signals.mass_1)) == 7


def test_validation_waveforms(job):
    made = shards(assets.make_validation_shard, "validation_waveforms", job, 2)
    product = assets.merge_validation(job("validation_waveforms"), made)
    signals = WaveformSet.read(product.files["val_waveforms.hdf5"])
    assert len(signals) == 5 <= signals.num_injections and signals.ifos == ["H1", "L1"] and signals.strain().shape == (5, 2, 16384)
    assert (signals.snr >= 4).all() and signals.snr == pytest.approx(np.sqrt((signals.ifo_snrs**2).sum(1)))
    assert passed(product) == {"count": True, "finite": True, "snr_threshold": True, "snr_distribution": True}


def test_injections_of_all_chunks_are_the_number_wanted_and_can_be_made_again_alone(job):
    total, placed = 0, {}
    for partition in ROWS:
        product = assets.make_injections(job("injections", partition))
        signals = InterferometerResponseSet.read(product.files["waveforms.hdf5"])
        rejected = InjectionParameterSet.read(product.files["rejected-parameters.hdf5"])
        assert passed(product) == {"count": True, "finite": True, "snr_threshold": True, "snr_distribution": True}
        assert signals.num_injections == len(signals) + len(rejected) == product.meta["num_injections"]
        assert (rejected.snr < 4).all() and (signals.snr >= 4).all()
        total, placed[partition] = total + len(signals), signals
    assert total == 15
    assert len(placed["1240600000-900"]) == 0
    test = placed["1240610000-200"]
    assert ((test.injection_time > 1240610000) & (test.injection_time < 1240610200)).all()
    assert InterferometerResponseSet.shifts_of(product.files["waveforms.hdf5"]) == []
    again = assets.make_injections(job("injections", "1240610000-200"))
    same = InterferometerResponseSet.read(again.files["waveforms.hdf5"])
    assert all(np.array_equal(a, dict(same.columns())[k]) for k, a in test.columns())


def test_too_many_injections_are_refused_before_any_is_drawn(job, monkeypatch):
    from aframe_assets.waveforms import sets

    monkeypatch.setattr(sets, "rejection_sample", None)
    settings = config(injections={"num_signals": 900}, inference={"num_slides": 2})
    with pytest.raises(ValueError, match=r"num_signals = 900: 2 test chunks have room for \d+ signals .* set injections.num_signals"):
        assets.make_injections(job("injections", "1240610000-200", settings))


def test_injections_are_seen_as_at_their_own_times(job):
    from aframe_assets.waveforms.generation import WaveformGenerator
    from aframe_assets.waveforms.projection import project

    c = config()
    product = assets.make_injections(job("injections", "1240610000-200"))
    signals = InterferometerResponseSet.read(product.files["waveforms.hdf5"])
    drawn = signals.signals()
    waves, good = WaveformGenerator.of(c)(drawn)
    at = project(waves, drawn, c.ifos, c.sample_rate, signals.injection_time)
    # float32 is stored; a signal does not depend on what else is in a batch
    assert good.all() and np.abs(signals.strain() - at).max() < 1e-6 * np.abs(at).max()
    assert np.abs(signals.strain() - project(waves, drawn, c.ifos, c.sample_rate)).max() > 0.1 * np.abs(at).max()


def test_sets_for_training_are_left_out_with_weights():
    names = lambda c: {k.to_user_string() for a in assets.assets(c) if hasattr(a, "keys") for k in a.keys}  # noqa: E731
    assert {"training_waveforms", "validation_waveforms", "injections"} <= names(config())
    assert not {"training_waveforms", "validation_waveforms"} & names(config(model={"weights": "bundle"}))


def test_checks_catch_what_they_are_for():
    assert checks.silent_or_not_finite({"a": np.ones((3, 4)), "b": np.zeros((3, 4))}) == 0
    assert checks.silent_or_not_finite({"a": np.array([[0.0, 0], [1, np.nan], [1, 1]])}) == 2
    assert not checks.finite(2, 0).passed and not checks.count(3, 4, 9).passed
    assert not checks.snr_threshold(np.array([3.9, 5]), 4.0).passed
    rng = np.random.default_rng(0)
    nearby = checks.snr_distribution(4 * rng.random(5000) ** (-1 / 3), 4.0)
    assert nearby.passed and nearby.metadata["tail_exponent"] == pytest.approx(3, rel=0.05)
    steep = checks.snr_distribution(4 + 0.01 * rng.random(500), 4.0)
    assert not steep.passed and steep.severity == "warn"
