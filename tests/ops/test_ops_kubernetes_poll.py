"""What a poll of Kubernetes does beside looking, against a played server: outputs, Secrets, and nothing that blinds the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aframe_ops.executor.base import RELAYED, Request
from aframe_ops.executor.kubernetes import Kubernetes, _Gone, _There
from aframe_ops.executor.kubernetes_manifest import JOB_LABEL, job_id
from aframe_ops.executor.scheduler import BatchJob, JobState, Phase, Unreachable
from aframe_ops.sites.kubernetes import KubernetesSite

OUTPUT = f"before Python\n{RELAYED} a line\n".encode()
DEAD_NODE = Unreachable("Get https://10.0.0.7:10250/containerLogs: dial tcp: connect: connection refused (500)")


class Server:
    """Answers as `kubernetes._Client` does; an exception under a verb's name is raised in its place."""

    namespace = "group"

    def __init__(self):
        self.jobs: dict[str, dict] = {}
        self.pods: dict[str, dict] = {}
        self.asked: list[tuple[str, str]] = []
        self.trouble: dict[str, Exception] = {}

    def _ask(self, verb: str, kind: str, name: str = "") -> None:
        self.asked.append((verb, kind))
        if wrong := self.trouble.get(f"{verb} {kind}", self.trouble.get(f"{verb} {kind} {name}")):
            raise wrong

    def create(self, kind: str, manifest: dict) -> dict:
        name = manifest["metadata"]["name"]
        self._ask("create", kind, name)
        made = {**manifest, "metadata": {**manifest["metadata"], "uid": "u"}}
        if kind == "jobs":
            self.jobs[name] = made
        return made

    def read(self, kind: str, name: str) -> dict:
        self._ask("read", kind, name)
        if name not in self.jobs:
            raise _Gone(name)
        return self.jobs[name]

    def delete(self, kind: str, name: str) -> None:
        self._ask("delete", kind, name)
        if kind == "jobs":
            self.jobs.pop(name, None)
            self.pods.pop(name, None)

    def list(self, kind: str, **selectors: str) -> list[dict]:
        self._ask("list", kind)
        return list({"jobs": self.jobs, "pods": self.pods}.get(kind, {}).values())

    def output(self, pod: str) -> bytes:
        self._ask("output", "pods", pod)
        return OUTPUT

    def end(self, id: str) -> None:
        self.show(id, "Failed", containerStatuses=[{"name": "step", "state": {"terminated": {"reason": "Error", "exitCode": 3}}}])

    def show(self, id: str, phase: str, **status) -> None:
        self.pods[id] = {"metadata": {"name": f"{id}-pod", "labels": {JOB_LABEL: id}}, "status": {"phase": phase, **status}}

    def count(self, verb: str, kind: str) -> int:
        return self.asked.count((verb, kind))


@pytest.fixture
def server() -> Server:
    return Server()


def cluster(server: Server, **site) -> Kubernetes:
    scheduler = Kubernetes(KubernetesSite(image="i", **site), "run")
    scheduler._client = server
    return scheduler


def a_job(folder: Path, name: str = "step.0-abc") -> BatchJob:
    spec = folder / f"{name}.json"
    spec.write_text('{"env": {}, "cwd": "/"}')
    return BatchJob(name, Request(cpus=1, time_min=30), 0, ("python", str(spec)), spec, folder / name, folder)


def test_a_log_that_cannot_be_read_does_not_hide_the_other_jobs(server, tmp_path):
    scheduler = cluster(server)
    lost, ended, runs = (scheduler.submit(a_job(tmp_path, f"{name}.0-abc")) for name in ("lost", "ended", "runs"))
    server.end(ended)
    server.end(lost)
    server.show(runs, "Running")
    server.trouble[f"output pods {lost}-pod"] = DEAD_NODE
    for _ in range(3):
        states = scheduler.poll([ended, lost, runs])
        assert [states[id].phase for id in (ended, lost, runs)] == [Phase.ENDED, Phase.ENDED, Phase.RUNNING]
    assert (tmp_path / "ended.0-abc.err").read_bytes() == OUTPUT
    assert (tmp_path / "ended.0-abc.relay").read_text() == f"{RELAYED} a line\n"
    told = (tmp_path / "lost.0-abc.err").read_text()
    assert told.count("\n") == 1 and f"the log of pod {lost}-pod could not be read (Get https" in told and "connection refused" in told


