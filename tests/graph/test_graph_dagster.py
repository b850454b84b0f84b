"""Dagster's own commands and pages on a run directory, used as the README says."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import psutil
import pytest
from tiny_run import RunDirectory, wait_for

MARK = "GRAPH_TEST_DAGSTER"
"""Environment variable that every process of a test inherits."""


@pytest.fixture
def copy(tiny_run, tmp_path):
    """A copy of the finished run; whatever a test left running there is ended."""
    run = tiny_run.copy_to(tmp_path / "copied run")
    run.env = {**run.env, MARK: str(run.path)}
    yield run
    for process in processes(run):
        process.kill()


def processes(run: RunDirectory) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get(MARK) == str(run.path) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def shell(run: RunDirectory, command: str) -> subprocess.CompletedProcess:
    """`command` in the run directory after ``. ./env.sh``; both outputs in stdout."""
    return subprocess.run(
        ["bash", "-c", f". ./env.sh && {command}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=run.path,
        env=run.env,
        timeout=400,
    )


def test_the_commands_of_the_readme_end_0_and_redo_nothing(copy):
    before, keys = copy.made_at(), copy.workspace().partitions()
    for command in (
        "dagster definitions validate",
        "dagster asset materialize --select segments",
        "dagster asset materialize --select sensitive_volume",
        f"dagster asset materialize --select '*sensitive_volume' --partition-range {keys[0]}...{keys[-1]}",
    ):
        done = shell(copy, command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}"
        assert not [line for line in done.stdout.splitlines() if line.startswith("aframe:")]
    assert copy.made_at() == before
    assert not processes(copy)


@pytest.mark.parametrize("missing", ["events", "inference_results"])
def test_a_missing_upstream_is_one_line_and_no_retry(copy, missing):
    manifests = list((copy.path / "store" / missing).glob("*.json"))
    for manifest in manifests:
        manifest.unlink()
    asset = {"events": "sensitive_volume", "inference_results": "events"}[missing]
    done = shell(copy, f"dagster asset materialize --select {asset}")
    assert done.returncode == 1, done.stdout[-4000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("aframe:")]
    assert line.startswith(f"aframe: {asset} needs {missing}") and f"`aframe run --until {missing}`" in line
    tries = {path.name for path in (copy.path / "logs").glob(f"*/{asset}.*.err")}
    assert tries == {f"{asset}.0.err"}, "it was retried"
    assert "STEP_UP_FOR_RETRY" not in done.stdout


class Pages:
    """The GraphQL API of a webserver on this machine."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}/graphql"

    def ask(self, query: str, **variables) -> dict:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self.url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert "errors" not in found, found["errors"]
        return found["data"]

    def assets(self) -> set[str]:
        try:
            return {node["assetKey"]["path"][0] for node in self.ask("{assetNodes{assetKey{path}}}")["assetNodes"]}
        except OSError:  # it is still starting
            return set()


def test_dagster_dev_shows_the_graph_and_backfills_two_segments(copy):
    before = copy.contents()
    lost = copy.workspace().partitions()[-2:]
    for key in lost:
        (copy.path / "store" / "inference_results" / f"{key}.json").unlink()
        shutil.rmtree(copy.path / "store" / "inference_results" / key)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    log = copy.path / "dev.log"
    with log.open("w") as out:
        dev = subprocess.Popen(
            ["bash", "-c", f". ./env.sh && exec dagster dev --host 127.0.0.1 --port {port}"],
            cwd=copy.path,
            env=copy.env,
            stdout=out,
            stderr=out,
            start_new_session=True,
            # a suite that was started in the background ignores SIGINT, and so would all its children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        pages = Pages(port)
        shown = wait_for(lambda: pages.assets() or _fail_if_ended(dev, log), 120, "the asset graph on the page")
        assert shown == set(copy.workspace().graph)
        started = pages.ask(
            """mutation($p: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $p) {
                   __typename ... on LaunchBackfillSuccess {backfillId} ... on PythonError {message}}}""",
            p={"assetSelection": [{"path": ["inference_results"]}], "partitionNames": lost},
        )["launchPartitionBackfill"]
        assert started["__typename"] == "LaunchBackfillSuccess", started
        query = "query($b: String!) {partitionBackfillOrError(backfillId: $b) {... on PartitionBackfill {status}}}"

        def ended() -> str | None:
            status = pages.ask(query, b=started["backfillId"])["partitionBackfillOrError"]["status"]
            return status if status not in ("REQUESTED", "CANCELING") else _fail_if_ended(dev, log)

        assert wait_for(ended, 240, "the end of the backfill") == "COMPLETED_SUCCESS"
        assert copy.contents() == before
    finally:
        os.killpg(dev.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            dev.wait(30)
    wait_for(lambda: not processes(copy), 30, "the end of all its processes")


def _fail_if_ended(dev: subprocess.Popen, log) -> None:
    assert dev.poll() is None, log.read_text()[-4000:]
    time.sleep(0.5)
