"""A Triton model repository in the shape of reference 2.10, from an engine.

| model | platform | input -> output |
|---|---|---|
| ``snapshotter`` | ONNX Runtime, sequences | ``stream`` (2, ifo, batch * stride) -> ``strain`` (2, ifo, state + batch * stride) |
| ``preprocessor`` | ONNX Runtime | ``strain`` -> ``input_0`` (batch, ifo, window) |
| ``aframe`` | TensorRT or ONNX Runtime | ``input_0`` (any, ifo, window) -> ``discriminator`` (any, 1) |
| ``aframe-stream`` | ensemble of these | ``stream`` -> ``discriminator`` (batch, 1) |
| ``whitened-snapshotter`` | ONNX Runtime, sequences | ``stream`` (1, ifo, batch * stride) -> ``windows`` (batch, ifo, window) |
| ``aframe-whitened-stream`` | ensemble with ``aframe`` | ``stream`` -> ``discriminator`` (batch, 1) |
| ``aframe-blocks`` | TensorRT or ONNX Runtime | a network of frames or maps in that form, see `Signature` |
| ``filter-blocks`` | the same | a cascade's filter network |

``aframe-stream`` is fed strain: row 0 of its stream is the data whose PSD whitens row 1, which may hold signals besides. The
state is psd_length + fduration + window - stride long, so that a request gives the windows that end in its own samples, all
whitened with the PSD of the psd_length seconds before them. ``aframe-whitened-stream`` is fed what the client has whitened, once
for all slides; its state is window - stride long. States begin as zeros: outputs that they touch are to be dropped.

Networks run wherever the server is (KIND_AUTO), everything else on the cores.
Every network tells in its parameter ``aframe`` (JSON) what it is: its signature, and the SHA-256 of its ONNX file.

TensorRT is taken where the engine has a plan, of each GPU architecture the one of the latest TensorRT. The server must be of that
version too.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from aframe_assets.engine.engine import FILTER
from aframe_assets.engine.export import INPUT, OUTPUT, SIGNATURE_FILE
from aframe_assets.engine.signature import MODEL, Signature
from aframe_assets.engine.snapshotter import INPUT_STATE, OUTPUT_STATE, STRAIN, STREAM, WINDOWS, strain_snapshotter, window_snapshotter

NETWORK, SNAPSHOTTER, PREPROCESSOR, ENSEMBLE = "aframe", "snapshotter", "preprocessor", "aframe-stream"
WHITENED_SNAPSHOTTER, WHITENED_ENSEMBLE = "whitened-snapshotter", "aframe-whitened-stream"
BLOCKS, FILTER_BLOCKS = "aframe-blocks", "filter-blocks"
ROWS = 2
"""Rows of a stream of strain: what the PSD is made of, and what is whitened."""

MAX_IDLE_MICROSECONDS = 600_000_000
"""After so long without a request the slot of a sequence is given away; a client that still lives continues it as a new one."""

_PLAN = re.compile(r"(?P<stem>\w+)\.sm(?P<major>\d+)(?P<minor>\d)\.trt(?P<version>[\d.]+)\.plan")


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


@dataclass(frozen=True)
class Layout:
    """Shapes of a repository.

    Attributes:
        signature: of the network.
        stride: samples between windows, 1 <= stride <= window.
        batch: windows of a request.
        streams: sequences served at once.
        threads: of a network's instance on the cores, until the server is told otherwise.
    """

    signature: Signature
    stride: int
    batch: int
    streams: int = 6
    threads: int = 2

    @property
    def num_ifos(self) -> int:
        return len(self.signature.ifos)

    @property
    def update(self) -> int:
        """Samples of a request."""
        return self.batch * self.stride

    @property
    def whitened_state(self) -> int:
        """Whitened samples kept between requests."""
        return self.signature.window - self.stride

    @property
    def state(self) -> int:
        """Samples of strain kept between requests."""
        conditioning = self.signature.conditioning
        settle = conditioning["psd_length"] + conditioning["fduration"]
        return round(settle * self.signature.sample_rate) + self.whitened_state


def _tensor(name: str, dims: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": Word("TYPE_FP32"), "dims": dims}


def _parameters(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": k, "value": {"string_value": v}} for k, v in values.items()]


def _model(
    name: str, platform: str, inputs: Any, outputs: Any, kind: str, count: int, parameters: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """A model whose dims are whole: requests are never joined, so that every answer is the one that its request alone has."""
    return {
        "name": name,
        "platform": platform,
        "max_batch_size": 0,
        "input": inputs,
        "output": outputs,
        "instance_group": [{"count": count, "kind": Word(kind)}],
        **more,
        "parameters": _parameters(parameters),
    }


def _sequences(state: list[int]) -> dict[str, Any]:
    zeros = {"name": "zeros", "data_type": Word("TYPE_FP32"), "dims": state, "zero_data": True}
    kept = {"input_name": INPUT_STATE, "output_name": OUTPUT_STATE, "data_type": Word("TYPE_FP32"), "dims": state}
    return {
        "sequence_batching": {
            "max_sequence_idle_microseconds": MAX_IDLE_MICROSECONDS,
            "direct": {},
            "state": [kept | {"initial_state": [zeros]}],
        }
    }


def _ensemble(name: str, inputs: Any, outputs: Any, steps: list[tuple[str, dict[str, str], dict[str, str]]]) -> dict[str, Any]:
    def entries(names: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"key": k, "value": v} for k, v in names.items()]

    step = [{"model_name": m, "model_version": -1, "input_map": entries(i), "output_map": entries(o)} for m, i, o in steps]
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": 0,
        "input": inputs,
        "output": outputs,
        "ensemble_scheduling": {"step": step},
    }


def configurations(layout: Layout) -> dict[str, dict[str, Any]]:
    """The configuration of each model but the networks, as nested values."""
    signature, n, threads = layout.signature, layout.num_ifos, {"intra_op_thread_count": "1"}
    windows, scores = [layout.batch, n, signature.window], _tensor(OUTPUT, [layout.batch, 1])
    stream, whitened = _tensor(STREAM, [ROWS, n, layout.update]), _tensor(STREAM, [1, n, layout.update])
    strain = _tensor(STRAIN, [ROWS, n, layout.state + layout.update])
    kept, kept_whitened = _sequences([ROWS, n, layout.state]), _sequences([1, n, layout.whitened_state])
    onnx_models = [
        _model(SNAPSHOTTER, "onnxruntime_onnx", [stream], [strain], "KIND_CPU", layout.streams, threads, **kept),
        _model(PREPROCESSOR, "onnxruntime_onnx", [strain], [_tensor(INPUT, windows)], "KIND_CPU", 2, threads),
        _model(
            WHITENED_SNAPSHOTTER,
            "onnxruntime_onnx",
            [whitened],
            [_tensor(WINDOWS, windows)],
            "KIND_CPU",
            layout.streams,
            threads,
            **kept_whitened,
        ),
    ]
    score = (NETWORK, {INPUT: WINDOWS}, {OUTPUT: OUTPUT})
    steps = [(SNAPSHOTTER, {STREAM: STREAM}, {STRAIN: STRAIN}), (PREPROCESSOR, {STRAIN: STRAIN}, {INPUT: WINDOWS}), score]
    ensembles = [
        _ensemble(ENSEMBLE, [stream], [scores], steps),
        _ensemble(WHITENED_ENSEMBLE, [whitened], [scores], [(WHITENED_SNAPSHOTTER, {STREAM: STREAM}, {WINDOWS: WINDOWS}), score]),
    ]
    return {c["name"]: c for c in (*onnx_models, *ensembles)}


def plans(engine: Path, stem: str) -> dict[str, Path]:
    """Compute capability ("9.0") -> plan of the latest TensorRT, of the form `stem` in the folder of an engine."""
    found = [(m, path) for path in engine.glob("*.plan") if (m := _PLAN.fullmatch(path.name)) and m["stem"] == stem]
    found.sort(key=lambda plan: [int(part) for part in plan[0]["version"].split(".") if part])
    return {f"{m['major']}.{m['minor']}": path for m, path in found}


def network_configuration(name: str, engine: Path, windowed: bool, threads: int) -> tuple[dict[str, Any], list[Path]]:
    """Configuration and files of the network in the folder of an engine: windowed, or in its cheapest form.

    Raises:
        ValueError: the engine lacks the file.
    """
    signature = Signature.read(engine / SIGNATURE_FILE)
    portable = engine / f"{signature.windows_stem if windowed else MODEL}.onnx"
    if not portable.is_file():
        raise ValueError(f"{engine}: no {portable.name}; build the engine again with `aframe run --until engine`")
    graph = onnx.load(str(portable), load_external_data=False).graph
    shapes = [[(v.name, [d.dim_value or -1 for d in v.type.tensor_type.shape.dim]) for v in part] for part in (graph.input, graph.output)]
    inputs, outputs = ([_tensor(*tensor) for tensor in part] for part in shapes)
    identity = hashlib.sha256(portable.read_bytes()).hexdigest()
    about = asdict(signature) | {"form": "windows" if windowed else signature.form, "sha256": identity}
    parameters = {"intra_op_thread_count": str(threads), "aframe": json.dumps(about, sort_keys=True)}
    planned = plans(engine, portable.stem)
    if not planned:
        return _model(name, "onnxruntime_onnx", inputs, outputs, "KIND_AUTO", 1, parameters), [portable]
    names = [{"key": capability, "value": path.name} for capability, path in sorted(planned.items())]
    more = {"cc_model_filenames": names}
    return _model(name, "tensorrt_plan", inputs, outputs, "KIND_AUTO", 1, parameters, **more), list(planned.values())


def write_repository(folder: Path, engine: Path, *, stride: int, batch: int, streams: int = 6, threads: int = 2) -> list[str]:
    """Write the repository, version 1 of each model.

    Args:
        folder: existing, empty.
        engine: folder of an engine.
        stride, batch, streams, threads: see `Layout`.

    Returns:
        Names of the models.

    Raises:
        ValueError: a stride longer than a window, or an engine without the files that are needed.
    """
    from aframe_assets.config import Conditioning
    from aframe_assets.engine.whole_path import Preprocessor, export_path

    signature = Signature.read(engine / SIGNATURE_FILE)
    layout = Layout(signature, stride, batch, streams, threads)
    written = configurations(layout)
    networks = [(NETWORK, engine, True)]
    if signature.form != "windows":
        networks.append((BLOCKS, engine, False))
    if (engine / FILTER / SIGNATURE_FILE).is_file():
        networks.append((FILTER_BLOCKS, engine / FILTER, False))
    for name, place, windowed in networks:
        written[name], files = network_configuration(name, place, windowed, threads)
        version = _version(folder, name)
        for file in files:
            shutil.copyfile(file, version / ("model.onnx" if file.suffix == ".onnx" else file.name))
    for name in (SNAPSHOTTER, WHITENED_SNAPSHOTTER, PREPROCESSOR):
        _version(folder, name)
    n = layout.num_ifos
    onnx.save(strain_snapshotter(ROWS, n, layout.state, layout.update), str(folder / SNAPSHOTTER / "1" / "model.onnx"))
    onnx.save(window_snapshotter(n, signature.window, stride, batch), str(folder / WHITENED_SNAPSHOTTER / "1" / "model.onnx"))
    conditioning = Conditioning.model_validate(signature.conditioning)
    preprocessor = Preprocessor(conditioning, signature.sample_rate, n, signature.window, stride, batch, rows=ROWS)
    export_path(preprocessor, folder / PREPROCESSOR / "1" / "model.onnx", "float32")
    for name in (ENSEMBLE, WHITENED_ENSEMBLE):
        # Triton wants the folder, and a store of objects keeps no empty one
        (_version(folder, name) / "ensemble").touch()
    for name, values in written.items():
        (folder / name / "config.pbtxt").write_text(protobuf_text(values))
    return sorted(written)


def _version(folder: Path, name: str) -> Path:
    version = folder / name / "1"
    version.mkdir(parents=True)
    return version
