"""Making run directories."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import yaml

from aframe_assets.config import Architecture, Conditioning, Config, Training
from aframe_assets.config_load import ConfigError, build_config, merge
from aframe_assets.config_load import preset as preset_values
from aframe_assets.model.importing import PRETRAINED, WeightsError, is_weight_file, read_weights, settings_of
from aframe_ops.cli import templates
from aframe_ops.run_directory import RunDirectory
from aframe_ops.site import Backend

PROFILES = get_args(Backend)


def overrides_of(strain: str | None, weights: str | None, preset: str) -> dict[str, Any]:
    """Overrides of `preset` that the options of `aframe init` stand for; paths absolute.

    With weights also the settings that their model needs, where the preset has others.

    Raises:
        ConfigError: a path that is not there.
    """
    out: dict[str, Any] = {}
    # an empty one, as of a variable that is not set, is no path
    if strain is not None:
        folder = Path(os.path.expanduser(strain)).resolve()
        if not strain or not folder.exists():
            raise ConfigError(f"--strain {strain}: no such file or folder; expected strain files (HDF5 or GWF)")
        out = merge(out, {"segments": {"source": "strain_files"}, "strain": {"source": "files", "files": [str(folder)]}})
    if weights is not None:
        value = weights if weights == PRETRAINED or "://" in weights else str(Path(os.path.expanduser(weights)).resolve())
        if not weights or ("://" not in value and value != PRETRAINED and not Path(value).exists()):
            raise ConfigError(
                f"--weights {weights}: no such folder or file; expected a model bundle, a run directory with a trained model, a file of "
                f"weights, or '{PRETRAINED}'"
            )
        out = merge(merge(out, {"model": {"weights": value}}), _needed(value, preset))
    return out


def _needed(weights: str, preset: str) -> dict[str, Any]:
    """Settings of the model that `weights` mean, where `preset` has others; none of a run directory that has no model yet."""
    if is_weight_file(weights):
        return _told(weights, preset)
    try:
        wanted = settings_of(read_weights(weights))
    except WeightsError:
        # `aframe plan` and `aframe run` say what is wrong with weights; they may be made until then
        return {}
    return _other(wanted, _preset_with_defaults(preset))


def _preset_with_defaults(preset: str) -> dict[str, Any]:
    """The sections that a model has a say in."""
    defaults = {
        **{name: Config.model_fields[name].get_default(call_default_factory=True) for name in ("ifos", "sample_rate")},
        "conditioning": Conditioning().model_dump(mode="json"),
        "model": {"architecture": Architecture().model_dump(mode="json"), "training": Training().model_dump(mode="json")},
    }
    return merge(defaults, preset_values(preset))


def _told(weights: str, preset: str) -> dict[str, Any]:
    """As `_needed`, of a file of weights: what it tells; the rest is the user's to set."""
    from aframe_assets.model.weight_files import read_weight_file, settings_of_file

    try:
        wanted = settings_of_file(read_weight_file(weights, "--weights"))
    except WeightsError as e:
        raise ConfigError(str(e)) from None
    have = _preset_with_defaults(preset)
    num_ifos = wanted.pop("num_ifos", len(have["ifos"]))
    if num_ifos != len(have["ifos"]):
        raise ConfigError(
            f"--weights {weights}: a network of {num_ifos} detectors, and preset {preset} has ifos {have['ifos']}; take another"
        )
    return _other(wanted, have)


def _other(wanted: Mapping[str, Any], have: Mapping[str, Any]) -> dict[str, Any]:
    """What of `wanted` differs from `have`, value by value."""
    out: dict[str, Any] = {}
    for key, value in wanted.items():
        if isinstance(value, Mapping):
            inner = _other(value, have.get(key, {}))
            if inner:
                out[key] = inner
        elif key not in have or have[key] != value:
            out[key] = value
    return out


