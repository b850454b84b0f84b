"""Weights in files of other programs: Aframe's `model.pt` and `best.ckpt`, and any state dict; nothing in a file is run.

A file that torch or Lightning wrote is a pickle, and a TorchScript file also holds a program. Both are only read: tensors and plain
values by torch's restricted reader (`weights_only`), and whatever else a file names becomes an empty object that does nothing. Of a
TorchScript file the program is not even opened. So the network must be one of this package, or one of your own.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from aframe_assets.model.bundle import mismatch, save_bundle
from aframe_assets.model.importing import WeightsError
from aframe_assets.model.networks import Sky, build_network

if TYPE_CHECKING:
    from aframe_assets.config import Config

Kind = Literal["TorchScript", "checkpoint", "safetensors"]

_PROGRAM = "constants.pkl"
"""Member of a TorchScript archive that no other archive of torch has."""

_TRAINED_WITH = {
    "conditioning": ("kernel_length", "fduration", "highpass", "lowpass"),
    "model.training": ("left_pad", "right_pad"),
}
"""Settings that Aframe's checkpoints tell by the same names. The PSD's length is not among them: Aframe trains with 8 s and searches
with 64 s, and its fftlength, 2.5 s if not set, may be longer than any here."""


@dataclass(frozen=True)
class WeightFile:
    """What a file says.

    Attributes:
        path: of the file.
        kind: what wrote it.
        weights: tensors by name, as in the file.
        settings: plain values that a Lightning checkpoint keeps of the model and its data; empty of other kinds.
    """

    path: Path
    kind: Kind
    weights: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)


class _Inert:
    """Stands for every object of a class that is not torch's; holds its state and does nothing."""

    def __init__(self, *args: object, **more: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


@contextmanager
def _without_foreign_classes(data: io.BytesIO) -> Iterator[None]:
    """Lets torch's restricted reader take `_Inert` for each class that `data` names and torch does not vouch for."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(data)
    data.seek(0)
    with torch.serialization.safe_globals([(_Inert, name) for name in names]):
        yield


def _reason(error: Exception) -> str:
    """The line of `error` that says what is wrong with the file. torch puts it below advice to load the file without its restrictions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if line.startswith(("Trying to", "Unsupported", "WeightsUnpickler"))), lines[0]).split(" Please")[0]


def read_weight_file(path: Path | str, key: str = "model.weights") -> WeightFile:
    """The tensors in `path`, a file by torch.save, Lightning, torch.jit.save or safetensors; nothing in it is run.

    Args:
        path: of the file.
        key: of the experiment, for the errors.

    Raises:
        WeightsError: it is none of these, it is damaged, or it has no floating-point tensor.
    """
    path = Path(path)
    said = f"{key} = {path}"
    try:
        if zipfile.is_zipfile(path):
            found = _read_archive(path)
        else:
            found = WeightFile(path, "safetensors", load_file(path))
    except OSError as e:
        raise WeightsError(f"{said}: cannot be read ({e.strerror or e})") from None
    except SafetensorError:
        raise WeightsError(
            f"{said}: neither an archive of torch nor safetensors, or damaged; expected Aframe's model.pt or best.ckpt, a state dict by "
            "torch.save, or safetensors; copy it again, or save it anew with a torch from 1.6 on"
        ) from None
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError, KeyError) as e:
        why = _reason(e)
        raise WeightsError(
            f"{said}: cannot be read without running what is in it, or is damaged ({why}); expected tensors by name, as torch.save of a "
            "network's state_dict() writes them"
        ) from None
    weights = {name: w for name, w in found.weights.items() if w.is_floating_point()}
    if not weights:
        raise WeightsError(f"{said}: has no weights; expected tensors by name, as torch.save of a network's state_dict() writes them")
    broken = next((name for name, w in weights.items() if not bool(torch.isfinite(w).all())), None)
    if broken:
        raise WeightsError(f"{said}: {broken} is not finite; that training went wrong, take an earlier checkpoint")
    return found


