"""H1-L1 coincident livetime of the observing runs, from GWOSC's lists, against published digits and an independent sweep."""

from __future__ import annotations

import numpy as np
import pytest

from aframe_assets.config import Config
from aframe_assets.segments.chunks import make_chunks, windows
from aframe_assets.segments.query import coincident, science_segments

DAY = 86400

RUNS = {
    # name: GPS start and stop of the run, coincident days as published by GWOSC for H1_DATA * L1_DATA, to the digits given
    "o1": (1126051217, 1137254417, 49.00),
    "o2": (1164556817, 1187733618, 118.26),
    "o3a": (1238166018, 1253977218, 106.79),
    "o3b": (1256655618, 1269363618, 96.37),
    "o4a": (1368195220, 1389456018, 127.25),
}


def config(shared_data, runs, **segments) -> Config:
    """A search of test data only, over whole runs."""
    files = {ifo: str(shared_data / "segments" / f"{runs[0]}_{ifo}_times.dat") for ifo in ("H1", "L1")}
    times = {"test_start": RUNS[runs[0]][0], "test_stop": RUNS[runs[-1]][1]}
    return Config(segments={"source": "files", "files": files, **times} | segments, model={"weights": "a/bundle"})


def swept(shared_data, run) -> float:
    """Seconds in which both lists are on: a sweep over their edges in numpy, from the raw columns."""
    edges, steps = [], []
    for ifo in ("H1", "L1"):
        start, stop = np.loadtxt(shared_data / "segments" / f"{run}_{ifo}_times.dat", usecols=(0, 1), unpack=True)
        edges += [start, stop]
        steps += [np.ones(len(start)), -np.ones(len(stop))]
    edges, steps = np.concatenate(edges), np.concatenate(steps)
    order = np.lexsort((steps, edges))
    on = np.cumsum(steps[order])
    return float(np.diff(edges[order])[on[:-1] == 2].sum())


@pytest.mark.parametrize("run", RUNS)
def test_livetime_of_a_run(shared_data, run):
    """Exactly the swept seconds; the published days to half of their last digit."""
    c = config(shared_data, [run], max_duration=-1)
    both = coincident(science_segments(c, list(windows(c).values())))
    assert abs(both) == swept(shared_data, run)
    assert abs(both) / DAY == pytest.approx(RUNS[run][2], abs=0.005)


@pytest.mark.parametrize("run", RUNS)
def test_chunks_hold_all_livetime_but_what_is_reported_as_short(shared_data, run):
    c = config(shared_data, [run], test_min_duration=128, max_duration=20_000)
    chunks, cut = make_chunks(c, science_segments(c, list(windows(c).values())))
    used = sum(k.duration for k in chunks)
    assert used + cut.short_seconds == swept(shared_data, run)
    # stretches below 128 s are a small part of any run: 0.18 % of O1, less of the others
    assert 0 < cut.short_seconds < 2e-3 * used
    assert all(128 <= k.duration < 20_000 + 128 for k in chunks)


@pytest.mark.parametrize("run", RUNS)
def test_gwpy_has_the_same_coincident_segments(shared_data, run):
    from gwpy.segments import SegmentList

    lists = []
    for ifo in ("H1", "L1"):
        start, stop = np.loadtxt(shared_data / "segments" / f"{run}_{ifo}_times.dat", usecols=(0, 1), unpack=True)
        lists.append(SegmentList(zip(start, stop, strict=True)).coalesce())
    c = config(shared_data, [run])
    ours = coincident(science_segments(c, list(windows(c).values())))
    assert [tuple(s) for s in ours] == [tuple(s) for s in lists[0] & lists[1]]


def test_a_window_over_the_break_is_o3a_and_o3b(shared_data, tmp_path):
    """Both runs in one search: 106.79 + 96.37 days, nothing of the break between them (reference 2.1)."""
    files = {}
    for ifo in ("H1", "L1"):
        files[ifo] = str(tmp_path / f"{ifo}.txt")
        parts = [np.loadtxt(shared_data / "segments" / f"{run}_{ifo}_times.dat", dtype=int) for run in ("o3a", "o3b")]
        np.savetxt(files[ifo], np.concatenate(parts)[:, :2], fmt="%d")
    c = config(shared_data, ["o3a", "o3b"], files=files)
    both = coincident(science_segments(c, list(windows(c).values())))
    assert abs(both) / DAY == pytest.approx(106.79 + 96.37, abs=0.01)
    assert abs(both) == swept(shared_data, "o3a") + swept(shared_data, "o3b")
