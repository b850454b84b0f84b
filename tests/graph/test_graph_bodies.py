"""Bodies of assets with toy science: skipping, fan-out, failed segments, stale inputs, retries."""

from __future__ import annotations

import base64
from pathlib import Path

import dagster as dg
import pytest

from aframe_assets.config_load import build_config, resolved_text
from aframe_assets.partitions import SEGMENTS
from aframe_assets.store.bodies import Experiment, plain_asset
from aframe_assets.store.fanout import partitioned_asset, sharded_asset
from aframe_assets.store.io_managers import io_manager_for
from aframe_assets.store.job import Check, Declared, Product
from aframe_assets.tags import resources

ROWS = {
    f"{1000 + 100 * i}-100": {"gps_start": 1000 + 100 * i, "gps_stop": 1100 + 100 * i, "role": "test", "fingerprint": ""} for i in range(5)
}
FURNITURE = {"tags": resources(), "kinds": {"toy"}}


class Toy:
    """Counts what is made and fails on demand."""

    def __init__(self, tmp_path):
        self.root = tmp_path / "store"
        self.made: list[tuple[str, str | None]] = []
        self.bad: set[str] = set()
        self.check_passes = True
        self.instance = dg.DagsterInstance.ephemeral()

    def _file(self, job, text):
        self.made.append((job.asset, job.partition))
        path = job.scratch / "x.txt"
        path.write_text(text)
        return {"x.txt": path}

    def segments(self, job):
        return Product(self._file(job, "rows"), {"rows": ROWS, "roles": {"test": {"key": "k", "sha256": "s"}}})

    def background(self, job):
        if job.partition in self.bad:
            raise ValueError(f"NaN in H1 at GPS {job.row['gps_start']}")
        checks = [Check("finite", self.check_passes, description="toy")]
        return Product(self._file(job, f"{job.partition} {job.seed()}"), {}, checks, {"spectrum": lambda: job.partition.encode()})

    def index(self, job):
        if job.asset in self.bad:
            raise MemoryError("of 3 GB")
        keys = sorted(job.inputs["background"])
        return Product(self._file(job, " ".join(keys)), {"count": len(keys)}, plots={"range": lambda: b"a plot"}, markdown={"list": "|a|"})

    def shard(self, job, index):
        if f"shard {index}" in self.bad:
            raise ValueError("no waveform of mass 0")
        return Product(self._file(job, str(index)), {})

    def merge(self, job, shards):
        text = "".join(job.store.open_local(h, "x.txt").read_text() for h in shards)
        return Product(self._file(job, text), {"text": text}, plots={"snr": lambda: b"merged"})

    def run(self, select=None, keys=tuple(ROWS), raise_on_error=True, **overrides):
        config = build_config({"preset": "demo", "execution": {"segments_per_step": 2, "max_retries": 1}, **overrides})
        assets = [
            plain_asset("segments", self.segments, config, **FURNITURE),
            *partitioned_asset("background", self.background, config, checks=[Declared("finite", True, "no NaN")], **FURNITURE),
            plain_asset("background_index", self.index, config, **FURNITURE),
            *sharded_asset("training_waveforms", self.shard, self.merge, config, num_shards=3, **FURNITURE),
        ]
        experiment = Experiment(config_json=resolved_text(config), store_url=str(self.root))
        return dg.materialize(
            assets,
            resources={"experiment": experiment, "io_manager": io_manager_for(str(self.root))},
            instance=self.instance,
            selection=select,
            tags={"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]} if keys else {},
            raise_on_error=raise_on_error,
        )

    def store(self):
        return Experiment(config_json=resolved_text(build_config({"preset": "demo"})), store_url=str(self.root)).workspace().store


@pytest.fixture
def toy(tmp_path):
    toy = Toy(tmp_path)
    toy.run(["segments"], keys=())
    return toy


def test_segments_registers_its_partitions_sorted(toy):
    assert list(toy.instance.get_dynamic_partitions(SEGMENTS.name)) == sorted(ROWS)


def test_the_whole_range_in_one_run_and_nothing_redone(toy):
    assert toy.run().success
    assert sorted(p for a, p in toy.made if a == "background") == sorted(ROWS)
    assert toy.store().manifest("background_index").handle.meta["count"] == 5
    assert toy.store().manifest("training_waveforms").handle.meta["text"] == "012"
    toy.made.clear()
    assert toy.run().success
    assert toy.made == []


def test_the_newest_event_of_an_asset_has_its_plots_and_address_whether_made_or_found(toy):
    for _ in range(2):
        toy.run()
        for key in ROWS:
            (newest,) = toy.instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=dg.AssetKey("background"), asset_partitions=[key]), limit=1
            ).records
            shown = newest.asset_materialization.metadata
            assert base64.b64encode(key.encode()).decode() in shown["spectrum"].md_str, "each partition has its own"
            assert shown["uri"].url == toy.store().manifest("background", key).handle.uri
            assert (Path(shown["folder"].path) / "x.txt").read_text().startswith(key)
        for asset, titles in {"background_index": ["range", "list"], "training_waveforms": ["snr"]}.items():
            shown = toy.instance.get_latest_materialization_event(dg.AssetKey(asset)).asset_materialization.metadata
            assert [k for k, v in shown.items() if isinstance(v, dg.MarkdownMetadataValue)] == titles


