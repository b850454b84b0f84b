"""Sets of signals that are there already, of Aframe or of another run, in the place of those that would be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aframe_assets.store.job import Job, Product
from aframe_assets.waveforms import checks

_ROWS = 1024


class LayoutError(RuntimeError):
    """A file that is not of the layout or size that the experiment asks for; the message names both."""


def adopt_training(job: Job, path: Path) -> Product:
    """``training_waveforms`` from the file at `path`, which keeps its bytes. Raises LayoutError."""
    from aframe_assets.waveforms.assets import TRAINING
    from aframe_assets.waveforms.ledger import WaveformPolarizationSet

    meta, found = _looked_at(job, path, WaveformPolarizationSet, ["cross", "plus"], job.config.waveforms.num_training_signals)
    return Product({TRAINING: path}, meta, found)


def adopt_validation(job: Job, path: Path) -> Product:
    """``validation_waveforms`` from the file at `path`, which keeps its bytes. Raises LayoutError."""
    from aframe_assets.waveforms.assets import VALIDATION
    from aframe_assets.waveforms.ledger import WaveformSet

    w, ifos = job.config.waveforms, list(job.config.ifos)
    meta, found = _looked_at(job, path, WaveformSet, [ifo.lower() for ifo in ifos], w.num_validation_signals)
    made = WaveformSet.read(path, waveforms=False)
    if made.ifos is not None and sorted(made.ifos) != sorted(ifos):
        raise LayoutError(f"{path}: its signals are of {', '.join(made.ifos)}; the experiment asks for {', '.join(ifos)}")
    found += [checks.snr_threshold(made.snr, w.snr_threshold), checks.snr_distribution(made.snr, w.snr_threshold)]
    return Product({VALIDATION: path}, meta, found)


def _looked_at(job: Job, path: Path, kind: Any, series: list[str], wanted: int) -> tuple[dict[str, Any], list[Any]]:
    """Meta and checks of a set, read a block of rows at a time."""
    config = job.config
    try:
        head = kind.read_metadata(path)
        number = head["length"]
        expected = {"sample_rate": config.sample_rate, "duration": config.waveforms.duration, "right_pad": config.waveforms.right_pad}
        for name, value in expected.items():
            if head[name] is None or not np.isclose(head[name], value, rtol=1e-9):
                raise LayoutError(f"{path}: {name} is {head[name]}; the experiment asks for {value:g}")
        bad, size = 0, round(config.sample_rate * config.waveforms.duration)
        for first in range(0, number, _ROWS):
            waveforms = kind.read(path, np.arange(first, min(first + _ROWS, number))).waveforms
            shapes = {name: x.shape[1:] for name, x in waveforms.items()}
            if shapes != dict.fromkeys(series, (size,)):
                raise LayoutError(f"{path}: expected series {', '.join(series)} of {size} samples, holds {shapes}")
            bad += checks.silent_or_not_finite(waveforms)
    except (OSError, KeyError, ValueError) as e:
        raise LayoutError(f"{path}: not a file of {kind.__name__} ({e})") from None
    meta = {"num_signals": number, "num_injections": head["num_injections"]}
    return meta, [checks.count(number, wanted, head["num_injections"] or number), checks.finite(bad, 0)]
