"""What goes into an exported network and what comes out of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from aframe_assets.model.bundle import Bundle

Form = Literal["windows", "frames", "maps"]

MODEL, WINDOWS = "model", "windows"
"""Stems of the files that hold the network in its cheapest form, and in the windowed one."""

BLOCK = 16.0
"""Seconds of output of a call of a network whose frames windows share."""


@dataclass(frozen=True)
class Signature:
    """Input and output of an exported network.

    The cheapest form of a network is what ``model.*`` holds; W = kernel + 2 context, T = block + 2 context, F = block / stride:

    | form | input | output |
    |---|---|---|
    | windows | (batch, ifo, W) | logits (batch, 1) |
    | frames | (batch, ifo, T) | (batch, channels, F) |
    | maps | (batch, ifo, T) | (batch, ifo, channels + hidden, F + 2 reach) |

    Attributes:
        ifos: detectors, in the order of the channels.
        sample_rate: Hz.
        kernel: samples of a window without its context.
        conditioning: settings that the strain must be whitened with (fields of ``config.conditioning``).
        context: samples that the network sees on each side of the kernel (or of a block).
        form: the cheapest form.
        stride: samples per frame; 0 for windows.
        total_stride: samples by which data must be moved for their frames to move with them; 0 for windows.
        block: samples of output of a call for frames and maps, a multiple of `total_stride`; 0 for windows.
    """

    ifos: tuple[str, ...]
    sample_rate: float
    kernel: int
    conditioning: dict[str, Any]
    context: int = 0
    form: Form = "windows"
    stride: int = 0
    total_stride: int = 0
    block: int = 0

    @property
    def window(self) -> int:
        """Samples of a window: kernel and context."""
        return self.kernel + 2 * self.context

    @property
    def samples(self) -> int:
        """Samples of the input of the cheapest form."""
        return self.window if self.form == "windows" else self.block + 2 * self.context

    @property
    def windows_stem(self) -> str:
        """Stem of the files that hold the windowed form: the cheapest form itself where that is it."""
        return MODEL if self.form == "windows" else WINDOWS

    @classmethod
    def of(
        cls, ifos: Sequence[str], sample_rate: float, conditioning: Any, network: nn.Module | None = None, block: float = BLOCK
    ) -> Signature:
        """From a bundle's fields.

        Args:
            ifos: detectors.
            sample_rate: Hz.
            conditioning: a mapping or the config section.
            network: decides form, context and strides; None for a network of windows.
            block: seconds of output of a call, where the form is not windows.

        Raises:
            ValueError: a kernel that is not a whole number of samples, or a block that is not whole frames.
        """
        values = dict(conditioning) if isinstance(conditioning, Mapping) else conditioning.model_dump(mode="json")
        kernel = values["kernel_length"] * sample_rate
        if abs(kernel - round(kernel)) > 1e-6:
            raise ValueError(
                f"kernel_length {values['kernel_length']:g} s at {sample_rate:g} Hz is {kernel:g} samples; expected a whole number"
            )
        plain = cls(tuple(ifos), float(sample_rate), round(kernel), values)
        if not hasattr(network, "frames"):
            return plain
        size, step = block * sample_rate, network.total_stride
        if size <= 0 or abs(size / step - round(size / step)) > 1e-6:
            raise ValueError(
                f"engine.block = {block:g} s: {size:g} samples; expected a multiple of the network's total stride, {step} samples"
            )
        form: Form = "maps" if hasattr(network, "encode") else "frames"
        shared = {"context": network.context, "form": form, "stride": network.stride, "total_stride": step, "block": round(size)}
        return cls(plain.ifos, plain.sample_rate, plain.kernel, values, **shared)

    @classmethod
    def of_bundle(cls, bundle: Bundle, block: float = BLOCK) -> Signature:
        """Of a bundle's network; see `of`."""
        return cls.of(bundle.ifos, bundle.sample_rate, bundle.conditioning, bundle.network, block)

    @classmethod
    def read(cls, path: Path) -> Signature:
        """Raises ValueError if the file is not a signature."""
        try:
            values = json.loads(Path(path).read_text())
            known = {"ifos": tuple(values.pop("ifos")), "conditioning": dict(values.pop("conditioning"))}
            return cls(**known, **values)
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as e:
            raise ValueError(
                f"{path}: not the signature of an exported network ({type(e).__name__}: {e}); export the model again"
            ) from None

    def write(self, path: Path) -> None:
        """As JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")
