"""Which code the pods of a run execute in place of their image's: one commit of a git repository, or the files of a working tree.

It is decided once, as a run starts, so that all pods run the same code whatever is pushed or edited meanwhile.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aframe_assets.config_load import ConfigError
from aframe_ops.executor.kubernetes_init import KEY_FILES
from aframe_ops.executor.kubernetes_unpack import stays_inside
from aframe_ops.sites.kubernetes import KubernetesGit

if TYPE_CHECKING:
    from aframe_ops.site import SiteConfig

SNAPSHOT_BYTES = 100_000_000
"""A working tree with more in its tracked files is not sent to every pod."""

_ASK_S = 60.0
_KEY, _KNOWN = KEY_FILES
_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes")


def pin_code(site: SiteConfig) -> SiteConfig:
    """`site` with ``kubernetes.pinned``: the commit that ``kubernetes.git.ref`` is now, or the snapshot that was sent to the store.

    A site that names no code or is pinned already comes back as it is.

    Raises:
        ConfigError: the repository or the ref cannot be had, or there is no working tree.
        StoreError: the snapshot cannot be kept.
    """
    kubernetes = site.kubernetes
    if kubernetes.pinned or not kubernetes.own_code:
        return site
    if kubernetes.git is not None:
        pinned = resolve_ref(kubernetes.git)
    else:
        from aframe_assets.store.blobs import put_blob
        from aframe_assets.store.opening import open_store

        pinned = put_blob(open_store(site.store_url, cache_dir=site.cache_dir), snapshot(project_folder()))
    return site.model_copy(update={"kubernetes": kubernetes.model_copy(update={"pinned": pinned})})


def described(site: SiteConfig) -> str:
    """What pods run, in words; empty for the code of their image."""
    kubernetes = site.kubernetes
    if not kubernetes.pinned:
        return ""
    if kubernetes.git is not None:
        return f"commit {kubernetes.pinned} ({kubernetes.git.ref} of {kubernetes.git.repository})"
    return f"snapshot {kubernetes.pinned} of {project_folder()}"


# -- git ---------------------------------------------------------------------------------------------------------------


def resolve_ref(git: KubernetesGit) -> str:
    """The commit that ``git.ref`` is in the repository now; asked for with the key that pods will use, so that a bad one is found here.

    Raises:
        ConfigError: no such ref, or no access; git's words are in it.
    """
    whole = re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", git.ref)
    if whole and git.secret:  # this machine may have no access, and there is nothing to look up
        return git.ref
    named = ["HEAD"] if whole else [git.ref] if git.ref.startswith("refs/") else [f"refs/heads/{git.ref}", f"refs/tags/{git.ref}"]
    with _ssh(git) as env:
        answer = _git("ls-remote", "--", git.repository, *named, *(f"{name}^{{}}" for name in named), env=env, about="kubernetes.git")
    if whole:
        return git.ref
    found = {name: commit for commit, name in (line.split("\t") for line in answer.splitlines())}
    # an annotated tag is an object of its own; what it names is listed as name^{}
    commits = {found.get(f"{name}^{{}}", found[name]) for name in named if name in found}
    if not commits:
        raise ConfigError(
            f"kubernetes.git.ref = {git.ref!r}: {git.repository} has no such branch or tag; push it first, or give a commit's whole id"
        )
    if len(commits) > 1:
        raise ConfigError(
            f"kubernetes.git.ref = {git.ref!r}: {git.repository} has a branch and a tag of that name, and they differ; "
            f"write refs/heads/{git.ref} or refs/tags/{git.ref}"
        )
    return commits.pop()


def key_files(git: KubernetesGit) -> dict[str, str]:
    """Contents of the Secret that pods fetch the repository with: the private key, and the public keys of its host.

    Raises:
        ConfigError: a file cannot be used.
    """
    if git.key_file is None or git.host is None:
        return {}
    key = _text(git.key_file, "key_file")
    if "PRIVATE KEY-----" not in key:
        raise ConfigError(f"kubernetes.git.key_file: {git.key_file} is no private ssh key (expected a line with PRIVATE KEY)")
    return {_KEY: key if key.endswith("\n") else f"{key}\n", _KNOWN: _host_keys(git)}


def _host_keys(git: KubernetesGit) -> str:
    """The lines of known_hosts about the repository's host."""
    _text(git.known_hosts, "known_hosts")
    # hashed names are looked up by ssh-keygen only
    answer = _run(["ssh-keygen", "-F", str(git.host), "-f", os.path.expanduser(git.known_hosts)], {}, "kubernetes.git", codes=(0, 1))
    lines = [line for line in answer.splitlines() if line and not line.startswith("#")]
    if not lines:
        raise ConfigError(
            f"kubernetes.git.known_hosts: {git.known_hosts} has no key of {git.host}; connect there once with ssh and compare the "
            "fingerprint with the one that its owner publishes"
        )
    return "".join(f"{line}\n" for line in lines)


