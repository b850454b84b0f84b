"""A stand-in for a network that answers as a well trained one would, its search settings, and plain challenge files."""

import h5py
import numpy as np

from aframe_assets.config import Conditioning, Inference
from aframe_assets.inference.merger_time import Calibration
from aframe_assets.inference.mlgwsc1.search import Settings

FS = 2048
START = 1240000000
CONDITIONING = Conditioning(psd_length=16, fftlength=2, highpass=20, lowpass=900)
INFERENCE = Inference(batch_size=64)
LEFT, RIGHT = 0.25, 0.05


class StandIn:
    """The least over detectors of the largest power of 4 ms where training puts mergers: a plateau of the trained length."""

    platform, ifos, sample_rate, kernel = "stand-in", ["H1", "L1"], float(FS), 3072
    conditioning = CONDITIONING.model_dump(mode="json")
    bundle = {"placement": {"left_pad": LEFT, "right_pad": RIGHT}}

    def score_windows(self, windows):
        power = np.cumsum(np.asarray(windows, np.float64) ** 2, axis=-1)
        power = (power[..., 8:] - power[..., :-8]) / 8
        inner = power[..., round(LEFT * FS) - 4 : 3072 - round(RIGHT * FS) - 4]
        return (inner.max(axis=-1).min(axis=-1) - 6.0).astype(np.float32)


# the offset that injections would find: the stand-in is silent as soon as the merger is within left_pad of the edge
SETTINGS = Settings(INFERENCE, Calibration(-LEFT, 1.5, 0))


def written(folder, strain, rate=FS, key=str(START), name="data.hdf", **attributes):
    path = folder / name
    with h5py.File(path, "a") as f:
        for ifo, values in strain.items():
            data = f.create_dataset(f"{ifo}/{key}", data=values)
            data.attrs.update({"start_time": float(key), "delta_t": 1 / rate} | attributes)
    return path


def plain(seconds=30, rate=FS):
    rng = np.random.default_rng(6)
    return {ifo: 1e-21 * rng.standard_normal(int(seconds * rate)) for ifo in StandIn.ifos}
