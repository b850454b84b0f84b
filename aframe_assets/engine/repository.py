"""A Triton model repository: snapshotter, network, and the ensemble of both (reference 2.10).

| model | platform | input -> output |
|---|---|---|
| ``snapshotter`` | onnxruntime_onnx | ``stream`` (1, ifo, batch * stride) -> ``windows`` (batch, ifo, kernel) |
| ``aframe`` | onnxruntime_onnx | ``input_0`` (any, ifo, kernel) -> ``discriminator`` (any, 1) |
| ``aframe-stream`` | ensemble | ``stream`` -> ``discriminator`` |

The snapshotter serves sequences (batching 'direct') and keeps its state inside the server.

Streams are whitened: the client whitens each detector once for all its slides, so the repository has no
preprocessor and the state is that of the windows alone, int((kernel_length - 1 / rate) * sample_rate) samples. It
starts as zeros: the first kernel / stride - 1 windows of a sequence (rounded up) hold some and are to be dropped.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from aframe_assets.engine.export import INPUT, OUTPUT

NETWORK, SNAPSHOTTER, ENSEMBLE = "aframe", "snapshotter", "aframe-stream"
STREAM, WINDOWS = "stream", "windows"
MAX_IDLE_MICROSECONDS = 60_000_000_000
_OPSET = 17
_IR_VERSION = 8


@dataclass(frozen=True)
class Word:
    """A value of a protobuf enumeration: written without quotes."""

    text: str


def protobuf_text(values: Mapping[str, Any], indent: int = 0) -> str:
    """A message in protobuf's text format: mappings are messages, lists repeat their field."""
    pad, lines = "  " * indent, []
    for key, value in values.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                lines.append(f"{pad}{key} {{\n{protobuf_text(item, indent + 1)}{pad}}}\n")
            elif isinstance(item, Word):
                lines.append(f"{pad}{key}: {item.text}\n")
            elif isinstance(item, bool):
                lines.append(f"{pad}{key}: {str(item).lower()}\n")
            elif isinstance(item, str):
                escaped = item.replace("\\", "\\\\").replace('"', '\\"')
                lines.append(f'{pad}{key}: "{escaped}"\n')
            else:
                lines.append(f"{pad}{key}: {item}\n")
    return "".join(lines)