@contextmanager
def _ssh(git: KubernetesGit) -> Iterator[dict[str, str]]:
    """Variables with which git on this machine uses the same key and host keys as pods will, and nothing else."""
    if git.host is None:
        yield {}
    elif git.secret:  # that key is in the cluster; here the user's own is asked
        yield {"GIT_SSH_COMMAND": shlex.join(_SSH)}
    else:
        files = key_files(git)
        folder = Path(tempfile.mkdtemp(prefix="aframe-git-"))
        try:
            from aframe_ops.executor.base import write_private

            for name, text in files.items():
                write_private(folder / name, text)
            words = [*_SSH, "-F", "/dev/null", "-i", str(folder / _KEY), "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]
            yield {"GIT_SSH_COMMAND": shlex.join([*words, "-o", f"UserKnownHostsFile={folder / _KNOWN}"])}
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _text(path: str, key: str) -> str:
    try:
        return Path(os.path.expanduser(path)).read_text()
    except (OSError, ValueError) as e:
        raise ConfigError(f"kubernetes.git.{key}: {path} cannot be read ({getattr(e, 'strerror', None) or e})") from None


def _git(*words: str, env: Mapping[str, str] | None = None, about: str) -> str:
    return _run(["git", *words], {"GIT_TERMINAL_PROMPT": "0", **(env or {})}, about)


def _run(words: list[str], env: Mapping[str, str], about: str, codes: tuple[int, ...] = (0,)) -> str:
    try:
        done = subprocess.run(
            words,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=_ASK_S,
        )
    except FileNotFoundError:
        raise ConfigError(f"{about}: {words[0]} is not installed here") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{about}: `{shlex.join(words)}` did not answer within {_ASK_S:g} s") from None
    if done.returncode not in codes:
        said = " ".join(done.stderr.split())[-1000:]
        raise ConfigError(f"{about}: `{shlex.join(words)}` failed: {said or f'exit code {done.returncode}'}")
    return done.stdout


# -- a working tree ----------------------------------------------------------------------------------------------------


def project_folder() -> Path:
    """The folder that this package was imported from."""
    return Path(__file__).resolve().parents[2]


def snapshot(folder: Path) -> bytes:
    """A tar archive of the files below `folder` that git tracks, as they are now; equal for equal files.

    Raises:
        ConfigError: no working tree of this project, or nothing that may be sent.
    """
    about = "kubernetes.code: snapshot"
    try:
        listed = _git("-C", str(folder), "ls-files", "-z", about=about)
    except ConfigError as e:
        raise ConfigError(f"{e}; {folder} is no git working tree: start from a clone of this project, or set kubernetes.git") from None
    names = sorted(name for name in set(listed.split("\0")) if name)
    if "aframe_ops/__init__.py" not in names:
        raise ConfigError(f"{about}: git tracks no aframe_ops below {folder}: start from a clone of this project, or set kubernetes.git")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            _add(tar, folder, name)
            if packed.tell() > SNAPSHOT_BYTES:
                raise ConfigError(f"{about}: the files that git tracks below {folder} are more than {SNAPSHOT_BYTES / 1e6:.0f} MB")
    return packed.getvalue()


def _add(tar: tarfile.TarFile, folder: Path, name: str) -> None:
    path = folder / name
    info = tarfile.TarInfo(name)  # owner, group and times are those of the epoch
    if path.is_symlink():
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
        if not stays_inside(folder, name):
            raise ConfigError(f"kubernetes.code: snapshot: {path} is a link out of {folder}, which pods do not have")
        tar.addfile(info)
    elif path.is_file():  # neither deleted since nor another repository's folder
        data = path.read_bytes()
        info.size, info.mode = len(data), 0o755 if os.access(path, os.X_OK) else 0o644
        tar.addfile(info, io.BytesIO(data))
