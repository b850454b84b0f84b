"""What a search has measured of a model, kept in the model's folder so that detection with it needs no run.

search.json       rates and windows of the search, calibration of its merger times, what its data were
background.hdf5   `detection_statistic` of its slid events, ascending, and the attribute `Tb`, seconds

The statistic means the same only with the same rates and windows, so they stand beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from aframe_assets.config import Inference
from aframe_assets.inference.merger_time import Calibration

FORMAT = "aframe-search/1"
RECORD, BACKGROUND = "search.json", "background.hdf5"

_MEANING = {
    *("inference_rate", "batch_size", "integration_window_length", "cluster_window_length"),
    *("psd_source", "merger_time_rate", "event_time_convention"),
}
"""Settings on which the statistic and the times of events depend; `batch_size` by the block that shares a PSD."""


class SearchRecordError(ValueError):
    """A record that cannot be used; the message names the file and what was expected."""


@dataclass(frozen=True)
class SearchRecord:
    """A search of slid data by one model.

    Attributes:
        inference: rates and windows; of what is written, settings without influence on events are not kept.
        calibration: of merger times, by the search's injections.
        detection_statistic: of the slid events, ascending (n,).
        Tb: their livetime, seconds, > 0.
        noise: what the data were, a few words.
    """

    inference: Inference
    calibration: Calibration
    detection_statistic: np.ndarray
    Tb: float
    noise: str

    def write(self, folder: Path) -> list[Path]:
        """Both files into `folder`; statistics in float32, which is what networks answer in.

        Raises:
            SearchRecordError: no livetime, or a statistic that is not finite.
        """
        statistic = np.sort(np.asarray(self.detection_statistic, np.float64)).astype(np.float32)
        if not self.Tb > 0 or not np.isfinite(statistic).all():
            raise SearchRecordError(f"a background of {len(statistic)} events in Tb = {self.Tb:g} s; expected Tb > 0 and finite statistics")
        record = {
            "format": FORMAT,
            "noise": self.noise,
            "num_background": len(statistic),
            "merger_time_calibration": self.calibration.as_meta(),
            "inference": self.inference.model_dump(mode="json", include=_MEANING),
        }
        paths = [folder / RECORD, folder / BACKGROUND]
        paths[0].write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        with h5py.File(paths[1], "w") as f:
            f.create_dataset("detection_statistic", data=statistic, compression="gzip", shuffle=True)
            f.attrs["Tb"] = self.Tb
        return paths

    @classmethod
    def read(cls, folder: Path) -> SearchRecord | None:
        """The record in `folder`, or None when it holds none.

        Raises:
            SearchRecordError: one of the two files is missing, damaged, or not of this format.
        """
        path, background = folder / RECORD, folder / BACKGROUND
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text())
            if record["format"] != FORMAT:
                raise ValueError(f"format = {record['format']!r}: expected {FORMAT!r}")
            inference, noise = Inference.model_validate(record["inference"]), str(record["noise"])
            calibration = Calibration.from_meta(record["merger_time_calibration"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise SearchRecordError(f"{path}: cannot be read ({type(e).__name__}: {e}); copy the model's folder again") from None
        try:
            with h5py.File(background) as f:
                statistic, livetime = f["detection_statistic"][:].astype(np.float64), float(f.attrs["Tb"])
        except (OSError, KeyError) as e:
            raise SearchRecordError(f"{background}: cannot be read ({e}); copy the model's folder again") from None
        if len(statistic) != record["num_background"]:
            raise SearchRecordError(
                f"{background}: {len(statistic)} events; {path.name} tells of {record['num_background']}, copy the model's folder again"
            )
        return cls(inference, calibration, statistic, livetime, noise)
