"""Kubernetes by its API: a Job and a Secret for each attempt, from any machine that reaches the server."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aframe_ops.executor.base import RELAYED, Request
from aframe_ops.executor.kubernetes_manifest import CONTAINER, JOB_LABEL, RUN_LABEL, job_id, job_manifest, secret_manifest
from aframe_ops.executor.kubernetes_states import BROKEN, ending, failed, phase, waiting
from aframe_ops.executor.scheduler import BatchJob, JobState, Phase, Refused, Scheduler, Unreachable
from aframe_ops.sites.kubernetes import KubernetesSite

TIMEOUT_S = (5.0, 25.0)
"""Longest time to connect, and between two pieces of an answer."""

LOG_BYTES = 20_000_000
EVENTS_S = 30.0
"""Events are not asked for more often than this."""

STEADY_S = 15.0
"""A container that has been broken for so long is reported: its Secret is made after its Job, and pulls are tried again."""

_HINTS = {
    "namespace": "change kubernetes.namespace",
    "priorityclass": "change kubernetes.priority_class",
    "serviceaccount": "change kubernetes.service_account",
    "image": "change kubernetes.image",
    "volume": "change kubernetes.volumes",
}


class _Gone(Exception):
    """There is no such object."""


class _There(Exception):
    """There is such an object already."""


@dataclass(frozen=True)
class _Overdue(JobState):
    """Pending for longer than the site allows; `verdict` is what its run says when it gives it up."""

    verdict: str = ""


class Kubernetes(Scheduler):
    """The cluster that `site` describes, for the jobs of the run with the id `run`, whose store is at `store`."""

    name = "kubernetes"
    cancel_words = "kubectl delete job {}"

    def __init__(self, site: KubernetesSite, run: str, store: str = ""):
        self._site, self._run, self._store = site, run, store
        self.python, self.warn_s, self.code = site.python, float(site.signal_seconds), site.pinned or ""
        self._client: _Client | None = None
        self._jobs: dict[str, BatchJob] = {}
        self._handed: set[str] = set()
        self._cancelled: set[str] = set()
        self._finished: set[str] = set()
        self._seen: dict[tuple[str, str], float] = {}
        self._events: tuple[float, list[Mapping[str, Any]]] = (-EVENTS_S, [])
        self._reported: dict[tuple[str, str], str] = {}

    def submit(self, job: BatchJob) -> str:
        id = job_id(job.name)
        self._jobs[id] = job
        manifest = job_manifest(job, self._site, self._run)
        try:
            made = self._api.create("jobs", manifest)
        except _There:  # by a request whose answer was lost
            try:
                made = self._api.read("jobs", id)
            except _Gone:
                raise Unreachable(f"Job {id} was deleted while it was submitted") from None
        self._hand_over(id, made["metadata"]["uid"])
        return id

    def rehearse(self, job: BatchJob) -> None:
        """Does what `submit`, `poll` and `cancel` do, with the server's word that nothing comes of it. Raises what they do."""
        made = self._rehearsed("create", "jobs", job_manifest(job, self._site, self._run))
        self._rehearsed("create", "secrets", secret_manifest(job, self._site, made["metadata"]["uid"], self._store))
        for kind in ("secrets", "jobs"):
            with contextlib.suppress(_Gone):
                self._rehearsed("delete", kind, job_id(job.name))
        for kind in ("jobs", "pods"):
            self._api.list(kind, limit=1)

    def _rehearsed(self, verb: str, kind: str, what: Any) -> dict[str, Any]:
        return getattr(self._api, verb)(kind, what, dry_run="All")

    def knows(self, kind: str, name: str) -> bool | None:
        """Whether there is such an object (``secrets``, ``persistent_volume_claims``); None if that may not be asked."""
        try:
            self._api.read(kind, name)
        except _Gone:
            return False
        except Refused:
            return None
        return True

    def nodes(self) -> list[dict[str, Any]]:
        """Every node. Raises Refused where that may not be asked, and Unreachable."""
        return self._api.nodes()

    @property
    def namespace(self) -> str:
        return self._api.namespace

    @property
    def place(self) -> str:
        """From the kubeconfig alone, without the name and password that its URL may have."""
        try:
            return self._api.place
        except Refused:
            return ""

    def find(self, name: str) -> str | None:
        id = job_id(name)
        try:
            with _lasting():
                found = self._api.read("jobs", id)
        except _Gone:
            return None
        if id in self._jobs and id not in self._handed:
            self._hand_over(id, found["metadata"]["uid"])
        return id

    def poll(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        pods, jobs = self._asked(ids)
        states = self._states(ids, pods, jobs)
        for id, state in states.items():
            if isinstance(state, _Overdue):
                states[id] = self._give_up(id, state)
            elif state.phase is Phase.ENDED:
                self._finish(id, pods.get(id), id in pods or id in jobs)
        return states

    def watch(self, ids: Sequence[str]) -> Mapping[str, JobState]:
        return self._states(ids, *self._asked(ids))

    def _asked(self, ids: Sequence[str]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Pods and Jobs of this run, by the id of the job."""
        pods = {pod["metadata"]["labels"][JOB_LABEL]: pod for pod in self._mine("pods")}
        # Without a pod, only the Job says whether there is one to come.
        return pods, {job["metadata"]["name"]: job for job in self._mine("jobs")} if set(ids) - set(pods) else {}

    def _states(self, ids: Sequence[str], pods: Mapping[str, Any], jobs: Mapping[str, Any]) -> dict[str, JobState]:
        return {id: self._with_pod(id, pods[id]) if id in pods else self._without_pod(id, jobs.get(id)) for id in ids}

    def cancel(self, ids: Sequence[str]) -> None:
        for id in ids:
            # The pod goes with the Job: SIGTERM, then the grace period of the pod.
            with contextlib.suppress(_Gone), _lasting():
                self._api.delete("jobs", id)
            self._cancelled.add(id)
            self._forget(id)

    @property
    def _api(self) -> _Client:
        if self._client is None:
            self._client = _Client(self._site)
        return self._client

    def _mine(self, kind: str) -> list[dict[str, Any]]:
        with _lasting():
            return self._api.list(kind, label_selector=f"{RUN_LABEL}={self._run}")

    def _hand_over(self, id: str, owner: str) -> None:
        """Makes the Secret that the pod of this Job waits for, and deletes the file that it is made from."""
        job = self._jobs[id]
        try:
            self._api.create("secrets", secret_manifest(job, self._site, owner, self._store))
        except _There:
            pass
        except Refused:
            with contextlib.suppress(_Gone, Unreachable):
                self._api.delete("jobs", id)
            raise
        self._handed.add(id)
        job.spec.unlink(missing_ok=True)

    def _request(self, id: str) -> Request:
        return self._jobs[id].request if id in self._jobs else Request()

    def _since(self, id: str, what: str) -> float:
        """For how many seconds this has been so. By this clock, since the server's may differ."""
        return time.monotonic() - self._seen.setdefault((id, what), time.monotonic())

    def _with_pod(self, id: str, pod: Mapping[str, Any]) -> JobState:
        now = phase(pod)
        if now in ("Succeeded", "Failed"):
            cancelled = id in self._cancelled
            return JobState(Phase.ENDED, "was cancelled" if cancelled else ending(pod, self._request(id)))
        reason, words = waiting(pod)
        if now == "Running":
            return JobState(Phase.RUNNING, seconds=self._since(id, "runs"))
        if reason in BROKEN:
            lasts, limit = self._since(id, "broken"), 60 * self._site.start_minutes
            if lasts < min(STEADY_S, limit):
                return JobState(Phase.PENDING, words)
            words = self._once(id, "broken", words)
            if lasts < limit:
                return JobState(Phase.PENDING, words, stuck=True)
            verdict = f"could not start within {self._site.start_minutes:g} min ({words})"
            return _Overdue(Phase.PENDING, words, stuck=True, verdict=verdict)
        if self._since(id, reason) < 60 * self._site.start_minutes:
            return JobState(Phase.PENDING, words)
        if reason in ("", "ContainerCreating", "PodInitializing"):
            words = self._event(id) or words
        return JobState(Phase.PENDING, self._once(id, reason, words), stuck=bool(words))

    def _without_pod(self, id: str, job: Mapping[str, Any] | None) -> JobState:
        if job is None:
            return JobState(Phase.ENDED, "was cancelled" if id in self._cancelled else "was deleted by someone, and not by this run")
        if over := failed(job, self._request(id)):
            return JobState(Phase.ENDED, over)
        if job["spec"].get("suspend"):
            self._seen.pop((id, "has no pod"), None)
            return JobState(Phase.PENDING, "the Job is suspended")
        if self._since(id, "has no pod") < 60 * self._site.start_minutes:
            return JobState(Phase.PENDING)
        words = f"had no pod after {self._site.start_minutes:g} min ({self._event(id) or 'Kubernetes gave no reason'})"
        return _Overdue(Phase.PENDING, self._once(id, "has no pod", words), stuck=True, verdict=words)

    def _give_up(self, id: str, state: _Overdue) -> JobState:
        try:
            self.cancel([id])
        except Unreachable:  # the next time, then; the other jobs have states all the same
            return state
        return JobState(Phase.ENDED, state.verdict)

    def _once(self, id: str, what: str, words: str) -> str:
        """The first words of this kind: later ones differ in numbers of nodes or seconds, and the user is told once."""
        return self._reported.setdefault((id, what), words) if words else ""

    def _event(self, id: str) -> str:
        """The latest warning about this Job or its pod."""
        asked, events = self._events
        if time.monotonic() - asked > EVENTS_S:
            with contextlib.suppress(Refused):  # whoever may make Jobs may not always read events
                events = self._api.list("events", field_selector="type=Warning")
            self._events = (time.monotonic(), events)
        about = [e for e in events if e["involvedObject"].get("name", "").startswith(id)]
        about.sort(key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "")
        return f"{about[-1].get('reason', '')}: {about[-1].get('message', '').strip()[:500]}" if about else ""

    def _finish(self, id: str, pod: Mapping[str, Any] | None, exists: bool) -> None:
        """Cleans up after a job that has ended, once. What cannot be done hides no other job: the Secret goes with its Job."""
        if id in self._finished:
            return
        self._finished.add(id)
        if exists or id in self._handed:
            with contextlib.suppress(Unreachable):
                self._forget(id)
        if pod is not None and id in self._jobs:
            self._save_output(self._jobs[id], pod["metadata"]["name"])

    def _forget(self, id: str) -> None:
        with contextlib.suppress(_Gone, Refused):  # it goes with its Job
            self._api.delete("secrets", id)

    def _save_output(self, job: BatchJob, pod: str) -> None:
        """Adds the pod's own output to the step's: what came before Python, and all of it where the pod saw no run directory."""
        try:
            output = self._api.output(pod)
        except _Gone:
            return
        except (Refused, Unreachable) as e:  # such as of a node that was shut down
            output = f"the log of pod {pod} could not be read ({e})\n".encode()
        lines = [line for line in output.splitlines(keepends=True) if line.startswith(RELAYED.encode())]
        with contextlib.suppress(OSError):  # a full disk
            for suffix, text in (("err", output), ("relay", b"".join(line.rstrip(b"\n") + b"\n" for line in lines))):
                if text:
                    with open(f"{job.log}.{suffix}", "ab") as f:
                        f.write(text)


class _Client:
    """The few requests that are made, with JSON in and out.

    Raises:
        Refused: the kubeconfig cannot be used, or the server will never do what was asked.
        Unreachable: it did not answer, or may do it later.
    """

    def __init__(self, site: KubernetesSite):
        try:
            from kubernetes import client, config
        except ImportError:
            raise Refused("the Python package kubernetes is not installed here; install this project with [kubernetes]") from None
        settings = client.Configuration()
        inside = "KUBERNETES_SERVICE_HOST" in os.environ and not (site.kubeconfig or site.context or os.environ.get("KUBECONFIG"))
        try:
            if inside:
                config.load_incluster_config(client_configuration=settings)
                namespace = _own_namespace()
            else:
                file = None if site.kubeconfig is None else os.path.expanduser(site.kubeconfig)
                config.load_kube_config(config_file=file, context=site.context, client_configuration=settings)
                contexts, active = config.list_kube_config_contexts(file)
                chosen = next((c for c in contexts if c["name"] == site.context), active)
                namespace = chosen["context"].get("namespace")
        except (config.ConfigException, OSError) as e:
            raise Refused(f"{e} (see kubernetes.kubeconfig and kubernetes.context)") from None
        settings.retries = 1
        self._failed = client.ApiException
        api = client.ApiClient(settings)
        self._core, self._batch = client.CoreV1Api(api), client.BatchV1Api(api)
        self.namespace = site.namespace or namespace or "default"
        server = urlsplit(settings.host)
        self.place = f"{server.scheme}://{server.netloc.rpartition('@')[2]}{server.path.rstrip('/')} {self.namespace}"

    def create(self, kind: str, manifest: Mapping[str, Any], **options: str) -> dict[str, Any]:
        return self._json(self._method("create", kind), self.namespace, manifest, **options)

    def read(self, kind: str, name: str) -> dict[str, Any]:
        return self._json(self._method("read", kind), name, self.namespace)

    def delete(self, kind: str, name: str, **options: str) -> None:
        self._json(self._method("delete", kind), name, self.namespace, propagation_policy="Background", **options)

    def nodes(self) -> list[dict[str, Any]]:
        return self._json(self._core.list_node)["items"]

    def list(self, kind: str, **selectors: str | int) -> list[dict[str, Any]]:
        return self._json(self._method("list", kind), self.namespace, **selectors)["items"]

    def output(self, pod: str) -> bytes:
        return self._ask(
            self._core.read_namespaced_pod_log, pod, self.namespace, container=CONTAINER, limit_bytes=LOG_BYTES, tail_lines=100_000
        )

    def _method(self, verb: str, kind: str) -> Callable[..., Any]:
        return getattr(self._batch if kind == "jobs" else self._core, f"{verb}_namespaced_{kind.removesuffix('s')}")

    def _json(self, method: Callable[..., Any], *words: Any, **options: Any) -> Any:
        answer = self._ask(method, *words, **options)
        try:
            return json.loads(answer)
        except ValueError:
            raise Unreachable(f"the server answered {answer[:100]!r} where JSON was expected") from None

    def _ask(self, method: Callable[..., Any], *words: Any, **options: Any) -> bytes:
        import urllib3

        try:
            # The client's own reading of answers takes longer than the server, and shows logs as "b'...'".
            answer = method(*words, **options, _preload_content=False, _request_timeout=TIMEOUT_S)
            return answer.data
        except self._failed as e:
            raise _meaning(e.status, e.reason, e.body) from None
        except (urllib3.exceptions.HTTPError, OSError) as e:
            raise Unreachable(str(getattr(e, "reason", None) or e)[:300]) from None


@contextlib.contextmanager
def _lasting() -> Iterator[None]:
    """What is refused about jobs that exist may be allowed again; it says nothing about them."""
    try:
        yield
    except Refused as e:
        raise Unreachable(str(e)) from None


def _meaning(status: int | None, reason: str | None, body: bytes | str | None) -> Exception:
    """The exception for an answer that is no success. Its words are the server's."""
    said = str(reason or "no answer")[:300]
    with contextlib.suppress(ValueError, TypeError):
        told = json.loads(body or "")
        said = told.get("message") or said
        reason = told.get("reason", reason)
    if status == 404 and "namespaces" not in said:
        return _Gone(said)
    if status == 409 and reason == "AlreadyExists":
        return _There(said)
    if status == 401:
        return Unreachable(f"{said}: the credentials of the kubeconfig have run out or are wrong")
    if not status or status in (408, 409, 429) or status >= 500 or "exceeded quota" in said:
        return Unreachable(f"{said} ({status})" if status else said)
    return Refused(said[:1000] + _hint(said))


def _hint(said: str) -> str:
    folded = said.lower().replace(" ", "")
    return next((f" ({hint})" for word, hint in _HINTS.items() if word in folded), "")


def _own_namespace() -> str | None:
    with contextlib.suppress(OSError), open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as f:
        return f.read().strip()
    return None
