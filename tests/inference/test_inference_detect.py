"""Real strain through `detect`, with an engine that answers to loud power seen by both detectors at once."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import h5py
import numpy as np
import pytest
from scipy.ndimage import maximum_filter1d, uniform_filter1d
from scipy.signal import butter, sosfiltfilt

from aframe_assets.config import Conditioning, Config
from aframe_assets.config_load import build_config
from aframe_assets.inference.cascade import Threshold, Thresholds
from aframe_assets.inference.detect import detect, shortest
from aframe_assets.inference.merger_time import Calibration, Rescorer, merger_time, plateau
from aframe_assets.inference.windows import SlidWindows
from aframe_assets.strain.background_file import background_name, write_background
from aframe_assets.strain.files import StrainError
from aframe_assets.waveforms.ledger import EventSet

EVENTS = {
    "GW150914": (1126259462.42, ("H-H1_LOSC_4_V2-1126259446-32.hdf5", "L-L1_LOSC_4_V2-1126259446-32.hdf5")),
    "GW170823": (1187529256.52, ("H-H1_GWOSC_16KHZ_R1-1187529241-32.hdf5", "L-L1_GWOSC_16KHZ_R1-1187529241-32.hdf5")),
}


@dataclass
class CoincidentPower:
    """Largest power in 40-250 Hz, averaged over 30 ms, that both detectors have within 10 ms of each other."""

    ifos: list[str] = field(default_factory=lambda: ["H1", "L1"])
    sample_rate: float = 2048.0
    kernel: int = 3072
    platform: str = "test"
    conditioning: dict = field(default_factory=lambda: Conditioning(psd_length=8).model_dump(mode="json"))
    bundle: dict = field(default_factory=lambda: {"placement": {"left_pad": 0.0, "right_pad": 0.0}})

    def score_windows(self, windows: np.ndarray) -> np.ndarray:
        sos = butter(4, [40, 250], "bandpass", fs=self.sample_rate, output="sos")
        power = uniform_filter1d(sosfiltfilt(sos, windows, axis=-1) ** 2, round(0.03 * self.sample_rate), axis=-1)
        power = maximum_filter1d(power, round(0.02 * self.sample_rate), axis=-1)
        return power.min(axis=1).max(axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def config() -> Config:
    return build_config({"preset": "demo"})


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_events_in_real_files(shared_data, config, name):
    gps, files = EVENTS[name]
    background = EventSet(np.linspace(0, 0.1, 50), np.arange(50.0), np.zeros((50, 2)), 3600.0)
    found = detect([shared_data / "strain" / f for f in files], CoincidentPower(), config, Calibration(0.0, 0.1, 40), background)
    best = found.candidates[0]
    assert abs(best.detection_time - gps) < 0.5
    assert abs(best.merger_time - gps) < 0.05
    assert best.far == 1 / 3600 and best.far_is_limit and best.merger_time_width90 == 0.1
    assert best.detection_statistic > 1.5 * found.candidates[1].detection_statistic
    # 32 s less psd_length, fduration, kernel and integration
    assert found.livetime == (32 - 8 - 1 - 1.5 - 1.5) + 0.25
    told = json.loads(json.dumps(found.as_dict()))
    assert {"detection_time", "merger_time", "detection_statistic", "far_per_year"} <= set(told["candidates"][0])


def test_without_background_or_calibration(shared_data, config):
    gps, files = EVENTS["GW150914"]
    best = detect([shared_data / "strain" / f for f in files], CoincidentPower(), config).candidates[0]
    assert best.far is None and not best.far_is_limit
    assert best.merger_time_width90 == 1.5 and abs(best.merger_time - gps) < 0.05


def test_far_counts_what_is_as_loud(shared_data, config):
    files = [shared_data / "strain" / f for f in EVENTS["GW150914"][1]]
    first = detect(files, CoincidentPower(), config)
    loud = np.concatenate([np.full(3, first.candidates[0].detection_statistic), np.zeros(5)])
    found = detect(files, CoincidentPower(), config, None, EventSet(loud, np.arange(8.0), np.zeros((8, 2)), 100.0))
    assert found.candidates[0].far == 3 / 100 and not found.candidates[0].far_is_limit


def test_a_filter_is_used_with_the_threshold_of_its_search_only(tmp_path, config):
    path, cascade = write(tmp_path, 1240000000, 40), CoincidentPower()
    without = detect([path], cascade, config)
    cascade.filter = CoincidentPower()
    assert detect([path], cascade, config).candidates == without.candidates

    def kept(value):
        return detect([path], cascade, config, thresholds=Thresholds(Threshold(value, 1.0, 1.0, 1), Threshold(-np.inf, 1.0, 1.0, 1)))

    assert kept(-np.inf).candidates == without.candidates and kept(np.inf).candidates == ()
    assert kept(np.inf).livetime == without.livetime
    loudest = without.candidates[0]
    few = kept(loudest.detection_statistic - 1e-6)
    assert few.candidates == (loudest,) and len(without.candidates) > 1


def write(folder, start, seconds, ifos=("H1", "L1"), rate=2048, seed=0):
    rng = np.random.default_rng(seed)
    path = folder / background_name(start, seconds)
    write_background(path, {i: rng.standard_normal(int(seconds * rate)) * 1e-22 for i in ifos}, start, rate)
    return path


def test_short_files_name_both_numbers(tmp_path, config):
    assert shortest(config.conditioning, 1.5) == 12
    with pytest.raises(StrainError, match=r"has 11 s; expected at least 12 s = psd_length 8 \+ kernel_length 1.5 \+ fduration 1"):
        detect([write(tmp_path, 1240000000, 11)], CoincidentPower(), config)
    assert detect([write(tmp_path, 1240000000, 12)], CoincidentPower(), config).livetime == 0.25


def test_context_lengthens_the_shortest_strain(tmp_path):
    architecture = {"name": "streaming", "layers": [1, 1, 1, 1], "width": 4, "stem_kernel": 15, "stem_stride": 4, "context": 0.3125}
    config = build_config({"preset": "demo", "model": {"architecture": architecture}})
    # 12 s as above, 0.3125 s after the kernel, and before it as many whole steps of 1/4 s as cover that
    with pytest.raises(StrainError, match=r"expected at least 12\.8125 s = .* \+ 0\.8125 for its context"):
        detect([write(tmp_path, 1240000000, 12.75)], CoincidentPower(), config)
    assert detect([write(tmp_path, 1240000000, 12.8125)], CoincidentPower(), config).livetime == 0.25


def test_neighbouring_files_are_joined_and_short_stretches_skipped(tmp_path, config):
    paths = [write(tmp_path, 1240000000, 8, seed=1), write(tmp_path, 1240000008, 8, seed=2), write(tmp_path, 1240000100, 4, seed=3)]
    found = detect(paths, CoincidentPower(), config)
    assert found.livetime == 4.25 and found.skipped == ((1240000100.0, 1240000104.0),)


def test_missing_detector_and_no_overlap(tmp_path, config):
    one = write(tmp_path, 1240000000, 16, ifos=("H1",))
    with pytest.raises(StrainError, match="no strain of L1"):
        detect([one], CoincidentPower(), config)
    with pytest.raises(StrainError, match="do not overlap in time"):
        detect([one, write(tmp_path, 1240000100, 16, ifos=("L1",))], CoincidentPower(), config)


def test_nan_and_truncated_files(tmp_path, config):
    path = write(tmp_path, 1240000000, 16)
    with h5py.File(path, "r+") as f:
        f["L1"][10 * 2048] = np.nan
    with pytest.raises(StrainError, match=rf"(?s){path.name}.*1240000010"):
        detect([path], CoincidentPower(), config)
    with h5py.File(path, "r+") as f:
        f["L1"][:] = 0.0
    with pytest.raises(StrainError, match=r"L1.*GPS 1240000000"):
        detect([path], CoincidentPower(), config)
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(StrainError, match="truncated"):
        detect([cut], CoincidentPower(), config)


# --- merger time ----------------------------------------------------------------------------------


def test_plateau_of_known_edges():
    edges = np.arange(0, 6, 1 / 64)
    rng = np.random.default_rng(0)
    scores = np.where((edges >= 2.5) & (edges <= 3.7), 8.0, -4.0) + rng.standard_normal(len(edges))
    first, last = plateau(edges, scores, 0, 6)
    assert abs(first - 2.5) < 0.05 and abs(last - 3.7) < 0.05
    scores[20], scores[300] = 60, -60
    assert np.allclose(plateau(edges, scores, 0, 6), (first, last), atol=0.05)
    assert plateau(edges, np.zeros(len(edges)), 0, 6) is None
    assert plateau(edges[:2], scores[:2], 0, 6) is None
    # another plateau, louder, outside the range that is asked for
    scores = np.where((edges >= 2.5) & (edges <= 3.7), 8.0, 0.0) + np.where(edges < 1, 9.0, 0.0)
    assert np.allclose(plateau(edges, scores, 2, 4), (2.5, 3.7), atol=0.05)


class Marker:
    """High while a sample above 100 lies between the pads of the kernel: what training asks of a network."""

    def score_windows(self, windows: np.ndarray) -> np.ndarray:
        inner = windows[:, :, 128 : windows.shape[2] - 26]
        return np.where((inner > 100).any(axis=2).all(axis=1), 7.0, -3.0).astype(np.float32)


@pytest.mark.parametrize("offset", [0, 700])
def test_merger_time_of_a_perfect_network(offset):
    fs, start, rng = 512, 1_240_000_000.5, np.random.default_rng(2)
    residuals = []
    for index in rng.integers(4000, 8000, 20):
        streams = [np.zeros(12_000, np.float32), np.zeros(12_000, np.float32)]
        streams[0][index] = 1000
        streams[1][index + offset] = 1000
        rescorer = Rescorer(SlidWindows(streams, (0, offset), 768), Marker(), start, fs, 1.5, 1.5, 64.0, 32)
        true = start + index / fs
        detection = np.floor((true - start) * 4) / 4 + start  # a coarse time on the inference grid
        residuals.append(rescorer.raw(detection) - true)
    calibration = Calibration.of(np.array(residuals), 1.5)
    # left_pad 0.25 s, right_pad 26 samples: the plateau begins and ends that much inside the kernel, its centre at half of both
    assert np.abs(np.median(residuals, axis=0) - [26 / fs, (26 / fs - 0.25) / 2, -0.25]).max() < 1 / 64
    assert calibration.width90 < 2 / 64 and calibration.num == 20
    time, width = merger_time(rescorer, detection, calibration)
    assert abs(time - true) < 1 / 32 and width == calibration.width90
    assert Calibration.from_meta(calibration.as_meta()) == calibration


def test_calibration_without_injections_is_the_kernel():
    assert Calibration.of(np.full((3, 3), np.nan), 1.5) == Calibration(0.0, 1.5, 0) == Calibration.of(np.empty(0), 1.5)


def test_calibration_takes_the_sharpest_edge():
    rng = np.random.default_rng(0)
    residuals = rng.normal([0.1, -0.2, 0.3], [0.3, 0.05, 0.1], (400, 3))
    found = Calibration.of(residuals, 1.5)
    assert found.edge == "centre" and abs(found.offset + 0.2) < 0.02 and abs(found.width90 / (2 * 1.645 * 0.05) - 1) < 0.2
