"""Data that training reads: in runs, from a store in parts, ahead of time, and in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import dagster as dg
import h5py
import numpy as np
import pytest
import torch

from aframe_assets import lineage
from aframe_assets.config_load import build_config, resolved_text
from aframe_assets.model import batches as batches_module
from aframe_assets.model.ahead import Ahead, Closed, read_ahead
from aframe_assets.model.assets import assets as model_assets
from aframe_assets.model.batches import TrainingBatches
from aframe_assets.model.data_module import TrainingData
from aframe_assets.model.generated import GeneratedSignals
from aframe_assets.model.samplers import MAX_SIGNALS, RUN, BackgroundFiles, Placement, SignalFile, generator_of, read_signals
from aframe_assets.store import KeyParts, open_store
from aframe_assets.store.bodies import Experiment
from aframe_assets.store.io_managers import io_manager_for
from aframe_assets.store.ranges import StoredFile
from aframe_assets.strain.background_file import StrainError, StrainFile, background_name, read_background, write_background
from aframe_assets.strain.conditioning import Whitener
from aframe_assets.waveforms.generation import WaveformGenerator
from aframe_assets.waveforms.priors import get_prior
from aframe_assets.waveforms.sets import training_set

RATE, T0 = 512, 1240600000


@pytest.fixture
def long_file(tmp_path):
    """100 s of H1 and L1."""
    rng = np.random.default_rng(3)
    path = tmp_path / background_name(T0, 100)
    write_background(path, {i: rng.normal(0, 1e-23 * 16, 100 * RATE) for i in ("H1", "L1")}, T0, RATE)
    return path


def stored(store, *paths: Path) -> list[StoredFile]:
    out = []
    for path in paths:
        parts = KeyParts(asset="background", code_version="1", partition=path.stem.removeprefix("background-"))
        out.append(StoredFile(store, store.publish(parts, {path.name: path}), path.name))
    return out


def test_ahead_makes_the_next_one_and_tells_what_went_wrong():
    made, go = [], threading.Event()

    def make(number):
        made.append(number)
        if number == 2:
            go.wait(10)
        if number == 3:
            raise ValueError("three")
        return number * 10

    ahead = Ahead(make, last=4)
    assert ahead.get(1) == 10
    go.set()
    assert ahead.get(2) == 20
    with pytest.raises(ValueError, match="three"):
        ahead.get(3)
    assert ahead.get(4) == 40 and ahead.future is None and ahead.get(9) == 90 and ahead.get(0) == 0
    assert made[:4] == [1, 2, 3, 4]
    ahead.close()


def test_read_ahead_keeps_order_and_stays_within_its_bound():
    running, most, guard = [0], [0], threading.Lock()

    def read(i):
        with guard:
            running[0] += 1
            most[0] = max(most[0], running[0])
        return i

    taken = []
    for value in read_ahead([lambda i=i: read(i) for i in range(50)]):
        taken.append(value)
        with guard:
            running[0] -= 1
    assert taken == list(range(50)) and 1 < most[0] <= 9
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([lambda: 1 / 0]))


def test_stretches_of_a_strain_file(long_file):
    f = StrainFile.open(long_file, ["L1", "H1"])
    assert (f.gps_start, f.sample_rate, f.size) == (T0, RATE, 100 * RATE)
    expected = read_background(long_file, ["L1"], start=T0 + 3, stop=T0 + 60).strain["L1"]
    np.testing.assert_array_equal(f.read("L1", 3 * RATE, 60 * RATE), expected)
    with pytest.raises(StrainError, match="no strain of V1; the file holds H1, L1"):
        StrainFile.open(long_file, ["H1", "V1"])
    with h5py.File(long_file, "r+") as g:
        g["H1"][10 * RATE + 256 : 10 * RATE + 258] = np.nan
    with pytest.raises(StrainError, match=rf"H1 strain is not finite at GPS {T0 + 10.5:.4f} \(2 samples\)"):
        f.read("H1", 5 * RATE, 20 * RATE)
    os.truncate(long_file, 300_000)
    with pytest.raises(StrainError, match="not a readable background file"):
        f.read("L1", 0, 100 * RATE)


def test_strain_of_another_rate_is_refused(tiny_config, tmp_path):
    path = tmp_path / background_name(T0, 50)
    write_background(path, {i: np.ones(50 * 256) for i in ("H1", "L1")}, T0, 256)
    config = tiny_config()
    with pytest.raises(StrainError, match="strain at 256 Hz; expected sample_rate 512 Hz"):
        BackgroundFiles([path], config.ifos, Whitener(config.conditioning, RATE), 8.0, 1.0)


def test_where_there_are_more_blocks_runs_are_drawn(tiny_config, long_file):
    config = tiny_config()
    whitener = Whitener(config.conditioning, RATE)
    files = BackgroundFiles([long_file], config.ifos, whitener, 2.0, 1.0)
    assert files.num_blocks == 47
    whole = files.draw("H1", generator_of(0))
    assert len(whole.strain) == 47
    strain = torch.from_numpy(read_background(long_file, ["H1"]).strain["H1"])
    # the same phase is drawn first, so that blocks of both draws are the same stretches of time
    some = files.draw("H1", generator_of(0), limit=20)
    assert some.strain.shape == (20, 2 * RATE) and len(some.psd) == 20
    where = [int(torch.nonzero((whole.strain == row).all(1))[0, 0]) for row in some.strain]
    starts = [w for w in where if w - 1 not in where]
    assert where == sorted(set(where)) and all(s % RUN == 0 for s in starts) and len(starts) <= 4
    # a block is its own stretch whitened alone, with the PSD of the 4 s before
    phase = int(torch.randint((100 - 5) * RATE % (2 * RATE) + 1, (), generator=generator_of(0)))
    part = strain[phase + 6 * RATE : phase + 13 * RATE]
    alone = whitener.whiten(part[None, 4 * RATE :], whitener.psd(part[: 4 * RATE])[None])[0]
    torch.testing.assert_close(whole.strain[3], alone, rtol=0, atol=1e-5)


def test_signals_beyond_what_fits_are_runs_of_rows(tiny_config, tiny_data):
    batches = TrainingBatches(tiny_config(), tiny_data.background["train"], tiny_data.training, 5)
    file = SignalFile(tiny_data.training, batches.placement, RATE)
    every = file.draw(generator_of(0))
    some = SignalFile(tiny_data.training, batches.placement, RATE).draw(generator_of(1), limit=20, run=10)
    starts = torch.randint(31, (2,), generator=generator_of(1)).sort().values.tolist()
    torch.testing.assert_close(some, torch.cat([every[s : s + 10] for s in starts]), rtol=0, atol=0)


def test_the_next_pool_is_made_meanwhile_and_is_the_same(tiny_config, tiny_data, monkeypatch):
    monkeypatch.setattr(batches_module, "REFILL_STEPS", 5)

    def make():
        return TrainingBatches(tiny_config(), tiny_data.background["train"], tiny_data.training, 5)

    one, two = make(), make()
    drawn = []
    monkeypatch.setattr(one, "_load", None)
    load = one._pools.make
    one._pools.make = lambda index: (drawn.append((index, threading.current_thread() is threading.main_thread())), load(index))[1]
    # 3 epochs of 6 steps are pools 0 to 3
    steps = [one.batch(step) for step in range(18)]
    assert drawn == [(i, False) for i in range(4)]
    for step in (17, 4, 11):
        for a, b in zip(steps[step], two.batch(step), strict=True):
            assert torch.equal(a, b)
    one.close(), two.close()


def test_closing_does_not_wait_for_the_next_pool(tiny_config, tiny_data, monkeypatch):
    monkeypatch.setattr(batches_module, "REFILL_STEPS", 5)
    batches = TrainingBatches(tiny_config(psd_block=1), tiny_data.background["train"], tiny_data.training, 5)
    read, begun = StrainFile.read, threading.Event()
    batches.batch(0)
    batches._pools.future.result()

    def slow(*args):
        begun.set()
        time.sleep(1)
        return read(*args)

    monkeypatch.setattr(StrainFile, "read", slow)
    monkeypatch.setattr("aframe_assets.model.ahead.READERS", 1)
    batches.batch(5)
    assert begun.wait(10)
    start = time.monotonic()
    batches.close()
    # of eighteen reads at most those under way are waited for
    assert time.monotonic() - start < 4 and isinstance(batches._pools.future.exception(), Closed)


def test_no_pool_is_made_for_steps_after_the_last(tiny_config, tiny_data, monkeypatch):
    monkeypatch.setattr(batches_module, "REFILL_STEPS", 2)
    drawn, load = [], TrainingBatches._load
    monkeypatch.setattr(TrainingBatches, "_load", lambda self, index: (drawn.append(index), load(self, index))[1])
    config = tiny_config(max_epochs=2, batches_per_epoch=2)
    data = TrainingData(config, tiny_data.background, tiny_data.training, tiny_data.validation, seed=5)
    data.setup("fit")
    for step in range(4):
        data._batches.get(step)
    if data._batches.future is not None:
        data._batches.future.result()
    assert drawn == [0, 1]
    data.teardown("fit")


def test_memory_of_pools_is_what_is_said(tiny_config, tiny_data):
    batches = TrainingBatches(tiny_config(max_epochs=1000), tiny_data.background["train"], tiny_data.training, 5)
    batches.batch(0)
    pool = batches._pool
    changing = sum(x.nbytes for b in pool.blocks for x in (b.strain, b.psd)) + sum(g.nbytes for g in pool.glitches)
    assert batches.nbytes == 2 * changing + pool.signals.nbytes + batches.files.reading_nbytes and len(pool.signals) < MAX_SIGNALS
    batches.close()


def test_training_from_a_remote_store_is_that_from_files(tiny_config, tiny_data, tmp_path, bucket):
    store = open_store(f"s3://{bucket[1]}/run", cache_dir=tmp_path / "cache")
    roles = {role: stored(store, *paths) for role, paths in tiny_data.background.items()}
    signals = stored(store, tiny_data.training, tiny_data.validation)
    config = tiny_config(max_epochs=1)
    one = tiny_data.train(config, tmp_path / "one")
    two = tiny_data.train(config, tmp_path / "two", background=roles, training_signals=signals[0], validation_signals=signals[1])
    assert one.history == two.history
    for a, b in zip(one.network.state_dict().values(), two.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert not (tmp_path / "cache" / "files").exists() and list((tmp_path / "cache" / "pieces").glob("??/*"))


def test_the_asset_trains_from_a_remote_store_without_fetching_its_data_whole(published, tiny_config, bucket, tmp_path):
    config, cache = tiny_config(max_epochs=1), tmp_path / "cache"
    store, url = published(config, f"s3://{bucket[1]}/run", cache_dir=cache)
    experiment = Experiment(config_json=resolved_text(config), store_url=url, cache_dir=str(cache))
    model = next(a for a in model_assets(config) if isinstance(a, dg.AssetsDefinition))
    done = dg.materialize([model], resources={"experiment": experiment, "io_manager": io_manager_for(url, cache_dir=str(cache))})
    assert done.success and store.manifest("model").handle.meta["num_parameters"] > 0
    fetched = {p.name for p in (cache / "files").rglob("*.hdf5")}
    assert not fetched and len(list((cache / "pieces").glob("??/*"))) >= 5


@pytest.fixture
def generating(tiny_config):
    """The tiny experiment, with IMRPhenomD made while it trains."""
    config = tiny_config(signals="generated", max_epochs=1)
    changes = {"approximant": "IMRPhenomD", "num_training_signals": 300, "minimum_frequency": 30}
    return config.model_copy(update={"waveforms": config.waveforms.model_copy(update=changes)})


def test_generated_signals_are_those_that_a_file_would_hold(generating, tmp_path):
    placement = Placement.of(generating)
    made = GeneratedSignals(generating, placement)
    signals = made.draw(generator_of(7))
    assert signals.shape == (300, 2, placement.size) and made.nbytes == signals.nbytes
    rng = generator_of(7)
    for start, count in ((0, 256), (256, 44)):
        seed = int(torch.randint(2**62, (), generator=rng))
        waves, _ = training_set(count, get_prior(generating.waveforms.prior), WaveformGenerator.of(generating), seed)
        path = waves.write(tmp_path / f"{start}.hdf5")
        stored_ones = read_signals(path, ("cross", "plus"), placement, [slice(0, count)], RATE)
        assert torch.equal(signals[start : start + count], stored_ones)
    assert not torch.equal(made.draw(rng)[0], signals[0]) and torch.equal(made.draw(generator_of(7)), signals)


def test_training_with_generated_signals_needs_no_training_waveforms(generating, tiny_config, tiny_data, tmp_path):
    result = tiny_data.train(generating, tmp_path / "a", training_signals=None)
    assert np.isfinite(result.metrics["train_loss"])
    with pytest.raises(ValueError, match=r"model\.training\.signals is 'stored': expected a file"):
        tiny_data.train(tiny_config(max_epochs=1), tmp_path / "b", training_signals=None)
    graph = lineage.graph(generating)
    assert "training_waveforms" not in graph and "training_waveforms" not in lineage.deps(graph["model"])
    assert "waveforms.prior" in graph["model"].config and "waveforms.prior" in graph["model"].files
    stored_graph = lineage.graph(tiny_config())
    assert "training_waveforms" in lineage.deps(stored_graph["model"]) and "waveforms.prior" not in stored_graph["model"].config


def test_signals_that_take_long_are_not_made_while_training():
    data = {"preset": "demo", "model": {"training": {"signals": "generated"}}, "waveforms": {"approximant": "IMRPhenomXPHM"}}
    with pytest.raises(ValueError, match=r"waveforms\.approximant.*IMRPhenomXPHM.*made while training; expected IMRPhenomPv2"):
        build_config(data)


TRAINING = """
import json, sys
from pathlib import Path
import torch
from aframe_assets.config import Config
from aframe_assets.model import training, validation
from aframe_assets.model.batches import TrainingBatches
from aframe_assets.store import open_store
from aframe_assets.store.ranges import StoredFile

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name)) * 1024

