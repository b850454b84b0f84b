"""Record sets: rows of reference 4.2 (append, shift select, get_times, response read, ledger) and the file layout of 2.12."""

import h5py
import numpy as np
import pytest

from aframe_assets.waveforms.ledger import (
    SIGNAL,
    EventSet,
    InjectionParameterSet,
    InterferometerResponseSet,
    RecoveredInjectionSet,
    WaveformPolarizationSet,
    WaveformSet,
)


def signals(n, rng=None):
    rng = rng or np.random.default_rng(0)
    return {name: rng.random(n) for name in SIGNAL}


def responses(n=10, rate=128.0, duration=4.0, right_pad=2.0, **over):
    size = int(rate * duration)
    values = signals(n) | {
        "snr": np.full(n, 5.0),
        "ifo_snrs": np.full((n, 2), 3.5),
        "injection_time": np.arange(n, dtype=float),
        "shift": np.zeros((n, 2)),
        "waveforms": {"H1": np.arange(n)[:, None] * np.ones(size), "L1": -np.arange(n)[:, None] * np.ones(size)},
    }
    meta = {"sample_rate": rate, "duration": duration, "right_pad": right_pad, "num_injections": 2 * n, "ifos": ["H1", "L1"]}
    return InterferometerResponseSet(**(values | meta | over))


def events(n, Tb=100.0, shift=None):
    return EventSet(np.arange(n, dtype=float), np.arange(n, dtype=float), np.zeros((n, 2)) if shift is None else shift, Tb=Tb)


def test_append_adds_livetime():
    a = events(3, 100)
    a.append(events(2, 50))
    assert a.Tb == 150 and len(a) == 5
    a.append(EventSet(Tb=0))
    assert a.Tb == 150 and len(a) == 5
    empty = EventSet(Tb=100.0)
    empty.append(events(2, 50))
    assert empty.Tb == 150 and empty.shift.shape == (2, 2)


def test_append_refuses_a_foreign_set_and_differing_metadata():
    with pytest.raises(TypeError, match="cannot append"):
        events(2).append(responses(2))
    with pytest.raises(ValueError, match="right_pad"):
        responses().append(responses(right_pad=1.0))
    with pytest.raises(ValueError, match="ifos"):
        responses().append(responses(ifos=["H1", "V1"]))


def test_append_sums_draws():
    a = responses(4)
    a.append(responses(3))
    assert a.num_injections == 14 and len(a) == 7 and a.waveforms["h1"].shape == (7, 512)


def test_select_shift():
    shift = np.array([[0, 0]] * 5 + [[0, 1]] * 2 + [[1, 1]] * 3, float)
    chosen = events(10, shift=shift).select_shift([0, 1])
    assert chosen.detection_statistic.tolist() == [5, 6] and chosen.Tb == 100
    with pytest.raises(ValueError, match="detectors"):
        events(10, shift=shift).select_shift([0, 1, 2])


@pytest.mark.parametrize(("start", "end", "rows"), [(2, None, 8), (None, 6, 6), (2, 6.5, 5)])
def test_get_times(start, end, rows):
    assert len(events(10).get_times(start, end)) == rows


@pytest.mark.parametrize(("start", "end", "first", "last"), [(2.5, None, 1, 9), (None, 6, 0, 8), (3.5, 5, 2, 7)])
def test_read_responses_of_a_stretch(tmp_path, start, end, first, last):
    path = responses().write(tmp_path / "r.hdf5")
    got = InterferometerResponseSet.read_times(path, start, end)
    assert got.injection_time.tolist() == list(range(first, last + 1))
    assert np.array_equal(got.waveforms["h1"][:, 0], got.injection_time)


def test_read_responses_of_a_slide(tmp_path):
    shift = np.repeat([[0, 1], [0, 2]], 5, axis=0).astype(float)
    path = responses(shift=shift).write(tmp_path / "r.hdf5")
    assert InterferometerResponseSet.read_times(path, shift=[0, 2]).injection_time.tolist() == [5, 6, 7, 8, 9]
    assert InterferometerResponseSet.shifts_of(path) == [(0.0, 1.0), (0.0, 2.0)]
    for wrong in ([0.0], [0, 1, 2], [[0, 1]]):
        with pytest.raises(ValueError, match="detectors"):
            InterferometerResponseSet.read_times(path, shift=wrong)


