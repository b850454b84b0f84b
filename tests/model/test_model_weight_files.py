"""Weights in files of other programs: Aframe's network as it writes it, whatever prefix; nothing in a file runs, bad ones are named."""

from __future__ import annotations

import collections
import logging
import os
import pickle
import zipfile
from types import SimpleNamespace

import lightning
import pytest
import torch
from ml4gw.nn.norm import GroupNorm1D
from ml4gw.nn.resnet.resnet_1d import ResNet1D
from ml4gw.nn.ssm.s4d import S4Model
from safetensors.torch import save_file

from aframe_assets.model.assets import make_model
from aframe_assets.model.bundle import load_bundle
from aframe_assets.model.importing import WeightsError, find_bundle, is_weight_file, weights_identity
from aframe_assets.model.weight_files import bundle_of_file, read_weight_file, settings_of_file
from aframe_assets.preflight import preflight
from aframe_assets.store.job import Job

UPSTREAM = {"layers": [1, 1], "width": 64, "norm_groups": 16, "stem_kernel": 7, "stem_stride": 2, "pooling": "mean"}


class Foreign(ResNet1D):
    """Stands for Aframe's class: ml4gw's network under a name that only Aframe's environment knows."""


class Prior:
    """Stands for an object of Aframe among a checkpoint's settings."""

    def __init__(self) -> None:
        self.minimum = 4.0

    def __reduce__(self):
        return Prior, (), {"minimum": self.minimum}


class ForeignModule(lightning.LightningModule):
    def __init__(self, arch, **settings) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["arch"])
        self.model = arch


class Exploit:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('ran').touch()",)


class Shell:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.fixture(scope="module")
def foreign():
    torch.manual_seed(0)
    network = Foreign(2, [1, 1], classes=1, norm_layer=lambda c: GroupNorm1D(c, 16)).eval()
    for p in network.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return network


@pytest.fixture
def experiment(tiny_config):
    config = tiny_config()
    architecture = config.model.architecture.model_copy(update=UPSTREAM)
    return config.model_copy(update={"model": config.model.model_copy(update={"architecture": architecture})})


def written(network, folder, kind: str, **settings):
    """A file as Aframe, Lightning, torch or safetensors writes it."""
    path = folder / {"script": "model.pt", "checkpoint": "best.ckpt", "state": "state.pth", "safetensors": "x.safetensors"}[kind]
    if kind == "script":
        torch.jit.save(torch.jit.trace(network, torch.randn(3, 2, 512)), path)
    elif kind == "checkpoint":
        module = ForeignModule(network, **settings)
        trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", default_root_dir=folder)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(path)
    elif kind == "state":
        torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, path)
    else:
        save_file(network.state_dict(), path)
    return path


@pytest.mark.parametrize("kind", ["script", "checkpoint", "state", "safetensors"])
def test_aframes_network_gives_its_own_logits_here(foreign, experiment, tmp_path, kind):
    path = written(foreign, tmp_path, kind, prior=Prior(), kernel_length=1.0, ifos=["H1", "L1"])
    assert is_weight_file(str(path)) and len(weights_identity(str(path))["sha256"]) == 64
    bundle = load_bundle(bundle_of_file(path, experiment, tmp_path / "bundle"))
    x = 3 * torch.randn(4, 2, 512)
    with torch.no_grad():
        torch.testing.assert_close(bundle.network(x), foreign(x), rtol=1e-4, atol=1e-5)
    told = bundle.description["provenance"]["imported_from"]
    assert told["file"] == path.name and told["sha256"] == weights_identity(str(path))["sha256"]
    assert bundle.metrics == {} and bundle.description["licence"].startswith("of the weights: not known here")
    assert told["settings"] == ({"kernel_length": 1.0, "ifos": ["H1", "L1"]} if kind == "checkpoint" else {})


def test_what_a_file_tells_of_its_network(foreign, tmp_path):
    path = written(
        foreign, tmp_path, "checkpoint", kernel_length=1.5, fduration=1, highpass=32, left_pad=0.25, ifos=["H1", "L1"], prior=Prior()
    )
    told = settings_of_file(read_weight_file(path))
    wanted = {"name": "resnet", "layers": [1, 1], "width": 64, "kernel_size": 3, "norm_groups": 16, "stem_kernel": 7, "stem_stride": 2}
    assert told["model"]["architecture"] == wanted | {"pooling": "mean", "context": 0.0}
    assert told["conditioning"] == {"kernel_length": 1.5, "fduration": 1.0, "highpass": 32.0} and told["ifos"] == ["H1", "L1"]
    assert told["model"]["training"] == {"left_pad": 0.25} and "prior" not in read_weight_file(path).settings
    torch.save(S4Model(3, 1, 16, 8, 2).state_dict(), tmp_path / "s4.pt")
    told = settings_of_file(read_weight_file(tmp_path / "s4.pt"))
    s4 = {"name": "s4", "layers": [2], "width": 16, "s4": {"state": 8}, "stem_stride": 1, "pooling": "mean", "context": 0.0}
    assert told == {"model": {"architecture": s4}, "num_ifos": 3}
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "other.pt")
    assert settings_of_file(read_weight_file(tmp_path / "other.pt")) == {}


