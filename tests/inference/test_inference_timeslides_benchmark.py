"""`python -m benchmarks.timeslides` and `benchmarks.memory`, small: ways of searching agree where they must, and say what they measured."""

import json

import numpy as np
import pytest

from aframe_assets.inference import slides as search
from aframe_assets.inference.clustering import cluster, integrate
from aframe_assets.segments.geometry import shift_vectors
from benchmarks import memory, timeslides
from benchmarks.slide_networks import METHODS, Size, arithmetic, head_flops, upstream_events, upstream_scores
from benchmarks.timeslides import Method

SMALL = Size((1, 1, 1, 1), 8)
SECONDS = 32


@pytest.fixture(scope="module")
def methods() -> dict[str, Method]:
    return {name: Method(name, SMALL, SECONDS) for name in METHODS}


def scores_of(method: Method, num_slides: int) -> tuple[list, np.ndarray]:
    """Shifts, and scores of the search (slide, output), NaN where it does not look."""
    shifts = shift_vectors(num_slides, method.config.inference.shifts)
    run = search.Pass(method.chunk, method.geometry, method.engine, method.config.inference)
    return shifts, run.scores(method.geometry, shifts, "background")[0]


def test_the_loop_of_upstream_scores_the_windows_of_the_search(methods):
    """Batches differ, so scores may by rounding."""
    shifts, ours = scores_of(methods["windowed"], 3)
    for shift, row in zip(shifts, ours, strict=True):
        theirs, valid = methods["windowed"].loop_scores(shift)
        asked = np.isfinite(row)
        assert asked.sum() > 80 and (theirs[~asked] == 0).all() and asked[valid].all()
        np.testing.assert_allclose(theirs[asked], row[asked], atol=1e-5 * np.ptp(row[asked]))


@pytest.mark.parametrize("name", ["streaming", "direct"])
def test_methods_score_as_their_networks_do_window_by_window(methods, name):
    method = methods[name]
    shifts, ours = scores_of(method, 3)
    fs, context = method.chunk.sample_rate, method.engine.context
    for shift, row in zip(shifts, ours, strict=True):
        asked = np.flatnonzero(np.isfinite(row))
        starts = (asked * 512 + np.array([[round(s * fs)] for s in shift]) - context) % len(method.chunk.streams[0])
        theirs = upstream_scores(method.bundle.network, method.chunk.streams, starts, method.engine.window, 32)
        assert len(asked) > 80
        np.testing.assert_allclose(row[asked], theirs, atol=1e-4 * np.ptp(theirs))


def test_a_cascade_scores_what_the_joint_network_does_and_not_all_of_it(methods):
    method, full = methods["cascade"], methods["streaming"]
    run = method.run(200)
    assert 0 < run.kept <= method.config.inference.cascade.keep
    shifts = shift_vectors(200, method.config.inference.shifts)
    args = method.chunk, method.geometry, method.engine, method.config.inference
    ours = search.Pass(*args, method.chooser).scores(method.geometry, shifts, "background")[0]
    _, theirs = scores_of(full, 200)
    kept = np.isfinite(ours)
    np.testing.assert_allclose(ours[kept], theirs[kept], atol=1e-4 * np.ptp(theirs[np.isfinite(theirs)]))


@pytest.mark.parametrize("seed", range(3))
def test_integration_and_clustering_of_upstream_are_those_of_the_search(seed):
    scores = np.random.default_rng(seed).normal(size=500).astype(np.float32)
    statistic, at = upstream_events(scores, 4.0, 1.5, 8.0)
    y = integrate(scores, 7)
    np.testing.assert_array_equal(at, cluster(y, 4.0, 8.0))
    np.testing.assert_allclose(statistic, y[at], rtol=1e-12, atol=1e-12)


def test_operations_of_a_joint_network_by_hand(methods):
    """Multiply-adds per frame of each convolution: kernel x in x out, over its stride in samples; stages of one block."""
    convolutions = 7 * 2 * 8 / 2
    for stage, width in enumerate((8, 16, 32, 64)):
        below = width if stage == 0 else width // 2
        taps = 3 * below * width + 3 * width * width + (below * width if stage else 0)
        convolutions += taps / 4 / 2**stage
    assert arithmetic(methods["streaming"].bundle, 4.0) == {"once": 0.0, "slide": pytest.approx(2 * 2048 * convolutions)}


def test_operations_of_the_lag_head_by_hand(methods):
    """H1 and L1 are two frames apart: products of 64 features at 5 lags, 80 similarities mixed into 32 channels; 4 windows a second."""
    network = methods["direct"].bundle.network
    frame = 5 * 64 * 2 + 80 * 32 * 2 + 2 * 32 + 2 * 32 + (64 * 64 + 64) * 2 / 32
    assert head_flops(network, 32) == pytest.approx(frame)
    assert arithmetic(methods["direct"].bundle, 4.0)["slide"] == pytest.approx(frame * 128)


def test_json_has_all_ratios_in_one_line(capsys):
    args = ["--json", "--seconds", "24", "--slides", "1,20", "--rounds", "1", "--width", "4", "--layers", "1,1,1,1"]
    timeslides.main(args)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    result = json.loads(lines[0])
    for name in ("ratio", "streaming", "cascade"):
        assert set(result[name]) == {"1", "20"} and all(r > 0 for r in result[name].values())
    counted = result["operations"]
    assert counted["windowed"]["20"] == pytest.approx(20 * counted["windowed"]["1"])
    assert counted["direct"]["1"] < counted["cascade"]["1"] < counted["direct"]["1"] + counted["streaming"]["1"]
    assert 0 < result["clustering_share"]["20"] < 1
    assert result["multiplied_up"] == {"windowed": [20], "streaming": [20], "cascade": [], "direct": []}
    # one slide was run and twenty were not
    assert result["seconds"]["windowed"]["20"] == pytest.approx(20 * result["seconds"]["windowed"]["1"])


def test_table_marks_what_is_multiplied_up(capsys):
    timeslides.main(["--seconds", "24", "--slides", "1,20", "--rounds", "1", "--width", "4", "--layers", "1,1,1,1"])
    page = capsys.readouterr().out
    assert "20 x" in page and "multiplied up from 1 (windowed), 10 (streaming), 100 (cascade)" in page and "Random weights" in page


def test_more_slides_than_a_ring_has_are_refused(capsys):
    with pytest.raises(SystemExit):
        timeslides.main(["--seconds", "16", "--slides", "256"])
    assert "expected 1 to 255 in 16 s of strain" in capsys.readouterr().err


def test_memory_is_that_of_a_process_of_its_own(capsys):
    memory.main(["--json", "--slides", "5", "--seconds", "40", "--width", "4", "--layers", "1,1,1,1", "--memory-gb", "1.6"])
    result = json.loads(capsys.readouterr().out)
    assert result["bound_gb"] == 1.6 and 0.05 < result["before_gb"] <= result["peak_gb"] < 5
    # the outputs of five slides that count: 40 s less their shift, kernel, integration and context
    assert 5 * 30 < result["livetime"] < 5 * 37
    assert result["ratio"] == pytest.approx(result["peak_gb"] / 1.6)
