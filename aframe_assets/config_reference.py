"""Every setting there is, read off the models that check them: path, kind, default, meaning."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from aframe_assets.config_quantities import Unit

_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: its path, as ``conditioning.fduration``; ``[]`` stands for each member of a list.
        kind: what it may be, with unit and bounds.
        default: as YAML, without a preset; "" for one that must be given.
        meaning: what it decides.
    """

    key: str
    kind: str
    default: str
    meaning: str


def settings(model: type[BaseModel], leave_out: tuple[str, ...] = ()) -> list[Setting]:
    """All settings of `model`, in its order, but for those at the paths `leave_out`. A section of a kind seen before refers to that one."""
    return [s for s in _walk(model, "", {}) if s.key not in leave_out]


def _walk(model: type[BaseModel], prefix: str, seen: dict[type, str]) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        key = prefix + name
        section = _section(field.annotation)
        if section is None:
            yield Setting(key, _kind(field.annotation, field.metadata), _default(field), _meaning(field))
            continue
        many = "[]" if get_origin(field.annotation) is list else ""
        if section in seen or many or field.default is None:
            like = f"; its keys are those of {seen[section]}" if section in seen else ""
            what = "list of mappings" if many else "keys below it"
            yield Setting(key, f"{what}{like}", _default(field), _meaning(field) or _first_line(section))
        if section not in seen:
            seen[section] = key
            yield from _walk(section, f"{key}{many}.", seen)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model inside `annotation`, of a section, an optional one, or a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is dict:
        return None
    return next((found for part in get_args(annotation) if (found := _section(part)) is not None), None)


def _kind(annotation: Any, metadata: Any = ()) -> str:
    """`annotation` in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(parts[0], (*parts[1:], *metadata))
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _kind(part, metadata) for part in parts)
    if origin is Literal:
        return ", ".join(map(str, parts[:-1])) + (" or " if parts[1:] else "") + str(parts[-1])
    if origin in (list, tuple):
        members = [part for part in parts if part is not Ellipsis]
        alike = len(set(members)) == 1
        inside = _kind(members[0]) if alike else ", ".join(map(_kind, members))
        return f"list of {inside}" if origin is list else f"[{', '.join([inside] * len(members)) if alike else inside}]"
    if origin is dict:
        return f"mapping of {_kind(parts[0])} to {_kind(parts[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(str(member.value) for member in annotation)
    unit = next((str(m) for m in metadata if isinstance(m, Unit)), None)
    plain = _PLAIN.get(annotation, "anything")
    bounds = [f"{words} {getattr(m, bound):g}" for m in metadata for bound, words in _BOUNDS.items() if hasattr(m, bound)]
    return " ".join(filter(None, [{"s": "seconds", "Hz": "hertz"}.get(unit or "", plain), ", ".join(bounds)]))


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):
        return "{}"
    text = json.dumps(value, default=str)
    return text[1:-1] if isinstance(value, str) else text


def _meaning(field: FieldInfo) -> str:
    """The description, in the words of YAML."""
    return re.sub(r"\bNone\b", "null", field.description or "")


def _first_line(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").strip().splitlines()[0].rstrip(".")


def as_markdown(found: list[Setting]) -> str:
    """Tables of settings, one for each first part of their paths."""
    out: list[str] = []
    title = None
    for setting in found:
        section = setting.key.split(".")[0] if "." in setting.key else "Top level"
        if section != title:
            out += ["", f"## {section}", "", "| key | kind | default | meaning |", "|---|---|---|---|"]
            title = section
        cells = (
            f"`{setting.key}`",
            *(text.replace("|", "/").replace("*", r"\*") for text in (setting.kind, setting.default, setting.meaning)),
        )
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out[1:]) + "\n"
