"""What every section of an experiment is made of: values with units, and unknown keys refused."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

SECONDS_PER_YEAR = 31_557_600.0
"""Julian year; the one year of the whole project (reference 2.13; upstream uses two)."""

_SECONDS = {"s": 1.0, "ms": 1e-3, "min": 60.0, "h": 3600.0, "day": 86400.0, "d": 86400.0, "yr": SECONDS_PER_YEAR}
_HERTZ = {"Hz": 1.0, "kHz": 1e3, "mHz": 1e-3}


_NUMBER_AND_UNIT = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z]+)")


def _quantity(table: dict[str, float], kind: str):
    def parse(value: Any) -> Any:
        found = _NUMBER_AND_UNIT.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None:
            return value
        number, unit = found.groups()
        if unit not in table:
            raise ValueError(f"unit '{unit}' is not a unit of {kind}; use a plain number or one of {', '.join(table)}")
        return float(number) * table[unit]

    return BeforeValidator(parse)


class Unit(str):
    """Marks a number in an annotation as one of this unit."""


Seconds = Annotated[float, _quantity(_SECONDS, "time"), Unit("s")]
Hertz = Annotated[float, _quantity(_HERTZ, "frequency"), Unit("Hz")]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


_LATER = {"later": True}


def later(default: Any, **settings: Any) -> Any:
    """A field that came after artifacts had been made: at its `default`, with which they were made, it enters no key.

    Args:
        default: value (not a factory).
        settings: those of pydantic's Field.
    """
    return Field(default=default, json_schema_extra=_LATER, **settings)


def in_key(section: BaseModel) -> dict[str, Any]:
    """The values of `section` as plain data, without those that are `later` and at their default."""
    out = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if field.json_schema_extra == _LATER and value == field.default:
            del out[name]
        elif isinstance(value, BaseModel):
            out[name] = in_key(value)
    return out
