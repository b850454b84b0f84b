"""MLGWSC-1: an output that must not be written to, files that are damaged, and names that contradict the data."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest

from aframe_assets.inference.mlgwsc1.files import ChallengeError, Events, SegmentReader, list_segments, refuse_output, write_events

START = 1240000000
IFOS = ("H1", "L1")
GOOD = Events(np.array([1.0]), np.array([2.0]), np.array([0.3]))


def strain_file(path: Path, key: str = str(START), **attributes) -> Path:
    with h5py.File(path, "w") as f:
        for ifo in IFOS:
            data = f.create_dataset(f"{ifo}/{key}", data=np.random.default_rng(1).standard_normal(4096))
            data.attrs.update({"start_time": float(START), "delta_t": 1 / 2048} | attributes)
    return path


# --- where events may not go ----------------------------------------------------------------------


def test_an_output_that_is_an_input_is_refused_however_it_is_named(tmp_path, monkeypatch):
    data = strain_file(tmp_path / "data.hdf")
    before = data.read_bytes()
    (tmp_path / "soft.hdf").symlink_to(data)
    os.link(data, tmp_path / "hard.hdf")
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for output in (data, Path("data.hdf"), tmp_path / "soft.hdf", tmp_path / "hard.hdf", tmp_path / "folder" / "data.hdf"):
        for overwrite in (False, True):
            with pytest.raises(ChallengeError, match=r"is the strain file .*data\.hdf; choose another name"):
                refuse_output(output, overwrite, [tmp_path / "gone.hdf", data])
    with pytest.raises(ChallengeError, match="is the strain file"):
        refuse_output(data, True, [tmp_path / "soft.hdf"])
    assert data.read_bytes() == before


def test_only_an_events_file_is_overwritten(tmp_path):
    text, other, half = tmp_path / "notes.txt", strain_file(tmp_path / "other.hdf"), tmp_path / "half.hdf"
    text.write_text("mine")
    with h5py.File(half, "w") as f:
        f["time"] = f["stat"] = np.zeros(2)
        f.create_group("var")
    os.mkfifo(tmp_path / "fifo")
    events = tmp_path / "events.hdf"
    write_events(events, GOOD)
    damaged = tmp_path / "damaged.hdf"
    damaged.write_bytes(events.read_bytes()[:-100])
    for path in (text, other, half, damaged, tmp_path / "fifo", Path("/dev/null")):
        with pytest.raises(ChallengeError, match=r"is no file of events .*choose another name, or remove it yourself"):
            refuse_output(path, True)
    refuse_output(events, True, [other])
    with pytest.raises(ChallengeError, match="exists already"):
        refuse_output(events, False)
    with pytest.raises(ChallengeError, match="folder that exists"):
        refuse_output(tmp_path, True)


def test_a_folder_that_cannot_be_written_to_is_told_at_the_start(tmp_path, monkeypatch):
    refuse_output(tmp_path / "events.hdf", False)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ChallengeError, match=r"events\.hdf: cannot be written: .*expected"):
        refuse_output(Path("/proc/events.hdf"), False)
    with pytest.raises(ChallengeError, match="cannot be written: File name too long"):
        refuse_output(tmp_path / ("e" * 300), False)

    # root may write to any folder, so that one is read-only has to be said by the system call
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", denied)
    with pytest.raises(ChallengeError, match="cannot be written: Permission denied"):
        refuse_output(tmp_path / "events.hdf", False)


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path):
    many = Events(*np.zeros((3, 100_000)))
    write_events(tmp_path / "events.hdf", GOOD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # a limit to the size of files: writes fail in the middle, as on a full disk (Python ignores the signal)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ChallengeError, match=r"events\.hdf: cannot be written: File too large"):
            write_events(tmp_path / "events.hdf", many)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["events.hdf"]
    with h5py.File(tmp_path / "events.hdf") as f:
        assert f["stat"][()].tolist() == [2.0]
    with pytest.raises(ChallengeError, match="cannot be written: No such file or directory"):
        write_events(tmp_path / "gone" / "events.hdf", many)


# --- strain that cannot be read -------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_cut_off_file_is_told_in_one_line(tmp_path, share):
    data = strain_file(tmp_path / "data.hdf")
    whole = data.read_bytes()
    data.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ChallengeError, match=r"data\.hdf: cannot be read: .*expected a whole file") as error:
        list_segments([data], IFOS, 2048)
    assert "\n" not in str(error.value)


def test_damage_in_the_strain_is_told_with_data_set_and_time(tmp_path):
    data = tmp_path / "data.hdf"
    with h5py.File(data, "w") as f:
        for ifo in IFOS:
            made = f.create_dataset(f"{ifo}/{START}", data=np.zeros(4096) + np.arange(4096), chunks=(2048,), fletcher32=True)
            made.attrs.update({"start_time": float(START), "delta_t": 1 / 2048})
        place = f[f"L1/{START}"].id.get_chunk_info(1).byte_offset
    content = bytearray(data.read_bytes())
    content[place + 100] ^= 1
    data.write_bytes(content)
    (segment,) = list_segments([data], IFOS, 2048)
    with SegmentReader(segment, 2048) as reader:
        assert len(reader.read("H1", 2048, 4096)) == len(reader.read("L1", 0, 2048)) == 2048
        with pytest.raises(ChallengeError, match=rf"cannot be read, L1/{START} from GPS {START + 1}: .*expected a whole file"):
            reader.read("L1", 2048, 4096)


def test_a_broken_link_is_told_with_the_data_set(tmp_path):
    data = strain_file(tmp_path / "data.hdf")
    with h5py.File(data, "a") as f:
        f["L1"].move(str(START), "elsewhere")
        f["L1"][str(START)] = h5py.SoftLink("/gone")
        f.move("L1/elsewhere", "spare")
    with pytest.raises(ChallengeError, match=f"L1/{START} is a link to nothing; expected strain"):
        list_segments([data], IFOS, 2048)


def test_a_folder_is_told_as_one(tmp_path):
    with pytest.raises(ChallengeError, match=r"is a folder; name the files in it"):
        list_segments([tmp_path], IFOS, 2048)


def test_a_name_is_the_second_of_the_first_sample(tmp_path):
    data = strain_file(tmp_path / "data.hdf", key=str(START + 7))
    with pytest.raises(ChallengeError, match=f"H1/{START + 7}: start_time = {START}.0; expected the GPS second of its name"):
        list_segments([data], IFOS, 2048)
    for start in (START, START + 0.75):
        (segment,) = list_segments([strain_file(data, start_time=start)], IFOS, 2048)
        assert segment.gps_start == start
