"""MLGWSC-1: strain files at other rates, what cannot be used, and the file of events."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from challenge_files import FS, SETTINGS, START, StandIn, plain, written

from aframe_assets.config import Inference
from aframe_assets.inference.mlgwsc1.files import ChallengeError, Events, SegmentReader, list_segments, refuse_output, write_events
from aframe_assets.inference.mlgwsc1.search import analyze
from aframe_assets.strain.resample import resample


def test_faster_data_are_resampled_piece_by_piece(tmp_path):
    rng = np.random.default_rng(4)
    whole = {ifo: 1e-21 * rng.standard_normal(40 * 4096 + 1) for ifo in StandIn.ifos}
    path = written(tmp_path, whole, rate=4096)
    (segment,) = list_segments([path], StandIn.ifos, FS)
    with SegmentReader(segment, FS) as reader:
        assert reader.size == 40 * FS
        joined = np.concatenate([reader.read("L1", a, min(a + 7001, 40 * FS)) for a in range(0, 40 * FS, 7001)])
    expected = resample(whole["L1"][:-1], 4096, FS)
    np.testing.assert_allclose(joined, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    assert len(analyze([path], StandIn(), SETTINGS).events) > 0


def _spoil(folder, change):
    path = written(folder, plain())
    with h5py.File(path, "a") as f:
        change(f)
    return path


def _shorter(f):
    data, attributes = f[f"L1/{START}"][:-5], dict(f[f"L1/{START}"].attrs)
    del f[f"L1/{START}"]
    f[f"L1/{START}"] = data
    f[f"L1/{START}"].attrs.update(attributes)


def _nan(f):
    f[f"L1/{START}"][5 * FS] = np.nan


def _dead(f):
    f[f"H1/{START}"][:] = 0


def _two_rows(f):
    del f[f"H1/{START}"]
    f[f"H1/{START}"] = np.zeros((2, 10))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.pop("L1"), r"no detector L1 \(it holds H1\)"),
        (lambda f: f["L1"].move(str(START), "1240000007"), "segment 1240000000 of H1 is missing in L1"),
        (lambda f: f[f"H1/{START}"].attrs.pop("delta_t"), f"H1/{START} has no attribute delta_t"),
        (lambda f: f[f"H1/{START}"].attrs.pop("start_time"), f"H1/{START} has no attribute start_time"),
        (lambda f: f[f"H1/{START}"].attrs.modify("delta_t", -1.0), "delta_t = -1.0; expected seconds"),
        (lambda f: f[f"H1/{START}"].attrs.create("start_time", "soon"), "expected a number of seconds"),
        (lambda f: f[f"L1/{START}"].attrs.modify("start_time", START + 1.0), "start_time is 1240000000.0 in H1 and 1240000001.0 in L1"),
        (_shorter, "length is 61440 in H1 and 61435 in L1"),
        (_two_rows, "expected strain, one row"),
        (_nan, f"L1/{START}: strain at GPS 1240000005.000000 is nan"),
        (_dead, f"H1/{START}: every sample .* is 0"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path, change, words):
    path = _spoil(tmp_path, change)
    with pytest.raises(ChallengeError, match=words) as error:
        analyze([path], StandIn(), SETTINGS)
    assert str(path) in str(error.value)


def test_rates_that_do_not_fit_are_refused(tmp_path):
    slow = written(tmp_path, plain(rate=1024), rate=1024, name="slow.hdf")
    with pytest.raises(ChallengeError, match=r"1024 Hz, the model looks at 2048 Hz.*expected delta_t <= 0.00048828125 s"):
        analyze([slow], StandIn(), SETTINGS)
    odd = written(tmp_path, plain(), rate=2048.5, name="odd.hdf")
    with pytest.raises(ChallengeError, match="expected a whole number"):
        analyze([odd], StandIn(), SETTINGS)
    with pytest.raises(ChallengeError, match="divides the model's 2048 Hz"):
        analyze([written(tmp_path, plain())], StandIn(), replace(SETTINGS, inference=Inference(inference_rate=3)))


def test_another_psd_than_the_search_has_is_refused_before_a_file_is_opened(tmp_path):
    """A run's calibration of merger times is that of its own whitening."""
    settings = replace(SETTINGS, inference=SETTINGS.inference.model_copy(update={"psd_source": "segment"}))
    with pytest.raises(ChallengeError, match=r"inference\.psd_source = segment.*expected a run with inference\.psd_source: preceding"):
        analyze([tmp_path / "gone.hdf"], StandIn(), settings)


def test_what_is_no_strain_file_is_refused(tmp_path):
    text = tmp_path / "notes.hdf"
    text.write_text("not strain")
    empty = tmp_path / "empty.hdf"
    with h5py.File(empty, "w") as f:
        f.create_group("H1")
        f.create_group("L1")
    for path, words in ((text, "not an HDF5 file"), (tmp_path / "gone.hdf", "no such file"), (empty, "no strain")):
        with pytest.raises(ChallengeError, match=words):
            analyze([path], StandIn(), SETTINGS)


def test_overlapping_files_are_not_mixed(tmp_path):
    a, b = (written(tmp_path, plain(), name=f"{n}.hdf") for n in "ab")
    with pytest.raises(ChallengeError, match="overlap; expected the parts of one data set"):
        analyze([a, b], StandIn(), SETTINGS)


def test_short_segments_are_counted(tmp_path):
    path = written(tmp_path, plain(12))
    with pytest.raises(ChallengeError, match="the longest of 1 segments has 12 s; expected at least 16 s"):
        analyze([path], StandIn(), SETTINGS)
    written(tmp_path, plain(), key=str(START + 100))
    found = analyze([path], StandIn(), SETTINGS)
    assert [s.key for s in found.skipped] == [str(START)]
    assert [s.key for s in found.segments] == [str(START + 100)]
    assert found.events.time.min() > START + 100


def test_an_events_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "events.hdf"
    good = Events(np.array([1.0]), np.array([2.0]), np.array([0.3]))
    with pytest.raises(ChallengeError, match="equal lengths"):
        write_events(path, replace(good, var=np.array([0.3, 0.3])))
    with pytest.raises(ChallengeError, match="finite"):
        write_events(path, replace(good, stat=np.array([np.nan])))
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError):
        write_events(path, good, {"model": object()})
    assert not list(tmp_path.iterdir())
    write_events(path, good, {"duration": 3.0})
    with h5py.File(path) as f:
        assert {k: f[k][()].tolist() for k in f} == {"time": [1.0], "stat": [2.0], "var": [0.3]}
    with pytest.raises(ChallengeError, match="exists already"):
        refuse_output(path, overwrite=False)
    refuse_output(path, overwrite=True)
    with pytest.raises(ChallengeError, match="folder that exists"):
        refuse_output(tmp_path / "gone" / "events.hdf", overwrite=False)