def test_read_responses_of_a_slide_of_one_detector(tmp_path):
    # a column without a detector axis, as Aframe writes for one detector
    s = responses(ifos=None, shift=np.repeat([1.0, 2.0], 5), ifo_snrs=np.ones(10))
    path = s.write(tmp_path / "r.hdf5")
    assert len(InterferometerResponseSet.read_times(path, shift=[2.0])) == 5


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="unequal length"):
        EventSet(np.zeros(3), np.zeros(2), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="512"):
        responses(waveforms={"h1": np.zeros((10, 100)), "l1": np.zeros((10, 100))})
    with pytest.raises(ValueError, match="num_injections"):
        responses(num_injections=3)
    with pytest.raises(ValueError, match="one column for each"):
        responses(shift=np.zeros((10, 3)))


@pytest.mark.parametrize(
    "kind", [WaveformPolarizationSet, InjectionParameterSet, WaveformSet, InterferometerResponseSet, RecoveredInjectionSet]
)
def test_round_trip(tmp_path, kind):
    rng = np.random.default_rng(1)
    wide = {"ifo_snrs", "shift"}
    values = {p: rng.random((7, 2)) if p in wide else rng.random(7) for p in kind.PARAMETERS}
    meta = {"sample_rate": 64.0, "duration": 2.0, "right_pad": 0.5, "num_injections": 11, "ifos": ["H1", "L1"], "Tb": 3.0}
    names = {WaveformPolarizationSet: ("cross", "plus"), WaveformSet: ("h1", "l1"), InterferometerResponseSet: ("h1", "l1")}.get(kind, ())
    made = kind(**values, **{k: meta[k] for k in kind.METADATA}, waveforms={n: rng.random((7, 128)) for n in names})
    path = made.write(tmp_path / "x.hdf5")
    with h5py.File(path) as f:
        assert f.attrs["length"] == 7 and set(f["parameters"]) == set(kind.PARAMETERS) and set(f["waveforms"]) == set(names)
    back = kind.read(path)
    rows = [5, 1, 5, 0]
    some = kind.read(path, np.array(rows))
    for name, a in made.columns():
        assert np.array_equal(a, dict(back.columns())[name])
        assert np.array_equal(a[rows], dict(some.columns())[name])
        assert np.array_equal(a[rows], dict(made[rows].columns())[name])
    assert back.metadata() == made.metadata()
    assert not kind.read(path, waveforms=False).waveforms


def test_reads_a_file_laid_out_by_aframe(tmp_path):
    # as upstream writes it: bytes in the ifos attribute, no waveforms group, None metadata absent, float64 everywhere
    with h5py.File(tmp_path / "foreign.hdf5", "w") as f:
        f.attrs["length"], f.attrs["Tb"] = 2, 10.0
        for name in EventSet.PARAMETERS:
            f.create_dataset(f"parameters/{name}", data=np.ones((2, 2) if name == "shift" else 2))
    assert EventSet.read(tmp_path / "foreign.hdf5").Tb == 10
    with pytest.raises(ValueError, match=r"foreign.hdf5.*InjectionParameterSet.*missing"):
        InjectionParameterSet.read(tmp_path / "foreign.hdf5")


def test_aggregate_streams_and_keeps_livetime_of_files_without_events(tmp_path):
    paths = [events(3, 100).write(tmp_path / "a"), EventSet(Tb=40.0).write(tmp_path / "b"), events(2, 7).write(tmp_path / "c")]
    joined = EventSet.read(EventSet.aggregate(paths, tmp_path / "all"))
    assert joined.Tb == 147 and joined.detection_statistic.tolist() == [0, 1, 2, 0, 1]
    assert joined.shift.shape == (5, 2)
    same = EventSet.concatenate([EventSet.read(p) for p in paths])
    assert same.Tb == 147 and np.array_equal(same.detection_time, joined.detection_time)
    nothing = EventSet.read(EventSet.aggregate([paths[1], paths[1]], tmp_path / "none"))
    assert len(nothing) == 0 and nothing.Tb == 80


def test_aggregate_of_waveforms(tmp_path):
    paths = [responses(70).write(tmp_path / "a"), responses(3).write(tmp_path / "b")]
    out = InterferometerResponseSet.aggregate(paths, tmp_path / "all")
    joined = InterferometerResponseSet.read(out)
    assert len(joined) == 73 and joined.num_injections == 146
    assert joined.waveforms["l1"][72, 0] == -2 and joined.ifos == ["H1", "L1"]
    with h5py.File(out) as f:
        assert f["waveforms/h1"].chunks == (64, 512)
    bad = responses(3, right_pad=1.0).write(tmp_path / "c")
    with pytest.raises(ValueError, match="right_pad"):
        InterferometerResponseSet.aggregate([paths[0], bad], tmp_path / "x")
