"""A trained network as files that need none of its Python code: ONNX and ``torch.export`` (.pt2).

Exported with the dynamo exporter (the older one silently reshapes `unfold`), with a dynamic batch, in float32, batch norms
folded into convolutions. The windowed form has the names of reference 2.10: input ``input_0`` (batch, ifo, window) whitened
strain, output ``discriminator`` (batch, 1) logits; the others' output is called ``frames`` or ``maps``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from aframe_assets.engine.fold import fold_batch_norms
from aframe_assets.engine.signature import MODEL, WINDOWS, Signature

INPUT, OUTPUT = "input_0", "discriminator"
SIGNATURE_FILE = "signature.json"
ONNX_FILE, TORCH_FILE = f"{MODEL}.onnx", f"{MODEL}.pt2"
MAX_BATCH = 65_536


class CheapestForm(nn.Module):
    """The part of a network that `form` of its signature names; see `Signature`.

    Args:
        network: windows: any; frames: a `FrameNetwork`; maps: also has ``encode``.
        form: of the signature.
    """

    def __init__(self, network: nn.Module, form: str) -> None:
        super().__init__()
        self.network, self.form = network, form

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: whitened strain (batch, ifo, samples of the signature)."""
        if self.form == "windows":
            return self.network(x)
        return self.network.frames(x) if self.form == "frames" else self.network.encode(x)


def export(network: nn.Module, signature: Signature, folder: Path) -> dict[str, Path]:
    """Write `network` in its cheapest form as ONNX and .pt2, in the windowed form as ONNX, and its signature, into `folder`.

    No file says from which folder or line of Python it came, so that equal networks make equal files anywhere.

    Args:
        network: maps (batch, ifo, window) float32 to (batch, 1); moved to the CPU.
        signature: of its input.
        folder: existing folder.

    Returns:
        name -> path of the files written.

    Raises:
        ValueError: the network does not map a batch of windows to a logit each.
    """
    network = fold_batch_norms(network.cpu().float())
    # at least 2: a batch of 1 would be taken for a constant
    example = torch.zeros(2, len(signature.ifos), signature.window)
    with torch.no_grad():
        shape = tuple(network(example).shape)
    if shape != (2, 1):
        raise ValueError(f"network maps {tuple(example.shape)} to {shape}; expected (2, 1): one logit for each window")
    program = exported_program(CheapestForm(network, signature.form).eval(), torch.zeros(2, len(signature.ifos), signature.samples))
    torch.export.save(program, folder / TORCH_FILE)
    _save_onnx(program, OUTPUT if signature.form == "windows" else signature.form, folder / ONNX_FILE)
    names = [ONNX_FILE, TORCH_FILE, SIGNATURE_FILE]
    if signature.form != "windows":
        names.append(f"{WINDOWS}.onnx")
        _save_onnx(exported_program(network, example), OUTPUT, folder / names[-1])
    signature.write(folder / SIGNATURE_FILE)
    return {name: folder / name for name in names}


def exported_program(module: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    """`module`, in eval mode, traced with a batch of any size; `example` has at least two."""
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _save_onnx(program: torch.export.ExportedProgram, output: str, path: Path) -> None:
    batch = ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},)
    with quiet("torch.onnx"):
        portable = torch.onnx.export(
            program, program.example_inputs[0], dynamo=True, dynamic_shapes=batch, input_names=[INPUT], output_names=[output], verbose=False
        )
    portable.save(path, external_data=False)


def export_reduced(exported: Path, stem: str, precision: str, path: Path) -> None:
    """Write a network that `export` wrote as ONNX whose weights and multiplications have 'fp16' or 'bf16', float32 in and out.

    Args:
        exported: folder.
        stem: 'model' or 'windows'.
        precision: see `aframe_assets.engine.precision`.
        path: of the new file.
    """
    from aframe_assets.engine.precision import reduced
    from aframe_assets.engine.torch_platform import load_program, windowed_program

    signature = Signature.read(exported / SIGNATURE_FILE)
    windowed = stem == signature.windows_stem
    module = load_program(exported / TORCH_FILE) if stem == MODEL else windowed_program(exported)
    example = torch.zeros(2, len(signature.ifos), signature.window if windowed else signature.samples)
    _save_onnx(exported_program(reduced(module, precision), example), OUTPUT if windowed else signature.form, path)


@contextmanager
def quiet(logger: str) -> Iterator[None]:
    """A part of torch without warnings and without remarks on optional packages, registered operators and the like.

    Args:
        logger: name of its logger; errors are still logged.
    """
    chatty = logging.getLogger(logger)
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatty.setLevel(level)
