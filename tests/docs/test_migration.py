"""Who comes from Aframe finds everything that it has, and what stands beside it is there or its absence has a reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main
import yaml
from doc_names import importable, is_command, is_key
from doc_pages import Page, Table, names

from aframe_assets import lineage
from aframe_assets.config_load import build_config, preset_names
from aframe_ops.cli import main as cli
from aframe_ops.cli import upstream_init
from aframe_ops.executor.batch_options import PASSED
from aframe_ops.site import SiteConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAMES: dict[str, dict[str, list]] = yaml.safe_load(Path(__file__).with_name("aframe_names.yaml").read_text())
THREADS = NAMES.pop("faq.md")
PAGES = {name: Page.read(DOCS / name) for name in NAMES}
VALUE = "in `o3`"
ABSENT = re.compile(r"(none|not yet): \S+ \S+")
OTHERS = {"aframe.yaml", "site.yaml", "env.sh", "constraints.txt", "CUDA_VISIBLE_DEVICES", "WANDB_API_KEY"}
"""Files of a run directory, of a checkout, and variables that others read."""

PROGRAMS = {"aframe": cli.app, "aframe-init": upstream_init.app}


def rows(page: Page) -> list[tuple[Table, tuple[str, ...]]]:
    return [(table, row) for table in page.tables for row in table.rows]


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_aframe_has_is_in_a_table(name):
    said = {n for _, row in rows(PAGES[name]) for n in names(row[0])}
    wanted = {f"{group}: {n}" for group, some in NAMES[name].items() for n in some if n not in said}
    assert not wanted, f"{name} does not say what became of these"


def test_what_users_have_asked_is_answered():
    text = (DOCS / "faq.md").read_text()
    asked = {(repository, number) for repository, numbers in THREADS.items() for number in numbers}
    answered = {(r, int(n)) for r, n in re.findall(r"https://github\.com/([\w-]+/[\w-]+)/(?:issues|pull)/(\d+)\)", text)}
    assert answered == asked


def _exists(name: str, assets: set[str]) -> bool:
    program, *words = name.split()
    if program in PROGRAMS and words:
        return is_command(words, typer.main.get_command(PROGRAMS[program]))
    if program == "dagster":
        return True  # tests/docs/test_docs.py looks these up
    passed = any(re.fullmatch(p.replace("*", r"\w+"), name) for p in PASSED)
    if name.startswith(("aframe_assets.", "aframe_ops.")):
        return importable(name)
    return name in OTHERS or name in assets or name in preset_names() or passed or is_key(name) or is_key(name, SiteConfig)


@pytest.fixture(scope="module")
def assets() -> set[str]:
    """Every asset that some experiment has."""
    cascade = {"architecture": {"name": "streaming", "context": 0.5}, "filter": {"name": "map", "context": 0.5}}
    some = {"vetoes": {"categories": ["CBC_CAT2"]}, "model": cascade}
    return set(lineage.graph(build_config({"preset": "tune"}))) | set(lineage.graph(build_config({"preset": "o3", **some})))


def _problem(here: str, assets: set[str]) -> str | None:
    """What is wrong with the cell that says what is here."""
    if here.startswith(("none", "not yet")):
        return None if ABSENT.match(here) else "'none' and 'not yet' need a colon and a reason"
    if any(_exists(n, assets) for n in names(here)) or re.search(r"\]\([\w-]+\.md", here):
        return None
    return "names no command, key, asset, variable or page"


@pytest.mark.parametrize("name", NAMES)
def test_each_row_leads_to_something_or_says_why_not(name, assets):
    wrong = {row[0]: fault for table, row in rows(PAGES[name]) if (fault := _problem(row[table.columns.index("here")], assets))}
    assert not wrong


@pytest.mark.parametrize("name", [n for n, page in PAGES.items() if any(VALUE in t.columns for t in page.tables)])
def test_values_are_those_of_the_preset(name):
    config = build_config({"preset": "o3"}).model_dump(mode="json")
    compared = 0
    for table, row in rows(PAGES[name]):
        if VALUE not in table.columns:
            continue
        keys = [n for n in names(row[table.columns.index("here")]) if is_key(n)]
        cell = row[table.columns.index(VALUE)]
        if cell == "–":
            continue
        values = yaml.safe_load(f"[{cell}]")
        assert len(values) <= len(keys), f"{row[0]}: {len(keys)} keys and {len(values)} values"
        for key, said in zip(keys, values, strict=False):
            value = config
            for part in key.split("."):
                value = value[part]
            assert said == value, f"{name}: {row[0]}: {key} is {value}, not {said}"
            compared += 1
    assert compared > 30


def test_a_row_without_a_place_or_reason_is_found(assets):
    assert _problem("`segments`", assets) is None and _problem("`waveforms.prior`", assets) is None
    assert _problem("none: the server sets the pace", assets) is None
    assert _problem("`aframe run --until psd`", assets) is None
    for bad in ("", "none", "not yet", "`aframe run --untill psd`", "`waveforms.priors`", "`TrainLocal`", "somewhere else"):
        assert _problem(bad, assets), bad
