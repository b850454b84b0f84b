"""Candidates: matches with every catalogue table, flags, limits, and what is printed of them."""

from __future__ import annotations

import csv
import json

import h5py
import numpy as np
import pytest
from made_up_events import Room, write_events

from aframe_assets.config_load import build_config
from aframe_assets.segments.catalog import Merger, catalogs
from aframe_assets.segments.vetoes import VETOES, Veto, write_vetoes
from aframe_assets.sensitivity import assets as room
from aframe_assets.sensitivity.candidates import CatalogMatch, analysed, find_candidates, match, write_csv
from aframe_assets.sensitivity.far import Background
from aframe_assets.sensitivity.measurement import measure
from aframe_assets.sensitivity.p_astro import fit_p_astro
from aframe_assets.sensitivity.summary import match_text, p_astro_text, published_text
from aframe_assets.waveforms.ledger import EventSet

BACKGROUND = Background.of(np.arange(10.0), 10.0)


def short(found):
    return {i: [(m.name, pytest.approx(m.offset)) for m in ms] for i, ms in found.items()}


def test_each_catalogue_event_claims_the_nearest():
    times = np.array([100.0, 50.0, 99.5, 10.0])
    known = [Merger("a", 99.6, "A"), Merger("b", 50.9, "A"), Merger("c", 12.0, "A")]
    assert short(match(times, known)) == {2: [("a", -0.1)], 1: [("b", -0.9)]}
    assert short(match(times, known, window=2.0)) == {2: [("a", -0.1)], 1: [("b", -0.9)], 3: [("c", -2.0)]}
    assert match(np.empty(0), known) == {}


def test_one_event_in_several_catalogues():
    """Both ends of the window count; a time that is known to a second reaches farther, and its name stands last."""
    known = [Merger("GW1_100000", 100.5, "names", accuracy=0.5), Merger("GW1", 100.2, "A", 0.0, 1e-7, 1.0, 26.0)]
    found = match(np.array([100.0, 300.0]), known)
    assert short(found) == {0: [("GW1", -0.2), ("GW1_100000", -0.5)]}
    assert found[0][0] == CatalogMatch("GW1", "A", pytest.approx(-0.2), 0.0, 1e-7, 1.0, 26.0)
    assert list(match(np.array([99.0]), known)) == [0], "100.5 - 0.5 - 1"
    assert match(np.array([98.9]), known) == {}
    # in the second itself all times are equally near, and the louder event is taken
    assert short(match(np.array([100.9, 100.4]), known[:1])) == {0: [("GW1_100000", 0.4)]}


def test_real_events_match_every_table_that_holds_them(shared_data):
    """The five events of ../shared/data/strain, at the merger times of 3-OGC, against all catalogue tables."""
    tables = {p.stem: str(p) for p in (shared_data / "catalog").iterdir()}
    holders = {"3-OGC_top", "4OGC_top", "GWOSC_all_versions_2023-09", "GWTC_cumulative_2023-09"}
    files = {}
    for path in (shared_data / "strain").glob("H-H1*.hdf5"):
        with h5py.File(path) as f:
            start = int(f["meta/GPSstart"][()])
            files[start] = (start, start + int(f["meta/Duration"][()]))
    assert len(files) == 5
    names = {"GW150914", "GW151226", "GW170104", "GW170814", "GW170823"}
    seen = set()
    for stretch in files.values():
        inside = {k: analysed(catalogs(v), [stretch]) for k, v in tables.items()}
        assert {k for k, v in inside.items() if v} == holders
        exact = inside["3-OGC_top"][0].gps
        found = match(np.array([exact - 500, exact]), catalogs(list(tables.values())))
        assert list(found) == [1] and len(found[1]) == 4
        assert {m.catalog for m in found[1]} == {"3-OGC_top", "4OGC_top", "GWTC-1-confident"}
        assert {m.name.partition("_")[0] for m in found[1]} < names and all(abs(m.offset) < 0.11 for m in found[1])
        seen |= {m.name.partition("_")[0] for m in found[1]}
        assert all(m.far_per_year is not None and m.p_astro > 0.99 and m.snr > 9 for m in found[1])
    assert seen == names


