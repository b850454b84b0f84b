"""Who is made from what: the one table from which bodies, `plan` and `status` compute completeness keys.

An artifact's key hashes its code version, the config values it reads, its partition, and the key and content
sha256 of each input (DESIGN, decision 1). `execution` settings, run ids, hosts and times never enter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from aframe_assets.config import Config

Role = Literal["train", "validation", "test"]
ROLES: tuple[Role, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Input:
    """One upstream of an asset.

    Attributes:
        asset: upstream asset.
        how: 'whole' an unpartitioned artifact; 'row' this partition's row of the segments table; 'same' the same
            partition; 'all' every partition whose role is in `roles`; 'roles' an artifact whose identity is kept
            per role in ``meta["roles"][role]["sha256"]``, so that other roles' data do not enter the key; 'plan' the test
            segments that slides were planned for; 'within' what of an artifact concerns these and this partition. The last
            two do not change when test segments come late.
        roles: roles that are read.
        optional: absent when the asset is not in the graph.
    """

    asset: str
    how: Literal["whole", "row", "same", "all", "roles", "plan", "within"] = "whole"
    roles: tuple[Role, ...] = ROLES
    optional: bool = False


@dataclass(frozen=True)
class Node:
    """An asset: what decides whether an artifact of it is the wanted one.

    `files` are config values that may name a file (a prior, a catalogue); then its content is part of the key. So is that of the
    packaged file of a named prior or catalogue. `free` are values inside those of `config` that change how, not what, and do not
    enter the key.
    """

    name: str
    group: str
    code_version: str
    config: tuple[str, ...]
    inputs: tuple[Input, ...] = field(default=())
    partitioned: bool = False
    files: tuple[str, ...] = ()
    free: tuple[str, ...] = ()


COMPARED = "comparison.models"
"""Names and bundles of the models of a comparison."""

_TRAINING = ("ifos", "detectors", "sample_rate", "seed", "conditioning", "model.training", "waveforms.right_pad", "waveforms.duration")
_TRAINING_DATA = (
    Input("background_index", "roles", ("train", "validation"), optional=True),
    Input("psd", "roles", ("train", "validation"), optional=True),
    Input("training_waveforms", optional=True),
    Input("validation_waveforms", optional=True),
)

_TRAINED = ("tuned_model", "model", "filter_model")
_GENERATED = tuple(
    f"waveforms.{k}"
    for k in ("prior", "approximant", "duration", "right_pad", "minimum_frequency", "reference_frequency", "num_training_signals")
)
"""What a training reads besides where it makes its signals itself."""

_ALL = [
    Node("segments", "segments", "1", ("ifos", "segments", "strain.source", "strain.files", "strain.min_dq")),
    Node(
        "vetoes",
        "segments",
        "1",
        ("ifos", "vetoes", "segments.source", "segments.host", "segments.segment_server", "strain.source", "strain.files"),
        (Input("segments", "roles", ("test",)),),
        files=("vetoes.files", "vetoes.gates", "vetoes.catalog"),
    ),
    Node(
        "background",
        "strain",
        "1",
        ("ifos", "sample_rate", "seed", "strain"),
        (Input("segments", "row"),),
        partitioned=True,
    ),
    Node(
        "background_index",
        "strain",
        "1",
        ("ifos",),
        (Input("segments"), Input("background", "all")),
    ),
    Node("psd", "strain", "4", ("ifos", "sample_rate", "conditioning"), (Input("background_index", "roles"),)),
    Node(
        "training_waveforms",
        "waveforms",
        "3",
        ("sample_rate", "seed", "waveforms"),
        files=("waveforms.prior",),
    ),
    Node(
        "validation_waveforms",
        "waveforms",
        "4",
        ("ifos", "detectors", "sample_rate", "seed", "waveforms", "conditioning"),
        (Input("psd", "roles", ("validation",)),),
        files=("waveforms.prior", "waveforms.validation_prior", "detectors"),
    ),
    Node(
        "injections",
        "waveforms",
        "5",
        (
            "ifos",
            "detectors",
            "sample_rate",
            "seed",
            "waveforms",
            "injections",
            "conditioning",
            "model.architecture.context",
            "inference.Tb",
            "inference.num_slides",
            "inference.shifts",
            "inference.slide_mode",
            "inference.psd_source",
            "inference.exclude_catalog",
            "inference.exclude_pad",
            "inference.inference_rate",
            "inference.integration_window_length",
        ),
        (
            Input("segments", "row"),
            Input("segments", "plan"),
            Input("vetoes", "within", optional=True),
            Input("psd", "roles", ("test",)),
        ),
        partitioned=True,
        files=("injections.prior", "inference.exclude_catalog", "detectors"),
    ),
    Node(
        "tuned_model",
        "model",
        "3",
        ("ifos", "detectors", "sample_rate", "seed", "conditioning", "model.architecture", "model.training", "model.tune"),
        (
            Input("background_index", "roles", ("train", "validation")),
            Input("psd", "roles", ("train", "validation")),
            Input("training_waveforms", optional=True),
            Input("validation_waveforms"),
        ),
        files=("detectors",),
        free=("model.training.background_livetime",),
    ),
    Node(
        "model",
        "model",
        "3",
        (*_TRAINING, "model.weights", "model.architecture", "model.tune"),
        (*_TRAINING_DATA, Input("tuned_model", optional=True)),
        files=("detectors",),
    ),
    Node(
        "filter_model",
        "model",
        "4",
        (*_TRAINING, "model.filter_weights", "model.filter"),
        (Input("model", optional=True), *_TRAINING_DATA),
        files=("detectors",),
    ),
    Node("exported_model", "engine", "2", ("engine.block",), (Input("model"), Input("filter_model", optional=True))),
    Node("engine", "engine", "3", ("engine",), (Input("exported_model"),)),
    Node("model_repository", "engine", "3", ("inference.inference_rate", "inference.batch_size"), (Input("engine"),)),
    Node(
        "inference_results",
        "inference",
        "2",
        ("ifos", "sample_rate", "conditioning", "model.architecture.context", "inference", "injections.num_signals"),
        (
            Input("segments", "row"),
            Input("segments", "plan"),
            Input("vetoes", "within", optional=True),
            Input("background", "same"),
            Input("injections", "same"),
            Input("engine"),
            Input("model", optional=True),
            Input("filter_model", optional=True),
            Input("model_repository", optional=True),
        ),
        partitioned=True,
        files=("inference.exclude_catalog",),
        # a server's answers may differ from the engine's in rounding: its repository is an input then, and so in the key
        free=("inference.mode", "inference.in_flight", "inference.memory_gb", "inference.cascade.max_loss"),
    ),
    Node(
        "events",
        "inference",
        "2",
        ("inference.cascade.max_loss", "inference.cascade.keep", "engine.precision", "engine.parity_tolerance"),
        (Input("inference_results", "all", ("test",)), Input("injections", "all", ("test",))),
    ),
    Node(
        "sensitive_volume",
        "sensitivity",
        "3",
        ("sensitivity", "injections.prior", "waveforms.snr_threshold", "inference.recovery_window", "inference.cluster_window_length"),
        (Input("events"),),
        files=("injections.prior",),
    ),
    Node(
        "candidates",
        "sensitivity",
        "2",
        ("ifos", "sensitivity", "inference.cluster_window_length"),
        (Input("events"), Input("sensitive_volume"), Input("vetoes", optional=True)),
        files=("sensitivity.catalog",),
    ),
    Node(
        "report",
        "sensitivity",
        "5",
        ("name", "preset"),
        (
            Input("segments"),
            Input("vetoes", optional=True),
            Input("background_index"),
            Input("psd"),
            Input("model"),
            Input("engine"),
            Input("events"),
            Input("sensitive_volume"),
            Input("candidates"),
        ),
    ),
    Node(
        "compared_models",
        "comparing",
        "1",
        (
            "ifos",
            "sample_rate",
            "conditioning",
            "model.architecture.context",
            "inference",
            "injections.num_signals",
            "engine",
            COMPARED,
        ),
        (
            Input("segments", "roles", ("test",)),
            Input("vetoes", optional=True),
            Input("background", "all", ("test",)),
            Input("injections", "all", ("test",)),
        ),
        files=("inference.exclude_catalog",),
        # each is searched with alone and in the step itself
        free=("inference.mode", "inference.in_flight", "inference.memory_gb", "inference.cascade", "inference.zero_lag"),
    ),
    Node(
        "comparison",
        "comparing",
        "1",
        (
            "sensitivity",
            "injections.prior",
            "waveforms.snr_threshold",
            "inference.recovery_window",
            "inference.cluster_window_length",
            "comparison",
        ),
        (Input("compared_models"),),
        files=("injections.prior",),
        free=("sensitivity.catalog", "sensitivity.match_window", "sensitivity.comparators"),
    ),
]


def graph(config: Config) -> dict[str, Node]:
    """The assets of `config`'s graph by name, upstream first.

    A network with given weights reads nothing; where none is trained the training-set assets are left out, and where training signals
    are made while training only ``training_waveforms``. Without ``model.filter`` there is no ``filter_model``, without ``model.tune`` no
    ``tuned_model``, without anything in section ``vetoes`` no ``vetoes``, and without ``comparison.models`` no comparison.
    ``inference_results`` reads ``model_repository`` where a Triton server evaluates it, and the networks of a cascade for its thresholds.
    """
    m, absent = config.model, set()
    if not m.trains:
        absent |= {"training_waveforms", "validation_waveforms"}
    if not m.reads_signals:
        absent.add("training_waveforms")
    if not m.tune or m.weights:
        absent.add("tuned_model")
    if m.filter is None:
        absent.add("filter_model")
    if not config.vetoes.asked:
        absent.add("vetoes")
    if not config.comparison.models:
        absent |= {"compared_models", "comparison"}
    out: dict[str, Node] = {}
    for node in _ALL:
        if node.name in absent:
            continue
        imported = bool({"model": m.weights, "filter_model": m.filter_weights}.get(node.name))
        unread = (
            absent | ({"model"} if m.filter is None else set()) | (set() if config.inference.mode == "triton" else {"model_repository"})
        )
        inputs = tuple(i for i in node.inputs if not (i.optional and (i.asset in unread or imported)))
        out[node.name] = replace(node, inputs=inputs)
        if node.name in _TRAINED and not imported and not m.reads_signals:
            out[node.name] = replace(
                out[node.name], config=tuple(dict.fromkeys((*node.config, *_GENERATED))), files=(*node.files, "waveforms.prior")
            )
    return out


def names() -> frozenset[str]:
    """Every asset that some experiment has."""
    return frozenset(node.name for node in _ALL)


def trained_from() -> frozenset[str]:
    """The networks, and all that they are made from."""
    nodes, found, todo = {node.name: node for node in _ALL}, set(), list(_TRAINED)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += [i.asset for i in nodes[name].inputs]
    return frozenset(found)


def deps(node: Node) -> list[str]:
    """Names of the assets that `node` reads, each once."""
    return list(dict.fromkeys(i.asset for i in node.inputs))


def combined(identities: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """One identity for many partitions: the sha256 over their sorted keys and content hashes."""
    import hashlib
    import json

    text = json.dumps({p: [i["key"], i["sha256"]] for p, i in sorted(identities.items())})
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"key": digest, "sha256": digest}
