"""What may become of a Job, 200 hostile strings and a planted secret: the scheduler against the stand-in for Kubernetes."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import kube_cluster
import pytest
from conftest import wait_until
from hostile import ECHO, holding, hostile
from kube_cluster import KubeCluster
from pydantic import ValidationError

from aframe_ops.executor.base import Request
from aframe_ops.executor.kubernetes import Kubernetes
from aframe_ops.executor.kubernetes_manifest import RUN_LABEL
from aframe_ops.executor.scheduler import BatchJob, JobState, Phase, Refused, Unreachable
from aframe_ops.sites.kubernetes import KubernetesSite

SLEEP = ("/bin/sleep", "500")


@pytest.fixture
def scheduler(kubernetes, tmp_path) -> Iterator[Kubernetes]:
    made = Kubernetes(KubernetesSite(image="i", kubeconfig=kubernetes.kubeconfig, grace_seconds=1), f"run-{time.monotonic_ns()}")
    yield made
    made.cancel(list(made._jobs))
    wait_until(lambda: not kubernetes.active(), 120, "pods gone")


@pytest.fixture
def job(tmp_path) -> Callable[..., BatchJob]:
    """Makes jobs with names of their own."""
    made: list[BatchJob] = []

    def make(*argv: str, secret: str = "", **changes) -> BatchJob:
        number = len(made)
        spec = tmp_path / f"{number}.spec"
        spec.write_text(json.dumps({"env": {"PASSWORD": secret}, "cwd": "/", "cpus": 1, "time_min": 5, "warn_s": 0, "brought": []}))
        plain = BatchJob(f"{tmp_path.name}.{number}-x", Request(memory_gb=0.1, time_min=5), 0, argv, spec, tmp_path / str(number), tmp_path)
        made.append(replace(plain, **changes))
        return made[-1]

    return make


def until(scheduler: Kubernetes, id: str, reached: Callable[[JobState], bool], timeout: float = 240) -> JobState:
    deadline = time.monotonic() + timeout
    while not reached(state := scheduler.poll([id])[id]):
        assert time.monotonic() < deadline, state
        time.sleep(0.1)
    return state


def over(scheduler: Kubernetes, id: str) -> str:
    return until(scheduler, id, lambda s: s.phase is Phase.ENDED).words


def runs(scheduler: Kubernetes, id: str) -> None:
    until(scheduler, id, lambda s: s.phase is Phase.RUNNING)


@pytest.mark.timeout(1500)
def test_200_hostile_strings_as_arguments_and_variables(kubernetes, scheduler, job, tmp_path):
    marker = tmp_path / "marker"
    texts = hostile(marker)
    assert len(texts) == 200
    answers: dict[str, tuple[str, Path]] = {}
    for number, text in enumerate(texts):
        answer = tmp_path / f"{number}.json"
        made = job("/usr/bin/python3", "-S", "-c", ECHO, str(answer), text, python_path=text, name=f"{text}-{number}")
        answers[scheduler.submit(replace(made, request=made.request._replace(memory_gb=0.05)))] = (text, answer)
    assert len(answers) == 200
    ended: set[str] = set()

    def all_ended() -> bool:
        left = [id for id in answers if id not in ended]
        ended.update(id for id, s in scheduler.poll(left).items() if s.phase is Phase.ENDED)
        return len(ended) == 200

    wait_until(all_ended, 1200, "all jobs to end")
    for text, answer in answers.values():
        arguments, _, python_path = json.loads(answer.read_text())
        # a kubelet reads $$ as $, the stand-in does not
        assert [a.replace("$$", "$") for a in arguments] == [text] and python_path == text
    assert not marker.exists()


@pytest.mark.parametrize("key", ["namespace", "image", "priority_class", "service_account", "python"])
def test_hostile_names_are_refused_when_the_site_is_read(key, tmp_path):
    texts = hostile(tmp_path / "marker")
    accepted = []
    for text in texts:
        try:
            KubernetesSite(**{key: text})
        except ValidationError:
            continue
        accepted.append(text)
        # a program is executed and not read by a shell; whatever has no control character may be its name
        assert key == "python" and not any(ord(c) < 32 or ord(c) == 127 for c in text) and not text.startswith("-")
    assert len(accepted) < 200
    for text in texts:
        for values in (
            {"secrets": [text]},
            {"node_selector": {"a": text + "$"}},
            {"labels": {text + "$": "a"}},
            {"volumes": [{"claim": text, "path": "/a"}]},
        ):
            with pytest.raises(ValidationError):
                KubernetesSite(**values)


def test_a_planted_secret_is_in_the_steps_secret_alone_and_goes_with_it(kubernetes, scheduler, job, tmp_path):
    planted = "planted-secret-91cf"
    read = "import os, sys, time; t = open(sys.argv[1]).read(); open(sys.argv[2], 'w').write(str('planted' in t)); time.sleep(60)"
    made = job("/usr/bin/python3", "-c", read, "SPEC", str(tmp_path / "answer"), secret=planted)
    made = replace(made, argv=(*made.argv[:3], str(made.spec), made.argv[4]))
    assert holding(planted, tmp_path) == [made.spec]
    id = scheduler.submit(made)
    assert holding(planted, tmp_path) == [], "the file was handed over"
    runs(scheduler, id)
    wait_until(lambda: (tmp_path / "answer").exists() and (tmp_path / "answer").read_text() == "True", 120, "the step to read its spec")
    shown = {kind: json.dumps(kubernetes.objects(kind)) for kind in ("jobs", "pods", "events")}
    encoded = base64.b64encode(planted.encode()).decode().rstrip("=")[:-1]
    assert not [kind for kind, text in shown.items() if planted in text or encoded in text]
    (secret,) = [s for s in kubernetes.objects("secrets") if s["metadata"]["name"] == id]
    assert planted in base64.b64decode(secret["data"]["spec.json"]).decode() and secret["immutable"]
    (made_job,) = [j for j in kubernetes.objects("jobs") if j["metadata"]["name"] == id]
    assert secret["metadata"]["ownerReferences"][0]["uid"] == made_job["metadata"]["uid"]
    assert planted not in subprocess.run(["ps", "axww"], capture_output=True, text=True).stdout
    scheduler.cancel([id])
    assert id not in {s["metadata"]["name"] for s in kubernetes.objects("secrets")}
    assert over(scheduler, id) == "was cancelled"


def test_a_secret_goes_when_its_step_ends(kubernetes, scheduler, job):
    id = scheduler.submit(job("/bin/true"))
    assert over(scheduler, id) == "ended with exit code 0 without reporting a result"
    assert id not in {s["metadata"]["name"] for s in kubernetes.objects("secrets")}


def test_endings(kubernetes, scheduler, job):
    dies = "import os; os.kill(os.getpid(), 9)"  # and not by $$ of a shell: the stand-in does not undo the doubling of $
    ids = [scheduler.submit(job(*argv)) for argv in (("/bin/sh", "-c", "exit 3"), ("/usr/bin/python3", "-c", dies))]
    assert over(scheduler, ids[0]) == "ended with exit code 3 without reporting a result"
    assert over(scheduler, ids[1]) == "was killed by SIGKILL (by hand, or because memory ran out)"


def test_the_pods_output_is_kept(scheduler, job):
    made = job("/bin/sh", "-c", "echo no such module; echo aframe: hello")
    over(scheduler, scheduler.submit(made))
    assert Path(f"{made.log}.err").read_text() == "no such module\naframe: hello\n"
    assert Path(f"{made.log}.relay").read_text() == "aframe: hello\n"


def test_what_others_may_do_to_a_job(kubernetes, scheduler, job):
    late, evicted, deleted = (scheduler.submit(job(*SLEEP)) for _ in range(3))
    for id in (late, evicted, deleted):
        runs(scheduler, id)
    # of the Job and not of the pod: the stand-in knows only the former
    jobs, _ = kubernetes.others
    jobs.patch_namespaced_job(late, "default", {"spec": {"activeDeadlineSeconds": 1}})
    assert over(scheduler, late) == "was killed at its time limit of 5 min (DeadlineExceeded)"
    (pod,) = [p for p in kubernetes.objects("pods") if p["metadata"]["labels"]["job-name"] == evicted]
    kubernetes.cluster.procs[pod["metadata"]["uid"]].terminate(0, "Evicted")
    assert over(scheduler, evicted) == "was evicted from its node (Evicted: The node was low on resource: ephemeral-storage.)"
    jobs.delete_namespaced_job(deleted, "default", propagation_policy="Background")
    assert over(scheduler, deleted) == "was deleted by someone, and not by this run"


def test_an_image_that_cannot_be_pulled(job):
    if reason := kube_cluster.missing():
        pytest.skip(reason)
    cluster = KubeCluster(images={"other"}).start()
    try:
        site = KubernetesSite(image="registry/absent:1", kubeconfig=cluster.kubeconfig, start_minutes=0.05)
        scheduler = Kubernetes(site, "run")
        id = scheduler.submit(job("/bin/true"))
        said = 'could not start within 0.05 min (ImagePullBackOff: Back-off pulling image "registry/absent:1")'
        assert over(scheduler, id) == said
        assert not [j for j in cluster.objects("jobs") if j["metadata"]["name"] == id], "a Job was left that would go on trying"
        id = Kubernetes(site, "other").submit(job("/bin/true"))
        slow = Kubernetes(site.model_copy(update={"start_minutes": 10}), "other")
        assert slow.poll([id])[id].phase is Phase.PENDING
    finally:
        cluster.close()


def test_a_job_without_a_pod_fails_with_the_text_of_the_event(kubernetes, scheduler, job, monkeypatch):
    create = kubernetes.cluster.create

    def no_pods(res, ns, obj, **options):
        if res == "pods":
            raise _quota(kubernetes)
        return create(res, ns, obj, **options)

    monkeypatch.setattr(kubernetes.cluster, "create", no_pods)
    scheduler._site = scheduler._site.model_copy(update={"start_minutes": 0.03})
    id = scheduler.submit(job("/bin/true"))
    words = over(scheduler, id)
    assert words == 'had no pod after 0.03 min (FailedCreate: pods "x" is forbidden: exceeded quota: gpus)'


def _quota(kubernetes: KubeCluster) -> Exception:
    return type(kubernetes.cluster).create.__globals__["ApiError"](403, "Forbidden", 'pods "x" is forbidden: exceeded quota: gpus')


def test_answers_that_are_lost_make_no_second_job_and_no_job_without_its_secret(kubernetes, scheduler, job):
    made = job("/bin/true")
    kubernetes.fault("POST", "/secrets$", 0, n=10)
    with pytest.raises(Unreachable):
        scheduler.submit(made)
    kubernetes.start_controller()
    assert made.spec.exists()
    id = scheduler.find(made.name)
    assert id and not made.spec.exists()
    assert over(scheduler, id) == "ended with exit code 0 without reporting a result"
    assert scheduler.find("never-submitted") is None
    again = job("/bin/true")
    text = again.spec.read_text()
    kubernetes.fault("POST", "/jobs$", 503)
    with pytest.raises(Unreachable, match="503"):
        scheduler.submit(again)
    assert scheduler.find(again.name) is None
    first = scheduler.submit(again)
    again.spec.write_text(text)
    assert scheduler.submit(again) == first, "the same name is the same job"
    assert sum(j["metadata"]["name"] == first for j in kubernetes.objects("jobs")) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"namespace": "nowhere"}, 'namespaces "nowhere" not found (change kubernetes.namespace)'),
        ({"kubeconfig": "/nonexistent/config"}, "kubernetes.kubeconfig"),
        ({"image": None}, "no image for it: set kubernetes.image"),
    ],
)
def test_refusals_name_the_key_to_change(kubernetes, job, change, said):
    site = KubernetesSite(image="i", kubeconfig=kubernetes.kubeconfig).model_copy(update=change)
    with pytest.raises(Refused) as e:
        Kubernetes(site, "run").submit(job("/bin/true"))
    assert said in str(e.value)


def test_one_request_for_the_states_of_all_jobs(kubernetes, scheduler, job, monkeypatch):
    ids = [scheduler.submit(job(*SLEEP)) for _ in range(6)]
    for id in ids:
        runs(scheduler, id)
    asked: list[str] = []
    list_of = scheduler._api.list
    monkeypatch.setattr(scheduler._api, "list", lambda kind, **selectors: asked.append(kind) or list_of(kind, **selectors))
    assert {s.phase for s in scheduler.poll(ids).values()} == {Phase.RUNNING}
    assert asked == ["pods"]
    # jobs of other runs are not looked at
    assert all(p["metadata"]["labels"][RUN_LABEL] == scheduler._run for p in scheduler._mine("pods"))


def test_cancelling_interrupts_and_waits(kubernetes, scheduler, job, tmp_path):
    note = tmp_path / "note"
    catch = f"import signal, sys, time; signal.signal(15, lambda *_: (open({str(note)!r}, 'w').write('asked'), sys.exit())); time.sleep(60)"
    id = scheduler.submit(job(sys.executable, "-c", catch))
    runs(scheduler, id)
    time.sleep(2)
    scheduler.cancel([id, "aframe-not-there"])
    assert over(scheduler, id) == "was cancelled" and note.read_text() == "asked"


def test_a_pod_that_does_not_see_the_run_directory_brings_what_it_needs(kubernetes, new_toy):
    """The logs and the resolved experiment are hidden from the pod; the database is not."""
    toy = new_toy(kubernetes)
    run = toy.path
    hidden = "".join(f"    - {{empty_gb: 1, path: '{run / name}'}}\n" for name in ("logs", "resolved"))
    (run / "site.yaml").write_text(kubernetes.site + "  volumes:\n" + hidden)
    code, output = toy.run("fine", timeout=240)
    assert code == 0, output
    (ran,) = toy.notes("fine")
    assert ran["seed"] == 7
    text = toy.log("fine.0.err").read_text()
    assert "fine says hello" in text and "aframe: fine speaks to the user" in output.splitlines()
