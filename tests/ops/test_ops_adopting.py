"""`aframe adopt`: files of Aframe's layout become artifacts, and those that are not what is wanted are refused whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from aframe_ops.cli.main import app
from aframe_ops.run_directory import RunDirectory

STARTS, SECONDS, RATE = (1240600000, 1240600100), 16, 2048
SERIES = 2048 * 8
"""Samples of a waveform of the preset demo."""


def aframe(*args) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    done = CliRunner().invoke(app, [str(a) for a in args])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def run(tmp_path) -> Path:
    """A run directory whose two segments are known."""
    path = tmp_path / "run"
    assert aframe("init", path, "--preset", "demo")[0] == 0
    settings = {"num_training_signals": 5, "num_validation_signals": 3}
    (path / "aframe.yaml").write_text(yaml.safe_dump({"preset": "demo", "waveforms": settings}))
    workspace = RunDirectory.find(path).workspace()
    rows = {f"{s}-{SECONDS}": {"gps_start": s, "gps_stop": s + SECONDS, "role": "train", "fingerprint": ""} for s in STARTS}
    (tmp_path / "segments.csv").write_text("")
    workspace.store.publish(workspace.wanted("segments").parts, {"a": tmp_path / "segments.csv"}, {"rows": rows, "roles": {}})
    return path


def strain_file(folder: Path, start: int, *, rate: int = RATE, seconds: int = SECONDS, ifos=("H1", "L1"), hole: bool = False) -> Path:
    """As gwpy writes it, by h5py alone."""
    rng, path = np.random.default_rng(start), folder / f"background-{start}-{SECONDS}.hdf5"
    with h5py.File(path, "w") as f:
        for ifo in ifos:
            strain = rng.normal(scale=1e-21, size=seconds * rate)
            if hole:
                strain[5 * rate : 6 * rate] = 0
            f.create_dataset(ifo, data=strain).attrs.update({"x0": float(start), "dx": 1 / rate, "xunit": "s", "name": ifo, "channel": ifo})
    return path


def test_background_of_another_run_is_taken_with_its_bytes(run, tmp_path):
    files = [strain_file(tmp_path, start) for start in STARTS]
    sums = tmp_path / "SHA256SUMS"
    sums.write_text("".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  old/{p.name}\n" for p in files))
    code, out, err = aframe("adopt", "background", *files, "--to", run, "--sums", sums)
    assert code == 0 and "is background[1240600000-16]" in out, err
    workspace = RunDirectory.find(run).workspace()
    for path, start in zip(files, STARTS, strict=True):
        handle = workspace.complete("background", f"{start}-{SECONDS}")
        assert workspace.store.open_local(handle, path.name).read_bytes() == path.read_bytes()
        assert handle.meta["adopted_from"] == str(path) and handle.meta["range_mpc"].keys() == {"H1", "L1"}
        assert workspace.store.manifest("background", handle.partition).provenance["run_id"].startswith("adopted by ")
    assert "was complete already" in aframe("adopt", "background", files[0], "--to", run)[1]
    code, _, err = aframe("adopt", "background", *files, "--to", run, "--sums", tmp_path / "gone")
    assert code == 2 and f"--sums {tmp_path / 'gone'}: cannot be read: No such file" in err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": 1024}, "sampled at 1024 Hz, expected 2048 Hz"),
        ({"seconds": 15}, "the chunk is not all there"),
        ({"ifos": ("H1",)}, "no strain of L1"),
        ({"hole": True}, "a gap of 1.000 s"),
    ],
)
def test_of_many_files_none_is_taken_when_one_is_wrong(run, tmp_path, wrong, message):
    files = [strain_file(tmp_path, STARTS[0]), strain_file(tmp_path, STARTS[1], **wrong)]
    code, _, err = aframe("adopt", "background", *files, "--to", run)
    assert code == 1 and message in err and str(files[1]) in err
    assert RunDirectory.find(run).workspace().store.manifests("background") == {}


def test_other_bytes_other_times_and_other_assets_are_refused(run, tmp_path):
    path = strain_file(tmp_path, STARTS[0])
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(f"{'0' * 64}  {path.name}\n")
    code, _, err = aframe("adopt", "background", path, "--to", run, "--sums", sums)
    assert code == 1 and "expected 000000000000" in err
    sums.write_text(f"{'0' * 64}  other.hdf5\n")
    assert "not among the sha256 sums" in aframe("adopt", "background", path, "--to", run, "--sums", sums)[2]
    sums.write_text("md5 what\n")
    assert aframe("adopt", "background", path, "--to", run, "--sums", sums)[0] == 2
    other = path.rename(tmp_path / "background-1240600050-16.hdf5")
    code, _, err = aframe("adopt", "background", other, "--to", run)
    assert code == 2 and "nearest is 1240600000 to 1240600016" in err
    assert "segments list" in err
    code, _, err = aframe("adopt", "events", other, "--to", run)
    assert code == 2 and "expected one of background, training_waveforms, validation_waveforms" in err
    assert aframe("adopt", "background", tmp_path / "none.hdf5", "--to", run)[0] == 2


def waveform_file(
    path: Path, number: int, *, series=("cross", "plus"), rate: float = RATE, silent: bool = False, left_out: str = ""
) -> Path:
    """Reference 2.12's layout, by h5py alone."""
    names = "mass_1 mass_2 a_1 a_2 tilt_1 tilt_2 phi_12 phi_jl ra dec redshift psi theta_jn phase".split()
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as f:
        f.attrs.update({"sample_rate": rate, "duration": 8.0, "right_pad": 2.0, "num_injections": number, "length": number})
        for name in names:
            if name != left_out:
                f.create_dataset(f"parameters/{name}", data=np.ones(number))
        for name in series:
            waves = rng.normal(size=(number, SERIES)).astype(np.float32)
            if silent:
                waves[2] = 0
            f.create_dataset(f"waveforms/{name}", data=waves)
    return path


def test_training_waveforms(run, tmp_path):
    config = RunDirectory.find(run).config()
    assert (config.waveforms.duration, config.waveforms.right_pad, config.sample_rate) == (8, 2, RATE)
    path = tmp_path / "train_waveforms.hdf5"
    for wrong, message in (
        ({"rate": 4096}, "sample_rate is 4096"),
        ({"series": ("h1", "l1")}, "expected series cross, plus"),
        ({"silent": True}, "1 waveforms are not finite or zero throughout"),
        ({"left_out": "psi"}, "parameters ['psi'] are missing"),
    ):
        code, _, err = aframe("adopt", "training_waveforms", waveform_file(path, 5, **wrong), "--to", run)
        assert code == 1 and message in err, err
    code, _, err = aframe("adopt", "training_waveforms", waveform_file(path, 4), "--to", run)
    assert code == 1 and "4 signals, 5 were wanted" in err
    path.write_bytes(b"no HDF5")
    assert "not a file of WaveformPolarizationSet" in aframe("adopt", "training_waveforms", path, "--to", run)[2]
    assert aframe("adopt", "training_waveforms", waveform_file(path, 5), "--to", run)[0] == 0
    handle = RunDirectory.find(run).workspace().complete("training_waveforms")
    assert [f.name for f in handle.files] == ["training_waveforms.hdf5"] and handle.meta["num_signals"] == 5


def test_validation_waveforms_wait_for_the_psd_that_they_depend_on(run, tmp_path):
    code, _, err = aframe("adopt", "validation_waveforms", waveform_file(tmp_path / "v.hdf5", 3), "--to", run)
    assert code == 1 and "validation_waveforms needs psd" in err and "aframe run --until psd" in err