def test_an_event_of_a_table_without_times(shared_data):
    """GW230529_181500 was heard at 18:15:00 UTC, GPS 1369419318 (LVK circular S230529ay): found anywhere in that second."""
    table = str(shared_data / "catalog" / "GWTC4_O4a_pe_summary.csv")
    event = next(m for m in catalogs(table) if m.name == "GW230529_181500")
    for t in (1369419318.02, 1369419318.98, 1369419317.1):
        assert [m.name for m in match(np.array([t]), [event])[0]] == ["GW230529_181500"]
    assert match(np.array([1369419316.9]), [event]) == {}


def test_matches_are_listed_however_quiet():
    found = find_candidates(np.arange(50.0), np.arange(50.0) * 10, 500.0, BACKGROUND, None, [Merger("q", 30.0, "A")], max_candidates=5)
    assert [c.rank for c in found] == [1, 2, 3, 4, 5, 47]
    assert found[-1].matches[0].name == "q" and found[-1].p_astro is None
    assert found[-1].num_louder == 7 and found[-1].far == 0.7 and not found[-1].far_is_limit
    assert find_candidates(np.empty(0), np.empty(0), 1.0, BACKGROUND, None) == []


def test_vetoes_near_a_candidate_are_named(tmp_path):
    vetoes = [Veto("L1", 108.0, 200.0, "CBC_CAT2", "mask"), Veto("L1", 300.0, 310.0, "CBC_CAT2", "mask"), Veto("H1", 90, 91, "gates", "f")]
    found = find_candidates(
        np.array([3.0, 2.0]), np.array([100.0, 299.0]), 9.0, BACKGROUND, None, [Merger("GW1", 100, "A")], ifos=["H1", "L1"], vetoes=vetoes
    )
    assert [c.flags for c in found] == [("L1:CBC_CAT2",), ("L1:CBC_CAT2",)]
    with write_csv(tmp_path / "c.csv", found, ["H1", "L1"]).open() as f:
        rows = list(csv.DictReader(f))
    assert rows[0]["flags"] == "L1:CBC_CAT2" and rows[0]["matches"] == "GW1 (A) +0.00 s"
    assert float(rows[1]["detection_time_L1"]) == 299 and rows[1]["matches"] == "" and rows[1]["p_astro"] == ""


def toy_model(**more):
    rng = np.random.default_rng(1)
    w = np.ones(2000)
    more = {"rate": 30, "rate_interval": (20, 40), "population": "toy"} | more
    return fit_p_astro(rng.normal(size=20_000), 3e7, rng.normal(6, 2, 2000), w, 4e3, 4e3, 1.0, **more)


def test_a_limit_is_shown_as_a_limit():
    model = toy_model()
    loud = model.loudest
    background = Background.of(np.append(np.arange(-3, 3, 0.01), loud), 3e7)
    found = find_candidates(np.array([loud + 3, loud, 3.0]), np.arange(3.0), 1e5, background, model)
    first, second, third = (json.loads(json.dumps(c.__dict__, default=lambda o: o.__dict__)) for c in found)
    assert first["far_is_limit"] and first["p_astro_is_limit"] and first["p_astro_high"] == 1
    assert not second["far_is_limit"] and not second["p_astro_is_limit"], "as loud as the loudest is not louder"
    assert p_astro_text(first).startswith("> 0.") and "by the tail" in p_astro_text(first) and "(" not in p_astro_text(first, short=True)
    assert third["p_astro_low"] < third["p_astro"] < third["p_astro_high"]
    assert p_astro_text(third) == f"{third['p_astro']:.3f} ({third['p_astro_low']:.2g} to {third['p_astro_high']:.2g})"
    old = find_candidates(np.array([loud + 3]), np.zeros(1), 1e5, background, toy_model(compatible=True))[0]
    assert old.p_astro_low is None and p_astro_text(old.__dict__).endswith("(beyond the background)")
    assert p_astro_text(first | {"p_astro": None}) == ""