class Huge:
    def __reduce__(self):
        return bytearray, (1 << 62,)


def _endless() -> list:
    out = ["x"]
    for _ in range(60):
        out = [out, out]
    return out


class Part:
    """Stands for a module of a TorchScript file, which is its attributes."""


def _endless_module() -> Part:
    out = Part()
    for _ in range(60):
        outer = Part()
        outer.a = outer.b = out
        out = outer
    return out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"w": torch.zeros(1).expand(1 << 40)}, "w [1099511627776] does not have its values in the file, one by one"),
        ({"w": torch.zeros(3, device="meta")}, "w [3] does not have its values in the file"),
        ({"w": torch.eye(3).to_sparse()}, "w [3, 3] does not have its values in the file"),
        ({"w": torch.ones(3), "more": Huge()}, "MemoryError"),
        ({"state_dict": None}, "its state_dict is NoneType, not tensors by name"),
    ],
)
def test_a_small_file_cannot_fill_the_memory(tmp_path, content, said):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(WeightsError) as e:
        read_weight_file(tmp_path / "x.pt")
    assert said in str(e.value)


def test_compressed_or_endless_files_are_refused(foreign, tmp_path):
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(WeightsError, match="its members are compressed or overlap"):
        read_weight_file(tmp_path / "bomb.pt")
    # settings without end are passed over, and what is no mapping is no setting
    torch.save({"state_dict": {"w": torch.ones(3)}, "hyper_parameters": {"a": _endless(), "b": [1.5, "x"]}}, tmp_path / "x.pt")
    assert read_weight_file(tmp_path / "x.pt").settings == {"b": [1.5, "x"]}
    torch.save({"state_dict": {"w": torch.ones(3)}, "hyper_parameters": [1]}, tmp_path / "x.pt")
    assert read_weight_file(tmp_path / "x.pt").settings == {}
    torch.save(_endless_module(), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
        archive.writestr("x/constants.pkl", b"")
    with pytest.raises(WeightsError, match="more than 100000 modules"):
        read_weight_file(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "weights",
    [
        {"residual_layers.0.0.conv1.weight": torch.tensor(1.0), "conv1.weight": torch.ones(2, 2, 2)},
        {"residual_layers.0.0.conv1.weight": torch.ones(1, 1, 1), "conv1.weight": torch.ones(0, 2, 2), "fc.weight": torch.ones(1, 3)},
        {"s4_layers.0.kernel.C": torch.tensor(1.0), "encoder.weight": torch.ones(3)},
        {"s4_layers.0.kernel.C": torch.ones(2, 2, 2), "encoder.weight": torch.ones(3)},
    ],
)
def test_shapes_of_no_network_tell_nothing(tmp_path, weights):
    torch.save(weights, tmp_path / "x.pt")
    assert settings_of_file(read_weight_file(tmp_path / "x.pt")) == {}


def test_weights_that_only_look_right_are_refused(foreign, experiment, tmp_path):
    good = foreign.state_dict()

    def refusal(content: dict) -> str:
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(WeightsError) as e:
            bundle_of_file(tmp_path / "x.pt", experiment, tmp_path / "bundle")
        return str(e.value)

    average = {f"ema.{k}": v + 0.1 for k, v in good.items()}
    assert "has the network twice with different weights, under 'ema.' and 'model.'" in refusal(
        {f"model.{k}": v for k, v in good.items()} | average
    )
    assert "fc.weight is torch.complex64 in the file" in refusal(good | {"fc.weight": good["fc.weight"].to(torch.complex64)})
    assert "fc.weight is torch.int64 in the file" in refusal(good | {"fc.weight": good["fc.weight"].long()})
    assert "fc.weight is not finite" in refusal(good | {"fc.weight": torch.full_like(good["fc.weight"], 1e300, dtype=torch.float64)})
    # the same network twice is one
    torch.save({f"{p}.{k}": v for k, v in good.items() for p in ("model", "module.model")}, tmp_path / "x.pt")
    bundle_of_file(tmp_path / "x.pt", experiment, tmp_path / "bundle")


def test_a_band_without_an_upper_edge_is_told(foreign, experiment, tmp_path):
    path = written(foreign, tmp_path, "checkpoint", lowpass=None)
    assert settings_of_file(read_weight_file(path))["conditioning"] == {"lowpass": None}
    filtered = experiment.model_copy(update={"conditioning": experiment.conditioning.model_copy(update={"lowpass": 200.0})})
    with pytest.raises(WeightsError, match=r"conditioning\.lowpass = 200\.0: expected None, which the imported network was trained with"):
        bundle_of_file(path, filtered, tmp_path / "bundle")


@pytest.mark.parametrize("where", ["checkpoint", "script"])
def test_nothing_in_a_file_runs(foreign, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    if where == "checkpoint":
        torch.save({"state_dict": foreign.state_dict(), "callbacks": Exploit()}, tmp_path / "x.pt")
    else:
        # the program of a TorchScript file, and what it would do with its state, is not even opened
        path = written(foreign, tmp_path, "script")
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "x.pt", "w") as new:
            for name in old.namelist():
                content = b"broken" if "/code/" in name else old.read(name)
                new.writestr(name, pickle.dumps(Exploit(), 2) if name.endswith("constants.pkl") else content)
    assert set(read_weight_file(tmp_path / "x.pt").weights) == set(foreign.state_dict())
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "x.pt", weights_only=False) if where == "checkpoint" else pickle.loads(pickle.dumps(Exploit(), 2))
    assert (tmp_path / "ran").exists(), "the file would not have run anything anyway"


