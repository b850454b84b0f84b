"""`python -m benchmarks.engines`, small: what `auto` took is what its own measurement said, whatever is fastest in the benchmark."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from aframe_assets.engine.build import build_engine
from benchmarks import engines

SMALL = ["--layers", "1,1", "--width", "8", "--rounds", "2"]
ROUNDS = {engines.EAGER: [9.0, 9.0], "torch fp32": [4.0, 4.2], "onnxruntime fp32": [2.0, 2.2]}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """What was exported and built, made once for all tests."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def auto(monkeypatch, kept):
    """What `auto` takes, in parity or not; the benchmark's own rounds say that ONNX Runtime costs half of torch."""
    takes = {"platform": "torch", "passed": True}
    export = engines.exported_network

    def once(name, folder, make):
        if not (kept / name).exists():
            (kept / name).mkdir()
            make(kept / name)
        shutil.copytree(kept / name, folder, dirs_exist_ok=True)

    def build(exported, folder, platform, **settings):
        name = takes["platform"] if platform == "auto" else platform
        once(name, folder, lambda place: build_engine(exported, place, name, **settings))
        record = json.loads((folder / "engine.json").read_text())
        if platform == "auto":
            record["parity"]["passed"] = takes["passed"]
        return record

    monkeypatch.setattr(
        engines, "exported_network", lambda method, size, folder: once("exported", folder, lambda p: export(method, size, p))
    )
    monkeypatch.setattr(engines, "best_device", lambda: "cpu")
    monkeypatch.setattr(engines, "build_engine", build)
    monkeypatch.setattr(engines, "seconds_per_input", lambda made, *a: {name: ROUNDS[name] for name in made})
    return takes


def result(capsys, *arguments: str) -> dict:
    engines.main([*SMALL, "--json", *arguments])
    return json.loads(capsys.readouterr().out)


def test_the_marked_engine_is_the_one_that_auto_took(auto, capsys):
    found = result(capsys, "--platform", "onnxruntime,torch,tensorrt")
    assert found["auto"] == {"fp32": "torch fp32"} and found["faster_than_auto"] == {"fp32": "onnxruntime fp32"}
    assert {n: e["auto"] for n, e in found["engines"].items()} == {engines.EAGER: False, "torch fp32": True, "onnxruntime fp32": False}
    assert found["ratio"] == pytest.approx(4.1 / 9) and list(found["absent"]) == ["tensorrt fp32"]
    # it is in the table, asked for or not
    assert set(result(capsys, "--platform", "onnxruntime")["engines"]) == set(found["engines"])


def test_a_faster_engine_than_that_of_auto_is_printed(auto, capsys):
    arguments = [*SMALL, "--platform", "onnxruntime,torch"]
    engines.main(arguments)
    assert "torch fp32 was taken by auto; onnxruntime fp32 was faster" in " ".join(capsys.readouterr().out.split())
    auto["platform"] = "onnxruntime"
    engines.main(arguments)
    printed = " ".join(capsys.readouterr().out.split())
    assert "auto" in printed and "was taken by auto" not in printed


def test_an_engine_out_of_parity_is_not_marked(auto, capsys):
    auto["passed"] = False
    found = result(capsys, "--platform", "onnxruntime")
    assert found["auto"] == {"fp32": None} and found["faster_than_auto"] == {} and found["ratio"] == 1
    assert not any(e["auto"] for e in found["engines"].values())


def test_what_is_within_the_spread_is_no_difference():
    spent = {"a": [2.0, 2.1, 2.4], "b": [1.9, 2.0, 2.1], "c": [1.0, 1.1, 1.2]}
    assert engines.faster("a", "ab", spent) is None and engines.faster("a", "abc", spent) == "c"
    assert engines.faster("c", "abc", spent) is None and np.ptp(spent["a"]) / 2 > 0.1
