"""The platform of a search's engine, chosen once from a measurement that is kept with it."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aframe_assets.engine.engine import ENGINE_FILE, FILTER, Engine, open_engine
from aframe_assets.engine.export import SIGNATURE_FILE
from aframe_assets.engine.parity import RANK_FLOOR, compare_engine, probes
from aframe_assets.engine.platforms import best_device, device_class, get_platform
from aframe_assets.engine.runners import How
from aframe_assets.engine.signature import MODEL, Form, Signature
from aframe_assets.engine.support import SUPPORT, TOLERANCES, Device, Precision
from aframe_assets.model.bundle import DESCRIPTION, WEIGHTS, read_description

log = logging.getLogger(__name__)

_BATCHES: dict[Form, dict[Device, tuple[int, ...]]] = {
    "windows": {"cpu": (8, 16, 32, 64, 128), "cuda": (32, 128, 512)},
    "frames": {"cpu": (1, 2, 4), "cuda": (1, 4, 16)},
    "maps": {"cpu": (1, 2, 4), "cuda": (1, 4, 16)},
}
_TORCH_LARGEST = 32
"""Windows of a call of torch on a CPU: from 64 on, glibc hands every activation back to the system and halves the speed."""

_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")

Choice = Literal["auto", "torch", "aotinductor", "onnxruntime", "openvino", "tensorrt"]


def batches(form: Form, platform: str, device: Device) -> tuple[int, ...]:
    """Windows or blocks that a call is tried with; the best number depends on the caches of the machine."""
    sizes = _BATCHES[form][device]
    return tuple(n for n in sizes if n <= _TORCH_LARGEST) if platform in ("torch", "aotinductor") and device == "cpu" else sizes


def milliseconds(engine: Engine, sizes: tuple[int, ...], repeats: int = 3) -> dict[int, float]:
    """Least ms per window or block in calls of each of `sizes`; they take turns, so that a busy moment hits all."""
    x = probes(len(engine.ifos), engine.signature.samples, engine.sample_rate, max(sizes), seed=1)
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
    exported: Path,
    folder: Path,
    platform: Choice = "auto",
    tolerance: float | None = None,
    bundle: Mapping[str, Any] | None = None,
    *,
    precision: Precision = "fp32",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    rank_floor: float = RANK_FLOOR,
) -> dict[str, Any]:
    """Choose a platform and write the engine.

    'auto' measures every platform that this machine has for `precision` and takes the fastest that passes parity with the network in
    torch. A filter network in `exported`/filter gets an engine of its own.

    Args:
        exported: folder that `export` wrote, with the bundle where the form is not windows.
        folder: existing folder for engine.json, the chosen platform's files, the ONNX files (for a Triton repository) and whatever
            the head needs.
        platform: 'auto' or one of `SUPPORT`.
        tolerance: largest accepted difference of logits; None for that of the precision.
        bundle: description of the model, kept in engine.json.
        precision: of the multiplications.
        device: 'auto' is a GPU where torch sees one.
        rank_floor: least accepted rank correlation of logits.

    Returns:
        What engine.json holds. With no platform in parity the best one is written all the same, its ``parity.passed`` False:
        the caller holds it back by a check.

    Raises:
        ValueError: a platform that this machine has not got; says what to install.
    """
    signature = Signature.read(exported / SIGNATURE_FILE)
    how = How(best_device() if device == "auto" else device, precision).settled()
    accepted = TOLERANCES[precision] if tolerance is None else tolerance
    reference = _reference(exported, signature, how.threads)
    found: dict[str, dict[str, Any]] = {}
    passed_over: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for name in SUPPORT if platform == "auto" else (platform,):
            place = Path(scratch, name)
            place.mkdir()
            try:
                found[name] = _measured(name, exported, place, signature, how, lambda e: compare_engine(e, reference, accepted, rank_floor))
            except _Unavailable as e:
                passed_over[name] = str(e)
            except Exception as e:  # what a platform raises is its own
                passed_over[name] = f"{type(e).__name__}: {e}"
                log.warning("engine platform %s failed: %s", name, passed_over[name])
        if not found:
            raise ValueError("; ".join(f"engine.platform {name}: {why}" for name, why in passed_over.items()))
        good = {n: v for n, v in found.items() if v["parity"]["passed"]} or found
        chosen = min(good, key=lambda n: good[n]["ms_per_input"])
        for path in Path(scratch, chosen).iterdir():
            shutil.move(path, folder / path.name)
    record = {"platform": chosen, "device": how.device, "precision": precision, **found[chosen]}
    record |= {"measured": found, "passed_over": passed_over, "device_class": device_class(how.device), "versions": _versions()}
    record["bundle"] = dict(bundle or {})
    (folder / ENGINE_FILE).write_text(json.dumps(record, indent=2) + "\n")
    if (exported / FILTER).is_dir():
        (folder / FILTER).mkdir()
        settings = {"precision": precision, "device": device, "rank_floor": rank_floor}
        record["filter"] = build_engine(
            exported / FILTER, folder / FILTER, platform, tolerance, read_description(exported / FILTER), **settings
        )
    return record


class _Unavailable(ValueError):
    """A platform that this machine, or this precision, has not got."""


def _measured(name: str, exported: Path, folder: Path, signature: Signature, how: How, parity: Callable[[Engine], Any]) -> dict[str, Any]:
    """Build the engine of one platform in `folder`, compare it and time it."""
    if how.precision not in SUPPORT[name].get(how.device, ()):
        raise _Unavailable(f"has no {how.precision} on {how.device}")
    kind = get_platform(name)
    reason = kind.missing(how.device)
    if reason:
        raise _Unavailable(reason)
    stems = dict.fromkeys((MODEL, signature.windows_stem))
    names = {SIGNATURE_FILE, *(f"{stem}.onnx" for stem in stems)} | (set() if signature.form == "windows" else {WEIGHTS, DESCRIPTION})
    for file in names:
        shutil.copyfile(exported / file, folder / file)
    for stem in stems:
        kind.build(exported, folder, stem, how)
    engine = open_engine(folder, name, how=how)
    found = parity(engine)
    speed = milliseconds(engine, batches(signature.form, name, how.device))
    batch = min(speed, key=speed.get)  # type: ignore[arg-type]
    return {"parity": found.as_dict(), "batch": batch, "ms_per_input": speed[batch], "threads": how.threads}


def _reference(exported: Path, signature: Signature, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Windows -> logits by the network in torch, float32 on the CPU."""
    engine = open_engine(exported, "torch", how=replace(How(), threads=threads))
    return engine.score_windows


def _versions() -> dict[str, str]:
    out = {}
    for package in _PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue
    return out