def test_a_file_that_cannot_be_used_is_named(foreign, experiment, tmp_path):
    def refusal(content: object) -> str:
        path = tmp_path / "x.pt"
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(WeightsError) as e:
            bundle_of_file(path, experiment, tmp_path / "bundle")
        assert str(e.value).startswith(f"model.weights = {path}: ") and not (tmp_path / "bundle").exists()
        return str(e.value)

    good = foreign.state_dict()
    assert "neither an archive of torch nor safetensors" in refusal(b"hello")
    assert "neither an archive of torch nor safetensors" in refusal(b"")
    torch.save(good, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    assert "copy it again" in refusal(whole[: len(whole) // 2])
    assert "has no weights" in refusal({"epoch": 3})
    assert "has no weights" in refusal({"state_dict": {}})
    assert "holds list" in refusal([1, 2])
    blocked = refusal(good | {"more": Shell()})
    assert "posix.system" in blocked and "weights_only" not in blocked, "torch's advice is to run what is in the file"
    assert "fc.weight is not finite" in refusal(good | {"fc.weight": good["fc.weight"] * float("nan")})
    assert "no bn1.bias in the file" in refusal({k: v for k, v in good.items() if k != "bn1.bias"})
    assert "an unknown more in the file, under 'model.'" in refusal({f"model.{k}": v for k, v in (good | {"more": torch.ones(1)}).items()})
    assert "fc.weight [1, 128] is [1, 100] in the file" in refusal(good | {"fc.weight": torch.ones(1, 100)})
    # what is beside the network, as a metric's state, is not its business
    path = tmp_path / "x.pt"
    torch.save({"state_dict": {f"model.{k}": v for k, v in good.items()} | {"metric.total": torch.ones(1)}}, path)
    bundle_of_file(path, experiment, tmp_path / "bundle")


def test_other_data_than_the_networks_are_refused_before_anything_runs(foreign, experiment, tmp_path):
    path = written(foreign, tmp_path, "checkpoint", kernel_length=1.5, highpass=25.0, ifos=["H1", "V1"])
    config = experiment.model_copy(update={"model": experiment.model.model_copy(update={"weights": str(path)})})
    (line,) = preflight(config)
    for words in (
        "ifos = ['H1', 'L1']: expected ['H1', 'V1']",
        "conditioning.kernel_length = 1.0: expected 1.5",
        "conditioning.highpass = 32.0",
    ):
        assert words in line
    path = written(foreign, tmp_path, "script")
    weights = config.model.model_copy(update={"weights": str(path)})
    assert preflight(config.model_copy(update={"model": weights})) == []
    small = weights.model_copy(update={"architecture": weights.architecture.model_copy(update={"width": 32})})
    (line,) = preflight(config.model_copy(update={"model": small}))
    assert line.startswith("model.weights = ") and "conv1.weight [32, 2, 7] is [64, 2, 7] in the file; set model.architecture" in line


def test_the_asset_is_a_bundle_without_metrics_and_says_so(foreign, experiment, tmp_path):
    path = written(foreign, tmp_path, "script")
    config = experiment.model_copy(update={"model": experiment.model.model_copy(update={"weights": str(path)})})
    job = Job(config, "model", None, {}, None, SimpleNamespace(), tmp_path, tmp_path, logging.getLogger("test"))
    product = make_model(job)
    assert load_bundle(product.files).architecture == config.model.architecture and product.meta["imported"] is True
    assert product.meta["weights_sha256"] == weights_identity(str(path))["sha256"]
    assert [(c.passed, c.severity) for c in product.checks] == [(False, "warn")] * 2
    with pytest.raises(WeightsError, match=r"does not say what its network is .* `aframe init RUN --weights"):
        find_bundle(str(path))


def test_ordered_dictionaries_and_halves_are_read(foreign, experiment, tmp_path):
    torch.save(collections.OrderedDict((k, v.half()) for k, v in foreign.state_dict().items()), tmp_path / "x.pt")
    bundle = load_bundle(bundle_of_file(tmp_path / "x.pt", experiment, tmp_path / "bundle"))
    assert all(p.dtype == torch.float32 for p in bundle.network.parameters())
