"""`dagster dev` on a finished run and a headless Chromium that sees nothing but this machine.

The run is a copy of ``$AFRAME_UI_RUN`` (hard links in its store), as `make test-ui` gives it, or the tests' small one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from tiny_run import RunDirectory

REPO = Path(__file__).resolve().parents[2]

# other fixtures take AFRAME_* away before tests begin
GIVEN, SHOTS = os.environ.get("AFRAME_UI_RUN"), Path(os.environ.get("AFRAME_UI_SHOTS", REPO / "build" / "ui"))

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]

PATIENCE = 180.0
"""Seconds; a page takes 2 to 10 on an idle machine."""


@dataclass
class Watched:
    """A page, and what went wrong on it: errors of its scripts and console, requests that leave this machine."""

    page: object
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def listen(self, inside: tuple[str, ...]) -> Watched:
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("request", lambda r: None if r.url.startswith(inside) else self.outside.append(r.url))
        return self

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(SHOTS / f"{name}.png"))


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[ui]'")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def finished(request, tmp_path_factory) -> RunDirectory:
    """A finished run that tests may change."""
    place = tmp_path_factory.mktemp("ui") / "run"
    if not GIVEN:
        return request.getfixturevalue("tiny_run").copy_to(place)
    given = Path(GIVEN).resolve()
    if not (given / "store" / "report" / "_.json").exists():
        pytest.fail(f"AFRAME_UI_RUN={GIVEN}: no finished run with its store in store/; `aframe run {GIVEN}` makes it")
    shutil.copytree(given, place, ignore=shutil.ignore_patterns("store", "env.sh"))
    try:
        shutil.copytree(given / "store", place / "store", copy_function=os.link)
    except (OSError, shutil.Error):  # another disk
        shutil.rmtree(place / "store", ignore_errors=True)
        shutil.copytree(given / "store", place / "store")
    run = RunDirectory(place)
    run.aframe("init", str(place), "--preset", yaml.safe_load((place / "aframe.yaml").read_text())["preset"])
    return run


@pytest.fixture(scope="session")
def lost(finished) -> str:
    """Key of a test segment whose injections are gone."""
    workspace = finished.workspace()
    rows = workspace.store.manifest("segments").handle.meta["rows"]
    key = sorted(k for k, r in rows.items() if r["role"] == "test")[-1]
    folder = finished.path / "store" / "injections"
    (folder / f"{key}.json").unlink()
    shutil.rmtree(folder / key)
    return key


@pytest.fixture(scope="session")
def server(finished, lost) -> Iterator[str]:
    """Address of `dagster dev` on the run."""
    with serving(finished) as address:
        yield address


@pytest.fixture(scope="session")
def serve():
    """`serving`, for tests with a run of their own."""
    return serving


@contextmanager
def serving(run: RunDirectory) -> Iterator[str]:
    """`dagster dev` on a run directory; its address."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}", open(run.path / "dagster-dev.log", "wb")
    # `env.sh` says where the run is; the interpreter is that of the tests
    command = f'. ./env.sh && exec "{sys.executable}" -m dagster dev -h 127.0.0.1 -p {port}'
    env = run.env | {"DAGSTER_DISABLE_TELEMETRY": "1"}
    started = subprocess.Popen(["bash", "-c", command], cwd=run.path, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 600
        while not _answers(f"{address}/server_info"):
            if started.poll() is not None or time.monotonic() > end:
                pytest.fail("dagster dev did not come up: " + (run.path / "dagster-dev.log").read_text()[-3000:])
            time.sleep(0.5)
        yield address
    finally:
        # it does not end on SIGTERM when it was started in the background
        for sign, grace in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
            try:
                os.killpg(started.pid, sign)
                started.wait(grace)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        log.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def watch():
    """Listens to a page: (page, beginnings of addresses that are inside) -> Watched."""
    return lambda page, inside: Watched(page).listen(inside)


@pytest.fixture
def ui(browser, server, watch):
    """Opens an address of the server in a page, 1500 by 1000 pixels."""
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    context.set_default_timeout(1000 * PATIENCE)
    context.route(lambda url: not url.startswith((server, "data:", "blob:")), lambda route: route.abort())
    watched = watch(context.new_page(), (server, "data:", "blob:"))

    def go(path: str) -> Watched:
        watched.page.goto(server + path, wait_until="domcontentloaded")
        return watched

    yield go
    context.close()
