"""A trained network as files that need none of its Python code: ONNX and ``torch.export`` (.pt2).

Exported with the dynamo exporter (the older one silently reshapes `unfold`), with a dynamic batch, in float32.
Input ``input_0`` (batch, ifo, kernel) whitened strain; output ``discriminator`` (batch, 1) logits: the names of reference 2.10.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

INPUT, OUTPUT = "input_0", "discriminator"
ONNX_FILE, TORCH_FILE, SIGNATURE_FILE = "model.onnx", "model.pt2", "signature.json"
MAX_BATCH = 65_536


@dataclass(frozen=True)
class Signature:
    """What goes into an exported network.

    Attributes:
        ifos: detectors, in the order of the channels.
        sample_rate: Hz.
        kernel: samples of a window.
        conditioning: settings that the strain must be whitened with (fields of ``config.conditioning``).
    """

    ifos: tuple[str, ...]
    sample_rate: float
    kernel: int
    conditioning: dict[str, Any]

    @classmethod
    def of(cls, ifos: Sequence[str], sample_rate: float, conditioning: Any) -> Signature:
        """From a bundle's fields; `conditioning` is a mapping or the config section."""
        values = dict(conditioning) if isinstance(conditioning, Mapping) else conditioning.model_dump(mode="json")
        kernel = values["kernel_length"] * sample_rate
        if abs(kernel - round(kernel)) > 1e-6:
            raise ValueError(
                f"kernel_length {values['kernel_length']:g} s at {sample_rate:g} Hz is {kernel:g} samples; expected a whole number"
            )
        return cls(tuple(ifos), float(sample_rate), round(kernel), values)

    @classmethod
    def read(cls, path: Path) -> Signature:
        """Raises ValueError if the file is not a signature."""
        try:
            values = json.loads(Path(path).read_text())
            return cls(tuple(values["ifos"]), float(values["sample_rate"]), int(values["kernel"]), dict(values["conditioning"]))
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise ValueError(
                f"{path}: not the signature of an exported network ({type(e).__name__}: {e}); export the model again"
            ) from None

    def write(self, path: Path) -> None:
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n")


def export(network: nn.Module, signature: Signature, folder: Path) -> dict[str, Path]:
    """Write `network` in both forms, and its signature, into `folder`.

    Neither file says from which folder or line of Python it came, so that equal networks make equal files anywhere.

    Args:
        network: maps (batch, ifo, kernel) float32 to (batch, 1).
        signature: of its input.
        folder: existing folder.

    Returns:
        name -> path of the files written.

    Raises:
        ValueError: the network does not map a batch of windows to a logit each.
    """
    network = network.cpu().float().eval()
    # at least 2: a batch of 1 would be taken for a constant
    example = torch.zeros(2, len(signature.ifos), signature.kernel)
    with torch.no_grad():
        shape = tuple(network(example).shape)
    if shape != (2, 1):
        raise ValueError(f"network maps {tuple(example.shape)} to {shape}; expected (2, 1): one logit for each window")
    batch = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}
    program = torch.export.export(network, (example,), dynamic_shapes=(batch,))
    paths = {name: folder / name for name in (ONNX_FILE, TORCH_FILE, SIGNATURE_FILE)}
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(program, paths[TORCH_FILE])
    chatty, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            portable = torch.onnx.export(
                program, (example,), dynamo=True, dynamic_shapes=(batch,), input_names=[INPUT], output_names=[OUTPUT], verbose=False
            )
    finally:
        chatty.setLevel(level)
    portable.save(paths[ONNX_FILE], external_data=False)
    signature.write(paths[SIGNATURE_FILE])
    return paths
