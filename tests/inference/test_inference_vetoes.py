"""GW200129: L1 fails CBC_CAT2 at the event's second. Kept under DATA, lost under CAT2; all livetimes and injections agree.

The files are made here in GWOSC's layout: the masks are as in the real data (GPS 1264316116.4, L1 CBC_CAT2 off and DATA on in
the second of the event), the strain is Gaussian noise with a loud burst in both detectors.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
from gwosc_file import write_gwosc

from aframe_assets.config import Conditioning
from aframe_assets.config_load import build_config
from aframe_assets.inference.assets import make_events, make_inference_results
from aframe_assets.inference.checks import RESULT_CHECKS
from aframe_assets.inference.detect import detect
from aframe_assets.segments.assets import make_segments, make_vetoes
from aframe_assets.segments.geometry import SlideGeometry, shift_vectors
from aframe_assets.segments.vetoes import vetoes_of
from aframe_assets.store import open_store
from aframe_assets.store.handle import KeyParts
from aframe_assets.store.job import Job
from aframe_assets.strain.assets import make_background
from aframe_assets.waveforms.injections import share
from aframe_assets.waveforms.ledger import SIGNAL, EventSet, InjectionParameterSet, InterferometerResponseSet, RecoveredInjectionSet

EVENT, START, SECONDS = 1264316116.4, 1264316046, 128
RATE, SLIDES = 512, 3
SHIFTS = shift_vectors(SLIDES, [0, 2])
OUTPUTS = 19
"""Outputs that look at the vetoed second: strain [edge - 1.5 - 1.5 - 0.5, edge + 0.5] over 1 s, four times a second."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("gw200129"), np.random.default_rng(0)
    t = START + np.arange(SECONDS * 4096) / 4096 - EVENT
    for ifo in ("H1", "L1"):
        strain = rng.standard_normal(len(t)) * 1e-22 + 2e-20 * np.exp(-((t / 0.05) ** 2)) * np.sin(2 * np.pi * 80 * t)
        unset = {"CBC_CAT2": [int(EVENT) - START], "CBC_CAT3": [int(EVENT) - START]} if ifo == "L1" else {}
        write_gwosc(folder / f"{ifo[0]}-{ifo}_GWOSC_4KHZ_R1-{START}-{SECONDS}.hdf5", ifo, START, strain, 4096, unset)
    return folder


class Energy:
    """Loud strain seen by both detectors scores high."""

    ifos, sample_rate, platform, bundle = ("H1", "L1"), 512, "test", {}
    kernel, context, form, filter = 768, 0, "windows", None
    conditioning = Conditioning(psd_length=8, fftlength=1).model_dump(mode="json")

    def score_windows(self, windows: np.ndarray) -> np.ndarray:
        return (windows.astype(np.float64) ** 2).mean(axis=2).min(axis=1).astype(np.float32)


def _named(path):
    path.write_text(path.stem)
    return {path.name: path}