def _read_archive(path: Path) -> WeightFile:
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: name for name in archive.namelist()}
        script = _PROGRAM in members
        data = io.BytesIO(_tensors_alone(archive, members) if script else path.read_bytes())
    with _without_foreign_classes(data):
        found = torch.load(data, map_location="cpu", weights_only=True)
    if script:
        return WeightFile(path, "TorchScript", dict(_tensors_of(found, "")))
    if not isinstance(found, Mapping):
        raise ValueError(f"holds {type(found).__name__}, not tensors by name")
    state = found.get("state_dict", found)
    weights = {str(name): w for name, w in state.items() if isinstance(w, Tensor)}
    settings: dict[str, Any] = {}
    for part in ("datamodule_hyper_parameters", "hyper_parameters"):
        settings |= {k: v for k, v in dict(found.get(part, {})).items() if _is_plain(v)}
    return WeightFile(path, "checkpoint", weights, settings)


def _tensors_alone(archive: zipfile.ZipFile, members: Mapping[str, str]) -> bytes:
    """A TorchScript archive without its program, which makes it one that torch.save could have written."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as copy:
        for name, full in members.items():
            if name in ("data.pkl", "version", "byteorder") or name.startswith("data/"):
                copy.writestr(f"archive/{name}", archive.read(full))
    return out.getvalue()


def _tensors_of(found: object, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module's state and of the modules in it, by their dotted names."""
    if isinstance(found, Tensor):
        yield name, found
    elif isinstance(found, _Inert) and isinstance(found.state, Mapping):
        for inner, value in found.state.items():
            yield from _tensors_of(value, f"{name}.{inner}" if name else str(inner))


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def weights_for(file: WeightFile, network: torch.nn.Module, key: str = "model.weights") -> dict[str, Tensor]:
    """The weights of `file` by the names of `network`, whatever prefix the file puts before them (as ``model.``).

    Raises:
        WeightsError: a weight is missing or too much, or has another shape; names it.
    """
    wanted = network.state_dict()
    first = next(iter(wanted))
    prefixes = {name.removesuffix(first) for name in file.weights if name == first or name.endswith(f".{first}")} or {""}

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): w for name, w in file.weights.items() if name.startswith(prefix)}

    best = max(sorted(prefixes), key=lambda prefix: len(wanted.keys() & under(prefix).keys()))
    found = under(best)
    wrong = mismatch(wanted, found)
    if wrong:
        raise WeightsError(
            f"{key} = {file.path}: weights are not those of model.architecture: {wrong} in the file"
            f"{f', under {best!r}' if best else ''}; set model.architecture to the network that was trained"
        )
    return {name: w.detach().to(wanted[name].dtype).clone() for name, w in found.items()}


def settings_of_file(file: WeightFile) -> dict[str, Any]:
    """What the file tells of the experiment that its network needs, as a tree of the experiment file.

    The sizes of Aframe's ResNet and of ml4gw's `S4Model` follow from the shapes of their weights; strides and groups of norms do not,
    and are taken to be Aframe's. Other networks are not recognised: their architecture is the experiment's.
    """
    out: dict[str, Any] = {}
    architecture, ifos = _resnet(file.weights) or _s4(file.weights) or ({}, 0)
    if architecture:
        out["model"] = {"architecture": architecture}
    told = file.settings
    if isinstance(told.get("ifos"), list | tuple) and told["ifos"]:
        out["ifos"] = list(told["ifos"])
    elif ifos:
        out["num_ifos"] = ifos
    if isinstance(told.get("sample_rate"), int | float):
        out["sample_rate"] = float(told["sample_rate"])
    for section, names in _TRAINED_WITH.items():
        values = {name: float(told[name]) for name in names if isinstance(told.get(name), int | float)}
        node = out
        for part in section.split(".") if values else ():
            node = node.setdefault(part, {})
        node |= values
    return out


