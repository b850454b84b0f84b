"""The documentation is true: what it names exists, and what it shows runs, on a finished run at test size."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import h5py
import pytest
import typer.main
import yaml
from doc_names import SHIPPED, problem, subcommands
from doc_pages import LANGUAGES, Block, Command, Page, prints
from moto.server import ThreadedMotoServer

from aframe_assets import lineage
from aframe_assets.config import Config
from aframe_assets.config_load import build_config, preset_names
from aframe_assets.config_reference import as_markdown, settings
from aframe_assets.model.importing import is_shipped
from aframe_ops.cli import main as cli
from aframe_ops.cli.settings import NOT_SET
from aframe_ops.site import SiteConfig, SiteLoader

REPO = Path(__file__).resolve().parents[2]
PAGES = {p.name: Page.read(p) for p in (REPO / "README.md", *sorted((REPO / "docs").glob("*.md")))}
DATA = "../shared/data"


@dataclass(frozen=True)
class Replaced:
    """A command that is not run as it stands.

    Attributes:
        command: it, in full.
        reason: why not.
        instead: what is run in its place.
    """

    command: str
    reason: str
    instead: str


REPLACED = (
    Replaced("make demo", "installs from PyPI and then runs for a quarter of an hour", f"make -C {REPO} -n demo"),
    *(
        Replaced(f"aframe adopt {words}", "needs older files; tests/ops/test_ops_adopting.py makes some", "aframe adopt --help")
        for words in (
            "background old/background-1240600000-64.hdf5 old/background-1240600100-64.hdf5 --to runs/mine --sums old/SHA256SUMS",
            "training_waveforms old/train_waveforms.hdf5 --to runs/mine",
        )
    ),
    Replaced("make install", "installs from PyPI", f"make -C {REPO} -n install"),
    Replaced("make test", "installs from PyPI and would run this test again", f"make -C {REPO} -n test"),
    Replaced("make test-clusters-quick", "needs root and SLURM's packages", f"make -C {REPO} -n test-clusters-quick"),
    Replaced("make test-clusters", "installs Debian packages", f"make -C {REPO} -n test-clusters"),
    *(
        Replaced(
            f"aframe build-images {words}".strip(),
            "needs podman and gigabytes; `make test-containers` does it",
            "aframe build-images --help",
        )
        for words in ("", "cpu gpu --engine podman --tag 1.2 --push registry.example.org/group", "--check", "cpu --dev")
    ),
    Replaced(
        "PIP_EXTRA_INDEX_URL=https://wheels.example.org/cpu aframe build-images cpu",
        "needs podman, and an index that there is not",
        "aframe build-images --help",
    ),
    Replaced("aframe run runs/real", "two minutes; the parts that only real data have are tests of their rooms", "aframe plan runs/real"),
    Replaced("aframe run runs/ds1", "trains for hours; tests/ops/test_ops_mlgwsc1.py runs it at test size", "aframe plan runs/ds1"),
    Replaced("aframe run runs/o3", "fetches forty days of strain from GWOSC", "aframe plan runs/o3"),
    Replaced("aframe doctor runs/cluster", "needs SLURM; tests/clusters asks real daemons", "aframe doctor --help"),
    Replaced("aframe run runs/cluster", "needs SLURM; tests/clusters runs the graph on it", "aframe plan runs/cluster"),
    Replaced("aframe serve --install", "installs from PyPI; `make test-triton` does it", "aframe serve --help"),
    Replaced("aframe serve runs/demo", "needs the server, and serves until it is stopped; tests/triton starts it", "aframe serve --help"),
    Replaced(
        "aframe wheelhouse /shared/wheels --python 3.11 --platform manylinux_2_28_x86_64 --extra postgres",
        "downloads 4.4 GB; tests/clusters/test_clusters_offline.py makes a small one and installs it in a job",
        "aframe wheelhouse --help",
    ),
    Replaced(
        "aframe compare runs/demo runs/wide 'bundles/*' pretrained --on runs/demo --soft",
        "searches with a network for minutes; tests/comparing/test_comparing_run.py does it with small ones",
        "aframe compare --help",
    ),
    Replaced("dagster dev", "serves until it is stopped; tests/ops/test_ops_run.py starts it and uses its API", "dagster dev --help"),
    Replaced(
        "dagster asset materialize --select '*sensitive_volume' --partition-range FIRST...LAST",
        "FIRST and LAST stand for keys; all of the graph takes half a minute even when complete, two assets show the same",
        "dagster asset materialize --select '*background_index' --partition-range "
        "$(aframe segments list | head -1 | cut -f1)...$(aframe segments list | tail -1 | cut -f1)",
    ),
    Replaced(
        "aframe detect --model pretrained H-H1_LOSC_4_V2-1126259446-32.hdf5 L-L1_LOSC_4_V2-1126259446-32.hdf5",
        "the README leaves out the folder of the files",
        f"aframe detect --model pretrained {DATA}/strain/H-H1_LOSC_4_V2-1126259446-32.hdf5 {DATA}/strain/L-L1_LOSC_4_V2-1126259446-32.hdf5",
    ),
)
"""The only commands in the documentation that are not run. Everything else is."""


def test_the_list_of_commands_that_are_not_run_has_nothing_too_much():
    shown = {c.text for p in PAGES.values() for b in p.blocks if b.language in ("bash", "console") for c in b.commands}
    assert {r.command for r in REPLACED} <= shown


# --- running what is shown ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tiny_run, tmp_path_factory) -> Path:
    """A folder like a clone after `make demo`: `runs/demo` is a finished run, `../shared/data` the real data if they are here."""
    folder = tmp_path_factory.mktemp("docs")
    clone = folder / "clone"
    (clone / ".venv" / "bin").mkdir(parents=True)
    programs = shlex.quote(str(Path(sys.executable).parent))
    (clone / ".venv" / "bin" / "activate").write_text(f'export PATH={programs}:"$PATH"\n')
    tiny_run.copy_to(clone / "runs" / "demo")
    for data in (os.environ.get("AFRAME_SHARED_DATA"), REPO.parent / "shared" / "data"):
        if data and Path(data).is_dir():
            (folder / "shared").mkdir()
            (folder / "shared" / "data").symlink_to(Path(data).resolve())
            break
    return clone


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """A shell's environment, with an S3 server that has the bucket of the examples."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    url = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=url, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
    client.create_bucket(Bucket="my-bucket")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AFRAME_", "AWS_", "DAGSTER_"))}
    own = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "AFRAME_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    yield kept | keys | own | {"AWS_ENDPOINT_URL": url, "PATH": path}
    server.stop()


