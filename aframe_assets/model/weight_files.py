"""Weights in files of other programs: Aframe's `model.pt` and `best.ckpt`, and any state dict; nothing in a file is run.

A file that torch or Lightning wrote is a pickle, and a TorchScript file also holds a program. Both are only read: tensors and plain
values by torch's restricted reader (`weights_only`), and whatever else a file names becomes an empty object that does nothing. Of a
TorchScript file the program is not even opened. So the network must be one of this package, or one of your own. Nor can a small file
fill the memory: what is read of it is never larger than it is.
"""

from __future__ import annotations

import io
import math
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
from aframe_assets.store.files import file_sha256

if TYPE_CHECKING:
    from aframe_assets.config import Config

Kind = Literal["TorchScript", "checkpoint", "safetensors"]

_PROGRAM = "constants.pkl"
"""Member of a TorchScript archive that no other archive of torch has."""

_READ = ("data.pkl", "version", "byteorder")
"""Members of an archive, beside those in data/, that torch reads tensors from."""

_MOST_PARTS = 100_000
"""Modules and attributes of a TorchScript file; ten times those of networks of a thousand layers."""

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
        settings: plain short values that a Lightning checkpoint keeps of the model and its data; empty of other kinds.
    """

    path: Path
    kind: Kind
    weights: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)


class _Inert:
    """Stands for every object of a class that is not torch's; holds its state and does nothing."""

    state: object = None  # some are made without a call of __init__

    def __init__(self, *args: object, **more: object) -> None:
        pass

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
        WeightsError: it is none of these, it is damaged, it would be larger in memory than it is, or it has no floating-point tensor.
    """
    path = Path(path)
    said = f"{key} = {path}"
    try:
        found = _read_archive(path) if zipfile.is_zipfile(path) else WeightFile(path, "safetensors", load_file(path))
        _require_held(found.weights, path.stat().st_size)
    except OSError as e:
        raise WeightsError(f"{said}: cannot be read ({e.strerror or e})") from None
    except SafetensorError:
        raise WeightsError(
            f"{said}: neither an archive of torch nor safetensors, or damaged; expected Aframe's model.pt or best.ckpt, a state dict by "
            "torch.save, or safetensors; copy it again, or save it anew with a torch from 1.6 on"
        ) from None
    except Exception as e:  # a pickle that is damaged, or made to do harm, raises anything
        why = _reason(e)
        raise WeightsError(
            f"{said}: cannot be read without running what is in it, or is damaged ({why}); expected tensors by name, as torch.save of a "
            "network's state_dict() writes them"
        ) from None
    weights = {name: w for name, w in found.weights.items() if w.is_floating_point()}
    if not weights:
        raise WeightsError(f"{said}: has no weights; expected tensors by name, as torch.save of a network's state_dict() writes them")
    # as the network will have it
    broken = next((name for name, w in weights.items() if not bool(torch.isfinite(w.float()).all())), None)
    if broken:
        raise WeightsError(f"{said}: {broken} is not finite; that training went wrong, take an earlier checkpoint")
    return found


def _require_held(weights: Mapping[str, Tensor], size: int) -> None:
    """Refuse tensors whose values are not in a file of `size` bytes, as one number repeated a thousand million times."""
    for name, w in weights.items():
        if w.layout != torch.strided or w.is_meta or w.nbytes > size:
            raise ValueError(f"{name} {list(w.shape)} does not have its values in the file, one by one")


def _read_archive(path: Path) -> WeightFile:
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2]: name for name in archive.namelist()}
        script = _PROGRAM in members
        # a program is compressed, and not read
        read = [m for m in archive.infolist() if not script or _is_read(m.filename.partition("/")[2])]
        # compressed, or with bytes in common, they could be a thousand times the file
        if any(m.compress_type != zipfile.ZIP_STORED for m in read) or sum(m.file_size for m in read) > path.stat().st_size:
            raise ValueError("its members are compressed or overlap, and torch writes none such")
        data = io.BytesIO(_tensors_alone(archive, members) if script else path.read_bytes())
    with _without_foreign_classes(data):
        found = torch.load(data, map_location="cpu", weights_only=True)
    if script:
        return WeightFile(path, "TorchScript", _tensors_of(found))
    if not isinstance(found, Mapping):
        raise ValueError(f"holds {type(found).__name__}, not tensors by name")
    state = found.get("state_dict", found)
    if not isinstance(state, Mapping):
        raise ValueError(f"its state_dict is {type(state).__name__}, not tensors by name")
    weights = {str(name): w for name, w in state.items() if isinstance(w, Tensor)}
    settings: dict[str, Any] = {}
    for part in ("datamodule_hyper_parameters", "hyper_parameters"):
        kept = found.get(part)
        settings |= {str(k): v for k, v in kept.items() if _is_plain(v)} if isinstance(kept, Mapping) else {}
    return WeightFile(path, "checkpoint", weights, settings)


def _is_read(name: str) -> bool:
    return name in _READ or name.startswith("data/")


def _tensors_alone(archive: zipfile.ZipFile, members: Mapping[str, str]) -> bytes:
    """A TorchScript archive without its program, which makes it one that torch.save could have written."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as copy:
        for name, full in members.items():
            if _is_read(name):
                copy.writestr(f"archive/{name}", archive.read(full))
    return out.getvalue()


