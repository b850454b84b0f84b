"""A network of another package: the documentation's example from experiment to engine, and what a bad one is told."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from doc_pages import Page

from aframe_assets.config_load import ConfigError, build_config, resolved_text
from aframe_assets.engine.build import build_engine
from aframe_assets.engine.engine import load_engine
from aframe_assets.engine.export import export
from aframe_assets.engine.parity import probes
from aframe_assets.engine.signature import Signature
from aframe_assets.model import own_networks
from aframe_assets.model.bundle import BundleError, load_bundle, save_bundle
from aframe_assets.model.networks import Sky, build_network
from aframe_assets.preflight import preflight
from aframe_assets.store.workspace import Workspace

PAGE = Page.read(Path(__file__).resolve().parents[2] / "docs" / "networks.md")

MORE = '''
import torch
from torch import nn


class Frames(nn.Module):
    """Follows FrameNetwork: means of squares over 16 samples."""

    stride = total_stride = 16

    def __init__(self, sky, context):
        super().__init__()
        self.context, self.fc = context, nn.Linear(sky.num_ifos, 1)

    def frames(self, x):
        crop = self.context // 16
        z = nn.functional.avg_pool1d(x.square(), 16)
        return z[..., crop : z.shape[-1] - crop]

    def slide(self, frames, size, hop):
        return self.fc(nn.functional.avg_pool1d(frames, size, hop).transpose(1, 2))[..., 0]

    def forward(self, x):
        z = self.frames(x)
        return self.slide(z, z.shape[-1], 1)


class Shared(OwnNetwork):
    def total_stride(self):
        return 16

    def least_context(self, sample_rate, travel_time):
        return 32

    def build(self, sky, context):
        return Frames(sky, context)


class Liar(Shared):
    def total_stride(self):
        return 32


class Normed(Shared):
    def build(self, sky, context):
        class Net(Frames):
            def frames(self, x):
                return super().frames(x - x.mean(-1, keepdim=True) + x.amax(-1, keepdim=True))

        return Net(sky, context)


class Sliding(Shared):
    def build(self, sky, context):
        class Net(Frames):
            def slide(self, frames, size, hop):
                return super().slide(frames, size, hop) * (2 if frames.shape[-1] > size else 1)

        return Net(sky, context)


class Bare(OwnNetwork):
    pass


class Wordless(OwnNetwork):
    def build(self, sky, context):
        return "a network"


class Vector(OwnNetwork):
    def build(self, sky, context):
        return nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten())


class Idle(OwnNetwork):
    def build(self, sky, context):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc, self.spare = nn.Linear(sky.num_ifos, 1), nn.Linear(2, 2)

            def forward(self, x):
                return self.fc(x.mean(-1))

        return Net()


class Loop(OwnNetwork):
    def build(self, sky, context):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(sky.num_ifos, 1)

            def forward(self, x):
                return self.fc(x.mean(-1)) * (2 if float(x.mean()) > 0 else 1)

        return Net()
'''
NAMES = ("Bare", "Normed", "Shared", "Sliding", "Liar", "Wordless", "Vector", "Idle", "Loop")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function that installs the page's package and more in a folder of its own, and gives the folder; they are gone after the test."""
    blocks = [b.text for b in PAGE.blocks]
    code = next(text for text in blocks if text.startswith("# runs/my_networks.py"))
    project = tomllib.loads(next(text for text in blocks if text.startswith("[project]")))["project"]
    entries = dict(project["entry-points"][own_networks.GROUP]) | {name.lower(): f"my_networks:{name}" for name in NAMES}
    entries |= {"missing": "my_networks:Nothing", "function": "my_networks:Field", "resnet": "my_networks:Wide"}

    def install(change=lambda text: text) -> Path:
        folder = tmp_path / "site"
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (folder / "my_networks.py").write_text(change(code + MORE))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
        (info / "entry_points.txt").write_text(f"[{own_networks.GROUP}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()))
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a second version may be as long as the first and of the same second
        sys.modules.pop("my_networks", None)
        importlib.invalidate_caches()
        own_networks._load.cache_clear()
        return folder

    yield install
    sys.modules.pop("my_networks", None)
    own_networks._load.cache_clear()


def asked(tiny_config, **architecture):
    """The tiny experiment with another architecture, checked as a whole."""
    values = json.loads(resolved_text(tiny_config(max_epochs=1)))
    values["model"]["architecture"] = architecture
    return build_config(values)


def test_the_pages_network_is_trained_exported_and_searched_with(package, tiny_config, tiny_data, tmp_path):
    package()
    config = asked(tiny_config, name="wide", settings={"width": 8})
    assert config.model.architecture.settings == {"width": 8, "kernel": 63} and preflight(config) == []
    done = tiny_data.train(config, tmp_path / "work")
    folder = save_bundle(tmp_path / "bundle", done.network, config, metrics=done.metrics, provenance={})
    bundle = load_bundle(folder)
    wanted = {"entry_point": "my_networks:Wide", "package": "my-networks", "package_version": "0.1", "version": "1"}
    assert bundle.description["network"] == wanted and bundle.description["software"]["torch"]
    export(bundle.network, Signature.of_bundle(bundle), folder)
    (tmp_path / "engine").mkdir()
    assert build_engine(folder, tmp_path / "engine", "onnxruntime", device="cpu")["parity"]["passed"]
    windows = probes(2, bundle.window_size, bundle.sample_rate, 5)
    with torch.no_grad():
        expected = bundle.network(torch.from_numpy(windows))[:, 0].numpy()
    assert np.allclose(load_engine(tmp_path / "engine").score_windows(windows), expected, atol=1e-5)


def test_frames_of_a_network_of_your_own_are_shared_by_windows(package, tiny_config):
    package()
    config = asked(tiny_config, name="shared", context=0.0625)
    assert preflight(config) == []
    network = build_network(config.model.architecture, Sky.of(config))
    signature = Signature.of(config.ifos, config.sample_rate, config.conditioning, network, 4.0)
    assert (signature.form, signature.total_stride, signature.context, signature.window) == ("frames", 16, 32, 512 + 64)
    with pytest.raises(ConfigError, match=r"architecture\.context = 0\.03125: expected at least 0\.0625 s, a multiple of 16 samples"):
        asked(tiny_config, name="shared", context=0.03125)
    with pytest.raises(ConfigError, match=r"model\.architecture\.context = 0\.5: expected 0: 'wide' takes windows one by one"):
        asked(tiny_config, name="wide", context=0.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 0}, "width = 0: Input should be greater than or equal to 1"),
        ({"widht": 3}, "widht = 3: Extra inputs are not permitted; expected some of width, kernel"),
        ({"kernel": "wide"}, "kernel = 'wide': Input should be a valid integer"),
    ],
)
def test_its_settings_are_checked_when_the_experiment_is_read(package, tiny_config, settings, said):
    package()
    with pytest.raises(ConfigError) as e:
        asked(tiny_config, name="wide", settings=settings)
    assert "model.architecture.settings = " in str(e.value) and said in str(e.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "entry point missing = my_networks:Nothing of aframe.networks: cannot be imported"),
        ("function", "expected a subclass of aframe_assets.model.own_networks.OwnNetwork"),
        ("absent", "expected one of resnet, streaming, map, wavenet, s4, bare, function, idle, liar"),
        ("bare", "my_networks.Bare: cannot be made (TypeError: Can't instantiate abstract class Bare"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_named(package, tiny_config, name, said):
    package()
    with pytest.raises(ConfigError) as e:
        asked(tiny_config, name=name)
    assert said in str(e.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wordless", "build gave str; expected a torch.nn.Module"),
        ("liar", "its module has frames of total stride 16, and total_stride() says 32"),
        ("normed", "frames of a window are not those of a longer stretch"),
        ("sliding", "slide() gives"),
        ("vector", "maps (2, 2, 512) to (2, 2); expected a finite logit each, (2, 1)"),
        ("idle", "no logit depends on spare.weight, which cannot be trained"),
        ("loop", "cannot be exported with any batch, so no engine could run it"),
    ],
)
def test_a_network_that_could_not_be_used_is_refused_before_it_is_trained(package, tiny_config, name, said):
    package()
    (line,) = preflight(asked(tiny_config, name=name, context=0.0625 if name in ("liar", "normed", "sliding") else 0))
    assert line.startswith("model.architecture.name: ") and said in line


