"""What evaluates one file of an exported network: the small protocol behind every engine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from aframe_assets.engine.support import Device, Precision


def default_threads() -> int:
    """Threads of an engine: OMP_NUM_THREADS, which the executor sets to a step's cores, or 1."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(value)) if value.isdigit() else 1


@dataclass(frozen=True)
class How:
    """In what way a file is run.

    Attributes:
        device: 'cpu' or 'cuda' (the current device of torch).
        precision: of the multiplications; what goes in and comes out is float32.
        threads: of the CPU; 0 for `default_threads`.
    """

    device: Device = "cpu"
    precision: Precision = "fp32"
    threads: int = 0

    def settled(self) -> How:
        """With a number of threads."""
        return replace(self, threads=self.threads or default_threads())


class Runner(Protocol):
    """An exported file, ready to run.

    A runner that has several calls under way at a time also has ``each(parts)``, which gives their answers in order.

    Attributes:
        threads: of the CPU that it uses.
    """

    threads: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(batch, ifo, samples) float32, contiguous -> what the file's output is, float32."""
        ...


class Platform(Protocol):
    """A way to make and open runners; one object in a module of its own for each."""

    def missing(self, device: Device) -> str | None:
        """Why this machine cannot run it on `device`, with what to do; None when it can."""
        ...

    def build(self, exported: Path, folder: Path, stem: str, how: How) -> None:
        """Put into `folder` what `open` needs for the form `stem` ('model' or 'windows') of the network in `exported`."""
        ...

    def open(self, folder: Path, stem: str, how: How) -> Runner:
        """The runner of the form `stem` in `folder`, which `build` filled or `export` wrote.

        Raises:
            ValueError: a file is missing, or made for another machine.
        """
        ...


def require_file(path: Path, platform: str) -> Path:
    """`path`. Raises ValueError when it is not there."""
    if not path.is_file():
        raise ValueError(f"{path.parent}: platform {platform} needs {path.name}, which is missing; build the engine again")
    return path
