"""A comparison as tables of text, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aframe_assets.sensitivity.plots import Table
from aframe_assets.sensitivity.summary import rounded

CHANCE = 0.0455
"""Share of differences beyond two standard deviations where there is none."""


def value_text(cell: Mapping[str, Any]) -> str:
    """'0.52 ± 0.04' of a value of a model, or '< 0.02 (90 %)' where too few injections were found."""
    if "upper_limit" in cell:
        return f"< {cell['upper_limit']:.2g} (90 %)"
    return rounded(cell["value"], cell["error"])


def difference_text(d: Mapping[str, Any]) -> str:
    """'+2.4 σ', with '?' where few draws decide it, 'the same' of equal searches."""
    if not d["error_null"]:
        return "the same"
    return f"{d['sigma']:+.1f} σ{'?' if d['few'] else ''}"


def rate_tables(table: Mapping[str, Any]) -> list[Table]:
    """A table for each rate: models in rows, quantities in columns, each with the significance against the reference.

    Args:
        table: content of comparison.json.
    """
    shown = [q for q in table["quantities"] if not q["name"].startswith("snr ")]
    columns = ["model", *(_title(q) for q in shown)]
    out = []
    for far, unit in rates(table):
        rows = []
        for m in table["models"]:
            cells = {v["quantity"]: v for v in m["values"] if (v["far"], v["far_unit"]) == (far, unit)}
            rows.append([m["name"], *(_cell(table, m["name"], q["name"], far, unit, cells[q["name"]]) for q in shown)])
        rows += [[name, "broken", *[""] * (len(shown) - 1)] for name in table["broken"]]
        out.append(Table(f"{far:g} false alarms per {'year' if unit == '1/yr' else 'hour'}", columns, rows))
    return out


def _title(q: Mapping[str, Any]) -> str:
    return f"{q['label']}, {q['unit']}".replace("^3", "³") if q["unit"] else q["label"]


def _cell(table: Mapping[str, Any], model: str, quantity: str, far: float, unit: str, value: Mapping[str, Any]) -> str:
    wanted = (model, table["reference"], quantity, far, unit)
    found = [d for d in table["differences"] if (d["first"], d["second"], d["quantity"], d["far"], d["far_unit"]) == wanted]
    return value_text(value) + (f" ({difference_text(found[0])})" if found else "")


def rates(table: Mapping[str, Any]) -> list[tuple[float, str]]:
    """(FAR, unit) at which there are values."""
    return list(dict.fromkeys((v["far"], v["far_unit"]) for m in table["models"] for v in m["values"]))


def differences_table(table: Mapping[str, Any]) -> Table:
    """Every difference of two models, the surest first."""
    labels = {q["name"]: q for q in table["quantities"]}
    rows = [
        [
            d["first"],
            d["second"],
            _title(labels[d["quantity"]]),
            f"{d['far']:g} {d['far_unit'].removeprefix('1')}",
            rounded(d["value"], d["error"]),
            difference_text(d),
            f"{d['p_value']:.2g}",
            f"{d['only_first']} / {d['only_second']}",
        ]
        for d in sorted(table["differences"], key=lambda d: -abs(d["sigma"]))
    ]
    names = ("model", "less", "in", "false alarms", "difference", "significance", "p", "found by one alone")
    return Table("Differences", names, rows)


def notes(table: Mapping[str, Any]) -> list[str]:
    """Sentences that must stand beside the numbers."""
    models, differences = table["models"], table["differences"]
    out = [
        f"{table['num_injections']} injections, the same for all"
        + (f"; {table['num_left_out']} more that some model could not see whole are left out" if table["num_left_out"] else "")
        + f". Background: {_livetimes(models)}."
    ]
    if differences:
        few = "; '?': fewer than 10 injections decide it" if any(d["few"] and d["error_null"] for d in differences) else ""
        out += [
            f"In brackets: difference to {table['reference']} in standard deviations, paired over injections and noise{few}.",
            f"Of {len(differences)} differences {CHANCE * len(differences):.1f} or so are beyond 2 σ by chance if all models are equal. "
            "What another seed of a training would change is not in them.",
        ]
    out += [f"FAR {r['far']:g} {r['far_unit'].removeprefix('1')}: {r['note']}" for r in table["not_measurable"]]
    return [*out, *(f"{name} is broken: {why}" for name, why in table["broken"].items())]


def _livetimes(models: Sequence[Mapping[str, Any]]) -> str:
    hours = sorted({round(m["Tb"] / 3600, 2) for m in models})
    return f"{hours[0]:,.2f} h" if len(hours) == 1 else f"{hours[0]:,.2f} to {hours[-1]:,.2f} h, as each model's conditioning allows"
