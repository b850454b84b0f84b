"""Which models are compared: found, looked at before anything is searched, and kept in the store of the search that they share."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aframe_assets.model.importing import BUNDLE_FILES, PRETRAINED, find_bundle, settings_of
from aframe_assets.store.handle import KeyParts

if TYPE_CHECKING:
    from aframe_assets.config import Config
    from aframe_assets.store.base import ArtifactStore
    from aframe_assets.store.handle import Handle

BUNDLE = "compared_bundle"
"""Artifact of a model's bundle; its partition is the first 16 digits of its sha256."""


class ComparisonError(ValueError):
    """A model, or a search, that cannot be compared; the message says why and what to do."""


@dataclass(frozen=True)
class Asked:
    """One model that was asked for.

    Attributes:
        name: short, and unlike those of the others.
        weights: a bundle folder, a run directory or 'pretrained'.
    """

    name: str
    weights: str


def expand(names: Sequence[str]) -> list[Asked]:
    """The models that `names` mean: paths, globs (``**`` for any depth) and 'pretrained', in their order, each once.

    Of a glob only folders count. One without a match is kept as it stands: nothing is found there, which is then told.
    """
    found: list[str] = []
    for name in names:
        path = os.path.expanduser(name)
        matches = [] if os.path.exists(path) else sorted(m for m in glob.glob(path, recursive=True) if os.path.isdir(m))
        found += matches or [name]
    once: dict[str, str] = {}
    for path in found:
        # a folder may be named in several ways
        once.setdefault(path if path == PRETRAINED else os.path.realpath(os.path.expanduser(path)), path)
    found = list(once.values())
    return [Asked(short, weights) for short, weights in zip(_short(found), found, strict=True)]


def _short(paths: Sequence[str]) -> list[str]:
    """As many of the last parts of each path as tell it from the others."""
    parts = [[PRETRAINED] if p == PRETRAINED else list(Path(os.path.abspath(os.path.expanduser(p))).parts) for p in paths]
    out = []
    for own in parts:
        n = 1
        while n < len(own) and sum(other[-n:] == own[-n:] for other in parts) > 1:
            n += 1
        out.append("/".join(own[-n:]).replace("//", "/"))
    return out


def read_model(weights: str, config: Config) -> Path:
    """The bundle folder of `weights`, once its network has been built and fits the data of `config`.

    Raises:
        ComparisonError: there is none, it is damaged, or it is for other detectors, another sample rate or other settings of a search.
    """
    # of a name that can be none, as '' or one that is too long, `Path` makes something else or raises
    if weights != PRETRAINED and not os.path.exists(os.path.expanduser(weights)):
        raise ComparisonError("not found; expected a bundle folder (with bundle.json) or a run directory (with aframe.yaml)")
    try:
        folder = find_bundle(weights)
        # only where there is something to load: torch takes seconds
        from aframe_assets.model.bundle import load_bundle

        bundle = load_bundle(folder)
    except Exception as e:  # stores and readers of weights raise what they like; the model is named with all of it
        raise ComparisonError(" ".join(str(e).replace(f"model.weights = {weights}: ", "").split()) or type(e).__name__) from None
    if any(not bool(v.isfinite().all()) for v in bundle.network.state_dict().values() if v.is_floating_point()):
        raise ComparisonError("some of its weights are not finite numbers; train it again")
    for key, own, wanted in (("ifos", bundle.ifos, list(config.ifos)), ("sample_rate", bundle.sample_rate, config.sample_rate)):
        if own != wanted:
            raise ComparisonError(f"it is for {key} {own}, the data are of {wanted}; compare it on a run of such data")
    from aframe_assets.config_rules import violations

    impossible = violations(of_model(config, bundle.description))
    if impossible:
        raise ComparisonError("; ".join(impossible))
    return folder


def of_model(config: Config, description: dict[str, Any]) -> Config:
    """`config` as it has to be for a search with the model of a bundle's `description`: its conditioning and network, alone.

    Not changed are the data, the slides, the injections, and how outputs become events. A cascade's filter is left out: the model
    itself scores everything.

    Args:
        config: of the search that all models share.
        description: bundle.json.
    """
    from aframe_assets.config import Architecture, Conditioning

    own = settings_of(description)
    architecture = Architecture.model_validate(own["model"]["architecture"])
    model = {"architecture": architecture, "filter": None, "filter_weights": None, "weights": None, "tune": None}
    return config.model_copy(
        update={
            "conditioning": Conditioning.model_validate(own["conditioning"]),
            "model": config.model.model_copy(update=model),
            "inference": config.inference.model_copy(update={"mode": "inprocess", "zero_lag": False}),
        }
    )


def keep_bundle(store: ArtifactStore, folder: Path) -> str:
    """Publishes the bundle in `folder`, so that every step finds it wherever it runs; its sha256.

    Raises:
        StoreError: the store cannot be written.
    """
    from aframe_assets.store.files import sealed_entry
    from aframe_assets.store.handle import content_sha256

    files = {name: folder / name for name in BUNDLE_FILES if (folder / name).is_file()}
    sha256 = content_sha256([sealed_entry(name, path) for name, path in files.items()])
    parts = bundle_parts(sha256)
    if store.complete(parts) is None:
        store.publish(parts, files)
    return sha256


def bundle_parts(sha256: str) -> KeyParts:
    """Key parts of the artifact of a bundle."""
    return KeyParts(asset=BUNDLE, code_version="1", partition=sha256[:16], config={"sha256": sha256})


def kept_bundle(store: ArtifactStore, sha256: str) -> Handle:
    """What `keep_bundle` published.

    Raises:
        ComparisonError: it is gone.
    """
    handle = store.complete(bundle_parts(sha256))
    if handle is None:
        raise ComparisonError(f"bundle {sha256[:16]} is not in {store.url} any more; `aframe compare` puts it there")
    return handle


def step_name(name: str, sha256: str) -> str:
    """What the step of a model is called: letters, digits and _."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}_{sha256[:6]}"
