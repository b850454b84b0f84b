"""TensorRT: what both generations of its API are asked for, and that NVIDIA's parser and builder accept our networks.

The second part needs the wheels of TensorRT-RTX, which need no GPU: `make test-tensorrt`.
"""

from __future__ import annotations

import enum
from types import SimpleNamespace

import pytest
import torch

from aframe_assets.config import Config
from aframe_assets.engine.export import export, export_reduced
from aframe_assets.engine.platforms import get_platform
from aframe_assets.engine.runners import How
from aframe_assets.engine.signature import Signature
from aframe_assets.engine.tensorrt_builder import PlanError, build_plan, strongly_typed
from aframe_assets.engine.tensorrt_platform import plan_name
from aframe_assets.model.bundle import load_bundle, save_bundle
from aframe_assets.model.networks import Sky, build_network

RATE = 256.0


class Recorder:
    """A stand-in for the package: the names that a generation has, and what it was asked for."""

    def __init__(self, major: int, readable: bool = True, buildable: bool = True) -> None:
        self.__version__ = f"{major}.1.0"
        self.asked: dict[str, object] = {"set": [], "cleared": []}
        old = ["FP16", "BF16"] if major == 10 else []
        self.BuilderFlag = enum.IntEnum("BuilderFlag", ["TF32", *old], start=0)
        self.NetworkDefinitionCreationFlag = enum.IntEnum(
            "Flag", ["EXPLICIT_BATCH", "STRONGLY_TYPED"] if major == 10 else ["STRONGLY_TYPED"], start=0
        )
        self.ILogger = type("ILogger", (), {"Severity": enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR"])})
        asked = self.asked

        class Cache:
            def __init__(self, content: bytes) -> None:
                self.content = content

            def serialize(self) -> bytes:
                return self.content + b"+"

        def remember(cache, **_):
            asked["cache"] = cache

        config = SimpleNamespace(
            set_flag=lambda f: asked["set"].append(f.name),
            clear_flag=lambda f: asked["cleared"].append(f.name),
            add_optimization_profile=lambda p: None,
            create_timing_cache=Cache,
            set_timing_cache=remember,
            get_timing_cache=lambda: asked["cache"],
        )

        def build(network, config):
            if not buildable:
                self.logger.log(self.ILogger.Severity.ERROR, "no tactic")
            return b"plan" if buildable else None

        def builder(logger):
            self.logger = logger
            given = SimpleNamespace(name="input_0", shape=(-1, 2, 384))
            return SimpleNamespace(
                create_network=lambda flags: asked.update(flags=flags) or SimpleNamespace(get_input=lambda i: given),
                create_builder_config=lambda: config,
                create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *a: asked.update(shapes=a)),
                build_serialized_network=build,
            )

        self.Builder = builder
        self.OnnxParser = lambda network, logger: SimpleNamespace(
            parse=lambda b: readable, num_errors=1, get_error=lambda i: "unknown operator"
        )


@pytest.fixture
def onnx(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"onnx")
    return path


@pytest.mark.parametrize(("precision", "flags"), [("fp32", []), ("tf32", ["TF32"]), ("fp16", ["FP16"]), ("bf16", ["BF16"])])
@pytest.mark.parametrize("major", [10, 11])
def test_each_generation_is_asked_in_its_own_way(major, precision, flags, onnx):
    trt = Recorder(major)
    assert build_plan(trt, onnx, precision, (1, 8, 32), timing_cache=b"known") == (b"plan", b"known+")
    assert strongly_typed(trt) == (major == 11)
    kinds = trt.NetworkDefinitionCreationFlag
    assert trt.asked["flags"] == 1 << (kinds.STRONGLY_TYPED if major == 11 else kinds.EXPLICIT_BATCH)
    assert trt.asked["set"] == [f for f in flags if major == 10 or f == "TF32"]
    assert trt.asked["cleared"] == ([] if precision == "tf32" else ["TF32"])
    assert trt.asked["shapes"] == ("input_0", (1, 2, 384), (8, 2, 384), (32, 2, 384))


def test_what_tensorrt_says_is_passed_on(onnx):
    with pytest.raises(PlanError, match="cannot read it: unknown operator"):
        build_plan(Recorder(11, readable=False), onnx, "fp32", (1, 8, 32))
    with pytest.raises(PlanError, match=r"built no plan with bf16.*no tactic"):
        build_plan(Recorder(10, buildable=False), onnx, "bf16", (1, 8, 32))


def test_plans_are_named_for_what_they_run_on(tmp_path):
    names = {plan_name("model", v, a) for v in ("10.16.1", "11.4.0") for a in ((8, 9), (9, 0))}
    assert len(names) == 4 and "model.sm90.trt11.4.0.plan" in names
    with pytest.raises(ValueError, match=r"aframe-dagster\[gpu\]|no CUDA device"):
        get_platform("tensorrt").open(tmp_path, "model", How("cuda"))


# --- NVIDIA's own parser and builder ----------------------------------------------------------------

LAYERS = {"resnet": "windows", "streaming": "frames", "map": "maps"}


@pytest.fixture(scope="module")
def trt():
    return pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed: run `make test-tensorrt`")


@pytest.fixture(scope="module", params=LAYERS)
def exported(request, tmp_path_factory):
    folder, name = tmp_path_factory.mktemp(request.param), request.param
    head = {"channels": 8, "groups": 4, "hidden": 8, "map_stride": 4}
    architecture = {"name": name, "layers": [1, 1], "width": 16, "context": 0 if name == "resnet" else 1.0, "lag_head": head}
    c = Config(
        ifos=["H1", "L1"],
        sample_rate=RATE,
        segments={"train_start": 0, "train_stop": 1000, "test_start": 1000, "test_stop": 2000},
        strain={"source": "simulated", "simulated": {"asd": {"H1": "aLIGO", "L1": "aLIGO"}}},
        conditioning={"psd_length": 8, "fftlength": 1, "kernel_length": 1.5, "highpass": 20},
        model={"architecture": architecture},
    )
    torch.manual_seed(0)
    save_bundle(folder, build_network(c.model.architecture, Sky.of(c)).eval(), c, metrics={}, provenance={})
    export(load_bundle(folder).network, Signature.of_bundle(load_bundle(folder), 2), folder)
    return folder


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_the_builder_accepts_every_form_in_every_precision(trt, exported, precision, tmp_path):
    assert strongly_typed(trt)
    form = Signature.read(exported / "signature.json").form
    for stem in {"model", "model" if form == "windows" else "windows"}:
        onnx = exported / f"{stem}.onnx"
        if precision in ("fp16", "bf16"):
            onnx = tmp_path / f"{stem}.onnx"
            export_reduced(exported, stem, precision, onnx)
        # sm_80: without a GPU there is no current one
        plan, cache = build_plan(trt, onnx, precision, (1, 8, 32), capability="SM80")
        print(f"{form} {stem} {precision}: plan of {len(plan)} bytes, timing cache of {len(cache)}")
        assert len(plan) > 10_000
        again, _ = build_plan(trt, onnx, precision, (1, 8, 32), timing_cache=cache, capability="SM80")
        assert len(again) > 10_000


@pytest.mark.tensorrt
def test_the_parsers_refusal_is_told(trt, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no onnx")
    with pytest.raises(PlanError, match="cannot read it"):
        build_plan(trt, tmp_path / "model.onnx", "fp32", (1, 8, 32), capability="SM80")
