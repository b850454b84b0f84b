"""Reading an experiment: preset < experiment file < environment, checked as a whole, written by hash."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from aframe_assets.config import Config
from aframe_assets.waveforms import prior_files

PREFIX = "AFRAME__"


class ConfigError(ValueError):
    """An experiment that cannot be run; the message names key, value and expectation, a line each."""


def preset_names() -> list[str]:
    """Names of the packaged presets."""
    folder = resources.files("aframe_assets") / "presets"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def preset(name: str) -> dict[str, Any]:
    """The values of preset `name`. Raises ConfigError for an unknown name."""
    if name not in preset_names():
        raise ConfigError(f"preset = {name}: expected one of {', '.join(preset_names())}")
    text = (resources.files("aframe_assets") / "presets" / f"{name}.yaml").read_text()
    return yaml.safe_load(text) or {}


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping; other values replace."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _environment(env: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    tree: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name in sorted(env):
        if not name.startswith(PREFIX):
            if name.upper().startswith(PREFIX) or re.match(r"AFRAME_[A-Z]+__", name):
                raise ConfigError(
                    f"{name}: is not read; expected {PREFIX}SECTION__KEY, in capitals, with two underscores between its parts"
                )
            continue
        keys = name[len(PREFIX) :].split("__")
        # Tb is the one key with a capital; all others are lower case in the file.
        keys = [k if k == "Tb" else k.lower() for k in keys]
        keys = ["Tb" if k == "tb" else k for k in keys]
        node = tree
        for i, key in enumerate(keys[:-1]):
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{name}: {'.'.join(keys[: i + 1])} has a value of its own, it is not a section")
        try:
            node[keys[-1]] = yaml.safe_load(env[name])
        except yaml.YAMLError:
            node[keys[-1]] = env[name]
        origin[".".join(keys)] = name
    return tree, origin


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror}); expected an experiment file, as written by `aframe init`") from None
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: is not YAML: {e}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(data).__name__}")
    return data


def _explain(error: ValidationError, source: str, origin: Mapping[str, str]) -> str:
    lines = []

    def whence(key: str) -> str:
        # a variable may set the key itself, something in it, or the section that holds it
        near = (k for k in origin if k == key or k.startswith(f"{key}.") or key.startswith(f"{k}."))
        return next((origin[k] for k in near), source)

    for e in error.errors():
        key = ".".join(str(p) for p in e["loc"])
        where = whence(key)
        if e["type"] == "extra_forbidden":
            lines.append(f"{where}: {key} = {e['input']!r}: unknown key; `aframe config show` lists the known ones")
        elif e["type"] == "value_error" and not key:
            lines += [f"{whence(line.partition(' = ')[0])}: {line}" for line in str(e["ctx"]["error"]).splitlines()]
        else:
            lines.append(f"{where}: {key} = {e['input']!r}: {e['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def build_config(data: Mapping[str, Any], *, env: Mapping[str, str] | None = None, source: str = "config") -> Config:
    """`data` over its preset (key ``preset``, default o3), with `env` on top.

    Args:
        data: overrides, as in an experiment file.
        env: environment to take ``AFRAME__SECTION__KEY`` from; None takes none.
        source: name used in errors.

    Raises:
        ConfigError: for any unknown key, bad value or impossible combination; all of them at once.
    """
    over, origin = _environment(env or {})
    data = merge(data, over)
    merged = merge(preset(str(data.get("preset", "o3"))), data)
    try:
        return Config.model_validate(merged)
    except ValidationError as e:
        raise ConfigError(_explain(e, source, origin)) from None


def load_config(path: str | os.PathLike[str] | None = None, *, env: Mapping[str, str] | None = None) -> Config:
    """The experiment in `path` (default: ``$AFRAME_CONFIG``).

    A file written by `write_resolved` is taken as it stands: neither preset nor environment touch it, so
    every step of a run computes the same experiment wherever it runs.
    """
    env = os.environ if env is None else env
    path = Path(path or env.get("AFRAME_CONFIG") or "aframe.yaml")
    if path.suffix == ".json":
        try:
            text = path.read_text()
        except OSError as e:
            raise ConfigError(f"{path}: cannot be read ({e.strerror}); a resolved experiment is gone, start the run again") from None
        if hashlib.sha256(text.encode()).hexdigest()[:16] != path.stem:
            raise ConfigError(f"{path}: its content does not match its name; a resolved experiment is never edited, start the run again")
        return Config.model_validate_json(text)
    data = _read(path)
    config = _absolute(build_config(data, env=env, source=str(path)), path.parent.resolve())
    named = {"waveforms": ("prior", "validation_prior"), "injections": ("prior",)}
    for section, key in ((s, k) for s, keys in named.items() for k in keys):
        prior = getattr(getattr(config, section), key)
        if prior:
            try:
                flaw = prior_files.read(prior).volume_flaw
            except ValueError as e:
                raise ConfigError(f"{path}: {section}.{key} = {prior}: {e}") from None
            if flaw and section == "injections":
                raise ConfigError(f"{path}: {section}.{key} = {prior}: {flaw}; {prior_files.FOR_VOLUME}")
    return config


def _absolute(config: Config, base: Path) -> Config:
    """Relative paths in an experiment are relative to its file, whatever directory a step runs in."""

    def fix(value: str) -> str:
        ifo, named, path = value.partition("=")
        if named and len(ifo) == 2:  # strain.files may say which detector a file is of: H1=PATH
            return f"{ifo}={fix(path)}"
        value = os.path.expanduser(value)
        return value if "://" in value or os.path.isabs(value) else str((base / value).resolve())

    def name_or_file(value: Any) -> Any:
        # Priors, noise curves and catalogues may be named or be files; a file beside the experiment is the file.
        if isinstance(value, list):
            return [name_or_file(v) for v in value]
        return fix(value) if value and (base / value).is_file() else value

    strain, waveforms = config.strain, config.waveforms
    simulated = strain.simulated.model_copy(update={"asd": {k: name_or_file(v) for k, v in strain.simulated.asd.items()}})
    weights = {k: getattr(config.model, k) for k in ("weights", "filter_weights")}
    vetoes = {
        "files": {k: [fix(f) for f in v] for k, v in config.vetoes.files.items()},
        "gates": {k: fix(v) for k, v in config.vetoes.gates.items()},
        "catalog": name_or_file(config.vetoes.catalog),
    }
    return config.model_copy(
        update={
            "detectors": {k: fix(v) for k, v in config.detectors.items()},
            "strain": strain.model_copy(update={"files": [fix(f) for f in strain.files], "simulated": simulated}),
            "segments": config.segments.model_copy(update={"files": {k: fix(v) for k, v in config.segments.files.items()}}),
            "vetoes": config.vetoes.model_copy(update=vetoes),
            "model": config.model.model_copy(update={k: fix(w) if w and w != "pretrained" else w for k, w in weights.items()}),
            "waveforms": waveforms.model_copy(
                update={"prior": name_or_file(waveforms.prior), "validation_prior": name_or_file(waveforms.validation_prior)}
            ),
            "injections": config.injections.model_copy(update={"prior": name_or_file(config.injections.prior)}),
            "inference": config.inference.model_copy(update={"exclude_catalog": name_or_file(config.inference.exclude_catalog)}),
            "sensitivity": config.sensitivity.model_copy(update={"catalog": name_or_file(config.sensitivity.catalog)}),
        }
    )


def resolved_text(config: Config) -> str:
    """Canonical JSON of `config`."""
    return json.dumps(config.model_dump(mode="json"), sort_keys=True, indent=1)


def config_hash(config: Config) -> str:
    """First 16 hex digits of the sha256 of the canonical text."""
    return hashlib.sha256(resolved_text(config).encode()).hexdigest()[:16]


def write_resolved(config: Config, folder: str | os.PathLike[str]) -> Path:
    """Writes `config` to ``folder/{hash}.json`` (atomically; once) and returns the path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{config_hash(config)}.json"
    if not path.exists():
        tmp = path.with_name(f".{path.name}.{os.getpid()}")
        tmp.write_text(resolved_text(config))
        os.replace(tmp, path)
    return path
