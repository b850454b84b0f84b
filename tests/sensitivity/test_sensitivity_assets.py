"""The three assets on made-up events in a real store, and what their pages say."""

from __future__ import annotations

import itertools
import json
import logging
import re

import h5py
import numpy as np
import pytest

from aframe_assets.config_load import build_config
from aframe_assets.sensitivity import assets as room
from aframe_assets.sensitivity.candidates import find_candidates, match
from aframe_assets.sensitivity.checks import CANDIDATE_CHECKS, VOLUME_CHECKS
from aframe_assets.sensitivity.far import Background
from aframe_assets.sensitivity.p_astro import PAstro
from aframe_assets.sensitivity.population import Population, comoving_volume
from aframe_assets.sensitivity.summary import caveats, rounded, text_summary
from aframe_assets.store import open_store
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.job import Job
from aframe_assets.waveforms.ledger import EventSet, InjectionParameterSet, RecoveredInjectionSet
from aframe_assets.waveforms.priors import get_prior

HORIZON = 0.35


def write_events(folder, config, seed=1, num_draws=30_000, num_slides=30, live=4000.0, zero_extra=()):
    """Files of the artifact ``events``: exponential noise, injections of the config's prior found iff z < HORIZON."""
    rng = np.random.default_rng(seed)
    Tb = num_slides * live
    n = rng.poisson(Tb / 6)
    shift = np.repeat([[0.0, 1.0]], n, axis=0)
    EventSet(rng.exponential(1.5, n), np.sort(rng.uniform(0, live, n)), shift, Tb=Tb).write(folder / "background.hdf5")
    times = np.concatenate([rng.uniform(0, live, int(live / 6)) + 1240610000, [t for t, _ in zero_extra]])
    stat = np.concatenate([rng.exponential(1.5, int(live / 6)), [x for _, x in zero_extra]])
    EventSet(stat, times, np.zeros((len(times), 2)), Tb=live).write(folder / "0lag.hdf5")

    p = get_prior(config.injections.prior).sample(num_draws, seed)
    p["mass_1"], p["mass_2"] = p["mass_1"] * (1 + p["redshift"]), p["mass_2"] * (1 + p["redshift"])
    p = {k: p[k] for k in InjectionParameterSet.PARAMETERS if k in p}
    p["snr"] = 8 * HORIZON / p["redshift"]
    p["ifo_snrs"] = np.stack([p["snr"], p["snr"]], axis=1) / np.sqrt(2)
    accepted = p["snr"] > 4
    found = p["snr"] > 8
    meta = {"sample_rate": 2048.0, "duration": 8.0, "right_pad": 2.0, "ifos": ["H1", "L1"]}
    m = int(accepted.sum())
    when = rng.uniform(0, live, m)
    statistic = np.where(found[accepted], 20 + rng.normal(size=m), -np.inf)
    RecoveredInjectionSet(
        **{k: v[accepted] for k, v in p.items()},
        injection_time=when,
        detection_statistic=statistic,
        detection_time=np.where(np.isfinite(statistic), when + 0.1, np.nan),
        shift=np.zeros((m, 2)),
        num_injections=num_draws,
        Tb=live,
        **meta,
    ).write(folder / "foreground.hdf5")
    InjectionParameterSet(**{k: v[~accepted] for k, v in p.items()}, num_injections=num_draws - m, **meta).write(
        folder / "rejected-parameters.hdf5"
    )
    counts = {"num_background": n, "num_foreground": m, "num_rejected": num_draws - m}
    return {"Tb": Tb, "T0": live, **counts, "merger_time_calibration": {"offset": 0.0, "width90": 0.1, "num": 10}}


class Room:
    """Publishes artifacts and makes the assets of this room in a store."""

    def __init__(self, root, config):
        self.config, self.store, self.handles = config, open_store(root / "store"), {}
        self.folder = root / "files"
        self.folder.mkdir()

    def publish(self, asset, files, meta, checks=()):
        parts = KeyParts(asset=asset, code_version="1")
        self.handles[asset] = self.store.publish(parts, files, meta, checks=checks, provenance={"wall_s": 12.5, "max_rss_mb": 900})

    def text(self, name, text="x"):
        (self.folder / name).write_text(text)
        return {name: self.folder / name}

    def make(self, asset, make):
        with self.store.scratch() as scratch:
            job = Job(self.config, asset, None, self.handles, None, self.store, scratch, scratch, logging.getLogger("test"))
            product = make(job)
            checks = [
                {"name": c.name, "passed": bool(c.passed), "severity": c.severity, "description": c.description} for c in product.checks
            ]
            self.publish(asset, product.files, dict(product.meta), checks)
        return product

    def read(self, asset, name):
        return self.store.open_local(self.handles[asset], name)