class Search:
    """All bodies from `segments` to `events`, in a store of its own; the network is `Energy`."""

    def __init__(self, root, files, **overrides):
        self.config = build_config(
            {
                "preset": "events",
                "sample_rate": RATE,
                "conditioning": {"lowpass": None},
                "model": {"weights": "elsewhere"},
                "injections": {"num_signals": overrides.get("num_signals", 24), "spacing": 0, "buffer": 1},
                "inference": {
                    "num_slides": SLIDES,
                    "slide_mode": "linear",
                    "psd_source": "preceding",
                    "exclude_catalog": None,
                    "batch_size": 64,
                },
                "strain": {"files": [str(files)], "min_dq": overrides.get("min_dq", "DATA")},
                "vetoes": overrides.get("vetoes", {}),
            }
        )
        self.root, self.store, self.handles = root, open_store(root / "store"), {}
        self.publish("engine", _named(root / "engine.txt"), {})
        self.products = {"segments": self.make(make_segments, "segments")}
        self.rows = self.handles["segments"].meta["rows"]
        if self.config.vetoes.asked:
            self.products["vetoes"] = self.make(make_vetoes, "vetoes")
        self.vetoes = vetoes_of(self.job("injections", None, None))
        results = {}
        for key in self.rows:
            self.make(make_background, "background", key)
            self.inject(key)
            self.products[key] = results[key] = self.make(make_inference_results, "inference_results", key)
        held = {a: {k: self.handles[a, k] for k in self.rows} for a in ("inference_results", "injections")}
        self.handles = {k: v for k, v in self.handles.items() if isinstance(k, str)} | held
        self.events = self.make(make_events, "events").meta

    def job(self, asset, partition, scratch):
        inputs = {k: v for k, v in self.handles.items() if isinstance(k, str)} | {
            k[0]: v for k, v in self.handles.items() if k[1] == partition
        }
        return Job(
            self.config,
            asset,
            partition,
            inputs,
            self.rows[partition] if partition else None,
            self.store,
            scratch,
            scratch,
            logging.getLogger("test"),
        )

    def publish(self, asset, made, meta, partition=None):
        handle = self.store.publish(KeyParts(asset=asset, code_version="1", partition=partition), made, meta)
        self.handles[asset if partition is None else (asset, partition)] = handle

    def make(self, function, asset, partition=None):
        with self.store.scratch() as scratch:
            product = function(self.job(asset, partition, scratch))
            self.publish(asset, product.files, dict(product.meta), partition)
        return product

    def inject(self, partition):
        """Bursts where the plan puts signals; generating real ones is another room's test."""
        slides = share(self.config, self.rows, partition, (), self.vetoes)
        n = sum(len(s.times) for s in slides)
        t = np.arange(8 * RATE) / RATE - 6
        wave = np.tile(1e-20 * np.exp(-((t / 0.05) ** 2)) * np.sin(2 * np.pi * 80 * t), (n, 1))
        common = {"sample_rate": RATE, "duration": 8.0, "right_pad": 2.0, "ifos": ["H1", "L1"], "num_injections": n}
        placed = InterferometerResponseSet(
            **{p: np.ones(n) for p in SIGNAL},
            snr=np.full(n, 20.0),
            ifo_snrs=np.full((n, 2), 14.0),
            injection_time=np.concatenate([np.empty(0), *(s.times for s in slides)]),
            shift=np.concatenate([np.empty((0, 2)), *(np.tile(s.shift, (len(s.times), 1)) for s in slides)]),
            waveforms={"h1": wave, "l1": wave} if n else {},
            **common,
        )
        rejected = InjectionParameterSet(
            **{p: np.ones(0) for p in SIGNAL}, snr=np.ones(0), ifo_snrs=np.ones((0, 2)), **common | {"num_injections": 0}
        )
        made = {
            "waveforms.hdf5": placed.write(self.root / f"w-{partition}.hdf5"),
            "rejected-parameters.hdf5": rejected.write(self.root / f"r-{partition}.hdf5"),
        }
        self.publish("injections", made, {"num_signals": n}, partition)

    def read(self, kind, name):
        return kind.read(self.store.open_local(self.handles["events"], name))

    def loudest(self):
        zero_lag = self.read(EventSet, "0lag.hdf5")
        return zero_lag.detection_time[-1], zero_lag.detection_statistic[-1]


@pytest.fixture(scope="module")
def engine():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aframe_assets.engine.engine.load_engine", lambda folder: Energy())
        yield


@pytest.fixture(scope="module")
def kept(files, engine, tmp_path_factory):
    return Search(tmp_path_factory.mktemp("data"), files)


@pytest.fixture(scope="module")
def vetoed(files, engine, tmp_path_factory):
    return Search(tmp_path_factory.mktemp("vetoes"), files, vetoes={"categories": ["CBC_CAT2"]})


@pytest.fixture(scope="module")
def cut(files, engine, tmp_path_factory):
    return Search(tmp_path_factory.mktemp("cut"), files, min_dq="CBC_CAT2")


def test_kept_under_data_and_lost_under_cat2(kept, vetoed, cut):
    assert list(kept.rows) == list(vetoed.rows) == [f"{START}-{SECONDS}"] and len(cut.rows) == 2
    time, statistic = kept.loudest()
    assert abs(time - EVENT) < 0.5
    for other in (vetoed, cut):
        zero_lag = other.read(EventSet, "0lag.hdf5")
        # nothing within the reach of an output that sees the event, and nothing as loud anywhere
        assert len(zero_lag) and np.abs(zero_lag.detection_time - EVENT).min() > 1
        noise = kept.read(EventSet, "background.hdf5").detection_statistic
        assert zero_lag.detection_statistic.max() < statistic - 5 * noise.std()


