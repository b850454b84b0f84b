"""Several devices that train one network: a process, a rank, for each, and what is whose."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from aframe_assets.config import TrainingResources

TIMEOUT = timedelta(minutes=30)
"""For how long a rank waits for the others, as while one writes a checkpoint. One that is dead is found at once, by `launch`."""

STOP = signal.SIGUSR2
"""Asks a rank to end."""

Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Rank:
    """One of the processes that train a network together.

    Attributes:
        devices: of all ranks, as torch names them ('cuda:1', 'cpu').
        index: of this one, from 0.
    """

    devices: tuple[str, ...] = ("cpu",)
    index: int = 0

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.devices)

    @property
    def device(self) -> torch.device:
        return torch.device(self.devices[self.index])

    def rows(self, count: int) -> slice:
        """This rank's elements of a batch of `count`; all ranks' together are the batch, and differ by one in number at most."""
        share, rest = divmod(count, self.size)
        start = self.index * share + min(self.index, rest)
        return slice(start, start + share + (self.index < rest))

    def share(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Those of `pieces` of a work that are this rank's: every `size`-th, so that long ones at an end are shared too."""
        return pieces[self.index :: self.size]

    def weight(self, rows: int, count: int) -> float:
        """Factor of this rank's mean over its `rows`, so that the mean over ranks is that over the whole batch of `count`."""
        return rows * self.size / count

    @property
    def signals(self) -> tuple[int, ...]:
        """The one signal that asks a rank of several to end, passed on by the caller; what reaches all processes reaches that too."""
        return (STOP,) if self.size > 1 else ()

    def merged(self, parts: Tensor) -> Tensor:
        """The sum over ranks of `parts`, of the same shape on each: what each has filled in, where the others have zeros.

        Every rank calls it once, however much of the work was its own, so none waits for one that has nothing left.
        """
        if self.size == 1:
            return parts
        # NCCL takes what is on a GPU only
        whole = parts.to(self.device)
        dist.all_reduce(whole)
        return whole.to(parts.device)

    def trainer_arguments(self, *, unused: bool = False) -> dict[str, Any]:
        """Arguments of `lightning.Trainer`, for this rank's part in the training, whatever a batch system's variables say.

        Batch norms see the whole batch on GPUs (SyncBatchNorm, which torch has for GPUs alone) and a rank's rows on CPUs.

        Args:
            unused: some parameters do not enter the loss.
        """
        from lightning.fabric.utilities.rank_zero import rank_zero_only
        from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

        # set at import from SLURM_PROCID and the like, which count what a batch system has started and not these
        rank_zero_only.rank = self.index
        common = {"accelerator": self.device.type, "use_distributed_sampler": False, "plugins": [_environment(self)]}
        if self.size == 1:
            return common | {"devices": 1, "strategy": SingleDeviceStrategy(self.device)}
        devices = [torch.device(d) for d in self.devices]
        strategy = DDPStrategy(
            parallel_devices=devices, process_group_backend=backend(self.devices), timeout=TIMEOUT, find_unused_parameters=unused
        )
        return common | {"devices": self.size, "strategy": strategy, "sync_batchnorm": self.device.type == "cuda"}


ALONE = Rank()


def _environment(rank: Rank) -> Any:
    from lightning.fabric.plugins.environments import ClusterEnvironment

    class Launched(ClusterEnvironment):
        """Lightning's view of ranks that `launch` has started."""

        creates_processes_externally = True
        main_address, main_port = "127.0.0.1", 0

        @staticmethod
        def detect() -> bool:
            return False

        def world_size(self) -> int:
            return rank.size

        def global_rank(self) -> int:
            return rank.index

        def local_rank(self) -> int:
            return rank.index

        def node_rank(self) -> int:
            return 0

        def set_world_size(self, size: int) -> None:
            pass

        def set_global_rank(self, index: int) -> None:
            pass

    return Launched()


def backend(devices: Sequence[str]) -> str:
    """What carries sums between `devices`: NCCL between different GPUs; else Gloo, also for ranks that share a GPU."""
    return "nccl" if devices[0].startswith("cuda") and len(set(devices)) == len(devices) else "gloo"


def training_devices(resources: TrainingResources, log: logging.Logger) -> tuple[str, ...]:
    """Devices of a training, of those that this process sees (CUDA_VISIBLE_DEVICES).

    Where fewer are seen than ``gpus`` asks for, those are used with a warning, which changes no result: a batch is that of all devices
    together. One is used where none is asked for, as it is there.
    """
    if resources.devices:
        return tuple(resources.devices)
    gpus, seen = resources.gpus, torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen < gpus:
        log.warning(f"execution.training.gpus = {gpus}, but this process sees {seen}; training on {seen or 'the CPU'}")
    return tuple(f"cuda:{i}" for i in range(min(max(gpus, 1), seen))) or ("cpu",)


def check_devices(devices: Sequence[str], batch_size: int) -> tuple[str, ...]:
    """`devices`, as torch names them.

    Raises:
        ValueError: none, of different kinds, one that is not there, or more than elements in a batch.
    """
    kinds = {str(d).partition(":")[0] for d in devices}
    if len(kinds) != 1 or not kinds <= {"cpu", "cuda"}:
        raise ValueError(f"devices {list(devices)}: expected one or more of one kind, as [cuda:0, cuda:1] or [cpu, cpu]")
    if len(devices) > batch_size:
        raise ValueError(f"{len(devices)} devices for model.training.batch_size = {batch_size}; expected at most one for each element")
    if kinds == {"cpu"}:
        return ("cpu",) * len(devices)
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    numbers = [int(str(d).partition(":")[2] or 0) for d in devices]
    if missing := [n for n in numbers if n >= seen]:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise ValueError(f"no device cuda:{missing[0]}: this process sees {seen} GPUs (CUDA_VISIBLE_DEVICES = {visible})")
    return tuple(f"cuda:{n}" for n in numbers)


def has_unused(network: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether some parameters do not enter the output for an input of `shape`; ranks must know, as they sum gradients in a fixed order."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    found = torch.autograd.grad(network(torch.zeros(shape, device=parameters[0].device)).sum(), parameters, allow_unused=True)
    for name, buffer in network.named_buffers():
        buffer.copy_(kept[name])
    return any(g is None for g in found)
