"""Placing signals: the plan over all chunks, the packaged catalogue, adding to data (row `inject` of reference 4.2)."""

from itertools import pairwise

import numpy as np
import pytest

from aframe_assets.config_load import build_config
from aframe_assets.segments.catalog import catalog, catalog_times
from aframe_assets.segments.geometry import SlideGeometry
from aframe_assets.waveforms.inject import add_signals
from aframe_assets.waveforms.injections import plan, share, slide_times
from aframe_assets.waveforms.ledger import InterferometerResponseSet

ROWS = {
    f"{start}-{length}": {"gps_start": float(start), "gps_stop": float(start + length), "role": role}
    for start, length, role in ((1240610000, 660, "test"), (1240600000, 900, "train"), (1240610800, 400, "test"), (1240612000, 300, "test"))
}


def demo(**over):
    return build_config({"preset": "demo"} | over, env={})


def events(**over):
    base = {"preset": "events", "strain": {"files": ["."]}, "model": {"weights": "bundle"}}
    return build_config(base | over, env={})


def test_the_plan_holds_exactly_the_number_wanted():
    config = demo(injections={"num_signals": 301})
    made = plan(config, ROWS)
    assert sum(len(s.times) for slides in made.values() for s in slides) == 301
    assert made["1240600000-900"] == []
    first = made["1240610000-660"][0]
    assert first.shift == (0.0, 1.0)
    # slides are filled one after another; only the last is cut
    used = [s.shift for s in made["1240610000-660"]]
    assert used == [(0.0, float(i)) for i in range(1, len(used) + 1)]
    geometry = SlideGeometry.of(config, 1240610000, 1240610660)
    for s in made["1240610000-660"][:-1]:
        assert np.array_equal(s.times, slide_times(config, geometry, "1240610000-660", round(s.shift[1]), s.shift))


def test_a_chunk_knows_its_share_alone_and_whatever_the_order_of_the_table():
    config = demo(injections={"num_signals": 150})
    whole = plan(config, ROWS)
    for partition in ROWS:
        for a, b in zip(share(config, dict(reversed(ROWS.items())), partition), whole[partition], strict=True):
            assert a.shift == b.shift and np.array_equal(a.times, b.times)


def test_times_are_a_jittered_grid_inside_the_slide():
    config = demo(injections={"num_signals": 150})
    for partition, slides in plan(config, ROWS).items():
        row = ROWS[partition]
        for s in slides:
            geometry = SlideGeometry.of(config, row["gps_start"], row["gps_stop"])
            step = config.waveforms.duration + config.injections.spacing
            assert np.abs(np.diff(s.times) / step - np.round(np.diff(s.times) / step)).max() * step <= 2 * config.injections.jitter
            assert np.diff(s.times).min() >= step - 2 * config.injections.jitter
            edges = geometry.right_edges(s.shift)
            assert s.times[0] >= edges[0] and s.times[-1] <= edges[-1] - geometry.kernel_length
    a, b = (plan(demo(injections={"num_signals": 20}, seed=s), ROWS)["1240610000-660"][0].times for s in (1, 2))
    assert not np.array_equal(a, b)


def test_too_many_signals_is_an_error_that_says_how_many_fit():
    with pytest.raises(ValueError, match=r"room for (\d+) signals in the 2 slides.*injections.num_signals to at most") as e:
        plan(demo(injections={"num_signals": 5000}, inference={"num_slides": 2}), ROWS)
    room = int(str(e.value).split("room for ")[1].split()[0])
    made = plan(demo(injections={"num_signals": room}, inference={"num_slides": 2}), ROWS)
    assert sum(len(s.times) for slides in made.values() for s in slides) == room


def test_signals_closer_than_their_length_overlap_and_each_is_placed_once():
    config = demo(injections={"num_signals": 200, "spacing": -5})
    made = plan(config, ROWS)
    placed = [(p, s.shift, t) for p, slides in made.items() for s in slides for t in s.times]
    assert len(placed) == len(set(placed)) == 200
    step = config.waveforms.duration - 5
    assert all(np.abs(np.diff(s.times) - step).max() <= 2 * config.injections.jitter for slides in made.values() for s in slides[:1])


