"""The platform of a search's engine, chosen once from a measurement that is kept with it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aframe_assets.engine.engine import ENGINE_FILE, FILTER, Engine, open_engine
from aframe_assets.engine.export import SIGNATURE_FILE, TORCH_FILE
from aframe_assets.engine.parity import compare_engine, probes
from aframe_assets.engine.runners import PLATFORMS, TorchRunner, default_threads
from aframe_assets.engine.signature import MODEL, Signature
from aframe_assets.model.bundle import DESCRIPTION, WEIGHTS, load_bundle, read_description

BATCHES = {"windows": (8, 16, 32, 64, 128), "frames": (1, 2, 4), "maps": (1, 2, 4)}
"""Windows or blocks that a call is tried with, by form; the best number depends on the caches of the machine."""

MARGIN = 0.9
"""torch must need less than this share of ONNX Runtime's time to be chosen: a choice that a noisy clock cannot turn."""

Choice = Literal["auto", "onnxruntime", "torch"]


def milliseconds(engine: Engine, repeats: int = 3) -> dict[int, float]:
    """Least ms per window or block in calls of each size of BATCHES; sizes take turns, so that a busy moment hits all."""
    sizes = BATCHES[engine.form]
    x = probes(len(engine.ifos), engine.signature.samples, engine.sample_rate, sizes[-1], seed=1)
    best: dict[int, float] = {}
    for repeat in range(repeats + 1):
        for size in sizes:
            engine.batch = size
            start = time.perf_counter()
            engine.infer(x)
            # the first round is a warm-up
            if repeat:
                best[size] = min(best.get(size, np.inf), (time.perf_counter() - start) / len(x) * 1e3)
    return best


def build_engine(
    exported: Path, folder: Path, platform: Choice = "auto", tolerance: float = 1e-3, bundle: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Choose a platform and write the engine.

    'auto' measures every platform on this machine and takes the fastest that passes parity with the network in torch; ONNX
    Runtime unless torch is clearly faster (MARGIN). A filter network in `exported`/filter gets an engine of its own.

    Args:
        exported: folder that `export` wrote, with the bundle where the form is not windows.
        folder: existing folder for engine.json, the chosen platform's file, the windowed ONNX file (for a Triton repository) and
            whatever the head needs.
        platform: 'auto', 'onnxruntime' or 'torch'.
        tolerance: largest accepted difference of logits.
        bundle: description of the model, kept in engine.json.

    Returns:
        What engine.json holds. With no platform in parity the best one is written all the same, its ``parity.passed`` False:
        the caller holds it back by a check.
    """
    signature, description = Signature.read(exported / SIGNATURE_FILE), dict(bundle or {})
    reference = _reference(exported, signature)
    found: dict[str, dict[str, Any]] = {}
    for name in PLATFORMS if platform == "auto" else (platform,):
        engine = open_engine(exported, name)
        parity = compare_engine(engine, reference, tolerance)
        speed = milliseconds(engine)
        batch = min(speed, key=speed.get)  # type: ignore[arg-type]
        found[name] = {"parity": parity.as_dict(), "batch": batch, "ms_per_input": speed[batch], "threads": engine.threads}
    good = {n: v for n, v in found.items() if v["parity"]["passed"]} or found
    chosen = min(good, key=lambda n: good[n]["ms_per_input"] * (1 / MARGIN if n == "torch" else 1.0))
    # both ONNX files whatever was chosen: a Triton repository holds them
    keep = {SIGNATURE_FILE, f"{MODEL}.{PLATFORMS[chosen].files}", f"{MODEL}.onnx", f"{signature.windows_stem}.onnx"}
    if signature.form != "windows":
        keep |= {WEIGHTS, DESCRIPTION}
    for name in sorted(keep):
        shutil.copyfile(exported / name, folder / name)
    record = {"platform": chosen, **found[chosen], "tolerance": tolerance, "measured": found, "machine": _machine(), "bundle": description}
    (folder / ENGINE_FILE).write_text(json.dumps(record, indent=2) + "\n")
    if (exported / FILTER).is_dir():
        (folder / FILTER).mkdir()
        record["filter"] = build_engine(exported / FILTER, folder / FILTER, platform, tolerance, read_description(exported / FILTER))
    return record


def _reference(exported: Path, signature: Signature) -> Callable[[np.ndarray], np.ndarray]:
    """Windows -> logits by the network in torch."""
    threads = default_threads()
    if signature.form == "windows":
        runner = TorchRunner.open(exported / TORCH_FILE, threads)
    else:
        runner = TorchRunner(load_bundle(exported).network, threads)
    return lambda windows: runner(windows)[:, 0]


def _machine() -> dict[str, str]:
    import platform

    import onnxruntime
    import torch

    return {"machine": platform.machine(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
