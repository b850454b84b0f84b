"""Pods that run a commit of a git repository over ssh, or a snapshot of the working tree out of the store.

git, ssh, its server and S3 (moto) are real, and so are the init containers' commands; the pods are those of the stand-in.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
import ssh_server
from conftest import job_of, wait_until
from hostile import holding, hostile
from ssh_server import SshServer, make_key

from aframe_assets.config_load import ConfigError
from aframe_ops.executor.base import Request
from aframe_ops.executor.kubernetes import Kubernetes
from aframe_ops.executor.kubernetes_code import key_files, pin_code, project_folder, resolve_ref, snapshot
from aframe_ops.executor.kubernetes_init import SOURCE, add_code
from aframe_ops.executor.kubernetes_unpack import unpack
from aframe_ops.executor.scheduler import BatchJob, Phase
from aframe_ops.site import SiteConfig
from aframe_ops.sites.kubernetes import KubernetesGit, KubernetesSite


def git(folder: Path, *words: str) -> str:
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "n"), ("EMAIL", "e@example.org"))}
    return subprocess.run(["git", *words], cwd=folder, env={**os.environ, **who}, check=True, capture_output=True, text=True).stdout.strip()


def served(folder: Path, **options: bool) -> Iterator[SshServer]:
    if reason := ssh_server.missing():
        pytest.fail(reason)
    made = SshServer(folder, **options)
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[SshServer]:
    yield from served(tmp_path_factory.mktemp("ssh") / "server")


@pytest.fixture(scope="module")
def old_server(tmp_path_factory) -> Iterator[SshServer]:
    yield from served(tmp_path_factory.mktemp("ssh") / "old", modern=False)


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone of a bare repository with this project in it, as its files are now; branch ``mine``."""
    work, bare = tmp_path / "clone", tmp_path / "bare.git"
    unpack(snapshot(project_folder()), work)
    (work / "which.txt").write_text("first")
    git(work, "init", "-q", "-b", "mine")
    git(work, "add", "-f", ".")
    git(work, "commit", "-q", "-m", "first")
    git(tmp_path, "clone", "-q", "--bare", str(work), str(bare))
    git(work, "remote", "add", "origin", str(bare))
    return work


@pytest.fixture
def asked(server, clone) -> dict[str, str]:
    """``kubernetes.git`` of a site for that repository."""
    return asked_of(server, clone)


def asked_of(server: SshServer, clone: Path) -> dict[str, str]:
    return {
        "repository": f"{server.address}{clone.parent / 'bare.git'}",
        "ref": "mine",
        "key_file": str(server.key),
        "known_hosts": str(server.known_hosts),
    }


def push(clone: Path, text: str) -> str:
    (clone / "which.txt").write_text(text)
    git(clone, "commit", "-q", "-a", "-m", text)
    git(clone, "push", "-q", "origin", "mine")
    return git(clone, "rev-parse", "HEAD")


def with_site(cluster, lines: dict) -> str:
    return cluster.site + f"  git: {json.dumps(lines)}\n"


def body_of_key(key: Path) -> list[str]:
    """Pieces of a private key that are nowhere else: in clear, and as a Secret's manifest has them."""
    text = key.read_text()
    encoded = base64.b64encode(text.encode()).decode()
    return [text.splitlines()[2][:40], encoded[80:120]]


