"""The three assets on made-up events in a real store, and what their pages say."""

from __future__ import annotations

import itertools
import json
import logging
import re

import h5py
import numpy as np
import pytest
from made_up_events import HORIZON, Room, write_events

from aframe_assets.config_load import build_config
from aframe_assets.sensitivity import assets as room
from aframe_assets.sensitivity.checks import CANDIDATE_CHECKS, VOLUME_CHECKS
from aframe_assets.sensitivity.p_astro import PAstro
from aframe_assets.sensitivity.plots import efficiency
from aframe_assets.sensitivity.population import Population, comoving_volume
from aframe_assets.sensitivity.report_results import volume_row
from aframe_assets.sensitivity.summary import caveats, rounded, text_summary
from aframe_assets.store.job import Job
from aframe_assets.store.plots import rendered
from aframe_assets.waveforms.priors import get_prior

ROWS = {
    "1240600000-900": {"gps_start": 1240600000, "gps_stop": 1240600900, "role": "train"},
    "1240610000-4000": {"gps_start": 1240610000, "gps_stop": 1240614000, "role": "test"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("sensitivity")
    catalog = root / "known.csv"
    catalog.write_text("name,GPS\nGW_loud,1240611000.3\nGW_quiet & <shy>,1240612000.0\nGW_elsewhere,1187008882.4\n")
    config = build_config(
        {"preset": "demo", "name": "toy", "sensitivity": {"catalog": str(catalog), "exercise": True, "comparators": ["aframe"]}}
    )
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
    index = json.dumps({"chunks": [], "missing": {}})
    r.publish("background_index", r.text("background_index.json", index), {"roles": roles, "missing": {"train": [], "test": []}})
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
    assert [c.name for c in products["sensitive_volume"].checks] == [c.name for c in VOLUME_CHECKS]
    json.dumps(meta, allow_nan=False)


def test_pages_show_volume_rates_and_events(made, caplog):
    _r, products = made
    shown = {asset: rendered(product, logging.getLogger("page")) for asset, product in products.items()}
    assert set(shown["sensitive_volume"]) == {"volume", "far", "efficiency"}
    # the strain behind these made-up events does not exist
    assert {"zero_lag", "loudest"} <= set(shown["candidates"]) and [r.args[0] for r in caplog.records] in ([], ["loudest_event"])
    rows = shown["candidates"]["loudest"].splitlines()
    assert len(rows) == 2 + min(10, products["candidates"].meta["num_candidates"]) and rows[2].startswith("| 1 |")
    # nothing is as loud as the first
    assert "| FAR [1/h] |" in rows[0] and rows[2].split("|")[4] == " < 0.03 "
    assert all(len(text) < 200_000 for page in shown.values() for text in page.values())


def test_what_stands_beside_the_volume(made):
    """Distance, VT, the other normalisation, the worth of the background, and the injections just above the SNR cut."""
    meta = made[1]["sensitive_volume"].meta
    assert meta["estimator"] == "self_normalised_redshift_weighted"
    for row in meta["rows"]:
        assert row["sensitive_distance"] == pytest.approx(1000 * (3 * row["volume"] / (4 * np.pi)) ** (1 / 3))
        assert row["vt"] == pytest.approx(row["volume"] * 4000 / 31_557_600)
        assert row["volume_by_count"] == pytest.approx(row["volume"], abs=3 * np.hypot(row["error"], row["error_by_count"]))
        # independent events in one slide's time: some 125 blocks tell it to a fifth
        assert 0.8 * row["count"] < row["effective_count"] <= row["count"]
        assert row["far_relative_error"] == pytest.approx(row["effective_count"] ** -0.5)
    lowest = min(meta["rows"], key=lambda r: r["count"])
    assert meta["Tb_effective"] == lowest["Tb_effective"] == pytest.approx(meta["Tb"] * lowest["effective_count"] / lowest["count"])
    quiet = meta["accepted_near_cut"]
    # found only above SNR 8
    assert quiet["num"] > 100 and quiet["found_share"] == 0 and quiet["accidental"] == pytest.approx(10 / 3600 * 2, rel=0.01)


def test_p_source_is_the_mixture_density(made):
    """Weights to a target average to one only if p_source is what the injections were drawn from."""
    for pair in made[1]["sensitive_volume"].meta["pairs"]:
        assert pair["mean_weight"] == pytest.approx(1, abs=5 * pair["mean_weight_error"])
        assert pair["coverage"] > 0.99 and pair["total_samples"] > 1000


def test_files_of_the_volume(made):
    r, _ = made
    with h5py.File(r.read("sensitive_volume", "sensitive_volume.h5")) as f:
        assert set(f) == {"thresholds", "fars", "counts", "effective_counts", "35-35", "35-20", "20-20", "20-10"}
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
    assert [m["name"] for m in first["matches"]] == ["GW_loud"] and first["matches"][0]["offset"] == pytest.approx(0.2, abs=1e-6)
    assert first["ifo_times"] == {"H1": first["detection_time"], "L1": first["detection_time"]} and first["flags"] == []
    assert first["far_is_limit"] and first["far"] == pytest.approx(1 / 120_000)
    assert first["p_astro"] > 0.9
    statistics = [c["detection_statistic"] for c in data["candidates"]]
    assert statistics == sorted(statistics, reverse=True) and data["num_zero_lag"] == 667
    lines = r.read("candidates", "candidates.csv").read_text().splitlines()
    assert lines[0].startswith("rank,detection_statistic,detection_time,far") and len(lines) == 668
    assert [c.name for c in products["candidates"].checks] == [c.name for c in CANDIDATE_CHECKS]


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
        "stated rate 28 Gpc⁻³ yr⁻¹ (17.9 to 44 at 90 %)",
        "&gt; 0.",
        "by the tail",
        "of independent noise",
        "Near the SNR cut: ",
        "Distance [Mpc]",
        "Other data: published volumes are of O3, the strain of this run is simulated.",
        "Marx et al. 2025",
    ):
        assert text in page, text
    assert "GW_elsewhere" not in page and "<shy>" not in page
    assert made[0].handles["events"].key[:16] in page and made[0].handles["events"].sha256[:16] in page


def test_report_works_offline_and_has_ordered_headings(made):
    page = made[0].read("report", "report.html").read_text()
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.search(r"""(src|href)\s*=\s*["'](?!#|data:)""", body), "the page may load nothing"
    assert "<script src" not in page
    levels = [int(x) for x in re.findall(r"<h([1-6])", body)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert '<html lang="en">' in body and body.count("<figcaption>") == body.count("<figure>") >= 6
    ids = re.findall(r' id="([^"]+)"', body)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="#([^"]+)"', body) + re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', body):
        assert target in ids, target
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in re.findall(r"<img [^>]*>", body))


