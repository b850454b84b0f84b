"""Whether an environment serves: a model of two lines, asked one question."""

from __future__ import annotations

import tempfile
from pathlib import Path

from aframe_ops.serving.environment import Environment
from aframe_ops.serving.errors import ServingError

_CONFIG = """name: "sum"
platform: "onnxruntime_onnx"
max_batch_size: 0
input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ -1 ] }
instance_group { count: 1 kind: KIND_CPU }
"""


def write_sum(folder: Path) -> Path:
    """Writes a repository of one model, ``sum``: y = x + x."""
    import onnx
    from onnx import TensorProto, helper

    version = folder / "sum" / "1"
    version.mkdir(parents=True)
    (folder / "sum" / "config.pbtxt").write_text(_CONFIG)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "sum", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(version / "model.onnx"))
    return folder


def probe(environment: Environment) -> None:
    """Starts the server and asks it a sum.

    Raises:
        ServingError: it does not start, or answers wrongly, as it would with another numpy.
    """
    from aframe_ops.serving.server import TritonServer, ask

    with tempfile.TemporaryDirectory(prefix="aframe-probe-") as name:
        folder = Path(name)
        with TritonServer(write_sum(folder / "models"), folder / "logs", environment=environment, devices=[]) as server:
            got = ask(server, "sum", {"x": {"shape": [3], "datatype": "FP32", "data": [1.0, -2.0, 0.5]}})
        if got != {"y": [2.0, -4.0, 1.0]}:
            raise ServingError(f"{environment.folder}: the server answers {got} to a sum whose result is [2, -4, 1]; report this")
