"""Taking a model from a bundle, from another run, from a file of weights, or from this package instead of training one.

Imports no torch: planning asks here too.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.handle import Handle

PRETRAINED = "pretrained"
"""The value of ``model.weights`` that means the bundle of this package."""

BACKGROUND_SCORES = "background_scores.npz"
"""How the network scores slid background, from which a cascade's thresholds are found (`aframe_assets.model.background_scores`)."""

BUNDLE_FILES = ("model.safetensors", "bundle.json", "config.json", "metrics.csv", BACKGROUND_SCORES)
"""Files of a bundle; the last three may be absent."""

KEYS = {"model": ("model.weights", "model.architecture"), "filter_model": ("model.filter_weights", "model.filter")}
"""Keys of a network's weights and architecture, by its asset."""

_AGREE = ("kernel_length", "psd_length", "fduration", "fftlength", "highpass", "lowpass")
"""Conditioning that a network was trained on and must be given again."""


class WeightsError(ValueError):
    """``model.weights`` that cannot be used; the message names the key, its value and what was expected."""


def shipped_folder() -> Path:
    """Where the bundle of this package is, if it has one."""
    return Path(str(resources.files("aframe_assets.model"))) / PRETRAINED


def is_shipped() -> bool:
    """Whether this package has a bundle."""
    return (shipped_folder() / "bundle.json").is_file()


def _run_store(run: Path, key: str) -> str:
    """URL or path of the store of run directory `run`."""
    site = run / "site.yaml"
    root: Any = None
    if site.is_file():
        try:
            data = yaml.safe_load(site.read_text()) or {}
        except yaml.YAMLError as e:
            raise WeightsError(f"{key} = {run}: its site.yaml is not YAML: {e}") from None
        root = (data.get("store") or {}).get("training") or (data.get("store") or {}).get("root")
    if root and ("://" in str(root) or Path(root).is_absolute()):
        return str(root)
    return str(run / (root or "store"))


def _of_run(run: Path, asset: str) -> tuple[Any, Handle]:
    from aframe_assets.store import open_store

    key = KEYS[asset][0]
    url = _run_store(run, key)
    store = open_store(url)
    manifest = store.manifest(asset)
    if manifest is None:
        raise WeightsError(
            f"{key} = {run}: a run directory whose store {url} holds no {asset} yet; run `aframe run {run} --until {asset}` first"
        )
    if manifest.status != "ok" or manifest.handle is None:
        raise WeightsError(
            f"{key} = {run}: the {asset} of that run failed ({manifest.error}); run `aframe run {run} --until {asset}` again"
        )
    return store, manifest.handle


def is_weight_file(weights: str | None) -> bool:
    """Whether `weights` name a file of weights alone (`aframe_assets.model.weight_files`), not a bundle or a run."""
    return bool(weights) and weights != PRETRAINED and Path(weights).expanduser().is_file()


def _folder(weights: str, asset: str) -> tuple[Path, bool]:
    """The folder of `weights`, and whether it is a bundle (else a run directory)."""
    key = KEYS[asset][0]
    if weights == PRETRAINED:
        if not is_shipped() or asset != "model":
            raise WeightsError(
                f"{key} = pretrained: no such weights are shipped with this version; expected a bundle folder or a run directory"
            )
        return shipped_folder(), True
    path = Path(weights).expanduser()
    if not path.exists():
        raise WeightsError(
            f"{key} = {weights}: not found; expected a bundle folder (with bundle.json), a run directory (with aframe.yaml) or a file "
            "of weights"
        )
    if path.is_file():
        raise WeightsError(
            f"{key} = {weights}: a file of weights does not say what its network is and what it was trained on; make a run directory with "
            f"`aframe init RUN --weights {weights}` and `aframe run RUN --until model`, and use that"
        )
    if (path / "bundle.json").is_file():
        return path, True
    if (path / "site.yaml").is_file() or (path / "store").is_dir():
        return path, False
    raise WeightsError(f"{key} = {weights}: neither a bundle folder (no bundle.json) nor a run directory (no site.yaml, no store)")


def find_bundle(weights: str, asset: str = "model") -> Path:
    """The bundle folder that `weights` (a bundle folder, a run directory or 'pretrained') means, fetched if its store is remote.

    Raises:
        WeightsError: there is none.
    """
    path, is_bundle = _folder(weights, asset)
    if is_bundle:
        return path
    store, handle = _of_run(path, asset)
    return store.open_local(handle)