def test_a_run_at_a_branch_of_an_ssh_repository(kubernetes, new_toy, asked, clone, server):
    first = git(clone, "rev-parse", "HEAD")
    toy = new_toy(kubernetes, with_site(kubernetes, asked))
    process = toy.start("waiting", "fine")
    toy.wait_for("waiting", timeout=300)
    for text in body_of_key(server.key):
        shown = {kind: json.dumps(kubernetes.objects(kind)) for kind in ("jobs", "pods", "events")}
        assert not [kind for kind, objects in shown.items() if text in objects]
        assert text not in subprocess.run(["ps", "axwwe"], capture_output=True, text=True).stdout
        assert not holding(text, toy.path)
    (toy.notes_dir / "go").touch()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    for name in ("waiting", "fine"):
        (note,) = toy.notes(name)
        assert (note["AFRAME_CODE"], note["package"]) == (first, f"{SOURCE}/aframe_ops/__init__.py")
    id = job_of(toy, "fine.0")["id"]
    assert [j["metadata"]["annotations"]["aframe/code"] for j in kubernetes.objects("jobs") if j["metadata"]["name"] == id] == [first]
    assert f"code {first}" in output
    (site,) = (toy.path / "resolved").glob("site-*.json")
    assert json.loads(site.read_text())["kubernetes"]["pinned"] == first
    assert not [s for s in kubernetes.objects("secrets") if "ssh" in s["data"]], "the key was left in the cluster"


def test_a_cancelled_run_leaves_no_key_and_a_killed_one_leaves_it_to_kubernetes(kubernetes, new_toy, asked):
    for end, sure in ((signal.SIGINT, True), (signal.SIGKILL, False)):
        toy = new_toy(kubernetes, with_site(kubernetes, asked))
        process = toy.start("waiting")
        toy.wait_for("waiting", timeout=300)
        id = job_of(toy, "waiting.0")["id"]
        (secret,) = [s for s in kubernetes.objects("secrets") if "ssh" in s["data"]]
        (job,) = [j for j in kubernetes.objects("jobs") if j["metadata"]["name"] == id]
        # Kubernetes removes it with its Job, and the Job some time after its end: nobody of ours has to be there
        assert secret["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"] and job["spec"]["ttlSecondsAfterFinished"] == 3600
        os.kill(process.pid, end)
        process.communicate(timeout=300)
        if sure:
            assert not [s for s in kubernetes.objects("secrets") if "ssh" in s["data"]]
    (toy.notes_dir / "go").touch()
    wait_until(lambda: not kubernetes.active(), 300, "the job of the killed run over")
    jobs, rest = kubernetes.others  # the stand-in collects no garbage
    jobs.delete_namespaced_job(id, "default")
    rest.delete_namespaced_secret(id, "default")


@pytest.fixture
def job(tmp_path):
    def make(number: int) -> BatchJob:
        spec = tmp_path / f"{number}.spec"
        spec.write_text(json.dumps({"env": {}, "cwd": "/", "cpus": 1, "time_min": 5, "warn_s": 0, "brought": []}))
        show = ("/bin/sh", "-c", f"cp which.txt {tmp_path}/{number}.seen; ls /run/aframe-git > {tmp_path}/{number}.keys; pwd")
        return BatchJob(f"{tmp_path.name}.{number}-x", Request(memory_gb=0.1, time_min=5), 0, show, spec, tmp_path / str(number), tmp_path)

    return make


def over(scheduler: Kubernetes, id: str) -> str:
    deadline = time.monotonic() + 300
    while (state := scheduler.poll([id])[id]).phase is not Phase.ENDED:
        assert time.monotonic() < deadline, state
        time.sleep(0.2)
    return state.words


@pytest.mark.parametrize("kind", ["server", "old_server"])
def test_what_is_pushed_later_changes_no_pod_and_a_lost_repository_is_named(kubernetes, request, kind, clone, job, tmp_path):
    asked = asked_of(request.getfixturevalue(kind), clone)
    site = SiteConfig(directory=tmp_path, kubernetes={"image": "i", "kubeconfig": kubernetes.kubeconfig, "git": asked})
    scheduler = Kubernetes(pin_code(site).kubernetes, f"run-{uuid4().hex}")
    for number in range(2):
        assert over(scheduler, scheduler.submit(job(number))) == "ended with exit code 0 without reporting a result"
        assert (tmp_path / f"{number}.seen").read_text() == "first"
        # the mount point is made on this machine's disk by the stand-in; what matters is that the step sees nothing in it
        assert (tmp_path / f"{number}.keys").read_text() == ""
        assert Path(f"{job(number).log}.err").read_text().splitlines()[-1] == SOURCE
        push(clone, f"later {number}")
    later = Kubernetes(pin_code(site).kubernetes, f"run-{uuid4().hex}")
    over(later, later.submit(job(2)))
    assert (tmp_path / "2.seen").read_text() == "later 1"
    shutil.rmtree(tmp_path / "bare.git")
    words = over(later, later.submit(job(3)))
    assert words.startswith("could not get the code of this run (fatal: ") and "bare.git" in words


