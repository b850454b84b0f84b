"""Snapshotters of a Triton repository as ONNX: the state of a sequence is the last samples that it was sent.

Nothing but copies of the input: what they give equals what is cut from the whole stream, bit for bit. The state begins as
zeros, which the server provides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STREAM, WINDOWS, STRAIN = "stream", "windows", "strain"
INPUT_STATE, OUTPUT_STATE = "input_state", "output_state"
_OPSET = 17
_IR_VERSION = 8


def _constant(name: str, values: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.int64), name)


def _tensor(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(name: str, nodes: list[onnx.NodeProto], inputs: Any, outputs: Any, constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="aframe_assets")
    onnx.checker.check_model(model, full_check=True)
    return model


def window_snapshotter(num_ifos: int, window: int, stride: int, batch: int) -> onnx.ModelProto:
    """Whitened stream to windows: (stream, input_state) -> (windows, output_state).

    Args:
        num_ifos: channels.
        window: samples of a window.
        stride: samples between windows, 1 <= stride <= window.
        batch: windows per request, of batch * stride samples.

    Returns:
        A model of stream (1, ifo, batch * stride) and a state of window - stride samples; windows (batch, ifo, window).

    Raises:
        ValueError: a stride that leaves samples out, or below 1.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride of {stride} samples; expected 1 to the window's {window}")
    state, update = window - stride, batch * stride
    nodes = [
        helper.make_node("Concat", [INPUT_STATE, STREAM], ["whole"], axis=2),
        helper.make_node("Add", ["first", "offset"], ["samples"]),
        helper.make_node("Gather", ["whole", "samples"], ["cut"], axis=2),
        helper.make_node("Squeeze", ["cut", "axis0"], ["squeezed"]),
        helper.make_node("Transpose", ["squeezed"], [WINDOWS], perm=[1, 0, 2]),
        helper.make_node("Slice", ["whole", "tail", "end", "axis2"], [OUTPUT_STATE]),
    ]
    constants = [
        _constant("first", np.arange(batch)[:, None] * stride),
        _constant("offset", np.arange(window)[None]),
        _constant("axis0", [0]),
        _constant("axis2", [2]),
        _constant("tail", [update]),
        _constant("end", [state + update]),
    ]
    inputs = [_tensor(STREAM, [1, num_ifos, update]), _tensor(INPUT_STATE, [1, num_ifos, state])]
    outputs = [_tensor(WINDOWS, [batch, num_ifos, window]), _tensor(OUTPUT_STATE, [1, num_ifos, state])]
    return _model("window_snapshotter", nodes, inputs, outputs, constants)


def strain_snapshotter(rows: int, num_ifos: int, state: int, update: int) -> onnx.ModelProto:
    """Stream of strain to the stretch that a request needs: (stream, input_state) -> (strain, output_state).

    Args:
        rows: streams that are cut alike; 2 in reference 2.10, background and data.
        num_ifos: channels.
        state: samples of strain before the request's own, >= 1.
        update: samples of a request, >= 1.

    Returns:
        A model of stream (rows, ifo, update); strain (rows, ifo, state + update), whose end is the next state.
    """
    nodes = [
        helper.make_node("Concat", [INPUT_STATE, STREAM], [STRAIN], axis=2),
        helper.make_node("Slice", [STRAIN, "tail", "end", "axis2"], [OUTPUT_STATE]),
    ]
    constants = [_constant("axis2", [2]), _constant("tail", [update]), _constant("end", [state + update])]
    inputs = [_tensor(STREAM, [rows, num_ifos, update]), _tensor(INPUT_STATE, [rows, num_ifos, state])]
    outputs = [_tensor(STRAIN, [rows, num_ifos, state + update]), _tensor(OUTPUT_STATE, [rows, num_ifos, state])]
    return _model("strain_snapshotter", nodes, inputs, outputs, constants)