_done: set[tuple[str, ...]] = set()


def _context(texts: list[str]) -> tuple[str, ...]:
    return tuple(t for t in texts if t.startswith(("cd ", ". ", "export ")))


def run_shell(block: Block, site: Path, environment: dict[str, str]) -> None:
    """Runs the commands of a block in one shell and compares what a console block shows.

    A command of a bash block that has run before, in the same folder and environment, is not run again.
    """
    instead = {r.command: r.instead for r in REPLACED}
    chosen: list[tuple[Command, str]] = []
    for command in block.commands:
        text = instead.get(command.text, command.text)
        context = _context([t for _, t in chosen])
        known = (*context, text)
        if command.output is not None or known not in _done or _context([text]):
            chosen.append((command, text))
    _done.update((*_context([t for _, t in chosen[:i]]), text) for i, (_, text) in enumerate(chosen))
    if all(_context([text]) for _, text in chosen):
        return
    script = "set -eo pipefail\n" + "".join(f"echo @@@{i}\n{text}\n" for i, (_, text) in enumerate(chosen))
    start = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", script], cwd=site, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200
    )
    print(f"{block.place}: {time.monotonic() - start:.1f} s: {'; '.join(text for _, text in chosen)[:100]}")
    assert done.returncode == 0, f"{block.place}: exit code {done.returncode}\n{done.stdout[-3000:]}"
    parts = re.split(r"^@@@\d+\n", done.stdout, flags=re.MULTILINE)[1:]
    for (command, _), got in zip(chosen, parts, strict=True):
        if command.output is not None:
            shown = "\n".join(command.output)
            assert prints(command.output, got), f"{block.place}: `{command.text}` does not print\n{shown}\nbut\n{got}"


def run_python(block: Block, namespace: dict, site: Path) -> None:
    """Runs a block in the page's namespace; one that begins with a comment that names a file becomes that file."""
    first = re.match(r"# (runs/\S+\.py)\n", block.text)
    if first:
        (site / first[1]).write_text(block.text)
        return
    start = time.monotonic()
    # lines that count up to the block make a traceback point into the page
    exec(compile("\n" * block.line + block.text, str(REPO / "docs" / block.page), "exec"), namespace)
    print(f"{block.place}: {time.monotonic() - start:.1f} s of Python")


def check_yaml(block: Block) -> None:
    """Settings that are shown are settings that there are."""
    values = yaml.load(block.text, SiteLoader)
    if set(values) <= set(SiteConfig.model_fields):
        SiteConfig.model_validate({**values, "directory": "/"})
    else:
        build_config({"preset": "demo", **values}, source=block.place)


