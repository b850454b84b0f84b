"""Pages of candidates, on a search of made-up strain: what they show is what the search saw."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import search_room

from aframe_assets.config_load import build_config
from aframe_assets.engine.engine import load_engine
from aframe_assets.sensitivity.contributions import respond
from aframe_assets.sensitivity.examination import chosen, examinations
from aframe_assets.sensitivity.report_events import event_pages
from aframe_assets.sensitivity.surroundings import edges, qualities, surroundings
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.job import Job
from aframe_assets.strain.background_file import StrainFile, background_name, write_background
from aframe_assets.strain.plots import figure_of, png_of
from aframe_assets.waveforms.ledger import EventSet

LOUD = "1240610000-60"


def candidate(rank, statistic, time, **more):
    limit = {"far": 1e-3, "far_per_hour": 3.6, "far_per_year": 3e4, "ifar_years": 3e-5, "false_alarm_probability": 0.1}
    p = dict.fromkeys(("p_astro", "p_astro_low", "p_astro_high")) | {"p_astro_is_limit": False}
    row = {"rank": rank, "detection_statistic": statistic, "detection_time": time, "num_louder": 3, "far_is_limit": False}
    return row | limit | p | {"flags": [], "matches": []} | more


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A search with a burst that only H1 sees, 30 s into a stretch."""
    r = search_room.Room(tmp_path_factory.mktemp("examined"))
    r.engines()
    r.data()
    row, fs = r.rows[LOUD], r.config.sample_rate
    rng = np.random.default_rng(5)
    strain = {i: rng.standard_normal(int(60 * fs)) * 1e-22 for i in ("H1", "L1")}
    t = np.arange(len(strain["H1"])) / fs
    strain["H1"] += 4e-21 * np.exp(-(((t - 40) / 0.05) ** 2)) * np.sin(2 * np.pi * 80 * t)
    path = r.files / background_name(row["gps_start"], 60)
    write_background(path, strain, row["gps_start"], fs)
    # of another version than the noise that the room has put there
    background = r.store.publish(KeyParts(asset="background", code_version="2", partition=LOUD), {path.name: path}, {})
    r.handles["background"][LOUD] = background
    r.search(LOUD)
    chunk = {"partition": LOUD, "role": "test", "gps_start": row["gps_start"], "duration": 60.0, "key": background.key}
    index = {"chunks": [chunk | {"sha256": background.sha256, "ranges": {}}], "missing": {}}
    (r.files / "background_index.json").write_text(json.dumps(index))
    r.publish("background_index", {"background_index.json": r.files / "background_index.json"}, {})
    (r.files / "psd.hdf5").write_bytes(b"no psd")
    r.publish("psd", {"psd.hdf5": r.files / "psd.hdf5"}, {})
    (r.files / "events.txt").write_text("x")
    calibration = {"offset": 0.0, "width90": 0.2, "num": 8, "edge": "last"}
    r.publish("events", {"events.txt": r.files / "events.txt"}, {"merger_time_calibration": calibration})
    return r


@pytest.fixture(scope="module")
def events(room):
    handle = room.handles["inference_results"][LOUD]
    return EventSet.read(room.store.open_local(handle, "0lag.hdf5"))


@pytest.fixture(scope="module")
def strain(room):
    handle = room.handles["background"][LOUD]
    return StrainFile.open(room.store.open_local(handle, handle.files[0].name), room.config.ifos)


@pytest.fixture(scope="module")
def engine(room):
    return load_engine(room.store.open_local(room.handles["engine"]))


def test_a_part_is_whitened_as_the_whole(room, strain):
    """Read in part about a late event, every sample is the one that the search had, to the bit."""
    time = strain.gps_start + 50
    part, whole = surroundings(strain, room.config, time, reach=3), surroundings(strain, room.config, time, reach=1000)
    assert len(part.chunk.streams[0]) < len(whole.chunk.streams[0]) == (60 - 8 - 1) * 512
    for ifo in part.ifos:
        start, x = part.cut(ifo, time, 3, 3)
        assert start == pytest.approx(time - 3, abs=1e-3) and len(x) == 6 * 512
        np.testing.assert_array_equal(x, whole.cut(ifo, time, 3, 3)[1])
        np.testing.assert_array_equal(part.spectrum(ifo, time).psd, whole.spectrum(ifo, time).psd)
    assert edges(part, time) == "10.0 s from the end of its stretch of 60 s"


def test_the_statistic_is_that_of_the_search(room, strain, engine, events):
    assert len(events) > 3
    for statistic, time in zip(events.detection_statistic, events.detection_time, strict=True):
        seen = respond(surroundings(strain, room.config, time), engine, room.config, time)
        assert seen.statistic == pytest.approx(statistic, abs=1e-4)


class Loudness:
    """A network that answers how loud each detector is, all added up."""

    context = 0

    def score_windows(self, windows):
        return np.abs(windows).max(axis=2).sum(axis=1)


def test_the_detector_that_saw_it_is_named(room, strain):
    """A burst in H1 alone: with H1 at the event all of the statistic is there, with L1 alone it is that of noise."""
    time = strain.gps_start + 39.5
    seen = respond(surroundings(strain, room.config, time), Loudness(), room.config, time)
    shares = {s.ifos: s for s in seen.shares}
    assert set(shares) == {("H1",), ("L1",), ()}
    noise = shares[()]
    assert noise.low <= noise.median <= noise.high < 10 < shares["H1",].low
    assert shares["H1",].median == pytest.approx(seen.statistic, rel=0.1)
    assert shares["L1",].median == pytest.approx(noise.median, rel=0.1)
    assert seen.outputs.max() > 2 * np.median(seen.outputs) and len(seen.times) == len(seen.outputs)