def test_an_existing_secret_is_used(kubernetes, asked, clone, job, server, tmp_path):
    data = {name: base64.b64encode(path.read_bytes()).decode() for name, path in (("ssh", server.key), ("known_hosts", server.known_hosts))}
    _, rest = kubernetes.others
    rest.create_namespaced_secret("default", {"metadata": {"name": "git-creds"}, "data": data})
    named = KubernetesGit(repository=asked["repository"], ref=git(clone, "rev-parse", "HEAD"), secret="git-creds")
    site = KubernetesSite(image="i", kubeconfig=kubernetes.kubeconfig, git=named, pinned=resolve_ref(named))
    scheduler = Kubernetes(site, f"run-{uuid4().hex}")
    over(scheduler, scheduler.submit(job(0)))
    assert (tmp_path / "0.seen").read_text() == "first"
    assert [s["metadata"]["name"] for s in kubernetes.objects("secrets") if "ssh" in s["data"]] == ["git-creds"]
    rest.delete_namespaced_secret("git-creds", "default")


def test_a_wrong_key_or_host_is_found_before_the_run(asked, server, tmp_path):
    whole = KubernetesGit(**asked)
    for name, passphrase, said in (("other", "", "Permission denied"), ("locked", "a passphrase", "Permission denied")):
        make_key(tmp_path / name, passphrase)
        with pytest.raises(ConfigError, match=said):
            resolve_ref(whole.model_copy(update={"key_file": str(tmp_path / name)}))
    impostor = tmp_path / "known"
    make_key(tmp_path / "impostor")
    impostor.write_text(f"[127.0.0.1]:{server.port} {(tmp_path / 'impostor.pub').read_text()}")
    with pytest.raises(ConfigError, match="Host key verification failed"):
        resolve_ref(whole.model_copy(update={"known_hosts": str(impostor)}))
    with pytest.raises(ConfigError, match="has no such branch or tag"):
        resolve_ref(whole.model_copy(update={"ref": "absent"}))
    # a commit needs no lookup, but the key is tried all the same
    with pytest.raises(ConfigError, match="Permission denied"):
        resolve_ref(whole.model_copy(update={"ref": "0" * 40, "key_file": str(tmp_path / "other")}))
    assert not list(Path("/tmp").glob("aframe-git*/ssh")), "a copy of the key was left"


def test_a_host_key_that_changed_stops_the_pod(kubernetes, asked, server, job, tmp_path):
    make_key(tmp_path / "impostor")
    impostor = tmp_path / "known"
    impostor.write_text(f"[127.0.0.1]:{server.port} {(tmp_path / 'impostor.pub').read_text()}")
    whole = KubernetesGit(**asked)
    commit = resolve_ref(whole)
    changed = whole.model_copy(update={"known_hosts": str(impostor)})
    site = KubernetesSite(image="i", kubeconfig=kubernetes.kubeconfig, git=changed, pinned=commit)
    scheduler = Kubernetes(site, f"run-{uuid4().hex}")
    words = over(scheduler, scheduler.submit(job(0)))
    assert words.startswith("could not get the code of this run (") and "Host key verification failed" in words
    assert not (tmp_path / "0.seen").exists()


@pytest.fixture
def bucket() -> Iterator[tuple[str, dict[str, str]]]:
    """Address of an empty bucket of moto's, and what its user has in the environment."""
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    env = {
        "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
        "AWS_SECRET_ACCESS_KEY": "planted-s3-Zq81",
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
    }
    env |= {"AWS_REGION": "us-east-1", "AWS_S3_ADDRESSING_STYLE": "path"}
    client = boto3.client(
        "s3", endpoint_url=env["AWS_ENDPOINT_URL_S3"], aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1"
    )
    client.create_bucket(Bucket="code")
    yield "s3://code/run", env
    server.stop()