config, url, cache, cap, data, work = sys.argv[1:]
config, store = Config.model_validate_json(Path(config).read_text()), open_store(url, cache_dir=cache, cache_bytes=int(cap))
said = []
for kind in (TrainingBatches, validation.ValidationSet):
    def made(self, *args, init=kind.__init__, **kwargs):
        if not said:
            said.append(memory("VmHWM"))
        init(self, *args, **kwargs)
        said.append(self.nbytes)
    kind.__init__ = made
source = lambda pair: StoredFile(store, store.manifest("background", pair[0]).handle, pair[1])
data = json.loads(data)
torch.set_num_threads(1)
training.train(config, background={r: [source(p) for p in v] for r, v in data["background"].items()}, workdir=Path(work), seed=3,
               training_signals=Path(data["training"]), validation_signals=Path(data["validation"]))
print(json.dumps({"before": said[0], "said": sum(said[1:]), "peak": memory("VmHWM"), "held": store.cache.held()}))
"""


@pytest.mark.slow
def test_a_set_larger_than_the_cache_trains_from_s3_in_bounded_memory(tiny_config, tiny_data, tmp_path, s3_server, bucket):
    cap, store = 256_000_000, open_store(f"s3://{bucket[1]}/run", cache_dir=tmp_path / "cache")
    rng, names = np.random.default_rng(0), []
    for i in range(14):
        path = tmp_path / background_name(T0 + 5000 * i, 4096)
        write_background(path, {ifo: rng.normal(0, 1e-23 * 16, 4096 * RATE) for ifo in ("H1", "L1")}, T0 + 5000 * i, RATE)
        names.append((f"{T0 + 5000 * i}-4096", stored(store, path)[0].name))
        path.unlink()
    short = stored(store, *tiny_data.background["validation"])
    background = {"train": names, "validation": [(s.handle.partition, s.name) for s in short]}
    # 2 pools of 500 steps and a bit, 13 minutes of the 16 hours in memory at any time
    config = tmp_path / "config.json"
    config.write_text(resolved_text(tiny_config(max_epochs=2, batches_per_epoch=510, psd_block=2)))
    data = {"background": background, "training": str(tiny_data.training), "validation": str(tiny_data.validation)}
    command = [
        sys.executable,
        "-c",
        TRAINING,
        str(config),
        store.url,
        str(tmp_path / "cache"),
        str(cap),
        json.dumps(data),
        str(tmp_path / "w"),
    ]
    environment = os.environ | s3_server | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=1500)
    found = json.loads(done.stdout.splitlines()[-1])
    total = 14 * 4096 * RATE * 8 * 2
    assert total > 1.8 * cap and cap / 2 < found["held"] <= cap
    # besides data: network, optimiser, Lightning, loggers, and what their import takes after the first look
    print({k: round(v / 1e6) for k, v in found.items()})
    assert found["peak"] - found["before"] < found["said"] + 250e6 < total


SHARING = """
import json, sys
from pathlib import Path
from aframe_assets.config import Config
from aframe_assets.model import batches
from aframe_assets.store import open_store, s3
from aframe_assets.store.ranges import StoredFile

