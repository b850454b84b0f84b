"""Engines: an exported network made ready to answer on this kind of machine.

`build_engine` chooses the platform once and records the choice with its measurement; `load_engine` opens what was built
and never measures again, so that one search has one engine.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from aframe_assets.engine.export import INPUT, ONNX_FILE, SIGNATURE_FILE, TORCH_FILE, Signature
from aframe_assets.engine.parity import Parity, compare, probes

ENGINE_FILE = "engine.json"
BATCHES = (8, 16, 32, 64, 128)
"""Sizes in which a call is handed on; the best one depends on the caches of the machine."""

MARGIN = 0.9
"""torch must need less than this share of ONNX Runtime's time to be chosen: a choice that a noisy clock cannot turn."""

Platform = Literal["auto", "onnxruntime", "torch"]


class Engine(Protocol):
    """What inference needs of an engine.

    Attributes:
        platform: "onnxruntime" or "torch".
        ifos: detectors in the order of the channels.
        sample_rate: Hz.
        kernel: samples of a window.
        conditioning: settings that its strain is whitened with.
        bundle: description of the model it was made from.
    """

    platform: str
    ifos: list[str]
    sample_rate: float
    kernel: int
    conditioning: dict[str, Any]
    bundle: dict[str, Any]

    def infer(self, windows: np.ndarray) -> np.ndarray:
        """Logits float32 (batch,) of whitened windows float32 (batch, ifo, kernel).

        Raises:
            ValueError: another shape.
        """
        ...