def test_texts_of_matches():
    def as_row(*matches):
        return {"matches": [m._asdict() if hasattr(m, "_asdict") else m.__dict__ for m in matches]}

    a = CatalogMatch("GW1", "A", 0.024, 0.0, 1e-7, 1.0, 26.0)
    b = CatalogMatch("GW1_000000", "B", 0.1, 0.0, None, None, 10.0)
    assert match_text(as_row(a, b, a)) == "GW1, GW1_000000 (+0.02 s)" and match_text({"matches": []}) == ""
    assert published_text(a.__dict__) == "FAR 1e-07 /yr, p_astro 1, SNR 26" and published_text(b.__dict__) == "SNR 10"


def sets(folder):
    from aframe_assets.waveforms.ledger import InjectionParameterSet, RecoveredInjectionSet

    return (
        EventSet.read(folder / "background.hdf5"),
        RecoveredInjectionSet.read(folder / "foreground.hdf5"),
        InjectionParameterSet.read(folder / "rejected-parameters.hdf5"),
    )


def test_zero_lag_signals_never_enter_the_background(tmp_path):
    """A hundred loud zero-lag signals change neither p_astro's model nor any FAR; one that is put into the background is refused."""
    from aframe_assets.waveforms.priors import get_prior

    config = build_config({"preset": "demo", "name": "toy"})
    names = ("background.hdf5", "0lag.hdf5", "foreground.hdf5", "rejected-parameters.hdf5")
    models, fars = [], []
    for kind, extra in (("quiet", []), ("loud", [(1240611000.0 + 7 * i, 30.0 + i) for i in range(100)])):
        (tmp_path / kind).mkdir()
        r = Room(tmp_path / kind, config)
        meta = write_events(r.folder, config, num_draws=3000, num_slides=5, zero_extra=extra)
        r.publish("events", {n: r.folder / n for n in names}, meta)
        r.make("sensitive_volume", room.make_sensitive_volume)
        r.make("candidates", room.make_candidates)
        models.append(r.read("sensitive_volume", "p_astro.json").read_text())
        rows = json.loads(r.read("candidates", "candidates.json").read_text())["candidates"]
        fars.append({c["detection_statistic"]: (c["far"], c["p_astro"]) for c in rows})
    assert models[0] == models[1] and len(fars[1]) == len(fars[0]) + 100
    assert all(fars[1][x] == y for x, y in fars[0].items())
    background, foreground, rejected = sets(r.folder)
    background.shift[3] = 0.0
    prior = get_prior("demo_mixture")
    with pytest.raises(ValueError, match=r"1 of \d+ events have shift 0"):
        measure(config, background, foreground, rejected, prior, prior)


def test_candidates_of_a_run_with_vetoes(tmp_path):
    """The asset reads the run's vetoes and several catalogues."""
    mine = tmp_path / "mine.csv"
    mine.write_text("name,GPS\nGW_loud,1240611000.3\n")
    names = tmp_path / "names.txt"
    names.write_text("event\nGW190429_220942\n")
    config = build_config({"preset": "demo", "sensitivity": {"catalog": [str(mine), str(names), "packaged"], "match_window": 0.5}})
    r = Room(tmp_path, config)
    meta = write_events(r.folder, config, num_draws=2000, num_slides=5, zero_extra=[(1240611000.5, 40.0)])
    files = ("background.hdf5", "0lag.hdf5", "foreground.hdf5", "rejected-parameters.hdf5")
    r.publish("events", {n: r.folder / n for n in files}, meta)
    r.make("sensitive_volume", room.make_sensitive_volume)
    write_vetoes([Veto("L1", 1240611004.0, 1240611010.0, "CBC_CAT2", "mask")], r.folder / VETOES)
    r.publish("vetoes", {VETOES: r.folder / VETOES}, {})
    product = r.make("candidates", room.make_candidates)
    first = json.loads(r.read("candidates", "candidates.json").read_text())["candidates"][0]
    assert first["flags"] == ["L1:CBC_CAT2"]
    # UTC 2019-04-29 22:09:42 is GPS 1240611000 (gwpy.time.to_gps)
    assert [(m["name"], m["catalog"], m["accuracy"]) for m in first["matches"]] == [
        ("GW_loud", "mine", 0),
        ("GW190429_220942", "names", 0.5),
    ]
    assert product.meta["match_window"] == 0.5 and product.meta["matched"] == ["GW_loud", "GW190429_220942"]


