"""Searches whose sensitive volumes are known: values, differences, and what is said of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from made_up_events import HORIZON, write_events

from aframe_assets.comparing import plots, summary
from aframe_assets.comparing.checks import comparison_checks
from aframe_assets.comparing.measurement import SEEN, Search, compare
from aframe_assets.comparing.models import ComparisonError
from aframe_assets.config_load import build_config
from aframe_assets.sensitivity.population import comoving_volume
from aframe_assets.waveforms.ledger import EventSet, InjectionParameterSet
from aframe_assets.waveforms.priors import get_prior

CONFIG = build_config({"preset": "demo"})
SHORTER = 0.32


def missing(search, redshift):
    """`search` without what it found from `redshift` on."""
    fore = search.foreground[np.arange(len(search.foreground))]
    fore.detection_statistic = np.where(fore.redshift < redshift, fore.detection_statistic, -np.inf)
    return replace(search, foreground=fore)


@pytest.fixture(scope="module")
def searches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("events")
    write_events(folder, CONFIG)
    np.save(folder / SEEN, np.ones(len(Search.read(folder).foreground), bool))
    read = Search.read(folder)
    quiet = read.foreground.redshift > 0.5
    # draws that nothing finds are said to have been rejected
    rejected = InjectionParameterSet(**{k: getattr(read.foreground, k)[quiet] for k in InjectionParameterSet.PARAMETERS}, ifos=["H1", "L1"])
    assert 1000 < len(rejected) < len(quiet) - 1000
    whole = replace(read, foreground=read.foreground[~quiet], rejected=rejected, seen=read.seen[~quiet])
    return {"far": whole, "near": missing(whole, SHORTER)}


@pytest.fixture(scope="module")
def found(searches):
    return compare(CONFIG, searches, get_prior(CONFIG.injections.prior))


def values(table, model, quantity, far=10.0):
    (m,) = [m for m in table["models"] if m["name"] == model]
    (v,) = [v for v in m["values"] if (v["quantity"], v["far"]) == (quantity, far)]
    return v


def difference(table, quantity, far=10.0):
    (d,) = [d for d in table["differences"] if (d["quantity"], d["far"]) == (quantity, far)]
    return d


@pytest.mark.parametrize("pair", ["35-35", "20-10"])
def test_volumes_and_their_difference_are_those_put_in(found, pair):
    table = found.table
    truth = {"far": comoving_volume(0, HORIZON, time_dilated=True), "near": comoving_volume(0, SHORTER, time_dilated=True)}
    for name, volume in truth.items():
        v = values(table, name, pair)
        assert abs(v["value"] - volume) < 4 * v["error"] < 0.5 * volume
        (row,) = [r for r in found.curves[name].rows if (f"{r['mass_1']:g}-{r['mass_2']:g}", r["far"]) == (pair, 10)]
        assert v["value"] == pytest.approx(row["volume"], rel=1e-9)
        assert v["error"] == pytest.approx(row["error"], rel=0.01)
    d = difference(table, pair)
    # the second of two, less the first
    assert (d["first"], d["second"]) == ("near", "far")
    assert d["value"] == pytest.approx(values(table, "near", pair)["value"] - values(table, "far", pair)["value"])
    assert abs(d["value"] - (truth["near"] - truth["far"])) < 4 * d["error"]
    assert d["sigma"] < -3 and not d["few"] and d["only_first"] == 0
    # the same injections: better known than the two volumes apart
    assert d["error"] < 0.75 * np.hypot(values(table, "near", pair)["error"], values(table, "far", pair)["error"])
    json.dumps(table, allow_nan=False)


def test_the_share_found_is_counted(found, searches):
    near, far = (searches[n].foreground for n in ("near", "far"))
    counted = np.isfinite(near.detection_statistic).sum() / len(near)
    assert values(found.table, "near", "found")["value"] == pytest.approx(counted)
    d = difference(found.table, "found")
    only = (np.isfinite(far.detection_statistic) & ~np.isfinite(near.detection_statistic)).sum()
    assert (d["only_first"], d["only_second"]) == (0, only)
    assert d["discordant"] == pytest.approx(only)
    # nothing quieter than 8 is found, everything louder: the second loses all of one bin's far end
    bins = [q["name"] for q in found.table["quantities"] if q["name"].startswith("snr")]
    assert bins[0] == "snr 4-8" and values(found.table, "far", bins[0])["value"] == 0
    assert values(found.table, "far", "snr 8-10")["value"] == pytest.approx(1)
    assert values(found.table, "near", "snr 8-10")["value"] < 0.9


def test_injections_that_one_model_cannot_see_are_left_out_for_all(searches):
    """A fifth of the time is seen by one alone; what is left gives the same volumes."""
    time = searches["far"].foreground.injection_time
    late = time < np.quantile(time, 0.8)
    blind = replace(missing(searches["far"], SHORTER), seen=late)
    blind.foreground.detection_statistic[~late] = -np.inf
    table = compare(CONFIG, {"far": searches["far"], "near": blind}, get_prior(CONFIG.injections.prior)).table
    assert table["num_left_out"] == (~late).sum()
    for name, redshift in (("far", HORIZON), ("near", SHORTER)):
        v = values(table, name, "35-35")
        assert abs(v["value"] - comoving_volume(0, redshift, time_dilated=True)) < 4 * v["error"]
    checks = {c.name: c for c in comparison_checks(table | {"broken": {}})}
    assert checks["every_model_compared"].passed and not checks["same_injections_for_all"].passed
    assert "20%" in checks["same_injections_for_all"].description
    with pytest.raises(ComparisonError, match="is seen whole by every model"):
        compare(CONFIG, {"far": searches["far"], "near": replace(blind, seen=late & False)}, get_prior(CONFIG.injections.prior))


def test_searches_of_other_injections_and_without_background_are_refused(searches):
    other = replace(searches["far"], foreground=searches["far"].foreground[1:], seen=searches["far"].seen[1:])
    prior = get_prior(CONFIG.injections.prior)
    with pytest.raises(ComparisonError, match="far and other were not given the same injections"):
        compare(CONFIG, {"far": searches["far"], "other": other}, prior)
    with pytest.raises(ComparisonError, match="quiet: its search has no background event"):
        compare(CONFIG, {"far": searches["far"], "quiet": replace(searches["far"], background=EventSet(Tb=1e4))}, prior)


def test_rates_that_one_background_cannot_give_are_not_compared(searches):
    """Tb = 120,000 s and half of it: 1 per hour is measurable with neither half, 10 with both."""
    whole = searches["far"]
    half = replace(whole, background=whole.background[::2])
    half.background.Tb = 6000.0
    table = compare(CONFIG, {"far": whole, "half": half}, get_prior(CONFIG.injections.prior)).table
    assert [r["far"] for r in table["not_measurable"]] == [1, 3]
    assert all("(half)" in r["note"] for r in table["not_measurable"])
    assert summary.rates(table) == [(10, "1/h")]


def test_what_is_printed(found):
    table = found.table | {"broken": {"gone": "not found"}}
    shown = summary.rate_tables(table)
    assert [t.title for t in shown] == [f"{n} false alarms per hour" for n in (1, 3, 10)]
    assert shown[0].columns[:3] == ["model", "injections found", "V 35 + 35, Gpc³"]
    assert [r[0] for r in shown[0].rows] == ["far", "near", "gone"]
    assert shown[0].rows[2][1] == "broken"
    assert "σ" not in shown[0].rows[0][2] and "(-" in shown[0].rows[1][2] and "σ)" in shown[0].rows[1][2]
    text = " ".join(summary.notes(table))
    assert "gone is broken: not found" in text and "difference to far in standard deviations" in text
    assert "Background: 33.33 h" in text
    listed = summary.differences_table(table)
    sigmas = [abs(d["sigma"]) for d in sorted(table["differences"], key=lambda d: -abs(d["sigma"]))]
    assert len(listed.rows) == len(sigmas) and listed.rows[0][5].startswith(f"-{sigmas[0]:.1f}")


def test_the_overlay_of_many_models_is_small(found):
    rng, many = np.random.default_rng(1), {}
    for i in range(12):
        # curves that lie apart and are never smooth
        of = found.curves["far" if i % 2 else "near"]
        rough = [replace(c, volume=c.volume * rng.uniform(0.5, 1) * rng.normal(1, 0.05, len(c.volume))) for c in of.curves]
        many[f"model {i}"] = replace(of, curves=tuple(rough))
    png = plots.volume_png(many, "1/h", 10, "Comparison of 12 models")
    assert png.startswith(b"\x89PNG") and len(png) < 150_000
    figures = plots.volume_figures(many, "1/h", 10)
    assert len(figures) == len(CONFIG.sensitivity.mass_combos)
    assert all(f"model {i}" in figures[0].plotly for i in range(12))
    assert "near" in plots.efficiency_figure(found.table).plotly