def test_a_chunk_too_short_for_any_signal_gets_none_and_all_too_short_is_the_error():
    rows = ROWS | {"1240613000-20": {"gps_start": 1240613000.0, "gps_stop": 1240613020.0, "role": "test"}}
    assert plan(demo(injections={"num_signals": 60}), rows)["1240613000-20"] == []
    # a known number of slides: with Tb alone the livetime would be asked for first
    with pytest.raises(ValueError, match=r"injections.num_signals = 60: 1 test chunks have room for 0 signals in the 3 slides"):
        plan(demo(injections={"num_signals": 60}, inference={"num_slides": 3}), {"1240613000-20": rows["1240613000-20"]})
    with pytest.raises(ValueError, match=r"give at most 30 s in 8 slides"):
        plan(demo(injections={"num_signals": 60}, inference={"num_slides": None}), {"1240613000-20": rows["1240613000-20"]})


def test_no_signals_wanted():
    assert not any(plan(demo(injections={"num_signals": 0}), ROWS).values())


def test_rings_around_real_events_hold_the_preset_number_off_the_mergers():
    config = events()
    starts = (1126259446, 1135136334, 1167559920, 1186741846, 1187529241)
    rows = {f"{a}-32": {"gps_start": float(a), "gps_stop": a + 32.0, "role": "test"} for a in starts}
    mergers = catalog_times("packaged")
    made = plan(config, rows, mergers)
    assert sum(len(s.times) for slides in made.values() for s in slides) == config.injections.num_signals >= 50
    reach = config.conditioning.kernel_length + config.inference.integration_window_length
    for partition, slides in made.items():
        geometry = SlideGeometry.of(config, rows[partition]["gps_start"], rows[partition]["gps_stop"], mergers)
        assert len(geometry.mergers) == 1
        for s in slides:
            edges, good = geometry.right_edges(s.shift), geometry.valid(s.shift)
            for t in s.times:
                assert good[(edges >= t) & (edges <= t + reach)].all()


def test_spacing_that_leaves_no_step_is_refused():
    with pytest.raises(ValueError, match=r"injections.spacing = -8"):
        demo(injections={"spacing": -8})


def test_the_packaged_catalogue():
    events = {m.name: m.gps for m in catalog("packaged")}
    assert len(events) == 90
    facts = {
        "GW150914": 1126259462.4,
        "GW151226": 1135136350.6,
        "GW170104": 1167559936.6,
        "GW170814": 1186741861.5,
        "GW170817": 1187008882.4,
    }
    assert all(events[k] == pytest.approx(v, abs=0.11) for k, v in facts.items())
    assert {"GW151012", "GW170608", "GW170729", "GW170809", "GW170818", "GW170823"} <= set(events)
    assert list(catalog_times("packaged")) == sorted(events.values()) and catalog_times(None) == ()


def test_catalogues_from_files(tmp_path, shared_data):
    assert len(catalog_times(str(shared_data / "catalog" / "GWTC_cumulative_2023-09.csv"))) == 90
    assert catalog_times(str(shared_data / "catalog" / "GWTC_cumulative_2023-09.csv")) == catalog_times("packaged")
    path = tmp_path / "mine.csv"
    path.write_text("name,GPS\nA,1126259462.4\nB,soon\n")
    with pytest.raises(ValueError, match=r"mine.csv, line 3: GPS time 'soon'"):
        catalog(str(path))
    path = tmp_path / "nothing.csv"
    path.write_text("name,when\nA,1\n")
    with pytest.raises(ValueError, match=r"nothing.csv has no GPS column; its columns are name, when"):
        catalog(str(path))
    with pytest.raises(FileNotFoundError, match="packaged"):
        catalog(str(tmp_path / "absent.csv"))


def inject(strain, start, responses, shift=(0.0, 0.0)):
    """A copy of `strain` with the signals of `responses`, `shift` seconds later in each detector's own data."""
    out = np.array(strain, np.float64)
    for row, ifo, offset in zip(out, responses.ifos, shift, strict=True):
        times = responses.injection_time + offset
        add_signals(row, start, responses.sample_rate, responses.waveforms[ifo.lower()], times, responses.coalescence)
    return out


