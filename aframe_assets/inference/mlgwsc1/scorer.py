"""What answers for a trained model: an engine, an exported network, or the bundle's own network on any device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch

from aframe_assets.engine.engine import ENGINE_FILE, Engine, load_engine, network_engine, open_engine
from aframe_assets.engine.export import SIGNATURE_FILE
from aframe_assets.inference.mlgwsc1.files import ChallengeError
from aframe_assets.model.bundle import load_bundle, read_description

Device = Literal["auto", "cpu", "cuda"]


def default_threads() -> int:
    """OMP_NUM_THREADS, or every core that this process may use."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(value)) if value.isdigit() else len(os.sched_getaffinity(0))


def open_scorer(folder: str | Path, device: Device = "auto") -> Engine:
    """The engine of a folder.

    Args:
        folder: model bundle, or what the assets `exported_model` or `engine` hold.
        device: 'cuda' for a bundle only; 'auto' takes it for a bundle where there is one.

    Raises:
        ChallengeError: none of these, or a device that is not there.
        BundleError: a bundle that is damaged.
    """
    folder = Path(folder)
    if device == "cuda" and not torch.cuda.is_available():
        raise ChallengeError("device = cuda: torch sees no CUDA device here; expected auto or cpu")
    exported = [name for name in (ENGINE_FILE, SIGNATURE_FILE) if (folder / name).is_file()]
    if exported and device == "cuda":
        raise ChallengeError(f"device = cuda: {folder} is an exported network, which runs on the CPU; expected a bundle (bundle.json)")
    threads = default_threads()
    try:
        if ENGINE_FILE in exported:
            return load_engine(folder, threads)
        if exported:
            return open_engine(folder, "onnxruntime", bundle=read_description(folder), threads=threads)
    except ValueError as e:
        raise ChallengeError(str(e)) from None
    chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    return network_engine(load_bundle(folder), chosen, threads=threads)