def weights_identity(weights: str, asset: str = "model") -> dict[str, str]:
    """What decides whether `weights` are the same as before: ``{"key", "sha256"}`` of the model's artifact or files.

    Raises:
        WeightsError: as `find_bundle`.
    """
    from aframe_assets.store.files import file_sha256

    if is_weight_file(weights):
        content = file_sha256(Path(weights).expanduser())
        return {"key": content, "sha256": content}
    path, is_bundle = _folder(weights, asset)
    if not is_bundle:
        return dict(_of_run(path, asset)[1].identity)
    digest = hashlib.sha256()
    for name in ("bundle.json", "model.safetensors"):
        file = path / name
        if not file.is_file():
            raise WeightsError(f"{KEYS[asset][0]} = {weights}: {file} not found; the bundle is incomplete, copy it again")
        digest.update(bytes.fromhex(file_sha256(file)))
    if (path / BACKGROUND_SCORES).is_file():
        digest.update(bytes.fromhex(file_sha256(path / BACKGROUND_SCORES)))
    return {"key": digest.hexdigest(), "sha256": digest.hexdigest()}


def require_scores(weights: str, asset: str) -> None:
    """Refuse `weights` of a cascade's network whose bundle does not tell how it scores background.

    Raises:
        WeightsError: as `find_bundle`, or there are no such scores.
    """
    path, is_bundle = _folder(weights, asset)
    files = [p.name for p in path.iterdir()] if is_bundle else [f.name for f in _of_run(path, asset)[1].files]
    if BACKGROUND_SCORES not in files:
        raise WeightsError(
            f"{KEYS[asset][0]} = {weights}: its bundle has no {BACKGROUND_SCORES}, which sets a cascade's thresholds; expected what a "
            "training of a 'streaming' or 'map' network gives here (shipped weights are too small a folder for it): train it, or take "
            "away model.filter"
        )


def read_weights(weights: str) -> dict[str, Any]:
    """bundle.json of the model that `weights` mean.

    Raises:
        WeightsError: there is no model, or its description cannot be read.
    """
    return _description(find_bundle(weights), weights, "model")


def _description(folder: Path, weights: str | None, asset: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / "bundle.json").read_text())
    except (OSError, ValueError) as e:
        raise WeightsError(f"{KEYS[asset][0]} = {weights}: {folder / 'bundle.json'} cannot be read ({e})") from None
    if not isinstance(found, dict) or not {"ifos", "sample_rate", "conditioning", "architecture"} <= set(found):
        raise WeightsError(f"{KEYS[asset][0]} = {weights}: {folder / 'bundle.json'} does not describe a model; copy the bundle again")
    return found


def settings_of(description: dict[str, Any]) -> dict[str, Any]:
    """The settings with which an experiment can use the model of a bundle's `description`, as a tree of the experiment file."""
    return {
        "ifos": list(description["ifos"]),
        "sample_rate": description["sample_rate"],
        "conditioning": dict(description["conditioning"]),
        "model": {"architecture": dict(description["architecture"])},
    }


def disagreements(description: dict[str, Any], config: Config) -> list[str]:
    """A line for each setting in which a bundle's description and `config` differ; empty when it may be used."""
    wanted: dict[str, Any] = {"ifos": list(config.ifos), "sample_rate": config.sample_rate}
    found: dict[str, Any] = {"ifos": description.get("ifos"), "sample_rate": description.get("sample_rate")}
    for name in _AGREE:
        wanted[f"conditioning.{name}"] = getattr(config.conditioning, name)
        found[f"conditioning.{name}"] = description.get("conditioning", {}).get(name)
    # what a network sees beside its kernel decides which outputs count
    wanted["model.architecture.context"] = config.model.architecture.context
    found["model.architecture.context"] = description.get("architecture", {}).get("context", 0.0)
    return [f"{k} = {wanted[k]}: expected {found[k]}, which the imported model was trained with" for k in wanted if wanted[k] != found[k]]


def check_agreement(folder: Path, config: Config, asset: str = "model") -> dict[str, Any]:
    """The description of the bundle in `folder`, once it agrees with `config`.

    Args:
        folder: the bundle.
        config: the experiment; for `filter_model` as if the filter were its model.
        asset: whose weights they are; for the names of keys.

    Raises:
        WeightsError: it does not; every differing key, its value and what the model expects.
    """
    description = _description(folder, config.model.weights, asset)
    key, section = KEYS[asset]
    lines = [line.replace("model.architecture", section) for line in disagreements(description, config)]
    if lines:
        raise WeightsError("\n".join([f"{key} = {config.model.weights}: made for other data than this experiment's:", *lines]))
    return description