ROWS = {
    "1240600000-900": {"gps_start": 1240600000, "gps_stop": 1240600900, "role": "train"},
    "1240610000-4000": {"gps_start": 1240610000, "gps_stop": 1240614000, "role": "test"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("sensitivity")
    catalog = root / "known.csv"
    catalog.write_text("name,GPS\nGW_loud,1240611000.3\nGW_quiet & <shy>,1240612000.0\nGW_elsewhere,1187008882.4\n")
    config = build_config({"preset": "demo", "name": "toy", "sensitivity": {"catalog": str(catalog), "exercise": True}})
    r = Room(root, config)
    events = write_events(r.folder, config, zero_extra=[(1240611000.5, 40.0)])
    names = ("background.hdf5", "0lag.hdf5", "foreground.hdf5", "rejected-parameters.hdf5")
    r.publish("events", {n: r.folder / n for n in names}, events)
    roles = {
        role: {"key": "k", "sha256": "s", "livetime": live, "partitions": [p]}
        for role, live, p in (("train", 900.0, "1240600000-900"), ("test", 4000.0, "1240610000-4000"))
    }
    failed = [{"name": "livetime", "passed": False, "severity": "warn", "description": "validation has 0 s", "blocking": False}]
    r.publish("segments", r.text("segments.csv"), {"rows": ROWS, "roles": roles}, failed)
    r.publish("background_index", r.text("background_index.json"), {"roles": roles, "missing": {"train": [], "test": []}})
    psd = {
        "train": {"partition": "1240600000-900", "reason": "median range"},
        "test": {"partition": "1240610000-4000", "reason": "median range"},
    }
    r.publish("psd", r.text("psd.hdf5"), {"roles": psd})
    csv = "epoch,train_loss,valid_auroc\n0,0.7,0.51\n1,0.5,0.7\n2,0.4,0.81\n"
    r.publish("model", r.text("metrics.csv", csv), {"imported": False, "num_parameters": 12345, "valid_auroc": 0.81})
    r.publish("engine", r.text("engine.json", "{}"), {"platform": "onnxruntime"})
    products = {}
    for asset, make in (
        ("sensitive_volume", room.make_sensitive_volume),
        ("candidates", room.make_candidates),
        ("report", room.make_report),
    ):
        products[asset] = r.make(asset, make)
    return r, products


def test_volume_of_the_planted_horizon(made):
    _r, products = made
    meta = products["sensitive_volume"].meta
    truth = comoving_volume(0, HORIZON, time_dilated=True)
    assert len(meta["rows"]) == 12 and all(x["status"] == "measured" for x in meta["rows"])
    for row in meta["rows"]:
        assert abs(row["volume"] - truth) < 4 * row["error"] < 0.5 * truth
    assert all(c.passed for c in products["sensitive_volume"].checks)
    assert [c.name for c in products["sensitive_volume"].checks] == [n for n, _ in VOLUME_CHECKS]
    json.dumps(meta, allow_nan=False)


def test_p_source_is_the_mixture_density(made):
    """Weights to a target average to one only if p_source is what the injections were drawn from."""
    for pair in made[1]["sensitive_volume"].meta["pairs"]:
        assert pair["mean_weight"] == pytest.approx(1, abs=5 * pair["mean_weight_error"])
        assert pair["coverage"] > 0.99 and pair["total_samples"] > 1000


def test_files_of_the_volume(made):
    r, _ = made
    with h5py.File(r.read("sensitive_volume", "sensitive_volume.h5")) as f:
        assert set(f) == {"thresholds", "fars", "counts", "35-35", "35-20", "20-20", "20-10"}
        assert f["35-35/sv"].shape == f["35-35/err"].shape == f["fars"].shape
        assert f["fars"][0] == pytest.approx(10 / f.attrs["Tb"] * 31_557_600)
        assert (np.diff(f["thresholds"][:]) <= 0).all()
    assert r.read("sensitive_volume", "sensitive_volume.png").read_bytes()[:4] == b"\x89PNG"
    model = PAstro.from_json(r.read("sensitive_volume", "p_astro.json").read_text())
    assert model(40.0) > 0.9 > 0.1 > model(1.0)
    page = r.read("sensitive_volume", "sensitive_volume.html").read_text()
    assert page.count("Plotly.newPlot(") >= 4 and "an exercise, not a measurement" in page


def test_candidates_are_named_and_bounded(made):
    r, products = made
    data = json.loads(r.read("candidates", "candidates.json").read_text())
    first = data["candidates"][0]
    assert first["catalog_name"] == "GW_loud" and first["catalog_offset"] == pytest.approx(0.2, abs=1e-6)
    assert first["far_is_limit"] and first["far"] == pytest.approx(1 / 120_000)
    assert first["p_astro"] > 0.9
    statistics = [c["detection_statistic"] for c in data["candidates"]]
    assert statistics == sorted(statistics, reverse=True) and data["num_zero_lag"] == 667
    lines = r.read("candidates", "candidates.csv").read_text().splitlines()
    assert lines[0].startswith("rank,detection_statistic,detection_time,far") and len(lines) == 668
    assert [c.name for c in products["candidates"].checks] == [n for n, _ in CANDIDATE_CHECKS]


def test_report_says_what_it_must(made):
    page = made[0].read("report", "report.html").read_text()
    for text in (
        "V is an exercise, not a measurement",
        "cannot speak about one false alarm per year",
        "10/Tb",
        "GW_loud",
        "GW_quiet &amp; &lt;shy&gt;",
        "none near it",
        "35 + 20",
        "validation has 0 s",
        "valid auroc",
        "median range",
        "fars_per_hour",
        "onnxruntime",
        "ml4gw 0.",
    ):
        assert text in page, text
    assert "GW_elsewhere" not in page and "<shy>" not in page
    assert made[0].handles["events"].key[:16] in page and made[0].handles["events"].sha256[:16] in page


def test_report_works_offline_and_has_ordered_headings(made):
    page = made[0].read("report", "report.html").read_text()
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#)""", body), "the page may load nothing"
    assert "<script src" not in page
    levels = [int(x) for x in re.findall(r"<h([1-6])", body)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert '<html lang="en">' in body and body.count("<figcaption>") == body.count("<figure>") >= 5


def test_summary_for_the_command_line(made):
    meta = made[1]["sensitive_volume"].meta
    rows = text_summary(meta)
    assert [r.pair for r in rows[::3]] == ["35 + 35", "35 + 20", "20 + 20", "20 + 10"]
    assert rows[1].far == "3 ± 0.3 /h" and re.fullmatch(r"[\d.]+ ± [\d.]+ Gpc³", rows[1].volume)
    assert any("cannot speak" in c for c in caveats(meta))
    refused = {"mass_1": 35, "mass_2": 20, "far": 1.0, "far_unit": "1/yr", "status": "not_measurable", "note": "too little"}
    assert text_summary({"rows": [refused]})[0].volume == "not measurable"
    limit = refused | {"status": "upper_limit", "upper_limit": 0.0123, "effective_samples": 3.0, "far_relative_error": 0.1}
    assert text_summary({"rows": [limit]})[0].volume == "< 0.012 Gpc³ (90 %)"


@pytest.mark.parametrize(("value", "error", "text"), [(1.2345, 0.0567, "1.234 ± 0.057"), (123.4, 12.0, "123 ± 12"), (1, 0, "1 ± 0")])
def test_rounding(value, error, text):
    assert rounded(value, error) == text


def test_compatible_mode_and_rates_per_year(made):
    r, _products = made
    config = build_config(
        {"preset": "demo", "sensitivity": {"aframe_compatible": True, "fars_per_hour": [], "fars_per_year": [300, 10_000], "max_far": 2e4}}
    )
    with r.store.scratch() as scratch:
        product = room.make_sensitive_volume(Job(config, "x", None, r.handles, None, r.store, scratch, scratch, logging.getLogger("test")))
    rows = product.meta["rows"]
    assert [x["status"] for x in rows[:2]] == ["measured", "measured"] and rows[0]["count"] == 1
    known = comoving_volume(0, HORIZON) / comoving_volume(0, 0.7) * Population.of(get_prior("demo_mixture")).volume
    assert abs(rows[1]["volume"] - known) < 4 * rows[1]["error"]
    assert known < 0.9 * comoving_volume(0, HORIZON, time_dilated=True)


def test_a_run_too_small_to_measure(tmp_path):
    """A few minutes of background: nothing is refused but the rows, and each says why."""
    config = build_config({"preset": "demo", "name": "tiny"})
    r = Room(tmp_path, config)
    meta = write_events(r.folder, config, num_draws=60, num_slides=2, live=300.0)
    names = ("background.hdf5", "0lag.hdf5", "foreground.hdf5", "rejected-parameters.hdf5")
    r.publish("events", {n: r.folder / n for n in names}, meta)
    product = r.make("sensitive_volume", room.make_sensitive_volume)
    assert all(x["status"] == "not_measurable" and "10/Tb = 60 /h" in x["note"] for x in product.meta["rows"])
    candidates = r.make("candidates", room.make_candidates)
    assert candidates.meta["num_zero_lag"] == 50


def test_each_catalogue_event_claims_the_nearest():
    times = np.array([100.0, 50.0, 99.5, 10.0])
    assert match(times, [("a", 99.6), ("b", 50.9), ("c", 12.0)]) == {2: ("a", pytest.approx(-0.1)), 1: ("b", pytest.approx(-0.9))}
    assert match(np.empty(0), [("a", 1.0)]) == {}


def test_matches_are_listed_however_quiet():
    background = Background.of(np.arange(10.0), 10.0)
    found = find_candidates(np.arange(50.0), np.arange(50.0) * 10, 500.0, background, None, [("q", 30.0)], max_candidates=5)
    assert [c.rank for c in found] == [1, 2, 3, 4, 5, 47]
    assert found[-1].catalog_name == "q" and found[-1].p_astro is None
    assert found[-1].num_louder == 7 and found[-1].far == 0.7 and not found[-1].far_is_limit
    assert find_candidates(np.empty(0), np.empty(0), 1.0, background, None) == []
