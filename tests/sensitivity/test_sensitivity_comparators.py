"""Published volumes: the numbers of reference 7 and 2.13, and where they are drawn."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from made_up_events import Room, write_events

from aframe_assets.config import SECONDS_PER_YEAR
from aframe_assets.config_load import ConfigError, build_config
from aframe_assets.sensitivity import assets as room
from aframe_assets.sensitivity import comparators
from aframe_assets.sensitivity.comparators import data_note, known, of_pairs, published
from aframe_assets.sensitivity.curves import Rate, volume_curves
from aframe_assets.sensitivity.far import Background
from aframe_assets.sensitivity.population import Population
from aframe_assets.sensitivity.summary import published_lines
from aframe_assets.sensitivity.volume import Draws
from aframe_assets.sensitivity.volume_plots import mass_figure, volume_figure, volume_png
from aframe_assets.waveforms.frames import SourceFrame


def volumes(name):
    return {(p.mass_1, p.mass_2): p.volume for p in published([name])}


def test_every_published_value_is_there():
    """Reference 7: three curves of 13 masses, Gpc^3; reference 2.13: VT of four pairs and four searches, Gpc^3 yr, over 149.3747 d."""
    masses = list(range(10, 75, 5))
    assert list(volumes("aframe").values()) == [0.6, 1.7, 3.1, 5.2, 7.4, 10.4, 13.6, 16.5, 18.9, 20.6, 22.0, 23.0, 23.5]
    assert list(volumes("gstlal").values()) == [0.5, 1.6, 3.0, 5.0, 7.1, 10.0, 12.5, 14.8, 16.6, 18.4, 19.8, 20.6, 21.0]
    assert list(volumes("pycbc_bbh").values()) == [0.5, 1.5, 2.5, 4.0, 7.0, 9.5, 12.0, 14.1, 15.6, 16.8, 17.7, 18.0, 18.1]
    assert all(list(volumes(n)) == [(m, m) for m in masses] for n in ("aframe", "gstlal", "pycbc_bbh"))
    vt = {
        "gwtc3_gstlal": (4.1, 2.3, 1.34, 0.6),
        "gwtc3_pycbc_bbh": (4.3, 2.5, 1.42, 0.65),
        "gwtc3_mbta": (3.3, 1.8, 1.1, 0.51),
        "gwtc3_cwb": (2.6, 1.35, 0.56, 0.24),
    }
    years = 149.3747 * 86400 / SECONDS_PER_YEAR
    for name, values in vt.items():
        assert list(volumes(name)) == [(35, 35), (35, 20), (20, 20), (20, 10)]
        np.testing.assert_allclose(list(volumes(name).values()), np.array(values) / years)
    # the same search by both routes, to the accuracy of the figure
    assert volumes("gwtc3_gstlal")[35, 35] == pytest.approx(volumes("gstlal")[35, 35], rel=0.1)
    assert set(known()) == {"aframe", "gstlal", "pycbc_bbh", *vt}


def test_every_value_says_where_it_is_from_and_how_well_it_is_known():
    for p in published(["all"]):
        assert "arXiv" in p.source and p.data.startswith("O3") and p.data in p.label
        if p.far_per_year is None:
            assert p.comparator.startswith("gwtc3") and "own threshold" in p.label and p.error < 0.09 * p.volume, "rounding"
        else:
            assert p.far_per_year == 1 and p.error == pytest.approx(0.1 * p.volume) and "read off" in p.label


def test_names():
    assert published([]) == () and len(published(["all"])) == 3 * 13 + 4 * 4 and published(["aframe"])[0].pipeline == "Aframe"
    with pytest.raises(ValueError, match=r"comparators gstlall are not known; expected some of aframe, "):
        published(["gstlall"])
    with pytest.raises(ConfigError, match=r"sensitivity.comparators = .*expected some of aframe"):
        build_config({"preset": "demo", "sensitivity": {"comparators": ["gstlall"]}})
    assert [p.comparator for p in of_pairs(published(["aframe", "gwtc3_mbta"]), [(35, 35)])] == ["aframe", "gwtc3_mbta"]


@pytest.mark.parametrize("preset", ["o3", "review", "tune"])
def test_presets_on_o3_data_compare(preset):
    config = build_config({"preset": preset})
    assert config.sensitivity.comparators == ["all"] and "O3, but not only the stretches" in data_note(config)


def test_the_note_says_what_the_data_are():
    assert "the strain of this run is simulated" in data_note(build_config({"preset": "demo"}))
    later = {"train_start": 1370000000, "train_stop": 1370100000, "test_start": 1370100000, "test_stop": 1370200000}
    assert "this run is of GPS 1370100000 to 1370200000" in data_note(build_config({"preset": "o3", "segments": later}))


def test_the_key_takes_the_published_values_and_what_the_note_reads(tmp_path, monkeypatch):
    """Without comparators none of it is read, and none is in the key; the packaged population of p_astro always is."""
    from aframe_assets.store import open_store
    from aframe_assets.store.workspace import Workspace
    from aframe_assets.waveforms import prior_files

    def key(names, **sections):
        config = build_config({"preset": "demo", "sensitivity": {"comparators": names}} | sections)
        return Workspace(config, open_store(tmp_path / "store"))._same_for_all("sensitive_volume").inputs

    bare, compared = key([]), key(["all"])
    assert set(bare) == {"injections.prior", "p_astro.prior"} and set(compared) == {*bare, "comparators"}
    # other data make another note
    real = key(["all"], strain={"source": "gwosc"})
    assert real["comparators"] != compared["comparators"] and key([], strain={"source": "gwosc"}) == bare
    edited = tmp_path / "comparators.csv"
    edited.write_text(comparators.TABLE.read_text() + "# a note\n")
    monkeypatch.setattr(comparators, "TABLE", edited)
    assert key(["all"])["comparators"] != compared["comparators"] and key([]) == bare
    monkeypatch.setattr(prior_files, "FOLDER", shutil.copytree(prior_files.FOLDER, tmp_path / "populations"))
    with (prior_files.FOLDER / "end_o3_ratesandpops.prior").open("a") as f:
        f.write("# edited\n")
    assert key([])["p_astro.prior"] != bare["p_astro.prior"] and key([])["injections.prior"] == bare["injections.prior"]


def log_uniform(m1, m2, z):
    inside = (m1 <= 100) & (m2 >= 5) & (m2 <= m1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(inside, -np.log(m1 * m2) - np.log(np.log(20)) - np.log(np.log(m1 / 5)), -np.inf)


def some_curves(rates, years=30.0):
    rng = np.random.default_rng(1)
    m1 = 5 * 20 ** rng.random(20_000)
    m2, z = 5 * (m1 / 5) ** rng.random(20_000), 2 * rng.random(20_000) ** (1 / 3)
    draws = Draws(np.where(z < 1, 9.0, -np.inf), SourceFrame(mass_1=m1, mass_2=m2, redshift=z), np.ones(20_000, bool))
    background = Background.of(rng.exponential(size=3000), years * SECONDS_PER_YEAR)
    return volume_curves(draws, Population(log_uniform, (0, 2)), background, [(35, 35), (35, 20), (20, 20)], rates, sigma=0.3)


def test_published_volumes_are_drawn_in_the_colour_of_their_pair():
    curves = some_curves(Rate.wanted([], [1.0, 12.0]))
    figure = json.loads(volume_figure(curves, "1/yr", 10, published(["all"]), "Other data.").plotly)
    traces = {t["name"]: t for t in figure["data"] if "source" not in t and "O3" in (t.get("name") or "")}
    assert len(traces) == 7
    gstlal = next(t for n, t in traces.items() if n.startswith("GstLAL, O3 ("))
    assert sorted(decoded(gstlal["y"])) == [3, 10]
    ours = {t["name"]: t["line"]["color"] for t in figure["data"] if (t.get("name") or "").endswith("M☉")}
    assert set(gstlal["marker"]["color"]) == {ours["35 + 35 M☉"], ours["20 + 20 M☉"]}
    assert all(0.8 < x < 1.3 for t in traces.values() for x in decoded(t["x"])), "at one per year"
    caption = volume_figure(curves, "1/yr", 10, published(["all"]), "Other data.").caption
    assert caption.endswith("Other data.") and "published" in caption
    plain = volume_figure(curves, "1/yr", 10)
    assert "published" not in plain.caption
    hourly = json.loads(volume_figure(curves, "1/h", 10, published(["aframe"])).plotly)
    x = next(decoded(t["x"]) for t in hourly["data"] if "Aframe" in (t.get("name") or ""))
    assert np.allclose(x, 3600 / SECONDS_PER_YEAR, rtol=0.1)
    png = volume_png(curves, "1/yr", 10, "title", published(["all"]), "Other data.")
    assert png[:4] == b"\x89PNG" and len(png) < 150_000


def decoded(values):
    """plotly writes arrays as base64 or as lists."""
    import base64

    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), np.dtype(values["dtype"])).tolist()
    return values


def test_volume_against_mass():
    curves = some_curves(Rate.wanted([], [1.0, 12.0]))
    figure = mass_figure(curves, published(["all"]), "Other data.")
    names = [t["name"] for t in json.loads(figure.plotly)["data"]]
    assert names[-1] == "this run, 1 /yr" and len(names) == 4 and figure.caption.endswith("Other data.")
    assert decoded(json.loads(figure.plotly)["data"][-1]["x"]) == [35, 20]
    few = mass_figure(some_curves(Rate.wanted([], [1.0, 12.0]), years=1.0), published(["aframe"]))
    assert json.loads(few.plotly)["data"][-1]["name"] == "this run, 12 /yr", "1/yr is not measurable with a year of background"
    assert mass_figure(curves, published(["gwtc3_cwb"])) is None and mass_figure(curves, ()) is None


def test_the_assets_show_them(tmp_path):
    config = build_config({"preset": "demo", "sensitivity": {"comparators": ["aframe", "gwtc3_cwb"]}})
    r = Room(tmp_path, config)
    meta = write_events(r.folder, config, num_draws=3000, num_slides=5)
    names = ("background.hdf5", "0lag.hdf5", "foreground.hdf5", "rejected-parameters.hdf5")
    r.publish("events", {n: r.folder / n for n in names}, meta)
    product = r.make("sensitive_volume", room.make_sensitive_volume)
    shown = product.meta["comparators"]
    assert "simulated" in shown["note"] and [p["pipeline"] for p in shown["rows"]] == ["Aframe", "Aframe", "cWB", "cWB", "cWB", "cWB"]
    lines = published_lines(product.meta)
    assert any(x.startswith("published, 35 + 35, 1 /yr: Aframe 10.4, cWB 6.36 (GWTC-3, own threshold)") for x in lines)
    assert published_lines({"comparators": {"note": "", "rows": []}}) == []
    ids = [f["id"] for f in json.loads(r.read("sensitive_volume", "figures.json").read_text())]
    assert ids[:2] == ["volume", "mass"]
    assert "Aframe, O3" in r.read("sensitive_volume", "sensitive_volume.html").read_text()