def test_livetimes_differ_by_the_vetoed_outputs(kept, vetoed, cut):
    assert kept.events["T0"] - vetoed.events["T0"] == OUTPUTS / 4
    assert kept.events["Tb"] - vetoed.events["Tb"] == SLIDES * OUTPUTS / 4  # in L1's own time once in each slide
    assert vetoed.events["vetoed_livetime"] == {"background": SLIDES * OUTPUTS / 4, "zero_lag": OUTPUTS / 4}
    assert kept.events["vetoed_livetime"] == {"background": 0, "zero_lag": 0}
    # Cutting the chunk costs what a new chunk costs besides: PSD, filter and integration once more.
    assert cut.events["T0"] < vetoed.events["T0"] and cut.events["Tb"] < vetoed.events["Tb"]
    for search in (kept, vetoed, cut):
        for key in search.rows:
            assert [c.name for c in search.products[key].checks] == [c.name for c in RESULT_CHECKS]
            assert all(c.passed for c in search.products[key].checks)


def test_background_has_no_event_of_vetoed_strain(kept, vetoed):
    def of_vetoed_strain(search):
        b = search.read(EventSet, "background.hdf5")
        own = b.detection_time + b.shift[:, 1]  # in L1's time, 1.5 s before the kernel's right edge: strain [own - 2, own + 2]
        return np.abs(own - int(EVENT) - 0.5) < 2.5

    assert of_vetoed_strain(kept).any() and not of_vetoed_strain(vetoed).any()


def test_injections_keep_off_vetoes_and_all_are_heard(kept, vetoed):
    placed = vetoed.read(RecoveredInjectionSet, "foreground.hdf5")
    assert len(placed) == 24
    own = placed.injection_time + placed.shift[:, 1]
    # neither in the vetoed second nor where only some of the outputs that see it count
    assert not ((own > int(EVENT) - 3.5) & (own < int(EVENT) + 1.5)).any()
    key = next(iter(vetoed.rows))
    geometry = SlideGeometry.of(vetoed.config, START, START + SECONDS, vetoes=vetoed.vetoes)
    assert vetoed.products[key].meta["expected_livetime"]["background"] == sum(map(geometry.livetime, SHIFTS))
    assert np.isfinite(placed.detection_statistic).all()
    unvetoed = kept.read(RecoveredInjectionSet, "foreground.hdf5")
    both = np.isin(unvetoed.injection_time, placed.injection_time)
    assert both.sum() >= 20  # a veto moves no other injection


def test_vetoing_everything_is_an_empty_search(files, engine, tmp_path):
    listed = tmp_path / "all.txt"
    listed.write_text(f"{START - 5} {START + SECONDS + 5}\n")
    search = Search(tmp_path, files, vetoes={"files": {"H1": [str(listed)]}}, num_signals=0)
    assert search.events["Tb"] == search.events["T0"] == 0 and search.events["vetoed_livetime"]["zero_lag"] > 100
    assert len(search.read(EventSet, "0lag.hdf5")) == len(search.read(EventSet, "background.hdf5")) == 0
    leaves_time = search.products["vetoes"].checks[0]
    assert not leaves_time.passed and leaves_time.severity == "warn" and "0 s of 128 s" in leaves_time.description
    with pytest.raises(ValueError, match="have room for 0 signals"):
        Search(tmp_path, files, vetoes={"files": {"H1": [str(listed)]}})


def test_detect_leaves_vetoed_time_out_and_says_by_which_flag(files, kept, vetoed):
    free, bound = detect([files], Energy(), kept.config), detect([files], Energy(), vetoed.config)
    assert abs(free.candidates[0].detection_time - EVENT) < 0.5 and free.vetoed == () and len(free.analysed) == 1
    assert min(abs(c.detection_time - EVENT) for c in bound.candidates) > 1
    assert bound.candidates[0].detection_statistic < free.candidates[0].detection_statistic / 2
    [v] = bound.vetoed
    assert (v.ifo, v.start, v.stop, v.category) == ("L1", int(EVENT), int(EVENT) + 1, "CBC_CAT2") and v.source.startswith("L-L1")
    assert free.livetime - bound.livetime == OUTPUTS / 4
    (_, before), (after, _) = bound.analysed
    assert after - before == (OUTPUTS + 1) / 4
    assert bound.as_dict()["vetoed"] == [v._asdict()]


def test_detect_says_what_it_could_not_look_up(files, vetoed, tmp_path):
    import shutil

    import h5py

    for path in files.iterdir():
        shutil.copy(path, tmp_path / path.name)
        if path.name.startswith("L"):
            with h5py.File(tmp_path / path.name, "r+") as file:
                del file["quality"]
    found = detect([tmp_path], Energy(), vetoed.config)
    assert found.vetoed == () and len(found.unanswered) == 1
    assert "nothing is known of CBC_CAT2" in found.unanswered[0] and "has no data-quality mask" in found.unanswered[0]
    assert abs(found.candidates[0].detection_time - EVENT) < 0.5
