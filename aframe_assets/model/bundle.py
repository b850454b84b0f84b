"""A model as a folder that explains itself: weights, what goes in and comes out, how strain is conditioned, how it was made.

model.safetensors   weights
bundle.json         description; see `describe`
metrics.csv         a row per epoch
config.json         the resolved config sections that made it

Weights that were taken from a file have no metrics.csv, and no metrics.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aframe_assets.config import Architecture, Conditioning
from aframe_assets.model import own_networks
from aframe_assets.model.networks import Sky, build_network

if TYPE_CHECKING:
    from aframe_assets.config import Config

FORMAT = "aframe-bundle/1"
WEIGHTS, DESCRIPTION = "model.safetensors", "bundle.json"

_SOFTWARE = ("aframe-dagster", "torch", "lightning", "ml4gw")
"""Packages whose versions a bundle names."""


_SECTIONS = {"preset", "name", "seed", "ifos", "detectors", "sample_rate", "conditioning", "waveforms", "model"}
"""Sections of the config that decide what a network is and sees; where its data came from is in `provenance`."""


class BundleError(ValueError):
    """A model bundle that cannot be used; the message names the file, the key, the value and what was expected."""


@dataclass(frozen=True)
class Bundle:
    """A trained network and everything a consumer must know.

    Attributes:
        network: in eval mode, on the CPU; (batch, num_ifos, window_size) float32 whitened strain -> (batch, 1) logits.
        architecture: it was built from this.
        ifos: detectors in the order of the input's channels.
        sample_rate: Hz.
        conditioning: how strain must be whitened before it.
        metrics: validation metrics of the kept epoch.
        description: the whole of bundle.json.
    """

    network: torch.nn.Module
    architecture: Architecture
    ifos: list[str]
    sample_rate: float
    conditioning: Conditioning
    metrics: dict[str, float]
    description: dict[str, Any]

    @property
    def kernel_size(self) -> int:
        """Samples of the kernel."""
        return round(self.conditioning.kernel_length * self.sample_rate)

    @property
    def context(self) -> int:
        """Samples on each side of the kernel that the network sees too."""
        return round(self.architecture.context * self.sample_rate)

    @property
    def window_size(self) -> int:
        """Samples of the input: kernel and context."""
        return self.kernel_size + 2 * self.context


def describe(config: Config, metrics: Mapping[str, float], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The content of bundle.json for a network of `config`."""
    window = round((config.conditioning.kernel_length + 2 * config.model.architecture.context) * config.sample_rate)
    pairs = ["-".join(pair) for pair in combinations(config.ifos, 2)]
    return {
        "format": FORMAT,
        "name": config.name,
        "architecture": config.model.architecture.model_dump(mode="json"),
        "ifos": list(config.ifos),
        "sample_rate": config.sample_rate,
        "conditioning": config.conditioning.model_dump(mode="json"),
        "input": {
            "name": "whitened",
            "shape": ["batch", len(config.ifos), window],
            "dtype": "float32",
            "meaning": "strain of each detector in the order of ifos, whitened to unit variance as aframe_assets.strain.conditioning does",
        },
        "output": {
            "name": "logit",
            "shape": ["batch", 1],
            "dtype": "float32",
            "meaning": "log odds of a signal whose merger lies in the kernel",
        },
        "light_travel_times": dict(zip(pairs, Sky.of(config).travel_times, strict=True)),
        "placement": {
            "left_pad": config.model.training.left_pad,
            "right_pad": config.model.training.right_pad,
            "unit": "s from the kernel's edges",
        },
        "metrics": dict(metrics),
        "provenance": dict(provenance),
        "software": _software(),
        "licence": _licence(config, provenance),
        **({"network": own_networks.origin(name)} if own_networks.is_registered(name := config.model.architecture.name) else {}),
    }


def _software() -> dict[str, str]:
    out = {}
    for package in _SOFTWARE:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue
    return out


def _licence(config: Config, provenance: Mapping[str, Any]) -> str:
    if "imported_from" in provenance:
        return "of the weights: not known here, whoever made them decides; of the code: MIT"
    credit = {"simulated": "", "gwosc": "; trained on GWOSC strain: credit GWOSC, CC BY 4.0"}
    return "MIT (code and weights)" + credit.get(
        config.strain.source, "; trained on strain of files or frames: their owner decides on sharing"
    )


def save_bundle(
    folder: Path,
    network: torch.nn.Module,
    config: Config,
    *,
    metrics: Mapping[str, float],
    provenance: Mapping[str, Any],
    metrics_csv: Path | None = None,
) -> Path:
    """Write a bundle into `folder` (made if absent) and return it.

    Args:
        network: of `config.model.architecture` for `config.ifos`.
        metrics: of the kept epoch.
        provenance: how it was made.
        metrics_csv: training record to put in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(describe(config, metrics, provenance), indent=1, sort_keys=True))
    sections = config.model_dump(mode="json", include=_SECTIONS)
    (folder / "config.json").write_text(json.dumps(sections, indent=1, sort_keys=True))
    if metrics_csv:
        shutil.copyfile(metrics_csv, folder / "metrics.csv")
    return folder


def read_description(folder: Path) -> dict[str, Any]:
    """bundle.json of `folder`. Raises BundleError when it is absent, unreadable or of another format."""
    path = Path(folder) / DESCRIPTION
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise BundleError(f"{path}: not found; expected a model bundle: a folder with {DESCRIPTION} and {WEIGHTS}") from None
    except (OSError, ValueError) as e:
        raise BundleError(f"{path}: cannot be read as JSON ({e}); copy the bundle again") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        form = found.get("format") if isinstance(found, dict) else None
        raise BundleError(f"{path}: format = {form!r}: expected {FORMAT!r}")
    return found


def mismatch(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> str | None:
    """The first of the network's weights that `found` does not have as it should, or a weight that the network has not."""
    for name, tensor in expected.items():
        if name not in found:
            return f"no {name}"
        if found[name].shape != tensor.shape:
            return f"{name} {list(tensor.shape)} is {list(found[name].shape)}"
    return next((f"an unknown {name}" for name in found if name not in expected), None)


def load_bundle(folder: Path | str) -> Bundle:
    """The bundle in `folder`.

    Raises:
        BundleError: a file is missing or damaged, or the weights are not those of the architecture.
    """
    folder = Path(folder)
    d = read_description(folder)
    try:
        architecture = Architecture.model_validate(d["architecture"])
        conditioning = Conditioning.model_validate(d["conditioning"])
        network = build_network(architecture, Sky.from_description(d))
    except (KeyError, ValueError) as e:
        own = d.get("network")
        needs = f"; it was made with {own.get('package')} {own.get('package_version')}, network version {own.get('version')}" if own else ""
        raise BundleError(f"{folder / DESCRIPTION}: {e}{needs}") from None
    try:
        weights = load_file(folder / WEIGHTS)
    except FileNotFoundError:
        raise BundleError(f"{folder / WEIGHTS}: not found; the bundle is incomplete, copy it again") from None
    except (OSError, SafetensorError) as e:
        raise BundleError(f"{folder / WEIGHTS}: cannot be read ({e}); the file is damaged, copy it again") from None
    wrong = mismatch(network.state_dict(), weights)
    if wrong:
        raise BundleError(f"{folder / DESCRIPTION}: weights are not those of the architecture: {wrong} in {WEIGHTS}; copy both again")
    network.load_state_dict(weights)
    return Bundle(network.eval(), architecture, list(d["ifos"]), float(d["sample_rate"]), conditioning, dict(d["metrics"]), d)