def default_threads() -> int:
    """Threads of an engine: OMP_NUM_THREADS, which the executor sets to a step's cores, or 1."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(value)) if value.isdigit() else 1


class _Base:
    platform = ""

    def __init__(self, signature: Signature, bundle: Mapping[str, Any], batch: int, threads: int | None) -> None:
        self.ifos, self.sample_rate, self.kernel = list(signature.ifos), signature.sample_rate, signature.kernel
        self.conditioning, self.bundle = dict(signature.conditioning), dict(bundle)
        self.batch, self.threads = batch, threads or default_threads()

    def infer(self, windows: np.ndarray) -> np.ndarray:
        """See `Engine.infer`."""
        wanted = (len(self.ifos), self.kernel)
        if windows.ndim != 3 or windows.shape[1:] != wanted:
            raise ValueError(
                f"engine got windows of shape {windows.shape}; expected (batch, {wanted[0]}, {wanted[1]}): "
                f"{self.ifos}, {self.kernel} samples"
            )
        windows = np.ascontiguousarray(windows, dtype=np.float32)
        out = np.empty(len(windows), np.float32)
        for i in range(0, len(windows), self.batch):
            out[i : i + self.batch] = self._call(windows[i : i + self.batch])
        return out

    def _call(self, windows: np.ndarray) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} has no network")


class OnnxRuntimeEngine(_Base):
    """ONNX Runtime on the CPU."""

    platform = "onnxruntime"

    def __init__(self, model: Path, signature: Signature, bundle: Mapping[str, Any], batch: int = 32, threads: int | None = None) -> None:
        import onnxruntime

        super().__init__(signature, bundle, batch, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        # idle threads that spin would take the cores of the step beside this one
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def _call(self, windows: np.ndarray) -> np.ndarray:
        return self._session.run(None, {INPUT: windows})[0][:, 0]


class TorchEngine(_Base):
    """The program of ``torch.export``, run by torch; sets torch's number of threads for the process."""

    platform = "torch"

    def __init__(self, model: Path, signature: Signature, bundle: Mapping[str, Any], batch: int = 32, threads: int | None = None) -> None:
        import torch

        super().__init__(signature, bundle, batch, threads)
        torch.set_num_threads(self.threads)
        with warnings.catch_warnings():
            # torch's own reader makes a tensor of a read-only buffer, and warns of it
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self._program = torch.export.load(str(model)).module()

    def _call(self, windows: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self._program(torch.from_numpy(windows))[:, 0].numpy()


_ENGINES: dict[str, tuple[type[_Base], str]] = {"onnxruntime": (OnnxRuntimeEngine, ONNX_FILE), "torch": (TorchEngine, TORCH_FILE)}


def _milliseconds(engine: _Base, num: int, repeats: int = 3) -> dict[int, float]:
    """Least ms per window in calls of each size of BATCHES up to `num`; sizes take turns, so that a busy moment hits all."""
    x = probes(len(engine.ifos), engine.kernel, engine.sample_rate, num, seed=1)
    best: dict[int, float] = {}
    for repeat in range(repeats + 1):
        for size in BATCHES:
            engine.batch = size
            start = time.perf_counter()
            engine.infer(x)
            # the first round is a warm-up
            if repeat:
                best[size] = min(best.get(size, np.inf), (time.perf_counter() - start) / num * 1e3)
    return best


def build_engine(
    exported: Path, folder: Path, platform: Platform = "auto", tolerance: float = 1e-3, bundle: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Choose a platform and write the engine.

    'auto' measures every platform on this machine and takes the fastest that passes parity with the torch program; ONNX
    Runtime unless torch is clearly faster (MARGIN).

    Args:
        exported: folder that `export` wrote.
        folder: existing folder for engine.json, the chosen platform's file and model.onnx (for a Triton repository).
        platform: 'auto', 'onnxruntime' or 'torch'.
        tolerance: largest accepted difference of logits.
        bundle: description of the model, kept in engine.json.

    Returns:
        What engine.json holds. With no platform in parity the best one is written all the same, its ``parity.passed`` False:
        the caller holds it back by a check.
    """
    signature = Signature.read(exported / SIGNATURE_FILE)
    description = dict(bundle or {})
    reference = TorchEngine(exported / TORCH_FILE, signature, description)
    windows = probes(len(signature.ifos), signature.kernel, signature.sample_rate)
    found: dict[str, dict[str, Any]] = {}
    for name in _ENGINES if platform == "auto" else (platform,):
        kind, file = _ENGINES[name]
        engine = kind(exported / file, signature, description)
        parity: Parity = compare(engine.infer, reference.infer, windows, tolerance)
        speed = _milliseconds(engine, num=BATCHES[-1])
        batch = min(speed, key=speed.get)  # type: ignore[arg-type]
        found[name] = {"parity": parity.as_dict(), "batch": batch, "ms_per_window": speed[batch], "threads": engine.threads}
    good = {n: v for n, v in found.items() if v["parity"]["passed"]} or found
    chosen = min(good, key=lambda n: good[n]["ms_per_window"] * (1 / MARGIN if n == "torch" else 1.0))
    shutil.copyfile(exported / ONNX_FILE, folder / ONNX_FILE)
    if chosen == "torch":
        shutil.copyfile(exported / TORCH_FILE, folder / TORCH_FILE)
    shutil.copyfile(exported / SIGNATURE_FILE, folder / SIGNATURE_FILE)
    record = {"platform": chosen, **found[chosen], "tolerance": tolerance, "measured": found, "machine": _machine(), "bundle": description}
    (folder / ENGINE_FILE).write_text(json.dumps(record, indent=2) + "\n")
    return record


def _machine() -> dict[str, str]:
    import platform

    import onnxruntime
    import torch

    return {"machine": platform.machine(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}


def load_engine(folder: Path, threads: int | None = None) -> Engine:
    """The engine in `folder`.

    Args:
        folder: written by `build_engine`.
        threads: of the network; None for `default_threads`.

    Raises:
        ValueError: the folder holds no engine, or one of a platform that is not known here.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / ENGINE_FILE).read_text())
        kind, file = _ENGINES[record["platform"]]
    except FileNotFoundError:
        raise ValueError(f"{folder}: no {ENGINE_FILE}; expected a folder that `aframe run --until engine` made") from None
    except (json.JSONDecodeError, KeyError) as e:
        raise ValueError(
            f"{folder / ENGINE_FILE}: not an engine ({type(e).__name__}: {e}); build it again with `aframe run --until engine`"
        ) from None
    if not (folder / file).is_file():
        raise ValueError(f"{folder}: {ENGINE_FILE} asks for {file}, which is missing; build the engine again")
    return kind(folder / file, Signature.read(folder / SIGNATURE_FILE), record["bundle"], record["batch"], threads)
