"""The assets of the strain room on a store, with simulated strain."""

from __future__ import annotations

import dagster as dg
import numpy as np
import pytest

from aframe_assets.config_load import build_config, resolved_text
from aframe_assets.segments.assets import assets as segment_assets
from aframe_assets.store.bodies import Experiment
from aframe_assets.store.io_managers import io_manager_for
from aframe_assets.store.job import Job
from aframe_assets.strain.assets import assets as strain_assets
from aframe_assets.strain.background_file import read_background
from aframe_assets.strain.background_index import INDEX_FILE, BackgroundIndex, open_chunk
from aframe_assets.strain.checks import most_sensitive_check
from aframe_assets.strain.psd import Quality, Spectrum, choose_psd, inspiral_range, read_psd
from aframe_assets.strain.simulated import simulator

T0 = 1_240_600_000
FIXED = [[T0, T0 + 64], [T0 + 100, T0 + 148], [T0 + 200, T0 + 264], [T0 + 5000, T0 + 5064], [T0 + 5100, T0 + 5132], [T0 + 5200, T0 + 5264]]
LATER = [T0 + 5300, T0 + 5396]


class Room:
    def __init__(self, root):
        self.root = root
        self.instance = dg.DagsterInstance.ephemeral()
        self.config = None

    def run(self, fixed, raise_on_error=True, **overrides):
        segments = {
            "source": "fixed",
            "fixed": fixed,
            "train_start": T0,
            "train_stop": T0 + 5000,
            "test_start": T0 + 5000,
            "test_stop": T0 + 9000,
        }
        segments |= {"train_min_duration": 16, "test_min_duration": 16, "min_valid_duration": 40}
        self.config = build_config({"preset": "demo", "segments": segments} | overrides)
        items = [*segment_assets(self.config), *strain_assets(self.config)]
        experiment = Experiment(config_json=resolved_text(self.config), store_url=str(self.root))
        resources = {"experiment": experiment, "io_manager": io_manager_for(str(self.root))}
        alone = [i for i in items if not isinstance(i, dg.AssetChecksDefinition)]
        dg.materialize(alone, resources=resources, instance=self.instance, selection=["segments"])
        self.workspace = experiment.workspace()
        keys = list(self.workspace.rows())
        tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
        names = ["background", "background_index", "psd"]
        result = dg.materialize(
            items, resources=resources, instance=self.instance, selection=names, tags=tags, raise_on_error=raise_on_error
        )
        self.store = experiment.workspace().store
        return result


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    room = Room(tmp_path_factory.mktemp("strain") / "store")
    room.first = room.run(FIXED)
    room.first_roles = room.store.manifest("psd").handle.meta["roles"]
    return room


def test_background_is_what_the_source_gives(room):
    handle = room.store.manifest("background", f"{T0 + 100}-48").handle
    assert [f.name for f in handle.files] == [f"background-{T0 + 100}-48.hdf5"]
    background = read_background(room.store.open_local(handle, handle.files[0].name))
    assert background.ifos == ["H1", "L1"] and background.gps_start == T0 + 100 and background.duration == 48
    assert np.array_equal(background.strain["L1"], simulator(room.config, "L1").strain(T0 + 100, T0 + 148))
    assert handle.meta["range_mpc"]["H1"] > 100


def test_index_lists_roles_and_opens_files(room):
    handle = room.store.manifest("background_index").handle
    roles = handle.meta["roles"]
    assert {r: v["livetime"] for r, v in roles.items()} == {"train": 112, "validation": 64, "test": 160}
    assert roles["validation"]["partitions"] == [f"{T0 + 200}-64"] and handle.meta["missing"] == {}
    job = Job(room.config, "model", None, {"background_index": handle}, None, room.store, None, None, None)
    index = BackgroundIndex.read(job.path("background_index", INDEX_FILE))
    paths = {c.partition: open_chunk(job, c) for c in index.of("train", "validation")}
    assert list(paths) == [f"{T0}-64", f"{T0 + 100}-48", f"{T0 + 200}-64"]
    assert all(read_background(p).ifos == ["H1", "L1"] for p in paths.values())


def test_psd_of_every_role(room):
    handle = room.store.manifest("psd").handle
    path = room.store.open_local(handle, "psd.hdf5")
    for role in ("train", "validation", "test"):
        choice = handle.meta["roles"][role]
        assert choice["reason"] and choice["partition"] in room.store.manifest("background_index").handle.meta["roles"][role]["partitions"]
        frequencies, psd = read_psd(path, role)["H1"]
        band = (frequencies > 100) & (frequencies < 200)
        assert np.median(np.sqrt(psd[band])) == pytest.approx(4e-24, rel=0.5)
    assert all(c["passed"] for c in room.store.manifest("psd").checks)
    assert f"{T0 + 5100}-32" != handle.meta["roles"]["test"]["partition"]


