"""Settings are told as the models have them."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter
from typer.testing import CliRunner

from aframe_assets.config import Config
from aframe_assets.config_load import build_config
from aframe_assets.config_quantities import Hertz, Seconds
from aframe_assets.config_reference import Setting, as_markdown, settings
from aframe_ops.cli.main import app
from aframe_ops.site import SiteConfig


class Inner(BaseModel):
    """What is inside. Second sentence."""

    length: Seconds = Field(default=2.0, gt=0, le=4, description="a | b")
    band: Hertz | None = Field(default=None, ge=1, description="None: no *")


class Outer(BaseModel):
    kind: Literal["a", "b", "c"] = "b"
    needed: int
    pairs: list[tuple[float, float]] = []
    table: dict[str, list[str]] = {}
    one: Inner = Inner()
    other: Inner | None = None
    many: list[Inner] = Field(default=[], description="more of them")


def test_every_field_is_told_with_unit_bounds_and_default():
    assert settings(Outer, leave_out=("pairs",)) == [
        Setting("kind", "a, b or c", "b", ""),
        Setting("needed", "whole number", "", ""),
        Setting("table", "mapping of text to list of text", "{}", ""),
        Setting("one.length", "seconds above 0, at most 4", "2.0", "a | b"),
        Setting("one.band", "hertz at least 1 or null", "null", "null: no *"),
        Setting("other", "keys below it; its keys are those of one", "null", "What is inside. Second sentence"),
        Setting("many", "list of mappings; its keys are those of one", "[]", "more of them"),
    ]
    assert settings(Outer)[2] == Setting("pairs", "list of [number, number]", "[]", "")


def test_tables_hold_what_would_end_a_cell():
    lines = as_markdown(settings(Outer)).splitlines()
    assert lines[:4] == ["## Top level", "", "| key | kind | default | meaning |", "|---|---|---|---|"]
    assert (
        "| `one.length` | seconds above 0, at most 4 | 2.0 | a / b |" in lines
        and r"| `one.band` | hertz at least 1 or null | null | null: no \* |" in lines
    )


def _values(model: BaseModel, prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        out |= _values(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {prefix + name: value}
    return out


def test_no_setting_of_an_experiment_is_left_out():
    told = {s.key for s in settings(Config)}
    assert set(_values(build_config({"preset": "demo", "model": {"tune": {}}}))) <= told
    assert {"model.tune.num_rounds", "execution.training.tracking.project"} <= told


def test_units_still_convert_where_they_are_told():
    assert TypeAdapter(Seconds).validate_python("2 min") == 120 and TypeAdapter(Hertz).validate_python("2 kHz") == 2000


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("keys", "fduration"), "conditioning.fduration = 1  (seconds above 0)\n    length of the whitening filter"),
        (("keys", "shared_disk", "--site"), "htcondor.shared_disk = true  (true or false)\n"),
        (("keys", "steps_per_gpu", "--site", "--markdown"), "| `executor.steps_per_gpu` | whole number at least 1 | 1 |"),
    ],
)
def test_the_command_tells_them(words, shown):
    done = CliRunner().invoke(app, ["config", *words])
    assert done.exit_code == 0 and shown in done.output


def test_a_key_that_is_not_there_is_answered_with_one_that_is():
    done = CliRunner().invoke(app, ["config", "keys", "fduratoin"])
    assert done.exit_code == 2 and "did you mean fduration?" in done.output


def test_a_site_has_no_directory_key():
    assert "directory" not in CliRunner().invoke(app, ["config", "keys", "--site", "--markdown"]).output.split("`")
    assert "directory" in {s.key for s in settings(SiteConfig)}