def _resnet(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], int] | None:
    """Architecture and number of detectors if these are the weights of Aframe's ResNet with group norms."""
    marker = "residual_layers.0.0.conv1.weight"
    prefix = next((name.removesuffix(marker) for name in weights if name.endswith(marker)), None)
    stem = weights.get(f"{prefix}conv1.weight")
    if prefix is None or stem is None or stem.ndim != 3 or f"{prefix}bn1.running_mean" in weights:
        return None
    blocks = {tuple(name.removeprefix(f"{prefix}residual_layers.").split(".")[:2]) for name in weights if name.startswith(f"{prefix}resid")}
    layers = [sum(stage == str(i) for stage, _ in blocks) for i in range(len({stage for stage, _ in blocks}))]
    width, last = stem.shape[0], weights.get(f"{prefix}fc.weight")
    pooled = last.shape[1] // (width * 2 ** (len(layers) - 1)) if last is not None else 1
    return {
        "name": "resnet",
        "layers": layers,
        "width": width,
        "kernel_size": weights[f"{prefix}{marker}"].shape[-1],
        "stem_kernel": stem.shape[2],
        "stem_stride": 2,
        "pooling": "mean_max" if pooled == 2 else "mean",
        "context": 0.0,
    }, stem.shape[1]


def _s4(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], int] | None:
    """As `_resnet`, of ml4gw's `S4Model`."""
    marker = "s4_layers.0.kernel.C"
    prefix = next((name.removesuffix(marker) for name in weights if name.endswith(marker)), None)
    encoder = weights.get(f"{prefix}encoder.weight")
    if prefix is None or encoder is None or f"{prefix}stem.weight" in weights:
        return None
    depth = len({name.split("s4_layers.")[1].split(".")[0] for name in weights if name.startswith(f"{prefix}s4_layers.")})
    state = {"state": 2 * weights[f"{prefix}{marker}"].shape[1]}
    return {"name": "s4", "layers": [depth], "width": encoder.shape[0], "s4": state, "stem_stride": 1, "context": 0.0}, encoder.shape[1]


def disagreements_of_file(file: WeightFile, config: Config) -> list[str]:
    """A line for each setting that the file tells and `config` has otherwise, architecture aside; empty when it may be used."""
    told = settings_of_file(file)
    lines = []
    if told.get("num_ifos", len(config.ifos)) != len(config.ifos):
        lines.append(f"ifos = {config.ifos}: expected {told['num_ifos']} detectors, which the imported network was trained with")
    told.get("model", {}).pop("architecture", None)
    wanted = {"ifos": list(config.ifos), "sample_rate": config.sample_rate}
    wanted |= {f"conditioning.{k}": v for k, v in config.conditioning} | {f"model.training.{k}": v for k, v in config.model.training}
    found = {k: told[k] for k in ("ifos", "sample_rate") if k in told}
    found |= {f"conditioning.{k}": v for k, v in told.get("conditioning", {}).items()}
    found |= {f"model.training.{k}": v for k, v in told.get("model", {}).get("training", {}).items()}
    lines += [f"{k} = {wanted[k]}: expected {v}, which the imported network was trained with" for k, v in found.items() if wanted[k] != v]
    return lines


def network_of_file(file: WeightFile, config: Config, key: str = "model.weights") -> torch.nn.Module:
    """The network of `config.model.architecture` with the weights of `file`, in eval mode.

    Raises:
        WeightsError: the weights are another network's, or were trained for other data than the experiment's.
    """
    lines = disagreements_of_file(file, config)
    if lines:
        raise WeightsError("\n".join([f"{key} = {file.path}: made for other data than this experiment's:", *lines]))
    network = build_network(config.model.architecture, Sky.of(config))
    network.load_state_dict(weights_for(file, network, key))
    return network.eval()


def bundle_of_file(path: Path | str, config: Config, folder: Path, key: str = "model.weights") -> Path:
    """Write a bundle into `folder` from the weights in `path`, and return the folder.

    What the file does not tell is the experiment's: architecture, conditioning, detectors. It has no metrics.

    Raises:
        WeightsError: as `read_weight_file` and `network_of_file`.
    """
    file = read_weight_file(path, key)
    network = network_of_file(file, config, key)
    source = {"file": file.path.name, "kind": file.kind, "sha256": hashlib.sha256(file.path.read_bytes()).hexdigest()}
    return save_bundle(folder, network, config, metrics={}, provenance={"imported_from": source | {"settings": file.settings}})
