"""Background files: interchangeable with Aframe's (reference 2.2, 4.2)."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from aframe_assets.strain.background_file import background_name, parse_background_name, read_background, write_background
from aframe_assets.strain.stretch import StrainError

FS, T0 = 2048.0, 1_240_600_000


@pytest.fixture
def strain() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {ifo: 1e-21 * rng.standard_normal(int(100 * FS)) for ifo in ("H1", "L1")}


def test_gwpy_reads_what_we_write(tmp_path, strain):
    from gwpy.timeseries import TimeSeries

    path = tmp_path / background_name(T0, 100)
    write_background(path, strain, T0, FS, {"H1": "H1:DCS-CALIB_STRAIN"})
    for ifo, x in strain.items():
        series = TimeSeries.read(path, path=ifo, format="hdf5")
        assert series.t0.value == T0 and series.sample_rate.value == FS
        assert series.name == ifo and np.array_equal(series.value, x)
    assert str(TimeSeries.read(path, path="H1", format="hdf5").channel) == "H1:DCS-CALIB_STRAIN"
    with h5py.File(path) as f:
        assert set(f) == {"H1", "L1"} and f["H1"].dtype == np.float64
        assert f["H1"].chunks == (131072,) and f["H1"].compression is None
        assert set(f["H1"].attrs) == {"x0", "dx", "xunit", "unit", "name", "channel"}


def test_we_read_what_gwpy_writes(tmp_path, strain):
    from gwpy.timeseries import TimeSeries, TimeSeriesDict

    path = tmp_path / background_name(T0, 100)
    TimeSeriesDict({i: TimeSeries(x, t0=T0, sample_rate=FS, name=i) for i, x in strain.items()}).write(path, format="hdf5")
    background = read_background(path)
    assert (background.gps_start, background.gps_stop, background.sample_rate) == (T0, T0 + 100, FS)
    assert all(np.array_equal(background.strain[i], x) for i, x in strain.items())


def test_order_and_part(tmp_path, strain):
    path = tmp_path / "x.hdf5"
    write_background(path, strain, T0, FS)
    part = read_background(path, ["L1", "H1"], start=T0 + 2.5, stop=T0 + 4)
    assert part.ifos == ["L1", "H1"] and part.gps_start == T0 + 2.5 and part.duration == 1.5
    assert np.array_equal(part.stacked()[1], strain["H1"][int(2.5 * FS) : int(4 * FS)])


def test_short_data_are_one_piece(tmp_path):
    write_background(tmp_path / "x.hdf5", {"V1": np.arange(10.0)}, T0 + 0.5, FS)
    with h5py.File(tmp_path / "x.hdf5") as f:
        assert f["V1"].chunks == (10,)
    assert read_background(tmp_path / "x.hdf5").gps_start == T0 + 0.5


@pytest.mark.parametrize(
    ("name", "span"),
    [
        ("background-1234567890-1000.hdf5", (1234567890, 1234568890)),
        ("background-1000000000.5-50.25.hdf5", (1000000000.5, 1000000050.75)),
        ("/data/train/background/background-1240600000-20000.h5", (1240600000, 1240620000)),
    ],
)
def test_names_tell_times(name, span):
    assert parse_background_name(name) == span


def test_names_round_trip():
    for start, duration in ((T0, 1024), (1_000_000_000.5, 50.25), (float(T0), 1024.0)):
        assert parse_background_name(background_name(start, duration)) == (start, start + duration)
    assert background_name(float(T0), 1024.0) == "background-1240600000-1024.hdf5"


def test_a_name_that_tells_nothing_is_refused():
    with pytest.raises(ValueError, match="ten digits"):
        parse_background_name("background-12345-10.hdf5")


def test_faults_are_named(tmp_path, strain):
    path = tmp_path / "background-1240600000-100.hdf5"
    write_background(path, strain, T0, FS)
    with pytest.raises(StrainError, match=r"background-1240600000-100.hdf5: no strain of V1; the file holds H1, L1"):
        read_background(path, ["H1", "V1"])
    with pytest.raises(StrainError, match="asked for GPS 1240600090 to 1240600110, holds 1240600000"):
        read_background(path, start=T0 + 90, stop=T0 + 110)
    with h5py.File(path, "a") as f:
        f["L1"][int(7.5 * FS)] = np.nan
    with pytest.raises(StrainError, match=r"L1 strain is not finite at GPS 1240600007\.5"):
        read_background(path)
    with h5py.File(path, "a") as f:
        f["L1"].attrs["x0"] = T0 + 1.0
    with pytest.raises(StrainError, match="one start, step and length"):
        read_background(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(StrainError, match="truncated"):
        read_background(path)
    with pytest.raises(ValueError, match="as many samples"):
        write_background(path, {"H1": np.zeros(3), "L1": np.zeros(4)}, T0, FS)