def test_keys_take_the_content_of_every_catalogue(tmp_path):
    """A list of catalogues: paths beside the experiment are made absolute, and a changed table is a changed key."""
    from aframe_assets.config_load import load_config
    from aframe_assets.store import open_store
    from aframe_assets.store.workspace import Workspace

    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("name,GPS\nA,1126259462.4\n")
    (tmp_path / "aframe.yaml").write_text("preset: demo\nsensitivity: {catalog: [a.csv, packaged, b.csv]}\n")
    config = load_config(tmp_path / "aframe.yaml")
    assert config.sensitivity.catalog == [str(tmp_path / "a.csv"), "packaged", str(tmp_path / "b.csv")]
    store = open_store(tmp_path / "store")
    before = Workspace(config, store)._same_for_all("candidates").inputs
    assert set(before) == {"sensitivity.catalog.0", "sensitivity.catalog.1", "sensitivity.catalog.2"}
    (tmp_path / "b.csv").write_text("name,GPS\nB,1126259462.4\n")
    after = Workspace(config, store)._same_for_all("candidates").inputs
    assert (
        after["sensitivity.catalog.0"] == before["sensitivity.catalog.0"]
        and after["sensitivity.catalog.2"] != before["sensitivity.catalog.2"]
    )


def test_keys_take_the_content_of_the_packaged_catalogue(tmp_path, monkeypatch):
    """An update of the package that adds events must not be given the masks and slides that were made without them."""
    from aframe_assets.segments import catalog
    from aframe_assets.store import open_store
    from aframe_assets.store.workspace import Workspace

    config = build_config(
        {
            "preset": "demo",
            "vetoes": {"catalog": "packaged"},
            "inference": {"exclude_catalog": "packaged"},
            "sensitivity": {"catalog": "packaged"},
        }
    )
    keys = {
        "vetoes": "vetoes.catalog",
        "injections": "inference.exclude_catalog",
        "inference_results": "inference.exclude_catalog",
        "candidates": "sensitivity.catalog",
    }

    def identities():
        workspace = Workspace(config, open_store(tmp_path / "store"))
        return {asset: workspace._same_for_all(asset).inputs[key] for asset, key in keys.items()}

    before = identities()
    edited = tmp_path / "gwtc.csv"
    edited.write_bytes(catalog.catalog_path("packaged").read_bytes() + b"later,1400000000.0\n")
    monkeypatch.setattr(catalog, "TABLE", edited)
    after = identities()
    assert all(before[asset] != after[asset] for asset in keys)


def test_compatible_volume_is_that_of_the_samples(tmp_path):
    """Reference 2.14: V over the lowest to highest redshift and declination drawn, times found / drawn, not weighted."""
    from aframe_assets.sensitivity.population import comoving_volume
    from aframe_assets.waveforms.priors import get_prior

    config = build_config({"preset": "demo", "sensitivity": {"aframe_compatible": True}})
    write_events(tmp_path, config, num_draws=3000, num_slides=5)
    background, foreground, rejected = sets(tmp_path)
    prior = get_prior("demo_mixture")
    model = measure(config, background, foreground, rejected, prior, prior).p_astro
    z, dec = (np.concatenate([getattr(foreground, k), getattr(rejected, k)]) for k in ("redshift", "dec"))
    v0 = comoving_volume(z.min(), z.max(), dec.min(), dec.max(), time_dilated=True)
    found = np.isfinite(foreground.detection_statistic).sum()
    assert model.volume == pytest.approx(v0 * found / len(z)) and model.compatible
    assert model.probability(20.0).low is None
