"""Code that pods run in place of their image's: what is looked up, packed, unpacked and put into manifests. No cluster, no ssh server."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import kubernetes_validate
import pytest

from aframe_assets.config_load import ConfigError
from aframe_assets.store.blobs import get_blob, put_blob
from aframe_assets.store.errors import StoreError
from aframe_assets.store.opening import open_store
from aframe_ops.cli.doctor_kubernetes import check_kubernetes
from aframe_ops.executor import kubernetes_code
from aframe_ops.executor.base import Request
from aframe_ops.executor.kubernetes_code import described, key_files, pin_code, resolve_ref, snapshot
from aframe_ops.executor.kubernetes_init import SOURCE
from aframe_ops.executor.kubernetes_manifest import job_manifest, secret_manifest
from aframe_ops.executor.kubernetes_states import ending, waiting
from aframe_ops.executor.kubernetes_unpack import unpack
from aframe_ops.executor.scheduler import BatchJob, Refused
from aframe_ops.run_directory import RunDirectory
from aframe_ops.site import SiteConfig, load_site
from aframe_ops.sites.kubernetes import KubernetesGit, KubernetesSite

missing = [name for name in ("git", "ssh-keygen") if not shutil.which(name)]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed here: {', '.join(missing)}")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
JOB = BatchJob(
    "step.0-abc", Request(cpus=2, memory_gb=4), 0, ("python", "-m", "x", "/r/s.json"), Path("/r/s.json"), Path("/r/l"), Path("/r")
)
SSH = {"repository": "git@example.org:me/search.git", "ref": "my-branch"}


def decoded(secret: dict) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def git(folder: Path, *words: str) -> str:
    """Runs git as somebody with no settings."""
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "n"), ("EMAIL", "e@example.org"))}
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1", **who}
    return subprocess.run(["git", *words], cwd=folder, env=env, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def tree(tmp_path) -> Path:
    """A working tree with a package, as `snapshot` expects it."""
    folder = tmp_path / "tree"
    (folder / "aframe_ops").mkdir(parents=True)
    (folder / "aframe_ops" / "__init__.py").write_text("")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o700)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def names(packed: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return {member.name: member for member in tar.getmembers()}


def member(name: str, **changes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in changes.items():
        setattr(info, key, value)
    return info


def link(name: str, to: str) -> tarfile.TarInfo:
    return member(name, type=tarfile.SYMTYPE, linkname=to)


def archive(*members: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    return out.getvalue()


HOSTILE = [
    [member("../out", size=1)],
    [member("a/../../../out", size=1)],
    [member("/abs", size=1)],
    [member("d", type=tarfile.CHRTYPE)],
    [member("p", type=tarfile.FIFOTYPE)],
    [member("f", size=1), member("h", type=tarfile.LNKTYPE, linkname="f")],
    [link("l", "/etc/passwd")],
    [link("l", "../out")],
    [link("d/up", ".."), link("l", "d/up/../out"), member("d/f", size=1)],
    [link("d/up", ".."), link("d/up/l", "x"), member("d/f", size=1)],
    [link("l", "d"), member("l/f", size=1), member("d/f", size=1)],
    [member("f", size=1), member("f", size=1)],
    [member("f", size=1), member("f/g", size=1)],
]


def test_a_branch_a_tag_and_a_commit_are_looked_up(tree):
    url, first = f"file://{tree}", git(tree, "rev-parse", "HEAD")
    git(tree, "tag", "-a", "v1", "-m", "annotated")
    git(tree, "commit", "-q", "--allow-empty", "-m", "second")
    second = git(tree, "rev-parse", "HEAD")
    for ref, commit in (("main", second), ("v1", first), ("refs/tags/v1", first), (first, first)):
        assert resolve_ref(KubernetesGit(repository=url, ref=ref)) == commit
    with pytest.raises(ConfigError, match="has no such branch or tag; push it first"):
        resolve_ref(KubernetesGit(repository=url, ref="absent"))
    git(tree, "tag", "main", first)
    with pytest.raises(ConfigError, match="write refs/heads/main or refs/tags/main"):
        resolve_ref(KubernetesGit(repository=url, ref="main"))
    with pytest.raises(ConfigError, match=r"git ls-remote .* failed: .*does not appear to be a git repository"):
        resolve_ref(KubernetesGit(repository=f"{url}-not-there", ref="main"))


def test_a_site_is_pinned_once(tree, tmp_path):
    kubernetes = {"image": "i", "git": {"repository": f"file://{tree}", "ref": "main"}}
    site = SiteConfig(directory=tmp_path, executor={"backend": "kubernetes"}, kubernetes=kubernetes)
    pinned = pin_code(site)
    commit = git(tree, "rev-parse", "HEAD")
    git(tree, "commit", "-q", "--allow-empty", "-m", "second")
    assert pin_code(pinned).kubernetes.pinned == commit and site.kubernetes.pinned is None
    assert described(pinned) == f"commit {commit} (main of file://{tree})" and described(site) == ""
    assert SiteConfig.model_validate_json(pinned.model_dump_json()) == pinned


def test_all_processes_of_a_run_read_the_pinned_site(tree, tmp_path):
    run = RunDirectory(tmp_path)
    run.experiment.write_text("preset: demo\n")
    git_lines = f"{{repository: 'file://{tree}', ref: main}}"
    (tmp_path / "site.yaml").write_text(f"executor: {{backend: kubernetes}}\nkubernetes: {{image: i, git: {git_lines}}}\n")
    with run.pinned() as (_, site):
        git(tree, "commit", "-q", "--allow-empty", "-m", "second")
        assert load_site(os.environ["AFRAME_SITE"]).kubernetes.pinned == site.kubernetes.pinned == git(tree, "rev-parse", "HEAD~1")
    (tmp_path / "site.yaml").write_text(
        f"executor: {{backend: kubernetes}}\nkubernetes: {{image: i, git: {git_lines.replace('main', 'gone')}}}\n"
    )
    with pytest.raises(ConfigError, match="has no such branch or tag"), run.pinned():
        pass


@pytest.mark.parametrize(
    "repository",
    [
        *("http://h/x", "git://h/x", "ext::sh -c x", "-x", "https://me:password@h/x", "https://h", "file://x/y", "a b", "h:\nx"),
        *("ssh://-oProxyCommand=x/y", "https://h/a b", "fd::3", "ssh://h", "h::x", "$(x)", "/srv/x", "../x"),
    ],
)
def test_repositories_that_are_refused(repository):
    for more in ({}, {"key_file": "k"}):
        with pytest.raises(ValueError, match="repository: expected"):
            KubernetesGit(repository=repository, ref="main", **more)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("git: {repository: 'git@h:x', ref: main}", "needs key_file or secret, and not both"),
        ("git: {repository: 'git@h:x', ref: main, key_file: k, secret: s}", "needs key_file or secret, and not both"),
        ("git: {repository: 'https://h/x', ref: main, key_file: k}", "this repository is not reached by ssh"),
        ("git: {repository: 'https://h/x', ref: '--upload-pack=x'}", "kubernetes.git.ref"),
        ("git: {repository: 'https://h/x', ref: 'a..b'}", "is no name of a branch or tag"),
        ("{code: snapshot, git: {repository: 'https://h/x', ref: main}}", "exclude each other"),
        (f"pinned: {COMMIT}", "neither is asked for"),
    ],
)
def test_mistakes_in_the_site_file_are_named(tmp_path, change, said):
    (tmp_path / "site.yaml").write_text(f"kubernetes: {change if change.startswith('{') else '{' + change + '}'}\n")
    with pytest.raises(ConfigError) as e:
        load_site(tmp_path / "site.yaml")
    assert said in str(e.value)


def test_a_password_in_an_address_is_not_repeated(tmp_path):
    (tmp_path / "site.yaml").write_text("kubernetes: {git: {repository: 'https://me:hunter2@h/x', ref: main}}\n")
    with pytest.raises(ConfigError) as e:
        load_site(tmp_path / "site.yaml")
    assert "hunter2" not in str(e.value) and "without a password" in str(e.value)


def test_keys_and_host_keys_are_read_or_refused(tmp_path):
    key, known = tmp_path / "key", tmp_path / "known"
    asked = KubernetesGit(**SSH, key_file=str(key), known_hosts=str(known))
    with pytest.raises(ConfigError, match=r"kubernetes.git.key_file: .* cannot be read"):
        key_files(asked)
    key.write_text("ssh-ed25519 AAAA public")
    with pytest.raises(ConfigError, match="is no private ssh key"):
        key_files(asked)
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nplanted\n-----END OPENSSH PRIVATE KEY-----")
    with pytest.raises(ConfigError, match=r"kubernetes.git.known_hosts: .* cannot be read"):
        key_files(asked)
    known.write_text("other.example.org ssh-ed25519 AAAAother\n")
    with pytest.raises(ConfigError, match=r"has no key of example.org; connect there once"):
        key_files(asked)
    known.write_text(known.read_text() + "example.org ssh-ed25519 AAAAright\n")
    files = key_files(asked)
    assert files["known_hosts"] == "example.org ssh-ed25519 AAAAright\n" and files["ssh"].endswith("KEY-----\n")
    other_port = KubernetesGit(repository="ssh://git@example.org:2222/x", ref="m", key_file=str(key), known_hosts=str(known))
    with pytest.raises(ConfigError, match=r"has no key of \[example.org\]:2222"):
        key_files(other_port)


def test_the_pod_fetches_before_it_starts_and_only_the_init_container_has_the_key(tmp_path):
    key, known = tmp_path / "key", tmp_path / "known"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nplanted\n-----END OPENSSH PRIVATE KEY-----\n")
    known.write_text("example.org ssh-ed25519 AAAAright\n")
    spec = tmp_path / "s.json"
    spec.write_text(json.dumps({"env": {"PYTHONPATH": "/mine"}, "cwd": "/"}))
    job = replace(JOB, spec=spec, python_path="/mine")
    site = KubernetesSite(image="i", git={**SSH, "key_file": str(key), "known_hosts": str(known)}, pinned=COMMIT, user=1000)
    made, secret = job_manifest(job, site, "run"), secret_manifest(job, site, "uid", "s3://b/p")
    for manifest in (made, secret):
        kubernetes_validate.validate(manifest, "1.34", strict=True)
    pod = made["spec"]["template"]["spec"]
    (init,), (step,) = pod["initContainers"], pod["containers"]
    assert init["command"][:2] == ["/bin/sh", "-c"] and init["command"][3:] == ["sh", SSH["repository"], COMMIT, SOURCE, SSH["ref"]]
    assert "planted" not in json.dumps(made) and "StrictHostKeyChecking=yes" in init["command"][2]
    mounted = {c["name"]: {m["name"] for m in c["volumeMounts"]} for c in (init, step)}
    assert mounted == {"code": {"code", "git"}, "step": {"spec", "shm", "code"}}
    shown = {v["name"]: [item["key"] for item in v["secret"]["items"]] for v in pod["volumes"] if "secret" in v}
    assert shown == {"spec": ["spec.json"], "git": ["ssh", "known_hosts"]}
    assert init["resources"] == step["resources"] and init["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert step["workingDir"] == SOURCE and made["metadata"]["annotations"] == {"aframe/code": COMMIT}
    data = decoded(secret)
    assert data["ssh"] == key.read_text() and data["code-pythonpath"] == f"{SOURCE}:/mine"
    told = json.loads(data["spec.json"])
    assert told["env"] == {"PYTHONPATH": f"{SOURCE}:/mine", "AFRAME_CODE": COMMIT} and "code" not in told
    key.unlink()
    with pytest.raises(Refused, match=r"kubernetes.git.key_file"):
        secret_manifest(job, site, "uid", "")
    named = KubernetesSite(image="i", git={**SSH, "secret": "git-creds"}, pinned=COMMIT)
    volumes = {v["name"]: v for v in job_manifest(job, named, "run")["spec"]["template"]["spec"]["volumes"]}
    assert volumes["git"]["secret"]["secretName"] == "git-creds"
    assert "ssh" not in secret_manifest(job, named, "uid", "")["data"]


def test_a_pod_of_a_snapshot_reads_the_store_as_the_step_does(tmp_path):
    spec = tmp_path / "s.json"
    spec.write_text(json.dumps({"env": {}, "cwd": "/"}))
    job = replace(JOB, spec=spec)
    site = KubernetesSite(
        image="i", code="snapshot", pinned=COMMIT + "0" * 24, secrets=["s3"], volumes=[{"claim": "runs", "path": "/runs"}]
    )
    made, secret = job_manifest(job, site, "run"), secret_manifest(job, site, "uid", "s3://b/p")
    kubernetes_validate.validate(made, "1.34", strict=True)
    (init,) = made["spec"]["template"]["spec"]["initContainers"]
    assert init["command"] == ["python", "-m", "aframe_ops.executor.kubernetes_unpack", "/run/aframe/spec.json", SOURCE]
    assert init["envFrom"] == [{"secretRef": {"name": "s3"}}] and "/runs" in {m["mountPath"] for m in init["volumeMounts"]}
    assert json.loads(decoded(secret)["spec.json"])["code"] == {"store": "s3://b/p", "sha256": site.pinned}


def test_a_snapshot_holds_what_git_tracks_as_it_is_now(tree):
    (tree / "untracked.py").write_text("secret = 1")
    (tree / "aframe_ops" / "new.py").write_text("x = 1")
    (tree / "link").symlink_to("run.sh")
    git(tree, "add", "aframe_ops/new.py", "link")
    (tree / "aframe_ops" / "new.py").write_text("x = 2")
    first = snapshot(tree)
    found = names(first)
    assert set(found) == {"aframe_ops/__init__.py", "aframe_ops/new.py", "run.sh", "link"}
    assert found["run.sh"].mode == 0o755 and found["aframe_ops/new.py"].mode == 0o644
    assert {(m.mtime, m.uid, m.uname) for m in found.values()} == {(0, 0, "")}
    time.sleep(0.01)
    for path in tree.rglob("*.py"):
        os.utime(path)
    (tree / "untracked.py").unlink()
    assert snapshot(tree) == first
    (tree / "aframe_ops" / "new.py").unlink()
    assert "aframe_ops/new.py" not in names(snapshot(tree))


def test_what_is_no_working_tree_is_refused(tree, tmp_path, monkeypatch):
    (tmp_path / "plain").mkdir()
    with pytest.raises(ConfigError, match="is no git working tree: start from a clone"):
        snapshot(tmp_path / "plain")
    git(tree, "rm", "-q", "--cached", "aframe_ops/__init__.py")
    with pytest.raises(ConfigError, match="git tracks no aframe_ops below"):
        snapshot(tree)
    git(tree, "add", ".")
    monkeypatch.setattr(kubernetes_code, "SNAPSHOT_BYTES", 100)
    with pytest.raises(ConfigError, match="are more than"):
        snapshot(tree)
    monkeypatch.undo()
    (tree / "out").symlink_to("../elsewhere")
    git(tree, "add", "out")
    with pytest.raises(ConfigError, match="is a link out of"):
        snapshot(tree)


def test_unpacking_makes_all_or_nothing(tree, tmp_path, monkeypatch):
    unpack(snapshot(tree), tmp_path / "src")
    assert (tmp_path / "src" / "run.sh").read_text() == "#!/bin/sh\n" and os.access(tmp_path / "src" / "run.sh", os.X_OK)

    unpack(archive(link("l", "m"), link("m", "l"), link("d/up", ".."), member("d/f", size=1)), tmp_path / "links")
    assert {p.name for p in (tmp_path / "links").iterdir()} == {"l", "m", "d"}
    inside = tmp_path / "deep" / "src"
    inside.parent.mkdir()
    for hostile in HOSTILE:
        with pytest.raises(ValueError, match="is not unpacked"):
            unpack(archive(*hostile), inside)
        assert not list(inside.parent.iterdir()) and not (tmp_path / "out").exists()
    monkeypatch.setattr("aframe_ops.executor.kubernetes_unpack.LIMIT_BYTES", 10)
    with pytest.raises(ValueError, match="more than"):
        unpack(archive(member("large", size=11)), tmp_path / "other")


@pytest.mark.skipif(not os.access("/usr/bin/python3", os.X_OK), reason="no /usr/bin/python3 here")
def test_the_python_of_debian_unpacks_too(tree, tmp_path):
    # 3.11.2 in Debian 12, which the images have: tarfile's filters came with 3.11.4
    (tree / "link").symlink_to("aframe_ops")
    git(tree, "add", "link")
    (tmp_path / "code.tar").write_bytes(snapshot(tree))
    (tmp_path / "hostile.tar").write_bytes(archive(member("../out", size=1)))
    program = (
        "import sys; from pathlib import Path; from aframe_ops.executor.kubernetes_unpack import unpack; "
        "unpack(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]))"
    )

    def run(packed: str, folder: str) -> subprocess.CompletedProcess:
        words = ["/usr/bin/python3", "-c", program, str(tmp_path / packed), str(tmp_path / folder)]
        return subprocess.run(
            words, cwd=kubernetes_code.project_folder(), env={"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, check=False
        )

    done = run("code.tar", "src")
    if "SyntaxError" in done.stderr:
        pytest.skip(f"/usr/bin/python3 is too old for this project: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "src" / "run.sh").stat().st_mode & 0o777 == 0o755 and (tmp_path / "src" / "link" / "__init__.py").is_file()
    assert "ValueError: member '../out'" in run("hostile.tar", "evil").stderr and not (tmp_path / "evil").exists()


def test_a_blob_is_kept_once_and_damage_is_seen(tmp_path):
    store = open_store(tmp_path / "store")
    sha256 = put_blob(store, b"code")
    path = tmp_path / "store" / "_code" / f"{sha256}.tar"
    before = path.stat().st_mtime_ns
    assert put_blob(store, b"code") == sha256 and path.stat().st_mtime_ns == before and get_blob(store, sha256) == b"code"
    path.write_bytes(b"evil")
    with pytest.raises(StoreError, match="is damaged"):
        get_blob(store, sha256)
    path.unlink()
    with pytest.raises(StoreError, match="is not there"):
        get_blob(store, sha256)
    with pytest.raises(ValueError, match="expected a sha256"):
        get_blob(store, "../x")


def test_an_init_container_that_fails_or_waits_in_words():
    state = {"terminated": {"exitCode": 128, "reason": "Error", "message": "fatal: could not read\nfrom remote"}}
    step = {"name": "step", "state": {"waiting": {"reason": "PodInitializing"}}}
    pod = {"status": {"phase": "Failed", "initContainerStatuses": [{"name": "code", "state": state}], "containerStatuses": [step]}}
    assert ending(pod, JOB.request) == "could not get the code of this run (fatal: could not read from remote)"
    pulls = {"name": "code", "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}
    assert waiting({"status": {"initContainerStatuses": [pulls], "containerStatuses": [step]}}) == (
        "ErrImagePull",
        "ErrImagePull: not found",
    )


def test_doctor_looks_the_code_up(tree, tmp_path):
    site = KubernetesSite(image="i", kubeconfig="/nonexistent", git={"repository": f"file://{tree}", "ref": "main"})
    found, nobody = check_kubernetes(site, [], tmp_path)
    commit = git(tree, "rev-parse", "HEAD")
    assert (found.level, nobody.level) == ("ok", "error") and f"main of file://{tree} is commit {commit}" in found.text
    (missing,) = check_kubernetes(site.model_copy(update={"git": site.git.model_copy(update={"ref": "absent"})}), [], tmp_path)
    assert missing.level == "error" and "push it first" in missing.text