def _tensors_of(found: object) -> dict[str, Tensor]:
    """The tensors of a module's state and of the modules in it, by their dotted names."""
    out: dict[str, Tensor] = {}
    left = [("", found)]
    # a module that is in itself, or in two others that are in two others and so on, has no end
    for _ in range(_MOST_PARTS):
        if not left:
            return out
        name, value = left.pop()
        if isinstance(value, Tensor):
            out[name] = value
        elif isinstance(value, _Inert) and isinstance(value.state, Mapping):
            left += [(f"{name}.{inner}" if name else str(inner), part) for inner, part in value.state.items()]
    raise ValueError(f"has more than {_MOST_PARTS} modules and attributes")


def _is_plain(value: object) -> bool:
    """A number, a short text, or a short list of them: a list of lists may be without end, and all of it goes into a bundle."""
    if isinstance(value, list | tuple):
        return len(value) <= 64 and not any(isinstance(v, list | tuple) for v in value) and all(map(_is_plain, value))
    if isinstance(value, str):
        return len(value) <= 256
    return value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


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

    whole = [prefix for prefix in sorted(prefixes) if mismatch(wanted, under(prefix)) is None]
    for other in whole[1:]:
        if not all(torch.equal(w, under(whole[0])[name]) for name, w in under(other).items()):
            raise WeightsError(
                f"{key} = {file.path}: has the network twice with different weights, under {whole[0]!r} and {other!r} (as an average of "
                "weights beside them); save the state_dict() of the one that is meant"
            )
    best = whole[0] if whole else max(sorted(prefixes), key=lambda prefix: len(wanted.keys() & under(prefix).keys()))
    found = under(best)
    wrong = mismatch(wanted, found)
    if not wrong:
        kinds = ((name, w.dtype) for name, w in found.items() if w.is_floating_point() != wanted[name].is_floating_point())
        wrong = next((f"{name} is {dtype}" for name, dtype in kinds), None)
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
        values: dict[str, float | None] = {name: float(told[name]) for name in names if isinstance(told.get(name), int | float)}
        # not to be told and to be told that there is none are two things
        if "lowpass" in names and "lowpass" in told and told["lowpass"] is None:
            values["lowpass"] = None
        node = out
        for part in section.split(".") if values else ():
            node = node.setdefault(part, {})
        node |= values
    return out


def _resnet(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], int] | None:
    """Architecture and number of detectors if these are the weights of Aframe's ResNet with group norms."""
    marker = "residual_layers.0.0.conv1.weight"
    prefix = next((name.removesuffix(marker) for name, w in weights.items() if name.endswith(marker) and w.ndim == 3), None)
    stem = weights.get(f"{prefix}conv1.weight")
    if prefix is None or stem is None or stem.ndim != 3 or not stem.numel() or f"{prefix}bn1.running_mean" in weights:
        return None
    blocks = {tuple(name.removeprefix(f"{prefix}residual_layers.").split(".")[:2]) for name in weights if name.startswith(f"{prefix}resid")}
    layers = [sum(stage == str(i) for stage, _ in blocks) for i in range(len({stage for stage, _ in blocks}))]
    width, last = stem.shape[0], weights.get(f"{prefix}fc.weight")
    pooled = last.shape[-1] // (width * 2 ** (len(layers) - 1)) if last is not None and last.ndim else 1
    return {
        "name": "resnet",
        "layers": layers,
        "width": width,
        "kernel_size": weights[f"{prefix}{marker}"].shape[-1],
        "norm_groups": 16,
        "stem_kernel": stem.shape[2],
        "stem_stride": 2,
        "pooling": "mean_max" if pooled == 2 else "mean",
        "context": 0.0,
    }, stem.shape[1]


def _s4(weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], int] | None:
    """As `_resnet`, of ml4gw's `S4Model`."""
    marker = "s4_layers.0.kernel.C"
    prefix = next((name.removesuffix(marker) for name, w in weights.items() if name.endswith(marker) and w.ndim == 3), None)
    encoder, decoder = weights.get(f"{prefix}encoder.weight"), weights.get(f"{prefix}decoder.weight")
    if prefix is None or encoder is None or encoder.ndim != 2 or f"{prefix}stem.weight" in weights:
        return None
    depth = len({name.split("s4_layers.")[1].split(".")[0] for name in weights if name.startswith(f"{prefix}s4_layers.")})
    width, num_ifos = encoder.shape
    doubled = decoder is not None and decoder.shape[-1:] == (2 * width,)
    return {
        "name": "s4",
        "layers": [depth],
        "width": width,
        "s4": {"state": 2 * weights[f"{prefix}{marker}"].shape[1]},
        "stem_stride": 1,
        "pooling": "mean_max" if doubled else "mean",
        "context": 0.0,
    }, num_ifos


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
    source = {"file": file.path.name, "kind": file.kind, "sha256": file_sha256(file.path)}
    return save_bundle(folder, network, config, metrics={}, provenance={"imported_from": source | {"settings": file.settings}})