def constant_signals(times, rate=128, duration=4.0, right_pad=2.0, shift=(0.0, 0.0)):
    n, size = len(times), int(rate * duration)
    level = (np.arange(n) + 1.0)[:, None] * np.ones(size)
    zeros = {k: np.zeros(n) for k in InterferometerResponseSet.PARAMETERS if k not in ("shift", "injection_time", "ifo_snrs")}
    return InterferometerResponseSet(
        **zeros,
        ifo_snrs=np.zeros((n, 2)),
        injection_time=np.asarray(times, float),
        shift=np.tile(shift, (n, 1)),
        sample_rate=float(rate),
        duration=duration,
        right_pad=right_pad,
        num_injections=n,
        ifos=["H1", "L1"],
        waveforms={"h1": level, "l1": -level},
    )


def test_inject_row_of_the_reference():
    # D = 4 s, right_pad 2 s, 128 Hz; waveform i constant i + 1; times 0, 5, 10, ...; 27 s of zeros from t = -1
    out = inject(np.zeros((2, 27 * 128)), -1.0, constant_signals(np.arange(0, 30, 5)))
    expected = [1] * 3
    for i in range(1, 6):
        expected += [0] + [i + 1] * 4
    expected = np.repeat(expected, 128)[: 27 * 128]
    assert np.array_equal(out, np.stack([expected, -expected]))
    assert out[0, -3 * 128 :].tolist() == [6.0] * 3 * 128 and out[0, -3 * 128 - 1] == 0


def test_overlapping_signals_add():
    out = inject(np.zeros((2, 10 * 128)), 0.0, constant_signals([4.0, 6.0, 4.0]))
    assert np.array_equal(out[0], np.repeat([0, 0, 4, 4, 6, 6, 2, 2, 0, 0], 128))
    assert np.array_equal(out[1], -out[0])


def test_placement_rounds_to_the_nearest_sample_and_leaves_what_is_outside():
    out = add_signals(np.zeros(100), 1000.0, 100.0, np.eye(1, 5, 2), [1000.0 + 0.4949], 2)
    assert np.flatnonzero(out).tolist() == [49]
    assert not add_signals(np.zeros(100), 1000.0, 100.0, np.ones((2, 5)), [900.0, 1100.0], 2).any()
    with pytest.raises(ValueError, match="2 waveforms, but 1 times"):
        add_signals(np.zeros(9), 0.0, 1.0, np.ones((2, 5)), [0.0], 0)


@pytest.mark.parametrize("cuts", [(), (3.0,), (2.0, 4.0, 6.0), (0.5, 3.25, 3.75, 11.0)])
def test_signals_across_the_edges_of_stretches_are_neither_lost_nor_double(tmp_path, cuts):
    # every part of a signal lies in exactly one stretch, whatever the cuts; signals overlap, and reach beyond both ends
    rng = np.random.default_rng(0)
    signals = constant_signals([-1.5, 0.0, 1.9, 3.0, 3.01, 6.0, 12.5, 14.5], shift=(0.0, 2.0))
    signals.waveforms = {k: w * rng.normal(size=w.shape) for k, w in signals.waveforms.items()}
    path = signals.write(tmp_path / "w.hdf5")
    whole = inject(np.zeros((2, 13 * 128)), 0.0, signals)
    parts = []
    for start, stop in pairwise((0.0, *cuts, 13.0)):
        near = InterferometerResponseSet.read_times(path, start, stop, (0.0, 2.0))
        parts.append(inject(np.zeros((2, int((stop - start) * 128))), start, near))
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    # and the whole is every sample of every signal, once
    expected = np.zeros((2, 23 * 128))
    for i, time in enumerate(signals.injection_time):
        first = round((time + 5.0) * 128) - signals.coalescence
        expected[:, first : first + 512] += [signals.waveforms["h1"][i], signals.waveforms["l1"][i]]
    assert whole == pytest.approx(expected[:, 5 * 128 : 18 * 128], abs=1e-12)


def test_on_a_detectors_own_grid_the_shift_is_added():
    signals = constant_signals([4.0], shift=(0.0, 3.0))
    out = inject(np.zeros((2, 12 * 128)), 0.0, signals, shift=(0.0, 3.0))
    assert np.flatnonzero(out[0])[0] == 2 * 128 and np.flatnonzero(out[1])[0] == 5 * 128
    empty = signals[np.zeros(1, bool)]
    assert not inject(np.zeros((2, 128)), 0.0, empty).any()
