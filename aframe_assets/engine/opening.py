"""What answers for a trained model, in whatever form it is kept: an engine, an exported network, or a bundle on any device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from aframe_assets.engine.engine import ENGINE_FILE, Engine, load_engine, network_engine, open_engine
from aframe_assets.engine.export import SIGNATURE_FILE

Device = Literal["auto", "cpu", "cuda"]


class OpeningError(ValueError):
    """A folder or device that gives no engine; the message names it and what was expected."""


def all_threads() -> int:
    """Threads of a program that has the machine to itself: OMP_NUM_THREADS, or every core that this process may use."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(value)) if value.isdigit() else len(os.sched_getaffinity(0))


def open_network(folder: str | Path, device: Device = "auto") -> Engine:
    """The engine of a folder, on all threads that this process may use.

    Args:
        folder: model bundle, or what the assets `exported_model` or `engine` hold.
        device: 'cuda' for a bundle only; 'auto' takes it for a bundle where there is one.

    Raises:
        OpeningError: none of these, or a device that is not there.
        BundleError: a bundle that is damaged.
    """
    import torch

    from aframe_assets.model.bundle import load_bundle, read_description

    folder, threads = Path(folder), all_threads()
    if device == "cuda" and not torch.cuda.is_available():
        raise OpeningError("device = cuda: torch sees no CUDA device here; expected auto or cpu")
    exported = [name for name in (ENGINE_FILE, SIGNATURE_FILE) if (folder / name).is_file()]
    if exported and device == "cuda":
        raise OpeningError(f"device = cuda: {folder} is an exported network, which runs on the CPU; expected a bundle (bundle.json)")
    try:
        if ENGINE_FILE in exported:
            return load_engine(folder, threads)
        if exported:
            return open_engine(folder, "onnxruntime", bundle=read_description(folder), threads=threads)
    except ValueError as e:
        raise OpeningError(str(e)) from None
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    return network_engine(load_bundle(folder), chosen, threads=threads)
