"""Batch systems of this machine's own, and run directories that use them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest
from dagster_graphql import DagsterGraphQLClient
from moto.server import ThreadedMotoServer
from toy_run import Toy

sys.path.insert(0, str(Path(__file__).parent))

import condor_pool
import kube_cluster
from slurm_cluster import SlurmCluster, missing

SITE = SlurmCluster.site


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.clusters)


def started(**options) -> Iterator[SlurmCluster]:
    # Nobody comes here without having asked for clusters, so what is missing is an error and no skip.
    if reason := missing(accounting=options.get("accounting", False)):
        pytest.fail(reason)
    cluster = SlurmCluster(**options).start()
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A cluster that keeps no accounts; tests leave it running and idle."""
    yield from started()


@pytest.fixture(scope="session")
def htcondor() -> Iterator[condor_pool.CondorPool]:
    """A pool that stands in for HTCondor; tests leave it running and idle."""
    if reason := condor_pool.absent():
        pytest.skip(reason)
    if reason := condor_pool.missing():
        pytest.fail(reason)
    pool = condor_pool.CondorPool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[kube_cluster.KubeCluster]:
    """The executing stand-in for Kubernetes; tests leave it idle."""
    if reason := kube_cluster.missing():
        pytest.skip(reason)
    cluster = kube_cluster.KubeCluster().start()
    yield cluster
    cluster.close()


class Here:
    """This machine itself, as tests of batch systems see those."""

    name, env = "local", {}
    site = "executor: {backend: local, cores: 4, memory_gb: 8}\n"

    def active(self) -> set[str]:
        """It has no jobs."""
        return set()


@pytest.fixture
def local() -> Here:
    return Here()


Cluster = SlurmCluster | condor_pool.CondorPool | kube_cluster.KubeCluster | Here


@pytest.fixture(params=["slurm", "htcondor", "kubernetes"])
def cluster(request) -> Cluster:
    """Every batch system in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def new_toy(tmp_path) -> Iterator[Callable[..., Toy]]:
    """Makes run directories around ``batch_definitions.py`` whose steps are jobs of a cluster."""
    made: list[Toy] = []

    def make(cluster: Cluster, site: str | None = None, **variables: str) -> Toy:
        graph = Path(__file__).with_name("batch_definitions.py")
        made.append(Toy(tmp_path / str(len(made)), graph, site or cluster.site, {**cluster.env, **variables}))
        return made[-1]

    yield make
    for toy in made:
        toy.close()


@pytest.fixture
def toy(cluster, new_toy) -> Toy:
    return new_toy(cluster)


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Variables that lead to an S3 with the bucket `bucket`, and that are secret."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "planted-id", "AWS_SECRET_ACCESS_KEY": "planted-s3-secret", "AWS_DEFAULT_REGION": "us-east-1"}
    s3_of(keys | {"AWS_ENDPOINT_URL": url}).create_bucket(Bucket="bucket")
    yield keys | {"AWS_ENDPOINT_URL": url}
    server.stop()


def s3_of(env: dict[str, str]):
    """A client of the S3 of these variables."""
    keys = {"aws_access_key_id": env["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": env["AWS_SECRET_ACCESS_KEY"]}
    return boto3.client("s3", endpoint_url=env["AWS_ENDPOINT_URL"], region_name=env["AWS_DEFAULT_REGION"], **keys)


def wait_until(condition: Callable[[], object], timeout: float, what: str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.1)


@contextlib.contextmanager
def webserver(toy: Toy) -> Iterator[DagsterGraphQLClient]:
    """`dagster dev` in this run directory, by the API of its pages."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port), "-f", str(toy.graph)]
    with (toy.path / "webserver.log").open("wb") as log:
        server = subprocess.Popen(words, env=toy.env, cwd=toy.path, stdout=log, stderr=log, start_new_session=True)
    toy.started.append(server)
    wait_until(lambda: _answers(port), 120, "the webserver to answer")
    try:
        yield DagsterGraphQLClient("127.0.0.1", port_number=port)
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        # its children may have been started deaf to interrupts, as in the background of a shell
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def job_of(toy: Toy, name: str) -> dict:
    """What the handler has recorded about the one job of attempt `name`."""
    return json.loads(toy.log(f"{name}.job").read_text())
