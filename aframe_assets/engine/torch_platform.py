"""The program of ``torch.export`` run by torch, on a CPU or on a GPU with CUDA graphs and pinned transfers."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from aframe_assets.engine.precision import TYPES, reduced
from aframe_assets.engine.runners import How, Platform, Runner, require_file
from aframe_assets.engine.support import Device

if TYPE_CHECKING:
    from torch import Tensor


def no_cuda() -> str | None:
    """Why torch has no CUDA device; None when it has."""
    return None if torch.cuda.is_available() else "torch sees no CUDA device here; set engine.device to cpu, or run where a GPU is"


def allow_tf32(allowed: bool) -> None:
    """Whether float32 products on a GPU may be rounded to tf32, in this process."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


class TorchRunner:
    """A torch module on a device; sets torch's number of threads for the process.

    Args:
        module: maps (batch, ifo, samples) to a tensor.
        threads: of the process.
        device: of torch.
    """

    def __init__(self, module: nn.Module, threads: int, device: str = "cpu") -> None:
        self.threads, self.device = threads, device
        torch.set_num_threads(threads)
        self._module = module.to(device)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        with torch.inference_mode():
            return self._module(torch.from_numpy(x).to(self.device)).float().cpu().numpy()


class GraphRunner:
    """A module on a GPU as CUDA graphs: one launch for a call, its data through pinned memory.

    A graph has fixed shapes, so a batch is filled up to the next power of two, and there is a graph for each.

    Args:
        module: maps (batch, ifo, samples) float32 to float32.
        threads: of the CPU, for the process.
        device: 'cuda' or 'cuda:1'.
    """

    def __init__(self, module: nn.Module, threads: int, device: str = "cuda") -> None:
        self.threads, self.device = threads, torch.device(device)
        torch.set_num_threads(threads)
        self._module = module.to(self.device)
        self._captured: dict[tuple[int, ...], tuple[Any, Tensor, Tensor, Tensor, Tensor]] = {}

    # buffers that are made in inference mode can be written only there
    @torch.inference_mode()
    def __call__(self, x: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        count = len(x)
        shape = (1 << (count - 1).bit_length(), *x.shape[1:])
        if shape not in self._captured:
            self._captured[shape] = self._capture(shape)
        graph, pinned_in, given, answer, pinned_out = self._captured[shape]
        pinned_in[:count].copy_(torch.from_numpy(x))
        given[:count].copy_(pinned_in[:count], non_blocking=True)
        graph.replay()
        pinned_out[:count].copy_(answer[:count], non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return pinned_out[:count].numpy().copy()

    def _capture(self, shape: tuple[int, ...]) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
        given = torch.zeros(shape, device=self.device)
        beside = torch.cuda.Stream(self.device)
        beside.wait_stream(torch.cuda.current_stream(self.device))
        # libraries choose their algorithms in the first calls, which a graph must not hold
        with torch.cuda.stream(beside):
            for _ in range(3):
                answer = self._module(given)
        torch.cuda.current_stream(self.device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answer = self._module(given)
        return graph, torch.zeros(shape, pin_memory=True), given, answer, torch.zeros(answer.shape, pin_memory=True)


def runner(module: nn.Module, how: How) -> Runner:
    """A module of float32 in and out as a runner of its device."""
    if how.device == "cpu":
        return TorchRunner(module, how.settled().threads)
    reason = no_cuda()
    if reason:
        raise ValueError(f"engine on cuda: {reason}")
    allow_tf32(how.precision == "tf32")
    return GraphRunner(module, how.settled().threads)


def load_program(path: Path) -> nn.Module:
    """The module of an exported program."""
    with warnings.catch_warnings():
        # torch's own reader makes a tensor of a read-only buffer, and warns of it
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.export.load(str(path)).module()


def windowed_network(folder: Path) -> nn.Module:
    """The windowed form of the bundle in `folder`, batch norms folded."""
    from aframe_assets.engine.fold import fold_batch_norms
    from aframe_assets.model.bundle import load_bundle

    return fold_batch_norms(load_bundle(folder).network)


def windowed_program(folder: Path) -> nn.Module:
    """The same as the module of an exported program."""
    from aframe_assets.engine.export import SIGNATURE_FILE, exported_program
    from aframe_assets.engine.signature import Signature

    signature = Signature.read(folder / SIGNATURE_FILE)
    return exported_program(windowed_network(folder), torch.zeros(2, len(signature.ifos), signature.window)).module()


class TorchPlatform:
    """See `Platform`."""

    def missing(self, device: Device) -> str | None:
        """See `Platform`."""
        return no_cuda() if device == "cuda" else None

    def build(self, exported: Path, folder: Path, stem: str, how: How) -> None:
        """Takes the program over; the windowed form of frames and maps is made of the bundle when it is opened."""
        if stem == "model":
            shutil.copyfile(exported / "model.pt2", folder / "model.pt2")

    def open(self, folder: Path, stem: str, how: How) -> Runner:
        """See `Platform`."""
        if stem == "model":
            return runner(reduced(load_program(require_file(folder / "model.pt2", "torch")), how.precision), how)
        windowed = reduced(windowed_program(folder), how.precision) if how.precision in TYPES else windowed_network(folder)
        return runner(windowed, how)


PLATFORM: Platform = TorchPlatform()