def test_noise_is_judged_without_the_event(room, strain):
    about = surroundings(strain, room.config, strain.gps_start + 40)
    at, beside = qualities(about, strain.gps_start + 40), qualities(about, strain.gps_start + 43)
    assert [q.ifo for q in at] == ["H1", "L1"]
    assert all(0.9 < q.std < 1.3 and not q.flags for q in at)
    assert beside[0].flags and "not Gaussian" in beside[0].flags[-1] and beside[0].loudest_at == pytest.approx(-3, abs=0.2)
    assert not beside[1].flags


def test_pages_and_what_cannot_be_shown(room, events):
    """One candidate with all there is, one whose strain is not there, and one that another network found."""
    k = int(np.argmax(events.detection_statistic))
    statistic, time = float(events.detection_statistic[k]), float(events.detection_time[k])
    match = {"name": "GW<1>", "catalog": "test", "offset": 0.1, "far_per_year": 2.0, "p_astro": None, "snr": 9.0}
    rows = [candidate(1, statistic, time, matches=[match]), candidate(2, 1.0, 1.0), candidate(3, statistic + 9, time)]
    inputs = {a: room.handles[a] for a in ("background_index", "psd", "engine", "events")}
    log = logging.getLogger("test")
    seen = examinations(Job(room.config, "report", None, inputs, None, room.store, room.files, room.files, log), rows)
    assert [e.rank for e in seen] == [1, 2, 3]
    assert seen[0].strain[:4] == seen[0].output[:4] == b"\x89PNG" and len(seen[0].strain) + len(seen[0].output) < 250_000
    assert not seen[0].notes and "cannot be shown" in seen[1].notes[0] and seen[1].strain is None
    assert "Scored again" in seen[2].notes[0]
    merger, width = seen[0].response.merger
    assert width == 0.2 and abs(merger - time) < 3
    first, second, _ = event_pages(rows, seen, "1/h", {1: 0.5}, "2 h")
    facts = dict(first["facts"])
    assert "3.6 ± 1.8 /h (3 background events" in facts["False-alarm rate"] and "Merger time" in facts
    assert first["title"] == "Candidate 1: GW<1>" and (first["previous"], first["next"]) == ("", "candidate-2")
    assert [s["label"] for s in first["shares"]] == ["all of H1, L1", "H1 alone", "L1 alone", "none: noise alone"]
    assert second["strain"] == second["output"] == "" and second["shares"] == [] and "Merger time" not in dict(second["facts"])


def test_the_loudest_event_s_plot_is_of_the_strain_that_its_page_shows(room, events, monkeypatch):
    """Of the asset's page and of the report one picture, but for its size; it reads the background without listing it as an input."""
    from aframe_assets.sensitivity import event_plots
    from aframe_assets.sensitivity.assets import _loudest_event
    from aframe_assets.sensitivity.candidates import find_candidates
    from aframe_assets.sensitivity.far import Background

    drawn = []

    def keep(stretch, time, title="", **how):
        drawn.append((stretch, time, title, how["band"]))
        return png_of(figure_of(1, 1))

    monkeypatch.setattr(event_plots, "event_plot", keep)
    quiet = Background.of(np.array([0.0, 0.1]), 7200.0)
    loudest = find_candidates(events.detection_statistic, events.detection_time, 60.0, quiet, None)[0]
    inputs = {a: room.handles[a] for a in ("background_index", "psd", "engine", "events")}
    job = Job(room.config, "report", None, inputs, None, room.store, room.files, room.files, logging.getLogger("test"))
    _loudest_event(job, loudest)
    examinations(job, [candidate(1, loudest.detection_statistic, loudest.detection_time)])
    (own, time, title, band), (other, *_, other_band) = drawn
    assert (own.gps_start, time, band) == (other.gps_start, loudest.detection_time, other_band)
    assert all(np.array_equal(own.strain[i], other.strain[i]) for i in ("H1", "L1"))
    # nothing is as loud: a limit, in the unit of the run
    assert title.endswith("FAR < 0.5 /h")


def test_who_gets_a_page():
    rows = [candidate(i, 10 - i, 100.0 * i, matches=["x"] if i in (1, 7, 8, 9) else []) for i in range(1, 10)]
    assert [c["rank"] for c in chosen(rows, 2)] == [1, 2, 7, 8]
    assert chosen(rows, 0) == []


def test_three_detectors_show_who_is_missed(tmp_path):
    """With three detectors each is also left out: the statistic of a network that is their mean tells by how much."""
    plain = {"preset": "demo", "sample_rate": 512, "inference": {"psd_source": "segment"}}
    config = build_config(plain).model_copy(update={"ifos": ["H1", "L1", "V1"]})
    rng = np.random.default_rng(2)
    strain = {i: rng.standard_normal(512 * 60) for i in config.ifos}
    strain["V1"][512 * 30 :][:256] *= 30
    path = tmp_path / background_name(1240610000, 60)
    write_background(path, strain, 1240610000, 512)

    about = surroundings(StrainFile.open(path, config.ifos), config, 1240610030)
    shares = {s.ifos: s.median for s in respond(about, Loudness(), config, 1240610029.5).shares}
    assert len(shares) == 7
    assert shares["V1",] > 2 * shares["H1",] and shares["H1", "V1"] > 2 * shares["H1", "L1"]
    assert shares["H1", "L1"] == pytest.approx(shares[()], rel=0.2)