def initialise(
    directory: str | os.PathLike[str],
    preset: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    store: str | None = None,
    training_store: str | None = None,
    profile: str = "local",
    database: str | None = None,
) -> tuple[RunDirectory, bool]:
    """Makes `directory` a run directory; returns it and whether it was new.

    An existing one of the same preset and options is left as it is (missing files are put back).

    Args:
        overrides: what differs from the preset.
        store: where results are kept; None: in the run directory.
        training_store: where the networks and what they are made from are kept; None: in `store`.
        database: where Dagster keeps its records: ``env:NAME`` or the address of a PostgreSQL without a password; None: SQLite.

    Raises:
        ConfigError: an impossible experiment or database, or a directory that holds another one.
    """
    overrides = dict(overrides or {})
    preset_values(preset)
    if profile not in PROFILES:
        raise ConfigError(f"--profile {profile}: expected one of {', '.join(PROFILES)}")
    address = None if database is None else database_address(database, store)
    path = Path(directory).resolve()
    run = RunDirectory(path)
    new = not run.experiment.exists()
    if new:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path}: is a file; expected a folder, or a name that is free")
        build_config({"preset": preset, **overrides}, env=os.environ, source=f"preset {preset}")
    else:
        _same(run, preset, overrides, store, training_store, profile)
    dagster_yaml = templates.DAGSTER_YAML if address is None else templates.shared_dagster_yaml(address, store)
    _same_database(run, address)
    path.mkdir(parents=True, exist_ok=True)
    (path / "dagster_home").mkdir(exist_ok=True)
    files = {
        "aframe.yaml": templates.experiment(preset, overrides),
        "site.yaml": templates.site(store, profile, _hidden(address), training_store),
        "dagster_home/dagster.yaml": dagster_yaml,
        "workspace.yaml": templates.WORKSPACE_YAML,
    }
    _write(path, files)
    # what it exports depends on the database
    _write(
        path,
        {
            "env.sh": templates.environment(run.variables, templates.activation(Path(sys.prefix), os.environ)),
            "run.sh": templates.RUN_SH,
        },
    )
    (path / "run.sh").chmod(0o755)
    return run, new


def _write(path: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        if not (path / name).exists():
            (path / name).write_text(text)


def database_address(text: str, store: str | None) -> str | dict[str, str]:
    """What `dagster.yaml` says for ``--database``: an address without a password, or ``{"env": NAME}``.

    Raises:
        ConfigError: it is neither, it holds a password, or what it needs is not installed.
    """
    for module, extra in (("dagster_postgres", "postgres"), *([("dagster_aws", "s3")] if (store or "").startswith("s3://") else [])):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"--database: {module} is not installed; install this project with [{extra}]")
    if text.startswith("env:"):
        name = text.removeprefix("env:")
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError("--database env:NAME: expected the name of a variable: letters, digits and _")
        return {"env": name}
    try:
        parts = urlsplit(text)
        scheme, password, complete = parts.scheme, parts.password, bool(parts.hostname or parts.query) and parts.path not in ("", "/")
    except ValueError:
        scheme, password, complete = "", None, False
    secret = re.search(r"[?&;](?!(?:sslmode|sslrootcert|connect_timeout|application_name|options|host|port)=)", text)
    if password is not None or re.search(r"//[^@]*:.*@", text) or secret:
        raise ConfigError(
            "--database: the address has a password or an option that may be one, which would be in a file and in the list of processes; "
            "export the whole address as a variable, such as AFRAME_DATABASE, and give --database env:AFRAME_DATABASE"
        )
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg2") or not complete:
        # not quoted: what is no address may still be a secret
        raise ConfigError("--database: expected env:NAME or postgresql+psycopg2://user@host:5432/name")
    # SQLAlchemy 2.1 gives the plain scheme to another driver than the one that Dagster installs
    return "postgresql+psycopg2:" + text.partition(":")[2]


def _hidden(address: str | dict[str, str] | None) -> list[str]:
    """The variable of the database, if jobs do not get it anyway."""
    name = address["env"] if isinstance(address, dict) else ""
    return [name] if name and not name.startswith(("AFRAME_", "AWS_", "LIGO_")) else []


def _same_database(run: RunDirectory, address: str | dict[str, str] | None) -> None:
    """Raises ConfigError if `run` has another database than the one that is asked for."""
    file = run.dagster_home / "dagster.yaml"
    if address is None or not file.exists():
        return
    have = _yaml(file).get("storage")
    if have != {"postgres": {"postgres_url": address}}:
        raise ConfigError(f"{file} has another database than --database; edit it, choose another directory, or remove the file")


def _same(
    run: RunDirectory, preset: str, overrides: Mapping[str, Any], store: str | None, training_store: str | None, profile: str
) -> None:
    """Raises ConfigError if the experiment in `run` is another than the one asked for."""
    have = _yaml(run.experiment)
    wanted: dict[str, Any] = {"preset": preset, **_leaves(overrides)}
    found = {"preset": have.get("preset", "o3"), **_leaves(have)}
    if store is not None or training_store is not None or profile != "local":
        site = _yaml(run.path / "site.yaml")
        wanted |= {"store.root": store or "store", "store.training": training_store, "executor.backend": profile}
        found |= {"store.root": "store", "store.training": None, "executor.backend": "local", **_leaves(site)}
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ConfigError(
                f"{run.path} holds another experiment: {key} is {found.get(key, 'not set')}, asked for {value}; "
                "choose another directory, edit its aframe.yaml and site.yaml, or remove it"
            )


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        return {}
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: is not YAML: {e}") from None


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out |= _leaves(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out
