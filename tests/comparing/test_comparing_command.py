"""What `aframe compare` does with models that break, without searching anything."""

from __future__ import annotations

import io

import dagster as dg
import numpy as np
import pytest
from rich.console import Console

from aframe_assets.comparing import assets as room
from aframe_assets.comparing.evaluation import require_comparable
from aframe_assets.comparing.models import ComparisonError
from aframe_assets.config import Comparison
from aframe_assets.config_load import build_config
from aframe_ops.cli import comparing, running
from aframe_ops.cli.initialise import initialise

MODELS = [("wide", "a" * 64), ("deep", "b" * 64), ("again", "b" * 64)]
STEP = "compared_models.make_compared_models[deep_bbbbbb]"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Calls the command with MODELS; its runs fail as `failures` say, one after the other, then one succeeds."""
    run, _ = initialise(tmp_path / "run", "demo")
    shown, asked = io.StringIO(), []
    monkeypatch.setattr(comparing, "_look", lambda *_: (list(MODELS), {"gone": "not found"} if command.broken else {}))
    monkeypatch.setattr(comparing, "_show", lambda *_: None)

    def run_all(place, out, *, config, until, **_):
        assert (place, until) == (run, "comparison")
        asked.append(config.comparison)
        if command.failures:
            raise running.RunFailed(command.failures.pop(0))
        return "workspace"

    monkeypatch.setattr(running, "run_all", run_all)

    def command(soft):
        out = Console(file=shown, width=200)
        return comparing.compare_models(run, ["wide", "deep", "again"], out, soft=soft)

    command.failures, command.broken, command.asked, command.shown = [], False, asked, shown
    return command


def test_a_model_that_breaks_on_the_way_is_left_out_if_asked_to(command):
    command.failures = [{STEP: "its logits are not finite"}]
    assert command(soft=True)
    assert [c.models for c in command.asked] == [MODELS, MODELS[:1]]
    # a bundle that was named twice breaks under both names
    assert command.asked[1].broken == dict.fromkeys(("deep", "again"), "its logits are not finite")
    command.failures = [{STEP: "its logits are not finite"}]
    assert not command(soft=False)
    assert len(command.asked) == 3


def test_a_run_that_is_stopped_or_fails_elsewhere_is_not_gone_on_with(command):
    for failed in ({}, {"injections.make_injections[c00000]": "disk full"}):
        command.failures = [failed]
        assert not command(soft=True)
    assert len(command.asked) == 2


def test_nothing_is_searched_with_a_broken_model_among_them(command):
    command.broken = True
    assert not command(soft=False)
    assert not command.asked and "--soft" in command.shown.getvalue()
    assert command(soft=True)
    assert command.asked[0].broken == {"gone": "not found"}


def test_a_model_that_all_others_would_be_held_up_by_is_refused_in_its_own_step():
    with pytest.raises(ComparisonError, match="no background event: test segments are too short"):
        require_comparable(0, np.ones(3, bool))
    with pytest.raises(ComparisonError, match="sees none of 3 injections whole: test segments are too short"):
        require_comparable(9, np.zeros(3, bool))
    require_comparable(9, np.array([True, False]))
    # a run without any injection is told of as such, and not as of a model
    require_comparable(9, np.zeros(0, bool))


@pytest.mark.parametrize("maker", ["make_compared_model", "make_comparison"])
def test_what_cannot_be_compared_is_not_tried_again(maker, monkeypatch):
    def make(*_):
        raise ComparisonError("too short")

    monkeypatch.setattr(room, maker, make)
    config = build_config({"preset": "demo"})
    given = {}
    monkeypatch.setattr(room, "pieced_asset", lambda name, make, *_, **__: given.update(make_compared_model=make) or [])
    monkeypatch.setattr(room, "plain_asset", lambda name, make, *_, **__: given.update(make_comparison=make))
    room.assets(config.model_copy(update={"comparison": Comparison(models=MODELS)}))
    with pytest.raises(dg.Failure) as raised:
        given[maker](None, "a" * 64)
    assert raised.value.description == "too short" and not raised.value.allow_retries


def test_none_is_left(command):
    command.failures = [{STEP: "one"}, {"compared_models.make_compared_models[wide_aaaaaa]": "two"}]
    assert not command(soft=True)
    assert len(command.asked) == 2 and "none of the models can be compared" in command.shown.getvalue()
