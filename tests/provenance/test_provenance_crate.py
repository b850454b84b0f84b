"""A run as an RO-Crate, and what a result must credit."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zipfile

import pytest

from aframe_assets.config_load import build_config
from aframe_assets.provenance.citations import CC_BY, data_sources, statement
from aframe_assets.provenance.crate import About, CrateError, current, write_crate
from aframe_assets.segments.table import make_roles
from aframe_assets.store import open_store
from aframe_assets.store.workspace import Workspace

ROWS = {"1126259000-100": {"gps_start": 1126259000, "gps_stop": 1126259100, "role": "test"}}


@pytest.fixture
def workspace(tmp_path):
    """Segments and a stretch of background of O1, published."""
    return published(tmp_path, {"source": "gwosc"})


def published(tmp_path, strain):
    config = build_config({"preset": "o3", "name": "small", "strain": strain})
    store = open_store(tmp_path / "store")
    made = {"segments": ("segments.csv", "key,start\n", None), "background": ("background.hdf5", "x" * 1000, "1126259000-100")}
    for asset, (name, text, partition) in made.items():
        (tmp_path / name).write_text(text)
        parts = Workspace(config, store).wanted(asset, partition).parts
        meta = {"rows": ROWS, "roles": make_roles(ROWS)} if asset == "segments" else {}
        store.publish(parts, {name: tmp_path / name}, meta, provenance={"wall_s": 60.0, "cpu_s": 30.0, "max_rss_mb": 500})
    return Workspace(config, store)


def graph(text):
    return {e["@id"]: e for e in json.loads(text)["@graph"]}


def ids(value):
    return {v["@id"] for v in (value if isinstance(value, list) else [value])}


def test_a_crate_says_what_was_made_from_what(workspace, tmp_path):
    rocrate = pytest.importorskip("rocrate.rocrate", reason="rocrate is not installed; `make install-dev` installs it")
    target = write_crate(workspace, tmp_path / "crate", About({"A. Person": "https://orcid.org/0000-0002-1825-0097"}))
    found = graph((target / "ro-crate-metadata.json").read_text())
    root = found["./"]
    assert root["conformsTo"] == {"@id": "https://w3id.org/ro/wfrun/process/0.5"} and root["license"] == {"@id": CC_BY}
    assert ids(root["author"]) == {"https://orcid.org/0000-0002-1825-0097"}
    assert ids(root["isBasedOn"]) == {"https://gwosc.org/O1/"}
    action = found["#make-background"]
    assert ids(action["object"]) == {"segments/", "experiment.json", "https://gwosc.org/O1/"}
    assert ids(action["result"]) == {"background/"} and action["startTime"] < action["endTime"]
    # as rocrate-validator asks of an ISO 8601 time
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", action["startTime"]) and action["description"]
    assert found["#background-wall_time"]["value"] == "60"
    assert not [(k, v) for e in found.values() for k, v in e.items() if isinstance(v, list) and len(v) == 1], "alone, yet in a list"
    assert ids(root["mentions"]) == {"#make-segments", "#make-background"}
    file = "background/1126259000-100/background.hdf5"
    assert found[file]["sha256"] == hashlib.sha256((target / file).read_bytes()).hexdigest()
    manifest = json.loads((target / "manifests" / "background.json").read_text())["1126259000-100"]
    assert manifest["handle"]["sha256"] and manifest["parts"]["inputs"]
    assert json.loads((target / "experiment.json").read_text())["name"] == "small"
    # everything that is referred to is described, and the library reads its own
    for entity in found.values():
        for value in entity.values():
            for v in value if isinstance(value, list) else [value]:
                if isinstance(v, dict) and not v["@id"].startswith(("https://w3id.org/ro/crate", "http://schema.org")):
                    assert v["@id"] in found, v
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rocrate.ROCrate(str(target)).name == "small: a gravitational-wave search"


def test_segments_are_looked_up_together(workspace, monkeypatch):
    monkeypatch.setattr(type(workspace.store), "complete", lambda *_: pytest.fail("of a search on S3, that is requests for each segment"))
    assert {a: list(records) for a, records in current(workspace).items()} == {"segments": [None], "background": ["1126259000-100"]}


def test_a_large_artifact_is_named_and_a_zip_is_whole(workspace, tmp_path):
    pytest.importorskip("rocrate", reason="rocrate is not installed; `make install-dev` installs it")
    target = write_crate(workspace, tmp_path / "new" / "crate.zip", About(copied=500))
    with zipfile.ZipFile(target) as z:
        names, found = set(z.namelist()), graph(z.read("ro-crate-metadata.json"))
    assert "segments/segments.csv" in names and not any(n.endswith(".hdf5") for n in names)
    uri = found["background/"]["contentUrl"]
    assert uri.startswith("file://") and "/background/1126259000-100/" in uri and found["background/"]["contentSize"] == "1000"
    assert [p.name for p in target.parent.iterdir()] == ["crate.zip"]


def test_refusals(workspace, tmp_path):
    pytest.importorskip("rocrate", reason="rocrate is not installed; `make install-dev` installs it")
    (tmp_path / "there").mkdir()
    with pytest.raises(CrateError, match="is there already"):
        write_crate(workspace, tmp_path / "there")
    handle = workspace.complete("background", "1126259000-100")
    path = workspace.store.open_local(handle, "background.hdf5")
    path.chmod(0o644)
    path.write_text("y" + "x" * 999)
    with pytest.raises(CrateError, match=r"background\[1126259000-100\] is damaged"):
        write_crate(workspace, tmp_path / "bad")
    assert not (tmp_path / "bad").exists() and not list(tmp_path.glob(".*bad"))
    with pytest.raises(CrateError, match="nothing of this run is complete"):
        write_crate(Workspace(workspace.config, open_store(tmp_path / "empty")), tmp_path / "none")


def test_data_that_are_not_known_to_be_public_get_no_licence_by_themselves(tmp_path):
    pytest.importorskip("rocrate.rocrate", reason="rocrate is not installed; `make install-dev` installs it")
    workspace = published(tmp_path, {"source": "frames", "channels": {"H1": "GDS-CALIB_STRAIN", "L1": "GDS-CALIB_STRAIN"}})
    with pytest.raises(CrateError, match=r"not known to be public.*--license"):
        write_crate(workspace, tmp_path / "crate")
    target = write_crate(workspace, tmp_path / "crate", About(licence="https://dcc.ligo.org/internal"))
    root = graph((target / "ro-crate-metadata.json").read_text())["./"]
    assert root["license"] == {"@id": "https://dcc.ligo.org/internal"} and root["isBasedOn"] == {"@id": "https://www.ligo.org/"}


def source(name, channel="GDS-CALIB_STRAIN"):
    channels = {"channels": {"H1": channel, "L1": channel}} if name == "frames" else {}
    return build_config({"preset": "o3", "strain": {"source": name, **channels}})


def test_data_are_credited_by_when_they_were_taken():
    o1, o3a, o4a, other = (1126259000, 1126259100), (1240600000, 1240600100), (1370000000, 1370000100), (1150000000, 1150000100)
    assert data_sources(build_config({"preset": "demo"}), [o1]) == []
    assert "simulated" in statement(build_config({"preset": "demo"}), [])
    names = [s.name for s in data_sources(source("gwosc"), [o3a, o1, o4a])]
    assert names[::2] == ["Strain of observing run O1", "Strain of observing run O3a", "Strain of observing run O4a"]
    # GW230518_125908 lies before the run and in its release
    early = data_sources(source("gwosc"), [(1368449000, 1368449100), (1400000000, 1400000100)])
    assert [s.id for s in early[::2]] == ["https://gwosc.org/O4/O4a/", "https://gwosc.org/O4/O4b/"]
    two = data_sources(source("gwosc"), [o3a, (1257000000, 1257000100)])
    assert [s.kind for s in two] == ["data", "paper", "data"], "O3a and O3b share a paper"
    both = data_sources(source("gwosc"), [o1, other])
    assert both[-1].id == "https://gwosc.org/" and "CC BY 4.0" in statement(source("gwosc"), both)
    private = data_sources(source("frames"), [other])
    assert private[0].licence == "" and "not known to be public" in statement(source("frames"), private)
    # the same times are published by another channel: that says nothing of this one
    inside = data_sources(source("frames"), [o3a])
    assert [s.licence for s in inside] == [""] and "not known to be public" in statement(source("frames"), inside)
    for channel in ("GWOSC-4KHZ_R1_STRAIN", "H1:GWOSC-16KHZ_R1_STRAIN", "H1:LOSC-STRAIN"):
        assert data_sources(source("frames", channel), [o3a]) == data_sources(source("gwosc"), [o3a])
