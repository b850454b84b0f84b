"""Where outputs count: the geometry of slides against plain loops over windows, and hand-made cases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from aframe_assets.config import Architecture, Config, Model, Vetoes
from aframe_assets.segments.geometry import SlideGeometry, num_slides, shift_vectors


def geometry(duration=1000.0, settle=64.0, kernel=1.5, rate=4.0, window=1.5, ring=False, mergers=(), start=1_000_000_000.0, vetoes=()):
    return SlideGeometry(start, duration, settle, 1.0, kernel, rate, window, ring, tuple(mergers), 0.5, tuple(vetoes))


def slow_valid(g: SlideGeometry, shift) -> list[bool]:
    """Window by window, in seconds since the first whitened sample."""
    first = g.gps_start + g.settle + 0.5
    span = g.gps_start + g.duration - 0.5 - first
    if g.ring:
        span = math.floor(span * g.inference_rate + 1e-6) / g.inference_rate
    averaged = int(g.inference_rate * g.integration_window_length)  # windows before this one in its average
    out, k = [], 0
    while True:
        left, right = k / g.inference_rate, k / g.inference_rate + g.kernel_length
        if g.ring:
            if left > span - 1e-6 or g.kernel_length > span + 1e-6:
                return out
        elif right + max(shift) > span + 1e-6:
            return out
        good = k >= averaged and not (g.ring and max(shift) >= span - 1e-6)
        for c, s in enumerate(shift):
            a, b = left - averaged / g.inference_rate + s - g.context, right + s + g.context
            while g.ring and a >= span - 1e-6:
                a, b = a - span, b - span
            while g.ring and a < -1e-6:
                a, b = a + span, b + span
            good &= a >= -1e-6 and b <= span + 1e-6
            for m in g.mergers:
                good &= not (first + a - g.exclude_pad <= m <= first + b + g.exclude_pad)
            for start, stop in g.vetoes[c] if g.vetoes else ():
                # strain that is whitened into the footprint: half of the filter's second more on each side
                good &= not (first + a - 0.5 < stop - 1e-6 and first + b + 0.5 > start + 1e-6)
        out.append(bool(good))
        k += 1


def random_vetoes(rng, start, duration, number):
    """`number` disjoint stretches around a chunk: whole and half seconds, that edges of footprints meet, and any."""
    edges = start + np.unique(rng.integers(-4, 4 * duration + 20, 2 * number)) / 4 + (rng.random() < 0.3) * 0.1
    return tuple((float(a), float(b)) for a, b in edges[: len(edges) // 2 * 2].reshape(-1, 2))


def random_geometries(number, vetoed=False, context=False):
    rng = np.random.default_rng(7)
    for _ in range(number):
        duration = float(rng.integers(12, 60))
        g = geometry(
            duration,
            float(rng.choice([0, 8])),
            float(rng.choice([1, 1.5, 2])),
            float(rng.choice([1, 2, 4, 16])),
            float(rng.choice([0.5, 1, 1.5])),
            bool(rng.integers(2)),
            1_000_000_000 + rng.uniform(-5, duration + 5, rng.integers(0, 3)),
        )
        shift = [float(rng.choice([0, 1, 2, 3.5, 7, 20, 50])) for _ in range(rng.integers(1, 4))]
        if vetoed:
            g = replace(g, vetoes=tuple(random_vetoes(rng, g.gps_start, g.duration, rng.integers(0, 4)) for _ in shift))
        if context:
            g = replace(g, context=float(rng.choice([0.25, 0.375, 1, 2])))
        yield g, tuple(shift)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("vetoed", [False, True])
def test_valid_equals_loops(vetoed, context):
    used = 0
    for g, shift in random_geometries(800, vetoed, context):
        expected = slow_valid(g, shift)
        assert g.valid(shift).tolist() == expected, (g, shift)
        assert g.num_windows(shift) == len(expected)
        assert g.livetime(shift) == sum(expected) / g.inference_rate
        used += any(expected)
    assert used > (150 if vetoed else 300)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("vetoed", [False, True])
def test_injections_sit_only_where_every_output_that_sees_them_counts(vetoed, context):
    rng, placed = np.random.default_rng(3), 0
    for g, shift in random_geometries(400, vetoed, context):
        step, buffer, jitter = float(rng.choice([4, 8])), float(rng.choice([0, 1, 4])), float(rng.choice([0, 0.1, 0.4]))
        times = g.injection_times(shift, step=step, buffer=buffer, jitter=jitter, rng=np.random.default_rng(1))
        good, edges = g.valid(shift), g.right_edges(shift)
        back = int(g.inference_rate * g.integration_window_length) / g.inference_rate
        for t in times:
            # The merger is within the footprint [edge - kernel - back - context, edge + context] of these outputs; all exist and count.
            first, last = (
                math.ceil((t - g.context - edges[0]) * g.inference_rate - 1e-6),
                math.floor((t + g.context + g.kernel_length + back - edges[0]) * g.inference_rate + 1e-6),
            )
            assert 0 <= first and last < len(edges), (g, shift, t)
            assert all(good[k] for k in range(first, last + 1)), (g, shift, t)
            assert t >= edges[0] + buffer - jitter - 1e-6
            for s, own in zip(shift, g.vetoes, strict=bool(g.vetoes)):
                # the same in the detectors' own strain: from the merger's first to its last output nothing is vetoed
                span = g.whitened_duration if g.ring else math.inf
                u = (t - g.whitened_start + s) % span + g.whitened_start
                assert not any(a < u + 1e-6 and u - 1e-6 < b for a, b in own), (g, shift, t)
        assert np.all(np.diff(times) > 0)
        placed += len(times)
    assert placed > (100 if vetoed else 500) / (3 if context else 1)


def test_dropping_one_injection_moves_no_other():
    clean, g = geometry(200, 8), geometry(200, 8, mergers=[1_000_000_100.0])
    options = {"step": 10, "buffer": 2, "jitter": 0.1}
    a = clean.injection_times((0, 1), **options, rng=np.random.default_rng(5))
    b = g.injection_times((0, 1), **options, rng=np.random.default_rng(5))
    assert 0 < len(b) < len(a) and set(b) <= set(a)


def test_injections_by_hand():
    # Whitened from 64.5; windows of 1.5 s: edges 66.0, 66.25, ...; the last 998.25 + ... = 999.5 - 1 (the shift) = 998.5.
    g = geometry()
    edges = g.right_edges((0, 1)) - 1_000_000_000
    assert (edges[0], edges[1], edges[-1]) == (66.0, 66.25, 998.5)
    times = g.injection_times((0, 1), step=24, buffer=16, jitter=0, rng=np.random.default_rng(0)) - 1_000_000_000
    assert times[0] == 82 and np.all(np.diff(times) == 24) and times[-1] <= 998.5 - 3 - 16 < times[-1] + 24


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        # windows: (1000 - 64 - 1 - max shift - 1.5) * 4 + 1; the first 6 have no full average
        ((0.0, 0.0), 3735 - 6),
        ((0.0, 1.0), 3731 - 6),
        ((3.0, 0.0), 3723 - 6),
        ((0.0, 2000.0), 0),
        ((0.0, 933.5), 0),  # one window is left, and no average
        ((0.0, 932.0), 1),  # 7 windows are left
        ((0.0, 932.25), 0),
    ],
)
def test_livetime_by_hand(shift, expected):
    assert geometry().livetime(shift) == expected / 4


def test_ring_by_hand():
    # 31 s of whitened data, 124 windows; a footprint is 3 s. Unshifted: starts 0 to 28 s, 113 windows.
    g = geometry(32, 0, ring=True)
    assert (g.whitened_duration, g.num_windows((0, 0)), g.boxcar) == (31.0, 124, 7)
    assert g.livetime((0, 0)) == 113 / 4
    # Shifted by 2 s, detector 2 crosses its seam with footprints that start after 26 s and before 29 s: 11 fewer.
    # Those that start after 26 and by 28 s are 8; from 28.25 to 28.75 were dropped already; 0 to 28 less (26, 28] = 105.
    assert g.livetime((0, 2)) == 105 / 4
    # Shifted by 15 s: starts in (13, 16) cross.
    assert g.livetime((0, 15)) == (113 - 11) / 4
    assert g.livetime((0, 31)) == 0 and g.livetime((0, 62)) == 0  # whole laps are zero lag again
    assert g.livetime((0, 33)) == 0  # and so is 33 s the slide of 2 s


def test_context_by_hand():
    # Whitened 64.5 to 999.5, windows as ever: 3735 unshifted. 0.5 s of context: an output also looks 0.5 s before its first and
    # after its last kernel, which the first 6 + 2 outputs and the last 2 cannot.
    g = replace(geometry(), context=0.5)
    assert g.num_windows((0, 0)) == 3735 and g.right_edges((0, 0))[0] == 1_000_000_066.0
    assert np.flatnonzero(g.valid((0, 0)))[[0, -1]].tolist() == [8, 3732] and g.livetime((0, 0)) == 3725 / 4
    # detector 2 looks 1 s later: 4 windows fewer, and its first 0.5 s are not missed
    assert np.flatnonzero(g.valid((0, 1)))[[0, -1]].tolist() == [8, 3728]
    # a shift of both detectors: what comes before the first window is there, but no average is
    assert np.flatnonzero(g.valid((1, 1)))[[0, -1]].tolist() == [6, 3728]


def test_context_in_a_ring_by_hand():
    # 31 s; a footprint is 3 s and 0.5 s on both sides. Unshifted: kernels and averages from 0.5 to 27.5 s, 109 outputs.
    g = replace(geometry(32, 0, ring=True), context=0.5)
    assert g.num_windows((0, 0)) == 124 and g.livetime((0, 0)) == 109 / 4
    # Shifted by 15 s: detector 2 is at its seam with those that start after 31 - 15 - 3.5 and before 31 - 15 + 0.5: 15 of them.
    assert g.livetime((0, 15)) == (109 - 15) / 4


def test_context_touches_mergers_and_vetoes():
    plain = replace(geometry(64, 8), context=0.5)
    edges = plain.right_edges((0, 10)) - 1_000_000_000
    merger = replace(plain, mergers=(1_000_000_040.0,))
    # Footprint [edge - 3.5, edge + 0.5] (+10 in detector 2), 0.5 s more on each side, must not hold 40.
    touched = ((edges >= 39) & (edges <= 44)) | ((edges >= 29) & (edges <= 34))
    assert np.array_equal(plain.valid((0, 10)) & ~merger.valid((0, 10)), touched)
    # Strain behind it: the same 0.5 s more, by the whitening filter; that it only meets a veto does not count.
    vetoed = replace(plain, vetoes=((), ((1_000_000_040.0, 1_000_000_041.0),)))
    touched = (edges > 29) & (edges < 35)
    assert np.array_equal(plain.valid((0, 10)) & ~vetoed.valid((0, 10)), touched) and touched.sum() == 23


def test_merger_is_excluded_in_each_detectors_own_time():
    g = geometry(64, 8, mergers=[1_000_000_040.0])
    edges = g.right_edges((0, 10)) - 1_000_000_000
    gone = edges[~g.valid((0, 10))]
    # Footprint [edge - 3, edge] (+10 in detector 2), padded by 0.5 s on each side, must not hold 40.
    in_first = (edges >= 39.5) & (edges <= 43.5)
    in_second = (edges >= 29.5) & (edges <= 33.5)
    no_average = edges < edges[0] + 1.5
    assert np.array_equal(gone, edges[in_first | in_second | no_average])


def test_a_veto_takes_what_it_touches_in_its_detectors_own_time():
    g = geometry(64, 8, vetoes=[(), ((1_000_000_040.0, 1_000_000_041.0),)])
    clean = geometry(64, 8)
    edges = g.right_edges((0, 10)) - 1_000_000_000
    # Strain behind an output of detector 2: [edge - 3 - 0.5, edge + 0.5] + 10. It touches (40, 41) for edges in (29.5, 34.5).
    touched = (edges > 29.5) & (edges < 34.5)
    assert np.array_equal(clean.valid((0, 10)) & ~g.valid((0, 10)), touched) and touched.sum() == 19
    assert clean.livetime((0, 10)) - g.livetime((0, 10)) == 19 / 4
    # zero lag as well, and detector 1 only if it is the one that is vetoed
    assert clean.livetime((0, 0)) - g.livetime((0, 0)) == 19 / 4
    both = replace(g, vetoes=(g.vetoes[1], g.vetoes[1]))
    assert clean.livetime((0, 0)) - both.livetime((0, 0)) == 19 / 4
    assert clean.livetime((0, 10)) - both.livetime((0, 10)) == 38 / 4


def test_a_veto_and_a_cut_of_the_chunk_lose_the_same_outputs_before_it():
    # [0, 40) alone is analysed until its last output; with (40, 41) vetoed no output before it that looks further counts.
    cut, vetoed = geometry(40, 8), geometry(64, 8, vetoes=[((1_000_000_040.0, 1_000_000_041.0),)] * 2)
    good = vetoed.right_edges((0, 0))[vetoed.valid((0, 0))]
    assert np.array_equal(good[good < 1_000_000_041], cut.right_edges((0, 0))[cut.valid((0, 0))])


@pytest.mark.parametrize("ring", [False, True])
def test_everything_vetoed_is_no_livetime_and_no_error(ring):
    g = geometry(100, 0 if ring else 8, ring=ring, vetoes=[((999_999_000.0, 1_000_001_000.0),), ()])
    assert g.livetime((0, 0)) == g.livetime((0, 3)) == 0
    assert len(g.injection_times((0, 3), step=4, buffer=0, jitter=0, rng=np.random.default_rng(0))) == 0
    assert num_slides(slides_config(num_slides=3), [g]) == 3
    with pytest.raises(ValueError, match=r"give at most 0 s in 0 slides after vetoes"):
        num_slides(slides_config(Tb=10).model_copy(update={"vetoes": Vetoes(categories=["CBC_CAT2"])}), [g])


def test_of_takes_each_detectors_vetoes_near_the_chunk():
    vetoes = {"L1": np.array([[0.0, 50.0], [90.0, 100.0], [150.0, 160.0], [199.5, 300.0], [300.0, 301.0]]), "H1": np.empty((0, 2))}
    g = SlideGeometry.of(slides_config(), 100.0, 200.0, vetoes=vetoes)
    assert g.vetoes == ((), ((150.0, 160.0), (199.5, 300.0)))
    assert SlideGeometry.of(slides_config(), 100.0, 200.0).vetoes == () and len({g, g}) == 1


def test_whole_kernel_or_nothing():
    assert geometry(10, 8).num_windows((0, 0)) == 0  # 1 s of whitened data
    assert geometry(10.5, 8).num_windows((0, 0)) == 1  # 1.5 s: one kernel
    assert geometry(5, 8).num_windows((0, 0)) == 0 and geometry(5, 8).livetime((0, 0)) == 0
    assert geometry(10, 8, ring=True).num_windows((0, 0)) == 0
    assert len(geometry(10, 8).injection_times((0, 0), step=1, buffer=0, jitter=0, rng=np.random.default_rng(0))) == 0


def test_detection_times():
    # Reference 4.2, postprocessor t0: t0 = 0, P = 10, F = 1, r = 100, integration .5; kernel of 1 sample step.
    g = SlideGeometry(0.0, 100.0, 10.0, 1.0, 1.0, 100.0, 0.5)
    right = g.detection_times((0,))
    assert right[0] == pytest.approx(10 + 0.5 + 1.0 - 0.5)
    assert right - g.detection_times((0,), "upstream_v1") == pytest.approx(np.full(len(right), 0.01))
    # Upstream's first output after the cut is that of the kernel that ends one step after t0 + P - F/2: 9.01 (V2), 9.00 (V1).
    one = SlideGeometry(0.0, 100.0, 8.99, 1.0, 0.02, 100.0, 0.5)
    assert one.detection_times((0,))[0] == pytest.approx(9.01)
    assert one.detection_times((0,), "upstream_v1")[0] == pytest.approx(9.00)


def test_shift_vectors():
    assert shift_vectors(3, [0, 1]) == [(0, 1), (0, 2), (0, 3)]
    assert shift_vectors(2, [0, 1, 2]) == [(0, 1, 2), (0, 2, 4)]
    assert shift_vectors(0, [0, 1]) == []


def slides_config(**inference):
    return Config(
        segments={"source": "fixed", "fixed": [(0, 1)], "train_start": 0, "train_stop": 1, "test_start": 1, "test_stop": 2},
        inference={"Tb": 1, **inference},
    )


@pytest.mark.parametrize(
    ("Tb", "durations", "upstream_slides"),  # upstream's: reference 2.5, oracle values
    [(1000, (200,), 8), (2000, (600, 600), 2), (86400, (10_000, 10_000), 5), (0, (500,), 0), (1, (1000,), 1)],
)
def test_num_slides_is_the_least_that_gives_Tb(Tb, durations, upstream_slides):
    c = slides_config(Tb=Tb)
    chunks = [geometry(float(d)) for d in durations]
    n = num_slides(c, chunks)
    live = [sum(g.livetime(v) for g in chunks for v in shift_vectors(k, c.inference.shifts)) for k in (n - 1, n)]
    assert live[1] >= Tb and (n == 0 or live[0] < Tb)
    # Reference 2.5 counts stop - start - P - shift for a slide; ours loses 1 + 1.5 + 1.5 - 0.25 s more of each chunk.
    upstream, k = 0.0, 0
    while upstream < Tb:
        k += 1
        upstream += sum(max(0.0, d - 64 - k) for d in durations)
    assert k == upstream_slides
    assert k <= n <= k + 1


def test_num_slides_refuses_what_chunks_cannot_give():
    with pytest.raises(ValueError, match=r"inference\.Tb = 1e\+06 s: 1 test chunks give at most"):
        num_slides(slides_config(Tb=1e6), [geometry(200.0)])
    assert num_slides(slides_config(num_slides=5), []) == 5
    ring = slides_config(Tb=1e6, slide_mode="ring", psd_source="segment")
    with pytest.raises(ValueError, match="at most"):  # a ring gives no more than one lap of slides
        num_slides(ring, [geometry(32.0, 0, ring=True)])


def test_of_reads_config():
    c = slides_config(slide_mode="ring", psd_source="segment", exclude_catalog="packaged")
    g = SlideGeometry.of(c, 100.0, 200.0, [50.0, 150.0, 205.0])
    assert (g.settle, g.ring, g.mergers, g.duration, g.exclude_pad) == (0.0, True, (150.0, 205.0), 100.0, 0.5)
    assert SlideGeometry.of(slides_config(), 100.0, 200.0, [150.0]).mergers == ()
    assert SlideGeometry.of(slides_config(), 100.0, 200.0).settle == 64
    assert SlideGeometry.of(slides_config(), 100.0, 200.0).context == 0
    streaming = slides_config().model_copy(update={"model": Model(architecture=Architecture(name="streaming", context=0.75))})
    assert SlideGeometry.of(streaming, 100.0, 200.0).context == 0.75
