"""Taking a model from a bundle or from another run instead of training one. Imports no torch: planning asks here too."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.handle import Handle

_AGREE = ("kernel_length", "psd_length", "fduration", "fftlength", "highpass", "lowpass")
"""Conditioning that a network was trained on and must be given again."""


class WeightsError(ValueError):
    """``model.weights`` that cannot be used; the message names the key, its value and what was expected."""


def _run_store(run: Path) -> str:
    """URL or path of the store of run directory `run`."""
    site = run / "site.yaml"
    root: Any = None
    if site.is_file():
        try:
            data = yaml.safe_load(site.read_text()) or {}
        except yaml.YAMLError as e:
            raise WeightsError(f"model.weights = {run}: its site.yaml is not YAML: {e}") from None
        root = (data.get("store") or {}).get("root")
    if root and ("://" in str(root) or Path(root).is_absolute()):
        return str(root)
    return str(run / (root or "store"))


def _of_run(run: Path) -> tuple[Any, Handle]:
    from aframe_assets.store import open_store

    url = _run_store(run)
    store = open_store(url)
    manifest = store.manifest("model")
    if manifest is None:
        raise WeightsError(
            f"model.weights = {run}: a run directory whose store {url} holds no model yet; run `aframe run {run} --until model` first"
        )
    if manifest.status != "ok" or manifest.handle is None:
        raise WeightsError(
            f"model.weights = {run}: the model of that run failed ({manifest.error}); run `aframe run {run} --until model` again"
        )
    return store, manifest.handle


def _folder(weights: str) -> tuple[Path, bool]:
    """The folder of `weights`, and whether it is a bundle (else a run directory)."""
    if weights == "pretrained":
        raise WeightsError(
            "model.weights = pretrained: no weights are shipped with this version; expected a bundle folder or a run directory"
        )
    path = Path(weights).expanduser()
    if not path.exists():
        raise WeightsError(
            f"model.weights = {weights}: not found; expected a bundle folder (with bundle.json) or a run directory (with aframe.yaml)"
        )
    if (path / "bundle.json").is_file():
        return path, True
    if (path / "site.yaml").is_file() or (path / "store").is_dir():
        return path, False
    raise WeightsError(f"model.weights = {weights}: neither a bundle folder (no bundle.json) nor a run directory (no site.yaml, no store)")


def find_bundle(weights: str) -> Path:
    """The bundle folder that `weights` (a bundle folder or a run directory) means, fetched if its store is remote.

    Raises:
        WeightsError: there is none.
    """
    path, is_bundle = _folder(weights)
    if is_bundle:
        return path
    store, handle = _of_run(path)
    return store.open_local(handle)


def weights_identity(weights: str) -> dict[str, str]:
    """What decides whether `weights` are the same as before: ``{"key", "sha256"}`` of the model's artifact or files.

    Raises:
        WeightsError: as `find_bundle`.
    """
    path, is_bundle = _folder(weights)
    if not is_bundle:
        return dict(_of_run(path)[1].identity)
    digest = hashlib.sha256()
    for name in ("bundle.json", "model.safetensors"):
        file = path / name
        if not file.is_file():
            raise WeightsError(f"model.weights = {weights}: {file} not found; the bundle is incomplete, copy it again")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return {"key": digest.hexdigest(), "sha256": digest.hexdigest()}


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


def check_agreement(folder: Path, config: Config) -> dict[str, Any]:
    """The description of the bundle in `folder`, once it agrees with `config`.

    Raises:
        WeightsError: it does not; every differing key, its value and what the model expects.
    """
    try:
        description = json.loads((folder / "bundle.json").read_text())
    except (OSError, ValueError) as e:
        raise WeightsError(f"model.weights = {config.model.weights}: {folder / 'bundle.json'} cannot be read ({e})") from None
    lines = disagreements(description, config)
    if lines:
        raise WeightsError("\n".join([f"model.weights = {config.model.weights}: made for other data than this experiment's:", *lines]))
    return description
