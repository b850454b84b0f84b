"""AOTInductor: the exported program compiled ahead of time for this kind of processor or GPU, in a .pt2 package of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch._inductor.codecache  # torch 2.10 opens a package with it and does not import it

from aframe_assets.engine.precision import reduced
from aframe_assets.engine.runners import How, Platform, Runner, require_file
from aframe_assets.engine.support import Device, not_installed
from aframe_assets.engine.torch_platform import PLATFORM as TORCH
from aframe_assets.engine.torch_platform import allow_tf32, no_cuda

_PACKAGE, _TARGET = "model.aoti.pt2", "model.aoti.json"


def target(device: Device) -> str:
    """What compiled code is good for."""
    if device == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability())
    return torch.backends.cpu.get_cpu_capability()


class AotInductorRunner:
    """A compiled package.

    Args:
        package: made by `compile_program`.
        how: device and threads.
    """

    def __init__(self, package: Path, how: How) -> None:
        self.threads, self._device = how.settled().threads, how.device
        torch.set_num_threads(self.threads)
        allow_tf32(how.precision == "tf32")
        self._model = torch._inductor.aoti_load_package(str(package))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        with torch.inference_mode():
            return self._model(torch.from_numpy(x).to(self._device)).float().cpu().numpy()


def compile_program(program: Path, package: Path, how: How) -> None:
    """Compile an exported program into `package`; takes a compiler and some tens of seconds."""
    from aframe_assets.engine.export import exported_program, quiet

    allow_tf32(how.precision == "tf32")
    with quiet("torch._inductor"):
        loaded = torch.export.load(str(program))
        module = reduced(loaded.module(), how.precision).to(how.device)
        example = torch.zeros(2, *loaded.example_inputs[0][0].shape[1:], device=how.device)
        torch._inductor.aoti_compile_and_package(exported_program(module, example), package_path=str(package))


class AotInductorPlatform:
    """See `Platform`. Windows of frames and maps are scored by torch: they are few, and a second compilation takes as long as the first."""

    def missing(self, device: Device) -> str | None:
        """See `Platform`."""
        return not_installed("aotinductor") or (no_cuda() if device == "cuda" else None)

    def build(self, exported: Path, folder: Path, stem: str, how: How) -> None:
        """See `Platform`."""
        if stem == "model":
            compile_program(exported / "model.pt2", folder / _PACKAGE, how)
            (folder / _TARGET).write_text(json.dumps({"target": target(how.device)}) + "\n")

    def open(self, folder: Path, stem: str, how: How) -> Runner:
        """See `Platform`."""
        if stem != "model":
            return TORCH.open(folder, stem, how)
        package = require_file(folder / _PACKAGE, "aotinductor")
        made, here = json.loads((folder / _TARGET).read_text())["target"], target(how.device)
        if made != here:
            raise ValueError(
                f"{folder}: its engine was compiled for {made}, this machine is {here}; run the search on machines of one kind, or build "
                "the engine again with engine.platform onnxruntime"
            )
        return AotInductorRunner(package, how)


PLATFORM: Platform = AotInductorPlatform()
