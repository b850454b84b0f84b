"""Checks of this room's assets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aframe_assets.store.job import Check, Declared

LEFT_OUT = 0.05
"""Share of the injections that may be left out because some model cannot see them whole, before a warning."""

COMPARISON_CHECKS = [
    Declared("every_model_compared", False, "0 of the models asked for could not be compared."),
    Declared("same_injections_for_all", False, f"At most {LEFT_OUT:.0%} of the injections are left out because a model cannot see them."),
]


def comparison_checks(table: Mapping[str, Any]) -> list[Check]:
    """The checks of `comparison`."""
    broken = "; ".join(f"{name}: {why}" for name, why in table["broken"].items())
    left_out = table["num_left_out"]
    share = left_out / max(1, left_out + table["num_injections"])
    text = f"{left_out} injections ({share:.0%}) are left out: some model needs more data about them than there are" if left_out else ""
    return [
        Check("every_model_compared", not broken, "warn", broken),
        Check("same_injections_for_all", share <= LEFT_OUT, "warn", text, {"left_out": left_out}),
    ]