batches.REFILL_STEPS = 2
config, url, cache, names, signals = sys.argv[1:]
store, asked = open_store(url, cache_dir=cache), []
fetch = s3.S3Store._fetch
s3.S3Store._fetch = lambda self, handle, entry, path, first, size: (asked.append(size), fetch(self, handle, entry, path, first, size))[1]
files = [StoredFile(store, store.manifest("background", p).handle, n) for p, n in json.loads(names)]
made = batches.TrainingBatches(Config.model_validate_json(Path(config).read_text()), files, Path(signals), 5)
print("ready", flush=True)
sys.stdin.readline()
sums = [float(made.batch(step)[0].double().sum()) for step in range(12)]
made.close()
print(json.dumps([sum(n for n in asked if n >= 100_000), sums]))
"""


@pytest.mark.slow
def test_processes_of_a_node_fetch_their_data_once(tiny_config, tiny_data, tmp_path, s3_server, bucket):
    store, rng, names = open_store(f"s3://{bucket[1]}/run", cache_dir=tmp_path / "cache"), np.random.default_rng(0), []
    for i in range(2):
        path = tmp_path / background_name(T0 + 5000 * i, 2048)
        write_background(path, {ifo: rng.normal(0, 1e-23 * 16, 2048 * RATE) for ifo in ("H1", "L1")}, T0 + 5000 * i, RATE)
        names.append((f"{T0 + 5000 * i}-2048", stored(store, path)[0].name))
    config = tmp_path / "config.json"
    config.write_text(resolved_text(tiny_config(psd_block=2)))
    environment = os.environ | s3_server | {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"}

    def run(count, cache):
        command = [sys.executable, "-c", SHARING, str(config), store.url, str(cache), json.dumps(names), str(tiny_data.training)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        ranks = [subprocess.Popen(command, env=environment, **pipes) for _ in range(count)]
        for rank in ranks:
            assert rank.stdout.readline() == "ready\n"
        for rank in ranks:
            rank.stdin.write("\n")
            rank.stdin.flush()
        return [json.loads(rank.communicate(timeout=300)[0]) for rank in ranks]

    ((alone, sums),) = run(1, tmp_path / "one")
    several = run(3, tmp_path / "three")
    assert all(s == sums for _, s in several) and alone > 10e6
    assert sum(fetched for fetched, _ in several) <= 1.02 * alone