def snapshotter_model(num_ifos: int, kernel: int, stride: int, batch: int) -> onnx.ModelProto:
    """The snapshotter as ONNX: (stream, input_state) -> (windows, output_state).

    Args:
        num_ifos: channels.
        kernel: samples of a window.
        stride: samples between windows, 1 <= stride <= kernel.
        batch: windows per request.

    Raises:
        ValueError: a stride that leaves samples out, or below 1.
    """
    if not 1 <= stride <= kernel:
        raise ValueError(f"stride of {stride} samples; expected 1 to the kernel's {kernel}")
    state, update = kernel - stride, batch * stride

    def constant(name: str, values: Any) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(values, np.int64), name)

    nodes = [
        helper.make_node("Concat", ["input_state", STREAM], ["whole"], axis=2),
        helper.make_node("Add", ["first", "offset"], ["samples"]),
        helper.make_node("Gather", ["whole", "samples"], ["cut"], axis=2),
        helper.make_node("Squeeze", ["cut", "axis0"], ["squeezed"]),
        helper.make_node("Transpose", ["squeezed"], [WINDOWS], perm=[1, 0, 2]),
        helper.make_node("Slice", ["whole", "tail", "end", "axis2"], ["output_state"]),
    ]
    constants = [
        constant("first", np.arange(batch)[:, None] * stride),
        constant("offset", np.arange(kernel)[None]),
        constant("axis0", [0]),
        constant("axis2", [2]),
        constant("tail", [update]),
        constant("end", [state + update]),
    ]

    def tensor(name: str, shape: list[int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    graph = helper.make_graph(
        nodes,
        SNAPSHOTTER,
        [tensor(STREAM, [1, num_ifos, update]), tensor("input_state", [1, num_ifos, state])],
        [tensor(WINDOWS, [batch, num_ifos, kernel]), tensor("output_state", [1, num_ifos, state])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="aframe_assets")
    onnx.checker.check_model(model, full_check=True)
    return model


def _tensor(name: str, dims: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": Word("TYPE_FP32"), "dims": dims}


def configurations(num_ifos: int, kernel: int, stride: int, batch: int, streams: int, threads: int) -> dict[str, dict[str, Any]]:
    """The configuration of each model as nested values; dims are whole (max_batch_size 0)."""
    state = [1, num_ifos, kernel - stride]
    stream = _tensor(STREAM, [1, num_ifos, batch * stride])
    intra = [{"key": "intra_op_thread_count", "value": {"string_value": str(threads)}}]
    snapshotter = {
        "name": SNAPSHOTTER,
        "platform": "onnxruntime_onnx",
        "max_batch_size": 0,
        "input": [stream],
        "output": [_tensor(WINDOWS, [batch, num_ifos, kernel])],
        "instance_group": [{"count": streams, "kind": Word("KIND_CPU")}],
        "sequence_batching": {
            "max_sequence_idle_microseconds": MAX_IDLE_MICROSECONDS,
            "direct": {},
            "state": [
                {
                    "input_name": "input_state",
                    "output_name": "output_state",
                    "data_type": Word("TYPE_FP32"),
                    "dims": state,
                    "initial_state": [{"name": "zeros", "data_type": Word("TYPE_FP32"), "dims": state, "zero_data": True}],
                }
            ],
        },
        "parameters": intra,
    }
    network = {
        "name": NETWORK,
        "platform": "onnxruntime_onnx",
        "max_batch_size": 0,
        "input": [_tensor(INPUT, [-1, num_ifos, kernel])],
        "output": [_tensor(OUTPUT, [-1, 1])],
        "instance_group": [{"count": 1, "kind": Word("KIND_AUTO")}],
        "parameters": intra,
    }

    def step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> dict[str, Any]:
        maps = {
            "input_map": [{"key": k, "value": v} for k, v in inputs.items()],
            "output_map": [{"key": k, "value": v} for k, v in outputs.items()],
        }
        return {"model_name": model, "model_version": -1, **maps}

    ensemble = {
        "name": ENSEMBLE,
        "platform": "ensemble",
        "max_batch_size": 0,
        "input": [stream],
        "output": [_tensor(OUTPUT, [batch, 1])],
        "ensemble_scheduling": {
            "step": [step(SNAPSHOTTER, {STREAM: STREAM}, {WINDOWS: WINDOWS}), step(NETWORK, {INPUT: WINDOWS}, {OUTPUT: OUTPUT})]
        },
    }
    return {SNAPSHOTTER: snapshotter, NETWORK: network, ENSEMBLE: ensemble}


def write_repository(
    folder: Path, network: Path, *, num_ifos: int, kernel: int, stride: int, batch: int, streams: int = 6, threads: int = 2
) -> list[Path]:
    """Write the repository, version 1 of each model.

    Args:
        folder: existing, empty.
        network: the network's ONNX file.
        num_ifos, kernel, stride, batch: channels; samples of a window; samples between windows; windows per request.
        streams: sequences served at once (instances of the snapshotter).
        threads: of each ONNX Runtime instance.

    Returns:
        The files written.
    """
    out = []
    for name, values in configurations(num_ifos, kernel, stride, batch, streams, threads).items():
        version = folder / name / "1"
        version.mkdir(parents=True)
        text = folder / name / "config.pbtxt"
        text.write_text(protobuf_text(values))
        out.append(text)
        if name == ENSEMBLE:
            # Triton wants the folder, and a store of objects keeps no empty one
            model = version / "ensemble"
            model.touch()
        else:
            model = version / "model.onnx"
            if name == NETWORK:
                shutil.copyfile(network, model)
            else:
                onnx.save(snapshotter_model(num_ifos, kernel, stride, batch), str(model))
        out.append(model)
    return out
