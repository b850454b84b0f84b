"""Strain files: every real file read right, and every fault named with file and GPS time."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from aframe_assets.config import Config
from aframe_assets.segments.strain_headers import quality_mask
from aframe_assets.strain.files import (
    StrainError,
    describe,
    describe_all,
    fetch_files,
    find_files,
    read_stretch,
    require_overlap,
    science_segments,
    times_from_name,
)

NAMES = {
    # name in the data set: [(detector, GPS start, duration, rate, kind)]
    "strain/H-H1_GWOSC_16KHZ_R1-1186741846-32.hdf5": [("H1", 1186741846, 32, 16384, "gwosc_hdf5")],
    "strain/H-H1_GWOSC_16KHZ_R1-1187529241-32.hdf5": [("H1", 1187529241, 32, 16384, "gwosc_hdf5")],
    "strain/H-H1_LOSC_4_V1-1167559920-32.hdf5": [("H1", 1167559920, 32, 4096, "gwosc_hdf5")],
    "strain/H-H1_LOSC_4_V2-1126259446-32.hdf5": [("H1", 1126259446, 32, 4096, "gwosc_hdf5")],
    "strain/H-H1_LOSC_4_V2-1135136334-32.hdf5": [("H1", 1135136334, 32, 4096, "gwosc_hdf5")],
    "strain/L-L1_GWOSC_16KHZ_R1-1186741846-32.hdf5": [("L1", 1186741846, 32, 16384, "gwosc_hdf5")],
    "strain/L-L1_GWOSC_16KHZ_R1-1187529241-32.hdf5": [("L1", 1187529241, 32, 16384, "gwosc_hdf5")],
    "strain/L-L1_LOSC_4_V1-1167559920-32.hdf5": [("L1", 1167559920, 32, 4096, "gwosc_hdf5")],
    "strain/L-L1_LOSC_4_V2-1126259446-32.hdf5": [("L1", 1126259446, 32, 4096, "gwosc_hdf5")],
    "strain/L-L1_LOSC_4_V2-1135136334-32.hdf5": [("L1", 1135136334, 32, 4096, "gwosc_hdf5")],
    "strain/V-V1_GWOSC_16KHZ_R1-1186741846-32.hdf5": [("V1", 1186741846, 32, 16384, "gwosc_hdf5")],
    "frames/H-H1_LOSC_4_V2-1128678884-32.gwf": [("H1", 1128678884, 32, 4096, "gwf")],
    "frames/HLV-HW100916-968654552-1.gwf": [(i, 968654552, 1, 16384, "gwf") for i in ("H1", "L1", "V1")],
    "frames/HLV-HW100916-968654552-1.hdf": [(i, 968654552, 1, 16384, "gwpy_hdf5") for i in ("H1", "L1", "V1")],
    "noise/real_noise.hdf": [("", 1238205077, 500, 2048, "pycbc_hdf5")],
}
H1 = "strain/H-H1_LOSC_4_V2-1126259446-32.hdf5"
START = 1126259446


def config(files, ifos=("H1",), **strain) -> Config:
    return Config(
        ifos=list(ifos),
        model={"weights": "x"},
        segments={"source": "strain_files", "test_min_duration": 80},
        strain={"source": "files", "files": [str(f) for f in files], **strain},
        inference={"shifts": list(range(len(ifos))) if len(ifos) > 1 else [1]},
    )


def copy(shared_data: Path, tmp_path: Path, name: str = H1, to: str | None = None) -> Path:
    out = tmp_path / (to or Path(name).name)
    shutil.copyfile(shared_data / name, out)
    return out


def reference(path: Path, info) -> np.ndarray:
    """The samples as gwpy reads them."""
    from gwpy.timeseries import TimeSeries

    if info.kind == "gwosc_hdf5":
        return TimeSeries.read(str(path), format="hdf5.gwosc").value
    if info.kind == "gwf":
        return TimeSeries.read(str(path), info.dataset, format="gwf").value
    if info.kind == "gwpy_hdf5":
        return TimeSeries.read(str(path), path=info.dataset, format="hdf5").value
    from pycbc.types import load_timeseries

    return load_timeseries(str(path), group=info.dataset).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_every_real_file(shared_data, name):
    path = shared_data / name
    infos = describe(path)
    assert [(i.ifo, i.gps_start, i.duration, i.sample_rate, i.kind) for i in infos] == NAMES[name]
    for info in infos:
        stretch = read_stretch(infos, info.ifo, info.gps_start, info.gps_stop)
        assert (stretch.gps_start, stretch.duration, stretch.sample_rate) == (info.gps_start, info.duration, info.sample_rate)
        assert stretch.strain.dtype == np.float64 and np.isfinite(stretch.strain).all()
        assert np.array_equal(stretch.strain, reference(path, info))
        assert 1e-21 < stretch.strain.std() < 1e-16
        assert str(path) in stretch.source
        assert info.quality == ("LOSC" in name or "GWOSC" in name)
        if info.quality:
            assert stretch.mask.all() and len(stretch.mask) == info.duration
            assert quality_mask(info, "CBC_CAT3,BURST_CAT2,NO_CBC_HW_INJ,NO_BURST_HW_INJ").all()
        assert science_segments(path)[info.ifo] == [(info.gps_start, info.gps_stop)]


def test_all_real_files_are_listed(shared_data):
    found = find_files([shared_data / "strain", shared_data / "noise", shared_data / "frames" / "*.gwf", shared_data / "frames" / "*.hdf"])
    assert found == sorted(shared_data / n for n in NAMES)
    assert len(describe_all([shared_data / d for d in ("strain", "frames", "noise")])) == sum(map(len, NAMES.values()))


def test_injection_bits_are_those_of_the_file(shared_data):
    # The injection mask of H1 at GW150914 is 31 (all bits), of GW170814 23: continuous-wave injections (bit 3) were on.
    for name, expected in ((H1, True), ("strain/H-H1_GWOSC_16KHZ_R1-1186741846-32.hdf5", False)):
        [info] = describe(shared_data / name)
        with h5py.File(shared_data / name) as file:
            names = [n.decode() for n in file["quality/injections/InjShortnames"][:]]
        assert quality_mask(info, names[3]).all() == expected
    with pytest.raises(StrainError, match=r"1186741846.*no data-quality bit 'NO_SUCH'.*CBC_CAT1.*NO_CBC_HW_INJ"):
        quality_mask(info, "NO_SUCH")
    [frame] = describe(shared_data / "frames" / "H-H1_LOSC_4_V2-1128678884-32.gwf")
    assert quality_mask(frame, "CBC_CAT1,NO_CW_HW_INJ").all()
    with pytest.raises(StrainError, match="no data-quality bit 'NO_SUCH'"):
        quality_mask(frame, "NO_SUCH")


def test_mask_makes_segments(shared_data, tmp_path):
    path = copy(shared_data, tmp_path)
    with h5py.File(path, "r+") as file:
        file["quality/simple/DQmask"][5:8] = 0  # no data
        file["quality/simple/DQmask"][20] = 0b11  # data, CAT1, not CAT2
        file["quality/injections/Injmask"][30:] = 0
    assert science_segments(path)["H1"] == [(START, START + 5), (START + 8, START + 32)]
    assert science_segments(path, "CBC_CAT2")["H1"] == [(START, START + 5), (START + 8, START + 20), (START + 21, START + 32)]
    assert science_segments(path, "NO_CBC_HW_INJ")["H1"] == [(START, START + 5), (START + 8, START + 30)]
    stretch = read_stretch(describe(path), "H1", START + 3, START + 22, min_dq="CBC_CAT2")
    assert np.flatnonzero(~stretch.mask).tolist() == [2, 3, 4, 17]


@pytest.mark.parametrize(
    ("name", "expected"),  # reference 4.2, file name parse
    [
        ("background-1234567890-1000.hdf5", (1234567890, 1234568890)),
        ("background-1000000000.5-50.25.hdf5", (1000000000.5, 1000000050.75)),
        ("background-1000000000.5-50.25", (1000000000.5, 1000000050.75)),
        ("H-H1_LOSC_4_V2-1126259446-32.hdf5", (1126259446, 1126259478)),
        ("HLV-HW100916-968654552-1.gwf", (968654552, 968654553)),
        ("background-12-34.hdf5", None),
        ("notes.hdf5", None),
    ],
)
def test_times_from_name(name, expected):
    assert times_from_name(name) == expected


def write_background(path: Path, start: float, x: dict[str, np.ndarray], rate: float = 2048) -> Path:
    from gwpy.timeseries import TimeSeries, TimeSeriesDict

    TimeSeriesDict({k: TimeSeries(v, t0=start, sample_rate=rate, name=k, channel=k) for k, v in x.items()}).write(str(path), format="hdf5")
    return path


def noise(seconds: float, rate: int = 2048, seed: int = 0) -> np.ndarray:
    return 1e-21 * np.random.default_rng(seed).normal(size=round(seconds * rate))


def test_aframe_background(tmp_path):
    x = {"H1": noise(16), "L1": noise(16, seed=1)}
    path = write_background(tmp_path / "background-1000000000-16.hdf5", 1e9, x)
    assert [(i.ifo, i.kind, i.gps_start, i.duration) for i in describe(path)] == [(i, "aframe_background", 1e9, 16) for i in ("H1", "L1")]
    for ifo, values in x.items():
        stretch = fetch_files(config([path], ("H1", "L1")), ifo, 1_000_000_002, 1_000_000_010)
        assert np.array_equal(stretch.strain, values[2 * 2048 : 10 * 2048]) and stretch.mask is None


def test_mlgwsc(tmp_path):
    path = tmp_path / "test_background.hdf"
    with h5py.File(path, "w") as file:
        for ifo in ("H1", "L1"):
            for i, start in enumerate((1238205077, 1238205777)):
                data = file.create_dataset(f"{ifo}/{start}", data=noise(20, seed=i))
                data.attrs["start_time"], data.attrs["delta_t"] = start, 1 / 2048
        file.create_dataset("other", data=np.zeros(3))
    infos = describe(path)
    assert [(i.ifo, i.gps_start, i.kind) for i in infos] == [(i, s, "mlgwsc") for i in ("H1", "L1") for s in (1238205077, 1238205777)]
    assert science_segments(path)["L1"] == [(1238205077, 1238205097), (1238205777, 1238205797)]
    assert np.array_equal(read_stretch(infos, "L1", 1238205780, 1238205785).strain, noise(20, seed=1)[3 * 2048 : 8 * 2048])
    with h5py.File(path, "r+") as file:
        file["H1/1238205077"].attrs["start_time"] = 1238205000
    with pytest.raises(StrainError, match=r"test_background.*H1/1238205077.*1238205000"):
        describe(path)


def test_frames_of_several_and_split_channels(tmp_path):
    from gwpy.timeseries import TimeSeries, TimeSeriesDict

    rate = 4096
    for i in range(3):
        series = [
            TimeSeries(noise(4, rate, seed=10 * i + j), t0=10**9 + 4 * i, sample_rate=rate, name=n, channel=n)
            for j, n in enumerate(("H1:GDS-CALIB_STRAIN", "H1:OTHER", "L1:GDS-CALIB_STRAIN", "L1:DCS-CALIB_STRAIN"))
        ]
        TimeSeriesDict({s.name: s for s in series}).write(str(tmp_path / f"HL-T-{10**9 + 4 * i}-4.gwf"), format="gwf")
    stretch = read_stretch(describe_all([tmp_path]), "H1", 10**9 + 1, 10**9 + 11)
    expected = np.concatenate([noise(4, rate, seed=10 * i) for i in range(3)])[rate : 11 * rate]
    assert np.array_equal(stretch.strain, expected)
    with pytest.raises(StrainError, match=r"1000000000.*L1:DCS-CALIB_STRAIN.*L1:GDS-CALIB_STRAIN.*strain\.channels"):
        fetch_files(config([tmp_path], ("H1", "L1")), "L1", 10**9, 10**9 + 4)
    chosen = config([tmp_path], ("H1", "L1"), channels={"L1": "L1:DCS-CALIB_STRAIN", "H1": "H1"})
    assert fetch_files(chosen, "L1", 10**9, 10**9 + 4).duration == 4
    assert fetch_files(chosen, "H1", 10**9, 10**9 + 4).duration == 4


def test_detector_may_be_assigned(shared_data):
    path = shared_data / "noise" / "real_noise.hdf"
    assert read_stretch(describe_all([f"L1={path}"]), "L1", 1238205100, 1238205110).duration == 10
    with pytest.raises(StrainError, match=r"no strain of H1 at GPS 1238205100.*detector unknown.*H1=PATH"):
        fetch_files(config([path]), "H1", 1238205100, 1238205110)
    with pytest.raises(StrainError, match=r"L1=.*holds other detectors only"):
        describe_all([f"L1={shared_data / H1}"])


def test_fetch_resamples_and_keeps_the_mask(shared_data):
    from gwpy.timeseries import TimeSeries

    name = "strain/L-L1_GWOSC_16KHZ_R1-1186741846-32.hdf5"
    stretch = fetch_files(config([shared_data / "strain"], ("H1", "L1")), "L1", 1186741846, 1186741878)
    assert (stretch.sample_rate, len(stretch.strain), stretch.mask.sum()) == (2048, 65536, 32)
    # The spectrum of the file's own samples under the same smooth window is an independent way to the same band.
    original = TimeSeries.read(str(shared_data / name), format="hdf5.gwosc").value
    a, b = (np.fft.rfft(np.hanning(len(x) + 1)[:-1] * x) / len(x) for x in (stretch.strain, original))
    f = np.fft.rfftfreq(65536, 1 / 2048)
    band = (f > 20) & (f < 900)
    assert np.linalg.norm((a - b[: len(a)])[band]) < 1e-4 * np.linalg.norm(a[band])
    for low, high in ((20, 30), (100, 300), (600, 900)):  # also where the strain is quiet
        part = (f > low) & (f < high)
        assert np.linalg.norm((a - b[: len(a)])[part]) < 1e-3 * np.linalg.norm(a[part])


def test_files_are_joined(shared_data, tmp_path):
    x = noise(32, 4096)
    write_background(tmp_path / "background-1000000000-16.hdf5", 1e9, {"H1": x[: 16 * 4096]}, 4096)
    write_background(tmp_path / "background-1000000016-16.hdf5", 1e9 + 16, {"H1": x[16 * 4096 :]}, 4096)
    stretch = read_stretch(describe_all([tmp_path]), "H1", 1_000_000_001, 1_000_000_031)
    assert np.array_equal(stretch.strain, x[4096 : 31 * 4096])
    assert np.array_equal(read_stretch(describe_all([tmp_path]), "H1", 1_000_000_014, 1_000_000_018).strain, x[14 * 4096 : 18 * 4096])


# Faults: each names the file and the GPS time.


def test_truncated_hdf5(shared_data, tmp_path):
    path = copy(shared_data, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(StrainError, match=rf"{path.name}.*GPS {START}.*truncated"):
        fetch_files(config([tmp_path]), "H1", START, START + 16)


def test_damaged_hdf5_samples(shared_data, tmp_path):
    path = copy(shared_data, tmp_path)
    with h5py.File(path) as file:
        chunk = file["strain/Strain"].id.get_chunk_info_by_coord((40960,))
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\x00" * chunk.size)
    with pytest.raises(StrainError, match=rf"{path.name}.*GPS.*damaged"):
        fetch_files(config([path]), "H1", START, START + 16)


def test_truncated_frame_does_not_crash(shared_data, tmp_path):
    path = copy(shared_data, tmp_path, "frames/H-H1_LOSC_4_V2-1128678884-32.gwf")
    data = path.read_bytes()
    for size in (len(data) // 2, len(data) - 100, 3, 0):
        path.write_bytes(data[:size])
        with pytest.raises(StrainError, match=rf"{path.name}.*GPS 1128678884"):
            fetch_files(config([path]), "H1", 1128678884, 1128678900)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan(shared_data, tmp_path, value):
    path = copy(shared_data, tmp_path)
    with h5py.File(path, "r+") as file:
        file["strain/Strain"][int(10.5 * 4096) : int(10.5 * 4096) + 3] = value
    with pytest.raises(StrainError, match=rf"{path.name}.*3 samples of H1 are NaN or infinite, the first at GPS {START + 10}\.5"):
        fetch_files(config([path]), "H1", START, START + 16)
    # outside what is asked for it does no harm, even right beside it
    assert np.isfinite(fetch_files(config([path]), "H1", START + 11, START + 32).strain).all()


def test_wrong_rate(shared_data, tmp_path):
    path = copy(shared_data, tmp_path)
    with h5py.File(path, "r+") as file:
        file["strain/Strain"].attrs["Xspacing"] = 1 / 2048
    with pytest.raises(StrainError, match=rf"{path.name}.*GPS {START}.*wrong sample rate.*4096 Hz.*1/2048 s"):
        describe(path)
    renamed = copy(shared_data, tmp_path, to=f"H-H1_GWOSC_16KHZ_R1-{START}-32.hdf5")
    with pytest.raises(StrainError, match=rf"{renamed.name}.*GPS {START}.*4096 Hz in a file named 16 kHz"):
        describe(renamed)
    with h5py.File(path, "r+") as file:
        file["strain/Strain"].attrs["Xspacing"] = 0.00025001
    with pytest.raises(StrainError, match=rf"{path.name}.*{START}.*whole number"):
        describe(path)
    slow = write_background(tmp_path / "background-1000000000-16.hdf5", 1e9, {"H1": noise(16, 1024)}, 1024)
    with pytest.raises(StrainError, match=rf"{slow.name}.*1024 Hz data cannot give sample_rate 2048 Hz"):
        fetch_files(config([slow]), "H1", 10**9, 10**9 + 8)
    wrong = write_background(tmp_path / "background-1000001000-16.hdf5", 1e9 + 1000, {"H1": noise(16, 2048)}, 1024)
    with pytest.raises(StrainError, match=rf"{wrong.name}.*wrong sample rate.*1000001000 to 1000001016"):
        describe(wrong)


def test_start_contradicts_name(shared_data, tmp_path):
    path = copy(shared_data, tmp_path, to=f"H-H1_LOSC_4_V2-{START + 64}-32.hdf5")
    with pytest.raises(StrainError, match=rf"name says GPS {START + 64}.*header GPS {START}"):
        describe(path)
    with h5py.File(path, "r+") as file:
        file["strain/Strain"].attrs["Xstart"] = START + 1
    with pytest.raises(StrainError, match=rf"{path.name}.*starts at GPS {START + 1}"):
        describe(path)


def test_missing_detector(shared_data):
    with pytest.raises(StrainError, match=rf"no strain of L1 at GPS {START}.*hold H1"):
        fetch_files(config([shared_data / H1], ("H1", "L1")), "L1", START, START + 16)
    infos = describe_all([shared_data / H1])
    with pytest.raises(StrainError, match=rf"no strain of L1.*{Path(H1).name} \(H1, GPS {START} to {START + 32}\)"):
        require_overlap(infos, ["H1", "L1"])
    with pytest.raises(StrainError, match=rf"no strain of L1 at GPS {START}"):
        read_stretch(infos, "L1", START, START + 8)


def test_no_overlap_in_time(shared_data):
    infos = describe_all([shared_data / H1, shared_data / "strain" / "L-L1_LOSC_4_V2-1135136334-32.hdf5"])
    with pytest.raises(StrainError, match=rf"do not overlap in time: H1 GPS {START} to .*L1 GPS 1135136334.*\.hdf5"):
        require_overlap(infos, ["H1", "L1"])
    assert set(require_overlap(describe_all([shared_data / "strain"]), ["H1", "L1", "V1"])) == {"H1", "L1", "V1"}


def test_overlapping_files_that_disagree(tmp_path):
    x = noise(16)
    write_background(tmp_path / "background-1000000000-16.hdf5", 1e9, {"H1": x})
    y = x[8 * 2048 :].copy()
    y[2048] *= 1.01
    write_background(tmp_path / "background-1000000008-8.hdf5", 1e9 + 8, {"H1": y})
    with pytest.raises(StrainError, match=r"background-1000000000-16.*background-1000000008-8.*disagree from GPS 1000000009"):
        fetch_files(config([tmp_path]), "H1", 10**9, 10**9 + 16)
    assert fetch_files(config([tmp_path]), "H1", 10**9, 10**9 + 8).duration == 8
    (tmp_path / "background-1000000008-8.hdf5").unlink()
    write_background(tmp_path / "background-1000000008-8.hdf5", 1e9 + 8, {"H1": x[8 * 2048 :]})
    with pytest.raises(StrainError, match=r"background-1000000008-8.*overlap with equal samples from GPS 1000000008"):
        fetch_files(config([tmp_path]), "H1", 10**9, 10**9 + 16)


def test_overlapping_files_of_two_rates(tmp_path):
    write_background(tmp_path / "background-1000000000-16.hdf5", 1e9, {"H1": noise(16)})
    write_background(tmp_path / "background-1000000008-8.hdf5", 1e9 + 8, {"H1": noise(8, 4096)}, 4096)
    with pytest.raises(StrainError, match=r"2048 Hz and .*4096 Hz.*GPS 1000000000"):
        fetch_files(config([tmp_path]), "H1", 10**9, 10**9 + 16)


def test_gap(tmp_path):
    write_background(tmp_path / "background-1000000000-4.hdf5", 1e9, {"H1": noise(4)})
    write_background(tmp_path / "background-1000000006-4.hdf5", 1e9 + 6, {"H1": noise(4)})
    with pytest.raises(StrainError, match=r"gap in the strain of H1 from GPS 1000000004 to 1000000006.*background-1000000000-4"):
        fetch_files(config([tmp_path]), "H1", 10**9, 10**9 + 10)
    with pytest.raises(StrainError, match=r"gap in the strain of H1 from GPS 1000000010 to 1000000012"):
        fetch_files(config([tmp_path]), "H1", 10**9 + 6, 10**9 + 12)
    with pytest.raises(StrainError, match=r"no strain of H1 at GPS 1000000020"):
        fetch_files(config([tmp_path]), "H1", 10**9 + 20, 10**9 + 25)


def test_samples_between_the_grid(tmp_path):
    write_background(tmp_path / "background-1000000000-4.hdf5", 1e9, {"H1": noise(4)})
    write_background(tmp_path / "late.hdf5", 1e9 + 4 + 0.0002, {"H1": noise(4)})
    with pytest.raises(StrainError, match=r"late\.hdf5.*grid"):
        fetch_files(config([tmp_path]), "H1", 10**9, 10**9 + 6)


def test_paths_that_hold_nothing(shared_data, tmp_path, caplog):
    with pytest.raises(StrainError, match="nowhere: no such file, folder or glob"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(StrainError, match="a folder without strain files"):
        find_files([tmp_path])
    with h5py.File(tmp_path / "results.hdf5", "w") as file:
        file["x"] = np.arange(3.0)
    copy(shared_data, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert [i.ifo for i in describe_all([tmp_path])] == ["H1"]
    assert "results.hdf5" in caplog.text and "skipped" in caplog.text
    with pytest.raises(StrainError, match=r"results\.hdf5: no strain in a known layout"):
        describe_all([tmp_path / "results.hdf5"])
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with pytest.raises(StrainError, match=r"text\.hdf5.*no HDF5 file"):
        describe_all([tmp_path])