def test_no_button_of_a_plot_sends_its_data_away(made):
    for asset, name in (("report", "report.html"), ("sensitive_volume", "sensitive_volume.html")):
        page = made[0].read(asset, name).read_text()
        controls = re.findall(r'Plotly\.newPlot\("fig-[^"]+",f\.data,f\.layout,(\{.*?\})\);', page)
        assert len(controls) == page.count('Plotly.newPlot("fig-') >= 4
        for text in controls:
            config = json.loads(text)
            assert config["plotlyServerURL"] == "" and "sendChartToCloud" in config["modeBarButtonsToRemove"]


def test_columns_of_numbers_are_sorted_as_numbers(made):
    """What a cell of a sortable table shows is a number, or it says by which number it is sorted."""
    page = made[0].read("report", "report.html").read_text()
    cells = 0
    for table in re.findall(r'<table class="sortable".*?</table>', page, flags=re.S):
        for more, text in re.findall(r'<td class="num[^"]*"([^>]*)>(.*?)</td>', table):
            shown = re.sub("<[^>]+>", "", text).strip()
            given = re.search(r'data-sort="([^"]*)"', more)
            # raises where it is no number
            float((given[1] if given else shown) or 0)
            cells += 1
    assert cells > 500


def test_rates_per_hour_and_per_year_are_sorted_together():
    row = {"mass_1": 1.0, "mass_2": 1.0, "status": "not_measurable", "note": ""}
    hourly, yearly = (volume_row(row | {"far": far, "far_unit": unit}) for far, unit in ((1.0, "1/h"), (2.0, "1/yr")))
    assert hourly["far_sort"] > yearly["far_sort"] > 0


def test_efficiency_is_the_share_found_in_bins_of_equal_number():
    from types import SimpleNamespace

    snr = np.r_[np.full(60, 5.0), np.full(60, 20.0), 999.0]
    draws = SimpleNamespace(snr=snr, statistic=np.r_[np.zeros(60), np.ones(60), 1.0], accepted=snr < 900)
    x, share, error = efficiency(draws, 0.5)
    assert list(x) == [5, 5, 20, 20] and list(share) == [0, 0, 1, 1] and all(0.01 < error) and all(error < 0.05)
    none = SimpleNamespace(snr=snr, statistic=snr, accepted=snr > 9999)
    assert [len(a) for a in efficiency(none, 1.0)] == [0, 0, 0]


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