def test_of_very_many_partitions_only_some_write_plots_to_the_database(toy, monkeypatch):
    from aframe_assets.store import fanout

    monkeypatch.setattr(fanout, "SHOWN", 2)
    toy.run()
    events = toy.instance.fetch_materializations(dg.AssetKey("background"), limit=100).records
    drawn = {e.partition_key for e in events if "spectrum" in e.asset_materialization.metadata}
    assert len(drawn) == 2 and {e.partition_key for e in events} == set(ROWS)


def test_only_what_reads_a_changed_key_is_made_again(toy):
    toy.run()
    toy.made.clear()
    assert toy.run(waveforms={"duration": 4}).success
    assert {a for a, _ in toy.made} == {"training_waveforms", "training_waveforms_shard"}


def test_a_bad_segment_does_not_sink_the_others(toy, capfd):
    toy.bad = {"1200-100"}
    result = toy.run(raise_on_error=False)
    assert not result.success
    assert len([a for a, _ in toy.made if a == "background"]) == 4
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("aframe:")]
    assert any("1200-100" in line and "NaN in H1 at GPS 1200" in line for line in lines)
    manifest = toy.store().manifest("background", "1200-100")
    assert manifest.status == "failed" and "NaN in H1" in manifest.error

    toy.bad, toy.made = set(), []
    assert toy.run().success
    assert [p for a, p in toy.made if a == "background"] == ["1200-100"]


def test_a_bad_segment_is_left_out_above_the_accepted_fraction(toy):
    toy.bad = {"1200-100"}
    assert toy.run(execution={"min_segment_fraction": 0.8, "segments_per_step": 2}).success
    assert toy.store().manifest("background_index").handle.meta["count"] == 4


def test_why_what_is_made_once_failed_is_kept_but_not_in_the_place_of_an_earlier_one(toy):
    toy.bad = {"background_index", "shard 1"}
    assert not toy.run(raise_on_error=False).success
    for asset, said in {"background_index": "MemoryError: of 3 GB", "training_waveforms": "ValueError: no waveform of mass 0"}.items():
        manifest = toy.store().manifest(asset)
        assert (manifest.status, manifest.error, manifest.handle) == ("failed", said, None)
    toy.bad = set()
    assert toy.run().success
    before = toy.store().manifest("background_index")
    toy.bad = {"background_index"}
    assert not toy.run(raise_on_error=False, seed=7).success
    assert toy.store().manifest("background_index") == before, "with the old settings it is still there"


def test_a_failed_blocking_check_stops_what_follows(toy):
    toy.check_passes = False
    assert not toy.run(raise_on_error=False).success
    assert toy.store().manifest("background_index") is None


def test_missing_upstream_says_what_and_how_once_and_is_not_retried(toy, capfd):
    result = toy.run(["background_index"], keys=(), raise_on_error=False)
    assert not result.success
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("aframe:")]
    assert len(lines) == 1
    assert "background" in lines[0] and "aframe run --until background" in lines[0]
    assert not [e for e in result.all_events if e.event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY]


def test_an_out_of_date_upstream_is_not_used(toy, capfd):
    toy.run()
    result = toy.run(["background_index"], keys=(), raise_on_error=False, seed=7)
    assert not result.success
    assert "out of date" in capfd.readouterr().err


def test_seeds_depend_on_experiment_asset_and_partition_only(toy):
    toy.run()
    store = toy.store()
    texts = {p: store.open_local(store.manifest("background", p).handle, "x.txt").read_text() for p in ROWS}
    assert len({t.split()[1] for t in texts.values()}) == 5
    again = Toy(toy.root.parent / "again")
    again.run(["segments"], keys=())
    again.run(["background"], keys=("1200-100", "1200-100"))
    other = again.store()
    assert other.open_local(other.manifest("background", "1200-100").handle, "x.txt").read_text() == texts["1200-100"]