@pytest.mark.parametrize("name", [n for n, p in PAGES.items() if any(b.language != "text" for b in p.blocks)])
def test_what_a_page_shows_runs(name, site, environment, monkeypatch):
    monkeypatch.chdir(site)
    monkeypatch.setenv("AFRAME_CACHE_DIR", environment["AFRAME_CACHE_DIR"])
    for name_of_run in ("DAGSTER_HOME", "DAGSTER_MODULE_NAME", "AFRAME_CONFIG"):
        monkeypatch.setenv(name_of_run, "")  # so that what a page sets is undone
        monkeypatch.delenv(name_of_run)
    namespace: dict = {"__name__": "page"}
    skipped, lacking = [], set()
    for block in PAGES[name].blocks:
        assert block.language in LANGUAGES, f"{block.place}: language '{block.language}'; expected one of {sorted(LANGUAGES)}"
        needs = _needs(block, site)
        if needs:
            skipped.append(block.place)
            lacking |= needs
        elif block.language == "yaml":
            check_yaml(block)
        elif block.language == "python":
            run_python(block, namespace, site)
        elif block.language != "text":
            run_shell(block, site, environment)
    if skipped:
        pytest.skip(f"all but {', '.join(skipped)} ran: {'; '.join(sorted(lacking))}")


def _needs(block: Block, site: Path) -> set[str]:
    """What is not here of what is needed by what is run of a block, which may be something else than what it shows."""
    run = "\n".join([block.text, *(r.instead for r in REPLACED if r.command in block.text)])
    lacking = set()
    if DATA in run and not (site.parent / "shared").is_dir():
        lacking.add(f"real data are not here, expected {DATA} beside the checkout")
    if block.language != "text" and not is_shipped() and re.search(r"--(model|weights) pretrained|shipped_folder|plan runs/real", run):
        lacking.add("no weights are shipped with this version, expected aframe_assets/model/pretrained")
    return lacking


# --- what is named exists -------------------------------------------------------------------------


EVERY_PAGE = [
    p
    for folder in (".", "docs", "benchmarks", "aframe_assets", "aframe_ops", "deploy")
    for p in (REPO / folder).glob("**/*.md" if folder != "." else "*.md")
]


def broken_links(page: Page) -> list[str]:
    """Links of `page` that lead to no file of this project, or to no title in it."""
    out = []
    for link in page.links:
        file, _, anchor = link.partition("#")
        target = (page.path.parent / file).resolve() if file else page.path
        inside = target.exists() and target.is_relative_to(REPO)
        if not inside or (anchor and anchor not in Page.read(target).anchors):
            out.append(link)
    return out


def test_links_lead_somewhere():
    broken = {str(p.relative_to(REPO)): links for p in EVERY_PAGE if (links := broken_links(Page.read(p)))}
    assert not broken
    said = Page(
        REPO / "docs" / "made-up.md", "[a](index.md) [b](index.md#start-here) [c](nowhere.md) [d](index.md#nowhere) [e](../../elsewhere)"
    )
    assert broken_links(said) == ["nowhere.md", "index.md#nowhere", "../../elsewhere"]


def test_pages_that_the_code_names_exist():
    files = [p for top in ("aframe_assets", "aframe_ops", "benchmarks", "deploy", "docker") for p in (REPO / top).rglob("*") if p.is_file()]
    text = "\n".join(p.read_text(errors="ignore") for p in [*files, REPO / "Makefile"] if p.suffix in (".py", ".yaml", ".sh", ".j2", ""))
    named = set(re.findall(r"\bdocs/([\w-]+\.md)", text))
    assert "kubernetes.md" in named and named <= set(PAGES)


def test_every_benchmark_is_described():
    text = "\n".join(p.text for p in PAGES.values())
    programs = {p.stem for p in (REPO / "benchmarks").glob("*.py") if "__main__" in p.read_text()}
    assert programs and {m for m in programs if f"python -m benchmarks.{m}" not in text} == set()
    assert set(re.findall(r"python -m benchmarks\.(\w+)", text)) <= programs


def test_the_glossary_is_in_order_and_says_each_word_once():
    words = [row[0].lower() for row in PAGES["glossary.md"].tables[0].rows]
    assert words == sorted(set(words))


def test_every_page_can_be_reached_and_is_short():
    index = {link.partition("#")[0] for link in PAGES["index.md"].links}
    assert index == {n for n in PAGES if n not in ("README.md", "index.md")}
    # these are looked up by section, not read through: every estimator, every setting
    looked_up = {"science.md": 480, "settings.md": 300, "site-settings.md": 200}
    long = {n: p.text.count("\n") for n, p in PAGES.items() if p.text.count("\n") >= looked_up.get(n, 150)}
    assert not long