def test_most_sensitive_psd_of_every_role(room):
    handle = room.store.manifest("psd").handle
    path = room.store.open_local(handle, "psd.hdf5")
    index = BackgroundIndex.read(room.store.open_local(room.store.manifest("background_index").handle, "background_index.json"))
    for role in ("train", "validation", "test"):
        found, spectra = handle.meta["roles"][role]["most_sensitive"], read_psd(path, role, most_sensitive=True)
        chunks = {c.partition: c for c in index.of(role)}
        for ifo, choice in found.items():
            c = chunks[choice["partition"]]
            assert c.duration >= 32 and c.ranges[ifo] == max(o.ranges[ifo] for o in chunks.values() if o.duration >= 32)
            assert ifo in choice["reason"] and choice["background_sha256"] == c.sha256
            # the spectrum is that chunk's own: its range is the one the index has
            assert inspiral_range(Spectrum(*spectra[ifo])) == pytest.approx(c.ranges[ifo], rel=1e-9)


def test_older_choices_stay_when_the_most_sensitive_is_added(room):
    """A psd of a version without the second group keeps its typical chunk, also where today's rule takes another."""
    from aframe_assets.strain.assets import _kept

    index = BackgroundIndex.read(room.store.open_local(room.store.manifest("background_index").handle, "background_index.json"))
    chunks = {c.partition: c for c in index.of("test")}
    old = {"partition": f"{T0 + 5100}-32", "reason": "before", "background_sha256": chunks[f"{T0 + 5100}-32"].sha256}
    assert _kept(old, chunks).partition == f"{T0 + 5100}-32" and _kept(old.get("most_sensitive", {}), chunks) is None
    assert _kept(old | {"background_sha256": "other data"}, chunks) is None


def test_pages_carry_pictures(room):
    pages = [e.step_materialization_data.materialization.metadata for e in room.first.get_asset_materialization_events()]
    pictures = [v.md_str for m in pages for v in m.values() if isinstance(v, dg.MarkdownMetadataValue)]
    assert len(pictures) >= 6 + 6 and all(len(p) < 200_000 and p.startswith("![") for p in pictures)


def test_new_data_change_no_choice(room):
    """DESIGN decision 1: a role's reference PSD is frozen, also when a better chunk arrives; other roles keep their identity."""
    room.run([*FIXED, LATER])
    roles = room.store.manifest("psd").handle.meta["roles"]
    handle = room.store.manifest("background_index").handle
    assert handle.meta["roles"]["test"]["livetime"] == 256
    test = BackgroundIndex.read(room.store.open_local(handle, "background_index.json")).of("test")
    anew = choose_psd({c.partition: Quality(c.duration, c.ranges) for c in test})
    assert anew.partition != room.first_roles["test"]["partition"]
    assert roles == room.first_roles and all(roles[r]["most_sensitive"]["H1"]["partition"] for r in roles)


def test_later_data_that_are_more_sensitive_are_told():
    (held, told) = (most_sensitive_check(e, {}, 3) for e in ({}, {"test L1": "inspiral range L1 140 Mpc"}))
    assert held.passed and held.severity == "warn"
    assert not told.passed and "test L1" in told.description and "140 Mpc" in told.description
    doubted = most_sensitive_check({}, {"test H1": "1 of 6 chunks, up to 900 Mpc in z, not trusted"}, 3)
    assert not doubted.passed and doubted.description == "test H1: 1 of 6 chunks, up to 900 Mpc in z, not trusted"


def test_missing_segments_are_named(tmp_path):
    from aframe_assets.strain import simulated

    room = Room(tmp_path / "store")
    original = simulated.SimulatedNoise.strain

    def broken(self, start, stop):
        x = original(self, start, stop)
        if start == T0 + 100 and self.ifo == "L1":
            x[4096:4100] = np.nan
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated.SimulatedNoise, "strain", broken)
        failed = room.run(FIXED, raise_on_error=False)
        assert not failed.success
        manifest = room.store.manifest("background", f"{T0 + 100}-48")
        assert manifest.status == "failed" and "L1" in manifest.error and f"GPS {T0 + 102}.0000" in manifest.error
        assert room.store.manifest("background_index") is None
        assert room.run(FIXED, execution={"min_segment_fraction": 0.8}).success
    handle = room.store.manifest("background_index").handle
    assert handle.meta["missing"] == {"train": [f"{T0 + 100}-48"]} and handle.meta["roles"]["train"]["partitions"] == [f"{T0}-64"]
    (check,) = room.store.manifest("background_index").checks
    assert not check["passed"] and f"{T0 + 100}-48" in check["description"]