def test_a_secret_that_cannot_be_deleted_and_a_full_disk_hide_nothing(server, tmp_path):
    scheduler = cluster(server)
    id = scheduler.submit(a_job(tmp_path))
    server.end(id)
    server.trouble["delete secrets"] = Unreachable("webhook timed out (500)")
    (tmp_path / "step.0-abc.err").symlink_to("/dev/full")
    assert scheduler.poll([id])[id] == JobState(Phase.ENDED, "ended with exit code 3 without reporting a result")


def test_jobs_that_are_long_gone_are_not_deleted_again(server, tmp_path):
    scheduler = cluster(server)
    gone = [job_id(f"s{i}.0-abc") for i in range(50)]
    mine = scheduler.submit(a_job(tmp_path))
    del server.jobs[mine]
    for _ in range(2):
        assert all(state.phase is Phase.ENDED for state in scheduler.poll([*gone, mine]).values())
    assert server.count("delete", "secrets") == 1  # of the one that this run made


def test_watching_jobs_changes_nothing(server, tmp_path):
    owner = cluster(server)
    stuck, ended, podless = (owner.submit(a_job(tmp_path, f"{name}.0-abc")) for name in ("stuck", "ended", "podless"))
    server.show(stuck, "Pending", containerStatuses=[{"name": "step", "state": {"waiting": {"reason": "ErrImagePull"}}}])
    server.end(ended)
    server.asked.clear()
    other = cluster(server, start_minutes=1e-9)
    for _ in range(2):
        states = other.watch([stuck, ended, podless, job_id("gone.0-abc")])
        phases = [state.phase for state in states.values()]
        assert phases == [Phase.PENDING, Phase.ENDED, Phase.PENDING, Phase.ENDED]
    assert states[stuck].stuck and states[podless].stuck
    assert {verb for verb, _ in server.asked} == {"list"} and not list(tmp_path.glob("*.err"))
    owner = cluster(server, start_minutes=1e-9)
    owner.poll([stuck, podless])
    given_up = owner.poll([stuck, podless])
    assert "could not start within" in given_up[stuck].words and "had no pod after" in given_up[podless].words
    assert not {stuck, podless} & set(server.jobs)


def test_a_job_that_cannot_be_given_up_hides_no_other(server, tmp_path):
    scheduler = cluster(server, start_minutes=1e-9)
    podless, runs = (scheduler.submit(a_job(tmp_path, f"{name}.0-abc")) for name in ("podless", "runs"))
    server.show(runs, "Running")
    server.trouble["delete jobs"] = Unreachable("webhook timed out (500)")
    for _ in range(2):
        states = scheduler.poll([podless, runs])
    assert states[podless].phase is Phase.PENDING and states[runs].phase is Phase.RUNNING
    server.trouble.clear()
    assert scheduler.poll([podless])[podless].phase is Phase.ENDED


def test_a_job_that_goes_while_it_is_submitted_is_unreachable(server, tmp_path):
    server.trouble["create jobs"] = _There("it exists")
    with pytest.raises(Unreachable, match="was deleted"):
        cluster(server).submit(a_job(tmp_path))


def test_the_place_is_the_server_and_namespace_and_no_secret(tmp_path):
    def place(**cluster_keys: str) -> str:
        config = {
            "clusters": [{"name": "c", "cluster": {"server": "https://me:hunter2@api.example.org:6443/"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "group"}}],
            "users": [{"name": "u", "user": {"token": "hunter2"}}],
            "current-context": "x",
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        return Kubernetes(KubernetesSite(image="i", kubeconfig=str(tmp_path / "kubeconfig"), **cluster_keys), "run").place

    assert place() == "https://api.example.org:6443 group"
    assert place(namespace="other") == "https://api.example.org:6443 other"
    assert Kubernetes(KubernetesSite(image="i", kubeconfig=str(tmp_path / "absent")), "run").place == ""