@pytest.fixture(scope="module")
def files(tiny_run) -> set[str]:
    """Names of all files of a finished run, and of the HDF5 datasets in them."""
    out = set()
    for path in tiny_run.path.rglob("*"):
        if path.is_file():
            out.add(path.name)
            if path.suffix in (".hdf5", ".h5"):
                with h5py.File(path) as f:
                    f.visit(out.add)
    return out


@pytest.mark.parametrize("name", PAGES)
def test_what_is_named_exists(name, files):
    source = "\n".join(p.read_text() for folder in ("aframe_assets", "aframe_ops") for p in (REPO / folder).rglob("*.py"))
    # of assets that the finished run does not have, and of the shipped model
    others = {
        "writing-an-asset.md": {"loudest.json", "my_search.py"},
        "segments.md": {"vetoes.csv"},
        "engine.md": {"windows.onnx"},
        "model.md": SHIPPED,
        "clusters.md": {"STEP.ATTEMPT.json"},
        "htcondor.md": {"STEP.ATTEMPT.json"},
        "offline-nodes.md": {"wheelhouse.json"},
        "comparing.md": {"models.json", "comparison.json", "comparison.html", "comparison.png"},
        "networks.md": {"best.ckpt", "model.pt"},
        "tuning.md": {"best.json", "best.yaml", "study.json", "study.png"},
    }
    files = files | others.get(name, set())
    wrong = {n: found for n in set(PAGES[name].own_names) if (found := problem(n, name, files, source))}
    assert not wrong


# --- nothing is left out --------------------------------------------------------------------------


def _leaves(command: Any, path: str) -> list[str]:
    below = subcommands(command)
    return [leaf for name, sub in below.items() for leaf in _leaves(sub, f"{path} {name}")] if below else [path]


def test_every_command_is_described():
    text = "\n".join(p.text for p in PAGES.values())
    assert [c for c in _leaves(typer.main.get_command(cli.app), "aframe") if c not in text] == []


@pytest.mark.parametrize(("name", "model"), [("settings.md", Config), ("site-settings.md", SiteConfig)])
def test_pages_of_settings_are_generated(name, model):
    found = settings(model, NOT_SET if model is SiteConfig else ())
    assert [s.key for s in found if not s.meaning] == [], "settings without a description"
    written = re.split(r"^<!-- generated.*\n\n", PAGES[name].text, flags=re.MULTILINE)[1]
    assert written == as_markdown(found), f"docs/{name} is not what `make settings-pages` writes"


def test_every_extra_is_described():
    told = {n for row in PAGES["installing.md"].tables[0].rows for n in re.findall(r"`(\w+)`", row[0])}
    assert told == set(tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def test_presets_and_sections_are_described():
    names = set(PAGES["configuration.md"].names)
    assert set(preset_names()) <= names
    assert set(Config.model_fields) <= names


def test_every_asset_and_check_is_on_the_page_of_its_room(tmp_path):
    from aframe_assets.definitions import build_defs

    context = {"layers": [1, 1], "context": 0.125}
    cascade = {"architecture": {"name": "streaming", **context}, "filter": {"name": "map", **context, "lag_head": {"map_stride": 8}}}
    config = build_config(
        {"preset": "tune", "vetoes": {"categories": ["CBC_CAT2"]}, "model": cascade, "comparison": {"models": [["x", "0" * 64]]}}
    )
    graph = build_defs(config, store_url=str(tmp_path)).resolve_asset_graph()
    for asset, node in lineage.graph(config).items():
        assert asset in set(PAGES[f"{node.group}.md"].names), f"{node.group}.md does not name {asset}"
    for key in graph.asset_check_keys:
        asset = key.asset_key.to_user_string()
        page = f"{lineage.graph(config)[asset].group}.md"
        row = next((line for line in PAGES[page].text.splitlines() if line.startswith(f"| `{key.name}` |")), None)
        assert row, f"{page} does not name the check {key.name} of {asset}"
        if "| blocks |" in PAGES[page].text:
            cells = [c.strip() for c in row.strip("|").split("|")]
            said = next(c for c in cells if c.startswith(("yes", "no")))
            assert said.startswith("yes") == graph.get_check_spec(key).blocking, f"{page}: whether {key.name} blocks"


def test_python_blocks_parse():
    blocks = [block for page in PAGES.values() for block in page.blocks if block.language == "python"]
    assert blocks
    for block in blocks:
        assert ast.parse(block.text, block.place).body, f"{block.place}: no statement"


def test_output_is_compared_line_by_line():
    assert prints(("a  b", "...", "c ... d"), "a b\nx\ny\nc 1 2 d\n")
    assert prints(("a ...", "..."), "a\n")
    assert not prints(("a", "b"), "a\nx\nb\n")
    assert not prints(("a ...",), "a\nb\n")
    assert shutil.which("bash")
