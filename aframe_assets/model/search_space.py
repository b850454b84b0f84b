"""What a study may search, and how found values are put into an experiment. Imports nothing heavy: read when an experiment is loaded."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidationError

from aframe_assets.model import own_networks

if TYPE_CHECKING:
    from aframe_assets.config import Config

_ROOTS = ("model.training", "model.architecture", "conditioning")

_MEASURE = "it defines what trials are compared by"
_FIXED = {
    "model.training.max_epochs": "model.tune.max_epochs says how long trials are trained",
    "model.training.num_threads": "it says how a training runs, not what it gives",
    "model.training.background_livetime": "it is read once a network is trained",
    "model.training.signals": "it decides which data are made before any training",
    **{f"model.training.{name}": _MEASURE for name in ("monitor", "max_fpr", "pool_length", "integration_length", "left_pad", "right_pad")},
}
_FORMS = "{low, high}, with log or step if wanted, or {choices}"


@dataclass(frozen=True)
class Dimension:
    """One searched setting.

    Attributes:
        key: as the experiment names it in ``model.tune.space``.
        path: the full config key.
        kind: 'int' and 'float' lie between `low` and `high`, both included; 'choice' is one of `choices`.
        log: drawn evenly in the logarithm.
        step: distance of neighbouring values; None: any.
    """

    key: str
    path: str
    kind: Literal["int", "float", "choice"]
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()


def full_key(key: str) -> str:
    """The config key that `key` of a space means: a name without dots is one of ``model.training``."""
    return key if "." in key else f"model.training.{key}"


def _inner(annotation: Any) -> list[Any]:
    """The types that a field may have, without None."""
    union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    found = typing.get_args(annotation) if union else (annotation,)
    return [a for a in found if a is not type(None)]


def _field(config: type[BaseModel], path: str) -> Any:
    """The pydantic field at `path`; None inside a table, whose keys are free. Raises ValueError."""
    section, parts = config, path.split(".")
    for i, part in enumerate(parts):
        field = section.model_fields.get(part)
        if field is None:
            raise ValueError(f"{'.'.join(parts[:i])} has no key {part}; expected one of {', '.join(section.model_fields)}")
        kinds = _inner(field.annotation)
        sections = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if i == len(parts) - 1:
            if sections:
                raise ValueError(f"{path} is a section; expected one of its keys {', '.join(sections[0].model_fields)}")
            return field
        if sections:
            section = sections[0]
        elif any(typing.get_origin(k) is dict or k in (dict, Any) for k in kinds):
            return None
        else:
            raise ValueError(f"{'.'.join(parts[: i + 1])} has no keys of its own")
    raise AssertionError(path)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _dimension(config: type[BaseModel], key: str, given: Mapping[str, Any]) -> Dimension:
    path = full_key(key)
    if not any(path.startswith(f"{root}.") for root in _ROOTS):
        raise ValueError(f"expected a key of {', '.join(_ROOTS)}")
    if path in _FIXED or path.startswith("model.training.valid_"):
        raise ValueError(f"cannot be searched: {_FIXED.get(path, _MEASURE)}")
    field = _field(config, path)
    if set(given) == {"choices"}:
        choices = given["choices"]
        if not isinstance(choices, list) or not choices or any(c in choices[:i] for i, c in enumerate(choices)):
            raise ValueError("expected a list of different choices")
        unknown = [c for c in choices if path == "model.architecture.name" and c not in own_networks.names()]
        if unknown:
            raise ValueError(f"{unknown[0]!r}: expected one of {', '.join(own_networks.names())}")
        found = Dimension(key, path, "choice", choices=tuple(choices))
        ends: tuple[Any, ...] = found.choices
    else:
        if not {"low", "high"} <= set(given) <= {"low", "high", "log", "step"}:
            raise ValueError(f"expected {_FORMS}")
        low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
        if not (_number(low) and _number(high) and low <= high and isinstance(log, bool)):
            raise ValueError("expected numbers, low not above high, and log true or false")
        if log and (low <= 0 or step is not None):
            raise ValueError("expected with log a low above 0, and no step")
        if step is not None and not (_number(step) and step > 0):
            raise ValueError("expected a step above 0")
        if step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-6:
            raise ValueError("expected a high that is whole steps above low")
        kinds = _inner(field.annotation) if field is not None else [float if any(isinstance(v, float) for v in (low, high, step)) else int]
        whole = int in kinds and float not in kinds
        numbers = [k for k in kinds if k in (int, float) or (typing.get_origin(k) is Annotated and typing.get_args(k)[0] is float)]
        if not numbers:
            raise ValueError(f"{path} is no number; expected {{choices}}")
        if whole and any(v is not None and v != int(v) for v in (low, high, step)):
            raise ValueError(f"{path} is a whole number; expected whole low, high and step")
        found, ends = Dimension(key, path, "int" if whole else "float", low, high, log, step), (low, high)
    if field is not None:
        kind = TypeAdapter(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
        for value in ends:
            try:
                kind.validate_python(value)
            except ValidationError as e:
                raise ValueError(f"{value!r}: {e.errors()[0]['msg']}") from None
    return found


def dimensions(config: Config) -> list[Dimension]:
    """The searched settings of ``model.tune.space``, sorted by key. Raises ValueError as `problems`."""
    for key, expected in problems(config):
        raise ValueError(f"model.tune.space.{key} = {config.model.tune.space[key]}: {expected}")
    space = config.model.tune.space
    return [_dimension(type(config), key, space[key]) for key in sorted(space)]


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """What is wrong with ``model.tune.space``: keys, and what was expected."""
    space = config.model.tune.space
    for key, given in space.items():
        try:
            _dimension(type(config), key, given)
        except ValueError as e:
            yield key, str(e)
    doubled = [key for key in space if "." in key and any(key != other and full_key(other) == key for other in space)]
    yield from ((key, "named twice; expected one of its two names") for key in doubled)


def overrides(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by key of a space as nested sections, as an experiment file has them."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = full_key(key).split(".")
        inner = out
        for part in sections:
            inner = inner.setdefault(part, {})
        inner[name] = value
    return out


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with the values of these keys (as in a space) changed.

    Raises:
        ValueError: (pydantic's) values that are impossible, by themselves or together with others.
    """
    whole = config.model_dump(mode="json")
    for key, value in values.items():
        *sections, name = full_key(key).split(".")
        inner = whole
        for part in sections:
            # tables of a network of one's own may be left out
            inner = inner.setdefault(part, {})
        inner[name] = value
    return type(config).model_validate(whole)


def read_elsewhere(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values`, by full key, that PSDs, validation signals or the search read too, and that `config` has otherwise."""
    shared = {full_key(k): v for k, v in values.items()}
    shared = {k: v for k, v in shared.items() if k.startswith("conditioning.") or k == "model.architecture.context"}
    now = config.model_dump(mode="json")
    there = {"model.architecture.context": now["model"]["architecture"]["context"]}
    there |= {f"conditioning.{k}": v for k, v in now["conditioning"].items()}
    return {k: v for k, v in shared.items() if there[k] != v}