def test_a_name_that_two_packages_register_is_nobodys(package, tiny_config, tmp_path, monkeypatch):
    package()
    info = tmp_path / "second" / "other_networks-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-networks\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(f"[{own_networks.GROUP}]\nwide = other_networks:Wide\n")
    monkeypatch.syspath_prepend(str(tmp_path / "second"))
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=r"by my_networks:Wide \(my-networks\) and other_networks:Wide \(other-networks\)"):
        asked(tiny_config, name="wide")


def test_a_name_of_this_package_is_not_given_away(package):
    package()
    assert "resnet" in own_networks.BUILT_IN and not own_networks.is_registered("resnet")


def test_settings_and_version_are_part_of_the_models_key(package, tiny_config, published):
    package()

    def key(**settings) -> str:
        config = asked(tiny_config, name="wide", settings=settings)
        return Workspace(config, published(config)[0]).wanted("model").parts.key

    first = key()
    assert key() == first == key(width=32) != key(width=31)
    package(lambda text: text.replace('version = "1"', 'version = "2"'))
    assert key() != first


def test_a_bundle_without_its_package_says_what_is_missing(package, tiny_config, tmp_path, monkeypatch):
    folder = package()
    config = asked(tiny_config, name="wide")
    save_bundle(tmp_path / "bundle", build_network(config.model.architecture, Sky.of(config)), config, metrics={}, provenance={})
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(folder)])
    importlib.invalidate_caches()
    with pytest.raises(BundleError, match=r"wide: expected one of resnet, .*; it was made with my-networks 0\.1, network version 1"):
        load_bundle(tmp_path / "bundle")


def test_reading_such_an_experiment_loads_no_torch(package, tiny_config):
    folder = package(lambda text: text.partition("\nimport torch")[0])
    code = (
        "import sys; from aframe_assets.config_load import build_config; "
        "c = build_config({'preset': 'demo', 'model': {'architecture': {'name': 'wide'}}}); "
        "print(c.model.architecture.settings); sys.exit('torch' in sys.modules)"
    )
    path = [str(folder), *(p for p in sys.path if p)]
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "{'width': 32, 'kernel': 63}", done.stderr