@pytest.mark.parametrize("kind", ["volume", "s3"])
def test_a_run_with_a_snapshot_of_the_working_tree(kubernetes, new_toy, request, kind):
    """Without a shared disk there is no shared database either: the steps with S3 report through the store."""
    root, env = ("store", {}) if kind == "volume" else request.getfixturevalue("bucket")
    site = kubernetes.site if kind == "volume" else kubernetes.site.replace("executor:\n", "executor:\n  transport: detached\n")
    toy = new_toy(kubernetes, f"store: {{root: '{root}'}}\n{site}  code: snapshot\n", **env)
    code, output = toy.run("fine", "flaky", timeout=400)
    assert code == 0, output
    notes = [*toy.notes("fine"), *toy.notes("flaky")]
    assert len(notes) == 3 and {n["package"] for n in notes} == {f"{SOURCE}/aframe_ops/__init__.py"}
    (sha256,) = {n["AFRAME_CODE"] for n in notes}
    assert f"code {sha256}" in output
    if kind == "volume":
        assert [p.name for p in (toy.path / "store" / "_code").iterdir()] == [f"{sha256}.tar"]
    shown = json.dumps([kubernetes.objects(kind) for kind in ("jobs", "pods", "events")])
    assert "planted-s3-Zq81" not in shown and "planted-s3-Zq81" not in output


def test_a_snapshot_that_the_pod_cannot_have_is_named(kubernetes, job, tmp_path):
    site = KubernetesSite(image="i", kubeconfig=kubernetes.kubeconfig, python=sys.executable, code="snapshot", pinned="0" * 64)
    scheduler = Kubernetes(site, f"run-{uuid4().hex}", str(tmp_path / "store"))
    made = replace(job(0), python_path=os.environ.get("PYTHONPATH"))
    words = over(scheduler, scheduler.submit(made))
    assert "could not get the code of this run (the code of this run cannot be had: " in words and "pods need the store on S3" in words


def test_hostile_strings_as_repositories_refs_and_files_are_refused_or_taken_literally(clone, tmp_path):
    """Each is given to the script of the init container, as a manifest would, whether the site would have taken it or not."""
    marker, home = tmp_path / "marker", tmp_path / "empty"
    home.mkdir()
    texts = [text for text in hostile(marker) if "\0" not in text]
    commit, bare = git(clone, "rev-parse", "HEAD"), tmp_path / "bare.git"
    named = KubernetesSite(image="i", git={"repository": f"file://{bare}", "ref": "mine"}, pinned=commit)
    pod = {"containers": [{"image": "i", "resources": {}, "securityContext": {}, "volumeMounts": [], "env": []}], "volumes": []}
    add_code(pod, named, "secret", "spec")
    (init,) = pod["initContainers"]
    assert init["command"][4:] == [f"file://{bare}", commit, SOURCE, "mine"]
    script, taken = init["command"][:4], 0
    for text in texts:
        for key in ("key_file", "known_hosts"):
            files = {"key_file": str(home / "k"), key: text}
            with pytest.raises(ConfigError, match=r"kubernetes\.git"):
                key_files(KubernetesGit(repository="git@h:x", ref="m", **files))
        with contextlib.suppress(ValueError):
            KubernetesGit(repository=f"file://{home}/{text}", ref="mine")
            taken += 1
        with contextlib.suppress(ValueError), pytest.raises(ConfigError):
            resolve_ref(KubernetesGit(repository=f"file://{bare}", ref=text))
        for words in ((text, commit, str(home / "src"), "mine"), (f"file://{bare}", text, str(home / "src"), text)):
            done = subprocess.run([*script, *words], cwd=home, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
            assert done.returncode != 0, words
            shutil.rmtree(home / "src", ignore_errors=True)
            assert not list(home.iterdir()), words
    assert not marker.exists() and 0 < taken < len(texts)
